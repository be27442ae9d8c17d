"""A conflict's folder and section: cosines of the gradients of pairs of directions.

Pairs of directions are compared by kind, as `neurons.pairs` has them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from neuron_spec.neurons.pairs import Compared, plain_values
from neuron_spec.pages.heatmap import direction_maps, layer_grids
from neuron_spec.pages.page import Block, Picture, Section, Table, not_computed
from neuron_spec.pages.study_page import (
    FAMILY_FORM,
    FAMILY_HEADER,
    FAMILY_P,
    KNOWN,
    OVERLAP_FORM,
    StudyPage,
    family_cells,
    form,
    loss_said,
    overlap_tests,
)
from neuron_spec.pages.style import MUTED, legend_above, look, new_figure, plain_axis
from neuron_spec.pages.tables import Cell, csv_text, percent, signed
from neuron_spec.studies.conflict import measure

WITH_TAG = ", with the tag"  # behind the name of a checkpoint whose loss is of the language token too
_ABOUT = (
    "The cosine of two directions' gradients of their mean losses: below 0, a step for one raises the loss of the other. "
    "Teacher-forced, without dropout and label smoothing.",
    "*Cosine*: mean over pairs of different directions. *In conflict*: the share of pairs below 0. *Across halves*: "
    "between one direction's first half of its text and the other's second, to be held against *split half*, the same "
    "of a direction with itself: the most that noise lets a pair reach. Where directions have sentences in common, as in "
    "a parallel corpus, the plain cosine holds their common noise too. *Disattenuated*: the one over the other, where "
    f"both directions' split-half cosines are {measure.LEAST_SPLIT_HALF:g} or more; how many pairs that are stands behind "
    "it. *Same family*, *other families*: mean cosine of such pairs.",
    f"{FAMILY_P} Tests are not corrected for their number. Within a group of parameters, biases go with their weights.",
)


def write_conflict(
    folder: Path,
    compared: Compared,
    conflicts: Mapping[str, measure.Conflict],
    made: Mapping[str, Any],
    *,
    seed: int,
) -> None:
    """Write ``conflict.csv``, ``.md``, the figures and, last, ``conflict.json``.

    Args:
        conflicts: name of a checkpoint -> its gradients, in the order of the panels.
        made: the signature.
        seed: of random relabellings.
    """
    checkpoints = {
        name: measure.summarize_conflict(compared, one, seed=seed) for name, one in conflicts.items()
    }
    matrix = direction_maps(
        {
            name: measure.cosines(one.of(list(one.products)), one.tokens).fill_diagonal_(torch.nan)
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
            f"{name}, {kind}" if len(checkpoints) > 1 else kind: _grid(one["groups"], kind)
            for name, one in checkpoints.items()
            for kind in compared.pairs()
        },
        title="Mean cosine of pairs of directions, by layer",
        panels=len(compared.pairs()),  # a line per checkpoint
    )
    figures = {"conflict": matrix, "conflict-layers": grid}
    if both := _both_ways(checkpoints):
        figures["conflict-tag"] = tag_figure(both)
    PAGE.write(folder, {"checkpoints": checkpoints}, made, figures, conflict_csv(compared, conflicts))


def _grid(groups: Mapping[str, Any], kind: str) -> dict[tuple[str, str], float | None]:
    """(Layer, part) -> mean cosine over the pairs of a kind; embeddings stand beside the layers."""
    means = {measure.Cell.parse(name): group["kinds"][kind]["mean"] for name, group in groups.items()}
    return {
        (cell.side if cell.layer is None else f"{cell.side} {cell.layer}", part): mean
        for part in (*measure.PARTS, measure.OTHER)
        for cell, mean in means.items()
        if cell.part == part and (cell.layer is not None or part == "embeddings")
    }


Groups = Mapping[str, Mapping[str, Any]]
"""Group of parameters -> its ``kinds``, as `measure.summarize_conflict` has them."""


def _both_ways(checkpoints: Mapping[str, Any]) -> dict[str, tuple[Groups, Groups]]:
    """Name of a checkpoint -> its groups of parameters without the tag in the loss, and with it; no single layers."""

    def groups(name: str) -> Groups:
        return {group: of for group, of in checkpoints[name]["groups"].items() if ".layers." not in group}

    both = [name for name in checkpoints if name + WITH_TAG in checkpoints]
    return {name: (groups(name), groups(name + WITH_TAG)) for name in both}


def tag_figure(checkpoints: Mapping[str, tuple[Groups, Groups]]) -> Figure:
    """Per group of parameters the mean cosine and the share of pairs in conflict, without the tag and with it.

    Args:
        checkpoints: name -> groups without and with it; a row of panels each.
    """
    first = next(iter(checkpoints.values()))[0]
    kinds = [*first[measure.ALL]["kinds"]]
    values = {"mean": ("mean cosine", 1), "conflict_fraction": ("pairs in conflict (%)", 100)}
    panels = [(kind, value) for kind in kinds for value in values]
    figure = new_figure(1.9 + 1.9 * len(panels), 1.1 + (0.6 + 0.22 * len(first)) * len(checkpoints))
    grid = figure.subplots(len(checkpoints), len(panels), sharey=True, squeeze=False)
    looks = {
        "text": look(0, linestyle="none"),
        "with the language tag": look(1, linestyle="none", markerfacecolor="none", markersize=7),
    }
    for axes, (name, ways) in zip(grid, checkpoints.items(), strict=True):
        for ax, (kind, value) in zip(axes, panels, strict=True):
            label, factor = values[value]
            plain_axis(ax, grid="x", title=kind, x=label)
            if value == "mean":
                ax.axvline(0, color=MUTED, linewidth=0.9, zorder=1)
            else:
                ax.set_xlim(-4, 104)
            for groups, how in zip(ways, looks.values(), strict=True):
                known = [(y, groups[group]["kinds"][kind][value]) for y, group in enumerate(first)]
                places = [(factor * number, y) for y, number in known if number is not None]
                ax.plot(*zip(*places, strict=True), **how, zorder=3) if places else None
        axes[0].set_yticks(range(len(first)), list(first))
        axes[0].set_ylim(len(first) - 0.4, -0.6)
        axes[0].set_ylabel(name if len(checkpoints) > 1 else "")
    legend_above(
        figure, "Gradients of pairs of directions, with and without the language tag in the loss", looks
    )
    return figure


def _tag_table(ways: tuple[Groups, Groups]) -> Table:
    """A row per group of parameters and kind of pairs."""
    rows: list[list[Cell]] = []
    for group in ways[0]:
        for kind in ways[0][group]["kinds"]:
            text, with_tag = (groups[group]["kinds"][kind] for groups in ways)
            numbers = (
                [of["mean"] for of in (text, with_tag)],
                [of["conflict_fraction"] for of in (text, with_tag)],
            )
            rows.append([group, kind, text["pairs"], *map(signed, numbers[0]), *map(percent, numbers[1])])
    return Table(
        (
            "group",
            "pairs",
            "number",
            "cosine, text",
            "cosine, with the tag",
            "in conflict, text",
            "in conflict, with the tag",
        ),
        rows,
    )


def conflict_csv(compared: Compared, conflicts: Mapping[str, measure.Conflict]) -> str:
    """One line per checkpoint, group of parameters and pair; a direction with itself: its split-half cosine."""
    names = compared.names
    pairs = torch.triu_indices(len(names), len(names)).T.tolist()
    rows: list[tuple[object, ...]] = []
    for checkpoint, conflict in conflicts.items():
        for group, cells in measure.groups_of(list(conflict.products)).items():
            products = conflict.of(cells)
            tables = (
                measure.cosines(products, conflict.tokens),
                measure.across_halves(products),
                measure.disattenuated(products),
            )
            for i, j in pairs:
                values = plain_values(torch.stack([table[i, j] for table in tables]))
                shown = (None if value is None else f"{value:.6f}" for value in values)
                rows.append((checkpoint, group, names[i], names[j], *shown))
    header = ("checkpoint", "parameters", "first", "second", "cosine", "across_halves", "disattenuated")
    return csv_text(header, rows)


def _show(content: Mapping[str, Any], pictures: Mapping[str, Picture]) -> Section:
    checkpoints = content["checkpoints"]
    overall = _table("checkpoint", {name: one["groups"][measure.ALL] for name, one in checkpoints.items()})
    details = []
    for name, one in checkpoints.items():
        # All but single layers and their parts, which figure and CSV show.
        groups = {group: values for group, values in one["groups"].items() if ".layers." not in group}
        reasons = [
            (f"{group}, {kind}", test["reason"])
            for group, values in groups.items()
            for kind, test in values["families"].items()
        ]
        del groups[measure.ALL]
        inner: list[Block] = [_table("group", groups), *not_computed(reasons)]
        details.append(Section(name, inner, overlap_tests(one["overlap"], "cosine"), is_folded=True))
    both = _both_ways(checkpoints)
    sides = [
        Section(
            f"With and without the language tag{f', {name}' if len(both) > 1 else ''}", [_tag_table(ways)]
        )
        for name, ways in both.items()
    ]
    blocks: list[Block] = [loss_said(content["signature"]), overall, *pictures.values()]
    return Section("", blocks, [*sides, *details])


def _table(what: str, groups: Mapping[str, Any]) -> Table:
    cosine = ("cosine", "in conflict", "across halves", "split half", "disattenuated")
    rows: list[list[Cell]] = []
    for name, group in groups.items():
        for kind, pairs in group["kinds"].items():
            corrected = pairs["disattenuated"]
            rows.append(
                [
                    name,
                    kind,
                    pairs["pairs"],
                    signed(pairs["mean"]),
                    percent(pairs["conflict_fraction"]),
                    signed(pairs["across_halves"]),
                    signed(pairs["split_half"]),
                    None
                    if corrected is None
                    else f"{corrected:+.2f} ({pairs['disattenuated_pairs']} of {pairs['pairs']})",
                    *family_cells(group["families"].get(kind), 2),
                    f"{group['parameters']:,}",
                ]
            )
    return Table((what, "pairs", "number", *cosine, *FAMILY_HEADER, "parameters"), rows)


_KIND = {
    **dict.fromkeys(("pairs", "disattenuated_pairs"), int),
    **dict.fromkeys(("mean", "conflict_fraction", "across_halves", "split_half", "disattenuated"), KNOWN),
}
_GROUP = {"parameters": int, "kinds": {str: _KIND}, "families": {str: FAMILY_FORM}}
PAGE = StudyPage(
    name="conflict",
    title="Gradient conflict",
    csv="conflict.csv",
    csv_holds="pair",
    show=_show,
    about=_ABOUT,
    form=form(
        {"checkpoints": {str: {"groups": {measure.ALL: _GROUP, str: _GROUP}, "overlap": {str: OVERLAP_FORM}}}}
    ),
    captions={
        "conflict": "Cosine of the gradients of all pairs",
        "conflict-layers": "Mean cosine by layer and part",
        "conflict-tag": "Pairs of directions with and without the language tag in the loss, by group of parameters",
    },
)
section = PAGE.section
