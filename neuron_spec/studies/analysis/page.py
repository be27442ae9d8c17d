"""An analysis's folder and page: overlap of the sets, families, dendrograms, stability."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from matplotlib.figure import Figure

from neuron_spec.directions import GROUPS
from neuron_spec.neurons.choices import Part
from neuron_spec.neurons.masks import NeuronMasks
from neuron_spec.neurons.overlap import Tree, adjusted_iou, chance_iou, off_diagonal, pairwise_iou
from neuron_spec.pages import curves, heatmap
from neuron_spec.pages.page import (
    FIGURES,
    Block,
    Bullets,
    Paragraph,
    Picture,
    Section,
    Table,
    not_computed,
    plain,
)
from neuron_spec.pages.study_page import FAMILY_P, StudyPage, p_of
from neuron_spec.pages.tables import Cell, shown_p
from neuron_spec.scoring.comparison_files import spread
from neuron_spec.statistics import NothingToCompare, OverSeeds
from neuron_spec.studies.analysis.measure import Question, analyze

CAPTIONS = {
    "sparsity": "Neurons dropped per layer, of each group of directions",
    "overlap": "IoU of the sets per layer with its chance level, and adjusted for it, within and between families",
    "dendrogram": "Languages by the overlap of their sets, mean over layers",
    "iou": "Pairwise IoU in every layer, languages ordered by family",
    "iou-first-decoder-layer": "Pairwise IoU in the first decoder layer",
}


# Cells of a heat map that all layers have side by side, such as 24 layers of 100 directions: beyond it none can be told
# from another, and the picture takes minutes and gigabytes.
MOST_CELLS = 240_000


def write_analysis(
    folder: Path, question: Question, again: Mapping[str, NeuronMasks], made: Mapping[str, Any]
) -> Path:
    """Write figures, ``iou.csv``, ``analysis.md`` and, last, ``analysis.json``: the mark of completeness.

    Args:
        again: what `select_from_profiles` returns.
        made: the signature.
    """
    return PAGE.write(folder, analyze(question, again), made, draw(question), _pairs_csv(question))


def draw(question: Question, names: Iterable[str] = tuple(CAPTIONS)) -> dict[str, Figure]:
    """Those of the figures that the masks allow: name -> figure."""
    masks, families = question.masks, question.families
    decoder, first = question.compared("decoder"), next(iter(masks.side("decoder")), None)
    makers: dict[str, Callable[[], Figure]] = {
        "sparsity": lambda: curves.sparsity_per_layer(masks),
        "overlap": lambda: curves.iou_over_layers(masks, families=families, group=question.group),
        "dendrogram": lambda: curves.dendrograms(
            {side: _tree(question, side) for side in question.sides},
            families=families,
            title=CAPTIONS["dendrogram"],
        ),
    }
    shapes = [(len(masks.side(side)), len(question.compared(side).rows)) for side in question.sides]
    if 0 < _cells(shapes) <= MOST_CELLS:
        makers["iou"] = lambda: heatmap.layer_heatmaps(masks, families=families, group=question.group)
    if first and decoder.rows:
        makers["iou-first-decoder-layer"] = lambda: heatmap.iou_heatmap(
            pairwise_iou(masks.kept[first][decoder.rows]),
            [masks.directions[row] for row in decoder.rows],
            first,
            families=families,
            by=decoder.by,
        )
    return {name: makers[name]() for name in names if name in makers}


def _tree(question: Question, side: str) -> Tree | None:
    try:
        return question.tree(side)
    except NothingToCompare:
        return None


def _pairs_csv(question: Question) -> str:
    """IoU of every two directions in every layer, its chance level, adjusted IoU, empty where it is unknown, and
    whether the analysis compares them there."""
    directions = question.masks.directions
    first, second = (of.tolist() for of in torch.triu_indices(len(directions), len(directions), offset=1))
    header = "layer,first,second,iou_percent,chance_percent,adjusted_iou_percent,compared\n"
    layers = [header]
    # Millions of lines: names and numbers need no quotes, and a layer's lines are kept as one text.
    for side in question.sides:
        rows = set(question.compared(side).rows)
        pairs = [
            (f"{directions[a]},{directions[b]}", int({a, b} <= rows))
            for a, b in zip(first, second, strict=True)
        ]
        for layer, kept in question.masks.side(side).items():
            iou, chance, adjusted = (
                (100 * off_diagonal(of(kept))).tolist() for of in (pairwise_iou, chance_iou, adjusted_iou)
            )
            layers.append(
                "".join(
                    f"{layer},{names},{one:.4f},{at_random:.4f},{'' if known != known else f'{known:.4f}'},{is_compared}\n"
                    for (names, is_compared), one, at_random, known in zip(
                        pairs, iou, chance, adjusted, strict=True
                    )
                )
            )
    return "".join(layers)


def _show(content: Mapping[str, Any], pictures: Mapping[str, Picture]) -> Section:
    def section(title: str, blocks: Sequence[Block], *figures: str) -> Section:
        return Section(title, [*blocks, *(pictures[name] for name in figures if name in pictures)])

    directions = content["directions"]
    dropped: list[Block] = [
        Paragraph("Percent of neurons, over the directions of a group."),
        dropped_table([content]),
    ]
    return Section(
        "",
        [
            Paragraph(f"{len(directions)} directions: {plain(', '.join(directions))}."),
            *what_is_compared(content),
        ],
        [
            section("Neurons dropped", dropped, "sparsity"),
            section(
                "Overlap of the sets",
                [*overlap_blocks([content]), *left_out(content)],
                "overlap",
                "iou-first-decoder-layer",
                "iou",
            ),
            section("Languages by overlap", _dendrograms(content["sides"]), "dendrogram"),
            section("Stability", _stability(content["stability"])),
        ],
    )


def _cells(shapes: Iterable[tuple[int, int]]) -> int:
    """Of the heat maps of all layers, given how many layers and compared directions each side has."""
    return sum(layers * directions**2 for layers, directions in shapes)


def left_out(content: Mapping[str, Any]) -> list[Block]:
    """That there are no heat maps of all layers, where they would have too many cells."""
    shapes = [(len(of["layers"]), len(of["compared"]["directions"])) for of in content["sides"].values()]
    if _cells(shapes) <= MOST_CELLS:
        return []
    layers, most = sum(layers for layers, _ in shapes), max(directions for _, directions in shapes)
    return [
        Paragraph(
            f"No heat maps of all layers: {layers} of up to {most} directions would be too small to be read. "
            f"`{PAGE.csv}` has every pair in every layer."
        )
    ]


def what_is_compared(content: Mapping[str, Any]) -> list[Block]:
    """Which languages of which directions the overlap of each side is between."""
    names = {**{group.key: group.text for group in GROUPS}, "all": "all directions"}
    lines = []
    for side, of_side in content["sides"].items():
        what = of_side["compared"]
        line = (
            f"{side} layers: {len(what['languages'])} {what['languages_by']} languages of {names[what['group']]} "
            f"({', '.join(what['languages']) or 'none'})"
        )
        for key, missing in (
            ("without_family", "of unknown family, so in no comparison of families"),
            ("without_distance", "not in the family tree, so in no comparison of distances"),
        ):
            if what[key]:
                line += f"; {missing}: {', '.join(what[key])}"
        lines.append(plain(line))
    text = "A language that stands for several directions overlaps by the mean over their pairs."
    return [Bullets(lines), Paragraph(text)]


# What of several analyses alike, such as of the seeds of a run, stands in one table -----------

Analyses = Sequence[Mapping[str, Any]]


def dropped_table(analyses: Analyses) -> Table:
    """Percent of neurons that each group of directions drops, over directions and seeds."""
    rows: list[list[Cell]] = []
    for layer, seeds in _layers(analyses).items():
        for group in seeds[0].get("dropped_percent", ()):
            of = [seed["dropped_percent"][group] for seed in seeds]
            least, most = min(d["min"] for d in of), max(d["max"] for d in of)
            rows.append([layer, seeds[0]["neurons"], group, least, fmean(d["mean"] for d in of), most])
    return Table(("layer", "neurons", "group", "least", "mean", "most"), rows)


def overlap_blocks(analyses: Analyses) -> list[Block]:
    """How far the sets overlap in each layer, and with what: means over seeds, a p and a correlation for each."""

    def mean(parts: Sequence[Mapping[str, Any]], key: str) -> Cell:
        values = known(parts, key)
        return spread(OverSeeds.of(values)) if values else None

    def each(parts: Sequence[Mapping[str, Any]], key: str, show: Callable[[float], str]) -> Cell:
        return ", ".join(map(show, known(parts, key))) or None

    how_far: list[list[Cell]] = []
    by_family: list[list[Cell]] = []
    by_distance: list[list[Cell]] = []
    reasons: list[tuple[str, str | None]] = []
    for name, seeds in _layers(analyses).items():
        chance = [seed.get("chance_percent", _EARLIER) for seed in seeds]
        how_far.append([name])
        by_family.append([name])
        by_distance.append([name])
        for what, measured in (("", seeds), ("adjusted ", [seed.get("adjusted", {}) for seed in seeds])):
            iou, families, distances = (
                [of.get(part, _EARLIER) for of in measured]
                for part in ("iou_percent", "families", "language_distances")
            )
            parts = ((f"{what}IoU", iou), ("families", families), ("distances", distances))
            reasons += [(f"{name}, {part}", one["reason"]) for part, each_seed in parts for one in each_seed]
            least, most = known(iou, "min"), known(iou, "max")
            how_far[-1] += [mean(iou, "mean"), f"{min(least):.1f} to {max(most):.1f}" if least else None]
            how_far[-1] += [] if what else [mean(chance, "mean")]
            by_family[-1] += [mean(families, "within_percent"), mean(families, "between_percent")]
            by_family[-1] += [each(families, "p", shown_p)]
            by_distance[-1] += [
                each(distances, "correlation", "{:.2f}".format),
                each(distances, "p", shown_p),
            ]
    return [
        Paragraph(
            "Pairwise IoU of the kept neurons in percent. *Chance level*: that of random sets of these sizes, which grows "
            "with what they keep. *Adjusted IoU*: (IoU - chance level) / (1 - chance level), 0 for random sets, 100 for "
            "equal ones. IoU alone says nothing about layers or settings that keep different numbers of neurons: it "
            "falls where the sets get smaller, and adjusted IoU need not."
        ),
        Table(("layer", "IoU", "least to most", "chance level", "adjusted IoU", "least to most"), how_far),
        Paragraph(f"*Within families*, *between*: mean over pairs of languages; {FAMILY_P}"),
        Table(
            (
                "layer",
                *(
                    f"{what}, {column}"
                    for what in _MEASURES
                    for column in ("within families", "between", "p")
                ),
            ),
            by_family,
        ),
        Paragraph(
            "*Correlation*: Spearman's, of 1 - IoU, or 1 - adjusted IoU, with the distance between languages "
            f"({analyses[0]['distances']}); positive where relatives share more; p by Mantel's test. All these tests are "
            "one-sided and not corrected for the number of layers."
        ),
        Table(
            ("layer", *(f"{what}, {column}" for what in _MEASURES for column in ("correlation", "p"))),
            by_distance,
        ),
        *not_computed(reasons),
    ]


_MEASURES = ("IoU", "adjusted IoU")
# What no analysis had before chance levels.
_EARLIER = {"reason": "not in this analysis, by an earlier version: analyze into a new folder"}


def known(parts: Sequence[Mapping[str, Any]], key: str) -> list[float]:
    """A number of each seed; none of those where it cannot be computed."""
    return [part[key] for part in parts if part["reason"] is None]


def _layers(analyses: Analyses) -> dict[str, list[Mapping[str, Any]]]:
    """Layer -> what stands of it in each analysis; the mean over a side's layers follows them."""
    layers: dict[str, list[Mapping[str, Any]]] = {}
    for side, of_side in analyses[0]["sides"].items():
        for layer in of_side["layers"]:
            layers[layer] = [of["sides"][side]["layers"][layer] for of in analyses]
        layers[f"{side}, mean"] = [of["sides"][side]["mean_over_layers"] for of in analyses]
    return layers


