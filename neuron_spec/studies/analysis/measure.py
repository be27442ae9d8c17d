"""An analysis of specialized neurons: how far the sets overlap, whether overlap follows the kinship of
languages, and whether other data would have selected the same neurons.

`analyze` gives the numbers, as they stand in ``analysis.json``. Percentages are 0-100. What the masks at hand cannot
answer is None, with the reason beside it.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from neuron_spec.artifacts import read_json, require_file
from neuron_spec.directions import UNKNOWN, family_of, language, tree_distance
from neuron_spec.errors import ArtifactError
from neuron_spec.neurons.activations import ActivationCounts, side_of
from neuron_spec.neurons.choices import SIDES
from neuron_spec.neurons.masks import NeuronMasks
from neuron_spec.neurons.overlap import Compared, Tree, cluster, compared, mean_off_diagonal, off_diagonal
from neuron_spec.neurons.pairs import or_reason
from neuron_spec.neurons.stability import (
    are_split,
    iou_per_direction,
    iou_with_other_languages,
    part_of,
    random_iou_per_direction,
    select_again,
)
from neuron_spec.statistics import (
    PERMUTATIONS,
    Mantel,
    NothingToCompare,
    PermutationTest,
    family_contrast,
    mantel,
    permutation_test,
)

DISTANCES_HEADER = ["language", "language", "distance"]

Distances = dict[frozenset[str], float]  # of unordered pairs of languages


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
    """

    masks: NeuronMasks
    profiles: Mapping[str, ActivationCounts] = field(default_factory=dict)
    group: str = "own"
    families: Mapping[str, str] | None = None
    distances: Distances | None = None
    permutations: int = PERMUTATIONS
    seed: int = 1

    def compared(self, side: str) -> Compared:
        return compared(side, self.masks.directions, self.group)

    @property
    def sides(self) -> list[str]:
        return [side for side in SIDES if self.masks.side(side)]

    def family(self, code: str) -> str:
        return family_of(code, self.families)

    def mean_iou(self, side: str) -> Tensor:
        """Between the L languages that are compared, mean over the side's layers, float64 `[L, L]`."""
        chosen = self.compared(side)
        return torch.stack([chosen.language_iou(kept) for kept in self.masks.side(side).values()]).mean(dim=0)

    def tree(self, side: str) -> Tree:
        """The languages clustered by `mean_iou`.

        Raises:
            NothingToCompare: if there are not two.
        """
        return cluster(self.mean_iou(side), self.compared(side).distinct)


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
    text = require_file(path, "table of distances").read_text(encoding="utf-8-sig")
    rows = [[cell.strip() for cell in row] for row in csv.reader(io.StringIO(text))]
    if not rows or rows[0] != DISTANCES_HEADER:
        raise ArtifactError(
            "not a table of distances between languages",
            where=path,
            got=f"first line {','.join(rows[0]) if rows else ''!r}",
            expected=",".join(DISTANCES_HEADER),
        )
    distances: Distances = {}
    for number, row in enumerate(rows[1:], start=2):
        if row and (expected := _add_distance(distances, row)):
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


def _add_distance(distances: Distances, row: Sequence[str]) -> str | None:
    """Add what a line says; returns what is expected of one instead, if that is not so."""
    try:
        first, second, distance = row[0], row[1], float(row[2])
    except (IndexError, ValueError):
        first, second, distance = "", "", math.nan
    if not (first and second and len(row) == 3 and 0 <= distance < math.inf):
        return "two language codes and a number from 0"
    if first == second and distance != 0:
        return "0 between a language and itself"
    known = distances.setdefault(frozenset((first, second)), distance)
    if known != distance:
        return f"{known:g}, as the other way round or before: distances are symmetric"
    return None


def read_families(card: Path) -> dict[str, str]:
    """The families of a corpus card.

    Raises:
        ArtifactError: if it is missing or has none.
    """
    content = read_json(card, "corpus card")
    if not isinstance(content, dict) or not isinstance(content.get("families"), dict):
        raise ArtifactError(
            "not a corpus card", where=card, expected="a corpus.json by neuron-spec data, with families"
        )
    return dict(content["families"])


