"""The figures: overlap and sparsity of kept neurons, dendrograms of languages, scores per direction.

Figures are made without pyplot, so drawing one changes no global state and needs no display. All
take fractions (0-1) and show percent. `kept` maps a layer such as `decoder.layers.0`, numbered from
zero as in the mask file, to bool `[num_directions, ffn_dim]`, True = kept.

Families come from the language table unless `families` (language -> family) is given. Languages
without a known family stand last, as "unknown".
"""

from __future__ import annotations

import io
import math
import os
import re
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import torch
from matplotlib import colormaps, rc_context
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from neuron_spec.artifacts import atomic_path
from neuron_spec.directions import (
    FROM_ENGLISH,
    GROUPS,
    INTO_ENGLISH,
    UNKNOWN,
    WITHOUT_ENGLISH,
    Direction,
    family_of,
)
from neuron_spec.errors import NeuronSpecError
from neuron_spec.neurons.activations import is_head_site
from neuron_spec.neurons.overlap import (
    Compared,
    Tree,
    compared,
    off_diagonal,
    pairwise_iou,
    sparsity,
)
from neuron_spec.pages.page import Picture
from neuron_spec.scoring.comparison import METRICS, TIE, Comparison, DirectionComparison

DPI = 150

# Okabe and Ito's palette, told apart by colour-blind readers too, and markers for grey print.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#444444")
_MARKERS = ("o", "D", "s", "^", "v", "P", "X")
_GROUP_COLORS = {
    FROM_ENGLISH.arrow: "#0072B2",
    INTO_ENGLISH.arrow: "#D55E00",
    WITHOUT_ENGLISH.arrow: "#009E73",
}
_GROUP_WORDS = {**{group.key: group.arrow for group in GROUPS}, "all": "all directions"}
_INK, _MUTED, _PALE = "#222222", "#777777", "#DDDDDD"
_COLOR_MAP = "viridis"
_CELL_WITH_NUMBER = 0.24  # inches, at least
_LAYER_KEY = re.compile(r"(encoder|decoder)\.layers\.(\d+)")
_POINT = 1 / 72  # inch
_TICK_STEPS = [1, 2, 5, 10]
_LEGEND_COLUMNS = 4


def save(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Write a PNG or, if ``path`` ends so, an SVG, whole or not at all; the same figure gives the same bytes."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(rendered(figure, "svg" if Path(path).suffix == ".svg" else "png"))


def rendered(figure: Figure, kind: str) -> bytes:
    """The bytes of a ``png`` or ``svg``; the same figure gives the same."""
    drawn = io.BytesIO()
    with rc_context({"svg.hashsalt": "neuron_spec"}):
        figure.savefig(
            drawn, format=kind, dpi=DPI, facecolor="white", bbox_inches="tight",
            pad_inches=0.1, metadata={"Date" if kind == "svg" else "Software": None},
        )  # fmt: skip
    return drawn.getvalue()


def drawn(name: str, caption: str, figure: Figure) -> Picture:
    """A figure for a page."""
    return Picture(name, caption, rendered(figure, "png"), rendered(figure, "svg"))


def in_family_order(
    directions: Sequence[Direction], families: Mapping[str, str] | None = None, *, by: str = "source"
) -> list[int]:
    """The order of directions on every axis, as indices into ``directions``.

    Directions out of English come first, then those into English; within each by the family of the
    language that is not English, then by its code.

    Args:
        by: ``source`` or ``target``, the language that places a direction without English.
    """
    groups = list(_GROUP_COLORS)

    def key(index: int) -> tuple[int, tuple[bool, str, str], str]:
        direction = directions[index]
        return groups.index(direction.group.arrow), _place(direction.placed_by(by), families), str(direction)

    return sorted(range(len(directions)), key=key)


# Heat maps ------------------------------------------------------------------------------------


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
    for side, layers in _by_side(kept, directions).items():
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
    figure = _figure(columns * (side + 1.5) + 1.0, len(rows) * (side + 1.3))
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
        ticks=MaxNLocator(7, steps=_TICK_STEPS),
    )  # fmt: skip
    bar.set_label("IoU of kept neurons (%)", fontsize=9, color=_INK)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=8, length=2, color=_MUTED)
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
                        fontsize=min(8.0, 22 * cell), color="white" if is_dark else _INK,
                    )  # fmt: skip

    labels, axis_title = _axis_labels(ordered)
    size = min(9.0, 0.75 * cell / _POINT)
    if size >= 4.5:
        # A full direction such as en→de is wider than its cell.
        is_wide = 0.75 * size * _POINT * max(map(len, labels)) > cell
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
    name_height = _draw_families(ax, ordered, families, by=by, cell=cell)
    ax.set_title(title, fontsize=11, color=_INK, loc="left", y=1.0, pad=name_height + 17)


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
    groups = {direction.group.arrow for direction in ordered}
    if groups == {FROM_ENGLISH.arrow}:
        return [direction.target for direction in ordered], f"target language of {FROM_ENGLISH.arrow}"
    if groups == {INTO_ENGLISH.arrow}:
        return [direction.source for direction in ordered], f"source language of {INTO_ENGLISH.arrow}"
    return [direction.arrow for direction in ordered], ""


