"""Tests and intervals, whatever they are about. The only random numbers are from fixed or given seeds.

What the data at hand cannot answer raises `NothingToCompare`. scipy, and torch for the tests of matrices, are imported
only where they are needed: a comparison of scores starts without them.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist, fmean, stdev
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from neuron_spec.arguments import PERMUTATIONS
from neuron_spec.errors import NeuronSpecError
from neuron_spec.languages import UNKNOWN

if TYPE_CHECKING:
    from torch import Tensor

FEWEST_SEEDS = 3  # with fewer there is no t over seeds
POWER = 0.8

_SEED = 12345
_CONFIDENCE = 0.95
_EXACT_UP_TO = 40  # values: 2^20 sums of either half
_RANDOM_FLIPS = 100_000
_FLIPS_AT_ONCE = 10_000
_RELABELLINGS_AT_ONCE = 500
# Sums that are equal may differ in their last bits, by the order of summation.
_SUMMATION_TOLERANCE = 1e-12
_DECIMALS_THAT_COUNT = 12


class NothingToCompare(NeuronSpecError):
    """Too few directions, languages or families, or no difference between them, for what was asked."""


# Several values -------------------------------------------------------------------------------


@dataclass(frozen=True)
class OverSeeds:
    """Mean and sample standard deviation over seeds; the latter is None for one seed."""

    mean: float
    std: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> OverSeeds:
        return cls(fmean(values), stdev(values) if len(values) > 1 else None)


def holm(p_values: ArrayLike) -> NDArray[np.float64]:
    """Holm's adjusted p-values: those below alpha hold all together with error rate alpha.

    Args:
        p_values: float `[N]`, in any order.

    Returns:
        float64 `[N]`, in the same order, none smaller than its own p-value.
    """
    p = np.asarray(p_values, dtype=float)
    order = p.argsort()
    adjusted = np.empty_like(p)
    adjusted[order] = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)).clip(max=1)
    return adjusted


def interval(resampled: NDArray[np.floating[Any]]) -> tuple[float, float]:
    """95 % percentile interval of resampled values, float `[samples]`."""
    tail = (1 - _CONFIDENCE) / 2
    low, high = np.quantile(resampled, (tail, 1 - tail))
    return float(low), float(high)


def resampled_p_value(difference: float, resampled: NDArray[np.floating[Any]]) -> float:
    """Two-sided: how often a resampled difference is as far from their mean as the true one from 0.

    With N of them, float `[N]`, never below 1 / (N + 1), and 1 where the true one is 0.
    """
    hits = int((np.abs(resampled - resampled.mean()) >= abs(difference)).sum())
    return (1 + hits) / (1 + len(resampled))


@dataclass(frozen=True)
class Uncertainty:
    """How far a mean difference can be trusted, and what could have been seen.

    Attributes:
        low, high: bounds of its 95 % interval.
        p_value: two-sided, that the difference is 0 in truth.
        smallest_visible: true difference that would have had a p below alpha in 80 % of repetitions. It is as
            uncertain as ``standard_error``, from which it is.
    """

    standard_error: float
    low: float
    high: float
    p_value: float
    smallest_visible: float

    @classmethod
    def of_samples(cls, difference: float, resampled: NDArray[np.floating[Any]], alpha: float) -> Uncertainty:
        """From resampled differences, float `[samples]`, by their spread and the normal distribution."""
        error, normal = float(resampled.std()), NormalDist()
        visible = (normal.inv_cdf(1 - alpha / 2) + normal.inv_cdf(POWER)) * error
        return cls(error, *interval(resampled), resampled_p_value(difference, resampled), visible)

    @classmethod
    def over_seeds(cls, differences: Sequence[float], alpha: float) -> Uncertainty | None:
        """Student's t: would training again give the same? None for fewer than 3 seeds, or where none differ.

        ``smallest_visible`` is by the noncentral t distribution.

        Args:
            differences: one for each seed, whose trainings are independent.
        """
        mean, seeds = fmean(differences), len(differences)
        error = stdev(differences) / math.sqrt(seeds) if seeds >= FEWEST_SEEDS else 0.0
        if error <= _SUMMATION_TOLERANCE * max(map(abs, differences)):
            return None
        from scipy.special import nctdtrinc, stdtr, stdtrit

        freedom = seeds - 1
        half = error * float(stdtrit(freedom, (1 + _CONFIDENCE) / 2))
        p_value = 2 * float(stdtr(freedom, -abs(mean) / error))
        visible = error * float(nctdtrinc(freedom, 1 - POWER, stdtrit(freedom, 1 - alpha / 2)))
        return cls(error, mean - half, mean + half, p_value, visible)


def sign_flip_p_value(differences: ArrayLike) -> float:
    """Two-sided p-value: how often are sums as far from 0 if each sign was a coin's toss?

    Over directions it asks whether their differences are of one sign. They share a model and often sentences, and are
    no sample of directions: it says nothing of others.

    Exact up to 40 values; with more, from 100,000 random flips with a fixed seed. N values allow
    2^N flips, so p is never below 2 / 2^N.

    Args:
        differences: float `[N]`, at least one.
    """
    values = np.asarray(differences, dtype=float)
    tolerance = _SUMMATION_TOLERANCE * np.abs(values).sum()
    observed = abs(values.sum()) - tolerance
    if observed <= 0:
        return 1.0
    if len(values) > _EXACT_UP_TO:
        generator = np.random.default_rng(_SEED)
        hits = 0
        for _ in range(0, _RANDOM_FLIPS, _FLIPS_AT_ONCE):
            signs = generator.choice((-1.0, 1.0), size=(_FLIPS_AT_ONCE, len(values)))
            hits += int((np.abs(signs @ values) >= observed).sum())
        return (1 + hits) / (1 + _RANDOM_FLIPS)
    # Every flip is one of the left half and one of the right: sorting one half counts all pairs.
    middle = len(values) // 2
    left, right = _signed_sums(values[:middle]), np.sort(_signed_sums(values[middle:]))
    above = len(right) - np.searchsorted(right, observed - left, side="left")
    below = np.searchsorted(right, -observed - left, side="right")
    return float((above + below).sum()) / 2 ** len(values)


def _signed_sums(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """float64 `[2^N]`: the sum of the values under every choice of signs."""
    sums = np.zeros(1)
    for value in values:
        sums = np.concatenate((sums - value, sums + value))
    return sums


# Relabelling ----------------------------------------------------------------------------------


class PermutationTest(NamedTuple):
    """How often a relabelling does at least as well: ``p`` is never 0, as the true labels count too.

    All relabellings are gone through where they are no more than the ``permutations`` that a test is given; otherwise
    so many are drawn at random, and p = (1 + hits) / (1 + permutations).
    """

    p: float
    relabellings: int
    is_exact: bool  # every relabelling, not a random sample


def _relabelled(
    score: Callable[[Tensor], Tensor], labels: Tensor, *, permutations: int, seed: int
) -> list[PermutationTest]:
    """How often labels dealt out otherwise score at least as much as the true ones, int64 `[n]`; one-sided.

    Args:
        score: of labels, int64 `[count, n]`, float64 `[count, K]`: of K things that are tested on the same relabellings.
    """
    if permutations < 1:
        raise NeuronSpecError("a permutation test needs permutations", got=permutations, expected="1 or more")
    sizes = labels.bincount().tolist()
    ways = math.factorial(len(labels)) // math.prod(map(math.factorial, sizes))
    observed = score(labels[None]) - _SUMMATION_TOLERANCE * len(labels)
    if ways <= permutations:
        batches: Iterator[Tensor] = iter(_every_way(tuple(sizes)).split(_RELABELLINGS_AT_ONCE))
    else:
        batches = _random_orders(labels, permutations, seed)
    hits = sum((score(dealt) >= observed).sum(dim=0) for dealt in batches)
    assert not isinstance(hits, int)  # there is at least one batch
    if ways <= permutations:
        return [PermutationTest(of / ways, ways, True) for of in hits.tolist()]
    return [PermutationTest((1 + of) / (1 + permutations), permutations, False) for of in hits.tolist()]


@lru_cache(maxsize=8)
def _every_way(sizes: tuple[int, ...]) -> Tensor:
    """Every distinct order of labels of which label i occurs ``sizes[i]`` times, int64 `[ways, n]`."""
    import torch

    def orders(left: Sequence[int]) -> Iterator[list[int]]:
        if not any(left):
            yield []
        for label, size in enumerate(left):
            if size:
                rests = orders([*left[:label], size - 1, *left[label + 1 :]])
                yield from ([label, *rest] for rest in rests)

    return torch.tensor(list(orders(sizes)))


def _random_orders(labels: Tensor, count: int, seed: int) -> Iterator[Tensor]:
    """``count`` times the labels, int64 `[n]`, in a random order; in batches `[_RELABELLINGS_AT_ONCE or fewer, n]`."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    for start in range(0, count, _RELABELLINGS_AT_ONCE):
        batch = min(_RELABELLINGS_AT_ONCE, count - start)
        yield labels[torch.rand(batch, len(labels), generator=generator, dtype=torch.float64).argsort(dim=1)]


