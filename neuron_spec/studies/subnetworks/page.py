"""One page of what subnetworks and meta-learning do: for directions in training, and for new languages with few
sentences. From what ``scripts/experiments/subnetworks.sh`` leaves:

    COMPARISONS/against-full/comparison.json    the directions in training
    COMPARISONS/shots-20/comparison.json        new languages, after that many sentences
    SEED/SYSTEM/checkpoint_last.pt              whose masks are described

A comparison's first system is the baseline of all. BLEU and chrF++ are 0-100.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from matplotlib.figure import Figure
from torch import Tensor

from neuron_spec.artifacts import (
    hash_file,
    hash_state,
    require_file,
    signature,
    write_json,
    write_text,
)
from neuron_spec.backends.fairseq.checkpoints import masks_of, read_checkpoint
from neuron_spec.errors import ArtifactError
from neuron_spec.neurons.overlap import churn, kept_fraction, mean_overlap
from neuron_spec.pages import style
from neuron_spec.pages.curves import Point, line_panels
from neuron_spec.pages.tables import Cell, markdown_table, shown_p
from neuron_spec.scoring.comparison import Comparison
from neuron_spec.scoring.comparison_files import COMPARISON, read_comparison
from neuron_spec.scoring.evaluation import ALL
from neuron_spec.scoring.systems import DYNAMIC, FULL, STATIC
from neuron_spec.statistics import interval_over_directions, sign_flip_p_value

SUBNETWORKS = "subnetworks"  # .md, .csv, .json, .png, .svg
KNOWN = f"against-{FULL}"
META = "meta-"  # what a system is called that is another one trained by episodes

_SHOTS = re.compile(r"shots-(\d+)")
_ROWS = ".mask_rows"
_KINDS = (FULL, STATIC, DYNAMIC)


@dataclass(frozen=True)
class Row:
    """A system over some directions, means over directions and seeds.

    Attributes:
        shots: training sentences of each direction; None for directions in the model's own training.
        family: of the directions' other language than English, or ``all``.
        difference, low, high: BLEU against the baseline, and its 95 % interval over directions.
        wins, losses: directions of all seeds that differ significantly over sentences, after Holm's adjustment.
    """

    system: str
    shots: int | None
    family: str
    directions: int
    bleu: float
    bleu_std: float | None
    chrf: float
    difference: float | None = None
    chrf_difference: float | None = None
    low: float | None = None
    high: float | None = None
    p_value: float | None = None
    wins: int | None = None
    losses: int | None = None


@dataclass(frozen=True)
class Episodes:
    """A system trained by episodes against the same one trained ordinarily: mean difference in BLEU over directions,
    whose seeds are averaged first, its 95 % interval, and two-sided p by flipping signs.
    """

    system: str
    against: str
    shots: int | None
    difference: float
    low: float | None
    high: float | None
    p_value: float


@dataclass(frozen=True)
class Masks:
    """A checkpoint's masks, fractions 0-1, means over sites and directions.

    Attributes:
        neurons_kept, heads_kept: None where no such site is masked.
        overlap: IoU of two directions' sets.
        moved: 1 - IoU of a direction's sets here and in the static system.
    """

    neurons_kept: float | None
    heads_kept: float | None
    overlap: float
    moved: float


@dataclass(frozen=True)
class Curve:
    """BLEU of a direction against shots, one line per seed: ``scores[seed][shots]``."""

    direction: str
    family: str
    scores: list[dict[int, float]]


@dataclass(frozen=True)
class Subnetworks:
    """All of the page; the baseline is the first of ``systems``. ``curves``: system -> its directions."""

    systems: list[str]
    families: list[str]
    related: set[str]
    seeds: int
    rows: list[Row]
    episodes: list[Episodes]
    masks: dict[str, Masks]
    curves: dict[str, list[Curve]]
    signature: dict[str, Any]


# Reading --------------------------------------------------------------------------------------


def read_subnetworks(
    comparisons: Path, seed: Path | None = None, checkpoint: str = "checkpoint_last.pt"
) -> Subnetworks:
    """Gather what the stages left.

    Args:
        seed: a folder with ``SYSTEM/CHECKPOINT`` of every system; None: masks are not described.

    Raises:
        ArtifactError: if a file is missing or damaged, or the comparisons are of different systems.
    """
    places = {n: comparisons / f"shots-{n}" for n in _numbers_of_shots(comparisons)}
    found = {n: read_comparison(_file(place)) for n, place in places.items()}
    known = read_comparison(_file(comparisons / KNOWN))
    systems = _systems(known)
    for n, one in found.items():
        if (how := _how(one)) != _how(known):
            raise ArtifactError(
                "comparisons of different systems, or made in different ways",
                where=places[n],
                got=how,
                expected=f"{_how(known)}, as in {comparisons / KNOWN}",
            )
    first = next(iter(found.values()))
    inputs = {place.name: hash_file(_file(place)) for place in (comparisons / KNOWN, *places.values())}
    masks = {}
    if seed is not None:
        states = {name: read_masks(seed / name / checkpoint) for name in systems}
        inputs |= {f"masks of {name}": hash_state(of) for name, of in states.items() if of}
        masks = {name: _describe(of, states.get(STATIC, of)) for name, of in states.items() if of}
    return Subnetworks(
        systems=systems,
        families=list(dict.fromkeys(str(row.family) for row in first.directions)),
        related={str(row.family) for row in known.directions},
        seeds=len(first.directions[0].seeds),
        rows=[*_rows(known, None), *(row for n, one in found.items() for row in _rows(one, n))],
        episodes=[*_episodes(known, None), *(row for n, one in found.items() for row in _episodes(one, n))],
        masks=masks,
        curves={name: _curves(found, name) for name in systems},
        signature=signature(
            SUBNETWORKS, inputs=inputs, parameters={"baseline": systems[0], "shots": sorted(found)}
        ),
    )


def _numbers_of_shots(comparisons: Path) -> list[int]:
    found = [_SHOTS.fullmatch(place.name) for place in comparisons.glob("shots-*")]
    numbers = sorted(int(match[1]) for match in found if match)
    if not numbers:
        raise ArtifactError(
            "no comparison of adaptations",
            where=comparisons,
            expected=f"shots-20/{COMPARISON}.json or the like",
            mend="run neuron-spec compare with --output there",
        )
    return numbers


def _file(folder: Path) -> Path:
    return require_file(
        folder / f"{COMPARISON}.json", "comparison", "run neuron-spec compare with --output there"
    )


def _systems(found: Comparison) -> list[str]:
    return [found.baseline, *dict.fromkeys(row.system for row in found.groups)]


def _how(found: Comparison) -> dict[str, Any]:
    parameters = found.signature["parameters"]
    return {key: value for key, value in parameters.items() if key != "directions"}


def _rows(found: Comparison, shots: int | None) -> list[Row]:
    groups = {
        (row.system, row.metric, row.name): row
        for row in found.groups
        if row.group == ALL and row.kind in ("overall", "family")
    }
    rows = []
    for system in _systems(found)[1:]:
        for name in dict.fromkeys(name for of, _, name in groups if of == system):
            bleu, chrf = (groups[system, metric, name] for metric in ("bleu", "chrf"))
            of = shots, name, bleu.directions
            base = bleu.baseline
            baseline = Row(found.baseline, *of, base.mean, base.std, chrf.baseline.mean)
            if baseline not in rows:
                rows.append(baseline)
            low, high = bleu.interval or (None, None)
            rows.append(
                Row(
                    system,
                    *of,
                    bleu=bleu.score.mean,
                    bleu_std=bleu.score.std,
                    chrf=chrf.score.mean,
                    difference=bleu.difference.mean,
                    chrf_difference=chrf.difference.mean,
                    low=low,
                    high=high,
                    p_value=bleu.p_value,
                    wins=bleu.holm_results.get("win", 0),
                    losses=bleu.holm_results.get("loss", 0),
                )
            )
    return rows


def _episodes(found: Comparison, shots: int | None) -> list[Episodes]:
    scores: dict[str, dict[str, float]] = {found.baseline: {}}
    for row in found.directions:
        if row.metric == "bleu":
            scores[found.baseline][str(row.direction)] = row.baseline.mean
            scores.setdefault(row.system, {})[str(row.direction)] = row.score.mean
    rows = []
    for system, own in scores.items():
        against = system.removeprefix(META)
        if against == system or against not in scores:
            continue
        differences = [score - scores[against][direction] for direction, score in own.items()]
        low, high = interval_over_directions(differences) or (None, None)
        p_value = sign_flip_p_value(differences)
        rows.append(Episodes(system, against, shots, fmean(differences), low, high, p_value))
    return rows


def _curves(found: Mapping[int, Comparison], system: str) -> list[Curve]:
    curves: dict[str, Curve] = {}
    for n, one in found.items():
        is_baseline = system == one.baseline
        for row in one.directions:
            if row.metric != "bleu" or not (is_baseline or row.system == system):
                continue
            new = Curve(str(row.direction), str(row.family), [{} for _ in row.seeds])
            curve = curves.setdefault(new.direction, new)
            for line, seed in zip(curve.scores, row.seeds, strict=True):
                line[n] = seed.baseline if is_baseline else seed.score
    return list(curves.values())


def read_masks(path: Path) -> dict[str, Tensor]:
    """Site -> bool ``[N, F]``, rows in the order that all checkpoints with the same start have; empty if dense.

    Raises:
        ArtifactError: if the checkpoint is missing or damaged.
    """
    state = read_checkpoint(require_file(path, "checkpoint", "train the system, or leave out --seed"))
    return {key: value for key, value in masks_of(state).items() if not key.endswith(_ROWS)}


def _describe(masks: Mapping[str, Tensor], static: Mapping[str, Tensor]) -> Masks:
    heads = {site: kept for site, kept in masks.items() if site.endswith(".head_mask")}
    neurons = {site: kept for site, kept in masks.items() if site not in heads}
    return Masks(
        neurons_kept=kept_fraction(neurons) if neurons else None,
        heads_kept=kept_fraction(heads) if heads else None,
        overlap=mean_overlap(masks),
        moved=churn(static, masks),
    )


# Showing --------------------------------------------------------------------------------------


def write_subnetworks(output: Path, found: Subnetworks) -> Path:
    """Write ``subnetworks.csv``, ``.json``, ``.png``, ``.svg`` and, last, ``.md``, whose path is returned."""
    write_text(output / f"{SUBNETWORKS}.csv", _as_csv(found.rows))
    plain = {
        "signature": found.signature,
        "rows": [asdict(row) for row in found.rows],
        "episodes": [asdict(row) for row in found.episodes],
        "masks": {name: asdict(of) for name, of in found.masks.items()},
        "curves": {name: [asdict(curve) for curve in of] for name, of in found.curves.items()},
    }
    write_json(output / f"{SUBNETWORKS}.json", plain)
    for suffix in (".png", ".svg"):
        style.save(curves(found), output / f"{SUBNETWORKS}{suffix}")
    write_text(output / f"{SUBNETWORKS}.md", as_markdown(found))
    return output / f"{SUBNETWORKS}.md"


def _as_csv(rows: Sequence[Row]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([field.name for field in fields(Row)])
    for row in rows:
        cells = asdict(row).values()
        writer.writerow([round(cell, 6) if isinstance(cell, float) else cell for cell in cells])
    return text.getvalue()


def as_markdown(found: Subnetworks) -> str:
    """The page ``subnetworks.md``."""
    parts = ["# Subnetworks and meta-learning", "## New languages"]
    parts.append(f"![BLEU of new languages against training sentences]({SUBNETWORKS}.png)")
    for shots in dict.fromkeys(row.shots for row in found.rows if row.shots is not None):
        parts += [f"### {shots:,} sentences a direction", _table(found, shots)]
    parts += ["## Directions in training", _table(found, None)]
    if found.episodes:
        parts += ["## Episodes against ordinary training", _episode_table(found.episodes)]
    if found.masks:
        parts += ["## Masks", _mask_table(found.masks)]
    return "\n\n".join([*parts, "\n".join(f"- {note}" for note in _notes(found))]) + "\n"


def _table(found: Subnetworks, shots: int | None) -> str:
    rows = {(row.system, row.family): row for row in found.rows if row.shots == shots}
    # Of known languages the families are not the question.
    families = [] if shots is None else found.families
    cells: list[list[Cell]] = []
    for name in found.systems:
        row = rows[name, ALL]
        cells.append(
            [
                name,
                f"{row.bleu:.1f}" + ("" if row.bleu_std is None else f" ± {row.bleu_std:.1f}"),
                row.chrf,
                _signed(row.difference),
                None if row.low is None else f"{row.low:+.2f} to {row.high:+.2f}",
                None if row.p_value is None else shown_p(row.p_value),
                row.wins,
                row.losses,
                *(_signed(rows[name, family].difference) for family in families),
            ]
        )
    header = ["system", "BLEU", "chrF++", f"BLEU - {found.systems[0]}", "95% interval", "p", "wins", "losses"]
    return markdown_table([*header, *(_family_name(found, family) for family in families)], cells)


def _signed(value: float | None) -> Cell:
    return None if value is None else f"{value:+.2f}"


def _family_name(found: Subnetworks, family: str) -> str:
    return family if family in found.related else f"{family} (no relative in training)"


def _episode_table(episodes: Sequence[Episodes]) -> str:
    lines: dict[str, list[Cell]] = {}
    for row in episodes:  # all systems are in all comparisons
        line = lines.setdefault(row.system, [f"{row.system} - {row.against}"])
        line.append(f"{row.difference:+.2f} (p {shown_p(row.p_value)})")
    columns = dict.fromkeys(row.shots for row in episodes)
    named = ["in training" if shots is None else f"new, {shots:,} sentences" for shots in columns]
    return markdown_table(["BLEU", *named], list(lines.values()))


def _mask_table(masks: Mapping[str, Masks]) -> str:
    rows: list[list[Cell]] = [
        [name, *(None if value is None else f"{100 * value:.1f}" for value in asdict(of).values())]
        for name, of in masks.items()
    ]
    header = (
        *("system", "neurons kept, %", "heads kept, %"),
        *("IoU of two directions, %", f"moved from {STATIC}, %"),
    )
    return markdown_table(header, rows)


def _notes(found: Subnetworks) -> list[str]:
    directions = len(found.curves[found.systems[0]])
    seeds = "one seed" if found.seeds == 1 else f"{found.seeds} seeds"
    notes = [
        f"Means over directions and {seeds}; ±: standard deviation over seeds. The baseline is {found.systems[0]}.",
        "95% interval and p: bootstrap and two-sided sign-flip test over directions, whose seeds are averaged first: "
        f"with {directions} new directions p is never below {2 / 2**directions:.3f}. wins, losses: directions of all seeds that differ significantly "
        "over sentences, after Holm's adjustment.",
        "By family: difference to the baseline, mean over its directions.",
    ]
    if found.episodes:
        notes.append("Episodes against ordinary training: the same test over directions.")
    if found.masks:
        notes.append(
            "Masks: means over sites and directions, of the first seed. Moved: 1 - IoU of a direction's set "
            f"here and in the system {STATIC}."
        )
    return notes


def curves(found: Subnetworks) -> Figure:
    """A panel per direction, a line per system: BLEU against shots, means and standard deviations over seeds."""
    panels = {
        f"{curve.direction.replace('-', '→', 1)}\n{_family_name(found, curve.family)}": {
            name: _mean_curve(found.curves[name][number]) for name in found.systems
        }
        for number, curve in enumerate(found.curves[found.systems[0]])
    }
    shots = {float(n): f"{n:,}" for n in found.curves[found.systems[0]][0].scores[0]}
    # Two rows: into and out of English, as the directions come in pairs.
    titles = list(panels)
    rows = [{title: panels[title] for title in half} for half in (titles[::2], titles[1::2]) if half]
    return line_panels(
        rows,
        title="BLEU against shots" + ("" if found.seeds == 1 else ", mean and standard deviation over seeds"),
        label="training sentences (shots)",
        ticks=shots,
        looks={name: _look(name) for name in found.systems},
        zero="bottom",
    )


def _mean_curve(curve: Curve) -> dict[float, Point]:
    points: dict[float, Point] = {}
    for n in curve.scores[0]:
        scores = [line[n] for line in curve.scores]
        mean, spread = fmean(scores), stdev(scores) if len(scores) > 1 else None
        points[n] = Point(mean) if spread is None else Point(mean, mean - spread, mean + spread)
    return points


def _look(system: str) -> dict[str, Any]:
    """A colour for each kind of subnetwork; those trained by episodes are dashed, with white markers."""
    number = _KINDS.index(kind) if (kind := system.removeprefix(META)) in _KINDS else None
    changes: dict[str, Any] = {"color": style.MUTED} if number is None else {}
    if system.startswith(META):
        changes |= {"marker": "D", "linestyle": "--", "markerfacecolor": "white"}
    return style.look(number or 0, **{"marker": "o", **changes})