# Curves over layers ---------------------------------------------------------------------------


def sparsity_per_layer(kept: Mapping[str, Tensor], directions: Sequence[Direction]) -> Figure:
    """Percent of dropped neurons over the layers: mean, least and most of each group of directions.

    Args:
        kept: layer -> bool `[num_directions, ffn_dim]`, True = kept.

    Raises:
        NeuronSpecError: if a layer's name or shape is wrong, or there is none.
    """
    sides = _by_side(kept, directions)
    groups = [group for group in _GROUP_COLORS if any(d.group.arrow == group for d in directions)]
    figure = _figure(*_curve_size(kept))
    axes = _side_axes(figure, sides)
    highest = 0.0
    for ax, (side, layers) in zip(axes, sides.items(), strict=True):
        percent = 100 * torch.stack([sparsity(kept[key]) for key in layers.values()])  # [layers, directions]
        highest = max(highest, percent.max().item())
        for place, group in enumerate(groups):
            # Side by side, so that neither group hides the other.
            positions = [layer + 0.16 * (place - (len(groups) - 1) / 2) for layer in range(len(layers))]
            own = percent[:, [direction.group.arrow == group for direction in directions]]
            color, marker = _GROUP_COLORS[group], _MARKERS[place]
            ax.vlines(positions, own.amin(dim=1), own.amax(dim=1), color=color, linewidth=4, alpha=0.35)
            ax.plot(
                positions, own.mean(dim=1).numpy(), color=color, linewidth=1.4, marker=marker, markersize=4.5,
                solid_capstyle="round", clip_on=False,
            )  # fmt: skip
        _layer_axis(ax, f"{side} layer", layers)
    axes[0].set_ylim(0, max(5.0, 1.08 * highest))
    axes[0].set_ylabel("dropped neurons (%)", fontsize=9, color=_INK)
    handles = [
        Line2D(
            [], [], color=_GROUP_COLORS[group], linewidth=1.4, marker=marker, markersize=4.5,
            label=f"{group}, mean",
        )
        for group, marker in zip(groups, _MARKERS, strict=False)
    ]  # fmt: skip
    handles.append(Line2D([], [], color=_PALE, linewidth=4, label="least to most of the group's directions"))
    _legend_above(figure, "Sparsity per layer", handles)
    return figure


