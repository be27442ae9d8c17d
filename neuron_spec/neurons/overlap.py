"""How much the kept neurons of directions overlap, and whether overlap follows the kinship of languages.

Everything here looks at one layer, or at the mean over layers: `kept` is bool `[num_directions, ffn_dim]`,
True = kept. IoU and sparsity are fractions (0-1). What the data at hand cannot answer raises
`NothingToCompare`; scipy, the extra `analysis`, is imported only where it is needed.
"""

from __future__ import annotations

import importlib
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import permutations as orders_of
from typing import Any, NamedTuple

import torch
from torch import Tensor

from neuron_spec.directions import UNKNOWN, Direction
from neuron_spec.errors import NeuronSpecError
from neuron_spec.neurons.choices import PERMUTATIONS

_PERMUTATIONS_AT_ONCE = 500
# Relabellings that only rename families score the same up to the order of summation.
_SUMMATION_TOLERANCE = 1e-12
_DECIMALS_THAT_COUNT = 12


class NothingToCompare(NeuronSpecError):
    """Too few directions, languages or families, or no difference between them, for what was asked."""


# Overlap and sparsity -------------------------------------------------------------------------


def pairwise_iou(kept: Tensor, other: Tensor | None = None) -> Tensor:
    """Intersection over union of the kept neurons, for each pair of directions.

    Args:
        kept: bool `[num_directions, ffn_dim]`, True = kept.
        other: other sets for the columns, bool `[other_directions, ffn_dim]`; by default the same.

    Returns:
        float64 `[num_directions, other_directions]`, a fraction; two empty sets count as equal (1).

    Raises:
        NeuronSpecError: if ``kept`` or ``other`` is not such a tensor.
    """
    other = kept if other is None else other
    _check_kept(kept)
    _check_kept(other)
    rows, columns = kept.double(), other.double()  # float64 counts exactly
    shared = rows @ columns.T
    union = rows.sum(dim=1)[:, None] + columns.sum(dim=1)[None, :] - shared
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
        NothingToCompare: if there are fewer than two directions.
        NeuronSpecError: if ``iou`` is not square.
    """
    values = off_diagonal(iou)
    if len(values) == 0:
        raise NothingToCompare(
            "overlap needs a pair of directions", got=f"{len(iou)} directions", expected="2 or more"
        )
    return values.mean().item()


# Which directions are compared ----------------------------------------------------------------


@dataclass(frozen=True)
class Compared:
    """The directions that a side's layers are compared over, and the language each stands for.

    Attributes:
        group: ``en-x``, ``x-en`` or ``all``.
        by: ``source`` or ``target``, the side of a direction that gives its language.
        rows: indices of the directions, N of them.
        languages: the language of each, N codes; one may stand for several directions.
    """

    group: str
    by: str
    rows: list[int]
    languages: list[str]

    @property
    def distinct(self) -> list[str]:
        """The languages, each once, in the order of their codes."""
        return sorted(set(self.languages))

    def language_iou(self, kept: Tensor) -> Tensor:
        """IoU between languages: the mean over the pairs of their directions.

        Args:
            kept: bool `[num_directions, ffn_dim]`, of all directions.

        Returns:
            float64 `[L, L]` in the order of ``distinct``, 1 on the diagonal.
        """
        share = torch.tensor(
            [[code == own for own in self.languages] for code in self.distinct], dtype=torch.float64
        ).reshape(len(self.distinct), len(self.rows))
        share = share / share.sum(dim=1, keepdim=True)
        iou = share @ pairwise_iou(kept[self.rows]) @ share.T
        iou = (iou + iou.T) / 2  # the two products round differently
        return iou.fill_diagonal_(1)


def compared(side: str, directions: Sequence[Direction], group: str = "own") -> Compared:
    """The directions that the layers of ``side`` are compared over.

    By default (``own``) those in which the language on that side varies and the other is English, as in
    figures 1 and 2 of the paper; where there are not two of them, all directions.

    Args:
        side: ``encoder`` or ``decoder``.
        group: one of `GROUPS`.
    """
    if group == "own":
        found = compared(side, directions, "x-en" if side == "encoder" else "en-x")
        return found if len(found.rows) >= 2 else compared(side, directions, "all")
    own_side = "source" if side == "encoder" else "target"
    by = {"en-x": "target", "x-en": "source", "all": own_side}[group]
    rows = [i for i, direction in enumerate(directions) if group in ("all", direction.group.key)]
    return Compared(group, by, rows, [getattr(directions[i], by) for i in rows])


# Families -------------------------------------------------------------------------------------


class PermutationTest(NamedTuple):
    """How often a relabelling does at least as well: ``p`` is never 0, as the true labels count too."""

    p: float
    relabellings: int
    is_exact: bool  # every relabelling, not a random sample


def family_contrast(iou: Tensor, families: Sequence[str]) -> tuple[float, float]:
    """Mean IoU (fraction) of pairs within one family, and of pairs between two families.

    Args:
        iou: float `[n, n]`, symmetric, of n directions or languages.
        families: the family of each; those of unknown family are left out.

    Raises:
        NothingToCompare: if there are fewer than two families, or none has two members.
        NeuronSpecError: if ``families`` does not fit ``iou``.
    """
    values, same, _ = _by_family(iou, families)
    return values[same].mean().item(), values[~same].mean().item()


def permutation_test(
    iou: Tensor, families: Sequence[str], *, permutations: int = PERMUTATIONS, seed: int
) -> PermutationTest:
    """How often families dealt out otherwise separate at least as well as the true ones.

    One-sided, of the within-family mean minus the between-family mean. All ways to deal them out are gone
    through where they are no more than ``permutations``; otherwise so many are drawn at random, and
    p = (1 + hits) / (1 + permutations). Few languages bound p from below: three families of two can be
    told apart in only 15 ways, so no p is below 1/15.

    Args:
        iou: float `[n, n]`, symmetric.
        families: the family of each; those of unknown family are left out.
        permutations: how many random relabellings are drawn at most.

    Raises:
        NothingToCompare: as in `family_contrast`.
        NeuronSpecError: if ``families`` does not fit ``iou``, or ``permutations`` is not positive.
    """
    _check_permutations(permutations)
    values, same, labels = _by_family(iou, families)
    first, second = torch.triu_indices(len(labels), len(labels), offset=1)

    # The number of within-family pairs and the total IoU stay the same under relabelling, so the
    # contrast grows and falls with the within-family sum alone.
    observed = values[same].sum() - _SUMMATION_TOLERANCE * len(values)
    sizes = torch.bincount(labels).tolist()
    ways = math.factorial(len(labels)) // math.prod(map(math.factorial, sizes))
    is_exact = ways <= permutations
    if is_exact:
        batches = iter(torch.tensor(list(_ways_to_deal(sizes))).split(_PERMUTATIONS_AT_ONCE))
    else:
        batches = (labels[orders] for orders in _random_orders(len(labels), permutations, seed))
    hits = 0
    for dealt in batches:  # [count, n]
        is_within = dealt[:, first] == dealt[:, second]  # [count, pairs]
        hits += int((is_within.double() @ values >= observed).sum())
    return _test(hits, ways if is_exact else permutations, is_exact)


def _by_family(iou: Tensor, families: Sequence[str]) -> tuple[Tensor, Tensor, Tensor]:
    """Of the members of known families: IoU `[pairs]`, same family `[pairs]`, number of the family `[n]`."""
    _pairs(iou)
    if len(families) != len(iou):
        raise NeuronSpecError("one family per direction", got=f"{len(families)} families", expected=len(iou))
    known = [i for i, family in enumerate(families) if family != UNKNOWN]
    members = Counter(families[i] for i in known)
    if len(members) < 2 or max(members.values()) < 2:
        raise NothingToCompare(
            "no family structure to test",
            got=", ".join(f"{family}: {count}" for family, count in sorted(members.items()))
            or "no known families",
            expected="two or more families, one of them with two or more members",
            mend="choose more languages",
        )
    names = sorted(members)
    labels = torch.tensor([names.index(families[i]) for i in known])
    first, second = torch.triu_indices(len(known), len(known), offset=1)
    return iou[known][:, known][first, second].double(), labels[first] == labels[second], labels


def _ways_to_deal(sizes: list[int]) -> Iterator[list[int]]:
    """Every distinct order of labels of which label i occurs ``sizes[i]`` times."""
    if not any(sizes):
        yield []
    for label, size in enumerate(sizes):
        if size:
            left = [*sizes[:label], size - 1, *sizes[label + 1 :]]
            yield from ([label, *rest] for rest in _ways_to_deal(left))


def _random_orders(n: int, count: int, seed: int) -> Iterator[Tensor]:
    """``count`` random orders of n things, in batches `[_PERMUTATIONS_AT_ONCE or fewer, n]`."""
    generator = torch.Generator().manual_seed(seed)
    for start in range(0, count, _PERMUTATIONS_AT_ONCE):
        batch = min(_PERMUTATIONS_AT_ONCE, count - start)
        yield torch.rand(batch, n, generator=generator, dtype=torch.float64).argsort(dim=1)


def _test(hits: int, relabellings: int, is_exact: bool) -> PermutationTest:
    p = hits / relabellings if is_exact else (1 + hits) / (1 + relabellings)
    return PermutationTest(p, relabellings, is_exact)


# Distances between languages ------------------------------------------------------------------


class Mantel(NamedTuple):
    """Spearman's rank correlation of two distances, and how easily chance gives as high a one."""

    correlation: float
    test: PermutationTest


