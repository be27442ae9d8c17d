"""Gradient conflict: numbers, tables, page and figures.

Pairs of directions are compared by kind, as `neurons.pairs` has them. What cannot be computed is None, with the
reason beside it.

Axis letters: D directions, G = 2 D gradients: two halves of each direction, neighbours in that order.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from neuron_spec.artifacts import (
    CONFLICT,
    CONFLICT_LAYERS,
    read_json,
    recorded_command,
    write_json,
    write_text,
)
from neuron_spec.neurons.pairs import Compared
from neuron_spec.pages import style
from neuron_spec.pages.heatmap import direction_maps, layer_grids
from neuron_spec.pages.page import Block, Paragraph, Section, Table, again, left_in
from neuron_spec.pages.pairs import (
    FAMILY_HEADER,
    families_table,
    family_cells,
    how,
    mean_known,
    overlap_table,
    plain_values,
    square_table,
)
from neuron_spec.pages.tables import Cell as TableCell
from neuron_spec.pages.tables import markdown_table, percent, signed
from neuron_spec.studies.conflict.measure import OTHER, PARTS, SHARED, Cell

CONFLICT_JSON = f"{CONFLICT}.json"
CONFLICT_CSV = f"{CONFLICT}.csv"
CONFLICT_TABLE = f"{CONFLICT}.md"
CONFLICT_FIGURES = (CONFLICT, CONFLICT_LAYERS)

ALL = "all parameters"
# Below this cosine of a direction's own halves, dividing by it would show little but noise.
LEAST_SPLIT_HALF = 0.2


# Cosines --------------------------------------------------------------------------------------


def cosines(products: Tensor, tokens: Tensor) -> Tensor:
    """Cosines of the directions' gradients over all their text.

    Args:
        products: float64 `[G, G]`, inner products of the halves' mean gradients.
        tokens: `[D, 2]`, target tokens of the halves.

    Returns:
        float64 `[D, D]`; NaN where a gradient is zero.
    """
    d = len(tokens)
    share = tokens.double() / tokens.double().sum(dim=1, keepdim=True)
    four = products.reshape(d, 2, d, 2)
    return _normalized(torch.einsum("ia,iajb,jb->ij", share, four, share))


def across_halves(products: Tensor) -> Tensor:
    """Cosines between one direction's first half and another's second, mean of both ways, float64 `[D, D]`.

    On the diagonal the split-half cosine: what a direction reaches with itself on so much other text. Where
    directions are given in the same order of sentences, the halves share no sentence, so that noise is not
    shared either. NaN where a gradient is zero.
    """
    cosine = _normalized(products)
    return (cosine[0::2, 1::2] + cosine[0::2, 1::2].T) / 2


def disattenuated(products: Tensor) -> Tensor:
    """Cosines of the gradients on endless text, as estimated from the halves; float64 `[D, D]`.

    Spearman's correction: the cosine across halves over the geometric mean of the two split-half cosines. It may
    exceed 1. NaN where a split-half cosine is below `LEAST_SPLIT_HALF`: there the divisor itself is noise.
    """
    across = across_halves(products)
    own = across.diagonal()
    own = own.where(own >= LEAST_SPLIT_HALF, torch.nan)
    return across / (own[:, None] * own).sqrt()


def _normalized(products: Tensor) -> Tensor:
    lengths = products.diagonal().sqrt()
    return products / (lengths[:, None] * lengths)  # 0 / 0: NaN


def groups_of(cells: Sequence[Cell]) -> dict[str, list[Cell]]:
    """Name of a group -> its cells: all, sides, sides' parts, layers, and parts of layers."""
    groups: dict[str, list[Cell]] = {ALL: list(cells)}
    for cell in cells:
        layer = None if cell.layer is None else f"{cell.side}.layers.{cell.layer}"
        side = None if cell.side == SHARED else cell.side
        for name in dict.fromkeys((side, f"{cell.side} {cell.part}", layer, str(cell))):
            if name is not None:
                groups.setdefault(name, []).append(cell)
    return groups


@dataclass(frozen=True)
class Conflict:
    """The gradients of one checkpoint.

    Attributes:
        products: cell -> float64 `[G, G]`.
        tokens: int64 `[D, 2]`, target tokens of each direction's halves.
        parameters: how many each cell has.
    """

    products: Mapping[Cell, Tensor]
    tokens: Tensor
    parameters: Mapping[Cell, int]

    def of(self, cells: Sequence[Cell]) -> Tensor:
        """Products over a group of cells, float64 `[G, G]`."""
        return torch.stack([self.products[cell] for cell in cells]).sum(dim=0)


