"""The page of a sweep: ``sweep.md``, ``.csv`` and the figure."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from neuron_spec.artifacts import write_text
from neuron_spec.directions import GROUPS
from neuron_spec.pages import curves
from neuron_spec.pages.page import Bullets, Page, Section, Table, as_markdown, write_pictures
from neuron_spec.pages.style import drawn
from neuron_spec.pages.tables import Cell, csv_text
from neuron_spec.scoring.comparison_files import difference_cells
from neuron_spec.scoring.evaluation import ALL, Evaluation
from neuron_spec.scoring.systems import CONTINUATION, SPECIALIZED
from neuron_spec.studies.sweep.measure import PARAMETERS, Change, Sweep, changes

SWEEP = "sweep"  # .csv, .md, .png, .svg

_GROUPS = {**{group.code: group.arrow for group in GROUPS}, ALL: ALL}
# Of the CSV, after the value: column -> field of a change.
_COLUMNS = {
    "system": "system",
    "reference": "baseline",
    "group": "name",
    "directions": "directions",
    "bleu": "bleu",
    "bleu_change": "difference",
    "low": "low",
    "high": "high",
    "chrf": "chrf",
    "chrf_change": "chrf_difference",
}
_DROPPED = ("min", "mean", "max")


def write_sweep(run: Path, sweep: Sweep) -> Path:
    """Write ``sweep.csv``, ``.png``, ``.svg`` and, last, ``.md``, whose path is returned."""
    rows = changes(sweep)
    picture = drawn(SWEEP, "BLEU change", _draw(sweep, rows))
    write_text(run / f"{SWEEP}.csv", _as_csv(sweep, rows))
    write_pictures(run, [picture])
    sections = [
        Section(
            f"{system} against {reference}",
            [_table(sweep, [row for row in rows if (row.baseline, row.system) == (reference, system)])],
        )
        for reference in sweep.references
        for system in sweep.points[0].systems
    ]
    sections.append(Section("How it was made", [Bullets(_notes(sweep)), _made_from(sweep)]))
    page = Page(f"Sweep of {PARAMETERS[sweep.parameter]}", [picture], sections)
    write_text(run / f"{SWEEP}.md", as_markdown(page, figures=""))
    return run / f"{SWEEP}.md"


def _as_csv(sweep: Sweep, rows: Sequence[Change]) -> str:
    dropped = {point.value: point.dropped for point in sweep.points}
    lines = []
    for row in rows:
        of = dropped[row.value] if row.system == SPECIALIZED else None
        cells = [*row.values(_COLUMNS).values(), *(of and getattr(of, name) for name in _DROPPED)]
        lines.append([f"{row.value:g}", *map(_four_decimals, cells)])
    return csv_text([sweep.parameter, *_COLUMNS, *(f"dropped_{name}_percent" for name in _DROPPED)], lines)


def _four_decimals(cell: Any) -> Any:
    return f"{cell:.4f}" if isinstance(cell, float) else cell


def _draw(sweep: Sweep, rows: Sequence[Change]) -> Figure:
    ticks = {point.value: f"{point.value:g}" for point in sweep.points}
    label = PARAMETERS[sweep.parameter]
    if sweep.parameter == "k":
        ticks |= {
            p.value: f"{p.value:g}\n{p.dropped.min:.0f}–{p.dropped.max:.0f}"
            for p in sweep.points
            if p.dropped
        }
        label += ", and the least and most neurons dropped in a layer (%)"
    panels: dict[str, dict[str, dict[str, dict[float, Any]]]] = {name: {} for name in sweep.references}
    for row in rows:
        if row.name != ALL:
            lines = panels[row.baseline].setdefault(_GROUPS[row.name], {})
            lines.setdefault(row.system, {})[row.value] = (row.difference, row.low, row.high)
    return curves.sweep_curves(panels, ticks, label)


def _table(sweep: Sweep, rows: Sequence[Change]) -> Table:
    groups = list(dict.fromkeys(row.name for row in rows))
    is_masked = rows[0].system == SPECIALIZED and any(point.dropped for point in sweep.points)
    header = [sweep.parameter, *(["dropped %", "min-max"] if is_masked else [])]
    for group in groups:
        header += [f"BLEU {_GROUPS[group]}", "change", "95% interval", "p"]
    lines: list[list[Cell]] = []
    for point in sweep.points:
        line: list[Cell] = [f"{point.value:g}"]
        if is_masked:
            of = point.dropped
            line += [of.mean, f"{of.min:.1f}-{of.max:.1f}"] if of else [None, None]
        for group in groups:
            (row,) = (row for row in rows if (row.value, row.name) == (point.value, group))
            line += [row.bleu, *difference_cells(row)]
        lines.append(line)
    return Table(header, lines)


def _notes(sweep: Sweep) -> list[str]:
    notes = [
        "BLEU and its change are means over directions; the interval is of a bootstrap over directions, which it "
        "takes as independent, and is not shown for fewer than 6; p is of a two-sided sign-flip test over them. Both "
        "know nothing of other seeds: one model was trained at each value. `neuron-spec compare` tests two systems in "
        "full; chrF++ is in the CSV.",
    ]
    if any(point.dropped for point in sweep.points):
        notes.append("Dropped: neurons per layer and direction in percent; mean, least and most.")
    if any(
        p.systems.get(SPECIALIZED) is sweep.references.get(CONTINUATION) is not None for p in sweep.points
    ):
        notes.append(
            "k = 100 was not trained: it drops only neurons that are never active on the validation set, so the "
            "dense continuation stands for it."
        )
    signatures = sorted({score.bleu_signature for of in sweep.references.values() for score in of.scores})
    return [*notes, f"BLEU: {', '.join(f'`{signature}`' for signature in signatures)}."]


def _made_from(sweep: Sweep) -> Table:
    rows: list[list[Cell]] = [["-", name, *_hashes(of)] for name, of in sweep.references.items()]
    rows += [
        [f"{point.value:g}", name, *_hashes(of)]
        for point in sweep.points
        for name, of in point.systems.items()
    ]
    return Table((sweep.parameter, "system", "sha256 of weights", "sha256 of masks"), rows)


def _hashes(evaluation: Evaluation) -> list[Cell]:
    inputs = evaluation.signature.get("inputs", {})
    return [inputs[key][:16] if key in inputs else None for key in ("checkpoint", "masks")]