def mantel(first: Tensor, second: Tensor, *, permutations: int = PERMUTATIONS, seed: int) -> Mantel:
    """Mantel's test: whether two distances between the same things rise and fall together.

    Spearman's rank correlation over unordered pairs; one-sided p from relabelling the things of one,
    rows and columns together: all n! relabellings where they are no more than ``permutations``, otherwise
    so many at random. Mantel (1967); ours in using it for overlap.

    Args:
        first, second: float `[n, n]`, symmetric; the diagonal plays no part.

    Raises:
        NothingToCompare: if there are fewer than three things, or one of the distances is the same for all.
        NeuronSpecError: if the shapes differ, a value is not finite, or ``permutations`` is not positive.
    """
    _check_permutations(permutations)
    rows, columns = _pairs(first)
    n = len(first)
    if first.shape != second.shape or not (off_diagonal(first) + off_diagonal(second)).isfinite().all():
        raise NeuronSpecError(
            "two distances cannot be compared",
            got=f"shapes {list(first.shape)} and {list(second.shape)}",
            expected="the same shape, finite values",
        )
    if n < 3:
        raise NothingToCompare(
            "a correlation of distances needs three languages", got=f"{n}", expected="3 or more"
        )
    ranks, others = _ranks(first), _ranks(second)[rows, columns]
    values = ranks[rows, columns]
    if (values == values[0]).all() or (others == others[0]).all():
        raise NothingToCompare("no correlation where all distances are equal")
    correlation = torch.corrcoef(torch.stack([values, others]))[0, 1].item()

    # Relabelling leaves means and variances as they are. Ranks are halves of whole numbers, so that these
    # sums are exact.
    observed = values @ others
    is_exact = math.factorial(n) <= permutations
    if is_exact:
        batches = iter(torch.tensor(list(orders_of(range(n)))).split(_PERMUTATIONS_AT_ONCE))
    else:
        batches = _random_orders(n, permutations, seed)
    hits = 0
    for orders in batches:  # [count, n]
        relabelled = ranks[orders[:, rows], orders[:, columns]]  # [count, pairs]
        hits += int((relabelled @ others >= observed).sum())
    return Mantel(correlation, _test(hits, math.factorial(n) if is_exact else permutations, is_exact))