def _dendrograms(sides: Mapping[str, Any]) -> list[Block]:
    rows: list[list[Cell]] = []
    reasons: list[tuple[str, str | None]] = []
    for side, of in sides.items():
        tree = of["dendrogram"]
        reasons.append((side, tree["reason"]))
        row: list[Cell] = [side, None, None, None]
        if not tree["reason"]:
            fit, distances = tree["cophenetic_correlation"], tree["language_distances"]
            reasons += [(side, part["reason"]) for part in (fit, distances)]
            values = (fit["value"], distances["correlation"])
            row = [side, *(None if value is None else f"{value:.2f}" for value in values), p_of(distances)]
        rows.append(row)
    text = (
        "Average linkage on 1 - IoU, mean over the layers of a side. How the distances in the dendrogram agree: with "
        "1 - IoU, which they picture (cophenetic correlation, Pearson's); with the distances between languages "
        "(Spearman's, p by Mantel's test)."
    )
    header = ("side", "with 1 - IoU", "with distances of languages", "p")
    return [Paragraph(text), Table(header, rows), *not_computed(reasons)]


def _stability(stability: Mapping[str, Any] | None) -> list[Block]:
    if stability is None:
        return [Paragraph("Not computed: needs profiles of the same checkpoint on other data (`--profile`).")]
    first, *later = names = list(stability["profiles"])
    short = {name: f"P{number}" for number, name in enumerate(names, start=1)}
    header = ["layer", *(f"masks, {short[name]}" for name in names)]
    for name in later:
        header += [f"P1, {short[name]}", f"other languages, P1, {short[name]}"]
    rows: list[list[Cell]] = []
    for layer, of in stability["layers"].items():
        others = {name: other["mean"] for name, other in of["other_languages_percent"].items()}
        row: list[Cell] = [layer, *(of["with_masks_percent"][name]["mean_of_compared"] for name in names)]
        for name in later:
            row += [of["with_first_percent"][name]["mean_of_compared"], others[name]]
        rows.append([*row, others[first], of["random_percent"]])
    blocks: list[Block] = [
        Paragraph(
            "Would other data have selected the same neurons? IoU in percent of the sets that two profiles give, "
            "selected as the masks were; mean over the directions compared. *Other languages*: the sets of different "
            "languages, from the two profiles, or from P1 alone. *Chance level*: of random sets of the sizes of "
            "P1's. Sets follow the language rather than the sample where two profiles agree far better on one "
            "language than they do across languages."
        ),
        Table((*header, "other languages, P1", "chance level"), rows),
        Table(
            ("", "profile", "part", "encoder tokens", "decoder tokens"),
            [[short[name], name, *of.values()] for name, of in stability["profiles"].items()],
        ),
    ]
    if stability["are_split"]:
        of = Part.parse(stability["profiles"][first]["part"]).of
        means = [
            f"{side} P1 with {short[name]} {'–' if mean is None else f'{mean:.1f}'}"
            for side, by_name in stability["mean_over_layers"].items()
            for name, mean in by_name.items()
        ]
        text = (
            f"The profiles are {'split halves' if of == 2 else f'parts of {of}'} of one set of sentences. IoU in percent, "
            f"mean over layers: {', '.join(means)}. A part has fewer tokens than the whole, whose sets are steadier than "
            "this. The masks' own data may hold the parts' sentences; the parts share none."
        )
        blocks.append(Paragraph(text))
    if not later:
        blocks.append(Paragraph("One profile only: nothing to compare it with but the masks."))
    return blocks


PAGE = StudyPage(
    name="analysis",
    title="Analysis of specialized neurons",
    csv="iou.csv",
    csv_holds="pair of directions",
    show=_show,
    captions=CAPTIONS,
    figures=FIGURES,
)
