"""What all figures share: colours, order of directions, axes, legends, and how they are written.

Figures are made without pyplot, so drawing one changes no global state and needs no display. All take fractions
(0-1) and show percent. Families come from the language table unless `families` (language -> family) is given.
Languages without a known family stand last, as "unknown".
"""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

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
from neuron_spec.pages.page import Picture

DPI = 150

# Okabe and Ito's palette, told apart by colour-blind readers too, and markers for grey print.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#444444")
MARKERS = ("o", "D", "s", "^", "v", "P", "X")
GROUP_COLORS = {
    FROM_ENGLISH.arrow: "#0072B2",
    INTO_ENGLISH.arrow: "#D55E00",
    WITHOUT_ENGLISH.arrow: "#009E73",
}
GROUP_WORDS = {**{group.key: group.arrow for group in GROUPS}, "all": "all directions"}
INK, MUTED, PALE = "#222222", "#777777", "#DDDDDD"
POINT = 1 / 72  # inch
TICK_STEPS = [1, 2, 5, 10]
LEGEND_COLUMNS = 4


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
    groups = list(GROUP_COLORS)

    def key(index: int) -> tuple[int, tuple[bool, str, str], str]:
        direction = directions[index]
        return (
            groups.index(direction.group.arrow),
            family_place(direction.placed_by(by), families),
            str(direction),
        )

    return sorted(range(len(directions)), key=key)


def new_figure(width: float, height: float) -> Figure:
    """``width`` and ``height`` in inches."""
    return Figure(figsize=(width, height), dpi=DPI, layout="constrained")


def legend_above(figure: Figure, title: str, handles: Sequence[Line2D]) -> None:
    legend = figure.legend(
        handles=list(handles), loc="outside upper left", ncols=LEGEND_COLUMNS, frameon=False, fontsize=8.5,
        title=title, title_fontsize=11, alignment="left",
        handletextpad=0.6, columnspacing=1.8, borderaxespad=0.2, borderpad=0.2,
    )  # fmt: skip
    legend.get_title().set_color(INK)


def plain_axis(ax: Axes) -> None:
    for name in ("top", "right", "left"):
        ax.spines[name].set_visible(False)
    ax.spines["bottom"].set_color(MUTED)
    ax.tick_params(length=0, colors=INK, labelsize=8)
    ax.set_axisbelow(True)


def family_place(code: str, families: Mapping[str, str] | None) -> tuple[bool, str, str]:
    """Sort key: families in the order of the alphabet, unknown ones last; within one by code."""
    family = family_of(code, families)
    return family == UNKNOWN, family, code
