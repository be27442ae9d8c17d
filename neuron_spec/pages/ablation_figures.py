"""The figure of an ablation: what every direction loses when a set's neurons are switched off.

Directions out of and into English are evaluated in panels of their own; languages are ordered by family.
All are drawn on one colour scale, which readers with colour blindness can tell apart.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from typing import Any

import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from neuron_spec.directions import GROUPS, UNKNOWN, WITHOUT_ENGLISH, Direction, Group
from neuron_spec.pages.figures import DPI, in_family_order

_INK, _MUTED = "#222222", "#777777"
_COLOR_MAP = "viridis"
_MOST_WITH_NUMBERS = 16  # directions
_POINT = 1 / 72  # inch
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
    font = min(9.0, 0.75 * cell / _POINT)
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
        ax.set_xlabel(f"evaluated, {group.arrow}", fontsize=9, color=_INK)
        name_families(ax, runs_of([kind_of(str(direction), families) for direction in chosen]), cell)
        for _, first, _ in runs_of(row_kinds)[1:]:
            ax.axhline(first - 0.5, color="white", linewidth=1.5)
        ax.set_xlim(-0.5, len(members) - 0.5)
        ax.set_ylim(len(labels) - 0.5, -0.5)
    axes[0].set_yticks(range(len(labels)), labels, fontsize=font)
    axes[0].set_ylabel("neurons switched off, of", fontsize=9, color=_INK)
    name_families(axes[-1], runs_of(row_kinds), cell, of_rows=True)

    figure.suptitle(
        "Loss increase without the neurons of one set (framed: the direction's own)",
        x=0.01,
        ha="left",
        fontsize=11,
        color=_INK,
    )
    bar = figure.colorbar(
        axes[0].images[0], ax=list(axes), shrink=0.8, aspect=28, pad=0.02, ticks=MaxNLocator(7, steps=[1, 2, 5, 10])
    )  # fmt: skip
    bar.set_label("loss increase (nats per token)", fontsize=9, color=_INK)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=8, length=2, color=_MUTED)
    return figure


def _draw_map(ax: Axes, shown: Tensor, scale: Normalize, *, has_numbers: bool) -> None:
    """``shown``: float `[rows, columns]`; NaN leaves a cell white."""
    colors = colormaps[_COLOR_MAP].with_extremes(bad="white")
    ax.imshow(shown.numpy(), cmap=colors, norm=scale, interpolation="none")
    ax.tick_params(length=0, pad=3, colors=_INK)
    for spine in ax.spines.values():
        spine.set_visible(False)
    if has_numbers:
        decimals = 2 if shown.nan_to_num().abs().max() >= 0.3 else 3
        for row, column in (~shown.isnan()).nonzero().tolist():
            text = f"{shown[row, column]:z.{decimals}f}"  # z: no minus before a zero
            ax.text(
                column, row, text, ha="center", va="center", fontsize=7.5 if len(text) < 5 else 6.5,
                color="white" if scale(shown[row, column].item()) < 0.6 else _INK,
            )  # fmt: skip


def name_families(ax: Axes, runs: Sequence[_Run], cell: float, *, of_rows: bool = False) -> None:
    """Name each run of one family by a bar above the columns, or at the right of the rows."""
    edge = 0.06 / cell  # bars stand this far from the map, in cells
    top, right = -0.5 - edge, ax.get_xlim()[1] + edge
    line: dict[str, Any] = {"color": _INK, "linewidth": 1.2, "solid_capstyle": "butt", "clip_on": False}
    text: dict[str, Any] = {
        "fontsize": 8, "color": _INK, "annotation_clip": False, "textcoords": "offset points"
    }  # fmt: skip
    is_crowded = any(
        0.6 * 8 * len(name) * _POINT > (last - first + 1) * cell for (_, name), first, last in runs
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