def pairs_of(square: Tensor) -> tuple[Tensor, Tensor]:
    """Rows and columns of the unordered pairs of different things, int64 `[n * (n - 1) / 2]` each.

    Raises:
        NeuronSpecError: if it is not `[n, n]`.
    """
    import torch

    if square.dim() != 2 or square.shape[0] != square.shape[1]:
        raise NeuronSpecError(
            "not a matrix of pairwise overlaps",
            got=f"shape {list(square.shape)}",
            expected="[num_directions, num_directions]",
        )
    first, second = torch.triu_indices(len(square), len(square), offset=1)
    return first, second


def require_overlaps(square: Tensor) -> None:
    """Raises: NeuronSpecError if a pair of a matrix has no overlap: with NaN, no labelling would be as good as another."""
    if not square[pairs_of(square)].isfinite().all():
        raise NeuronSpecError(
            "overlaps that are not numbers",
            got=f"{int((~square.isfinite()).sum())} of {square.numel()} are NaN or infinite",
            mend="leave out directions without neurons, whose overlap has no meaning",
        )


def family_contrast(iou: Tensor, families: Sequence[str]) -> tuple[float, float]:
    """Mean IoU (fraction) of pairs within one family, and of pairs between two families.

    Args:
        iou: float `[n, n]`, symmetric, of n directions or languages.
        families: the family of each; those of unknown family are left out.

    Raises:
        NothingToCompare: if there are fewer than two families, or none has two members.
        NeuronSpecError: if ``families`` does not fit ``iou``.

    Examples:
        >>> import torch
        >>> from neuron_spec import family_contrast
        >>> iou = torch.tensor([[1, 0.75, 0.25], [0.75, 1, 0.5], [0.25, 0.5, 1]])
        >>> family_contrast(iou, ["Germanic", "Germanic", "Slavic"])
        (0.75, 0.375)
    """
    known, labels = _by_family(iou, families)
    first, second = pairs_of(known)
    values, same = known[first, second], labels[first] == labels[second]
    return values[same].mean().item(), values[~same].mean().item()


