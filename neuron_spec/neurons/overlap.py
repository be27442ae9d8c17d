"""How much the kept neurons of directions overlap, and whether overlap follows the kinship of languages.

Everything here looks at one layer, or at the mean over layers: `kept` is bool `[num_directions, ffn_dim]`,
True = kept. IoU and sparsity are fractions (0-1). What the data at hand cannot answer raises
`NothingToCompare`. scipy is slow to import, and is imported only where it is needed.

IoU grows with the size of the sets, whatever they hold: two sets that keep the fraction p of the neurons at random
have about p / (2 - p). `chance_iou` is that level, and `adjusted_iou` the IoU beyond it, which can be compared
between layers and settings of different sparsity.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from neuron_spec.directions import Direction
from neuron_spec.errors import ModelError, NeuronSpecError
from neuron_spec.neurons.choices import GROUPS, SIDES
from neuron_spec.statistics import NothingToCompare, correlation_of, pairs_of, require_overlaps

# Overlap and sparsity -------------------------------------------------------------------------


def pairwise_iou(kept: Tensor, other: Tensor | None = None) -> Tensor:
    """Intersection over union of the kept neurons, for each pair of directions.

    Args:
        kept: bool `[num_directions, ffn_dim]`, True = kept.
        other: other sets for the columns, bool `[other_directions, ffn_dim]`; by default the same.

    Returns:
        float64 `[num_directions, other_directions]`, a fraction; two empty sets count as equal (1).

    Raises:
        NeuronSpecError: if ``kept`` or ``other`` is not such a tensor, or they are of layers of different widths.

    Examples:
        >>> import torch
        >>> from neuron_spec import pairwise_iou
        >>> kept = torch.tensor([[1, 1, 1, 0], [0, 1, 1, 1]], dtype=torch.bool)
        >>> pairwise_iou(kept).tolist()
        [[1.0, 0.5], [0.5, 1.0]]
    """
    other = _columns(kept, other)
    rows, columns = kept.float(), other.float()  # which counts exactly, up to 2**24 neurons
    shared = (rows @ columns.T).double()
    union = kept.sum(dim=1)[:, None] + other.sum(dim=1)[None, :] - shared
    return torch.where(union == 0, 1.0, shared / union.clamp(min=1))


def chance_iou(kept: Tensor, other: Tensor | None = None) -> Tensor:
    """The chance level: the IoU to expect of two random sets of these sizes, for each pair of directions.

    Exact: the neurons that two sets share, drawn independently and uniformly, follow the hypergeometric
    distribution, and the expectation is that of the ratio. Ours; the ratio of the expectations, pq / (p + q - pq)
    for fractions p and q, is lower by less than 0.0004 at 512 neurons and kept fractions from 0.3 to 0.9, and by more
    in narrow layers; only the exact one gives random sets an adjusted IoU of 0 on average.

    Args:
        kept: bool `[num_directions, ffn_dim]`, True = kept.
        other: other sets for the columns, bool `[other_directions, ffn_dim]`; by default the same.

    Returns:
        float64 `[num_directions, other_directions]`, a fraction; 1 for two empty sets, as in `pairwise_iou`.

    Raises:
        NeuronSpecError: as `pairwise_iou`.

    Examples:
        Sets of three of four neurons share two or three:

        >>> import torch
        >>> from neuron_spec import chance_iou
        >>> kept = torch.tensor([[1, 1, 1, 0], [0, 1, 1, 1]], dtype=torch.bool)
        >>> round(chance_iou(kept)[0, 1].item(), 3)
        0.625
    """
    other = _columns(kept, other)
    rows, row_of = kept.sum(dim=1).unique(return_inverse=True)
    columns, column_of = other.sum(dim=1).unique(return_inverse=True)
    levels = _chance_levels(kept.size(1), tuple(rows.tolist()), tuple(columns.tolist()))
    return levels[row_of][:, column_of]


@lru_cache(maxsize=128)  # two for each of many layers: sets of all directions, and of those that are compared
def _chance_levels(width: int, sizes: tuple[int, ...], others: tuple[int, ...]) -> Tensor:
    """`chance_iou` of sets of these sizes, float64 `[sizes, others]`; not to be written to."""
    rows, columns = torch.tensor(sizes), torch.tensor(others)
    # Further from the mean than this, Hoeffding's bound leaves less than 2 exp(-40), which float64 does not see: draws
    # of n from the width are as spread as draws of the rest.
    reach = math.ceil(math.sqrt(20 * max((min(n, width - n) for n in sizes + others), default=0)))
    counts = 2 * reach + 2  # of shared neurons, that have weight for a pair
    numbers = torch.arange(width + 1, dtype=torch.float64)
    beyond = torch.full(
        (counts,), torch.inf, dtype=torch.float64
    )  # no way to choose fewer than none, or more than all
    factorials, unions = (
        torch.cat([beyond, of, beyond]) for of in (torch.lgamma(numbers + 1), numbers.clamp(min=1))
    )  # the former are logarithms
    rising, falling = (
        of.unfold(0, counts, 1) for of in (factorials, factorials.flip(0))
    )  # a row from each place on
    inverse = (1 / unions).flip(0).unfold(0, counts, 1)
    zero, last = counts, width + counts  # the places of 0 in one direction, and in the other

    levels = torch.zeros(len(rows), len(columns), dtype=torch.float64)
    for row, size in enumerate(rows):
        left = columns[row:] if sizes == others else columns  # the other half is the same
        # Both ways alike to the last bit.
        few, many, both = torch.minimum(size, left), torch.maximum(size, left), size + left
        lowest = torch.maximum(both - width, few * many // width - reach).clamp(min=0)
        # Up to what all counts have in common, the logarithm of the ways to share lowest, lowest + 1, ... of them.
        ways = rising[zero + lowest] + falling[last - few + lowest]
        ways += falling[last - many + lowest]
        ways += rising[zero + width - both + lowest]
        # Shared over union is both over union - 1.
        means = (ways.neg_().softmax(dim=1) * inverse[last - both + lowest]).sum(dim=1)
        levels[row, len(columns) - len(left) :] = torch.where(both == 0, 1.0, (both * means - 1).clamp(min=0))
    return levels.triu() + levels.triu(1).T if sizes == others else levels


def adjusted_iou(kept: Tensor, other: Tensor | None = None) -> Tensor:
    """IoU corrected for the size of the sets, (IoU - chance level) / (1 - chance level), for each pair of directions.

    1 for equal sets, 0 on average for random ones of whatever sizes, below 0 for sets that shun each other. Two sets
    of different sizes cannot reach 1. The form is that of the adjusted Rand index (Hubert and Arabie 1985) and of
    Cohen's kappa; ours in using it for IoU.

    Args:
        kept: bool `[num_directions, ffn_dim]`, True = kept.
        other: other sets for the columns, bool `[other_directions, ffn_dim]`; by default the same.

    Returns:
        float64 `[num_directions, other_directions]`; NaN where a set keeps all neurons or none, for then the sizes
        alone fix the IoU.

    Raises:
        NeuronSpecError: as `pairwise_iou`.

    Examples:
        >>> import torch
        >>> from neuron_spec import adjusted_iou
        >>> kept = torch.tensor([[1, 1, 1, 0], [0, 1, 1, 1]], dtype=torch.bool)
        >>> round(adjusted_iou(kept)[0, 1].item(), 3)  # they share less than random sets would
        -0.333
    """
    other = kept if other is None else other
    chance = chance_iou(kept, other)
    adjusted = (pairwise_iou(kept, other) - chance) / (1 - chance)
    is_free = [sets.any(dim=1) & ~sets.all(dim=1) for sets in (kept, other)]
    return torch.where(is_free[0][:, None] & is_free[1], adjusted, torch.nan)


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
    first, second = pairs_of(iou)
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


def churn(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> float:
    """How much masks changed, 0-1: 1 - IoU of the old and the new set, mean over sites and directions."""
    same = [pairwise_iou(old, after[site]).diagonal().mean() for site, old in before.items()]
    return 1 - float(torch.stack(same).mean())


def kept_fraction(kept: Mapping[str, Tensor]) -> float:
    """0-1, mean over sites and directions."""
    return float(torch.stack([rows.double().mean() for rows in kept.values()]).mean())


def mean_overlap(kept: Mapping[str, Tensor]) -> float:
    """IoU of two directions' sets, 0-1, mean over pairs and sites; of a single direction 1."""
    of_sites = [mean_off_diagonal(pairwise_iou(rows)) if len(rows) > 1 else 1.0 for rows in kept.values()]
    return sum(of_sites) / len(of_sites)


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

    def between_languages(self, kept: Tensor, measure: Callable[[Tensor], Tensor] = pairwise_iou) -> Tensor:
        """IoU between languages: the mean over the pairs of their directions.

        Args:
            kept: bool `[num_directions, ffn_dim]`, of all directions.
            measure: or `chance_iou`, or `adjusted_iou`.

        Returns:
            float64 `[L, L]` in the order of ``distinct``, 1 on the diagonal; NaN for all where one pair is unknown.
        """
        is_of = [[code == language for language in self.languages] for code in self.distinct]
        share = torch.tensor(is_of, dtype=torch.float64).reshape(len(is_of), len(self.rows))
        share = share / share.sum(dim=1, keepdim=True)
        mean = share @ measure(kept[self.rows]) @ share.T
        mean = (mean + mean.T) / 2  # the two products round differently
        return mean.fill_diagonal_(1)


