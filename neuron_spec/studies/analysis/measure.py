"""An analysis of specialized neurons: how far the sets overlap, whether overlap follows the kinship of
languages, and whether other data would have selected the same neurons.

`analyze` gives the numbers, as they stand in ``analysis.json``. Percentages are 0-100. What the masks at hand cannot
answer is None, with the reason beside it.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import combinations, repeat
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from neuron_spec.arguments import PERMUTATIONS
from neuron_spec.artifacts import read_text, require_file
from neuron_spec.corpora.build import read_card
from neuron_spec.errors import ArtifactError
from neuron_spec.languages import UNKNOWN, family_of, is_code, language, tree_distance
from neuron_spec.neurons.activations import ActivationCounts, side_of
from neuron_spec.neurons.choices import SIDES
from neuron_spec.neurons.masks import NeuronMasks
from neuron_spec.neurons.overlap import (
    Compared,
    Tree,
    adjusted_iou,
    chance_iou,
    cluster,
    compared,
    mean_off_diagonal,
    off_diagonal,
    pairwise_iou,
)
from neuron_spec.neurons.pairs import or_reason
from neuron_spec.neurons.stability import (
    are_split,
    chance_iou_per_direction,
    iou_per_direction,
    iou_with_other_languages,
    part_of,
    select_again,
)
from neuron_spec.statistics import (
    NothingToCompare,
    PermutationTest,
    family_contrast,
    mantels,
    permutation_tests,
)

DISTANCES_HEADER = "language,language,distance"
Distances = dict[frozenset[str], float]  # of unordered pairs of languages
Measure = Callable[[Tensor], Tensor]  # of sets, bool `[n, F]`: float64 `[n, n]`


@dataclass(frozen=True)
class Question:
    """What is asked of the masks.

    Attributes:
        masks: the sets.
        profiles: name -> profile of the same checkpoint, to select again from; the first is the reference.
        group: which directions are compared, one of `overlap.GROUPS`.
        families: language -> family; None: those of the language table.
        distances: between the languages; None: `directions.tree_distance`.
        permutations, seed: of the tests.
        measured: by layer and measure, what `between` has found.
    """

    masks: NeuronMasks
    profiles: Mapping[str, ActivationCounts] = field(default_factory=dict)
    group: str = "own"
    families: Mapping[str, str] | None = None
    distances: Distances | None = None
    permutations: int = PERMUTATIONS
    seed: int = 1
    measured: dict[tuple[str, Measure], Tensor] = field(default_factory=dict, init=False, compare=False)

    def compared(self, side: str) -> Compared:
        return compared(side, self.masks.directions, self.group)

    @property
    def sides(self) -> list[str]:
        return [side for side in SIDES if self.masks.side(side)]

    def family(self, code: str) -> str:
        return family_of(code, self.families)

    def between(self, layer: str, measure: Measure = pairwise_iou) -> Tensor:
        """Between the L languages that are compared, float64 `[L, L]`; of each layer and measure computed once."""
        key = layer, measure
        if key not in self.measured:
            chosen = self.compared(side_of(layer))
            self.measured[key] = chosen.between_languages(self.masks.kept[layer], measure)
        return self.measured[key]

    def mean_over_layers(self, side: str, measure: Measure = pairwise_iou) -> Tensor:
        """Between the L languages that are compared, mean over the side's layers, float64 `[L, L]`."""
        return torch.stack([self.between(layer, measure) for layer in self.masks.side(side)]).mean(dim=0)

    def tree(self, side: str) -> Tree:
        """The languages clustered by the mean IoU over layers.

        Raises:
            NothingToCompare: if there are not two.
        """
        return cluster(self.mean_over_layers(side), self.compared(side).distinct)


# What is read ---------------------------------------------------------------------------------