def pairs_compared(question: Question) -> list[tuple[str, str]]:
    """The pairs of languages whose distances are needed."""
    pairs = set()
    for side in question.sides:
        codes = question.compared(side).distinct
        pairs |= {(a, b) for a in codes for b in codes if a < b}
    return sorted(pairs)


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
    chosen, mean = question.compared(side), question.mean_iou(side)
    return {
        "compared": {
            "group": chosen.group,
            "languages_by": chosen.by,
            "directions": [str(question.masks.directions[row]) for row in chosen.rows],
            "languages": chosen.distinct,
            "without_family": [code for code in chosen.distinct if question.family(code) == UNKNOWN],
            "without_distance": _without_distance(question, chosen.distinct),
        },
        "layers": {
            layer: {
                "neurons": question.masks.widths[layer],
                "dropped_percent": _dropped_percent(question, layer),
                **_overlap(question, chosen.distinct, chosen.language_iou(kept)),
            }
            for layer, kept in question.masks.side(side).items()
        },
        "mean_over_layers": _overlap(question, chosen.distinct, mean),
        "dendrogram": _dendrogram(question, side, mean),
    }


def _dropped_percent(question: Question, layer: str) -> dict[str, dict[str, float]]:
    """Group of directions -> percent of a layer's neurons that they drop: ``min``, ``mean``, ``max``."""
    percent = 100 * question.masks.sparsity()[layer]
    groups = [direction.group.key for direction in question.masks.directions]
    by_group = {name: percent[[other == name for other in groups]] for name in dict.fromkeys(groups)}
    return {
        name: {
            "min": round(float(of.min()), 3),
            "mean": round(float(of.mean()), 3),
            "max": round(float(of.max()), 3),
        }
        for name, of in by_group.items()
    }


def _overlap(question: Question, codes: Sequence[str], iou: Tensor) -> dict[str, Any]:
    """``iou``: float `[L, L]` between the languages ``codes``."""

    def overlap() -> dict[str, Any]:
        values = off_diagonal(iou)
        return {
            "mean": _percent(mean_off_diagonal(iou)),
            "min": _percent(float(values.min())),
            "max": _percent(float(values.max())),
        }

    def by_family() -> dict[str, Any]:
        families = [question.family(code) for code in codes]
        within, between = family_contrast(iou, families)
        test = permutation_test(iou, families, permutations=question.permutations, seed=question.seed)
        return {
            "within_percent": _percent(within),
            "between_percent": _percent(between),
            "difference_percent": _percent(within - between),
            **_test(test),
        }

    def by_distance() -> dict[str, Any]:
        return _against_distances(question, codes, 1 - iou)

    return {
        "iou_percent": or_reason(("mean", "min", "max"), overlap, reason_of),
        "families": or_reason(_FAMILY_KEYS, by_family, reason_of),
        "language_distances": or_reason(_MANTEL_KEYS, by_distance, reason_of),
    }


def reason_of(nothing: NothingToCompare) -> str:
    """Its message in one line, without the advice."""
    lines = [" ".join(line.split()) for line in str(nothing).splitlines()]
    return "; ".join(line for line in lines if not line.startswith("mend:"))


_TEST_KEYS = ("p", "relabellings", "is_exact")
_FAMILY_KEYS = ("within_percent", "between_percent", "difference_percent", *_TEST_KEYS)
_MANTEL_KEYS = ("correlation", *_TEST_KEYS)


def _against_distances(question: Question, codes: Sequence[str], dissimilarity: Tensor) -> dict[str, Any]:
    without = _without_distance(question, codes)
    rows = [i for i, code in enumerate(codes) if code not in without]
    known = [codes[i] for i in rows]
    distances = torch.tensor([[_distance_of(question, a, b) or 0.0 for b in known] for a in known])
    result: Mantel = mantel(
        dissimilarity[rows][:, rows],
        distances.reshape(len(known), len(known)).double(),
        permutations=question.permutations,
        seed=question.seed,
    )
    return {"correlation": round(result.correlation, 6), **_test(result.test)}


