"""Figures of scores and of their differences, a line per direction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from statistics import fmean

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from neuron_spec.directions import GROUPS, Direction
from neuron_spec.errors import NeuronSpecError
from neuron_spec.pages.style import (
    LOOKS,
    MUTED,
    PALE,
    Look,
    in_family_order,
    legend_above,
    look,
    new_figure,
    plain_axis,
    runs_of,
)
from neuron_spec.scoring.comparison import TIE, Comparison

_NOISE_ALPHA = 0.3
_TALLEST = 400.0  # inches: at 150 dots each, near the most that can be drawn


def scores_bars(
    rows: Mapping[str, Mapping[str, float]], metric: str, *, families: Mapping[str, str] | None = None
) -> Figure:
    """Scores of several systems side by side, one line per direction, and the mean over shared ones.

    Dots rather than bars: systems differ by a few points, which an axis from zero would hide.

    Args:
        rows: system -> direction such as ``de-en`` -> score. A missing score leaves a gap.

    Raises:
        NeuronSpecError: if there are no scores or more systems than looks.
        DirectionError: if a direction is malformed.
    """
    names = dict.fromkeys(text for row in rows.values() for text in row)
    directions = [Direction.parse(text) for text in names]
    if not directions or len(rows) > LOOKS:
        raise NeuronSpecError(
            "scores cannot be drawn",
            got=f"{len(rows)} systems, {len(directions)} directions",
            expected=f"1 to {LOOKS} systems with one score or more",
        )
    ordered = [directions[index] for index in in_family_order(directions, families)]
    panels = {group: [direction for direction in ordered if direction.group == group] for group in GROUPS}
    panels = {group: members for group, members in panels.items() if members}
    looks = {system: look(number, linestyle="none") for number, system in enumerate(rows)}

    longest = max(map(len, panels.values()))
    figure = new_figure(1.2 + 3.6 * len(panels), 1.3 + 0.22 * (longest + 1))
    axes = figure.subplots(1, len(panels), sharex=True, squeeze=False)[0]
    for ax, (group, members) in zip(axes, panels.items(), strict=True):
        plain_axis(ax, grid="x", title=group.arrow, x=metric)
        lines = {d.arrow: {name: row[str(d)] for name, row in rows.items() if str(d) in row} for d in members}
        places: list[float] = [*range(len(members))]
        if shared := [scores for scores in lines.values() if len(scores) == len(rows)]:
            label = "mean" if len(shared) == len(members) else f"mean of {len(shared)}"
            lines[label] = {system: fmean(scores[system] for scores in shared) for system in rows}
            places.append(len(members) + 0.4)
            ax.axhline(len(members) - 0.3, color=MUTED, linewidth=0.6)
        for y, scores in zip(places, lines.values(), strict=True):
            ends = min(scores.values()), max(scores.values())
            ax.plot(ends, [y, y], color="#BBBBBB", linewidth=1.2, zorder=1)
            for system, score in scores.items():
                ax.plot([score], [y], **looks[system], zorder=2)
        ax.set_yticks(places, list(lines))
        ax.margins(x=0.06)
        ax.set_ylim(longest + 1.1, -0.7)  # equal line heights in all panels
    legend_above(figure, f"{metric} per direction", looks)
    return figure


def score_differences(comparison: Comparison) -> Figure:
    """Every system's difference to the baseline per direction, ordered by family; a panel per endpoint.

    A line is the 95 % interval over sentences, a dot one seed, filled if it is a win or a loss. Several
    seeds have their mean as an upright bar. A system is pale where Holm's adjustment leaves none of its directions.

    Raises:
        NeuronSpecError: if there are more systems than looks.
    """
    systems = comparison.systems
    if not 0 < len(systems) <= LOOKS:
        raise NeuronSpecError(
            "differences cannot be drawn",
            got=f"{len(systems)} systems and a baseline",
            expected=f"1 to {LOOKS} systems",
        )
    directions = list(dict.fromkeys(row.direction for row in comparison.directions))
    families = {row.direction.placed_by("source"): row.family for row in comparison.directions if row.family}
    ordered = [directions[index] for index in in_family_order(directions, families)]

    line_height = min(0.2 + 0.12 * (len(systems) - 1), _TALLEST / len(ordered))
    endpoints = comparison.endpoints
    figure = new_figure(1.0 + 4.1 * len(endpoints), 1.6 + line_height * len(ordered))
    axes = figure.subplots(1, len(endpoints), squeeze=False)[0]
    noise: set[tuple[str, str]] = {
        (system, endpoint.key)
        for system in systems
        for endpoint in endpoints
        if comparison.is_noise(system, endpoint)
    }
    looks = {system: look(number, markersize=5, linewidth=1.2) for number, system in enumerate(systems)}
    for ax, endpoint in zip(axes, endpoints, strict=True):
        better = ", less is better" if endpoint.lower_is_better else ""
        plain_axis(ax, grid="x", title=endpoint.title, x=f"difference to {comparison.baseline}{better}")
        ax.axvline(0, color=MUTED, linewidth=0.9, zorder=1)
        for row in comparison.directions:
            if row.metric != endpoint.key:
                continue
            shift = (systems.index(row.system) + 1) / (len(systems) + 1) - 0.5
            y, how = ordered.index(row.direction) + 0.8 * shift, dict(looks[row.system])
            if (row.system, row.metric) in noise:
                how["alpha"] = _NOISE_ALPHA
            line = {key: how.get(key) for key in ("color", "linewidth", "alpha")}
            ax.plot([row.low, row.high], [y, y], **line, zorder=2)
            if len(row.seeds) > 1:
                how = {**how, "markersize": 3.5}
                mean = {**line, "marker": "|", "markersize": 9, "markeredgewidth": 2}
                ax.plot([row.difference.mean], [y], **mean, zorder=3)
            for seed in row.seeds:
                face = "white" if seed.result == TIE else how["color"]
                ax.plot([seed.difference], [y], **{**how, "markerfacecolor": face}, zorder=4)
    for ax in axes:  # each with its labels: on a small screen one panel is seen at a time
        ax.set_yticks(range(len(ordered)), [direction.arrow for direction in ordered])
        ax.set_ylim(len(ordered) - 0.4, -0.6)
    _name_families(axes, ordered, families)

    dot = look(0, color=MUTED, markersize=5, linestyle="none")
    named: dict[str, Look] = {
        **looks,
        f"p < {comparison.alpha:g}, two-sided": dot,
        f"p ≥ {comparison.alpha:g}": {**dot, "markerfacecolor": "white"},
    }
    if any(len(row.seeds) > 1 for row in comparison.directions):
        named["mean over seeds"] = {**dot, "marker": "|", "markersize": 9}
    if noise:
        named["pale: no direction after Holm"] = {**dot, "alpha": _NOISE_ALPHA}
    legend_above(figure, f"Difference to {comparison.baseline}, 95% intervals over sentences", named)
    return figure


def _name_families(axes: Sequence[Axes], ordered: Sequence[Direction], families: Mapping[str, str]) -> None:
    """Part groups by a line through all panels, families by a pale one, and name these at the right."""
    runs = runs_of(ordered, families)
    for before, run in pairwise(runs):
        for ax in axes:
            ax.axhline(run.first - 0.5, color=PALE if run.group == before.group else MUTED, linewidth=0.8)
    for run in runs:
        axes[-1].annotate(
            run.family, (1, (run.first + run.last) / 2), xycoords=("axes fraction", "data"), xytext=(4, 0),
            textcoords="offset points", ha="left", va="center", fontsize=8, color=MUTED,
        )  # fmt: skip