def read_distances(path: Path, pairs: Sequence[tuple[str, str]]) -> Distances:
    """Read distances between languages from a CSV file with the header ``language,language,distance``.

    A pair may stand in it twice, as ``de,nl`` and ``nl,de``, with the same distance.

    Args:
        pairs: those that are needed.

    Raises:
        ArtifactError: if the file is missing or not such a table, a distance is no number from 0, is not
            0 for a language and itself, differs from that the other way round, or is missing.
    """
    text = read_text(require_file(path, "table of distances")).removeprefix("\ufeff")
    try:
        rows = [[cell.strip() for cell in row] for row in csv.reader(io.StringIO(text))]
    except csv.Error as error:
        raise ArtifactError("not a table of distances between languages", where=path, got=error) from error
    header = ",".join(rows[0]) if rows else ""
    if header != DISTANCES_HEADER:
        raise ArtifactError(
            "not a table of distances between languages",
            where=path,
            got=f"first line {header!r}",
            expected=DISTANCES_HEADER,
        )
    distances: Distances = {}
    for number, row in enumerate(rows[1:], start=2):
        if not row:
            continue
        try:
            first, second, text = row
            distance = float(text)
        except ValueError:
            first, second, distance = "", "", math.nan
        known = distances.setdefault(frozenset((first, second)), distance)
        if not (is_code(first) and is_code(second) and 0 <= distance < math.inf):
            expected = "two language codes and a number from 0"
        elif first == second and distance != 0:
            expected = "0 between a language and itself"
        elif known != distance:
            expected = f"{known:g}, as the other way round or before: distances are symmetric"
        else:
            continue
        raise ArtifactError(
            "bad distance", where=f"{path}, line {number}", got=",".join(row), expected=expected
        )
    if missing := [f"{a}-{b}" for a, b in pairs if frozenset((a, b)) not in distances]:
        raise ArtifactError(
            "distances are missing",
            where=path,
            got=f"none for {', '.join(missing[:8])}" + (", ..." if len(missing) > 8 else ""),
            expected=f"all {len(pairs)} pairs of the languages compared",
            mend="add them to the table, or leave --distances out",
        )
    return distances


def read_families(card: Path) -> dict[str, str]:
    """The families of a corpus card.

    Raises:
        ArtifactError: if it is missing or has none.
    """
    return dict(read_card(card, "families")["families"])


def pairs_compared(question: Question) -> list[tuple[str, str]]:
    """The pairs of languages whose distances are needed."""
    by_side = [question.compared(side).distinct for side in question.sides]
    return sorted({pair for codes in by_side for pair in combinations(codes, 2)})


def select_from_profiles(question: Question) -> dict[str, NeuronMasks]:
    """The sets that each profile gives, selected as the masks were.

    Raises:
        NeuronSpecError: as in `stability.select_again`.
    """
    return {
        name: select_again(question.masks, profile, where=name) for name, profile in question.profiles.items()
    }


# The numbers ----------------------------------------------------------------------------------


def analyze(question: Question, again: Mapping[str, NeuronMasks]) -> dict[str, Any]:
    """Everything that stands in ``analysis.json``, without its signature.

    Args:
        again: what `select_from_profiles` returns.
    """
    masks = question.masks
    codes = sorted({code for d in masks.directions for code in (d.source, d.target)})
    return {
        "directions": [str(direction) for direction in masks.directions],
        "languages": {
            code: {
                "name": language(code).name,
                "family": question.family(code),
                "lineage": language(code).lineage,
            }
            for code in codes
        },
        "distances": "family tree of the language table" if question.distances is None else "given",
        "sides": {side: _side(question, side) for side in question.sides},
        "stability": _stability(question, again) if again else None,
    }


def _side(question: Question, side: str) -> dict[str, Any]:
    masks, chosen = question.masks, question.compared(side)
    groups = [direction.group.key for direction in masks.directions]
    layers, sparsity = masks.side(side), masks.sparsity()
    measured = [
        [question.between(layer, measure) for layer in layers] + [question.mean_over_layers(side, measure)]
        for measure in _MEASURES
    ]
    *overlaps, over_layers = _overlaps(question, chosen.distinct, *measured)
    found = {}
    for layer, of_layer in zip(layers, overlaps, strict=True):
        dropped = 100 * sparsity[layer]
        found[layer] = {
            "neurons": masks.widths[layer],
            "dropped_percent": {
                group: {
                    what: round(float(getattr(dropped[[other == group for other in groups]], what)()), 3)
                    for what in ("min", "mean", "max")
                }
                for group in dict.fromkeys(groups)
            },
            **of_layer,
        }
    return {
        "compared": {
            "group": chosen.group,
            "languages_by": chosen.by,
            "directions": [str(masks.directions[row]) for row in chosen.rows],
            "languages": chosen.distinct,
            "without_family": [code for code in chosen.distinct if question.family(code) == UNKNOWN],
            "without_distance": _without_distance(question, chosen.distinct),
        },
        "layers": found,
        "mean_over_layers": over_layers,
        "dendrogram": _or_reason(
            ("leaves", "merges", "cophenetic_correlation", "language_distances"),
            partial(_dendrogram, question, side, question.mean_over_layers(side)),
        ),
    }


