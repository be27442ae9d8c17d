"""What subnetworks and meta-learning do: for directions in training, and for new languages with few
sentences. From what ``scripts/experiments/subnetworks.sh`` leaves:

    COMPARISONS/against-full/comparison.json    the directions in training
    COMPARISONS/shots-20/comparison.json        new languages, after that many sentences
    SEED/SYSTEM/checkpoint_last.pt              whose masks are described

A comparison's first system is the baseline of all. BLEU and chrF++ are 0-100.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from matplotlib.figure import Figure
from torch import Tensor

from neuron_spec.arguments import ALPHA
from neuron_spec.artifacts import hash_file, hash_state, require_file, signature, write_json, write_text
from neuron_spec.backends.fairseq.checkpoints import masks_of, read_checkpoint
from neuron_spec.directions import Direction
from neuron_spec.errors import ArtifactError
from neuron_spec.neurons.overlap import churn, kept_fraction, mean_overlap
from neuron_spec.pages import style
from neuron_spec.pages.curves import Point, line_panels
from neuron_spec.pages.page import Bullets, Page, Section, Table, as_markdown, write_pictures
from neuron_spec.pages.tables import Cell, bounds, csv_text, signed
from neuron_spec.scoring.comparison import Comparison, Difference
from neuron_spec.scoring.comparison_files import COMPARISON, difference_table, read_comparison
from neuron_spec.scoring.endpoints import OF_TEXTS
from neuron_spec.scoring.evaluation import ALL
from neuron_spec.scoring.systems import DYNAMIC, FULL, META, STATIC
from neuron_spec.statistics import OverSeeds, Uncertainty

SUBNETWORKS = "subnetworks"  # .md, .csv, .json, .png, .svg
KNOWN = f"against-{FULL}"

_SHOTS = re.compile(r"shots-(\d+)")
_KINDS = (FULL, STATIC, DYNAMIC)
_MASKS = ("neurons kept", "heads kept", "IoU of two directions", f"moved from {STATIC}")
# Of the rows, in CSV and JSON: name -> field.
_COLUMNS = {
    **{"system": "system", "shots": "shots", "family": "name"},
    **{name: name for name in ("directions", "bleu", "bleu_std", "chrf", "difference", "chrf_difference")},
    **{name: name for name in ("low", "high", "p_value", "wins", "losses")},
    **{name: name for name in ("nll", "nll_difference", "nll_low", "nll_high")},
}
# Of episodes, in the JSON: name -> field.
_EPISODES = {
    **{"system": "system", "against": "baseline", "shots": "shots", "difference": "difference"},
    **{name: name for name in ("difference_std", "low", "high", "p_value")},
}


@dataclass(frozen=True)
class Row(Difference):
    """A system over the directions of a family, or all; of those trained by episodes also against the same one
    trained ordinarily.

    Attributes:
        shots: training sentences of each direction; None for directions in the model's own training.
        difference_std: of ``difference`` over seeds; of those trained by episodes, whose ``uncertainty`` is t over seeds.
    """

    shots: int | None = None
    difference_std: float | None = None


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

    @classmethod
    def of(cls, masks: Mapping[str, Tensor], static: Mapping[str, Tensor]) -> Masks:
        heads = {site: kept for site, kept in masks.items() if site.endswith(".head_mask")}
        neurons = {site: kept for site, kept in masks.items() if site not in heads}
        fractions = [kept_fraction(kind) if kind else None for kind in (neurons, heads)]
        return cls(fractions[0], fractions[1], mean_overlap(masks), churn(static, masks))


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
    episodes: list[Row]
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
    mend = "run neuron-spec compare with --output there"
    matches = [_SHOTS.fullmatch(place.name) for place in comparisons.glob("shots-*")]
    numbers = sorted(int(match[1]) for match in matches if match)
    if not numbers:
        raise ArtifactError(
            "no comparison of adaptations",
            where=comparisons,
            expected=f"shots-20/{COMPARISON}.json or the like",
            mend=mend,
        )
    places: dict[int | None, Path] = {
        None: comparisons / KNOWN,
        **{n: comparisons / f"shots-{n}" for n in numbers},
    }
    files = {n: require_file(place / f"{COMPARISON}.json", "comparison", mend) for n, place in places.items()}
    every = {n: read_comparison(file) for n, file in files.items()}
    known, *by_shots = every.values()
    for n, comparison in every.items():
        if (how := _how(comparison)) != _how(known):
            raise ArtifactError(
                "comparisons of different systems, or made in different ways",
                where=places[n],
                got=how,
                expected=f"{_how(known)}, as in {places[None]}",
            )
    systems = [known.baseline, *known.systems]
    inputs = {places[n].name: hash_file(file) for n, file in files.items()}
    # Of each system that has any: site -> bool `[N, F]`, rows in the order that all with the same start have.
    kept: dict[str, dict[str, Tensor]] = {}
    checkpoints = {name: seed / name / checkpoint for name in systems} if seed else {}
    for name, path in checkpoints.items():
        file = require_file(path, "checkpoint", "train the system, or leave out --seed")
        buffers = masks_of(read_checkpoint(file))
        if masks := {site: of for site, of in buffers.items() if not site.endswith(".mask_rows")}:
            kept[name] = masks
            inputs[f"masks of {name}"] = hash_state(masks)
    first = by_shots[0]
    return Subnetworks(
        systems=systems,
        families=list(dict.fromkeys(str(row.family) for row in first.directions)),
        related={str(row.family) for row in known.directions},
        seeds=first.seeds,
        rows=[
            row for n, each in every.items() for row in Row.of_groups(each, ("overall", "family"), shots=n)
        ],
        episodes=[row for n, comparison in every.items() for row in _episodes(comparison, n)],
        masks={name: Masks.of(masks, kept.get(STATIC, masks)) for name, masks in kept.items()},
        curves=_curves(dict(zip(numbers, by_shots, strict=True))),
        signature=signature(
            SUBNETWORKS, inputs=inputs, parameters={"baseline": systems[0], "shots": numbers}
        ),
    )


def _how(comparison: Comparison) -> dict[str, Any]:
    parameters = comparison.signature["parameters"]
    return {key: value for key, value in parameters.items() if key != "directions"}


def _episodes(comparison: Comparison, shots: int | None) -> list[Row]:
    """Systems trained by episodes against the same ones trained ordinarily, seed by seed.

    Texts are not here, so that sentences cannot be drawn anew: the interval is t over seeds.
    """
    # System -> metric -> direction -> a score for each seed.
    scores: dict[str, dict[str, dict[Direction, list[float]]]] = {}
    for row in comparison.directions:
        first, second = ([getattr(seed, of) for seed in row.seeds] for of in ("baseline", "score"))
        for system, of_seeds in ((comparison.baseline, first), (row.system, second)):
            scores.setdefault(system, {}).setdefault(row.metric, {})[row.direction] = of_seeds
    trained = {comparison.baseline: comparison.directions[0].baseline.std is not None}
    trained |= {row.system: row.score.std is not None for row in comparison.directions}
    rows = []
    for system in scores:
        against = system.removeprefix(META)
        if against == system or against not in scores:
            continue
        means = {
            (name, metric): [fmean(of) for of in zip(*scores[name][metric].values(), strict=True)]
            for name in (system, against)
            for metric in scores[name]
        }
        bleu, chrf = (
            [a - b for a, b in zip(means[system, of.key], means[against, of.key], strict=True)]
            for of in OF_TEXTS
        )
        is_paired = trained[system] and trained[against]
        over_seeds = Uncertainty.over_seeds(bleu, ALPHA) if is_paired else None
        rows.append(
            Row(
                *(system, against, ALL, len(scores[system]["bleu"])),
                bleu=fmean(means[system, "bleu"]),
                chrf=fmean(means[system, "chrf"]),
                difference=fmean(bleu),
                chrf_difference=fmean(chrf),
                uncertainty=over_seeds,
                difference_std=OverSeeds.of(bleu).std,
                shots=shots,
            )
        )
    return rows


def _curves(by_shots: Mapping[int, Comparison]) -> dict[str, list[Curve]]:
    curves: dict[str, dict[str, Curve]] = {}
    for n, comparison in by_shots.items():
        for row in comparison.directions:
            scores = {
                comparison.baseline: [of.baseline for of in row.seeds],
                row.system: [of.score for of in row.seeds],
            }
            for system, of_seeds in scores.items() if row.metric == "bleu" else ():
                new = Curve(str(row.direction), str(row.family), [{} for _ in of_seeds])
                curve = curves.setdefault(system, {}).setdefault(new.direction, new)
                for line, score in zip(curve.scores, of_seeds, strict=True):
                    line[n] = score
    return {system: list(of.values()) for system, of in curves.items()}


# The page -------------------------------------------------------------------------------------


def write_subnetworks(output: Path, subnetworks: Subnetworks) -> Path:
    """Write ``subnetworks.csv``, ``.json``, ``.png``, ``.svg`` and, last, ``.md``, whose path is returned."""
    rows = [row.values(_COLUMNS) for row in subnetworks.rows]
    lines = [[round(v, 6) if isinstance(v, float) else v for v in row.values()] for row in rows]
    write_text(output / f"{SUBNETWORKS}.csv", csv_text(list(_COLUMNS), lines))
    plain = {
        "signature": subnetworks.signature,
        "rows": rows,
        "episodes": [row.values(_EPISODES) for row in subnetworks.episodes],
        "masks": {name: asdict(of) for name, of in subnetworks.masks.items()},
        "curves": {name: [asdict(curve) for curve in of] for name, of in subnetworks.curves.items()},
    }
    write_json(output / f"{SUBNETWORKS}.json", plain)
    caption = "BLEU of new languages against training sentences"
    picture = style.drawn(SUBNETWORKS, caption, curves(subnetworks))
    write_pictures(output, [picture])
    numbers = dict.fromkeys(row.shots for row in subnetworks.rows if row.shots is not None)
    new = [Section(f"{shots:,} sentences a direction", [_table(subnetworks, shots)]) for shots in numbers]
    sections = [
        Section("New languages", [picture], new),
        Section("Directions in training", [_table(subnetworks, None)]),
    ]
    if subnetworks.episodes:
        sections.append(Section("Episodes against ordinary training", [_episode_table(subnetworks)]))
    if subnetworks.masks:
        header = ("system", *(f"{what}, %" for what in _MASKS))
        cells: list[list[Cell]] = [
            [name, *(None if value is None else f"{100 * value:.1f}" for value in asdict(of).values())]
            for name, of in subnetworks.masks.items()
        ]
        sections.append(Section("Masks", [Table(header, cells)]))
    sections.append(Section("How to read this", [Bullets(_notes(subnetworks))]))
    page = Page("Subnetworks and meta-learning", [], sections)
    write_text(output / f"{SUBNETWORKS}.md", as_markdown(page, figures=""))
    return output / f"{SUBNETWORKS}.md"


def _table(subnetworks: Subnetworks, shots: int | None) -> Table:
    rows = {(row.system, row.name): row for row in subnetworks.rows if row.shots == shots}
    # Of known languages the families are not the question.
    families: Sequence[str] = [] if shots is None else subnetworks.families
    systems = subnetworks.systems
    by_family = {
        _family_name(subnetworks, family): [signed(rows[name, family].difference) for name in systems]
        for family in families
    }
    return difference_table(systems[0], [rows[name, ALL] for name in systems], by_family)


def _family_name(subnetworks: Subnetworks, family: str) -> str:
    return family if family in subnetworks.related else f"{family} (no relative in training)"


def _episode_table(subnetworks: Subnetworks) -> Table:
    lines: dict[str, list[Cell]] = {}
    for row in subnetworks.episodes:  # all systems are in all comparisons
        line = lines.setdefault(row.system, [f"{row.system} - {row.baseline}"])
        spread = "" if row.difference_std is None else f" ± {row.difference_std:.2f}"
        t = "" if row.low is None or row.high is None else f" ({bounds(row.low, row.high)})"
        line.append(f"{signed(row.difference)}{spread}{t}")
    columns = dict.fromkeys(row.shots for row in subnetworks.episodes)
    named = ["in training" if shots is None else f"new, {shots:,} sentences" for shots in columns]
    return Table(["BLEU", *named], list(lines.values()))


def _notes(subnetworks: Subnetworks) -> list[str]:
    seeds = "one seed" if subnetworks.seeds == 1 else f"{subnetworks.seeds} seeds"
    notes = [
        f"Means over directions and {seeds}; ±: standard deviation over seeds. The baseline is {subnetworks.systems[0]}.",
        "95% interval and p (two-sided): on one joint draw of sentences for all directions that share them, with these "
        "trained models; of training again they say nothing. wins, losses: directions of all seeds that differ "
        "significantly over sentences, after Holm's adjustment.",
        "By family: difference to the baseline, mean over its directions.",
    ]
    if subnetworks.episodes:
        t = any(row.low is not None for row in subnetworks.episodes)
        notes.append(
            "Episodes against ordinary training: ±: standard deviation over seeds; "
            + (
                "in brackets the 95% interval by t over seeds."
                if t
                else "no interval: too few seeds for t over them."
            )
        )
    if subnetworks.masks:
        notes.append(
            "Masks: means over sites and directions, of the first seed. Moved: 1 - IoU of a direction's set "
            f"here and in the system {STATIC}."
        )
    return notes


def curves(subnetworks: Subnetworks) -> Figure:
    """A panel per direction, a line per system: BLEU against shots, means and standard deviations over seeds."""
    of_baseline = subnetworks.curves[subnetworks.systems[0]]
    panels = {
        f"{curve.direction.replace('-', '→', 1)}\n{_family_name(subnetworks, curve.family)}": {
            name: _mean_curve(subnetworks.curves[name][number]) for name in subnetworks.systems
        }
        for number, curve in enumerate(of_baseline)
    }
    shots = {float(n): f"{n:,}" for n in of_baseline[0].scores[0]}
    # Two rows: into and out of English, as the directions come in pairs.
    titles = list(panels)
    rows = [{title: panels[title] for title in half} for half in (titles[::2], titles[1::2]) if half]
    spread = "" if subnetworks.seeds == 1 else ", mean and standard deviation over seeds"
    return line_panels(
        rows,
        title=f"BLEU against shots{spread}",
        label="training sentences (shots)",
        ticks=shots,
        looks={name: _look(name) for name in subnetworks.systems},
        zero="bottom",
    )


def _mean_curve(curve: Curve) -> dict[float, Point]:
    points: dict[float, Point] = {}
    for n in curve.scores[0]:
        of = OverSeeds.of([line[n] for line in curve.scores])
        points[n] = Point(of.mean) if of.std is None else Point(of.mean, of.mean - of.std, of.mean + of.std)
    return points


def _look(system: str) -> dict[str, Any]:
    """A colour for each kind of subnetwork; those trained by episodes are dashed, with white markers."""
    number = _KINDS.index(kind) if (kind := system.removeprefix(META)) in _KINDS else None
    changes: dict[str, Any] = {"color": style.MUTED} if number is None else {}
    if system.startswith(META):
        changes |= {"marker": "D", "linestyle": "--", "markerfacecolor": "white"}
    return style.look(number or 0, **{"marker": "o", **changes})
