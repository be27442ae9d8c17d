"""Pairs of directions by kind, and whether what is alike follows families or the overlap of sets.

Pairs are of one kind, both out of English, both into it, both without it, or ``across`` these. What cannot be
computed is None, with the reason beside it.

Axis letters: D directions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from neuron_spec.directions import GROUPS, Direction
from neuron_spec.languages import family_of
from neuron_spec.neurons.masks import NeuronMasks
from neuron_spec.neurons.overlap import pairwise_iou
from neuron_spec.statistics import (
    NothingToCompare,
    PermutationTest,
    family_contrast,
    mantel,
    permutation_test,
)

ACROSS = "across"
FAMILY_KEYS = ("same", "other", *PermutationTest._fields)  # of `family_test`


def in_one_line(nothing: NothingToCompare) -> str:
    return "; ".join(line.strip() for line in str(nothing).splitlines())


def or_reason(
    keys: Iterable[str],
    compute: Callable[[], Mapping[str, Any]],
    say: Callable[[NothingToCompare], str] = in_one_line,
) -> dict[str, Any]:
    """What ``compute`` gives, with ``reason`` None; or None for each of ``keys``, and why."""
    try:
        return {**compute(), "reason": None}
    except NothingToCompare as nothing:
        return {**dict.fromkeys(keys), "reason": say(nothing)}


def family_test(similarity: Tensor, families: Sequence[str], seed: int, **options: Any) -> dict[str, Any]:
    """Whether pairs of one family are more alike than others: the means ``same`` and ``other``, and the test.

    Args:
        similarity: float64 `[n, n]`; of a pair, the mean of both ways is taken. The diagonal is left out.
        families: of the n directions.
        seed: of random relabellings.
        options: as `permutation_test` takes them.

    Raises:
        NothingToCompare: if the families have no structure to test.
    """
    both_ways = (similarity + similarity.T) / 2
    same, other = family_contrast(both_ways, families)
    test = permutation_test(both_ways, families, seed=seed, **options)
    return {"same": same, "other": other, **test._asdict()}


@dataclass(frozen=True)
class Compared:
    """The D directions that are compared.

    Attributes:
        families: language -> family; None: those of the language table.
        overlap: float64 `[D, D]`, the IoU of their sets, mean over layers; None without sets.
    """

    directions: Sequence[Direction]
    families: Mapping[str, str] | None = None
    overlap: Tensor | None = None

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
        return {kind: rows for kind, rows in kinds.items() if rows}

    def pairs(self) -> dict[str, Tensor]:
        """Kind, or ``across`` -> its pairs of different directions, bool `[D, D]`; kinds without any are left out."""
        across = ~torch.eye(len(self.directions), dtype=torch.bool)
        by_kind = {}
        for kind, rows in self.members().items():
            is_member = torch.zeros(len(self.directions), dtype=torch.bool)
            is_member[rows] = True
            by_kind[kind] = across & is_member[:, None] & is_member
            across = across & ~by_kind[kind]
        return {kind: pairs for kind, pairs in {**by_kind, ACROSS: across}.items() if pairs.any()}

    def family_tests(self, similarity: Tensor, seed: int) -> dict[str, dict[str, Any]]:
        """Kind -> `family_test` of its directions, or the reason why there is none.

        Args:
            similarity: float64 `[D, D]`.
        """
        families = [direction.family(self.families) for direction in self.directions]

        def test(rows: list[int], square: Tensor) -> dict[str, Any]:
            return family_test(square, [families[row] for row in rows], seed)

        return self._by_kind(FAMILY_KEYS, similarity, test)

    def overlap_tests(self, similarity: Tensor, seed: int) -> dict[str, dict[str, Any]]:
        """Kind -> whether directions whose sets overlap more are more alike: Mantel's test; empty without sets."""
        if self.overlap is None:
            return {}
        overlap = self.overlap

        def test(rows: list[int], square: Tensor) -> dict[str, Any]:
            result = mantel(overlap[rows][:, rows], (square + square.T) / 2, seed=seed)
            return {"correlation": result.correlation, **result.test._asdict()}

        return self._by_kind(("correlation", *PermutationTest._fields), similarity, test)

    def _by_kind(
        self, keys: Sequence[str], similarity: Tensor, test: Callable[[list[int], Tensor], dict[str, Any]]
    ) -> dict[str, dict[str, Any]]:
        def of(rows: list[int]) -> dict[str, Any]:
            square = similarity[rows][:, rows]
            if not square[~torch.eye(len(square), dtype=torch.bool)].isfinite().all():
                raise NothingToCompare("a direction has no gradient here")
            return test(rows, square)

        return {kind: or_reason(keys, partial(of, rows)) for kind, rows in self.members().items()}


def overlap_of(
    masks: NeuronMasks,
    directions: Sequence[Direction | str] | None = None,
    other: NeuronMasks | None = None,
    *,
    measure: Callable[[Tensor, Tensor], Tensor] = pairwise_iou,
) -> Tensor:
    """How far the sets of directions overlap, mean over layers.

    Args:
        directions: whose; None: all.
        other: masks of the same model for the columns, such as with another k; None: the same.
        measure: `pairwise_iou`, `chance_iou` or `adjusted_iou`.

    Returns:
        float64 `[D, D]`, a fraction.

    Raises:
        DirectionError: if one has no masks.
        ModelError: if ``other`` is of a model with other layers or widths.

    Examples:
        How much of the sets stays when k falls:

        >>> import torch
        >>> from neuron_spec import NeuronMasks, overlap_of
        >>> wide = NeuronMasks.from_dict({"en-de": {"encoder.layers.0": torch.tensor([True, True, True])}})
        >>> narrow = NeuronMasks.from_dict({"en-de": {"encoder.layers.0": torch.tensor([True, False, False])}})
        >>> round(overlap_of(wide, other=narrow).item(), 3)
        0.333
    """
    other = NeuronMasks.require(masks if other is None else other)
    NeuronMasks.require(masks).require_neurons()
    other.require_fit(masks.widths, mend="compare masks that were selected from profiles of one model")
    directions = masks.directions if directions is None else directions
    rows, columns = masks.rows(directions), other.rows(directions)
    between = [measure(masks.kept[layer][rows], other.kept[layer][columns]) for layer in masks.layers]
    return torch.stack(between).mean(dim=0)


def by_name(names: Sequence[str], values: Tensor) -> dict[str, Any]:
    """Name -> its value."""
    return dict(zip(names, plain_values(values), strict=True))


def by_names(rows: Sequence[str], columns: Sequence[str], matrix: Tensor) -> dict[str, dict[str, Any]]:
    """A matrix as nested mappings: the row's name, the column's, the value."""
    return {name: by_name(columns, values) for name, values in zip(rows, matrix, strict=True)}


def plain_values(values: Tensor) -> list[float | None]:
    """JSON knows no NaN."""
    return [None if value != value else value for value in values.tolist()]


def mean_known(values: Tensor) -> float | None:
    """The mean of what is not NaN; None where nothing is."""
    known = values[~values.isnan()]
    return known.mean().item() if len(known) else None
