"""An analysis of specialized neurons: how far the sets overlap, whether overlap follows the kinship of
languages, and whether other data would have selected the same neurons.

`analyze` gives the numbers, as they stand in ``analysis.json``; `write_analysis` adds tables, pairs and
figures. Percentages are 0-100. What the masks at hand cannot answer is None, with the reason beside it.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from neuron_spec.artifacts import read_json, require_file, write_json, write_text
from neuron_spec.directions import GROUPS, UNKNOWN, family_of, language, tree_distance
from neuron_spec.errors import ArtifactError
from neuron_spec.neurons.activations import ActivationCounts, side_of
from neuron_spec.neurons.choices import SIDES, Part
from neuron_spec.neurons.masks import NeuronMasks
from neuron_spec.neurons.overlap import (
    Compared,
    Tree,
    cluster,
    compared,
    mean_off_diagonal,
    off_diagonal,
    pairwise_iou,
)
from neuron_spec.neurons.stability import (
    are_split,
    iou_per_direction,
    iou_with_other_languages,
    part_of,
    random_iou_per_direction,
    select_again,
)
from neuron_spec.pages import curves, heatmap, style
from neuron_spec.pages.tables import Cell, markdown_table
from neuron_spec.statistics import (
    PERMUTATIONS,
    Mantel,
    NothingToCompare,
    PermutationTest,
    family_contrast,
    mantel,
    permutation_test,
)

ANALYSIS_JSON = "analysis.json"
ANALYSIS_TABLE = "analysis.md"
PAIRS_CSV = "iou.csv"
FIGURES = "figures"
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
    found: Distances = {}
    for number, row in enumerate(rows[1:], start=2):
        if not row:
            continue
        distance = _distance(row)
        pair = frozenset(row[:2])
        wrong = None
        if distance is None:
            wrong = "two language codes and a number from 0"
        elif len(pair) == 1 and distance != 0:
            wrong = "0 between a language and itself"
        elif found.get(pair, distance) != distance:
            wrong = f"{found[pair]:g}, as the other way round or before: distances are symmetric"
        if wrong:
            raise ArtifactError(
                "bad distance", where=f"{path}, line {number}", got=",".join(row), expected=wrong
            )
        assert distance is not None
        found[pair] = distance
    if missing := [f"{a}-{b}" for a, b in pairs if frozenset((a, b)) not in found]:
        raise ArtifactError(
            "distances are missing",
            where=path,
            got=f"none for {', '.join(missing[:8])}" + (", ..." if len(missing) > 8 else ""),
            expected=f"all {len(pairs)} pairs of the languages compared",
            mend="add them to the table, or leave --distances out",
        )
    return found


def _distance(row: Sequence[str]) -> float | None:
    if len(row) != len(DISTANCES_HEADER) or not (row[0] and row[1]):
        return None
    try:
        distance = float(row[2])
    except ValueError:
        return None
    return distance if math.isfinite(distance) and distance >= 0 else None


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
    chosen = question.compared(side)
    layers = {layer: chosen.language_iou(kept) for layer, kept in question.masks.side(side).items()}
    mean = torch.stack(list(layers.values())).mean(dim=0)
    unknown = [code for code in chosen.distinct if question.family(code) == UNKNOWN]
    return {
        "compared": {
            "group": chosen.group,
            "languages_by": chosen.by,
            "directions": [str(question.masks.directions[row]) for row in chosen.rows],
            "languages": chosen.distinct,
            "without_family": unknown,
            "without_distance": _without_distance(question, chosen.distinct),
        },
        "layers": {
            layer: {
                "neurons": question.masks.widths[layer],
                "dropped_percent": _dropped(question, layer),
                **_overlap(question, chosen.distinct, iou),
            }
            for layer, iou in layers.items()
        },
        "mean_over_layers": _overlap(question, chosen.distinct, mean),
        "dendrogram": _dendrogram(question, chosen.distinct, mean),
    }


def _dropped(question: Question, layer: str) -> dict[str, Any]:
    """Group of directions -> percent of neurons dropped: least, mean, most."""
    dropped = 100 * question.masks.sparsity()[layer]
    groups = [direction.group.key for direction in question.masks.directions]
    return {
        group: {
            name: round(float(value), 3)
            for name, value in (("min", own.min()), ("mean", own.mean()), ("max", own.max()))
        }
        for group in dict.fromkeys(groups)
        for own in (dropped[[other == group for other in groups]],)
    }


def _overlap(question: Question, codes: Sequence[str], iou: Tensor) -> dict[str, Any]:
    """``iou``: float `[L, L]` between the languages ``codes``."""
    return {
        "iou_percent": _unless_nothing(
            ("mean", "min", "max"),
            lambda: {
                "mean": _percent(mean_off_diagonal(iou)),
                "min": _percent(float(off_diagonal(iou).min())),
                "max": _percent(float(off_diagonal(iou).max())),
            },
        ),
        "families": _unless_nothing(_FAMILY_KEYS, lambda: _families(question, codes, iou)),
        "language_distances": _unless_nothing(
            _MANTEL_KEYS, lambda: _against_distances(question, codes, 1 - iou)
        ),
    }


def _unless_nothing(keys: Sequence[str], compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What ``compute`` gives and no reason; or None for each of ``keys``, and the reason."""
    try:
        return compute() | {"reason": None}
    except NothingToCompare as nothing:
        return dict.fromkeys(keys) | {"reason": _reason(nothing)}


