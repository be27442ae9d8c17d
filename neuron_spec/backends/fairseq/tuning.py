"""Choosing how to translate, by validation text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from neuron_spec.backends.fairseq.asked import Asked
from neuron_spec.backends.fairseq.generation import Translator
from neuron_spec.directions import Direction
from neuron_spec.scoring.evaluation import evaluate
from neuron_spec.scoring.length_penalty import GRID, LengthPenalty
from neuron_spec.scoring.metrics import DirectionScore, Outputs


def choose_length_penalty(
    asked: Asked,
    references: Mapping[Direction, Sequence[str]],
    *,
    flags: Sequence[str],
    sentences: int,
    official: bool,
    signature: Mapping[str, Any],
) -> LengthPenalty:
    """Translate validation text once, and score what each length penalty of the grid would have taken.

    Args:
        asked: about the validation text.
        references: of its directions, or empty: the data-bin's.
        flags: of ``fairseq-generate``, without a length penalty.
        sentences: at most so many of each direction, spread evenly over its set.
        official: score by the official code's way.

    Raises:
        ArtifactError, DirectionError, ModelError: as `Translator`.
    """
    (subset,) = asked.subsets
    directions = asked.directions
    translator = Translator(asked.path, asked.data_bin, directions, subset, [*flags, "--lenpen", "0"])
    scores: dict[float, list[DirectionScore]] = {value: [] for value in GRID}
    for direction in directions:
        lines = references.get(direction) or translator.references(direction)
        count = min(sentences, len(lines))
        positions = [turn * len(lines) // count for turn in range(count)]
        expected = [lines[position] for position in positions]
        found = translator.translate_by_lenpen(direction, GRID, positions)
        for value, hypotheses in zip(GRID, found, strict=True):
            outputs = Outputs(direction, hypotheses, expected)
            scores[value] += evaluate([outputs], signature={}, official=official).scores
    return LengthPenalty.choose(scores, signature)