def _distance_of(question: Question, first: str, second: str) -> float | None:
    if first == second:
        return 0.0
    if question.distances is None:
        return tree_distance(first, second)
    return question.distances[frozenset((first, second))]


def _without_distance(question: Question, codes: Sequence[str]) -> list[str]:
    """Languages that the family tree does not hold; a given table holds all."""
    if question.distances is not None:
        return []
    return [code for code in codes if language(code).lineage == UNKNOWN]


def _test(test: PermutationTest) -> dict[str, Any]:
    return {"p": round(test.p, 6), "relabellings": test.relabellings, "is_exact": test.is_exact}


def _dendrogram(question: Question, side: str, iou: Tensor) -> dict[str, Any]:
    """``iou``: float `[L, L]`, mean over the side's layers."""

    def compute() -> dict[str, Any]:
        tree = question.tree(side)
        return {
            "leaves": tree.drawing()[0],
            "merges": [[round(value, 6) for value in row] for row in tree.merges.tolist()],
            "merged": tree.languages,
            "cophenetic_correlation": or_reason(
                ("value",), lambda: {"value": round(tree.cophenetic_correlation(iou), 6)}, reason_of
            ),
            "language_distances": or_reason(
                _MANTEL_KEYS,
                lambda: _against_distances(question, tree.languages, tree.cophenetic()),
                reason_of,
            ),
        }

    keys = ("leaves", "merges", "cophenetic_correlation", "language_distances")
    return or_reason(keys, compute, reason_of)


def _stability(question: Question, again: Mapping[str, NeuronMasks]) -> dict[str, Any]:
    names = list(again)
    first = again[names[0]]
    layers = {}
    for side in question.sides:
        chosen = question.compared(side)
        for layer, kept in question.masks.side(side).items():
            reference = first.kept[layer]
            layers[layer] = {
                "with_masks_percent": {
                    name: _spread(kept, again[name].kept[layer], chosen) for name in names
                },
                "with_first_percent": {
                    name: _spread(reference, again[name].kept[layer], chosen) for name in names[1:]
                },
                "other_languages_percent": {
                    name: _other_languages(reference, again[name].kept[layer], chosen) for name in names
                },
                "random_percent": _percent(float(random_iou_per_direction(reference, reference).mean())),
            }
    return {
        "profiles": {
            name: {
                "part": str(part_of(profile)),
                **{side: int(profile.tokens[side].sum()) for side in SIDES},
            }
            for name, profile in question.profiles.items()
        },
        "are_split": are_split(list(question.profiles.values())),
        "first": names[0],
        "layers": layers,
        "mean_over_layers": {
            side: {name: _mean_over_layers(layers, side, name) for name in names[1:]}
            for side in question.sides
        },
    }


def _mean_over_layers(layers: Mapping[str, Any], side: str, name: str) -> float | None:
    """IoU (percent) of a side's sets from the first profile with those from another."""
    means = [
        of["with_first_percent"][name]["mean_of_compared"]
        for layer, of in layers.items()
        if side_of(layer) == side
    ]
    return None if None in means else round(fmean(means), 4)


def _other_languages(first: Tensor, second: Tensor, chosen: Compared) -> dict[str, Any]:
    return or_reason(
        ("mean",), lambda: {"mean": _percent(iou_with_other_languages(first, second, chosen))}, reason_of
    )


def _spread(first: Tensor, second: Tensor, chosen: Compared) -> dict[str, float | None]:
    """IoU of each direction's two sets: over all directions, and the mean over those compared."""
    iou = iou_per_direction(first, second)
    return {
        "mean": _percent(float(iou.mean())),
        "min": _percent(float(iou.min())),
        "mean_of_compared": _percent(float(iou[chosen.rows].mean())) if chosen.rows else None,
    }


def _percent(fraction: float) -> float:
    return round(100 * fraction, 4)
