"""Curves over layers or the values of a setting, and dendrograms.

`kept` maps a layer such as `decoder.layers.0`, numbered from zero as in the mask file, to bool
`[num_directions, ffn_dim]`, True = kept.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from neuron_spec.directions import (
    UNKNOWN,
    Direction,
    family_of,
)
from neuron_spec.errors import NeuronSpecError
from neuron_spec.neurons.activations import is_head_site
from neuron_spec.neurons.overlap import Compared, Tree, compared, off_diagonal, sparsity
from neuron_spec.pages.style import (
    COLORS,
    GROUP_COLORS,
    GROUP_WORDS,
    INK,
    LEGEND_COLUMNS,
    MARKERS,
    MUTED,
    PALE,
    TICK_STEPS,
    legend_above,
    new_figure,
    plain_axis,
)

_LAYER_KEY = re.compile(r"(encoder|decoder)\.layers\.(\d+)")

# Over layers ------------------------------------------------------------------------------


def sparsity_per_layer(kept: Mapping[str, Tensor], directions: Sequence[Direction]) -> Figure:
    """Percent of dropped neurons over the layers: mean, least and most of each group of directions.

    Args:
        kept: layer -> bool `[num_directions, ffn_dim]`, True = kept.

    Raises:
        NeuronSpecError: if a layer's name or shape is wrong, or there is none.
    """
    sides = by_side(kept, directions)
    groups = [group for group in GROUP_COLORS if any(d.group.arrow == group for d in directions)]
    figure = new_figure(*_curve_size(kept))
    axes = _side_axes(figure, sides)
    highest = 0.0
    for ax, (side, layers) in zip(axes, sides.items(), strict=True):
        percent = 100 * torch.stack([sparsity(kept[key]) for key in layers.values()])  # [layers, directions]
        highest = max(highest, percent.max().item())
        for place, group in enumerate(groups):
            # Side by side, so that neither group hides the other.
            positions = [layer + 0.16 * (place - (len(groups) - 1) / 2) for layer in range(len(layers))]
            own = percent[:, [direction.group.arrow == group for direction in directions]]
            color, marker = GROUP_COLORS[group], MARKERS[place]
            ax.vlines(positions, own.amin(dim=1), own.amax(dim=1), color=color, linewidth=4, alpha=0.35)
            ax.plot(
                positions, own.mean(dim=1).numpy(), color=color, linewidth=1.4, marker=marker, markersize=4.5,
                solid_capstyle="round", clip_on=False,
            )  # fmt: skip
        _layer_axis(ax, f"{side} layer", layers)
    axes[0].set_ylim(0, max(5.0, 1.08 * highest))
    axes[0].set_ylabel("dropped neurons (%)", fontsize=9, color=INK)
    handles = [
        Line2D(
            [], [], color=GROUP_COLORS[group], linewidth=1.4, marker=marker, markersize=4.5,
            label=f"{group}, mean",
        )
        for group, marker in zip(groups, MARKERS, strict=False)
    ]  # fmt: skip
    handles.append(Line2D([], [], color=PALE, linewidth=4, label="least to most of the group's directions"))
    legend_above(figure, "Sparsity per layer", handles)
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
    sides = by_side(kept, directions)
    width, height = _curve_size(kept)
    figure = new_figure(max(width, 0.75 * len(kept) + 1.5), height)
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
    axes[0].yaxis.set_major_locator(MaxNLocator(7, steps=TICK_STEPS))
    axes[0].set_ylabel("IoU of kept neurons (%)", fontsize=9, color=INK)
    handles = [
        Line2D([], [], color=color, linewidth=1.2, marker=marker, markersize=4.5, label=kind)
        for kind, (color, marker) in _PAIR_KINDS.items()
        if kind in shown
    ]
    if shown:
        handles.append(Line2D([], [], color=PALE, linewidth=7, label="quartiles, median, range; line: mean"))
    legend_above(figure, "Overlap over layers", handles)
    return figure


_WITHIN, _BETWEEN, _UNTOLD = "within families", "between families", "family unknown"
_PAIR_KINDS = {_WITHIN: (COLORS[1], "D"), _BETWEEN: (COLORS[0], "o"), _UNTOLD: (MUTED, "X")}


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
    return f"{chosen.by} languages, {GROUP_WORDS[chosen.group]}"


def _say(ax: Axes, text: str) -> None:
    """In the middle of a panel that would be empty."""
    ax.text(0.5, 0.5, text, transform=ax.transAxes, ha="center", va="center", fontsize=9, color=MUTED)


def by_side(kept: Mapping[str, Tensor], directions: Sequence[Direction]) -> dict[str, dict[int, str]]:
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
    ax.set_xlabel(words, fontsize=9, color=INK)
    plain_axis(ax)
    ax.grid(axis="y", color=PALE, linewidth=0.6)


# Dendrograms ------------------------------------------------------------------------------


def dendrograms(
    trees: Mapping[str, Tree | None], *, families: Mapping[str, str] | None = None, title: str = "Dendrogram"
) -> Figure:
    """Languages clustered by the overlap of their sets, leaves marked by family.

    Args:
        trees: panel such as ``encoder`` -> its tree; None draws a panel that says so.

    Raises:
        NeuronSpecError: if there is no panel.
    """
    if not trees:
        raise NeuronSpecError("no trees to draw", expected="one side or more")
    codes = {code for tree in trees.values() if tree is not None for code in tree.languages}
    known = sorted({family_of(code, families) for code in codes} - {UNKNOWN})
    looks = {
        # Colours repeat after seven families, then with other markers.
        family: (COLORS[i % len(COLORS)], MARKERS[(i + i // len(COLORS)) % len(MARKERS)])
        for i, family in enumerate(known)
    }
    most = max([len(tree.languages) for tree in trees.values() if tree is not None], default=2)
    legend_lines = math.ceil((len(known) + 1) / LEGEND_COLUMNS)
    figure = new_figure(1.0 + 3.6 * len(trees), 1.3 + 0.2 * max(most, 4) + 0.2 * legend_lines)
    for ax, (panel, tree) in zip(
        figure.subplots(1, len(trees), squeeze=False)[0], trees.items(), strict=True
    ):
        ax.set_xlabel(f"{panel}: 1 − IoU (%)", fontsize=9, color=INK)
        plain_axis(ax)
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
    legend_above(figure, title, handles)
    return figure


_UNKNOWN_LEAF: dict[str, Any] = {"color": MUTED, "marker": "o", "markerfacecolor": "white"}


def _draw_tree(ax: Axes, tree: Tree, looks: Mapping[str, tuple[str, str] | None]) -> None:
    """Root at the left, leaves at the right; ``looks``: colour and marker of a leaf, None = unknown family."""
    leaves, lines = tree.drawing()
    for places, distances in lines:
        ax.plot([100 * d for d in distances], places, color=MUTED, linewidth=1.1, zorder=1)
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
    ax.xaxis.set_major_locator(MaxNLocator(6, steps=TICK_STEPS))
    ax.grid(axis="x", color=PALE, linewidth=0.6)


# Sweeps -----------------------------------------------------------------------------------

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
    figure = new_figure(0.6 + width * columns, 1.0 + 2.7 * len(rows))
    grid = figure.subplots(len(rows), columns, squeeze=False, sharey="row")
    for axes, (reference, panels) in zip(grid, rows.items(), strict=True):
        for ax, (group, panel) in zip(axes, panels.items(), strict=True):
            ax.axhline(0, color=MUTED, linewidth=0.9, zorder=1)
            for system, curve in panel.items():
                _draw_change(ax, curve, list(ticks), systems.index(system), len(systems))
            ax.set_title(group, fontsize=10, color=INK, loc="left")
            ax.set_xticks(range(len(ticks)), list(ticks.values()), fontsize=8)
            ax.set_xlim(-0.5, len(ticks) - 0.5)
            ax.yaxis.set_major_locator(MaxNLocator(7, steps=TICK_STEPS))
            plain_axis(ax)
            ax.grid(axis="y", color=PALE, linewidth=0.6)
        axes[0].set_ylabel(f"BLEU, change against\n{reference}", fontsize=9, color=INK)
    figure.supxlabel(label, fontsize=9, color=INK)
    handles = [
        Line2D([], [], color=color, linewidth=1.4, marker=marker, markersize=4.5, label=system)
        for system, color, marker in zip(systems, COLORS, MARKERS, strict=False)
    ]
    legend_above(figure, "Mean BLEU change, 95% intervals over directions", handles)
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
        positions, [change for change, _, _ in points], color=color, linewidth=1.4, marker=MARKERS[number],
        markersize=4.5, zorder=3,
    )  # fmt: skip
