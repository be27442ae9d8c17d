"""Sweeps: one setting at several values, and what each does to BLEU and chrF++ (0-100).

A sweep's folder has one folder per value, ``k-95`` or ``depth-6``, which may hold ``masks.safetensors``
and holds ``evaluation/SYSTEM``. Changes are against the evaluations that do not depend on the value, in
``evaluation`` beside those folders; where there are none, against the dense model of the largest value.

k = 100 drops only neurons that are never active: they compute nothing, so where it was not evaluated
itself the dense continuation stands for it.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from matplotlib.figure import Figure

from neuron_spec.artifacts import write_text
from neuron_spec.directions import GROUPS
from neuron_spec.errors import ArtifactError, NeuronSpecError
from neuron_spec.neurons.masks import NeuronMasks
from neuron_spec.pages import curves, style
from neuron_spec.pages.tables import Cell, markdown_table
from neuron_spec.scoring.evaluation import ALL, Evaluation, grouped, read_evaluation
from neuron_spec.scoring.systems import System, comparable
from neuron_spec.statistics import interval_over_directions

SWEEP = "sweep"  # .csv, .md, .png, .svg
PARAMETERS = {"k": "coverage k (%)", "depth": "layers of encoder and decoder each"}
DENSE, CONTINUATION, SPECIALIZED = "dense", "dense-continuation", "specialized"

_POINT = re.compile(rf"({'|'.join(PARAMETERS)})-(\d+(?:\.\d+)?)")
_GROUPS = {**{group.code: group.arrow for group in GROUPS}, ALL: ALL}
_EVALUATION = "evaluation"
_MASKS = "masks.safetensors"


@dataclass(frozen=True)
class Dropped:
    """Percent of neurons dropped: least and most over layers and directions, and their mean."""

    min: float
    mean: float
    max: float

    @classmethod
    def of(cls, masks: NeuronMasks) -> Dropped:
        percent = [100 * values for values in masks.sparsity().values()]
        return cls(
            min=min(float(values.min()) for values in percent),
            mean=fmean(float(values.mean()) for values in percent),
            max=max(float(values.max()) for values in percent),
        )


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
class Change:
    """A system at one value against a reference, by means over a group's directions.

    ``low`` and ``high`` are the 95 % interval of ``bleu_change`` over directions; None for fewer than 6.
    """

    value: float
    system: str
    reference: str
    group: str
    directions: int
    bleu: float
    bleu_change: float
    low: float | None
    high: float | None
    chrf: float
    chrf_change: float


# Reading --------------------------------------------------------------------------------------


def read_sweep(run: Path) -> Sweep:
    """Read all points and references below ``run``.

    Raises:
        ArtifactError: if there is no point, or points of two settings; an evaluation is incomplete; masks
            are of another k than their folder's name, or of another dense model than the one evaluated.
        NeuronSpecError: if points were evaluated for other systems or on other tests than the rest.
    """
    found = _point_folders(run)
    parameter = found[0][0]
    references = _evaluations(run)
    points = [_read_point(run, parameter, value, folder, references) for _, value, folder in found]
    _require_same_systems(parameter, points)
    if not references:
        last = points[-1]
        if DENSE not in last.systems:
            raise ArtifactError(
                "nothing to measure changes against",
                where=run,
                got=f"no {_EVALUATION}, and no system {DENSE} at {parameter} {last.value:g}",
                mend=f"evaluate the dense model into {run / _EVALUATION / DENSE}",
            )
        references = {f"{DENSE} of {parameter} {last.value:g}": last.systems[DENSE]}
    sweep = Sweep(parameter, points, references)
    _require_comparable(sweep)
    return sweep


def _point_folders(run: Path) -> list[tuple[str, float, Path]]:
    matches = [(_POINT.fullmatch(path.name), path) for path in sorted(run.glob("*")) if path.is_dir()]
    found = sorted((m[1], float(m[2]), path) for m, path in matches if m)
    names = {name for name, _, _ in found}
    if len(names) != 1:
        raise ArtifactError(
            "a sweep of two settings at once" if found else "no points of a sweep",
            where=run,
            got=", ".join(path.name for _, _, path in found) or None,
            expected=f"folders such as k-95 and k-90, or depth-6 and depth-3, each with {_EVALUATION}/SYSTEM",
        )
    return found


def _evaluations(folder: Path) -> dict[str, Evaluation]:
    return {
        path.name: read_evaluation(path) for path in sorted((folder / _EVALUATION).glob("*")) if path.is_dir()
    }


def _read_point(
    run: Path, parameter: str, value: float, folder: Path, references: Mapping[str, Evaluation]
) -> Point:
    masks = NeuronMasks.load(folder / _MASKS) if (folder / _MASKS).is_file() else None
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
    if masks is not None:
        ks = {k for side in masks.metadata.get("k_percent", {}).values() for k in side.values()}
        if parameter == "k" and ks != {value}:
            raise ArtifactError(
                "masks of another k than their folder's name says",
                where=folder / _MASKS,
                got=", ".join(f"{k:g}" for k in sorted(ks)) or "no k",
                expected=f"{value:g}",
            )
        _require_same_dense(folder, masks, {**references, **systems}.get(DENSE))
    return Point(value, systems, None if masks is None else Dropped.of(masks))


def _require_same_dense(folder: Path, masks: NeuronMasks, dense: Evaluation | None) -> None:
    """Scores of existing logs do not say which checkpoint they are of."""
    expected = dense and dense.signature.get("inputs", {}).get("checkpoint")
    got = masks.metadata.get("checkpoint_sha256")
    if expected and got != expected:
        raise ArtifactError(
            "masks of another dense model than the one evaluated",
            where=folder / _MASKS,
            got=got,
            expected=expected,
            mend="profile, select and evaluate one checkpoint",
        )


def _require_same_systems(parameter: str, points: Sequence[Point]) -> None:
    for point in points[1:]:
        if set(point.systems) != set(points[0].systems):
            raise NeuronSpecError(
                "points of a sweep with different systems",
                where=f"{parameter} {point.value:g}",
                got=", ".join(point.systems),
                expected=f"{', '.join(points[0].systems)}, as at {parameter} {points[0].value:g}",
                mend="run the sweep to the end",
            )


def _require_comparable(sweep: Sweep) -> None:
    evaluations = dict(sweep.references)
    for point in sweep.points:
        at = f"{sweep.parameter} {point.value:g}"
        evaluations |= {f"{name} at {at}": evaluation for name, evaluation in point.systems.items()}
    comparable([System(name, [evaluation]) for name, evaluation in evaluations.items()])


# Computing ------------------------------------------------------------------------------------


def changes(sweep: Sweep) -> list[Change]:
    """All systems at all values against all references: for each group of directions, and over all."""
    return [
        change
        for reference, against in sweep.references.items()
        for point in sweep.points
        for system, evaluation in point.systems.items()
        for change in _changes(point.value, system, evaluation, reference, against)
    ]


def _changes(
    value: float, system: str, evaluation: Evaluation, reference: str, against: Evaluation
) -> list[Change]:
    before = {score.direction: score for score in against.scores}
    found = []
    for kind, _, group, members in grouped(evaluation.scores):
        if kind not in ("overall", "group"):
            continue
        bleu = [score.bleu - before[score.direction].bleu for score in members]
        low, high = interval_over_directions(bleu) or (None, None)
        found.append(
            Change(
                value=value,
                system=system,
                reference=reference,
                group=group,
                directions=len(members),
                bleu=fmean(score.bleu for score in members),
                bleu_change=fmean(bleu),
                low=low,
                high=high,
                chrf=fmean(score.chrf for score in members),
                chrf_change=fmean(score.chrf - before[score.direction].chrf for score in members),
            )
        )
    return found


# Showing --------------------------------------------------------------------------------------


def write_sweep(run: Path, sweep: Sweep) -> Path:
    """Write ``sweep.csv``, ``.png``, ``.svg`` and, last, ``.md``, whose path is returned."""
    found = changes(sweep)
    write_text(run / f"{SWEEP}.csv", _as_csv(sweep, found))
    for suffix in (".png", ".svg"):
        style.save(_draw(sweep, found), run / f"{SWEEP}{suffix}")
    write_text(run / f"{SWEEP}.md", as_markdown(sweep, found))
    return run / f"{SWEEP}.md"


def _as_csv(sweep: Sweep, found: Sequence[Change]) -> str:
    dropped = {point.value: point.dropped for point in sweep.points}
    text = io.StringIO()
    columns = (sweep.parameter, *Change.__dataclass_fields__)
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        [*(c for c in columns if c != "value"), *(f"dropped_{n}_percent" for n in ("min", "mean", "max"))]
    )
    for change in found:
        value, *cells = asdict(change).values()
        of = dropped[change.value]
        percents = (of.min, of.mean, of.max) if of and change.system == SPECIALIZED else (None, None, None)
        writer.writerow([f"{value:g}", *map(_plain, cells), *map(_plain, percents)])
    return text.getvalue()


def _plain(cell: Any) -> Any:
    return f"{cell:.4f}" if isinstance(cell, float) else cell


def _draw(sweep: Sweep, found: Sequence[Change]) -> Figure:
    ticks = {point.value: f"{point.value:g}" for point in sweep.points}
    label = PARAMETERS[sweep.parameter]
    if sweep.parameter == "k":
        ticks |= {
            p.value: f"{p.value:g}\n{p.dropped.min:.0f}–{p.dropped.max:.0f}"
            for p in sweep.points
            if p.dropped
        }
        label += ", and the least and most neurons dropped in a layer (%)"
    rows = {
        reference: {
            title: {
                system: {
                    c.value: (c.bleu_change, c.low, c.high)
                    for c in found
                    if (c.reference, c.group, c.system) == (reference, group, system)
                }
                for system in sweep.points[0].systems
            }
            for group, title in _GROUPS.items()
            if group != ALL and any(c.group == group for c in found)
        }
        for reference in sweep.references
    }
    return curves.sweep_curves(rows, ticks, label)


def as_markdown(sweep: Sweep, found: Sequence[Change]) -> str:
    """The page ``sweep.md``."""
    parts = [f"# Sweep of {PARAMETERS[sweep.parameter]}", f"![BLEU change]({SWEEP}.png)"]
    for reference in sweep.references:
        for system in sweep.points[0].systems:
            of = [c for c in found if (c.reference, c.system) == (reference, system)]
            parts += [f"## {system} against {reference}", _table(sweep, of)]
    parts += ["\n".join(f"- {line}" for line in _notes(sweep, found)), _made_from(sweep)]
    return "\n\n".join(parts) + "\n"


def _table(sweep: Sweep, of: Sequence[Change]) -> str:
    groups = list(dict.fromkeys(change.group for change in of))
    is_masked = of[0].system == SPECIALIZED and any(point.dropped for point in sweep.points)
    header = [sweep.parameter, *(["dropped %", "min-max"] if is_masked else [])]
    for group in groups:
        header += [f"BLEU {_GROUPS[group]}", "change", "95% interval"]
    rows: list[list[Cell]] = []
    for point in sweep.points:
        row: list[Cell] = [f"{point.value:g}"]
        if is_masked:
            row += (
                [point.dropped.mean, f"{point.dropped.min:.1f}-{point.dropped.max:.1f}"]
                if point.dropped
                else [None, None]
            )
        for group in groups:
            (change,) = (c for c in of if (c.value, c.group) == (point.value, group))
            interval = None if change.low is None else f"{change.low:+.2f} to {change.high:+.2f}"
            row += [change.bleu, f"{change.bleu_change:+.2f}", interval]
        rows.append(row)
    return markdown_table(header, rows)


def _notes(sweep: Sweep, found: Sequence[Change]) -> list[str]:
    notes = [
        "BLEU and its change are means over directions; the interval is of a bootstrap over directions, which it "
        "takes as independent, and is not shown for fewer than 6. It knows nothing of other seeds: one model was "
        "trained at each value. `neuron-spec compare` tests two systems in full; chrF++ is in the CSV.",
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
    return notes


def _made_from(sweep: Sweep) -> str:
    rows: list[list[Cell]] = [["-", name, *_hashes(of)] for name, of in sweep.references.items()]
    rows += [
        [f"{point.value:g}", name, *_hashes(of)]
        for point in sweep.points
        for name, of in point.systems.items()
    ]
    signatures = sorted({score.bleu_signature for of in sweep.references.values() for score in of.scores})
    return (
        markdown_table((sweep.parameter, "system", "sha256 of weights", "sha256 of masks"), rows)
        + "\n\nBLEU: "
        + ", ".join(f"`{signature}`" for signature in signatures)
    )


def _hashes(evaluation: Evaluation) -> list[Cell]:
    inputs = evaluation.signature.get("inputs", {})
    return [inputs[key][:16] if key in inputs else None for key in ("checkpoint", "masks")]