def compared(side: str, directions: Sequence[Direction], group: str = "own") -> Compared:
    """The directions that the layers of ``side`` are compared over.

    By default (``own``) those in which the language on that side varies and the other is English, as in
    figures 1 and 2 of the paper; where there are not two of them, all directions.

    Args:
        side: ``encoder`` or ``decoder``.
        group: one of `GROUPS`.

    Raises:
        NeuronSpecError: if the side or the group is none.

    Examples:
        >>> from neuron_spec import compared, parse_directions
        >>> compared("decoder", parse_directions("en-de,en-ru,de-en,ru-en")).languages
        ['de', 'ru']
    """
    for word, known in ((side, SIDES), (group, GROUPS)):
        if word not in known:
            raise NeuronSpecError("not to be compared", got=repr(word), expected=f"one of {', '.join(known)}")
    if group == "own":
        usual = compared(side, directions, "x-en" if side == "encoder" else "en-x")
        return usual if len(usual.rows) >= 2 else compared(side, directions, "all")
    own_side = "source" if side == "encoder" else "target"
    by = {"en-x": "target", "x-en": "source", "all": own_side}[group]
    rows = [i for i, direction in enumerate(directions) if group in ("all", direction.group.key)]
    return Compared(group, by, rows, [getattr(directions[i], by) for i in rows])


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
        from scipy.cluster.hierarchy import cophenet
        from scipy.spatial.distance import squareform

        return torch.from_numpy(squareform(cophenet(self.merges.numpy())))

    def cophenetic_correlation(self, iou: Tensor) -> float:
        """How faithfully the tree shows the distances 1 - IoU: their Pearson correlation with its own.

        Args:
            iou: float `[L, L]`, a fraction.

        Raises:
            NothingToCompare: if there are fewer than three languages, or all distances are equal.
        """
        distances = off_diagonal(1 - iou), off_diagonal(self.cophenetic())
        return correlation_of(*distances, len(self.languages))

    def drawing(self) -> tuple[list[str], list[tuple[list[float], list[float]]]]:
        """The languages in the order of the leaves, and each merge as a line over four points: places
        (leaf i stands at i) and distances."""
        from scipy.cluster.hierarchy import dendrogram

        drawn = dendrogram(self.merges.numpy(), no_plot=True)
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
        NeuronSpecError: if ``iou`` is not square, of other languages, or has no overlap of a pair.

    Examples:
        >>> import torch
        >>> from neuron_spec import cluster
        >>> tree = cluster(torch.tensor([[1, 0.2, 0.9], [0.2, 1, 0.3], [0.9, 0.3, 1]]), ["de", "ru", "nl"])
        >>> tree.drawing()[0]  # Dutch beside German
        ['ru', 'de', 'nl']
    """
    from scipy.cluster.hierarchy import linkage

    require_overlaps(iou)
    if len(languages) != len(iou):
        raise NeuronSpecError("one code per language", got=f"{len(languages)} codes", expected=len(iou))
    if len(languages) < 2:
        raise NothingToCompare("a dendrogram needs two languages", got=len(languages), expected="2 or more")
    distances = off_diagonal(1 - iou).double().clamp(min=0)
    return Tree(list(languages), torch.from_numpy(linkage(distances.numpy(), method="average")))


def _columns(kept: Tensor, other: Tensor | None) -> Tensor:
    """The sets to compare with, checked."""
    other = kept if other is None else other
    _check_kept(kept)
    _check_kept(other)
    if kept.size(1) != other.size(1):
        raise ModelError(
            "sets of different models: layers of different widths",
            got=f"{other.size(1)} neurons",
            expected=f"{kept.size(1)} neurons",
        )
    return other


def _check_kept(kept: Tensor) -> None:
    is_tensor = isinstance(kept, Tensor)
    if not is_tensor or kept.dtype != torch.bool or kept.dim() != 2 or kept.shape[1] == 0:
        raise NeuronSpecError(
            "not the kept neurons of a layer",
            got=f"{kept.dtype} of shape {list(kept.shape)}" if is_tensor else repr(kept)[:80],
            expected='bool [num_directions, ffn_dim], True = kept, such as masks.kept["decoder.layers.0"]',
        )