def permutation_test(
    iou: Tensor, families: Sequence[str], *, permutations: int = PERMUTATIONS, seed: int
) -> PermutationTest:
    """How often families dealt out otherwise separate at least as well as the true ones.

    One-sided, of the within-family mean minus the between-family mean. Few languages bound p from below: three
    families of two can be told apart in only 15 ways, so no p is below 1/15.

    Args:
        iou: float `[n, n]`, symmetric.
        families: the family of each; those of unknown family are left out.
        permutations: how many relabellings are drawn; all of them where there are no more.
        seed: of the draw.

    Raises:
        NothingToCompare: as in `family_contrast`.
        NeuronSpecError: if ``families`` does not fit ``iou``, or ``permutations`` is not positive.

    Examples:
        >>> import torch
        >>> from neuron_spec import permutation_test
        >>> iou = torch.tensor([[1, 0.75, 0.25], [0.75, 1, 0.5], [0.25, 0.5, 1]])
        >>> round(permutation_test(iou, ["Germanic", "Germanic", "Slavic"], seed=1).p, 2)  # of three ways, the best
        0.33
    """
    return permutation_tests([iou], families, permutations=permutations, seed=seed)[0]


def permutation_tests(
    ious: Sequence[Tensor], families: Sequence[str], *, permutations: int = PERMUTATIONS, seed: int
) -> list[PermutationTest]:
    """`permutation_test` of each of several matrices, at least one, on the same relabellings: far faster than one by one."""
    import torch

    known, labels = zip(*(_by_family(iou, families) for iou in ious), strict=True)
    first, second = pairs_of(known[0])
    values = torch.stack([of[first, second] for of in known], dim=1)  # [pairs, K]

    # The number of within-family pairs and the total IoU stay the same under relabelling, so the
    # contrast grows and falls with the within-family sum alone.
    def within(dealt: Tensor) -> Tensor:
        dealt = dealt.to(torch.int16)  # of few families: less to read
        return (dealt[:, first] == dealt[:, second]).double() @ values

    return _relabelled(within, labels[0], permutations=permutations, seed=seed)


