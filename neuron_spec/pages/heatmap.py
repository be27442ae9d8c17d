"""Heat maps over pairs of directions, of sets and directions, and of layers and their parts: one drawing for all."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, Normalize
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from neuron_spec.directions import FROM_ENGLISH, GROUPS, INTO_ENGLISH, Direction
from neuron_spec.errors import NeuronSpecError
from neuron_spec.neurons.masks import NeuronMasks
from neuron_spec.neurons.overlap import adjusted_iou, compared, off_diagonal, pairwise_iou
from neuron_spec.pages.curves import by_side
from neuron_spec.pages.page import DPI
from neuron_spec.pages.style import (
    COLORS,
    INK,
    MUTED,
    POINT,
    TICK_STEPS,
    Drawing,
    Run,
    in_family_order,
    runs_of,
)

# Sizes of text in points; lengths in inches.
_TITLE, _WORDS, _SMALL = 11.0, 9.0, 8.0
_LEAST_LABEL, _LEAST_NUMBER = 4.5, 5.5
_GAP = 0.15
_IOU = "IoU of kept neurons (%)"


# The figures ------------------------------------------------------------------------------


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
        iou: float `[num_directions, num_directions]`, a fraction, such as `pairwise_iou` gives.
        directions: whose, in the order of the rows.
        title: above the map.
        families: language -> family; None: those of the language table.
        by: ``source`` or ``target``, the language that places a direction without English.

    Raises:
        NeuronSpecError: if ``iou`` does not fit ``directions``.

    Examples:
        >>> import torch
        >>> from neuron_spec import iou_heatmap, parse_directions
        >>> iou = torch.tensor([[1, 0.2, 0.9], [0.2, 1, 0.3], [0.9, 0.3, 1]])
        >>> figure = iou_heatmap(iou, parse_directions("en-de,en-ru,en-nl"), "decoder.layers.0")
        >>> [label.get_text() for label in figure.axes[0].get_xticklabels()]  # by family
        ['de', 'nl', 'ru']
    """
    return _iou_figure([[_iou_map(title, iou, directions, families, by)]], _cell(len(directions)))


def layer_heatmaps(
    masks: NeuronMasks,
    *,
    adjusted: bool = False,
    families: Mapping[str, str] | None = None,
    group: str = "own",
    columns: int = 3,
) -> Figure:
    """Pairwise overlap in all layers, each over the directions that its side is compared over: heat maps on one scale.

    Args:
        adjusted: adjusted IoU in place of IoU; grey where it is unknown.
        families: language -> family, by which the axes are ordered; None: those of the language table.
        group: as in `compared`.
        columns: how many layers stand side by side.

    Raises:
        NeuronSpecError: if there is no layer, or no direction of the group.
    """
    rows: list[Sequence[_Map]] = []
    measure = adjusted_iou if adjusted else pairwise_iou
    for side, layers in by_side(masks).items():
        chosen = compared(side, masks.directions, group)
        members = [masks.directions[i] for i in chosen.rows]
        ious = {key: measure(masks.kept[key][chosen.rows]) for key in layers.values()}
        maps = [_iou_map(key, iou, members, families, chosen.by) for key, iou in ious.items()]
        rows += _in_rows(maps, columns)
    label = "adjusted IoU (%)" if adjusted else _IOU
    return _iou_figure(rows, _cell(max(len(row[0].values) for row in rows), 4.2), label)


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
    families = {code: family(code) for one in directions for code in (one.source, one.target)}
    sets = [Direction.parse(owner) if "-" in owner else owner for owner in owners]
    order, rows = _axis(sets, families, words="neurons switched off")
    values = change[order].double()
    if not random.isnan().any():  # an empty row sets the control apart
        rows = rows._replace(labels=[*rows.labels, "", "random"])
        values = torch.cat([values, torch.full_like(values[:1], torch.nan), random[None].double()])
    maps = []
    for group in GROUPS:
        if members := [i for i, direction in enumerate(directions) if direction.group == group]:
            places, columns = _axis([directions[i] for i in members], families, words="evaluated")
            members = [members[place] for place in places]
            framed = [(order.index(row), x) for x, i in enumerate(members) if (row := own[i]) is not None]
            maps.append(_Map("", values[:, members], rows, columns, framed))
    finite = values[~values.isnan()]
    scale = Normalize(min(0.0, finite.min().item()), max(finite.max().item(), 1e-3))
    cell = _cell(max(len(directions), len(owners)), 12)
    title = "Loss increase without the neurons of one set (framed: the direction's own)"
    return _figure([maps], scale, cell, "loss increase (nats per token)", title=title, empty="white")


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
    order, across = _axis(directions, families, words=columns)
    _, down = _axis(directions, families, words=rows)
    panels = [
        _Map(name if len(maps) > 1 else "", values[order][:, order].double(), down, across)
        for name, values in maps.items()
    ]
    others = torch.cat([panel.values[~torch.eye(len(order)).bool()] for panel in panels])
    colors = "RdBu_r" if positive_is_red else "RdBu"
    return _figure([panels], _around_zero(others), _cell(len(order)), label, title=title, colors=colors)


