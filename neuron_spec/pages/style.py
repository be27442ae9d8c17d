"""What all figures share: colours, order of directions, axes, legends, and how they are rendered.

Figures are made without pyplot, so drawing one changes no global state and needs no display. All take fractions
(0-1) and show percent. Families come from the language table unless `families` (language -> family) is given.
Languages without a known family stand last, as "unknown".
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any, NamedTuple

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from neuron_spec.directions import GROUPS, Direction, Group
from neuron_spec.languages import UNKNOWN, family_of
from neuron_spec.pages.page import DPI, Picture

# Okabe and Ito's palette, told apart by colour-blind readers too, and markers for grey print.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#444444")
MARKERS = ("o", "D", "s", "^", "v", "P", "X")
LOOKS = len(COLORS) * len(MARKERS)  # of `look`, no two alike
INK, MUTED, PALE = "#222222", "#777777", "#DDDDDD"
POINT = 1 / 72  # inch
TICK_STEPS = [1, 2, 5, 10]
LEGEND_COLUMNS = 4

Look = Mapping[str, Any]  # of a line, in a panel and in the legend: what matplotlib's Line2D takes


def rendered(figure: Figure, kind: str) -> bytes:
    """The bytes of a ``png`` or ``svg``; the same figure gives the same."""
    content = io.BytesIO()
    if figure.get_layout_engine() is not None:
        figure.draw_without_rendering()
        figure.set_layout_engine("none")  # laid out again, it would move by a last bit
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
    members: Sequence[Direction | str], families: Mapping[str, str] | None = None, *, by: str = "source"
) -> list[int]:
    """The order of directions, or of codes of languages, on every axis, as indices into ``members``.

    Directions out of English come first, then those into English; within each by the family of the
    language that is not English, then by its code. Unknown families come last.

    Args:
        by: ``source`` or ``target``, the language that places a direction without English.
    """

    def place(index: int) -> tuple[int, bool, str, str, str]:
        group, family, code = _kind(members[index], families, by)
        number = 0 if group is None else GROUPS.index(group)
        return number, family == UNKNOWN, family, code, str(members[index])

    return sorted(range(len(members)), key=place)


def _kind(one: Direction | str, families: Mapping[str, str] | None, by: str) -> tuple[Group | None, str, str]:
    """Group, family and the language that places a direction; a language has no group."""
    group, code = (None, one) if isinstance(one, str) else (one.group, one.placed_by(by))
    return group, family_of(code, families), code


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
    runs: list[Run] = []
    for (group, family), members in groupby(ordered, lambda one: _kind(one, families, by)[:2]):
        first = runs[-1].last + 1 if runs else 0
        runs.append(Run(group, family, first, first + len(list(members)) - 1))
    return runs


# Drawing ----------------------------------------------------------------------------------


class Drawing(Figure):
    """A figure that a notebook shows, which without pyplot would print its name."""

    def _repr_png_(self) -> bytes:
        return rendered(self, "png")


def new_figure(width: float, height: float) -> Figure:
    """``width`` and ``height`` in inches."""
    return Drawing(figsize=(width, height), dpi=DPI, layout="constrained")


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


def legend_above(figure: Figure, title: str, looks: Mapping[str, Look]) -> None:
    """The figure's title, and below it what each look stands for: label -> look."""
    legend = figure.legend(
        handles=[Line2D([], [], label=label, **each) for label, each in looks.items()],
        loc="outside upper left", ncols=LEGEND_COLUMNS, frameon=False, fontsize=8.5,
        title=title, title_fontsize=11, alignment="left",
        handletextpad=0.6, columnspacing=1.8, borderaxespad=0.2, borderpad=0.2,
    )  # fmt: skip
    legend.get_title().set_color(INK)