_MEASURES = (pairwise_iou, chance_iou, adjusted_iou)


def _overlaps(
    question: Question,
    codes: Sequence[str],
    ious: Sequence[Tensor],
    chances: Sequence[Tensor],
    adjusted: Sequence[Tensor],
) -> list[dict[str, Any]]:
    """Of each layer its IoU with its tests, its chance level, and the same of adjusted IoU under ``adjusted``.

    Args:
        ious, chances, adjusted: of each layer, float64 `[L, L]` between the languages ``codes``.
    """
    tested = _overlap(question, codes, [*ious, *adjusted])
    return [
        {
            **of_iou,
            "chance_percent": _or_reason(_SUMMARY, partial(_summary, chance)),
            "adjusted": of_adjusted,
        }
        for of_iou, of_adjusted, chance in zip(tested[: len(ious)], tested[len(ious) :], chances, strict=True)
    ]


_SUMMARY = ("mean", "min", "max")


def _summary(iou: Tensor) -> dict[str, float]:
    """Of the pairs of languages, in percent."""
    mean_off_diagonal(iou)  # that there is a pair
    _require_known(iou)
    return _percents(off_diagonal(iou), *_SUMMARY)


def _require_known(iou: Tensor) -> None:
    if iou.isnan().any():
        raise NothingToCompare(
            "no adjusted IoU",
            got="a set of all neurons or of none",
            expected="sets whose size leaves a choice",
        )


def _overlap(question: Question, codes: Sequence[str], ious: Sequence[Tensor]) -> list[dict[str, Any]]:
    """``ious``: float `[L, L]` between the languages ``codes``; adjusted or not. All are tested on the same relabellings."""

    def by_family(known: Sequence[Tensor]) -> list[dict[str, Any]]:
        families = [question.family(code) for code in codes]
        tests = permutation_tests(known, families, permutations=question.permutations, seed=question.seed)
        found = []
        for iou, test in zip(known, tests, strict=True):
            within, between = family_contrast(iou, families)
            found.append(
                {
                    "within_percent": _percent(within),
                    "between_percent": _percent(between),
                    "difference_percent": _percent(within - between),
                    **test._asdict(),
                    "p": round(test.p, 6),
                }
            )
        return found

    keys = ("within_percent", "between_percent", "difference_percent", *PermutationTest._fields)
    families = _tested(keys, ious, by_family)
    distances = _against_distances(question, codes, [1 - iou for iou in ious])
    return [
        {
            "iou_percent": _or_reason(_SUMMARY, partial(_summary, iou)),
            "families": of_families,
            "language_distances": of_distances,
        }
        for iou, of_families, of_distances in zip(ious, families, distances, strict=True)
    ]


def _against_distances(
    question: Question, codes: Sequence[str], dissimilarities: Sequence[Tensor]
) -> list[dict[str, Any]]:
    """``dissimilarities``: float `[L, L]` between the languages ``codes``."""

    def compute(of_all: Sequence[Tensor]) -> list[dict[str, Any] | NothingToCompare]:
        without = {*_without_distance(question, codes)}
        rows = [row for row, code in enumerate(codes) if code not in without]
        known = [codes[row] for row in rows]
        distances = torch.zeros(len(known), len(known), dtype=torch.float64)
        for i, j in combinations(range(len(known)), 2):
            first, second = known[i], known[j]
            if question.distances is None:
                distance: float = tree_distance(first, second) or 0
            else:
                distance = question.distances[frozenset((first, second))]
            distances[i, j] = distances[j, i] = distance
        found = mantels(
            [dissimilarity[rows][:, rows] for dissimilarity in of_all],
            distances,
            permutations=question.permutations,
            seed=question.seed,
        )
        return [
            of
            if isinstance(of, NothingToCompare)
            else {"correlation": round(of.correlation, 6), **of.test._asdict(), "p": round(of.test.p, 6)}
            for of in found
        ]

    return _tested(("correlation", *PermutationTest._fields), dissimilarities, compute)


