"""Curves over layers or the values of a setting, and dendrograms."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import combinations, starmap
from typing import Literal, NamedTuple

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from neuron_spec.directions import GROUPS
from neuron_spec.errors import NeuronSpecError
from neuron_spec.languages import UNKNOWN, family_of
from neuron_spec.neurons.activations import layer_order
from neuron_spec.neurons.choices import SIDES
from neuron_spec.neurons.masks import NeuronMasks
from neuron_spec.neurons.overlap import (
    Tree,
    adjusted_iou,
    chance_iou,
    compared,
    off_diagonal,
    pairwise_iou,
    sparsity,
)
from neuron_spec.pages.style import (
    COLORS,
    INK,
    LEGEND_COLUMNS,
    MUTED,
    PALE,
    Look,
    legend_above,
    look,
    new_figure,
    plain_axis,
    say,
)

# Over layers ------------------------------------------------------------------------------


def sparsity_per_layer(masks: NeuronMasks) -> Figure:
    """Percent of dropped neurons over the layers: mean, least and most of each group of directions.

    Raises:
        NeuronSpecError: if there is no layer, or no direction.
    """
    sides = by_side(masks)
    panels: dict[str, dict[str, dict[float, Point]]] = {side: {} for side in sides}
    for side, layers in sides.items():
        for number, key in layers.items():
            percent = 100 * sparsity(masks.kept[key])
            for group in GROUPS:
                if rows := [
                    row for row, direction in enumerate(masks.directions) if direction.group == group
                ]:
                    of = percent[rows]
                    point = Point(of.mean().item(), of.min().item(), of.max().item())
                    panels[side].setdefault(f"{group.arrow}, mean", {})[number] = point
    return line_panels(
        [panels],
        title="Sparsity per layer: mean, least and most of the group's directions",
        label="layer",
        ticks={number: str(number) for number in sorted({n for layers in sides.values() for n in layers})},
        row_labels=["dropped neurons (%)"],
        zero="bottom",
    )


def iou_over_layers(
    masks: NeuronMasks, *, families: Mapping[str, str] | None = None, group: str = "own"
) -> Figure:
    """How the overlap of languages changes over the layers, pairs within and between families apart.

    Above IoU with its chance level, the mean over pairs; below adjusted IoU, without the layers where it is unknown.

    Args:
        families: language -> family; None: those of the language table.
        group: which directions are compared, as in `compared`.

    Raises:
        NeuronSpecError: if there is no layer, or no direction.

    Examples:
        A notebook shows the figure; elsewhere it is matplotlib's, to be saved:

        >>> import torch
        >>> from neuron_spec import NeuronMasks, iou_over_layers, parse_directions
        >>> kept = {f"decoder.layers.{number}": torch.rand(3, 64) < 0.5 for number in range(2)}
        >>> figure = iou_over_layers(NeuronMasks(parse_directions("en-de,en-nl,en-ru"), kept))
        >>> [axes.get_ylabel() for axes in figure.axes]
        ['IoU of kept neurons (%)', 'adjusted IoU (%)']
    """
    sides, directions, kept = by_side(masks), masks.directions, masks.kept
    figure = new_figure(max(6.6, 0.75 * len(masks.layers) + 1.5), 6.2)
    # As wide as they have layers, with one y axis a row.
    ratios = [max(2, len(layers)) for layers in sides.values()]
    grid = figure.subplots(2, len(sides), sharex="col", sharey="row", squeeze=False, width_ratios=ratios)
    arrows = {each.key: each.arrow for each in GROUPS}
    drawn: tuple[list[Tensor], list[Tensor]] = ([], [])  # what the scale of each row has to hold
    shown: set[str] = set()
    for (above, below), (side, layers) in zip(grid.T, sides.items(), strict=True):
        chosen = compared(side, directions, group)
        plain_axis(above, grid="y")
        words = arrows.get(chosen.group, "all directions")
        plain_axis(below, grid="y", x=f"{side} layer, {chosen.by} languages, {words}")
        below.set_xticks(range(len(layers)), [str(number) for number in layers])
        below.set_xlim(-0.6, len(layers) - 0.4)
        if len(chosen.distinct) < 2:
            say(above, _NO_PAIR)
            say(below, _NO_PAIR)
            continue
        iou, chance, adjusted = (
            torch.stack(
                [100 * off_diagonal(chosen.between_languages(kept[key], measure)) for key in layers.values()]
            )
            for measure in (pairwise_iou, chance_iou, adjusted_iou)
        )  # [layers, pairs] each
        of = [family_of(code, families) for code in chosen.distinct]
        kinds = list(starmap(_kind_of_pair, combinations(of, 2)))
        shown |= _draw_overlaps(above, iou, kinds)
        above.plot(chance.mean(dim=1).numpy(), **_CHANCE)
        drawn[0].extend((iou, chance.mean(dim=1)))
        known = ~adjusted.isnan().any(dim=1)
        if known.any():
            _draw_overlaps(below, adjusted, kinds)
            drawn[1].append(adjusted[known])
        else:
            say(below, _NO_CHOICE)
    for row, label, values in zip(grid, ("IoU of kept neurons (%)", "adjusted IoU (%)"), drawn, strict=True):
        together = torch.cat([one.flatten() for one in values]) if values else torch.tensor([0.0, 100.0])
        lowest, highest = together.min().item(), together.max().item()
        margin = max(1.0, 0.06 * (highest - lowest))
        row[0].set_ylim(min(lowest, highest - 5) - margin, min(highest + margin, 100.5))
        row[0].set_ylabel(label)
    grid[0, 0].set_ylim(bottom=max(0.0, grid[0, 0].get_ylim()[0]))
    named: dict[str, Look] = {kind: each for kind, each in _PAIR_KINDS.items() if kind in shown}
    if shown:
        named["quartiles, median, range; line: mean"] = {"color": PALE, "linewidth": 7}
        named["chance level"] = _CHANCE
    legend_above(figure, "Overlap over layers", named)
    return figure


_NO_PAIR = "no pair of languages\nto compare"
_NO_CHOICE = "unknown: sets of all\nneurons or of none"
_CHANCE: Look = {"color": INK, "linewidth": 1.0, "linestyle": (0, (4, 2))}
_WITHIN, _BETWEEN, _UNTOLD = "within families", "between families", "family unknown"
_PAIR_KINDS = {
    _WITHIN: look(1, linewidth=1.2),
    _BETWEEN: look(0, linewidth=1.2),
    _UNTOLD: look(0, linewidth=1.2, color=MUTED, marker="X"),
}


def _draw_overlaps(ax: Axes, values: Tensor, kinds: Sequence[str]) -> set[str]:
    """Draw percent `[layers, pairs]`, each kind of pairs apart; return the kinds that occur. Layers of NaN are empty."""
    present = [kind for kind in _PAIR_KINDS if kind in kinds]
    step = 0.72 / len(present)
    known = [layer for layer, of in enumerate(values) if not of.isnan().any()]
    for place, kind in enumerate(present):
        color = _PAIR_KINDS[kind]["color"]
        chosen = values[known][:, [other == kind for other in kinds]]
        positions = [layer + (place - (len(present) - 1) / 2) * step for layer in known]
        ax.boxplot(
            list(chosen.numpy()), positions=positions, widths=min(0.4, 0.8 * step), whis=(0, 100),
            showcaps=False, showfliers=False, patch_artist=True, manage_ticks=False,
            boxprops={"facecolor": color, "alpha": 0.25, "edgecolor": "none"},
            whiskerprops={"color": color, "linewidth": 0.8},
            medianprops={"color": color, "linewidth": 1.4},
        )  # fmt: skip
        ax.plot(positions, chosen.mean(dim=1).numpy(), **_PAIR_KINDS[kind], zorder=3)
    return set(present)


def _kind_of_pair(family: str, other: str) -> str:
    if UNKNOWN in (family, other):
        return _UNTOLD
    return _WITHIN if family == other else _BETWEEN


def by_side(masks: NeuronMasks) -> dict[str, dict[int, str]]:
    """``encoder``, ``decoder`` -> layer number -> layer, in the model's order.

    Raises:
        NeuronSpecError: if there is no layer, or no direction.
    """
    layers = NeuronMasks.require(masks).layers
    sides = {side: {layer_order(layer)[1]: layer for layer in masks.side(side)} for side in SIDES}
    if not layers or not masks.directions:
        raise NeuronSpecError("no layers to draw", expected="kept neurons of one layer and direction or more")
    return {side: of_side for side, of_side in sides.items() if of_side}


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
    if not isinstance(trees, Mapping):
        raise NeuronSpecError(
            "not trees by side", got=repr(trees)[:80], expected='{"encoder": cluster(...), ...}'
        )
    if not trees:
        raise NeuronSpecError("no trees to draw", expected="one side or more")
    grown = [tree for tree in trees.values() if tree is not None]
    drawn = {family_of(code, families) for tree in grown for code in tree.languages}
    leaves = {
        family: look(number, linestyle="none", markersize=6)
        for number, family in enumerate(sorted(drawn - {UNKNOWN}))
    }
    if UNKNOWN in drawn:
        leaves[UNKNOWN] = look(0, color=MUTED, markerfacecolor="white", linestyle="none", markersize=6)
    most = max([len(tree.languages) for tree in grown], default=2)
    legend_lines = math.ceil(len(leaves) / LEGEND_COLUMNS)
    figure = new_figure(1.0 + 3.6 * len(trees), 1.3 + 0.2 * max(most, 4) + 0.2 * legend_lines)
    panels = figure.subplots(1, len(trees), squeeze=False)[0]
    for ax, (panel, tree) in zip(panels, trees.items(), strict=True):
        plain_axis(ax, grid="x", x=f"{panel}: 1 − IoU (%)")
        if tree is None:
            ax.set_xticks([])
            ax.set_yticks([])
            say(ax, _NO_PAIR)
            continue
        # Root at the left, leaves at the right.
        codes, lines = tree.drawing()
        for places, distances in lines:
            ax.plot([100 * d for d in distances], places, color=MUTED, linewidth=1.1, zorder=1)
        for place, code in enumerate(codes):
            ax.plot([0], [place], **leaves[family_of(code, families)], clip_on=False, zorder=2)
        ax.set_yticks(range(len(codes)), codes, fontsize=9)
        ax.yaxis.tick_right()
        ax.tick_params(axis="y", pad=7)
        ax.set_ylim(len(codes) - 0.4, -0.6)
        ax.set_xlim(105 * max(5e-3, *(d for _, distances in lines for d in distances)), 0)
    legend_above(figure, title, leaves)
    return figure


# Over the values of a setting, over shots, over updates ------------------------------------


class Point(NamedTuple):
    """A height and its interval."""

    height: float
    low: float | None = None
    high: float | None = None


Curve = Mapping[float, tuple[float, float | None, float | None]]  # value -> its `Point`


def line_panels(
    rows: Sequence[Mapping[str, Mapping[str, Curve]]],
    *,
    title: str,
    label: str,
    ticks: Mapping[float, str] | None = None,
    row_labels: Sequence[str] = (),
    looks: Mapping[str, Look] | None = None,
    zero: Literal["line", "bottom"] | None = None,
) -> Figure:
    """Panels in rows, in each a line with intervals for every name.

    Args:
        rows: title of a panel -> name of a line -> its curve.
        label: what the values are.
        ticks: value -> what is written below it: a panel's values stand at equal distances, in this order, and
            lines side by side where they have intervals. None: values stand where numbers do.
        row_labels: of the y axes, which the panels of a row then share.
        looks: of the names; None: one after the other.
        zero: the y axis starts there, or a line marks it.
    """
    ticks = ticks or {}
    names = list(dict.fromkeys(name for panels in rows for lines in panels.values() for name in lines))
    looks = looks or {name: look(number) for number, name in enumerate(names)}
    sizes = [max(3.0, 0.5 * len(_values(lines, ticks)) + 0.9) for lines in max(rows, key=len).values()]
    figure = new_figure(0.6 + sum(sizes), 1.0 + 2.7 * len(rows))
    share: Literal["row", "none"] = "row" if row_labels else "none"
    grid = figure.subplots(len(rows), len(sizes), squeeze=False, sharey=share, width_ratios=sizes)
    for axes, panels in zip(grid, rows, strict=True):
        for ax in axes[len(panels) :]:
            ax.remove()
        for ax, (panel, lines) in zip(axes, panels.items(), strict=False):
            plain_axis(ax, grid="y", title=panel)
            values = _values(lines, ticks)
            has_intervals = any(low is not None for curve in lines.values() for _, low, _ in curve.values())
            step = min(0.14, 0.5 / len(names)) if has_intervals else 0.0
            for name, curve in lines.items():
                shift = step * (names.index(name) - (len(names) - 1) / 2)
                positions = [values.index(x) + shift if ticks else x for x in curve]
                for x, (_, low, high) in zip(positions, curve.values(), strict=True):
                    if low is not None and high is not None:
                        ax.vlines(x, low, high, color=looks[name]["color"], linewidth=3, alpha=0.35)
                ax.plot(positions, [height for height, _, _ in curve.values()], **looks[name], zorder=3)
            if ticks:
                ax.set_xticks(range(len(values)), [ticks[x] for x in values])
                ax.set_xlim(-0.5, len(values) - 0.5)
            if zero == "line":
                ax.axhline(0, color=MUTED, linewidth=0.9, zorder=1)
        if zero == "bottom":  # once all are drawn; random weights score 0
            for ax in axes[: len(panels)]:
                ax.set_ylim(0, max(1.08, ax.get_ylim()[1]))
    for axes, words in zip(grid, row_labels, strict=False):
        axes[0].set_ylabel(words)
    figure.supxlabel(label, fontsize=9, color=INK)
    legend_above(figure, title, {name: looks[name] for name in names})
    return figure


def _values(lines: Mapping[str, Curve], ticks: Mapping[float, str]) -> list[float]:
    """The values of a panel, in the order of ``ticks``."""
    return [value for value in ticks if any(value in curve for curve in lines.values())]


def sweep_curves(
    rows: Mapping[str, Mapping[str, Mapping[str, Curve]]], ticks: Mapping[float, str], label: str
) -> Figure:
    """Changes over the values of a setting: a row of panels per measure and reference, a panel per group of directions.

    Values stand at equal distances, in the order of ``ticks``, so that 95, 98 and 100 can be told apart.

    Args:
        rows: what is changed against which reference -> group of directions -> system -> change at each value, with
            its interval.
        ticks: value -> what is written below it.
        label: what the values are.

    Raises:
        NeuronSpecError: if there are more systems than colours.
    """
    systems = {name for panels in rows.values() for lines in panels.values() for name in lines}
    if not 0 < len(systems) <= len(COLORS):
        raise NeuronSpecError(
            "a sweep cannot be drawn", got=f"{len(systems)} systems", expected=f"1 to {len(COLORS)}"
        )
    return line_panels(
        list(rows.values()),
        title="Mean changes, 95% intervals over sentences",
        label=label,
        ticks=ticks,
        row_labels=list(rows),
        zero="line",
    )
