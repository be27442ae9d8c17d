"""Figures of scores and of their differences, a line per direction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from neuron_spec.directions import (
    Direction,
    family_of,
)
from neuron_spec.errors import NeuronSpecError
from neuron_spec.pages.style import (
    COLORS,
    GROUP_COLORS,
    INK,
    MARKERS,
    MUTED,
    PALE,
    TICK_STEPS,
    in_family_order,
    legend_above,
    new_figure,
    plain_axis,
)
from neuron_spec.scoring.comparison import METRICS, TIE, Comparison, DirectionComparison


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
    panels = [(group, [d for d in ordered if d.group.arrow == group]) for group in GROUP_COLORS]
    panels = [(group, members) for group, members in panels if members]

    longest = max(len(members) for _, members in panels)
    figure = new_figure(1.2 + 3.6 * len(panels), 1.3 + 0.22 * (longest + 1))
    axes = figure.subplots(1, len(panels), sharex=True, squeeze=False)[0]
    for ax, (group, members) in zip(axes, panels, strict=True):
        _draw_scores(ax, rows, members)
        ax.set_ylim(longest + 1.1, -0.7)  # equal line heights in all panels
        ax.set_title(group, fontsize=10, color=INK, loc="left")
        ax.set_xlabel(metric, fontsize=9, color=INK)
    handles = [
        Line2D([], [], color=color, marker=marker, markersize=5.5, linestyle="none", label=system)
        for system, color, marker in zip(rows, COLORS, MARKERS, strict=False)
    ]
    legend_above(figure, f"{metric} per direction", handles)
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
        ax.axhline(len(members) - 0.3, color=MUTED, linewidth=0.6)
    for y, scores in lines:
        present = [score for score in scores if score is not None]
        ax.plot([min(present), max(present)], [y, y], color="#BBBBBB", linewidth=1.2, zorder=1)
        for score, color, marker in zip(scores, COLORS, MARKERS, strict=False):
            if score is not None:
                ax.scatter([score], [y], color=color, marker=marker, s=26, linewidths=0, zorder=2)
    ax.set_yticks([y for y, _ in lines], labels, fontsize=8)
    ax.xaxis.set_major_locator(MaxNLocator(6, steps=TICK_STEPS))
    ax.tick_params(axis="x", labelsize=8)
    ax.margins(x=0.06)
    plain_axis(ax)
    ax.grid(axis="x", color=PALE, linewidth=0.6)


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
    figure = new_figure(1.6 + 3.6 * len(METRICS), 1.6 + line_height * len(ordered))
    axes = figure.subplots(1, len(METRICS), sharey=True, squeeze=False)[0]
    for ax, (metric, title) in zip(axes, METRICS.items(), strict=True):
        ax.axvline(0, color=MUTED, linewidth=0.9, zorder=1)
        for number, system in enumerate(systems):
            shift = (number + 1) / (len(systems) + 1) - 0.5
            rows = {
                row.direction: row
                for row in comparison.directions
                if (row.system, row.metric) == (system, metric)
            }
            for y, direction in enumerate(ordered):
                _draw_difference(ax, rows[direction], y + 0.8 * shift, COLORS[number], MARKERS[number])
        ax.set_title(title, fontsize=10, color=INK, loc="left")
        ax.set_xlabel(f"difference to {comparison.baseline}", fontsize=9, color=INK)
        ax.xaxis.set_major_locator(MaxNLocator(6, steps=TICK_STEPS))
        plain_axis(ax)
        ax.grid(axis="x", color=PALE, linewidth=0.6)
    axes[0].set_yticks(range(len(ordered)), [direction.arrow for direction in ordered], fontsize=8)
    axes[0].set_ylim(len(ordered) - 0.4, -0.6)
    _name_families(axes, ordered, families)

    handles = [
        Line2D([], [], color=color, marker=marker, markersize=5, linewidth=1.2, label=system)
        for system, color, marker in zip(systems, COLORS, MARKERS, strict=False)
    ]
    style: dict[str, Any] = {"color": MUTED, "marker": "o", "markersize": 5, "linestyle": "none"}
    handles.append(Line2D([], [], **style, label=f"p < {comparison.alpha:g}, two-sided"))
    handles.append(Line2D([], [], **style, markerfacecolor="white", label=f"p ≥ {comparison.alpha:g}"))
    if any(len(row.seeds) > 1 for row in comparison.directions):
        handles.append(Line2D([], [], **{**style, "marker": "|", "markersize": 9}, label="mean over seeds"))
    legend_above(figure, f"Difference to {comparison.baseline}, 95% intervals over sentences", handles)
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
                ax.axhline(positions[0] - 0.5, color=PALE if group == before else MUTED, linewidth=0.8)
        before = group
        axes[-1].annotate(
            name, (1, (positions[0] + positions[-1]) / 2), xycoords=("axes fraction", "data"), xytext=(4, 0),
            textcoords="offset points", ha="left", va="center", fontsize=8, color=MUTED,
        )  # fmt: skip