def _ranks(distances: Tensor) -> Tensor:
    """Each pair's rank among the pairs, ties sharing their mean; float64 `[n, n]`, 0 on the diagonal."""
    rows, columns = _pairs(distances)
    # Equal means of several layers may differ in their last bits.
    rounded = distances[rows, columns].double().round(decimals=_DECIMALS_THAT_COUNT)
    ranks = torch.zeros(len(distances), len(distances), dtype=torch.float64)
    ranks[rows, columns] = torch.from_numpy(scipy_part("stats").rankdata(rounded.numpy()))
    return ranks + ranks.T


# Dendrograms ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tree:
    """Languages clustered by overlap.

    Attributes:
        languages: L codes.
        merges: float64 `[L - 1, 4]`, one row per merge as in scipy: two clusters (the first L are the
            languages), the distance at which they merge, the number of languages in the new cluster.
    """

    languages: list[str]
    merges: Tensor

    def cophenetic(self) -> Tensor:
        """The distance at which two languages come together, float64 `[L, L]`."""
        hierarchy, distance = scipy_part("cluster.hierarchy"), scipy_part("spatial.distance")
        return torch.from_numpy(distance.squareform(hierarchy.cophenet(self.merges.numpy())))

    def cophenetic_correlation(self, iou: Tensor) -> float:
        """How faithfully the tree shows the distances 1 - IoU: their Pearson correlation with its own.

        Args:
            iou: float `[L, L]`, a fraction.

        Raises:
            NothingToCompare: if there are fewer than three languages, or all distances are equal.
        """
        if len(self.languages) < 3:
            raise NothingToCompare(
                "a correlation of distances needs three languages",
                got=len(self.languages),
                expected="3 or more",
            )
        distances = torch.stack([off_diagonal(1 - iou), off_diagonal(self.cophenetic())])
        distances = distances.double().round(decimals=_DECIMALS_THAT_COUNT)
        if (distances == distances[:, :1]).all(dim=1).any():
            raise NothingToCompare("no correlation where all distances are equal")
        return torch.corrcoef(distances)[0, 1].item()

    def drawing(self) -> tuple[list[str], list[tuple[list[float], list[float]]]]:
        """The languages in the order of the leaves, and each merge as a line over four points: places
        (leaf i stands at i) and distances."""
        drawn = scipy_part("cluster.hierarchy").dendrogram(self.merges.numpy(), no_plot=True)
        # scipy puts leaf i at 10 i + 5.
        lines = [
            ([(place - 5) / 10 for place in places], list(distances))
            for places, distances in zip(drawn["icoord"], drawn["dcoord"], strict=True)
        ]
        return [self.languages[i] for i in drawn["leaves"]], lines