def summarize_conflict(compared: Compared, conflict: Conflict, *, seed: int) -> dict[str, Any]:
    """What stands in ``conflict.json`` of one checkpoint."""
    names = compared.names
    groups = {
        name: _conflict_group(compared, conflict, cells, seed)
        for name, cells in groups_of(list(conflict.products)).items()
    }
    products = conflict.of(list(conflict.products))
    return {
        "tokens": dict(zip(names, conflict.tokens.sum(dim=1).tolist(), strict=True)),
        "cosine": square_table(names, cosines(products, conflict.tokens)),
        "split_half": dict(zip(names, plain_values(across_halves(products).diagonal()), strict=True)),
        "groups": groups,
        "overlap": compared.overlap_tests(cosines(products, conflict.tokens), seed),
    }


def _conflict_group(
    compared: Compared, conflict: Conflict, cells: Sequence[Cell], seed: int
) -> dict[str, Any]:
    products = conflict.of(cells)
    cosine, across, corrected = (
        cosines(products, conflict.tokens),
        across_halves(products),
        disattenuated(products),
    )
    kinds = {}
    for words, pairs in compared.pairs().items():
        is_member = pairs.any(dim=1)
        founded = corrected[pairs & ~corrected.isnan()]
        kinds[words] = {
            "mean": mean_known(cosine[pairs]),
            "conflict_fraction": mean_known(
                (cosine[pairs] < 0).double().where(~cosine[pairs].isnan(), torch.nan)
            ),
            "across_halves": mean_known(across[pairs]),
            "split_half": mean_known(across.diagonal()[is_member]),
            "disattenuated": mean_known(founded),
            "disattenuated_pairs": len(founded) // 2,
            "pairs": int(pairs.sum()) // 2,
        }
    return {
        "parameters": sum(conflict.parameters[cell] for cell in cells),
        "kinds": kinds,
        "families": compared.family_tests(cosine, seed),
    }


def write_conflict(
    folder: Path, compared: Compared, conflicts: Mapping[str, Conflict], made: Mapping[str, Any], *, seed: int
) -> None:
    """Write ``conflict.csv``, ``.md``, the figures and, last, ``conflict.json``.

    Args:
        conflicts: name of a checkpoint -> its gradients, in the order of the panels.
        made: the signature.
    """
    found = {name: summarize_conflict(compared, one, seed=seed) for name, one in conflicts.items()}
    matrix = direction_maps(
        {
            name: cosines(one.of(list(one.products)), one.tokens).fill_diagonal_(torch.nan)
            for name, one in conflicts.items()
        },
        compared.directions,
        compared.family_of,
        title="Cosine of the gradients of two directions",
        label="cosine (below 0: conflict)",
        rows="",
        columns="",
    )
    grid = layer_grids(
        {
            f"{name}, {kind}" if len(found) > 1 else kind: _grid(own, kind)
            for name, own in found.items()
            for kind in compared.pairs()
        },
        title="Mean cosine of pairs of directions, by layer",
        panels=len(compared.pairs()),  # a line per checkpoint
    )
    for name, figure in zip(CONFLICT_FIGURES, (matrix, grid), strict=True):
        for kind in ("png", "svg"):
            style.save(figure, folder / f"{name}.{kind}")
    write_text(folder / CONFLICT_CSV, conflict_csv(compared, conflicts))
    write_text(folder / CONFLICT_TABLE, conflict_markdown(found, made))
    write_json(folder / CONFLICT_JSON, {"signature": dict(made), "checkpoints": found})


def _grid(found: Mapping[str, Any], kind: str) -> dict[tuple[str, str], float | None]:
    """(Layer, part) -> mean cosine over the pairs of a kind; embeddings stand beside the layers."""
    order = [*PARTS, OTHER]
    cells = [(Cell.parse(name), group["kinds"][kind]) for name, group in found["groups"].items()]
    cells = [
        (cell, own)
        for cell, own in cells
        if cell.part in order and (cell.layer is not None or cell.part == "embeddings")
    ]
    return {
        (cell.side if cell.layer is None else f"{cell.side} {cell.layer}", cell.part): own["mean"]
        for cell, own in sorted(cells, key=lambda pair: order.index(pair[0].part))
    }


