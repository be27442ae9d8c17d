"""The figures: overlap and sparsity of kept neurons, scores per direction.

Figures are made without pyplot, so drawing one changes no global state and needs no display. All
take fractions (0-1) and show percent. `kept` maps a layer such as `decoder.layers.0`, numbered from
zero as in the mask file, to bool `[num_directions, ffn_dim]`, True = kept.

Families come from the language table unless `families` (language -> family) is given. A language
without a known family is a family of its own.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from neuron_spec.artifacts import atomic_path
from neuron_spec.directions import UNKNOWN, Direction, language
from neuron_spec.errors import NeuronSpecError
from neuron_spec.neurons.overlap import off_diagonal, pairwise_iou, sparsity

PIVOT = "en"
DPI = 150

# Okabe and Ito's palette, told apart by colour-blind readers too, and markers for grey print.
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#444444")
_MARKERS = ("o", "D", "s", "^", "v", "P", "X")
_FROM_PIVOT, _INTO_PIVOT, _OTHER = f"{PIVOT}→x", f"x→{PIVOT}", "x→y"
_GROUP_COLORS = {_FROM_PIVOT: "#0072B2", _INTO_PIVOT: "#D55E00", _OTHER: "#009E73"}
_INK, _MUTED, _PALE = "#222222", "#777777", "#DDDDDD"
_COLOR_MAP = "viridis"
_CELLS_WITH_NUMBERS = 16  # up to so many directions
_LAYER_KEY = re.compile(r"(encoder|decoder)\.layers\.(\d+)")
_POINT = 1 / 72  # inch
_TICK_STEPS = [1, 2, 5, 10]


def save(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Write a PNG, whole or not at all; the same figure gives the same bytes."""
    with atomic_path(path) as temporary:
        figure.savefig(
            temporary, format="png", dpi=DPI, facecolor="white", bbox_inches="tight", pad_inches=0.1,
            metadata={"Software": None},
        )  # fmt: skip


def in_family_order(directions: Sequence[Direction], families: Mapping[str, str] | None = None) -> list[int]:
    """The order of directions on every axis, as indices into ``directions``.

    Directions out of English come first, then those into English; within each by the family of the
    language that is not English, then by its code.
    """
    groups = list(_GROUP_COLORS)

    def key(index: int) -> tuple[int, str, str, str]:
        direction = directions[index]
        foreign = _foreign(direction)
        return groups.index(_group(direction)), _family(foreign, families), foreign, str(direction)

    return sorted(range(len(directions)), key=key)


# Heat maps ------------------------------------------------------------------------------------


def iou_heatmap(
    iou: Tensor, directions: Sequence[Direction], title: str, *, families: Mapping[str, str] | None = None
) -> Figure:
    """Pairwise overlap in one layer, languages ordered by family.

    Args:
        iou: float `[num_directions, num_directions]`, a fraction.

    Raises:
        NeuronSpecError: if ``iou`` does not fit ``directions``.
    """
    n = len(directions)
    cell = 0.42 if n <= _CELLS_WITH_NUMBERS else max(0.12, 7.5 / n)
    return _heatmap_grid({title: iou}, directions, families, cell=cell, columns=1)


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
    n = max(1, len(directions))
    cell = max(2.7 / n, 0.3 if n <= _CELLS_WITH_NUMBERS else 0.05)
    return _heatmap_grid(ious, directions, families, cell=min(cell, 0.42), columns=columns)


def _heatmap_grid(
    ious: Mapping[str, Tensor],
    directions: Sequence[Direction],
    families: Mapping[str, str] | None,
    *,
    cell: float,
    columns: int,
) -> Figure:
    """``cell`` is the side of one cell in inches."""
    n = len(directions)
    for title, iou in ious.items():
        if n == 0 or tuple(iou.shape) != (n, n):
            raise NeuronSpecError(
                "a heat map needs the overlap of each pair of directions",
                where=title,
                got=f"shape {list(iou.shape)} for {n} directions",
                expected="[num_directions, num_directions], one direction or more",
            )
    order = in_family_order(directions, families)
    ordered = [directions[index] for index in order]
    percents = {title: 100 * iou[order][:, order].double() for title, iou in ious.items()}
    scale = _shared_scale(list(percents.values()))

    columns = min(columns, len(ious))
    rows = math.ceil(len(ious) / columns)
    side = max(n * cell, 1.2)
    figure = _figure(columns * (side + 1.5) + 1.0, rows * (side + 1.3))
    axes = figure.subplots(rows, columns, squeeze=False)
    for ax in list(axes.flat)[len(ious) :]:
        ax.remove()
    drawn = list(axes.flat)[: len(ious)]
    for ax, (title, percent) in zip(drawn, percents.items(), strict=True):
        _draw_heatmap(ax, title, percent, ordered, families, scale=scale, cell=side / n)

    bar = figure.colorbar(
        drawn[0].images[0], ax=drawn, shrink=0.8, aspect=28, pad=0.02, ticks=MaxNLocator(7, steps=_TICK_STEPS)
    )
    bar.set_label("IoU of kept neurons (%)", fontsize=9, color=_INK)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=8, length=2, color=_MUTED)
    return figure