def iou_over_layers(
    kept: Mapping[str, Tensor],
    directions: Sequence[Direction],
    *,
    families: Mapping[str, str] | None = None,
    group: str = "own",
) -> Figure:
    """How the overlap of languages changes over the layers, pairs within and between families apart.

    Args:
        kept: layer -> bool `[num_directions, ffn_dim]`, True = kept.
        group: which directions are compared, as in `overlap.compared`.

    Raises:
        NeuronSpecError: if a layer's name or shape is wrong, or there is none.
    """
    sides = _by_side(kept, directions)
    width, height = _curve_size(kept)
    figure = _figure(max(width, 0.75 * len(kept) + 1.5), height)
    axes = _side_axes(figure, sides)
    lowest, highest = 100.0, 0.0
    shown: set[str] = set()
    for ax, (side, layers) in zip(axes, sides.items(), strict=True):
        chosen = compared(side, directions, group)
        _layer_axis(ax, f"{side} layer, {_words(chosen)}", layers)
        if len(chosen.distinct) < 2:
            _say(ax, "no pair of languages\nto compare")
            continue
        values = torch.stack(
            [100 * off_diagonal(chosen.language_iou(kept[key])) for key in layers.values()]
        )  # [layers, pairs]
        lowest, highest = min(lowest, values.min().item()), max(highest, values.max().item())
        shown |= _draw_overlaps(ax, values, _kinds_of_pairs(chosen.distinct, families))
    if lowest > highest:  # no pair anywhere
        lowest, highest = 0.0, 100.0
    margin = max(1.0, 0.06 * (highest - lowest))
    axes[0].set_ylim(max(0.0, min(lowest, highest - 5) - margin), min(highest + margin, 100.5))
    axes[0].yaxis.set_major_locator(MaxNLocator(7, steps=_TICK_STEPS))
    axes[0].set_ylabel("IoU of kept neurons (%)", fontsize=9, color=_INK)
    handles = [
        Line2D([], [], color=color, linewidth=1.2, marker=marker, markersize=4.5, label=kind)
        for kind, (color, marker) in _PAIR_KINDS.items()
        if kind in shown
    ]
    if shown:
        handles.append(Line2D([], [], color=_PALE, linewidth=7, label="quartiles, median, range; line: mean"))
    _legend_above(figure, "Overlap over layers", handles)
    return figure


_WITHIN, _BETWEEN, _UNTOLD = "within families", "between families", "family unknown"
_PAIR_KINDS = {_WITHIN: (COLORS[1], "D"), _BETWEEN: (COLORS[0], "o"), _UNTOLD: (_MUTED, "X")}


def _draw_overlaps(ax: Axes, values: Tensor, kinds: Sequence[str]) -> set[str]:
    """Draw percent `[layers, pairs]`, each kind of pairs apart; return the kinds that occur."""
    present = [kind for kind in _PAIR_KINDS if kind in kinds]
    step = 0.72 / len(present)
    for place, kind in enumerate(present):
        color, marker = _PAIR_KINDS[kind]
        chosen = values[:, [other == kind for other in kinds]]
        positions = [layer + (place - (len(present) - 1) / 2) * step for layer in range(len(values))]
        ax.boxplot(
            list(chosen.numpy()), positions=positions, widths=min(0.4, 0.8 * step), whis=(0, 100),
            showcaps=False, showfliers=False, patch_artist=True, manage_ticks=False,
            boxprops={"facecolor": color, "alpha": 0.25, "edgecolor": "none"},
            whiskerprops={"color": color, "linewidth": 0.8},
            medianprops={"color": color, "linewidth": 1.4},
        )  # fmt: skip
        ax.plot(
            positions, chosen.mean(dim=1).numpy(), color=color, linewidth=1.2, marker=marker, markersize=4.5,
            zorder=3,
        )  # fmt: skip
    return set(present)


def _kinds_of_pairs(codes: Sequence[str], families: Mapping[str, str] | None) -> list[str]:
    """Of each pair of languages, in the order of `off_diagonal`."""
    own = [family_of(code, families) for code in codes]
    kinds = []
    for first, second in torch.triu_indices(len(own), len(own), offset=1).T.tolist():
        if UNKNOWN in (own[first], own[second]):
            kinds.append(_UNTOLD)
        else:
            kinds.append(_WITHIN if own[first] == own[second] else _BETWEEN)
    return kinds