def cluster(iou: Tensor, languages: Sequence[str]) -> Tree:
    """Cluster languages by overlap: average linkage on 1 - IoU.

    Args:
        iou: float `[L, L]`, a fraction, symmetric.
        languages: L codes.

    Raises:
        NothingToCompare: if there are fewer than two languages.
        NeuronSpecError: if ``iou`` is not square, or scipy is missing.
    """
    _pairs(iou)
    if len(languages) < 2:
        raise NothingToCompare("a dendrogram needs two languages", got=len(languages), expected="2 or more")
    distances = off_diagonal(1 - iou).double().clamp(min=0)
    merges = scipy_part("cluster.hierarchy").linkage(distances.numpy(), method="average")
    return Tree(list(languages), torch.from_numpy(merges))


# Chance ---------------------------------------------------------------------------------------


def random_iou(first: int, second: int, width: int) -> float:
    """Expected IoU (fraction) of two random sets, drawn independently.

    Exact: the shared neurons of two uniform sets follow the hypergeometric distribution.

    Args:
        first, second: how many neurons each keeps.
        width: of how many.
    """
    if first == second == 0:
        return 1.0
    shared = torch.arange(min(first, second) + 1, dtype=torch.float64).numpy()
    weights = scipy_part("stats").hypergeom.pmf(shared, width, first, second)
    return float((weights * shared / (first + second - shared)).sum())


def scipy_part(name: str) -> Any:
    """scipy's module ``name``, such as ``stats``.

    Raises:
        NeuronSpecError: if scipy is not installed.
    """
    try:
        return importlib.import_module(f"scipy.{name}")
    except ImportError as error:
        raise NeuronSpecError(
            "the analysis of overlap needs scipy",
            got=str(error),
            mend="install the extra 'analysis': pip install 'neuron_spec[analysis]', "
            "or in a checkout pip install -e '.[analysis]'",
        ) from error


def _pairs(iou: Tensor) -> tuple[Tensor, Tensor]:
    if iou.dim() != 2 or iou.shape[0] != iou.shape[1]:
        raise NeuronSpecError(
            "not a matrix of pairwise overlaps",
            got=f"shape {list(iou.shape)}",
            expected="[num_directions, num_directions]",
        )
    first, second = torch.triu_indices(len(iou), len(iou), offset=1)
    return first, second


def _check_kept(kept: Tensor) -> None:
    if kept.dtype != torch.bool or kept.dim() != 2 or kept.shape[1] == 0:
        raise NeuronSpecError(
            "not the kept neurons of a layer",
            got=f"{kept.dtype} of shape {list(kept.shape)}",
            expected="bool [num_directions, ffn_dim], True = kept",
        )


def _check_permutations(permutations: int) -> None:
    if permutations < 1:
        raise NeuronSpecError("a permutation test needs permutations", got=permutations, expected="1 or more")