def _shared_scale(percents: Sequence[Tensor]) -> Normalize:
    """A scale over the overlaps of different directions; the diagonal, always 100, would flatten it."""
    values = torch.cat([off_diagonal(percent) for percent in percents])
    if len(values) == 0:
        return Normalize(0, 100)
    low, high = math.floor(values.min().item()), math.ceil(values.max().item())
    return Normalize(min(low, 98), max(high, low + 2))


def _draw_heatmap(
    ax: Axes,
    title: str,
    percent: Tensor,
    ordered: Sequence[Direction],
    families: Mapping[str, str] | None,
    *,
    scale: Normalize,
    cell: float,
) -> None:
    n = len(ordered)
    shown = percent.clone().fill_diagonal_(math.nan).numpy()
    colors = colormaps[_COLOR_MAP].with_extremes(bad="#EEEEEE")
    ax.imshow(shown, cmap=colors, norm=scale, interpolation="nearest")

    if n <= _CELLS_WITH_NUMBERS and cell >= 0.24:
        for row in range(n):
            for column in range(n):
                if row != column:
                    is_dark = scale(shown[row, column]) < 0.6
                    ax.text(
                        column, row, f"{shown[row, column]:.0f}", ha="center", va="center",
                        fontsize=min(8.0, 22 * cell), color="white" if is_dark else _INK,
                    )  # fmt: skip

    labels, axis_title = _axis_labels(ordered)
    size = min(9.0, 0.75 * cell / _POINT)
    if size >= 4.5:
        # A full direction such as en→de is wider than its cell.
        is_wide = 0.65 * size * _POINT * max(map(len, labels)) > cell
        ax.set_xticks(range(n), labels, fontsize=size, rotation=90 if is_wide else 0)
        ax.set_yticks(range(n), labels, fontsize=size)
    else:
        ax.set_xticks([])
        ax.set_yticks([])
    ax.tick_params(length=0, pad=3, colors=_INK)
    if axis_title:
        ax.set_xlabel(axis_title, fontsize=9, color=_MUTED)
    for spine in ax.spines.values():
        spine.set_visible(False)
    name_height = _draw_families(ax, ordered, families, cell=cell)
    ax.set_title(title, fontsize=11, color=_INK, loc="left", y=1.0, pad=name_height + 17)


