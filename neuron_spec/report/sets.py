"""The sets of a run: how sparse they are and how far they overlap, with the numbers of `studies.analysis`."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import torch

from neuron_spec.directions import UNKNOWN
from neuron_spec.neurons.choices import METHODS
from neuron_spec.pages.page import Block, Paragraph, Picture, Section, Table, not_computed, plain
from neuron_spec.pages.style import drawn
from neuron_spec.pages.tables import Cell, counted, shown_p
from neuron_spec.report.run_folder import Run, Seed
from neuron_spec.report.scores import mean_score
from neuron_spec.studies.analysis.measure import Question, overlap_and_families
from neuron_spec.studies.analysis.page import CAPTIONS, draw

_InSeeds = Sequence[Mapping[str, Any]]  # of a layer: `overlap_and_families` in each seed


def sparsity(run: Run) -> Section:
    metadata = run.seeds[0].masks.metadata
    method = str(metadata.get("method", UNKNOWN))
    ks = sorted({k for side in metadata.get("k_percent", {}).values() for k in side.values()})
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
            *_figures(run, run.seeds[0], "sparsity"),
        ],
    )


def overlap(run: Run) -> Section:
    first, *later = run.seeds
    question = _question(run, first)
    layers = {layer: [_of_layer(run, seed, layer) for seed in run.seeds] for layer in first.masks.layers}
    shown = {layer: of for layer, of in layers.items() if of[0]["iou_percent"]["mean"] is not None}
    blocks: list[Block] = [Paragraph(_words(run, shown)), _table(shown)] if shown else []
    blocks += not_computed(
        (layer.partition(".")[0], part["reason"])
        for layer, of in layers.items()
        for parts in of
        for part in parts.values()
    )
    if any(len(question.compared(side).rows) > 1 for side in question.sides):
        blocks += _figures(run, first, "overlap")
        for seed in later:
            blocks += _figures(run, seed, "overlap")
        blocks += _figures(run, first, "dendrogram", "iou")
    return Section("Overlap of the sets", blocks)


def of_first_seed(run: Run) -> str:
    """What a caption says besides, where there are others."""
    return f"; seed {run.seeds[0].number}" if len(run.seeds) > 1 else ""


def _question(run: Run, seed: Seed) -> Question:
    return Question(seed.masks, families=run.families)


def _figures(run: Run, seed: Seed, *names: str) -> list[Picture]:
    is_first = seed is run.seeds[0]
    end, of = ("", of_first_seed(run)) if is_first else (f"-seed-{seed.number}", f"; seed {seed.number}")
    figures = draw(_question(run, seed), names)
    return [drawn(f"{name}{end}", f"{CAPTIONS[name]}{of}", figure) for name, figure in figures.items()]


def _of_layer(run: Run, seed: Seed, layer: str) -> Mapping[str, Any]:
    question = _question(run, seed)
    chosen = question.compared(layer.partition(".")[0])
    return overlap_and_families(question, chosen.distinct, chosen.language_iou(seed.masks.kept[layer]))


def _values(of: _InSeeds, part: str, key: str) -> list[float]:
    """In each seed; none where it cannot be computed."""
    return [parts[part][key] for parts in of if parts[part]["reason"] is None]


def _words(run: Run, layers: Mapping[str, _InSeeds]) -> str:
    text = (
        "Pairwise IoU of the sets in percent: encoder layers by source language over directions into English, decoder "
        "layers by target language over directions out of it; where there are not two such, over all. "
    )
    by_layer = {layer: _values(of, "families", "difference_percent") for layer, of in layers.items()}
    differences = {layer: fmean(values) for layer, values in by_layer.items() if values}
    if not differences:
        return text
    text += (
        f"Languages of one family overlap more than others in {sum(value > 0 for value in differences.values())} of "
        f"{counted(len(differences), 'layer')}; the difference is {min(differences.values()):+.1f} to "
        f"{max(differences.values()):+.1f} points. p: how often families dealt out otherwise separate at least as well"
    )
    smallest = max(_smallest_p(run, layer, layers[layer][0]["families"]) for layer in differences)
    if smallest > 0.001:
        return f"{text}; with so few languages it cannot be below {smallest:.3f}."
    return f"{text}. One-sided, not adjusted for the number of layers."


def _smallest_p(run: Run, layer: str, test: Mapping[str, Any]) -> float:
    """That of the true families: relabellings that only swap families of one size do as well as they."""
    if not test["is_exact"]:
        return 1 / (1 + test["relabellings"])
    codes = _question(run, run.seeds[0]).compared(layer.partition(".")[0]).distinct
    families = [run.family(code) for code in codes]
    sizes = Counter(Counter(name for name in families if name != UNKNOWN).values())
    return math.prod(map(math.factorial, sizes.values())) / test["relabellings"]


def _table(layers: Mapping[str, _InSeeds]) -> Table:
    rows: list[list[Cell]] = []
    for layer, of in layers.items():
        difference = _values(of, "families", "difference_percent")
        rows.append(
            [
                layer,
                mean_score(_values(of, "iou_percent", "mean")),
                mean_score(_values(of, "families", "within_percent")),
                mean_score(_values(of, "families", "between_percent")),
                f"{fmean(difference):+.1f}" if difference else None,
                ", ".join(map(shown_p, _values(of, "families", "p"))) or None,
            ]
        )
    return Table(("layer", "IoU", "within families", "between families", "difference", "p"), rows)