def _tested(
    keys: Iterable[str],
    squares: Sequence[Tensor],
    test: Callable[[Sequence[Tensor]], Sequence[Mapping[str, Any] | NothingToCompare]],
) -> list[dict[str, Any]]:
    """What ``test``, which takes all matrices without NaN at once, says of each; or why nothing can be said."""
    known = [square for square in squares if not square.isnan().any()]
    try:
        found: Iterator[Mapping[str, Any] | NothingToCompare] = iter(test(known) if known else ())
    except NothingToCompare as nothing:  # of any
        found = repeat(nothing)

    def of(square: Tensor) -> Mapping[str, Any]:
        _require_known(square)
        result = next(found)
        if isinstance(result, NothingToCompare):
            raise result
        return result

    return [_or_reason(keys, partial(of, square)) for square in squares]


def _or_reason(keys: Iterable[str], compute: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
    """As `pairs.or_reason`, without the advice."""

    def say(nothing: NothingToCompare) -> str:
        lines = [" ".join(line.split()) for line in str(nothing).splitlines()]
        return "; ".join(line for line in lines if not line.startswith("mend:"))

    return or_reason(keys, compute, say)


def _without_distance(question: Question, codes: Sequence[str]) -> list[str]:
    """Languages that the family tree does not hold; a given table holds all."""
    if question.distances is not None:
        return []
    return [code for code in codes if language(code).lineage == UNKNOWN]


def _dendrogram(question: Question, side: str, iou: Tensor) -> dict[str, Any]:
    """``iou``: float `[L, L]`, mean over the side's layers."""
    tree = question.tree(side)
    return {
        "leaves": tree.drawing()[0],
        "merges": [[round(value, 6) for value in row] for row in tree.merges.tolist()],
        "merged": tree.languages,
        "cophenetic_correlation": _or_reason(
            ("value",), lambda: {"value": round(tree.cophenetic_correlation(iou), 6)}
        ),
        "language_distances": _against_distances(question, tree.languages, [tree.cophenetic()])[0],
    }


def _stability(question: Question, again: Mapping[str, NeuronMasks]) -> dict[str, Any]:
    first, *later = again
    layers: dict[str, dict[str, Any]] = {}
    means: dict[str, dict[str, float | None]] = {}
    for side in question.sides:
        chosen = question.compared(side)
        for layer, kept in question.masks.side(side).items():
            sets = {name: masks.kept[layer] for name, masks in again.items()}
            reference = sets[first]
            layers[layer] = {
                "with_masks_percent": {name: _alike(kept, sets[name], chosen) for name in sets},
                "with_first_percent": {name: _alike(reference, sets[name], chosen) for name in later},
                "other_languages_percent": {
                    name: _or_reason(("mean",), partial(_of_others, reference, sets[name], chosen))
                    for name in sets
                },
                "random_percent": _percent(float(chance_iou_per_direction(reference, reference).mean())),
            }
        means[side] = {}
        for name in later:
            of_layers = [
                layers[layer]["with_first_percent"][name]["mean_of_compared"]
                for layer in question.masks.side(side)
            ]
            means[side][name] = None if None in of_layers else round(fmean(of_layers), 4)
    return {
        "profiles": {
            name: {
                "part": str(part_of(profile)),
                **{side: int(profile.tokens[side].sum()) if profile.knows_tokens else None for side in SIDES},
            }
            for name, profile in question.profiles.items()
        },
        "are_split": are_split(list(question.profiles.values())),
        "first": first,
        "layers": layers,
        "mean_over_layers": means,
    }


def _alike(first: Tensor, second: Tensor, chosen: Compared) -> dict[str, float | None]:
    """IoU of each direction's two sets: over all directions, and the mean over those compared."""
    iou = iou_per_direction(first, second)
    of_compared = _percent(float(iou[chosen.rows].mean())) if chosen.rows else None
    return {**_percents(iou, "mean", "min"), "mean_of_compared": of_compared}


def _of_others(first: Tensor, second: Tensor, chosen: Compared) -> dict[str, float]:
    return {"mean": _percent(iou_with_other_languages(first, second, chosen))}


def _percents(fractions: Tensor, *names: str) -> dict[str, float]:
    """``mean``, ``min`` or ``max``, by name."""
    return {name: _percent(float(getattr(fractions, name)())) for name in names}


def _percent(fraction: float) -> float:
    return round(100 * fraction, 4)