def _draw_families(
    ax: Axes, ordered: Sequence[Direction], families: Mapping[str, str] | None, *, cell: float
) -> float:
    """Name each run of one family by a bar above the map and one at its right.

    Returns:
        The height of the names above, in points.
    """
    n = len(ordered)
    runs: list[tuple[str, int, int]] = []  # name, first, last
    for (_, name), members in groupby(
        range(n), key=lambda i: (_group(ordered[i]), _family(_foreign(ordered[i]), families))
    ):
        positions = list(members)
        runs.append((name, positions[0], positions[-1]))

    font = 8.0
    widths = [0.6 * font * len(name) for name, _, _ in runs]  # points, roughly
    is_crowded = any(
        width * _POINT > (last - first + 1) * cell
        for width, (_, first, last) in zip(widths, runs, strict=True)
    )
    edge = 0.06 / cell  # bars stand this far from the map, in cells
    line: dict[str, Any] = {"color": _INK, "linewidth": 1.2, "solid_capstyle": "butt", "clip_on": False}
    text: dict[str, Any] = {
        "fontsize": font, "color": _INK, "annotation_clip": False, "textcoords": "offset points"
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
    groups = {_group(direction) for direction in ordered}
    if groups == {_FROM_PIVOT}:
        return [direction.target for direction in ordered], f"target language of {_FROM_PIVOT}"
    if groups == {_INTO_PIVOT}:
        return [direction.source for direction in ordered], f"source language of {_INTO_PIVOT}"
    return [_arrow(direction) for direction in ordered], ""


# Curves over layers ---------------------------------------------------------------------------


def sparsity_per_layer(kept: Mapping[str, Tensor], directions: Sequence[Direction]) -> Figure:
    """Percent of dropped neurons over the layers: each direction thin, the mean of each group thick.

    Args:
        kept: layer -> bool `[num_directions, ffn_dim]`, True = kept.

    Raises:
        NeuronSpecError: if a layer's name or shape is wrong, or there is none.
    """
    sides = _by_side(kept, directions)
    groups = [group for group in _GROUP_COLORS if any(_group(d) == group for d in directions)]
    figure = _figure(*_curve_size(kept))
    axes = _side_axes(figure, sides)
    highest = 0.0
    for ax, (side, layers) in zip(axes, sides.items(), strict=True):
        percent = 100 * torch.stack([sparsity(kept[key]) for key in layers.values()])  # [layers, directions]
        highest = max(highest, percent.max().item())
        positions = range(len(layers))
        for group in groups:
            members = [i for i, direction in enumerate(directions) if _group(direction) == group]
            color = _GROUP_COLORS[group]
            ax.plot(positions, percent[:, members].numpy(), color=color, linewidth=0.8, alpha=0.35)
            ax.plot(
                positions, percent[:, members].mean(dim=1).numpy(), color=color, linewidth=2.4,
                marker="o", markersize=4.5, solid_capstyle="round",
            )  # fmt: skip
        _layer_axis(ax, f"{side} layer", layers)
    axes[0].set_ylim(0, max(5.0, 1.08 * highest))
    axes[0].set_ylabel("dropped neurons (%)", fontsize=9, color=_INK)
    handles = [
        Line2D(
            [],
            [],
            color=_GROUP_COLORS[group],
            linewidth=2.4,
            marker="o",
            markersize=4.5,
            label=f"{group}, mean",
        )
        for group in groups
    ]
    handles.append(Line2D([], [], color=_MUTED, linewidth=0.8, label="one direction"))
    _legend_above(figure, "Sparsity per layer", handles)
    return figure


def iou_over_layers(
    kept: Mapping[str, Tensor], directions: Sequence[Direction], *, families: Mapping[str, str] | None = None
) -> Figure:
    """How the overlap of directions changes over the layers, with the means within and between families.

    The encoder is compared between source languages (directions into English), the decoder between
    target languages (directions out of English); where there are no two of those, between all.

    Args:
        kept: layer -> bool `[num_directions, ffn_dim]`, True = kept.

    Raises:
        NeuronSpecError: if a layer's name or shape is wrong, or there is none.
    """
    sides = _by_side(kept, directions)
    figure = _figure(*_curve_size(kept))
    axes = _side_axes(figure, sides)
    lowest, highest = 100.0, 0.0
    for ax, (side, layers) in zip(axes, sides.items(), strict=True):
        members, compared = _compared(side, directions)
        _layer_axis(ax, f"{side} layer, {compared}", layers)
        if len(members) < 2:
            ax.text(
                0.5, 0.5, "no pair of directions\nto compare", transform=ax.transAxes,
                ha="center", va="center", fontsize=9, color=_MUTED,
            )  # fmt: skip
            continue
        values = torch.stack(
            [100 * off_diagonal(pairwise_iou(kept[key][members])) for key in layers.values()]
        )
        lowest, highest = min(lowest, values.min().item()), max(highest, values.max().item())
        _draw_overlaps(ax, values, _is_same_family([directions[i] for i in members], families))
    if lowest > highest:  # no pair anywhere
        lowest, highest = 0.0, 100.0
    margin = max(1.0, 0.06 * (highest - lowest))
    axes[0].set_ylim(max(0.0, min(lowest, highest - 5) - margin), min(highest + margin, 100.5))
    axes[0].yaxis.set_major_locator(MaxNLocator(7, steps=_TICK_STEPS))
    axes[0].set_ylabel("IoU of kept neurons (%)", fontsize=9, color=_INK)
    _legend_above(
        figure,
        "Overlap over layers",
        [
            Line2D(
                [], [], color=_COLORS[1], linewidth=1.6, marker="D", markersize=4.5, label="within families"
            ),
            Line2D(
                [], [], color=_COLORS[0], linewidth=1.6, marker="o", markersize=4.5, label="between families"
            ),
            Line2D([], [], color=_PALE, linewidth=7, label="all pairs: quartiles, median, range"),
        ],
    )
    return figure


def _draw_overlaps(ax: Axes, values: Tensor, is_same: Tensor) -> None:
    """``values``: percent `[layers, pairs]`; ``is_same``: bool `[pairs]`, both of one family."""
    ax.boxplot(
        list(values.numpy()), positions=range(len(values)), widths=0.5, whis=(0, 100), showcaps=False,
        patch_artist=True, manage_ticks=False,
        boxprops={"facecolor": _PALE, "edgecolor": "none"},
        whiskerprops={"color": _MUTED, "linewidth": 0.8},
        medianprops={"color": _MUTED, "linewidth": 1.6},
    )  # fmt: skip
    for chosen, color, marker in ((~is_same, _COLORS[0], "o"), (is_same, _COLORS[1], "D")):
        if chosen.any():
            ax.plot(
                range(len(values)), values[:, chosen].mean(dim=1).numpy(), color=color, linewidth=1.6,
                marker=marker, markersize=4.5, zorder=3,
            )  # fmt: skip


def _compared(side: str, directions: Sequence[Direction]) -> tuple[list[int], str]:
    group, words = (
        (_INTO_PIVOT, f"source languages of {_INTO_PIVOT}")
        if side == "encoder"
        else (_FROM_PIVOT, f"target languages of {_FROM_PIVOT}")
    )
    members = [i for i, direction in enumerate(directions) if _group(direction) == group]
    return (members, words) if len(members) >= 2 else (list(range(len(directions))), "all directions")


def _is_same_family(directions: Sequence[Direction], families: Mapping[str, str] | None) -> Tensor:
    """bool `[pairs]`, in the order of `off_diagonal`."""
    names = [_family(_foreign(direction), families) for direction in directions]
    return off_diagonal(torch.tensor([[a == b for b in names] for a in names]))


def _by_side(kept: Mapping[str, Tensor], directions: Sequence[Direction]) -> dict[str, dict[int, str]]:
    """``encoder``, ``decoder`` -> layer number -> key of ``kept``, in the model's order."""
    sides: dict[str, dict[int, str]] = {}
    parsed = {key: _LAYER_KEY.fullmatch(key) for key in kept}
    for key, match in parsed.items():
        if match is None:
            raise NeuronSpecError(
                "not the name of a layer", got=repr(key), expected="such as 'encoder.layers.0'"
            )
        if not directions or kept[key].shape[0] != len(directions):
            raise NeuronSpecError(
                "kept neurons do not fit the directions",
                where=key,
                got=f"shape {list(kept[key].shape)} for {len(directions)} directions",
                expected="[num_directions, ffn_dim], one direction or more",
            )
    for side in ("encoder", "decoder"):
        numbers = sorted((int(m[2]), key) for key, m in parsed.items() if m and m[1] == side)
        if numbers:
            sides[side] = dict(numbers)
    if not sides:
        raise NeuronSpecError("no layers to draw", expected="kept neurons of one layer or more")
    return sides


def _curve_size(kept: Mapping[str, Tensor]) -> tuple[float, float]:
    return max(6.6, 0.55 * len(kept) + 1.5), 3.7


def _side_axes(figure: Figure, sides: Mapping[str, Mapping[int, str]]) -> list[Axes]:
    """One panel each for encoder and decoder, as wide as they have layers, with one y axis."""
    ratios = [max(2, len(layers)) for layers in sides.values()]
    return list(figure.subplots(1, len(sides), sharey=True, squeeze=False, width_ratios=ratios)[0])


def _layer_axis(ax: Axes, words: str, layers: Mapping[int, str]) -> None:
    ax.set_xticks(range(len(layers)), [str(number) for number in layers], fontsize=8)
    ax.set_xlim(-0.6, len(layers) - 0.4)
    ax.set_xlabel(words, fontsize=9, color=_INK)
    _plain_axis(ax)
    ax.grid(axis="y", color=_PALE, linewidth=0.6)


# Scores ---------------------------------------------------------------------------------------


def scores_bars(
    rows: Mapping[str, Mapping[str, float]], metric: str, *, families: Mapping[str, str] | None = None
) -> Figure:
    """Scores of several systems side by side, one line per direction, and the mean over shared ones.

    Dots rather than bars: systems differ by a few points, which an axis from zero would hide.

    Args:
        rows: system -> direction such as ``de-en`` -> score. A missing score leaves a gap.

    Raises:
        NeuronSpecError: if there are no scores or more systems than colours.
        DirectionError: if a direction is malformed.
    """
    directions = [
        Direction.parse(text) for text in dict.fromkeys(text for row in rows.values() for text in row)
    ]
    if not directions or len(rows) > len(_COLORS):
        raise NeuronSpecError(
            "scores cannot be drawn",
            got=f"{len(rows)} systems, {len(directions)} directions",
            expected=f"1 to {len(_COLORS)} systems with one score or more",
        )
    ordered = [directions[index] for index in in_family_order(directions, families)]
    panels = [(group, [d for d in ordered if _group(d) == group]) for group in _GROUP_COLORS]
    panels = [(group, members) for group, members in panels if members]

    longest = max(len(members) for _, members in panels)
    figure = _figure(1.2 + 3.6 * len(panels), 1.3 + 0.22 * (longest + 1))
    axes = figure.subplots(1, len(panels), sharex=True, squeeze=False)[0]
    for ax, (group, members) in zip(axes, panels, strict=True):
        _draw_scores(ax, rows, members)
        ax.set_ylim(longest + 1.1, -0.7)  # equal line heights in all panels
        ax.set_title(group, fontsize=10, color=_INK, loc="left")
        ax.set_xlabel(metric, fontsize=9, color=_INK)
    handles = [
        Line2D([], [], color=color, marker=marker, markersize=5.5, linestyle="none", label=system)
        for system, color, marker in zip(rows, _COLORS, _MARKERS, strict=False)
    ]
    _legend_above(figure, f"{metric} per direction", handles)
    return figure


def _draw_scores(ax: Axes, rows: Mapping[str, Mapping[str, float]], members: Sequence[Direction]) -> None:
    shared = [str(direction) for direction in members if all(str(direction) in row for row in rows.values())]
    lines: list[tuple[float, list[float | None]]] = [
        (float(y), [row.get(str(direction)) for row in rows.values()]) for y, direction in enumerate(members)
    ]
    labels = [_arrow(direction) for direction in members]
    if shared:
        lines.append(
            (len(members) + 0.4, [sum(row[d] for d in shared) / len(shared) for row in rows.values()])
        )
        labels.append("mean" if len(shared) == len(members) else f"mean of {len(shared)}")
        ax.axhline(len(members) - 0.3, color=_MUTED, linewidth=0.6)
    for y, scores in lines:
        present = [score for score in scores if score is not None]
        ax.plot([min(present), max(present)], [y, y], color="#BBBBBB", linewidth=1.2, zorder=1)
        for score, color, marker in zip(scores, _COLORS, _MARKERS, strict=False):
            if score is not None:
                ax.scatter([score], [y], color=color, marker=marker, s=26, linewidths=0, zorder=2)
    ax.set_yticks([y for y, _ in lines], labels, fontsize=8)
    ax.xaxis.set_major_locator(MaxNLocator(6, steps=_TICK_STEPS))
    ax.tick_params(axis="x", labelsize=8)
    ax.margins(x=0.06)
    _plain_axis(ax)
    ax.grid(axis="x", color=_PALE, linewidth=0.6)


# Shared by all --------------------------------------------------------------------------------


def _figure(width: float, height: float) -> Figure:
    """``width`` and ``height`` in inches."""
    return Figure(figsize=(width, height), dpi=DPI, layout="constrained")


def _legend_above(figure: Figure, title: str, handles: Sequence[Line2D]) -> None:
    legend = figure.legend(
        handles=list(handles), loc="outside upper left", ncols=4, frameon=False, fontsize=8.5,
        title=title, title_fontsize=11, alignment="left",
        handletextpad=0.6, columnspacing=1.8, borderaxespad=0.2, borderpad=0.2,
    )  # fmt: skip
    legend.get_title().set_color(_INK)


def _plain_axis(ax: Axes) -> None:
    for name in ("top", "right", "left"):
        ax.spines[name].set_visible(False)
    ax.spines["bottom"].set_color(_MUTED)
    ax.tick_params(length=0, colors=_INK, labelsize=8)
    ax.set_axisbelow(True)


def _foreign(direction: Direction) -> str:
    """The side that is not English, by which a direction is placed; the source where neither is."""
    return direction.target if direction.source == PIVOT else direction.source


def _family(code: str, families: Mapping[str, str] | None) -> str:
    family = language(code).family if families is None else families.get(code, UNKNOWN)
    return code if family == UNKNOWN else family


def _group(direction: Direction) -> str:
    if direction.source == PIVOT:
        return _FROM_PIVOT
    return _INTO_PIVOT if direction.target == PIVOT else _OTHER


def _arrow(direction: Direction) -> str:
    return f"{direction.source}→{direction.target}"