def _reason(nothing: NothingToCompare) -> str:
    """Its message in one line, without the advice."""
    lines = [" ".join(line.split()) for line in str(nothing).splitlines()]
    return "; ".join(line for line in lines if not line.startswith("mend:"))


_TEST_KEYS = ("p", "relabellings", "is_exact")
_FAMILY_KEYS = ("within_percent", "between_percent", "difference_percent", *_TEST_KEYS)
_MANTEL_KEYS = ("correlation", *_TEST_KEYS)


def _families(question: Question, codes: Sequence[str], iou: Tensor) -> dict[str, Any]:
    families = [question.family(code) for code in codes]
    within, between = family_contrast(iou, families)
    test = permutation_test(iou, families, permutations=question.permutations, seed=question.seed)
    return {
        "within_percent": _percent(within),
        "between_percent": _percent(between),
        "difference_percent": _percent(within - between),
        **_test(test),
    }


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


def _dendrogram(question: Question, codes: Sequence[str], iou: Tensor) -> dict[str, Any]:
    """Of the mean over a side's layers."""
    tree = _tree(codes, iou)
    if isinstance(tree, NothingToCompare):
        return dict.fromkeys(("leaves", "merges", "cophenetic_correlation", "language_distances")) | {
            "reason": _reason(tree)
        }
    leaves, _ = tree.drawing()
    return {
        "leaves": leaves,
        "merges": [[round(value, 6) for value in row] for row in tree.merges.tolist()],
        "merged": tree.languages,
        "cophenetic_correlation": _unless_nothing(
            ("value",), lambda: {"value": round(tree.cophenetic_correlation(iou), 6)}
        ),
        "language_distances": _unless_nothing(
            _MANTEL_KEYS, lambda: _against_distances(question, codes, tree.cophenetic())
        ),
        "reason": None,
    }


def _tree(codes: Sequence[str], iou: Tensor) -> Tree | NothingToCompare:
    try:
        return cluster(iou, codes)
    except NothingToCompare as nothing:
        return nothing


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
        own["with_first_percent"][name]["mean_of_compared"]
        for layer, own in layers.items()
        if side_of(layer) == side
    ]
    return None if None in means else round(fmean(means), 4)


