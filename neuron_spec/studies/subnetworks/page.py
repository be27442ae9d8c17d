"""The page of subnetworks and meta-learning: ``subnetworks.md``, ``.csv``, ``.json`` and the figure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from matplotlib.figure import Figure

from neuron_spec.artifacts import write_json, write_text
from neuron_spec.pages import style
from neuron_spec.pages.curves import Point, line_panels
from neuron_spec.pages.page import Bullets, Page, Section, Table, as_markdown, write_pictures
from neuron_spec.pages.tables import Cell, csv_text, shown_p, signed
from neuron_spec.scoring.comparison_files import difference_table
from neuron_spec.scoring.evaluation import ALL
from neuron_spec.scoring.systems import DYNAMIC, FULL, META, STATIC
from neuron_spec.studies.subnetworks.measure import Curve, Subnetworks

SUBNETWORKS = "subnetworks"  # .md, .csv, .json, .png, .svg

_KINDS = (FULL, STATIC, DYNAMIC)
# Of the rows, in CSV and JSON: name -> field.
_COLUMNS = {
    **{"system": "system", "shots": "shots", "family": "name"},
    **{name: name for name in ("directions", "bleu", "bleu_std", "chrf", "difference", "chrf_difference")},
    **{name: name for name in ("low", "high", "p_value", "wins", "losses")},
}
# Of episodes, in the JSON: name -> field.
_EPISODES = {
    **{"system": "system", "against": "baseline", "shots": "shots", "difference": "difference"},
    **{name: name for name in ("low", "high", "p_value")},
}


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
    picture = style.drawn(
        SUBNETWORKS, "BLEU of new languages against training sentences", curves(subnetworks)
    )
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
        sections.append(Section("Masks", [_mask_table(subnetworks)]))
    sections.append(Section("How to read this", [Bullets(_notes(subnetworks))]))
    page = Page("Subnetworks and meta-learning", [], sections)
    write_text(output / f"{SUBNETWORKS}.md", as_markdown(page, figures=""))
    return output / f"{SUBNETWORKS}.md"


def _table(subnetworks: Subnetworks, shots: int | None) -> Table:
    rows = {(row.system, row.name): row for row in subnetworks.rows if row.shots == shots}
    # Of known languages the families are not the question.
    families: Sequence[str] = [] if shots is None else subnetworks.families
    by_family = {
        _family_name(subnetworks, family): [
            signed(rows[name, family].difference) for name in subnetworks.systems
        ]
        for family in families
    }
    return difference_table(
        subnetworks.systems[0], [rows[name, ALL] for name in subnetworks.systems], by_family
    )


def _family_name(subnetworks: Subnetworks, family: str) -> str:
    return family if family in subnetworks.related else f"{family} (no relative in training)"


def _episode_table(subnetworks: Subnetworks) -> Table:
    lines: dict[str, list[Cell]] = {}
    for row in subnetworks.episodes:  # all systems are in all comparisons
        assert row.p_value is not None
        line = lines.setdefault(row.system, [f"{row.system} - {row.baseline}"])
        line.append(f"{signed(row.difference)} (p {shown_p(row.p_value)})")
    columns = dict.fromkeys(row.shots for row in subnetworks.episodes)
    named = ["in training" if shots is None else f"new, {shots:,} sentences" for shots in columns]
    return Table(["BLEU", *named], list(lines.values()))


def _mask_table(subnetworks: Subnetworks) -> Table:
    rows: list[list[Cell]] = [
        [name, *(None if value is None else f"{100 * value:.1f}" for value in asdict(of).values())]
        for name, of in subnetworks.masks.items()
    ]
    header = (
        *("system", "neurons kept, %", "heads kept, %"),
        *("IoU of two directions, %", f"moved from {STATIC}, %"),
    )
    return Table(header, rows)


def _notes(subnetworks: Subnetworks) -> list[str]:
    directions = len(subnetworks.curves[subnetworks.systems[0]])
    seeds = "one seed" if subnetworks.seeds == 1 else f"{subnetworks.seeds} seeds"
    notes = [
        f"Means over directions and {seeds}; ±: standard deviation over seeds. The baseline is {subnetworks.systems[0]}.",
        "95% interval and p: bootstrap and two-sided sign-flip test over directions, whose seeds are averaged first: "
        f"with {directions} new directions p is never below {2 / 2**directions:.3f}. wins, losses: directions of all seeds that differ significantly "
        "over sentences, after Holm's adjustment.",
        "By family: difference to the baseline, mean over its directions.",
    ]
    if subnetworks.episodes:
        notes.append("Episodes against ordinary training: the same test over directions.")
    if subnetworks.masks:
        notes.append(
            "Masks: means over sites and directions, of the first seed. Moved: 1 - IoU of a direction's set "
            f"here and in the system {STATIC}."
        )
    return notes


def curves(subnetworks: Subnetworks) -> Figure:
    """A panel per direction, a line per system: BLEU against shots, means and standard deviations over seeds."""
    panels = {
        f"{curve.direction.replace('-', '→', 1)}\n{_family_name(subnetworks, curve.family)}": {
            name: _mean_curve(subnetworks.curves[name][number]) for name in subnetworks.systems
        }
        for number, curve in enumerate(subnetworks.curves[subnetworks.systems[0]])
    }
    shots = {float(n): f"{n:,}" for n in subnetworks.curves[subnetworks.systems[0]][0].scores[0]}
    # Two rows: into and out of English, as the directions come in pairs.
    titles = list(panels)
    rows = [{title: panels[title] for title in half} for half in (titles[::2], titles[1::2]) if half]
    return line_panels(
        rows,
        title="BLEU against shots"
        + ("" if subnetworks.seeds == 1 else ", mean and standard deviation over seeds"),
        label="training sentences (shots)",
        ticks=shots,
        looks={name: _look(name) for name in subnetworks.systems},
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
