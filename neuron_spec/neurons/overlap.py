"""How much the kept neurons of directions overlap, and whether overlap follows language families.

Everything here looks at one layer: `kept` is bool `[num_directions, ffn_dim]`, True = kept. IoU and
sparsity are fractions (0-1).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from neuron_spec.errors import NeuronSpecError

_PERMUTATIONS_AT_ONCE = 500
# Relabellings that only rename families score the same up to the order of summation.
_SUMMATION_TOLERANCE = 1e-12


def pairwise_iou(kept: Tensor) -> Tensor:
    """Intersection over union of the kept neurons, for each pair of directions.

    Args:
        kept: bool `[num_directions, ffn_dim]`, True = kept.

    Returns:
        float64 `[num_directions, num_directions]`, a fraction; two empty sets count as equal (1).

    Raises:
        NeuronSpecError: if ``kept`` is not such a tensor.
    """
    _check_kept(kept)
    members = kept.double()  # float64 counts exactly
    shared = members @ members.T
    sizes = members.sum(dim=1)
    union = sizes[:, None] + sizes[None, :] - shared
    return torch.where(union == 0, 1.0, shared / union.clamp(min=1))


def sparsity(kept: Tensor) -> Tensor:
    """The fraction of neurons each direction drops, float64 `[num_directions]`.

    Args:
        kept: bool `[num_directions, ffn_dim]`, True = kept.

    Raises:
        NeuronSpecError: if ``kept`` is not such a tensor.
    """
    _check_kept(kept)
    return 1 - kept.double().mean(dim=1)


def off_diagonal(iou: Tensor) -> Tensor:
    """IoU of each unordered pair of different directions, `[num_directions * (num_directions - 1) / 2]`.

    Raises:
        NeuronSpecError: if ``iou`` is not square.
    """
    first, second = _pairs(iou)
    return iou[first, second]


def mean_off_diagonal(iou: Tensor) -> float:
    """Mean IoU (fraction) between different directions.

    Args:
        iou: float `[num_directions, num_directions]`, symmetric.

    Raises:
        NeuronSpecError: if ``iou`` is not square or has fewer than two directions.
    """
    values = off_diagonal(iou)
    if len(values) == 0:
        raise NeuronSpecError(
            "overlap needs a pair of directions", got=f"{len(iou)} directions", expected="2 or more"
        )
    return values.mean().item()


def family_contrast(iou: Tensor, families: Sequence[str]) -> tuple[float, float]:
    """Mean IoU (fraction) of pairs within one family, and of pairs between two families.

    Args:
        iou: float `[num_directions, num_directions]`, symmetric.
        families: the family of each direction.

    Raises:
        NeuronSpecError: if ``families`` does not fit ``iou``, holds fewer than two families, or no
            family has two members.
    """
    _check_families(iou, families)
    first, second = _pairs(iou)
    labels = _as_labels(families)
    same = labels[first] == labels[second]
    values = iou[first, second]
    return values[same].mean().item(), values[~same].mean().item()


def permutation_test(iou: Tensor, families: Sequence[str], *, permutations: int = 10_000, seed: int) -> float:
    """How often families dealt out at random separate at least as well as the true ones.

    Args:
        iou: float `[num_directions, num_directions]`, symmetric.
        families: the family of each direction.
        permutations: how many random relabellings are drawn.

    Returns:
        The one-sided p-value `(1 + hits) / (1 + permutations)` of the within-family mean minus the
        between-family mean. Few directions bound it from below: three families of two can be dealt
        out in only 15 ways, so no p-value is then much below 1/15.

    Raises:
        NeuronSpecError: as in `family_contrast`, or if ``permutations`` is not positive.
    """
    _check_families(iou, families)
    if permutations < 1:
        raise NeuronSpecError("a permutation test needs permutations", got=permutations, expected="1 or more")
    first, second = _pairs(iou)
    values = iou[first, second].double()
    labels = _as_labels(families)
    generator = torch.Generator().manual_seed(seed)

    # The number of within-family pairs and the total IoU stay the same under relabelling, so the
    # contrast grows and falls with the within-family sum alone.
    observed = values[labels[first] == labels[second]].sum()
    hits = 0
    for start in range(0, permutations, _PERMUTATIONS_AT_ONCE):
        count = min(_PERMUTATIONS_AT_ONCE, permutations - start)
        order = torch.rand(count, len(labels), generator=generator, dtype=torch.float64).argsort(dim=1)
        dealt = labels[order]  # [count, num_directions]
        same = dealt[:, first] == dealt[:, second]  # [count, pairs]
        within = same.double() @ values
        hits += int((within >= observed - _SUMMATION_TOLERANCE * len(values)).sum())
    return (1 + hits) / (1 + permutations)


def _pairs(iou: Tensor) -> tuple[Tensor, Tensor]:
    if iou.dim() != 2 or iou.shape[0] != iou.shape[1]:
        raise NeuronSpecError(
            "not a matrix of pairwise overlaps",
            got=f"shape {list(iou.shape)}",
            expected="[num_directions, num_directions]",
        )
    first, second = torch.triu_indices(len(iou), len(iou), offset=1)
    return first, second


def _as_labels(families: Sequence[str]) -> Tensor:
    names = sorted(set(families))
    return torch.tensor([names.index(family) for family in families])


def _check_kept(kept: Tensor) -> None:
    if kept.dtype != torch.bool or kept.dim() != 2 or kept.shape[1] == 0:
        raise NeuronSpecError(
            "not the kept neurons of a layer",
            got=f"{kept.dtype} of shape {list(kept.shape)}",
            expected="bool [num_directions, ffn_dim], True = kept",
        )


def _check_families(iou: Tensor, families: Sequence[str]) -> None:
    _pairs(iou)
    if len(families) != len(iou):
        raise NeuronSpecError("one family per direction", got=f"{len(families)} families", expected=len(iou))
    members = Counter(families)
    if len(members) < 2 or max(members.values()) < 2:
        raise NeuronSpecError(
            "no family structure to test",
            got=", ".join(f"{family}: {count}" for family, count in sorted(members.items())) or "no families",
            expected="two or more families, one of them with two or more members",
            mend="choose more languages",
        )
