"""Heat maps over pairs of directions, of sets and directions, and of layers and their parts.

`kept` maps a layer such as `decoder.layers.0`, numbered from zero as in the mask file, to bool
`[num_directions, ffn_dim]`, True = kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from neuron_spec.directions import (
    FROM_ENGLISH,
    GROUPS,
    INTO_ENGLISH,
    UNKNOWN,
    WITHOUT_ENGLISH,
    Direction,
    Group,
    family_of,
)
from neuron_spec.errors import NeuronSpecError
from neuron_spec.neurons.overlap import compared, off_diagonal, pairwise_iou
from neuron_spec.pages.curves import by_side
from neuron_spec.pages.style import (
    DPI,
    INK,
    MUTED,
    POINT,
    TICK_STEPS,
    in_family_order,
    new_figure,
)

_COLOR_MAP = "viridis"
_CELL_WITH_NUMBER = 0.24  # inches, at least
_MOST_WITH_NUMBERS = 16  # directions


class _Map(NamedTuple):
    """One heat map: IoU `[N, N]` of N directions; ``by`` as in `in_family_order`."""

    title: str
    iou: Tensor
    directions: Sequence[Direction]
    by: str = "source"


def iou_heatmap(
    iou: Tensor,
    directions: Sequence[Direction],
    title: str,
    *,
    families: Mapping[str, str] | None = None,
    by: str = "source",
) -> Figure:
    """Pairwise overlap in one layer, languages ordered by family.

    Args:
        iou: float `[num_directions, num_directions]`, a fraction.
        by: as in `in_family_order`.

    Raises:
        NeuronSpecError: if ``iou`` does not fit ``directions``.
    """
    cell = max(0.12, min(0.42, 9.6 / max(1, len(directions))))
    return _heatmap_grid([[_Map(title, iou, directions, by)]], families, cell=cell)


def iou_heatmaps(
    ious: Mapping[str, Tensor],
    directions: Sequence[Direction],
    *,
    families: Mapping[str, str] | None = None,
    columns: int = 3,
) -> Figure:
    """Heat maps of several layers on one colour scale.

    Args:
        ious: layer or any other title -> float `[num_directions, num_directions]`, a fraction.

    Raises:
        NeuronSpecError: if there is no layer, or one does not fit ``directions``.
    """
    if not ious:
        raise NeuronSpecError("no layers to draw", expected="one or more matrices of pairwise IoU")
    maps = [_Map(title, iou, directions) for title, iou in ious.items()]
    return _heatmap_grid(_in_rows(maps, columns), families, cell=_grid_cell(len(directions)))


def layer_heatmaps(
    kept: Mapping[str, Tensor],
    directions: Sequence[Direction],
    *,
    families: Mapping[str, str] | None = None,
    group: str = "own",
    columns: int = 3,
) -> Figure:
    """Heat maps of all layers, each over the directions that its side is compared over.

    Args:
        kept: layer -> bool `[num_directions, ffn_dim]`, True = kept.
        group: as in `overlap.compared`.

    Raises:
        NeuronSpecError: if a layer's name or shape is wrong, or there is none; or the group is empty.
    """
    rows: list[list[_Map]] = []
    widest = 0
    for side, layers in by_side(kept, directions).items():
        chosen = compared(side, directions, group)
        members = [directions[i] for i in chosen.rows]
        maps = [
            _Map(key, pairwise_iou(kept[key][chosen.rows]), members, chosen.by) for key in layers.values()
        ]
        widest = max(widest, len(members))
        rows += _in_rows(maps, columns)
    return _heatmap_grid(rows, families, cell=_grid_cell(widest))


def _in_rows(maps: Sequence[_Map], columns: int) -> list[list[_Map]]:
    return [list(maps[start : start + columns]) for start in range(0, len(maps), columns)]


def _grid_cell(n: int) -> float:
    """Inches; labels have room up to about a hundred directions."""
    n = max(1, n)
    return max(min(0.42, 4.2 / n), 0.3 if n <= 16 else min(0.085, 8.5 / n))


def _heatmap_grid(
    rows: Sequence[Sequence[_Map]], families: Mapping[str, str] | None, *, cell: float
) -> Figure:
    """``cell`` is the side of one cell in inches."""
    maps = [one for row in rows for one in row]
    for title, iou, directions, _ in maps:
        n = len(directions)
        if n == 0 or tuple(iou.shape) != (n, n):
            raise NeuronSpecError(
                "a heat map needs the overlap of each pair of directions",
                where=title,
                got=f"shape {list(iou.shape)} for {n} directions",
                expected="[num_directions, num_directions], one direction or more",
            )
    scale = _shared_scale([100 * one.iou.double() for one in maps])
    columns = max(map(len, rows))
    side = max(max(len(one.directions) for one in maps) * cell, 1.2)
    figure = new_figure(columns * (side + 1.5) + 1.0, len(rows) * (side + 1.3))
    figure.set_layout_engine("constrained", hspace=0.05)
    drawn: list[Axes] = []
    for axes, row in zip(figure.subplots(len(rows), columns, squeeze=False), rows, strict=True):
        for ax in axes[len(row) :]:
            ax.remove()
        for ax, one in zip(axes, row, strict=False):
            order = in_family_order(one.directions, families, by=one.by)
            ordered = [one.directions[index] for index in order]
            percent = 100 * one.iou[order][:, order].double()
            _draw_heatmap(
                ax, one.title, percent, ordered, families, by=one.by, scale=scale, cell=side / len(ordered)
            )
            drawn.append(ax)

    bar = figure.colorbar(
        drawn[0].images[0], ax=drawn, shrink=0.8, aspect=max(28, 4 * figure.get_figheight()), pad=0.02,
        ticks=MaxNLocator(7, steps=TICK_STEPS),
    )  # fmt: skip
    bar.set_label("IoU of kept neurons (%)", fontsize=9, color=INK)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=8, length=2, color=MUTED)
    return figure


def _shared_scale(percents: Sequence[Tensor]) -> Normalize:
    """A scale over the overlaps of different directions; the diagonal, always 100, would flatten it."""
    values = torch.cat([off_diagonal(percent) for percent in percents])
    if len(values) == 0:
        return Normalize(0, 100)
    low = min(math.floor(values.min().item()), 98)
    return Normalize(low, max(math.ceil(values.max().item()), low + 2))


def _draw_heatmap(
    ax: Axes,
    title: str,
    percent: Tensor,
    ordered: Sequence[Direction],
    families: Mapping[str, str] | None,
    *,
    by: str,
    scale: Normalize,
    cell: float,
) -> None:
    n = len(ordered)
    shown = percent.clone().fill_diagonal_(math.nan).numpy()
    colors = colormaps[_COLOR_MAP].with_extremes(bad="#EEEEEE")
    ax.imshow(shown, cmap=colors, norm=scale, interpolation="none")

    if cell >= _CELL_WITH_NUMBER:
        for row in range(n):
            for column in range(n):
                if row != column:
                    is_dark = scale(shown[row, column]) < 0.6
                    ax.text(
                        column, row, f"{shown[row, column]:.0f}", ha="center", va="center",
                        fontsize=min(8.0, 22 * cell), color="white" if is_dark else INK,
                    )  # fmt: skip

    labels, axis_title = _axis_labels(ordered)
    size = min(9.0, 0.75 * cell / POINT)
    if size >= 4.5:
        # A full direction such as en→de is wider than its cell.
        is_wide = 0.75 * size * POINT * max(map(len, labels)) > cell
        ax.set_xticks(range(n), labels, fontsize=size, rotation=90 if is_wide else 0)
        ax.set_yticks(range(n), labels, fontsize=size)
    else:
        ax.set_xticks([])
        ax.set_yticks([])
    ax.tick_params(length=0, pad=3, colors=INK)
    if axis_title:
        ax.set_xlabel(axis_title, fontsize=9, color=MUTED)
    for spine in ax.spines.values():
        spine.set_visible(False)
    name_height = _draw_families(ax, ordered, families, by=by, cell=cell)
    ax.set_title(title, fontsize=11, color=INK, loc="left", y=1.0, pad=name_height + 17)


def _draw_families(
    ax: Axes, ordered: Sequence[Direction], families: Mapping[str, str] | None, *, by: str, cell: float
) -> float:
    """Name each run of one family by a bar above the map and one at its right.

    Returns:
        The height of the names above, in points.
    """
    n = len(ordered)
    runs: list[tuple[str, int, int]] = []  # name, first, last
    for (_, name), members in groupby(
        range(n), key=lambda i: (ordered[i].group.arrow, family_of(ordered[i].placed_by(by), families))
    ):
        positions = list(members)
        runs.append((name, positions[0], positions[-1]))

    font = 8.0
    widths = [0.6 * font * len(name) for name, _, _ in runs]  # points, roughly
    is_crowded = any(
        width * POINT > (last - first + 1) * cell
        for width, (_, first, last) in zip(widths, runs, strict=True)
    )
    edge = 0.06 / cell  # bars stand this far from the map, in cells
    line: dict[str, Any] = {"color": INK, "linewidth": 1.2, "solid_capstyle": "butt", "clip_on": False}
    text: dict[str, Any] = {
        "fontsize": font, "color": INK, "annotation_clip": False, "textcoords": "offset points"
    }  # fmt: skip
    rotation = 90 if is_crowded else 0
    top, right = -0.5 - edge, n - 0.5 + edge
    for name, first, last in runs:
        start, end, middle = first - 0.42, last + 0.42, (first + last) / 2
        ax.plot([start, end], [top, top], **line)
        ax.plot([right, right], [start, end], **line)
        ax.annotate(name, (middle, top), xytext=(0, 3), ha="center", va="bottom", rotation=rotation, **text)
        ax.annotate(name, (right, middle), xytext=(4, 0), ha="left", va="center", **text)
        if first > 0:
            ax.axhline(first - 0.5, color="white", linewidth=1.5)
            ax.axvline(first - 0.5, color="white", linewidth=1.5)
    # Lines and bars would otherwise widen the map.
    ax.set_xlim(-0.5, n - 0.5)
    ax.set_ylim(n - 0.5, -0.5)
    return max(widths) if is_crowded else font


def _axis_labels(ordered: Sequence[Direction]) -> tuple[list[str], str]:
    """Language codes where all directions share English on one side, else whole directions."""
    groups = {direction.group.arrow for direction in ordered}
    if groups == {FROM_ENGLISH.arrow}:
        return [direction.target for direction in ordered], f"target language of {FROM_ENGLISH.arrow}"
    if groups == {INTO_ENGLISH.arrow}:
        return [direction.source for direction in ordered], f"source language of {INTO_ENGLISH.arrow}"
    return [direction.arrow for direction in ordered], ""


# Sets and what directions lose without them -----------------------------------------------

_OWN = "#D55E00"  # of the frame around a direction's own cell

_Kind = tuple[Group | None, str]  # group, family; no group of a language
_Run = tuple[_Kind, int, int]  # of equal kinds: first, last


def loss_increase_heatmap(
    change: Tensor,
    random: Tensor,
    owners: Sequence[str],
    directions: Sequence[Direction],
    own: Sequence[int | None],
    family: Callable[[str], str],
) -> Figure:
    """Rows: whose neurons are switched off; columns: the direction that is evaluated; own cells are framed.

    Args:
        change: float `[owners, directions]`, nats per token more than with all neurons.
        random: float `[directions]`, the same for random neurons; NaN without such a control.
        owners: directions such as ``en-de``, or languages.
        own: which row each direction owns; None for no or several.
        family: of a language; ``unknown`` where that is so.
    """
    families = {code: family(code) for d in directions for code in (d.source, d.target)}
    columns = in_family_order(directions, families)
    rows = _rows_in_order(owners, families)
    panels = {group: [i for i in columns if directions[i].group == group] for group in GROUPS}
    panels = {group: members for group, members in panels.items() if members}
    row_kinds = [kind_of(owners[row], families) for row in rows]

    labels = [Direction.parse(owners[row]).arrow if "-" in owners[row] else owners[row] for row in rows]
    shown = change[rows].double()
    if not random.isnan().any():  # an empty row sets the control apart
        labels += ["", "random"]
        shown = torch.cat([shown, torch.full_like(shown[:1], torch.nan), random[None].double()])
    numbers = shown[~shown.isnan()]
    low, high = min(0.0, numbers.min().item()), max(numbers.max().item(), 1e-3)

    cell = max(0.12, min(0.42, 12 / max(len(directions), len(rows))))
    font = min(9.0, 0.75 * cell / POINT)
    figure = Figure(
        figsize=(len(directions) * cell + 0.6 * len(panels) + 2.8, len(labels) * cell + 1.9),
        dpi=DPI, layout="constrained",
    )  # fmt: skip
    widths = [len(members) for members in panels.values()]
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False, width_ratios=widths)[0]
    for ax, (group, members) in zip(axes, panels.items(), strict=True):
        chosen = [directions[i] for i in members]
        _draw_map(
            ax, shown[:, members], Normalize(low, high), has_numbers=len(directions) <= _MOST_WITH_NUMBERS
        )
        for column, i in enumerate(members):
            if (owned := own[i]) is not None:
                place = (column - 0.5, rows.index(owned) - 0.5)
                ax.add_patch(Rectangle(place, 1, 1, fill=False, edgecolor=_OWN, linewidth=1.8, zorder=3))
        names = [direction.foreign or direction.arrow for direction in chosen]
        ax.set_xticks(
            range(len(members)), names, fontsize=font, rotation=90 if group is WITHOUT_ENGLISH else 0
        )
        ax.set_xlabel(f"evaluated, {group.arrow}", fontsize=9, color=INK)
        name_families(ax, runs_of([kind_of(str(direction), families) for direction in chosen]), cell)
        for _, first, _ in runs_of(row_kinds)[1:]:
            ax.axhline(first - 0.5, color="white", linewidth=1.5)
        ax.set_xlim(-0.5, len(members) - 0.5)
        ax.set_ylim(len(labels) - 0.5, -0.5)
    axes[0].set_yticks(range(len(labels)), labels, fontsize=font)
    axes[0].set_ylabel("neurons switched off, of", fontsize=9, color=INK)
    name_families(axes[-1], runs_of(row_kinds), cell, of_rows=True)

    figure.suptitle(
        "Loss increase without the neurons of one set (framed: the direction's own)",
        x=0.01,
        ha="left",
        fontsize=11,
        color=INK,
    )
    bar = figure.colorbar(
        axes[0].images[0], ax=list(axes), shrink=0.8, aspect=28, pad=0.02, ticks=MaxNLocator(7, steps=[1, 2, 5, 10])
    )  # fmt: skip
    bar.set_label("loss increase (nats per token)", fontsize=9, color=INK)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=8, length=2, color=MUTED)
    return figure


def _draw_map(ax: Axes, shown: Tensor, scale: Normalize, *, has_numbers: bool) -> None:
    """``shown``: float `[rows, columns]`; NaN leaves a cell white."""
    colors = colormaps[_COLOR_MAP].with_extremes(bad="white")
    ax.imshow(shown.numpy(), cmap=colors, norm=scale, interpolation="none")
    ax.tick_params(length=0, pad=3, colors=INK)
    for spine in ax.spines.values():
        spine.set_visible(False)
    if has_numbers:
        decimals = 2 if shown.nan_to_num().abs().max() >= 0.3 else 3
        for row, column in (~shown.isnan()).nonzero().tolist():
            text = f"{shown[row, column]:z.{decimals}f}"  # z: no minus before a zero
            ax.text(
                column, row, text, ha="center", va="center", fontsize=7.5 if len(text) < 5 else 6.5,
                color="white" if scale(shown[row, column].item()) < 0.6 else INK,
            )  # fmt: skip


def name_families(ax: Axes, runs: Sequence[_Run], cell: float, *, of_rows: bool = False) -> None:
    """Name each run of one family by a bar above the columns, or at the right of the rows."""
    edge = 0.06 / cell  # bars stand this far from the map, in cells
    top, right = -0.5 - edge, ax.get_xlim()[1] + edge
    line: dict[str, Any] = {"color": INK, "linewidth": 1.2, "solid_capstyle": "butt", "clip_on": False}
    text: dict[str, Any] = {
        "fontsize": 8, "color": INK, "annotation_clip": False, "textcoords": "offset points"
    }  # fmt: skip
    is_crowded = any(
        0.6 * 8 * len(name) * POINT > (last - first + 1) * cell for (_, name), first, last in runs
    )
    for (_, name), first, last in runs:
        start, end, middle = first - 0.42, last + 0.42, (first + last) / 2
        if of_rows:
            ax.plot([right, right], [start, end], **line)
            ax.annotate(name, (right, middle), xytext=(4, 0), ha="left", va="center", **text)
            continue
        ax.plot([start, end], [top, top], **line)
        ax.annotate(
            name, (middle, top), xytext=(0, 3), ha="center", va="bottom", rotation=90 if is_crowded else 0, **text
        )  # fmt: skip
        if first > 0:
            ax.axvline(first - 0.5, color="white", linewidth=1.5)


def runs_of(kinds: Sequence[_Kind]) -> list[_Run]:
    """Neighbours of equal kind, joined."""
    numbered = (
        (kind, [i for i, _ in members]) for kind, members in groupby(enumerate(kinds), lambda p: p[1])
    )
    return [(kind, members[0], members[-1]) for kind, members in numbered]


def _rows_in_order(owners: Sequence[str], families: Mapping[str, str]) -> list[int]:
    if all("-" in owner for owner in owners):
        return in_family_order([Direction.parse(owner) for owner in owners], families)
    return sorted(
        range(len(owners)), key=lambda i: (families[owners[i]] == UNKNOWN, families[owners[i]], owners[i])
    )


def kind_of(owner: str, families: Mapping[str, str]) -> _Kind:
    """What tells a direction's or language's neighbours on an axis: group and family."""
    if "-" not in owner:
        return None, families[owner]
    direction = Direction.parse(owner)
    return direction.group, families[direction.placed_by("source")]


# Around zero ------------------------------------------------------------------------------

_EMPTY = "#dddddd"


def direction_maps(
    maps: Mapping[str, Tensor],
    directions: Sequence[Direction],
    families: Mapping[str, str],
    *,
    title: str,
    label: str,
    rows: str,
    columns: str,
    positive_is_red: bool = False,
) -> Figure:
    """Matrices over pairs of directions, side by side on one colour scale around zero.

    The scale is that of different directions; a diagonal beyond it is drawn in the last colour.

    Args:
        maps: title of a panel -> float `[D, D]`; NaN leaves a cell grey.
        families: language -> family.
        label: of the colour bar; rows, columns: of the axes.
    """
    order = in_family_order(directions, families)
    names = [directions[i].arrow for i in order]
    runs = runs_of([kind_of(str(directions[i]), families) for i in order])
    ordered = {name: found[order][:, order].double() for name, found in maps.items()}
    others = torch.cat([found[~torch.eye(len(order)).bool()] for found in ordered.values()])
    cell = max(0.12, min(0.42, 9.6 / len(order)))
    font = min(9.0, 0.75 * cell * 72)
    figure = Figure(
        figsize=(len(maps) * (len(order) * cell + 1.9) + 0.8, len(order) * cell + 2.2),
        dpi=DPI, layout="constrained",
    )  # fmt: skip
    axes = figure.subplots(1, len(maps), squeeze=False)[0]
    scale = _around_zero(others)
    for ax, (name, found) in zip(axes, ordered.items(), strict=True):
        _draw(ax, found, scale, positive_is_red=positive_is_red, has_numbers=len(order) <= _MOST_WITH_NUMBERS)
        ax.set_xticks(range(len(order)), names, fontsize=font, rotation=90)
        ax.set_yticks(range(len(order)), names, fontsize=font)
        ax.set_xlabel(columns, fontsize=9, color=INK)
        ax.set_ylabel(rows, fontsize=9, color=INK)
        name_families(ax, runs, cell)
        for _, first, _ in runs[1:]:
            ax.axhline(first - 0.5, color="white", linewidth=1.5)
        ax.set_xlim(-0.5, len(order) - 0.5)
        ax.set_ylim(len(order) - 0.5, -0.5)
        if len(maps) > 1:
            ax.set_title(name, fontsize=10, color=INK, pad=24, loc="left")
    _finish(figure, axes, title, label)
    return figure


def layer_grids(
    grids: Mapping[str, Mapping[tuple[str, str], float | None]], *, title: str, panels: int
) -> Figure:
    """The mean cosine of each part of each layer.

    Args:
        grids: title of a panel -> (layer, part) -> mean cosine; pairs that are missing stay grey.
        panels: how many stand side by side.
    """
    keys = [key for grid in grids.values() for key in grid]
    columns = list(dict.fromkeys(layer for layer, _ in keys))
    rows = list(dict.fromkeys(part for _, part in keys))
    tables = {}
    for name, grid in grids.items():
        values = [[grid.get((column, row)) for column in columns] for row in rows]
        tables[name] = torch.tensor(
            [[torch.nan if v is None else v for v in line] for line in values]
        ).double()
    lines = -(-len(grids) // panels)
    figure = Figure(
        figsize=(panels * (0.5 * len(columns) + 0.6) + 3.0, lines * (0.42 * len(rows) + 0.5) + 1.7),
        dpi=DPI, layout="constrained",
    )  # fmt: skip
    axes: list[Axes] = list(figure.subplots(lines, panels, squeeze=False, sharex=True, sharey=True).flat)
    scale = _around_zero(torch.cat([table.flatten() for table in tables.values()]))
    for ax, (name, table) in zip(axes, tables.items(), strict=True):
        _draw(ax, table, scale, positive_is_red=False, has_numbers=True)
        ax.set_xticks(range(len(columns)), columns, fontsize=8, rotation=90)
        ax.set_yticks(range(len(rows)), rows, fontsize=8)
        if len(grids) > 1:
            ax.set_title(name, fontsize=10, color=INK, loc="left")
    _finish(figure, axes, title, "mean cosine (below 0: conflict)")
    return figure


def _around_zero(values: Tensor) -> Normalize:
    finite = values[values.isfinite()].abs()
    most = max(finite.max().item(), 1e-6) if len(finite) else 1.0
    return Normalize(-most, most)


def _draw(ax: Axes, shown: Tensor, scale: Normalize, *, positive_is_red: bool, has_numbers: bool) -> None:
    """``shown``: float `[rows, columns]`; NaN leaves a cell grey."""
    colors = colormaps["RdBu_r" if positive_is_red else "RdBu"].with_extremes(bad=_EMPTY)
    ax.imshow(shown.numpy(), cmap=colors, norm=scale, interpolation="none")
    ax.tick_params(length=0, pad=3, colors=INK)
    for spine in ax.spines.values():
        spine.set_visible(False)
    if not has_numbers:
        return
    # Thousandths where the scale is small; the unit stands at the colour bar.
    most = float(scale.vmax or 0)
    decimals = 1 if most >= 10 else 2 if most >= 0.3 else 3
    for row, column in (~shown.isnan()).nonzero().tolist():
        text = f"{shown[row, column]:z.{decimals}f}"
        is_dark = abs(float(scale(shown[row, column].item())) - 0.5) > 0.35
        ax.text(
            column, row, text, ha="center", va="center", fontsize=7 if len(text) < 5 else 6,
            color="white" if is_dark else INK,
        )  # fmt: skip


def _finish(figure: Figure, axes: Sequence[Axes], title: str, label: str) -> None:
    figure.suptitle(title, x=0.01, ha="left", fontsize=11, color=INK)
    bar = figure.colorbar(axes[0].images[0], ax=list(axes), shrink=0.8, aspect=28, pad=0.02)
    bar.set_label(label, fontsize=9, color=INK)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=8, length=2, color=MUTED)
