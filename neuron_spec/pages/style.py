"""What all figures share: colours, order of directions, axes, legends, and how they are written.

Figures are made without pyplot, so drawing one changes no global state and needs no display. All take fractions
(0-1) and show percent. Families come from the language table unless `families` (language -> family) is given.
Languages without a known family stand last, as "unknown".
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from neuron_spec.artifacts import atomic_path
from neuron_spec.directions import GROUPS, UNKNOWN, Direction, Group, family_of
from neuron_spec.pages.page import Picture

DPI = 150

# Okabe and Ito's palette, told apart by colour-blind readers too, and markers for grey print.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#444444")
MARKERS = ("o", "D", "s", "^", "v", "P", "X")
INK, MUTED, PALE = "#222222", "#777777", "#DDDDDD"
POINT = 1 / 72  # inch
TICK_STEPS = [1, 2, 5, 10]

Look = Mapping[str, Any]  # of a line, in a panel and in the legend: what matplotlib's Line2D takes


def save(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Write a PNG or, if ``path`` ends so, an SVG, whole or not at all; the same figure gives the same bytes."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(rendered(figure, "svg" if Path(path).suffix == ".svg" else "png"))


def rendered(figure: Figure, kind: str) -> bytes:
    """The bytes of a ``png`` or ``svg``; the same figure gives the same."""
    content = io.BytesIO()
    with rc_context({"svg.hashsalt": "neuron_spec"}):
        figure.savefig(
            content, format=kind, dpi=DPI, facecolor="white", bbox_inches="tight",
            pad_inches=0.1, metadata={"Date" if kind == "svg" else "Software": None},
        )  # fmt: skip
    return content.getvalue()


def drawn(name: str, caption: str, figure: Figure) -> Picture:
    """A figure for a page."""
    return Picture(name, caption, rendered(figure, "png"), rendered(figure, "svg"))


# Order ------------------------------------------------------------------------------------


def in_family_order(
    directions: Sequence[Direction], families: Mapping[str, str] | None = None, *, by: str = "source"
) -> list[int]:
    """The order of directions on every axis, as indices into ``directions``.

    Directions out of English come first, then those into English; within each by the family of the
    language that is not English, then by its code.

    Args:
        by: ``source`` or ``target``, the language that places a direction without English.
    """

    def place(index: int) -> tuple[int, tuple[bool, str, str], str]:
        direction = directions[index]
        family = family_place(direction.placed_by(by), families)
        return GROUPS.index(direction.group), family, str(direction)

    return sorted(range(len(directions)), key=place)


def family_place(code: str, families: Mapping[str, str] | None) -> tuple[bool, str, str]:
    """Sort key: families in the order of the alphabet, unknown ones last; within one by code."""
    family = family_of(code, families)
    return family == UNKNOWN, family, code


class Run(NamedTuple):
    """Neighbours of one group and family on an axis, from place ``first`` to ``last``; languages have no group."""

    group: Group | None
    family: str
    first: int
    last: int


def runs_of(
    ordered: Iterable[Direction | str], families: Mapping[str, str] | None, *, by: str = "source"
) -> list[Run]:
    """The runs of an axis over directions, or over codes of languages, in their order.

    Args:
        by: as in `in_family_order`.
    """
    kinds = [
        (None, family_of(one, families))
        if isinstance(one, str)
        else (one.group, family_of(one.placed_by(by), families))
        for one in ordered
    ]
    runs: list[Run] = []
    for (group, family), members in groupby(kinds):
        first = runs[-1].last + 1 if runs else 0
        runs.append(Run(group, family, first, first + len(list(members)) - 1))
    return runs


# Drawing ----------------------------------------------------------------------------------


def new_figure(width: float, height: float, layout: Any = "constrained") -> Figure:
    """``width`` and ``height`` in inches."""
    return Figure(figsize=(width, height), dpi=DPI, layout=layout)


def look(number: int, **changes: Any) -> dict[str, Any]:
    """How the line of one of several things looks: colours repeat after seven, then with other markers."""
    color, turn = COLORS[number % len(COLORS)], number // len(COLORS)
    marker = MARKERS[(number + turn) % len(MARKERS)]
    return {"color": color, "marker": marker, "linewidth": 1.4, "markersize": 4.5, **changes}


def plain_axis(ax: Axes, *, grid: str, title: str = "", x: str = "", y: str = "") -> None:
    """Set up the axes of lines and dots: a pale grid and round numbers along ``grid``, and no frame.

    Args:
        grid: ``x`` or ``y``, the axis of numbers.
        title: of the panel.
        x, y: what the axes are.
    """
    ax.spines[["top", "right", "left"]].set_visible(False)
    ax.spines["bottom"].set_color(MUTED)
    ax.tick_params(length=0, colors=INK, labelsize=8)
    ax.set_axisbelow(True)
    numbers = ax.xaxis if grid == "x" else ax.yaxis
    numbers.set_major_locator(MaxNLocator(7 if grid == "y" else 6, steps=TICK_STEPS))
    numbers.grid(color=PALE, linewidth=0.6)
    ax.set_title(title, fontsize=10, color=INK, loc="left")
    ax.set_xlabel(x, fontsize=9, color=INK)
    ax.set_ylabel(y, fontsize=9, color=INK)


def say(ax: Axes, text: str) -> None:
    """In the middle of a panel that would be empty."""
    ax.text(0.5, 0.5, text, transform=ax.transAxes, ha="center", va="center", fontsize=9, color=MUTED)


def legend_above(figure: Figure, title: str, looks: Mapping[str, Look], *, columns: int = 4) -> None:
    """The figure's title, and below it what each look stands for: label -> look."""
    legend = figure.legend(
        handles=[Line2D([], [], label=label, **each) for label, each in looks.items()],
        loc="outside upper left", ncols=columns, frameon=False, fontsize=8.5,
        title=title, title_fontsize=11, alignment="left",
        handletextpad=0.6, columnspacing=1.8, borderaxespad=0.2, borderpad=0.2,
    )  # fmt: skip
    legend.get_title().set_color(INK)