def conflict_csv(compared: Compared, conflicts: Mapping[str, Conflict]) -> str:
    """One line per checkpoint, group of parameters and pair; a direction with itself: its split-half cosine."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        ("checkpoint", "parameters", "first", "second", "cosine", "across_halves", "disattenuated")
    )
    names = compared.names
    for checkpoint, conflict in conflicts.items():
        for group, cells in groups_of(list(conflict.products)).items():
            products = conflict.of(cells)
            tables = [cosines(products, conflict.tokens), across_halves(products), disattenuated(products)]
            for i, first in enumerate(names):
                for j in range(i, len(names)):
                    values = ["" if t[i, j].isnan() else f"{t[i, j].item():.6f}" for t in tables]
                    writer.writerow((checkpoint, group, first, names[j], *values))
    return text.getvalue()


def conflict_markdown(found: Mapping[str, Any], made: Mapping[str, Any]) -> str:
    """The page ``conflict.md``.

    Args:
        found: checkpoint -> what stands in ``conflict.json``.
    """
    parts = [
        "# Gradient conflict",
        "The cosine of two directions' gradients of their mean losses: below 0, a step for one raises the loss of the "
        "other. Teacher-forced, without dropout and label smoothing.",
        f"![Cosines of all pairs]({CONFLICT_FIGURES[0]}.png)",
        f"![Mean cosine by layer]({CONFLICT_FIGURES[1]}.png)",
    ]
    for name, own in found.items():
        parts.append(f"## {name}\n\n" + _conflict_table(own["groups"]))
        parts.append(families_table({g: f["families"] for g, f in own["groups"].items() if g in _shown(own)}))
        if own["overlap"]:
            parts.append(overlap_table(own["overlap"], "cosine"))
    parts += [
        "*Cosine*: mean over pairs of different directions. *In conflict*: the share of pairs below 0. *Across "
        "halves*: between one direction's first half of its text and the other's second, to be held against *split "
        "half*, the same of a direction with itself: the most that noise lets a pair reach. Where directions have sentences "
        "in common, as in a parallel corpus, the plain cosine holds their common noise too. *Disattenuated*: the "
        f"one over the other, where both directions' split-half cosines are {LEAST_SPLIT_HALF:g} or more; how many "
        "pairs that are stands behind it. Within a group of parameters, biases go with their weights. Tests are not "
        "corrected for their number.",
        "## How it was made\n\n" + how("conflict", made, CONFLICT_CSV, CONFLICT_JSON),
    ]
    return "\n\n".join(parts) + "\n"


def _shown(own: Mapping[str, Any]) -> list[str]:
    """The groups of the page: all but single layers and their parts, which figure and CSV show."""
    return [name for name in own["groups"] if ".layers." not in name]


def _conflict_table(groups: Mapping[str, Any]) -> str:
    rows: list[list[TableCell]] = []
    for name, group in groups.items():
        if ".layers." in name:
            continue
        for kind, own in group["kinds"].items():
            share = own["conflict_fraction"]
            corrected = own["disattenuated"]
            rows.append(
                [
                    name,
                    f"{group['parameters']:,}",
                    kind,
                    signed(own["mean"]),
                    None if share is None else f"{100 * share:.0f}%",
                    signed(own["across_halves"]),
                    signed(own["split_half"]),
                    None
                    if corrected is None
                    else f"{corrected:+.2f} ({own['disattenuated_pairs']} of {own['pairs']})",
                ]
            )
    header = ("group", "parameters", "pairs", "cosine", "in conflict", "across halves", "split half")
    return markdown_table((*header, "disattenuated"), rows)


# In a report ----------------------------------------------------------------------------------


def section(folders: Mapping[str, Path]) -> Section:
    """The headline numbers of each folder."""
    text = (
        "The cosine of two directions' gradients, over all parameters: below 0, a step for one raises the loss of the "
        "other. *Split half*: of a direction with itself, between the halves of its text, the most that noise lets a "
        "pair reach. p: whether pairs of one family are more alike than others; one-sided."
    )
    return Section("Gradient conflict", [Paragraph(text)], [_headline(*each) for each in folders.items()])


def _headline(name: str, folder: Path) -> Section:
    found = read_json(folder / CONFLICT_JSON, "conflict")
    rows: list[list[TableCell]] = []
    for checkpoint, own in found["checkpoints"].items():
        group = own["groups"][ALL]  # further groups are sides, layers and their parts
        rows += [
            [
                checkpoint,
                kind,
                values["pairs"],
                signed(values["mean"], 2),
                percent(values["conflict_fraction"]),
                signed(values["split_half"], 2),
                *family_cells(group["families"].get(kind), 2),
            ]
            for kind, values in group["kinds"].items()
        ]
    header = ("checkpoint", "pairs", "number", "cosine", "in conflict", "split half", *FAMILY_HEADER)
    blocks: list[Block] = [Table(header, rows)]
    for figure, caption in (
        (CONFLICT, "Cosine of the gradients of all pairs"),
        (CONFLICT_LAYERS, "Mean cosine by layer and part"),
    ):
        blocks += left_in(folder, figure, f"{name.replace('/', '-')}-{figure}", caption)
    return Section(
        name, [*blocks, *again(recorded_command(found["signature"], folder), f"{name}/{CONFLICT_TABLE}")]
    )
