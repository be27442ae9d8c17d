"""Pairs of directions by kind, and whether what is alike follows families or the overlap of sets.

Pairs are of one kind, both out of English, both into it, both without it, or ``across`` these. What cannot be
computed is None, with the reason beside it.

Axis letters: D directions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from neuron_spec.directions import GROUPS, Direction, family_of
from neuron_spec.neurons.masks import NeuronMasks
from neuron_spec.neurons.overlap import pairwise_iou
from neuron_spec.statistics import (
    Mantel,
    NothingToCompare,
    PermutationTest,
    family_contrast,
    mantel,
    permutation_test,
)

ACROSS = "across"


@dataclass(frozen=True)
class Compared:
    """The D directions that are compared.

    Attributes:
        families: language -> family; None: those of the language table.
        overlap: float64 `[D, D]`, the IoU of their sets, mean over layers; None without sets.
    """

    directions: Sequence[Direction]
    families: Mapping[str, str] | None = field(default=None)
    overlap: Tensor | None = field(default=None)

    @property
    def names(self) -> list[str]:
        return [str(direction) for direction in self.directions]

    @property
    def family_of(self) -> dict[str, str]:
        """Language -> family, ``unknown`` where that is so."""
        codes = {code for d in self.directions for code in (d.source, d.target)}
        return {code: family_of(code, self.families) for code in codes}

    def members(self) -> dict[str, list[int]]:
        """Kind -> its directions; kinds without any are left out."""
        kinds = {g.text: [i for i, d in enumerate(self.directions) if d.group == g] for g in GROUPS}
        return {words: rows for words, rows in kinds.items() if rows}

    def pairs(self) -> dict[str, Tensor]:
        """Kind, or ``across`` -> its pairs of different directions, bool `[D, D]`; kinds without any are left out."""
        d = len(self.directions)
        different = ~torch.eye(d, dtype=torch.bool)
        found = {}
        for words, rows in self.members().items():
            is_member = torch.zeros(d, dtype=torch.bool)
            is_member[rows] = True
            found[words] = is_member[:, None] & is_member & different
        found[ACROSS] = different & ~torch.stack(list(found.values())).any(dim=0)
        return {words: pairs for words, pairs in found.items() if pairs.any()}

    def family_tests(self, similarity: Tensor, seed: int) -> dict[str, dict[str, Any]]:
        """Kind -> whether pairs of one family are more alike than others.

        Args:
            similarity: float64 `[D, D]`; of a pair, the mean of both ways is taken.
        """
        found = {}
        for words, rows in self.members().items():
            own = [self.directions[row].family(self.families) for row in rows]
            square = _both_ways(similarity)[rows][:, rows]
            result: dict[str, Any] = dict.fromkeys(("same", "other", *PermutationTest._fields, "reason"))
            try:
                _require_finite(square)
                result["same"], result["other"] = family_contrast(square, own)
                result |= permutation_test(square, own, seed=seed)._asdict()
            except NothingToCompare as error:
                result["reason"] = _line(error)
            found[words] = result
        return found

    def overlap_tests(self, similarity: Tensor, seed: int) -> dict[str, dict[str, Any]]:
        """Kind -> whether directions whose sets overlap more are more alike: Mantel's test; empty without sets."""
        found: dict[str, dict[str, Any]] = {}
        for words, rows in self.members().items() if self.overlap is not None else ():
            assert self.overlap is not None
            result: dict[str, Any] = dict.fromkeys(("correlation", *PermutationTest._fields, "reason"))
            try:
                square = _both_ways(similarity)[rows][:, rows]
                _require_finite(square)
                test: Mantel = mantel(self.overlap[rows][:, rows], square, seed=seed)
                result |= {"correlation": test.correlation, **test.test._asdict()}
            except NothingToCompare as error:
                result["reason"] = _line(error)
            found[words] = result
        return found


def overlap_of(masks: NeuronMasks, directions: Sequence[Direction]) -> Tensor:
    """IoU of the directions' sets, mean over layers, float64 `[D, D]`."""
    rows = [masks.directions.index(direction) for direction in directions]
    return torch.stack([pairwise_iou(masks.kept[layer][rows]) for layer in masks.layers]).mean(dim=0)


def _both_ways(matrix: Tensor) -> Tensor:
    return (matrix + matrix.T) / 2


def _require_finite(square: Tensor) -> None:
    if not square[~torch.eye(len(square), dtype=torch.bool)].isfinite().all():
        raise NothingToCompare("a direction has no gradient here")


def _line(error: NothingToCompare) -> str:
    return "; ".join(line.strip() for line in str(error).splitlines())
