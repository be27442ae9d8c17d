"""Sweeps: one setting at several values, and what each does to BLEU and chrF++ (0-100).

A sweep's folder has one folder per value, ``k-95`` or ``depth-6``, which may hold ``masks.safetensors``
and holds ``evaluation/SYSTEM``. Changes are against the evaluations that do not depend on the value, in
``evaluation`` beside those folders; where there are none, against the dense model of the largest value.

k = 100 drops only neurons that are never active: they compute nothing, so where it was not evaluated
itself the dense continuation stands for it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from neuron_spec.errors import ArtifactError, NeuronSpecError
from neuron_spec.neurons.masks import NeuronMasks
from neuron_spec.scoring.comparison import METRICS, Difference
from neuron_spec.scoring.evaluation import Evaluation, grouped, read_evaluation
from neuron_spec.scoring.systems import CONTINUATION, DENSE, SPECIALIZED, System, comparable

PARAMETERS = {"k": "coverage k (%)", "depth": "layers of encoder and decoder each"}

_POINT = re.compile(rf"({'|'.join(PARAMETERS)})-(\d+(?:\.\d+)?)")
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
class Change(Difference):
    """A system at one value against a reference, over the directions of a group."""

    value: float = 0


def read_sweep(run: Path) -> Sweep:
    """Read all points and references below ``run``.

    Raises:
        ArtifactError: if there is no point, or points of two settings; an evaluation is incomplete; masks
            are of another k than their folder's name, or of another dense model than the one evaluated.
        NeuronSpecError: if points were evaluated for other systems or on other tests than the rest.
    """
    folders = _point_folders(run)
    parameter = folders[0][0]
    references = _evaluations(run)
    points = [_read_point(run, parameter, value, folder, references) for _, value, folder in folders]
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
    points = sorted((match[1], float(match[2]), path) for match, path in matches if match)
    names = {name for name, _, _ in points}
    if len(names) != 1:
        raise ArtifactError(
            "a sweep of two settings at once" if points else "no points of a sweep",
            where=run,
            got=", ".join(path.name for _, _, path in points) or None,
            expected=f"folders such as k-95 and k-90, or depth-6 and depth-3, each with {_EVALUATION}/SYSTEM",
        )
    return points


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
    by_group = {
        group: [
            {metric: (getattr(of, metric), getattr(before[of.direction], metric)) for metric in METRICS}
            for of in members
        ]
        for kind, _, group, members in grouped(evaluation.scores)
        if kind in ("overall", "group")
    }
    return [
        Change.over_directions(system, reference, group, scores, value=value)
        for group, scores in by_group.items()
    ]