def layer_grids(
    grids: Mapping[str, Mapping[tuple[str, str], float | None]], *, title: str, panels: int
) -> Figure:
    """The mean cosine of each part of each layer.

    Args:
        grids: title of a panel -> (layer, part) -> mean cosine; pairs that are missing stay grey.
        panels: how many stand side by side.
    """
    keys = [key for grid in grids.values() for key in grid]
    layers, parts = (list(dict.fromkeys(names)) for names in zip(*keys, strict=True))
    maps = []
    for name, grid in grids.items():
        cosines = [[grid.get((layer, part)) for layer in layers] for part in parts]
        values = torch.tensor([[torch.nan if value is None else value for value in line] for line in cosines])
        maps.append(_Map(name if len(grids) > 1 else "", values.double(), _Axis(parts), _Axis(layers)))
    scale = _around_zero(torch.cat([one.values.flatten() for one in maps]))
    label = "mean cosine (below 0: conflict)"
    return _figure(_in_rows(maps, panels), scale, 0.45, label, title=title, colors="RdBu")


# Their axes and scales --------------------------------------------------------------------


class _Axis(NamedTuple):
    """The rows or the columns of a map, as drawn: ``runs`` are parted and named, ``words`` say what the axis is."""

    labels: Sequence[str]
    runs: Sequence[Run] = ()
    words: str = ""


class _Map(NamedTuple):
    """One heat map, as drawn: float `[rows, columns]`, NaN = empty; ``framed``: (row, column) of cells."""

    title: str
    values: Tensor
    rows: _Axis
    columns: _Axis
    framed: Sequence[tuple[int, int]] = ()


def _axis(
    members: Sequence[Direction | str],
    families: Mapping[str, str] | None,
    by: str = "source",
    words: str = "",
) -> tuple[list[int], _Axis]:
    """The order of directions or languages, and their axis.

    Directions that all share English on one side are labelled by the other language.
    """
    order = in_family_order(members, families, by=by)
    ordered = [members[i] for i in order]
    directions = [one for one in ordered if isinstance(one, Direction)]
    labels = [one if isinstance(one, str) else one.arrow for one in ordered]
    if len({direction.group for direction in directions}) == 1:
        group = directions[0].group
        labels = [direction.foreign or direction.arrow for direction in directions]
        side = {FROM_ENGLISH: "target language of ", INTO_ENGLISH: "source language of "}.get(group, "")
        words = f"{words}, {group.arrow}" if words else f"{side}{group.arrow}"
    return order, _Axis(labels, runs_of(ordered, families, by=by), words)


def _iou_map(
    title: str, iou: Tensor, directions: Sequence[Direction], families: Mapping[str, str] | None, by: str
) -> _Map:
    """Overlaps in percent; the diagonal, always 100, stays empty."""
    n = len(directions)
    if n == 0 or tuple(iou.shape) != (n, n):
        raise NeuronSpecError(
            "a heat map needs the overlap of each pair of directions",
            where=title,
            got=f"shape {list(iou.shape)} for {n} directions",
            expected="[num_directions, num_directions], one direction or more",
        )
    order, axis = _axis(directions, families, by)
    percent = (100 * iou[order][:, order].double()).fill_diagonal_(torch.nan)
    return _Map(title, percent, axis._replace(words=""), axis)


