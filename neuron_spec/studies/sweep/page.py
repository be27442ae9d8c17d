"""Sweeps: one setting at several values, and what each does to the likelihood of the text (nats a target token without
the language token), BLEU and chrF++ (0-100).

A sweep's folder has one folder per value, ``k-95`` or ``depth-6``, which may hold ``masks.safetensors``
and holds ``evaluation/SYSTEM``. Changes are against the evaluations that do not depend on the value, in
``evaluation`` beside those folders; where there are none, against the dense model of the largest value, and for
specialization against the dense continuation of its own value.

k = 100 drops only neurons that are never active: they compute nothing, so where it was not evaluated
itself the dense continuation stands for it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from matplotlib.figure import Figure

from neuron_spec.artifacts import write_text
from neuron_spec.directions import GROUPS
from neuron_spec.errors import ArtifactError, NeuronSpecError
from neuron_spec.neurons.masks import NeuronMasks
from neuron_spec.pages import curves
from neuron_spec.pages.page import Bullets, Page, Section, Table, as_markdown, write_pictures
from neuron_spec.pages.style import drawn
from neuron_spec.pages.tables import Cell, csv_text
from neuron_spec.scoring.comparison import Difference, compare
from neuron_spec.scoring.comparison_files import difference_cells, nll_cells
from neuron_spec.scoring.endpoints import BLEU, NLL
from neuron_spec.scoring.evaluation import ALL, Evaluation, read_evaluation
from neuron_spec.scoring.systems import CONTINUATION, DENSE, SPECIALIZED, System, comparable

SWEEP = "sweep"  # .csv, .md, .png, .svg
PARAMETERS = {"k": "coverage k (%)", "depth": "layers of encoder and decoder each"}

_POINT = re.compile(rf"({'|'.join(PARAMETERS)})-(\d+(?:\.\d+)?)")
_EVALUATION = "evaluation"
_MASKS = "masks.safetensors"
_GROUPS = {**{group.code: group.arrow for group in GROUPS}, ALL: ALL}
# Of the CSV, after the value: column -> field of a change.
_COLUMNS = {
    **{"system": "system", "reference": "baseline", "group": "name", "directions": "directions"},
    **{"bleu": "bleu", "bleu_change": "difference", "low": "low", "high": "high"},
    **{"chrf": "chrf", "chrf_change": "chrf_difference"},
    **{"nll": "nll", "nll_change": "nll_difference", "nll_low": "nll_low", "nll_high": "nll_high"},
}


class Dropped(NamedTuple):
    """Percent of neurons dropped: least and most over layers and directions, and their mean."""

    min: float
    mean: float
    max: float


@dataclass(frozen=True)
class Point:
    """The systems evaluated at one value, and what the masks there drop."""

    value: float
    systems: dict[str, Evaluation]
    dropped: Dropped | None


@dataclass(frozen=True)
class Sweep:
    """Points in the order of their values; ``references`` are what changes are against, by name."""

    parameter: str
    points: list[Point]
    references: dict[str, Evaluation]


@dataclass(frozen=True)
class Change(Difference):
    """A system at one value against a reference, over the directions of a group."""

    value: float = 0


# Reading --------------------------------------------------------------------------------------


def read_sweep(run: Path) -> Sweep:
    """Read all points and references below ``run``.

    Raises:
        ArtifactError: if there is no point, or points of two settings; an evaluation is incomplete; masks
            are of another k than their folder's name, or of another dense model than the one evaluated.
        NeuronSpecError: if points were evaluated for other systems or on other tests than the rest.
    """
    matches = [(_POINT.fullmatch(path.name), path) for path in sorted(run.glob("*")) if path.is_dir()]
    folders = sorted((match[1], float(match[2]), path) for match, path in matches if match)
    if len({name for name, _, _ in folders}) != 1:
        raise ArtifactError(
            "a sweep of two settings at once" if folders else "no points of a sweep",
            where=run,
            got=", ".join(path.name for _, _, path in folders) or None,
            expected=f"folders such as k-95 and k-90, or depth-6 and depth-3, each with {_EVALUATION}/SYSTEM",
        )
    parameter = folders[0][0]
    references = _evaluations(run)
    points = [_read_point(parameter, value, folder, references) for _, value, folder in folders]
    first, last = points[0], points[-1]
    for point in points:
        if set(point.systems) != set(first.systems):
            raise NeuronSpecError(
                "points of a sweep with different systems",
                where=f"{parameter} {point.value:g}",
                got=", ".join(point.systems),
                expected=f"{', '.join(first.systems)}, as at {parameter} {first.value:g}",
                mend="run the sweep to the end",
            )
    if not references:
        if DENSE not in last.systems:
            raise ArtifactError(
                "nothing to measure changes against",
                where=run,
                got=f"no {_EVALUATION}, and no system {DENSE} at {parameter} {last.value:g}",
                mend=f"evaluate the dense model into {run / _EVALUATION / DENSE}",
            )
        references = {f"{DENSE} of {parameter} {last.value:g}": last.systems[DENSE]}
    systems = [System(name, [evaluation]) for name, evaluation in references.items()]
    for point in points:
        at = f"at {parameter} {point.value:g}"
        systems += [System(f"{name} {at}", [evaluation]) for name, evaluation in point.systems.items()]
    comparable(systems)
    return Sweep(parameter, points, references)


def _evaluations(folder: Path) -> dict[str, Evaluation]:
    folders = [path for path in sorted((folder / _EVALUATION).glob("*")) if path.is_dir()]
    return {path.name: read_evaluation(path) for path in folders}


def _read_point(parameter: str, value: float, folder: Path, references: Mapping[str, Evaluation]) -> Point:
    systems = _evaluations(folder)
    if not systems and (parameter, value) == ("k", 100) and CONTINUATION in references:
        systems = {SPECIALIZED: references[CONTINUATION]}
    if not systems:
        raise ArtifactError(
            "a point of a sweep was not evaluated",
            where=folder,
            expected=f"{_EVALUATION}/SYSTEM, written by neuron-spec evaluate",
            mend="run the sweep to the end, or delete this folder",
        )
    if not (folder / _MASKS).is_file():
        return Point(value, systems, None)
    masks = NeuronMasks.load(folder / _MASKS)
    ks = {k for side in masks.metadata.get("k_percent", {}).values() for k in side.values()}
    if parameter == "k" and ks != {value}:
        raise ArtifactError(
            "masks of another k than their folder's name says",
            where=folder / _MASKS,
            got=", ".join(f"{k:g}" for k in sorted(ks)) or "no k",
            expected=f"{value:g}",
        )
    # Scores of existing logs do not say which checkpoint they are of.
    dense = {**references, **systems}.get(DENSE)
    expected = dense and dense.signature.get("inputs", {}).get("checkpoint")
    checkpoint = masks.metadata.get("checkpoint_sha256")
    if expected and checkpoint != expected:
        raise ArtifactError(
            "masks of another dense model than the one evaluated",
            where=folder / _MASKS,
            got=checkpoint,
            expected=expected,
            mend="profile, select and evaluate one checkpoint",
        )
    percent = [100 * values for values in masks.sparsity().values()]
    dropped = Dropped(
        min=min(float(values.min()) for values in percent),
        mean=fmean(float(values.mean()) for values in percent),
        max=max(float(values.max()) for values in percent),
    )
    return Point(value, systems, dropped)


def changes(sweep: Sweep) -> list[Change]:
    """All systems at all values against all references: for each group of directions, and over all.

    In a sweep with a dense continuation at each value, also specialization against that of its own value.
    """
    points = [(point.value, *each) for point in sweep.points for each in point.systems.items()]
    rows = []
    for reference, against in sweep.references.items():
        named = [
            System(f"{name} at {sweep.parameter} {value:g}", [evaluation])
            for value, name, evaluation in points
        ]
        found = _changes([System(reference, [against]), *named])
        for (value, name, _), system in zip(points, named, strict=True):
            rows += [replace(row, system=name, value=value) for row in found if row.system == system.name]
    for point in sweep.points:
        if {CONTINUATION, SPECIALIZED} <= point.systems.keys():
            pair = [System(name, [point.systems[name]]) for name in (CONTINUATION, SPECIALIZED)]
            of_same = f"{CONTINUATION} of the same {sweep.parameter}"
            found = [replace(row, baseline=of_same, value=point.value) for row in _changes(pair)]
            rows += [row for row in found if row.system == SPECIALIZED]
    return rows


def _changes(systems: Sequence[System]) -> list[Change]:
    return Change.of_groups(compare(comparable(systems), signature={}), ("overall", "group"))


# The page -------------------------------------------------------------------------------------


def write_sweep(run: Path, sweep: Sweep) -> Path:
    """Write ``sweep.csv``, ``.png``, ``.svg`` and, last, ``.md``, whose path is returned."""
    rows = changes(sweep)
    dropped = {point.value: point.dropped for point in sweep.points}
    lines = []
    for row in rows:
        of = dropped[row.value] if row.system == SPECIALIZED else None
        cells = [*row.values(_COLUMNS).values(), *(of or [None] * 3)]
        rounded = [f"{cell:.4f}" if isinstance(cell, float) else cell for cell in cells]
        lines.append([f"{row.value:g}", *rounded])
    header = [sweep.parameter, *_COLUMNS, *(f"dropped_{name}_percent" for name in Dropped._fields)]
    write_text(run / f"{SWEEP}.csv", csv_text(header, lines))
    picture = drawn(SWEEP, "Changes over the values", _draw(sweep, rows))
    write_pictures(run, [picture])
    tables: dict[tuple[str, str], list[Change]] = {}
    for row in rows:
        tables.setdefault((row.baseline, row.system), []).append(row)
    sections = [
        Section(f"{system} against {reference}", [_table(sweep, of)])
        for (reference, system), of in tables.items()
    ]
    evaluated = [("-", name, of) for name, of in sweep.references.items()]
    evaluated += [(f"{point.value:g}", *each) for point in sweep.points for each in point.systems.items()]
    made_from: list[list[Cell]] = []
    for value, name, evaluation in evaluated:
        hashes = [evaluation.signature.get("inputs", {}).get(key) for key in ("checkpoint", "masks")]
        made_from.append([value, name, *(each and each[:16] for each in hashes)])
    table = Table((sweep.parameter, "system", "sha256 of weights", "sha256 of masks"), made_from)
    sections.append(Section("How it was made", [Bullets(_notes(sweep)), table]))
    page = Page(f"Sweep of {PARAMETERS[sweep.parameter]}", [picture], sections)
    write_text(run / f"{SWEEP}.md", as_markdown(page, figures=""))
    return run / f"{SWEEP}.md"


def _draw(sweep: Sweep, rows: Sequence[Change]) -> Figure:
    ticks = {point.value: f"{point.value:g}" for point in sweep.points}
    label = PARAMETERS[sweep.parameter]
    if sweep.parameter == "k":
        label += ", and the least and most neurons dropped in a layer (%)"
        for point in sweep.points:
            if point.dropped:
                ticks[point.value] += f"\n{point.dropped.min:.0f}–{point.dropped.max:.0f}"
    panels: dict[str, dict[str, dict[str, dict[float, Any]]]] = {}
    for row in (row for row in rows if row.name != ALL):
        measures = {BLEU.title: (row.difference, row.low, row.high)}
        if row.nll is not None:
            measures = {f"{NLL.title} (nats)": (row.nll_difference, row.nll_low, row.nll_high), **measures}
        for title, change in measures.items():
            lines = panels.setdefault(f"{title}, change against\n{row.baseline}", {})
            lines.setdefault(_GROUPS[row.name], {}).setdefault(row.system, {})[row.value] = change
    return curves.sweep_curves(panels, ticks, label)


def _table(sweep: Sweep, rows: Sequence[Change]) -> Table:
    by_place = {(row.value, row.name): row for row in rows}
    groups = dict.fromkeys(row.name for row in rows)
    is_masked = rows[0].system == SPECIALIZED and any(point.dropped for point in sweep.points)
    header = [sweep.parameter, *(["dropped %", "min-max"] if is_masked else [])]
    has_nll = rows[0].nll is not None
    for group in groups:
        of_nll = [f"{NLL.title} {_GROUPS[group]}", "change", "95% interval"] if has_nll else []
        header += [*of_nll, f"BLEU {_GROUPS[group]}", "change", "95% interval", "p"]
    lines: list[list[Cell]] = []
    for point in sweep.points:
        line: list[Cell] = [f"{point.value:g}"]
        if is_masked:
            of = point.dropped
            line += [of.mean, f"{of.min:.1f}-{of.max:.1f}"] if of else [None, None]
        for group in groups:
            row = by_place[point.value, group]
            line += [*(nll_cells(row) if has_nll else []), row.bleu, *difference_cells(row)]
        lines.append(line)
    return Table(header, lines)


def _notes(sweep: Sweep) -> list[str]:
    notes = [
        "Figures and their changes are means over directions; interval and p (two-sided) are on one joint draw of sentences for "
        "all directions that share them. They know nothing of other seeds: one model was trained at each value. "
        "`neuron-spec compare` tests two systems in full; chrF++ is in the CSV.",
    ]
    if any(point.dropped for point in sweep.points):
        notes.append("Dropped: neurons per layer and direction in percent; mean, least and most.")
    continuation = sweep.references.get(CONTINUATION)
    if continuation and any(point.systems.get(SPECIALIZED) is continuation for point in sweep.points):
        notes.append(
            "k = 100 was not trained: it drops only neurons that are never active on the validation set, so the "
            "dense continuation stands for it."
        )
    signatures = sorted({score.bleu_signature for of in sweep.references.values() for score in of.scores})
    return [*notes, f"BLEU: {', '.join(f'`{signature}`' for signature in signatures)}."]