def _other_languages(first: Tensor, second: Tensor, chosen: Compared) -> dict[str, Any]:
    return _unless_nothing(
        ("mean",), lambda: {"mean": _percent(iou_with_other_languages(first, second, chosen))}
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


# The folder -----------------------------------------------------------------------------------


def write_analysis(
    folder: Path, question: Question, again: Mapping[str, NeuronMasks], made: Mapping[str, Any]
) -> Path:
    """Write figures, ``iou.csv``, ``analysis.md`` and, last, ``analysis.json``: the mark of completeness.

    Args:
        again: what `select_from_profiles` returns.
        made: the signature.
    """
    found = analyze(question, again)
    for name, figure in draw(question).items():
        for kind in ("png", "svg"):
            style.save(figure, folder / FIGURES / f"{name}.{kind}")
    write_text(folder / PAIRS_CSV, _pairs_csv(question))
    write_text(folder / ANALYSIS_TABLE, as_markdown(found, made))
    write_json(folder / ANALYSIS_JSON, {"signature": dict(made), **found})
    return folder / ANALYSIS_JSON


def draw(question: Question) -> dict[str, Figure]:
    """The figures that the masks allow: name -> figure."""
    masks, families = question.masks, question.families
    drawn = {
        "sparsity": curves.sparsity_per_layer(masks.kept, masks.directions),
        "overlap": curves.iou_over_layers(
            masks.kept, masks.directions, families=families, group=question.group
        ),
    }
    trees: dict[str, Tree | None] = {}
    for side in question.sides:
        chosen = question.compared(side)
        kept = masks.side(side)
        tree = _tree(
            chosen.distinct, torch.stack([chosen.language_iou(kept[layer]) for layer in kept]).mean(dim=0)
        )
        trees[side] = None if isinstance(tree, NothingToCompare) else tree
    drawn["dendrogram"] = curves.dendrograms(
        trees, families=families, title="Languages by the overlap of their sets, mean over layers"
    )
    if any(question.compared(side).rows for side in question.sides):
        drawn["iou"] = heatmap.layer_heatmaps(
            masks.kept, masks.directions, families=families, group=question.group
        )
    first_decoder_layer = next(iter(masks.side("decoder")), None)
    chosen = question.compared("decoder")
    if first_decoder_layer and chosen.rows:
        drawn["iou-first-decoder-layer"] = heatmap.iou_heatmap(
            pairwise_iou(masks.kept[first_decoder_layer][chosen.rows]),
            [masks.directions[row] for row in chosen.rows],
            first_decoder_layer,
            families=families,
            by=chosen.by,
        )
    return drawn


def _pairs_csv(question: Question) -> str:
    """IoU of every two directions in every layer, and whether the analysis compares them there."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("layer", "first", "second", "iou_percent", "compared"))
    directions = question.masks.directions
    first, second = torch.triu_indices(len(directions), len(directions), offset=1).tolist()
    for side in question.sides:
        rows = set(question.compared(side).rows)
        for layer, kept in question.masks.side(side).items():
            for a, b, iou in zip(first, second, off_diagonal(pairwise_iou(kept)).tolist(), strict=True):
                is_compared = a in rows and b in rows
                writer.writerow((layer, directions[a], directions[b], f"{100 * iou:.4f}", int(is_compared)))
    return text.getvalue()


# The page -------------------------------------------------------------------------------------


def as_markdown(found: Mapping[str, Any], made: Mapping[str, Any]) -> str:
    """The page ``analysis.md``.

    Args:
        found: what `analyze` returns.
        made: the signature.
    """
    parts = [
        "# Analysis of specialized neurons",
        _what_is_compared(found),
        "## Neurons dropped\n\n" + _dropped_table(found) + _image("sparsity", "Neurons dropped per layer"),
        "## Overlap of the sets\n\n"
        + _overlap_table(found)
        + _image("overlap", "IoU over layers, within and between families")
        + _heatmap_images(found),
        "## Languages by overlap\n\n"
        + _dendrogram_table(found)
        + _image("dendrogram", "Dendrograms of encoder and decoder"),
        "## Stability\n\n" + _stability_table(found["stability"]),
        "## How it was made\n\n" + _how(made),
    ]
    return "\n\n".join(parts) + "\n"


def _heatmap_images(found: Mapping[str, Any]) -> str:
    has_directions = {side: bool(own["compared"]["directions"]) for side, own in found["sides"].items()}
    text = ""
    if has_directions.get("decoder"):
        text += _image("iou-first-decoder-layer", "Pairwise IoU in the first decoder layer")
    if any(has_directions.values()):
        text += _image("iou", "Pairwise IoU in every layer")
    return text


def _image(name: str, caption: str) -> str:
    return f"\n\n![{caption}]({FIGURES}/{name}.png)"


def _what_is_compared(found: Mapping[str, Any]) -> str:
    lines = [f"{len(found['directions'])} directions: {', '.join(found['directions'])}.\n"]
    words = {**{group.key: group.text for group in GROUPS}, "all": "all directions"}
    for side, own in found["sides"].items():
        what = own["compared"]
        line = (
            f"- {side} layers: {len(what['languages'])} {what['languages_by']} languages of "
            f"{words[what['group']]} ({', '.join(what['languages']) or 'none'})"
        )
        if what["without_family"]:
            line += (
                f"; of unknown family, so in no comparison of families: {', '.join(what['without_family'])}"
            )
        if what["without_distance"]:
            line += f"; not in the family tree, so in no comparison of distances: {', '.join(what['without_distance'])}"
        lines.append(line)
    lines.append("\nA language that stands for several directions overlaps by the mean over their pairs.")
    return "\n".join(lines)


def _dropped_table(found: Mapping[str, Any]) -> str:
    rows: list[list[Cell]] = [
        [layer, own["neurons"], group, dropped["min"], dropped["mean"], dropped["max"]]
        for side in found["sides"].values()
        for layer, own in side["layers"].items()
        for group, dropped in own["dropped_percent"].items()
    ]
    return "Percent of neurons, over the directions of a group.\n\n" + markdown_table(
        ("layer", "neurons", "group", "least", "mean", "most"), rows
    )


def _overlap_table(found: Mapping[str, Any]) -> str:
    rows: list[list[Cell]] = []
    reasons: dict[str, None] = {}
    for side, own in found["sides"].items():
        for name, layer in {**own["layers"], f"{side}, mean": own["mean_over_layers"]}.items():
            iou, families, distances = layer["iou_percent"], layer["families"], layer["language_distances"]
            reasons |= dict.fromkeys(
                f"{name}, {what}: {part['reason']}"
                for what, part in (("IoU", iou), ("families", families), ("distances", distances))
                if part["reason"]
            )
            rows.append(
                [
                    name,
                    iou["mean"],
                    None if iou["mean"] is None else f"{iou['min']:.1f}-{iou['max']:.1f}",
                    families["within_percent"],
                    families["between_percent"],
                    _p(families),
                    _correlation(distances["correlation"]),
                    _p(distances),
                ]
            )
    header = ("layer", "IoU", "min-max", "within families", "between", "p", "correlation", "p")
    return (
        "Pairwise IoU of the kept neurons in percent. *Within families*, *between*: mean over pairs of languages; "
        "p: the share of all ways to deal the families out, or of random ones, that separate at least as well.\n"
        f"*Correlation*: Spearman's, of 1 - IoU with the distance between languages ({found['distances']}); "
        "positive where relatives share more; p by Mantel's test. Both tests are one-sided and not corrected for "
        "the number of layers.\n\n" + markdown_table(header, rows) + _not_computed(reasons)
    )


def _dendrogram_table(found: Mapping[str, Any]) -> str:
    rows: list[list[Cell]] = []
    reasons: dict[str, None] = {}
    for side, own in found["sides"].items():
        tree = own["dendrogram"]
        if tree["reason"]:
            rows.append([side, None, None, None])
            reasons[f"{side}: {tree['reason']}"] = None
            continue
        own_fit, distances = tree["cophenetic_correlation"], tree["language_distances"]
        rows.append(
            [side, _correlation(own_fit["value"]), _correlation(distances["correlation"]), _p(distances)]
        )
        reasons |= dict.fromkeys(
            f"{side}: {part['reason']}" for part in (own_fit, distances) if part["reason"]
        )
    header = ("side", "with 1 - IoU", "with distances of languages", "p")
    return (
        "Average linkage on 1 - IoU, mean over the layers of a side. How the distances in the dendrogram agree: "
        "with 1 - IoU, which they picture (cophenetic correlation, Pearson's); with the distances between languages "
        "(Spearman's, p by Mantel's test).\n\n" + markdown_table(header, rows) + _not_computed(reasons)
    )


def _stability_table(stability: Mapping[str, Any] | None) -> str:
    if stability is None:
        return "Not computed: needs profiles of the same checkpoint on other data (`--profile`)."
    names = list(stability["profiles"])
    short = {name: f"P{number}" for number, name in enumerate(names, start=1)}
    header = ["layer", *(f"masks, {short[name]}" for name in names)]
    for name in names[1:]:
        header += [f"P1, {short[name]}", f"other languages, P1, {short[name]}"]
    header += ["other languages, P1", "random sets"]
    rows: list[list[Cell]] = []
    for layer, own in stability["layers"].items():
        others = {name: other["mean"] for name, other in own["other_languages_percent"].items()}
        row: list[Cell] = [layer, *(own["with_masks_percent"][name]["mean_of_compared"] for name in names)]
        for name in names[1:]:
            row += [own["with_first_percent"][name]["mean_of_compared"], others[name]]
        rows.append([*row, others[names[0]], own["random_percent"]])
    profiles = [[short[name], name, *own.values()] for name, own in stability["profiles"].items()]
    text = (
        "Would other data have selected the same neurons? IoU in percent of the sets that two profiles give, "
        "selected as the masks were; mean over the directions compared. *Other languages*: the sets of different languages, from "
        "the two profiles, or from P1 alone. *Random sets*: the expected IoU of random sets of the sizes of P1's. "
        "Sets follow the language rather than the sample where two profiles agree far better on one language than "
        "they do across languages.\n\n"
        + markdown_table(header, rows)
        + "\n\n"
        + markdown_table(("", "profile", "part", "encoder tokens", "decoder tokens"), profiles)
    )
    if stability["are_split"]:
        text += "\n\n" + _split_text(stability, short)
    if len(names) == 1:
        text += "\n\nOne profile only: nothing to compare it with but the masks."
    return text


def _split_text(stability: Mapping[str, Any], short: Mapping[str, str]) -> str:
    parts = [Part.parse(own["part"]) for own in stability["profiles"].values()]
    kind = "split halves" if parts[0].of == 2 else f"parts of {parts[0].of}"
    means = [
        f"{side} {short[stability['first']]} with {short[name]} {'–' if mean is None else f'{mean:.1f}'}"
        for side, by_name in stability["mean_over_layers"].items()
        for name, mean in by_name.items()
    ]
    return (
        f"The profiles are {kind} of one set of sentences. IoU in percent, mean over layers: {', '.join(means)}. "
        "A part has fewer tokens than the whole, whose sets are steadier than this. The masks' own data may hold "
        "the parts' sentences; the parts share none."
    )


def _how(made: Mapping[str, Any]) -> str:
    inputs = markdown_table(
        ("made from", "sha256"), [[name, str(value)] for name, value in made["inputs"].items()]
    )
    parameters = ", ".join(
        f"{name} {value}" for name, value in made["parameters"].items() if not isinstance(value, Mapping)
    )
    versions = ", ".join(f"{name} {version}" for name, version in made["versions"].items())
    return (
        f"`neuron-spec analyze`, {parameters}. Numbers in full: `{ANALYSIS_JSON}`; every pair of directions: "
        f"`{PAIRS_CSV}`.\n\n{inputs}\n\nVersions: {versions}."
    )


def _not_computed(reasons: Mapping[str, None]) -> str:
    """Reasons that several lines share are said once."""
    if not reasons:
        return ""
    where: dict[str, list[str]] = {}
    for reason in reasons:
        place, _, text = reason.partition(": ")
        where.setdefault(text, []).append(place)
    return "\n\nNot computed:\n\n" + "\n".join(
        f"- {text} ({', '.join(places) if len(places) < 5 else f'{len(places)} lines'})"
        for text, places in where.items()
    )


def _p(test: Mapping[str, Any]) -> Cell:
    if test["p"] is None:
        return None
    return f"{test['p']:.4f}" if test["is_exact"] else f"{test['p']:.4f} (random)"


def _correlation(value: float | None) -> Cell:
    return None if value is None else f"{value:.2f}"
