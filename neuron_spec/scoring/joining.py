"""One system's evaluations of some directions each, put together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from neuron_spec.artifacts import SIGNATURE, signature, write_json
from neuron_spec.directions import parse_directions
from neuron_spec.errors import NeuronSpecError
from neuron_spec.scoring.evaluation import Evaluation, is_evaluated, read_evaluation, write_evaluation


def joined(parts: Sequence[Evaluation]) -> Evaluation:
    """One system's evaluation of all directions, in the order of the parts, for ``neuron-spec compare``.

    Raises:
        DirectionError: if a direction is in two.
        NeuronSpecError: if they were not translated and scored in the same way.
    """
    names = ["+".join(str(score.direction) for score in part.scores) for part in parts]
    settings = [
        {
            key: value
            for key, value in part.signature["parameters"].items()
            if key not in ("direction", "directions")
        }
        for part in parts
    ]
    for name, of_part in zip(names, settings, strict=True):
        if of_part != settings[0]:
            raise NeuronSpecError(
                "evaluations made in different ways are not one system's",
                where=name,
                got=of_part,
                expected=f"{settings[0]}, as of {names[0]}",
                mend="evaluate all with the same flags",
            )
    scores = [score for part in parts for score in part.scores]
    directions = parse_directions(str(score.direction) for score in scores)
    # Not "data": the hash of all directions' files at once, which no part knows.
    inputs = {
        f"{key} of {name}": value
        for name, part in zip(names, parts, strict=True)
        for key, value in part.signature["inputs"].items()
    }
    parameters = {**settings[0], "directions": [str(direction) for direction in directions]}
    made_from = signature(parts[0].signature["stage"], inputs=inputs, parameters=parameters)
    outputs = [outputs for part in parts for outputs in part.outputs]
    sentences = {direction: of for part in parts for direction, of in part.sentences.items()}
    return replace(parts[0], signature=made_from, outputs=outputs, scores=scores, sentences=sentences)


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