def _iou_figure(rows: Sequence[Sequence[_Map]], cell: float, label: str = _IOU) -> Figure:
    overlaps = torch.cat([off_diagonal(one.values) for row in rows for one in row])
    overlaps = overlaps[~overlaps.isnan()]
    low, high = 0, 100
    if len(overlaps):
        low = min(math.floor(overlaps.min().item()), 98)
        high = max(math.ceil(overlaps.max().item()), low + 2)
    return _figure(rows, Normalize(low, high), cell, label)


def _in_rows(maps: Sequence[_Map], columns: int) -> list[Sequence[_Map]]:
    return [maps[start : start + columns] for start in range(0, len(maps), columns)]


def _around_zero(values: Tensor) -> Normalize:
    finite = values[values.isfinite()].abs()
    most = max(finite.max().item(), 1e-6) if len(finite) else 1.0
    return Normalize(-most, most)


def _cell(cells: int, width: float = 9.6) -> float:
    """The side of one of so many cells in a map of about ``width``, in inches: labels have room up to a hundred."""
    return max(min(0.085, 8.5 / cells), min(0.42, width / cells))


# Drawing ----------------------------------------------------------------------------------


def _figure(
    rows: Sequence[Sequence[_Map]],
    scale: Normalize,
    cell: float,
    label: str,
    *,
    title: str = "",
    colors: str = "viridis",
    empty: str = "#E8E8E8",
) -> Figure:
    """Maps in rows on one colour scale, whose bar stands at the right.

    Args:
        cell: the side of a cell, in inches.
        label: of the bar.
        empty: the colour of cells without a value.
    """
    figure = Drawing(figsize=(1, 1), dpi=DPI)  # until all sizes are known: fractions of it are inches
    palette = colormaps[colors].with_extremes(bad=empty)
    grid = [[_draw(figure, one, cell, palette, scale) for one in row] for row in rows]
    width, height = _arrange(grid)
    figure.set_size_inches(width, height)
    long = max(0.8 * height, 1.2) / height
    place = (1, 0.5 - long / 2, 0.14 / width, long)
    bar = figure.colorbar(
        grid[0][0].images[0], cax=figure.add_axes(place), ticks=MaxNLocator(7, steps=TICK_STEPS)
    )
    bar.set_label(label, fontsize=_WORDS, color=INK)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=8, length=2, color=MUTED)
    figure.suptitle(title, x=0, y=1, ha="left", va="bottom", fontsize=_TITLE, color=INK)
    return figure


def _arrange(grid: Sequence[Sequence[Axes]]) -> tuple[float, float]:
    """Place maps in rows, with room for the texts around each; return the figure's width and height, in inches."""
    maps = [ax for row in grid for ax in row]
    sizes = {ax: ax.get_position().size for ax in maps}
    boxes = [(ax.bbox.extents, box.extents) for ax in maps if (box := ax.get_tightbbox())]
    margins = [max(abs(outer[i] - inner[i]) / DPI for inner, outer in boxes) for i in range(4)]
    left, below, right, above = margins[0], margins[1], margins[2] + _GAP, margins[3] + _GAP
    corners: dict[Axes, tuple[float, float]] = {}
    width = depth = 0.0
    for row in grid:
        x = 0.0
        for ax in row:
            corners[ax] = x + left, depth + above + sizes[ax][1]
            x += left + sizes[ax][0] + right
        width = max(width, x)
        depth += above + max(sizes[ax][1] for ax in row) + below
    for ax, (x, y) in corners.items():
        ax.set_position((x / width, 1 - y / depth, sizes[ax][0] / width, sizes[ax][1] / depth))
    return width, depth


def _length(texts: Iterable[str], size: float) -> float:
    """Inches of the longest, roughly."""
    return 0.62 * size * POINT * max(map(len, texts), default=0)


