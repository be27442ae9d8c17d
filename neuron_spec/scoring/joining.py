"""Evaluations of some directions each, put together: one system's evaluation of all, for ``neuron-spec compare``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from neuron_spec.artifacts import SIGNATURE, signature, write_json
from neuron_spec.directions import parse_directions
from neuron_spec.errors import NeuronSpecError
from neuron_spec.scoring.evaluation import Evaluation, is_evaluated, read_evaluation, write_evaluation


def joined(parts: Sequence[Evaluation]) -> Evaluation:
    """One evaluation of all directions, in the order of the parts.

    Raises:
        DirectionError: if a direction is in two.
        NeuronSpecError: if they were not translated and scored in the same way.
    """
    settings = [_without_directions(part) for part in parts]
    for part, own in zip(parts, settings, strict=True):
        if own != settings[0]:
            raise NeuronSpecError(
                "evaluations made in different ways are not one system's",
                where=_directions(part),
                got=own,
                expected=f"{settings[0]}, as of {_directions(parts[0])}",
                mend="evaluate all with the same flags",
            )
    directions = parse_directions(str(score.direction) for part in parts for score in part.scores)
    made = signature(
        parts[0].signature["stage"],
        # Not "data": the hash of all directions' files at once, which no part knows.
        inputs={
            f"{name} of {_directions(part)}": value
            for part in parts
            for name, value in part.signature["inputs"].items()
        },
        parameters={**settings[0], "directions": [str(direction) for direction in directions]},
    )
    return replace(
        parts[0],
        signature=made,
        outputs=[outputs for part in parts for outputs in part.outputs],
        scores=[score for part in parts for score in part.scores],
    )


def join(folders: Sequence[Path], output: Path) -> Evaluation:
    """`joined`, from folders into ``output``; what is complete there is left.

    Raises:
        ArtifactError: if an evaluation is incomplete, or ``output`` holds another.
        DirectionError, NeuronSpecError: as `joined`.
    """
    together = joined([read_evaluation(folder) for folder in folders])
    if not is_evaluated(output, together.signature):
        write_joined(output, together)
    return together


def write_joined(output: Path, together: Evaluation) -> None:
    """Write it as ``neuron-spec evaluate`` would."""
    write_json(output / SIGNATURE, together.signature)
    write_evaluation(output, together)


def _directions(part: Evaluation) -> str:
    return "+".join(str(score.direction) for score in part.scores)


def _without_directions(part: Evaluation) -> dict[str, Any]:
    parameters = part.signature["parameters"]
    return {key: value for key, value in parameters.items() if key not in ("direction", "directions")}
