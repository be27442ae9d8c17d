"""The sets: how sparse they are, how far they overlap, and what a direction loses without them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from statistics import fmean

import torch

from neuron_spec.directions import UNKNOWN
from neuron_spec.neurons.choices import METHODS
from neuron_spec.neurons.overlap import cluster, compared, mean_off_diagonal
from neuron_spec.pages import curves, heatmap
from neuron_spec.pages.page import Block, Bullets, Paragraph, Section, Table, plain
from neuron_spec.pages.style import drawn
from neuron_spec.pages.tables import Cell
from neuron_spec.report.run_folder import Run
from neuron_spec.report.words import counted, mean_score, of_first_seed, p_value
from neuron_spec.statistics import NothingToCompare, PermutationTest, family_contrast, permutation_test

_TEST_SEED = 1  # of random relabellings


def sparsity(run: Run) -> Section:
    made = run.seeds[0].masks.metadata
    method = str(made.get("method", UNKNOWN))
    ks = sorted({k for side in made.get("k_percent", {}).values() for k in side.values()})
    text = f"Sets by *{plain(method)}*: {METHODS.get(method, 'not made by neuron-spec select')}"
    text += f"; k = {', '.join(f'{k:g}' for k in ks)}. " if ks else ". "
    rows: list[list[Cell]] = []
    for layer, width in run.seeds[0].masks.widths.items():
        dropped = 100 * torch.cat([seed.masks.sparsity()[layer] for seed in run.seeds])
        rows.append([layer, width, *map(float, (dropped.min(), dropped.mean(), dropped.max()))])
    if all(row[-1] == 0 for row in rows):
        text += "No direction drops any neuron: specialization changes nothing here. "
    over = "directions and seeds" if len(run.seeds) > 1 else "directions"
    return Section(
        "Specialized neurons",
        [
            Paragraph(f"{text}The table has the neurons dropped in percent, over {over}."),
            Table(("layer", "neurons", "least dropped", "mean", "most"), rows),
            drawn(
                "sparsity",
                f"Neurons dropped per layer, of each group of directions{of_first_seed(run)}",
                curves.sparsity_per_layer(run.seeds[0].masks.kept, run.seeds[0].masks.directions),
            ),
        ],
    )


def overlap(run: Run) -> Section:
    first = run.seeds[0].masks
    blocks: list[Block] = []
    reasons: list[str] = []
    rows = list(_overlap_rows(run, reasons))
    if rows:
        blocks += [Paragraph(_overlap_words(rows)), _overlap_table(run, rows)]
    blocks += [Bullets(list(dict.fromkeys(reasons)))] if reasons else []
    families = run.families
    if any(len(compared(side, first.directions).rows) > 1 for side in _sides(run)):
        for seed in run.seeds:
            name = "overlap" if seed is run.seeds[0] else f"overlap-seed-{seed.number}"
            of = f", seed {seed.number}" if len(run.seeds) > 1 else ""
            figure = curves.iou_over_layers(seed.masks.kept, seed.masks.directions, families=families)
            blocks.append(
                drawn(name, f"Overlap (IoU) per layer, within and between language families{of}", figure)
            )
        blocks += _dendrograms(run)
        blocks.append(
            drawn(
                "iou",
                f"Pairwise overlap (IoU) in every layer, languages ordered by family{of_first_seed(run)}",
                heatmap.layer_heatmaps(first.kept, first.directions, families=families),
            )
        )
    return Section("Overlap of the sets", blocks)


class _LayerOverlap:
    """A layer's overlap over the seeds: IoU of languages in percent, and the test of families in each seed."""

    def __init__(self, layer: str) -> None:
        self.layer = layer
        self.mean: list[float] = []
        self.within: list[float] = []
        self.between: list[float] = []
        self.tests: list[PermutationTest] = []
        self.families: list[str] = []

    @property
    def differences(self) -> list[float]:
        return [within - between for within, between in zip(self.within, self.between, strict=True)]


def _overlap_rows(run: Run, reasons: list[str]) -> Iterator[_LayerOverlap]:
    """Layers with two languages or more; ``reasons`` gets why others, or tests of families, are missing."""
    for layer in run.seeds[0].masks.layers:
        row = _LayerOverlap(layer)
        for seed in run.seeds:
            side = layer.partition(".")[0]
            chosen = compared(side, seed.masks.directions)
            iou = chosen.language_iou(seed.masks.kept[layer])
            row.families = [run.family(code) for code in chosen.distinct]
            try:
                row.mean.append(100 * mean_off_diagonal(iou))
                within, between = family_contrast(iou, row.families)
                row.tests.append(permutation_test(iou, row.families, seed=_TEST_SEED))
                row.within.append(100 * within)
                row.between.append(100 * between)
            except NothingToCompare as nothing:
                lines = [line.strip() for line in str(nothing).splitlines() if "mend:" not in line]
                reasons.append(f"Not computed for the {side}: {plain('; '.join(lines))}.")
        if row.mean:
            yield row


def _overlap_words(rows: Sequence[_LayerOverlap]) -> str:
    text = (
        "Pairwise IoU of the sets in percent: encoder layers by source language over directions into English, decoder "
        "layers by target language over directions out of it; where there are not two such, over all. "
    )
    tested = [row for row in rows if row.tests]
    if not tested:
        return text
    differences = [fmean(row.differences) for row in tested]
    more = sum(value > 0 for value in differences)
    text += (
        f"Languages of one family overlap more than others in {more} of {counted(len(tested), 'layer')}; the difference "
        f"is {min(differences):+.1f} to {max(differences):+.1f} points. p: how often families dealt out otherwise separate "
        "at least as well"
    )
    smallest = max(_smallest_p(row) for row in tested)
    return text + (
        f"; with so few languages it cannot be below {smallest:.3f}."
        if smallest > 0.001
        else ". One-sided, not adjusted for the number of layers."
    )


def _smallest_p(row: _LayerOverlap) -> float:
    """That of the true families: relabellings that only swap families of one size do as well as they."""
    test = row.tests[0]
    if not test.is_exact:
        return 1 / (1 + test.relabellings)
    sizes = Counter(Counter(name for name in row.families if name != UNKNOWN).values())
    return math.prod(map(math.factorial, sizes.values())) / test.relabellings


def _overlap_table(run: Run, rows: Sequence[_LayerOverlap]) -> Table:
    return Table(
        ("layer", "IoU", "within families", "between families", "difference", "p"),
        [
            [
                row.layer,
                mean_score(row.mean),
                mean_score(row.within),
                mean_score(row.between),
                f"{fmean(row.differences):+.1f}" if row.tests else None,
                ", ".join(p_value(test.p) for test in row.tests) or None,
            ]
            for row in rows
        ],
    )


def _dendrograms(run: Run) -> list[Block]:
    masks = run.seeds[0].masks
    trees = {}
    for side in _sides(run):
        chosen = compared(side, masks.directions)
        iou = torch.stack([chosen.language_iou(kept) for kept in masks.side(side).values()]).mean(dim=0)
        trees[side] = cluster(iou, chosen.distinct) if len(chosen.distinct) > 1 else None
    caption = f"Languages by the overlap of their sets, mean over layers{of_first_seed(run)}"
    title = "Languages by the overlap of their sets"
    return [drawn("dendrogram", caption, curves.dendrograms(trees, families=run.families, title=title))]


def _sides(run: Run) -> list[str]:
    return list(dict.fromkeys(layer.partition(".")[0] for layer in run.seeds[0].masks.layers))