def _by_family(iou: Tensor, families: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Of the n members of known families: IoU, float64 `[n, n]`, and the number of the family, int64 `[n]`."""
    import torch

    pairs_of(iou)
    if len(families) != len(iou):
        raise NeuronSpecError("one family per direction", got=f"{len(families)} families", expected=len(iou))
    known = [i for i, family in enumerate(families) if family != UNKNOWN]
    members = Counter(families[i] for i in known)
    if len(members) < 2 or max(members.values()) < 2:
        counts = ", ".join(f"{family}: {count}" for family, count in sorted(members.items()))
        raise NothingToCompare(
            "no family structure to test",
            got=counts or "no known families",
            expected="two or more families, one of them with two or more members",
            mend="choose more languages",
        )
    names = sorted(members)
    square = iou[known][:, known].double()
    require_overlaps(square)
    return square, torch.tensor([names.index(families[i]) for i in known])


def diagonal_test(change: Tensor, *, permutations: int = PERMUTATIONS, seed: int) -> PermutationTest:
    """How often sets dealt out otherwise cost the directions at least as much as their own do.

    One-sided, of the sum over directions of what each loses by the set that it is dealt. Every set is dealt
    once, so that neither a set whose neurons matter to all nor a direction that suffers from any loss adds to
    the contrast. Ours.

    Args:
        change: float `[n, n]`, rows: sets, columns: directions; own ones on the diagonal.

    Raises:
        NothingToCompare: if n is less than 2.
        NeuronSpecError: if ``permutations`` is not positive.
    """
    import torch

    if len(change) < 2:
        raise NothingToCompare("an ablation compares directions", got=len(change), expected="2 or more")
    labels, losses = torch.arange(len(change)), change.double()
    return _relabelled(
        lambda dealt: losses[dealt, labels].sum(dim=1, keepdim=True),
        labels,
        permutations=permutations,
        seed=seed,
    )[0]


class Mantel(NamedTuple):
    """Spearman's rank correlation of two distances, and how easily chance gives as high a one."""

    correlation: float
    test: PermutationTest


def mantel(first: Tensor, second: Tensor, *, permutations: int = PERMUTATIONS, seed: int) -> Mantel:
    """Mantel's test: whether two distances between the same things rise and fall together.

    Spearman's rank correlation over unordered pairs; one-sided p from relabelling the things of one,
    rows and columns together. Mantel (1967); ours in using it for overlap.

    Args:
        first, second: float `[n, n]`, symmetric; the diagonal plays no part.

    Raises:
        NothingToCompare: if there are fewer than three things, or one of the distances is the same for all.
        NeuronSpecError: if the shapes differ, a value is not finite, or ``permutations`` is not positive.
    """
    (found,) = mantels([first], second, permutations=permutations, seed=seed)
    if isinstance(found, NothingToCompare):
        raise found
    return found


def mantels(
    firsts: Sequence[Tensor], second: Tensor, *, permutations: int = PERMUTATIONS, seed: int
) -> list[Mantel | NothingToCompare]:
    """`mantel` of each of several distances with another, on the same relabellings; or why there is none.

    Raises:
        NeuronSpecError: as `mantel`.
    """
    import torch

    rows, columns = pairs_of(second)
    for first in firsts:
        pairs_of(first)
        if first.shape != second.shape or not (first + second)[rows, columns].isfinite().all():
            raise NeuronSpecError(
                "two distances cannot be compared",
                got=f"shapes {list(first.shape)} and {list(second.shape)}",
                expected="the same shape, finite values",
            )
    others = _ranks(second)
    ranks: list[Tensor] = []
    found: list[float | NothingToCompare] = []
    for first in firsts:
        of_pairs = _ranks(first)[rows, columns]
        try:
            found.append(correlation_of(of_pairs, others[rows, columns], len(first)))
            ranks.append(of_pairs)
        except NothingToCompare as nothing:
            found.append(nothing)
    if not ranks:
        return [of for of in found if isinstance(of, NothingToCompare)]
    ranked = torch.stack(ranks, dim=1)  # [pairs, K]

    # Relabelling leaves means and variances as they are. Ranks are halves of whole numbers, so that these
    # sums are exact. An order of the first is its inverse of the other, of which there is one for all.
    def products(orders: Tensor) -> Tensor:
        back = orders.argsort(dim=1)
        return others[back[:, rows], back[:, columns]] @ ranked

    labels = torch.arange(len(second))
    tests = iter(_relabelled(products, labels, permutations=permutations, seed=seed))
    return [of if isinstance(of, NothingToCompare) else Mantel(of, next(tests)) for of in found]


def _ranks(distances: Tensor) -> Tensor:
    """Each pair's rank among the pairs, ties sharing their mean; float64 `[n, n]`, 0 on the diagonal."""
    import torch
    from scipy.stats import rankdata

    rows, columns = pairs_of(distances)
    # Equal means of several layers may differ in their last bits.
    rounded = distances[rows, columns].double().round(decimals=_DECIMALS_THAT_COUNT)
    ranks = torch.zeros(len(distances), len(distances), dtype=torch.float64)
    ranks[rows, columns] = torch.from_numpy(rankdata(rounded.numpy()))
    return ranks + ranks.T


def correlation_of(first: Tensor, second: Tensor, languages: int) -> float:
    """Pearson's correlation of two distances, `[pairs]` each, between so many languages.

    Raises:
        NothingToCompare: if there are fewer than three languages, or all distances are equal.
    """
    import torch

    if languages < 3:
        raise NothingToCompare(
            "a correlation of distances needs three languages", got=languages, expected="3 or more"
        )
    distances = torch.stack([first, second]).double().round(decimals=_DECIMALS_THAT_COUNT)
    if (distances == distances[:, :1]).all(dim=1).any():
        raise NothingToCompare("no correlation where all distances are equal")
    return torch.corrcoef(distances)[0, 1].item()