def _words(chosen: Compared) -> str:
    return f"{chosen.by} languages, {_GROUP_WORDS[chosen.group]}"


def _say(ax: Axes, text: str) -> None:
    """In the middle of a panel that would be empty."""
    ax.text(0.5, 0.5, text, transform=ax.transAxes, ha="center", va="center", fontsize=9, color=_MUTED)


def _by_side(kept: Mapping[str, Tensor], directions: Sequence[Direction]) -> dict[str, dict[int, str]]:
    """``encoder``, ``decoder`` -> layer number -> key of ``kept``, in the model's order."""
    sides: dict[str, dict[int, str]] = {}
    parsed = {key: _LAYER_KEY.fullmatch(key) for key in kept if not is_head_site(key)}
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


# Dendrograms ----------------------------------------------------------------------------------


def dendrograms(
    trees: Mapping[str, Tree | None], *, families: Mapping[str, str] | None = None, title: str = "Dendrogram"
) -> Figure:
    """Languages clustered by the overlap of their sets, leaves marked by family.

    Args:
        trees: panel such as ``encoder`` -> its tree; None draws a panel that says so.

    Raises:
        NeuronSpecError: if there is no panel, or scipy is missing.
    """
    if not trees:
        raise NeuronSpecError("no trees to draw", expected="one side or more")
    codes = {code for tree in trees.values() if tree is not None for code in tree.languages}
    known = sorted({family_of(code, families) for code in codes} - {UNKNOWN})
    looks = {
        # Colours repeat after seven families, then with other markers.
        family: (COLORS[i % len(COLORS)], _MARKERS[(i + i // len(COLORS)) % len(_MARKERS)])
        for i, family in enumerate(known)
    }
    most = max([len(tree.languages) for tree in trees.values() if tree is not None], default=2)
    legend_lines = math.ceil((len(known) + 1) / _LEGEND_COLUMNS)
    figure = _figure(1.0 + 3.6 * len(trees), 1.3 + 0.2 * max(most, 4) + 0.2 * legend_lines)
    for ax, (panel, tree) in zip(
        figure.subplots(1, len(trees), squeeze=False)[0], trees.items(), strict=True
    ):
        ax.set_xlabel(f"{panel}: 1 − IoU (%)", fontsize=9, color=_INK)
        _plain_axis(ax)
        if tree is None:
            ax.set_xticks([])
            ax.set_yticks([])
            _say(ax, "no pair of languages\nto compare")
        else:
            _draw_tree(ax, tree, {code: looks.get(family_of(code, families)) for code in tree.languages})
    handles = [
        Line2D([], [], color=color, marker=marker, markersize=6, linestyle="none", label=family)
        for family, (color, marker) in looks.items()
    ]
    if any(family_of(code, families) == UNKNOWN for code in codes):
        handles.append(Line2D([], [], **_UNKNOWN_LEAF, markersize=6, linestyle="none", label=UNKNOWN))
    _legend_above(figure, title, handles)
    return figure


_UNKNOWN_LEAF: dict[str, Any] = {"color": _MUTED, "marker": "o", "markerfacecolor": "white"}


def _draw_tree(ax: Axes, tree: Tree, looks: Mapping[str, tuple[str, str] | None]) -> None:
    """Root at the left, leaves at the right; ``looks``: colour and marker of a leaf, None = unknown family."""
    leaves, lines = tree.drawing()
    for places, distances in lines:
        ax.plot([100 * d for d in distances], places, color=_MUTED, linewidth=1.1, zorder=1)
    longest = max(5e-3, *(d for _, distances in lines for d in distances))
    for place, code in enumerate(leaves):
        look = looks[code]
        style = _UNKNOWN_LEAF if look is None else {"color": look[0], "marker": look[1]}
        ax.plot([0], [place], **style, markersize=6, linestyle="none", clip_on=False, zorder=2)
    ax.set_yticks(range(len(leaves)), leaves, fontsize=9)
    ax.yaxis.tick_right()
    ax.tick_params(axis="y", pad=7)
    ax.set_ylim(len(leaves) - 0.4, -0.6)
    ax.set_xlim(100 * 1.05 * longest, 0)
    ax.xaxis.set_major_locator(MaxNLocator(6, steps=_TICK_STEPS))
    ax.grid(axis="x", color=_PALE, linewidth=0.6)


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
    if not directions or len(rows) > len(COLORS):
        raise NeuronSpecError(
            "scores cannot be drawn",
            got=f"{len(rows)} systems, {len(directions)} directions",
            expected=f"1 to {len(COLORS)} systems with one score or more",
        )
    ordered = [directions[index] for index in in_family_order(directions, families)]
    panels = [(group, [d for d in ordered if d.group.arrow == group]) for group in _GROUP_COLORS]
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
        for system, color, marker in zip(rows, COLORS, _MARKERS, strict=False)
    ]
    _legend_above(figure, f"{metric} per direction", handles)
    return figure


def _draw_scores(ax: Axes, rows: Mapping[str, Mapping[str, float]], members: Sequence[Direction]) -> None:
    shared = [str(direction) for direction in members if all(str(direction) in row for row in rows.values())]
    lines: list[tuple[float, list[float | None]]] = [
        (float(y), [row.get(str(direction)) for row in rows.values()]) for y, direction in enumerate(members)
    ]
    labels = [direction.arrow for direction in members]
    if shared:
        lines.append(
            (len(members) + 0.4, [sum(row[d] for d in shared) / len(shared) for row in rows.values()])
        )
        labels.append("mean" if len(shared) == len(members) else f"mean of {len(shared)}")
        ax.axhline(len(members) - 0.3, color=_MUTED, linewidth=0.6)
    for y, scores in lines:
        present = [score for score in scores if score is not None]
        ax.plot([min(present), max(present)], [y, y], color="#BBBBBB", linewidth=1.2, zorder=1)
        for score, color, marker in zip(scores, COLORS, _MARKERS, strict=False):
            if score is not None:
                ax.scatter([score], [y], color=color, marker=marker, s=26, linewidths=0, zorder=2)
    ax.set_yticks([y for y, _ in lines], labels, fontsize=8)
    ax.xaxis.set_major_locator(MaxNLocator(6, steps=_TICK_STEPS))
    ax.tick_params(axis="x", labelsize=8)
    ax.margins(x=0.06)
    _plain_axis(ax)
    ax.grid(axis="x", color=_PALE, linewidth=0.6)


def score_differences(comparison: Comparison) -> Figure:
    """Every system's difference to the baseline per direction, ordered by family; a panel per metric.

    A line is the 95 % interval over sentences, a dot one seed, filled if it is a win or a loss. Several
    seeds have their mean as an upright bar.

    Raises:
        NeuronSpecError: if there are more systems than colours.
    """
    systems = list(dict.fromkeys(row.system for row in comparison.directions))
    if not 0 < len(systems) <= len(COLORS):
        raise NeuronSpecError(
            "differences cannot be drawn",
            got=f"{len(systems)} systems and a baseline",
            expected=f"1 to {len(COLORS)} systems",
        )
    directions = list(dict.fromkeys(row.direction for row in comparison.directions))
    families = {row.direction.placed_by("source"): row.family for row in comparison.directions if row.family}
    ordered = [directions[index] for index in in_family_order(directions, families)]

    line_height = 0.2 + 0.12 * (len(systems) - 1)
    figure = _figure(1.6 + 3.6 * len(METRICS), 1.6 + line_height * len(ordered))
    axes = figure.subplots(1, len(METRICS), sharey=True, squeeze=False)[0]
    for ax, (metric, title) in zip(axes, METRICS.items(), strict=True):
        ax.axvline(0, color=_MUTED, linewidth=0.9, zorder=1)
        for number, system in enumerate(systems):
            shift = (number + 1) / (len(systems) + 1) - 0.5
            rows = {
                row.direction: row
                for row in comparison.directions
                if (row.system, row.metric) == (system, metric)
            }
            for y, direction in enumerate(ordered):
                _draw_difference(ax, rows[direction], y + 0.8 * shift, COLORS[number], _MARKERS[number])
        ax.set_title(title, fontsize=10, color=_INK, loc="left")
        ax.set_xlabel(f"difference to {comparison.baseline}", fontsize=9, color=_INK)
        ax.xaxis.set_major_locator(MaxNLocator(6, steps=_TICK_STEPS))
        _plain_axis(ax)
        ax.grid(axis="x", color=_PALE, linewidth=0.6)
    axes[0].set_yticks(range(len(ordered)), [direction.arrow for direction in ordered], fontsize=8)
    axes[0].set_ylim(len(ordered) - 0.4, -0.6)
    _name_families(axes, ordered, families)

    handles = [
        Line2D([], [], color=color, marker=marker, markersize=5, linewidth=1.2, label=system)
        for system, color, marker in zip(systems, COLORS, _MARKERS, strict=False)
    ]
    style: dict[str, Any] = {"color": _MUTED, "marker": "o", "markersize": 5, "linestyle": "none"}
    handles.append(Line2D([], [], **style, label=f"p < {comparison.alpha:g}, two-sided"))
    handles.append(Line2D([], [], **style, markerfacecolor="white", label=f"p ≥ {comparison.alpha:g}"))
    if any(len(row.seeds) > 1 for row in comparison.directions):
        handles.append(Line2D([], [], **{**style, "marker": "|", "markersize": 9}, label="mean over seeds"))
    _legend_above(figure, f"Difference to {comparison.baseline}, 95% intervals over sentences", handles)
    return figure


def _draw_difference(ax: Axes, row: DirectionComparison, y: float, color: str, marker: str) -> None:
    ax.plot([row.low, row.high], [y, y], color=color, linewidth=1.2, zorder=2)
    if len(row.seeds) > 1:
        ax.plot(
            [row.difference.mean], [y], color=color, marker="|", markersize=9, markeredgewidth=2, zorder=3
        )
    for seed in row.seeds:
        ax.plot(
            [seed.difference], [y], color=color, marker=marker, zorder=4,
            markersize=5 if len(row.seeds) == 1 else 3.5, markeredgewidth=1,
            markerfacecolor="white" if seed.result == TIE else color,
        )  # fmt: skip


def _name_families(axes: Sequence[Axes], ordered: Sequence[Direction], families: Mapping[str, str]) -> None:
    """Part groups by a line through all panels, families by a pale one, and name these at the right."""
    runs = groupby(
        range(len(ordered)),
        key=lambda i: (ordered[i].group.arrow, family_of(ordered[i].placed_by("source"), families)),
    )
    before = ordered[0].group.arrow
    for (group, name), members in runs:
        positions = list(members)
        if positions[0] > 0:
            for ax in axes:
                ax.axhline(positions[0] - 0.5, color=_PALE if group == before else _MUTED, linewidth=0.8)
        before = group
        axes[-1].annotate(
            name, (1, (positions[0] + positions[-1]) / 2), xycoords=("axes fraction", "data"), xytext=(4, 0),
            textcoords="offset points", ha="left", va="center", fontsize=8, color=_MUTED,
        )  # fmt: skip


# Sweeps ---------------------------------------------------------------------------------------

_Curve = Mapping[float, tuple[float, float | None, float | None]]  # value -> change, low, high


def sweep_curves(
    rows: Mapping[str, Mapping[str, Mapping[str, _Curve]]], ticks: Mapping[float, str], label: str
) -> Figure:
    """BLEU changes over the values of a setting: a row of panels per reference, a panel per group of directions.

    Values stand at equal distances, in the order of ``ticks``, so that 95, 98 and 100 can be told apart.

    Args:
        rows: reference -> group of directions -> system -> change at each value, with its interval.
        ticks: value -> what is written below it.
        label: what the values are.

    Raises:
        NeuronSpecError: if there are more systems than colours.
    """
    systems = list(dict.fromkeys(name for row in rows.values() for panel in row.values() for name in panel))
    if not 0 < len(systems) <= len(COLORS):
        raise NeuronSpecError(
            "a sweep cannot be drawn", got=f"{len(systems)} systems", expected=f"1 to {len(COLORS)}"
        )
    columns = max(map(len, rows.values()))
    width = max(3.3, 0.62 * len(ticks) + 0.9)
    figure = _figure(0.6 + width * columns, 1.0 + 2.7 * len(rows))
    grid = figure.subplots(len(rows), columns, squeeze=False, sharey="row")
    for axes, (reference, panels) in zip(grid, rows.items(), strict=True):
        for ax, (group, panel) in zip(axes, panels.items(), strict=True):
            ax.axhline(0, color=_MUTED, linewidth=0.9, zorder=1)
            for system, curve in panel.items():
                _draw_change(ax, curve, list(ticks), systems.index(system), len(systems))
            ax.set_title(group, fontsize=10, color=_INK, loc="left")
            ax.set_xticks(range(len(ticks)), list(ticks.values()), fontsize=8)
            ax.set_xlim(-0.5, len(ticks) - 0.5)
            ax.yaxis.set_major_locator(MaxNLocator(7, steps=_TICK_STEPS))
            _plain_axis(ax)
            ax.grid(axis="y", color=_PALE, linewidth=0.6)
        axes[0].set_ylabel(f"BLEU, change against\n{reference}", fontsize=9, color=_INK)
    figure.supxlabel(label, fontsize=9, color=_INK)
    handles = [
        Line2D([], [], color=color, linewidth=1.4, marker=marker, markersize=4.5, label=system)
        for system, color, marker in zip(systems, COLORS, _MARKERS, strict=False)
    ]
    _legend_above(figure, "Mean BLEU change, 95% intervals over directions", handles)
    return figure


def _draw_change(ax: Axes, curve: _Curve, values: Sequence[float], number: int, of: int) -> None:
    """``number``: the system's, of ``of``; they stand side by side, so that none hides another's interval."""
    shift = 0.14 * (number - (of - 1) / 2)
    color = COLORS[number]
    positions = [place + shift for place, value in enumerate(values) if value in curve]
    points = [curve[value] for value in values if value in curve]
    for x, (_, low, high) in zip(positions, points, strict=True):
        if low is not None and high is not None:
            ax.vlines(x, low, high, color=color, linewidth=3, alpha=0.35)
    ax.plot(
        positions, [change for change, _, _ in points], color=color, linewidth=1.4, marker=_MARKERS[number],
        markersize=4.5, zorder=3,
    )  # fmt: skip


# Shared by all --------------------------------------------------------------------------------


def _figure(width: float, height: float) -> Figure:
    """``width`` and ``height`` in inches."""
    return Figure(figsize=(width, height), dpi=DPI, layout="constrained")


def _legend_above(figure: Figure, title: str, handles: Sequence[Line2D]) -> None:
    legend = figure.legend(
        handles=list(handles), loc="outside upper left", ncols=_LEGEND_COLUMNS, frameon=False, fontsize=8.5,
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


def _place(code: str, families: Mapping[str, str] | None) -> tuple[bool, str, str]:
    """Sort key: families in the order of the alphabet, unknown ones last; within one by code."""
    family = family_of(code, families)
    return family == UNKNOWN, family, code
