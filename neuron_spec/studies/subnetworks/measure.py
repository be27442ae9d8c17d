"""What subnetworks and meta-learning do: for directions in training, and for new languages with few
sentences. From what ``scripts/experiments/subnetworks.sh`` leaves:

    COMPARISONS/against-full/comparison.json    the directions in training
    COMPARISONS/shots-20/comparison.json        new languages, after that many sentences
    SEED/SYSTEM/checkpoint_last.pt              whose masks are described

A comparison's first system is the baseline of all. BLEU and chrF++ are 0-100.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from neuron_spec.artifacts import hash_file, hash_state, require_file, signature
from neuron_spec.backends.fairseq.checkpoints import masks_of, read_checkpoint
from neuron_spec.errors import ArtifactError
from neuron_spec.neurons.overlap import churn, kept_fraction, mean_overlap
from neuron_spec.scoring.comparison import METRICS, Comparison, Difference
from neuron_spec.scoring.comparison_files import COMPARISON, read_comparison
from neuron_spec.scoring.evaluation import ALL
from neuron_spec.scoring.systems import FULL, META, STATIC

KNOWN = f"against-{FULL}"

_SHOTS = re.compile(r"shots-(\d+)")
_ROWS = ".mask_rows"


@dataclass(frozen=True)
class Row(Difference):
    """A system over the directions of a family, or all; of those trained by episodes also against the same one
    trained ordinarily.

    Attributes:
        shots: training sentences of each direction; None for directions in the model's own training.
    """

    shots: int | None = None


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
    episodes: list[Row]
    masks: dict[str, Masks]
    curves: dict[str, list[Curve]]
    signature: dict[str, Any]


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
    by_shots = {n: read_comparison(_file(place)) for n, place in places.items()}
    known = read_comparison(_file(comparisons / KNOWN))
    systems = [known.baseline, *known.systems]
    for n, comparison in by_shots.items():
        if (how := _how(comparison)) != _how(known):
            raise ArtifactError(
                "comparisons of different systems, or made in different ways",
                where=places[n],
                got=how,
                expected=f"{_how(known)}, as in {comparisons / KNOWN}",
            )
    first = next(iter(by_shots.values()))
    inputs = {place.name: hash_file(_file(place)) for place in (comparisons / KNOWN, *places.values())}
    masks = {}
    if seed is not None:
        states = {name: read_masks(seed / name / checkpoint) for name in systems}
        inputs |= {f"masks of {name}": hash_state(of) for name, of in states.items() if of}
        masks = {name: _describe(of, states.get(STATIC, of)) for name, of in states.items() if of}
    every: list[tuple[int | None, Comparison]] = [(None, known), *by_shots.items()]
    return Subnetworks(
        systems=systems,
        families=list(dict.fromkeys(str(row.family) for row in first.directions)),
        related={str(row.family) for row in known.directions},
        seeds=first.seeds,
        rows=[row for n, comparison in every for row in _rows(comparison, n)],
        episodes=[row for n, comparison in every for row in _episodes(comparison, n)],
        masks=masks,
        curves={name: _curves(by_shots, name) for name in systems},
        signature=signature(
            "subnetworks", inputs=inputs, parameters={"baseline": systems[0], "shots": sorted(by_shots)}
        ),
    )


def _numbers_of_shots(comparisons: Path) -> list[int]:
    matches = [_SHOTS.fullmatch(place.name) for place in comparisons.glob("shots-*")]
    numbers = sorted(int(match[1]) for match in matches if match)
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


def _how(comparison: Comparison) -> dict[str, Any]:
    parameters = comparison.signature["parameters"]
    return {key: value for key, value in parameters.items() if key != "directions"}


def _rows(comparison: Comparison, shots: int | None) -> list[Row]:
    return Row.of_groups(comparison, ("overall", "family"), shots=shots)


def _episodes(comparison: Comparison, shots: int | None) -> list[Row]:
    """Systems trained by episodes against the same ones trained ordinarily; seeds are averaged first."""
    scores: dict[str, dict[str, dict[str, float]]] = {}  # system, direction, metric
    for row in comparison.directions:
        for system, of in ((comparison.baseline, row.baseline), (row.system, row.score)):
            scores.setdefault(system, {}).setdefault(str(row.direction), {})[row.metric] = of.mean
    rows = []
    for system, by_direction in scores.items():
        against = system.removeprefix(META)
        if against == system or against not in scores:
            continue
        pairs = [
            {metric: (of[metric], scores[against][direction][metric]) for metric in METRICS}
            for direction, of in by_direction.items()
        ]
        rows.append(Row.over_directions(system, against, ALL, pairs, shots=shots))
    return rows


def _curves(by_shots: Mapping[int, Comparison], system: str) -> list[Curve]:
    curves: dict[str, Curve] = {}
    for n, comparison in by_shots.items():
        is_baseline = system == comparison.baseline
        for row in comparison.directions:
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