def _draw(figure: Figure, one: _Map, cell: float, palette: Colormap, scale: Normalize) -> Axes:
    lines, cells = one.values.shape
    ax = figure.add_axes((0, 0, cells * cell, lines * cell))
    image = ax.imshow(one.values.numpy(), cmap=palette, norm=scale, interpolation="none", aspect="auto")
    _write_numbers(ax, image, one.values, cell)
    for row, column in one.framed:
        place = (column - 0.5, row - 0.5)
        ax.add_patch(Rectangle(place, 1, 1, fill=False, edgecolor=COLORS[1], linewidth=1.8, zorder=3))
    size = min(_WORDS, 0.75 * cell / POINT)
    ax.set_xticks([])
    ax.set_yticks([])
    if size >= _LEAST_LABEL:
        # Upright where they are wider than their column, as en→de is.
        rotation = 90 if _length(one.columns.labels, 1.2 * size) > cell else 0
        ax.set_xticks(range(cells), one.columns.labels, fontsize=size, rotation=rotation)
        ax.set_yticks(range(lines), one.rows.labels, fontsize=size)
    ax.tick_params(length=0, pad=3, colors=INK)
    ax.set_xlabel(one.columns.words, fontsize=_WORDS, color=INK)
    ax.set_ylabel(one.rows.words, fontsize=_WORDS, color=INK)
    ax.spines[:].set_visible(False)
    height = _name_families(ax, one, cell)
    # Lines and bars would otherwise widen the map.
    ax.set_xlim(-0.5, cells - 0.5)
    ax.set_ylim(lines - 0.5, -0.5)
    ax.set_title(one.title, fontsize=_TITLE, color=INK, loc="left", y=1.0, pad=height / POINT + 6)
    return ax


def _write_numbers(ax: Axes, image: AxesImage, values: Tensor, cell: float) -> None:
    """The numbers of all cells where there is room for the longest, with as many digits as the scale asks for."""
    largest = max(map(abs, image.get_clim()))
    decimals = 0 if largest >= 30 else 1 if largest >= 10 else 2 if largest >= 0.3 else 3
    cells = (~values.isnan()).nonzero().tolist()
    texts = [f"{values[row, column]:z.{decimals}f}" for row, column in cells]  # z: no minus before a zero
    size = min(_SMALL, 22 * cell, 0.9 * cell / max(_length(texts, 1), 1e-6))
    if size < _LEAST_NUMBER:
        return
    lightness = image.to_rgba(values.numpy())[..., :3] @ (0.3, 0.59, 0.11)
    for (row, column), text in zip(cells, texts, strict=True):
        color = "white" if lightness[row, column] < 0.5 else INK
        ax.text(column, row, text, ha="center", va="center", fontsize=size, color=color, in_layout=False)


def _name_families(ax: Axes, one: _Map, cell: float) -> float:
    """Part the runs of families by white lines, and name each by a bar above the columns and one at the right.

    Returns:
        The height of the names above, in inches.
    """
    line: dict[str, Any] = {"color": INK, "linewidth": 1.2, "solid_capstyle": "butt", "clip_on": False}
    text: dict[str, Any] = {
        "fontsize": _SMALL, "color": INK, "annotation_clip": False, "textcoords": "offset points"
    }  # fmt: skip
    edge = 0.06 / cell  # bars stand this far from the map, in cells
    top, right = -0.5 - edge, one.values.shape[1] - 0.5 + edge
    across, down = one.columns.runs, one.rows.runs
    is_crowded = any(_length([run.family], _SMALL) > (run.last - run.first + 1) * cell for run in across)
    above: dict[str, Any] = {"ha": "center", "va": "bottom", "rotation": 90 if is_crowded else 0, **text}
    for run in across:
        ax.plot([run.first - 0.42, run.last + 0.42], [top, top], **line)
        ax.annotate(run.family, ((run.first + run.last) / 2, top), xytext=(0, 3), **above)
    for run in down:
        ax.plot([right, right], [run.first - 0.42, run.last + 0.42], **line)
        ax.annotate(run.family, (right, (run.first + run.last) / 2), xytext=(4, 0), va="center", **text)
    for part, runs in ((ax.axvline, across), (ax.axhline, down)):
        for run in runs[1:]:
            part(run.first - 0.5, color="white", linewidth=1.5)
    if not across:
        return 0
    return 0.1 + (_length([run.family for run in across], _SMALL) if is_crowded else _SMALL * POINT)
