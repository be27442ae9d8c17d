"""Figures of interference: what is red gets in the way, what is blue helps; readers with colour blindness can
tell them apart. Directions are ordered by family, as on every axis.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from torch import Tensor

from neuron_spec.directions import Direction
from neuron_spec.pages.ablation_figures import kind_of, name_families, runs_of
from neuron_spec.pages.figures import DPI, in_family_order

_INK, _MUTED, _EMPTY = "#222222", "#777777", "#dddddd"
_MOST_WITH_NUMBERS = 16  # directions


def direction_maps(
    maps: Mapping[str, Tensor],
    directions: Sequence[Direction],
    families: Mapping[str, str],
    *,
    title: str,
    label: str,
    rows: str,
    columns: str,
    positive_is_red: bool = False,
) -> Figure:
    """Matrices over pairs of directions, side by side on one colour scale around zero.

    The scale is that of different directions; a diagonal beyond it is drawn in the last colour.

    Args:
        maps: title of a panel -> float `[D, D]`; NaN leaves a cell grey.
        families: language -> family.
        label: of the colour bar; rows, columns: of the axes.
    """
    order = in_family_order(directions, families)
    names = [directions[i].arrow for i in order]
    runs = runs_of([kind_of(str(directions[i]), families) for i in order])
    ordered = {name: found[order][:, order].double() for name, found in maps.items()}
    others = torch.cat([found[~torch.eye(len(order)).bool()] for found in ordered.values()])
    cell = max(0.12, min(0.42, 9.6 / len(order)))
    font = min(9.0, 0.75 * cell * 72)
    figure = Figure(
        figsize=(len(maps) * (len(order) * cell + 1.9) + 0.8, len(order) * cell + 2.2),
        dpi=DPI, layout="constrained",
    )  # fmt: skip
    axes = figure.subplots(1, len(maps), squeeze=False)[0]
    scale = _around_zero(others)
    for ax, (name, found) in zip(axes, ordered.items(), strict=True):
        _draw(ax, found, scale, positive_is_red=positive_is_red, has_numbers=len(order) <= _MOST_WITH_NUMBERS)
        ax.set_xticks(range(len(order)), names, fontsize=font, rotation=90)
        ax.set_yticks(range(len(order)), names, fontsize=font)
        ax.set_xlabel(columns, fontsize=9, color=_INK)
        ax.set_ylabel(rows, fontsize=9, color=_INK)
        name_families(ax, runs, cell)
        for _, first, _ in runs[1:]:
            ax.axhline(first - 0.5, color="white", linewidth=1.5)
        ax.set_xlim(-0.5, len(order) - 0.5)
        ax.set_ylim(len(order) - 0.5, -0.5)
        if len(maps) > 1:
            ax.set_title(name, fontsize=10, color=_INK, pad=24, loc="left")
    _finish(figure, axes, title, label)
    return figure


def layer_grids(
    grids: Mapping[str, Mapping[tuple[str, str], float | None]], *, title: str, panels: int
) -> Figure:
    """The mean cosine of each part of each layer.

    Args:
        grids: title of a panel -> (layer, part) -> mean cosine; pairs that are missing stay grey.
        panels: how many stand side by side.
    """
    keys = [key for grid in grids.values() for key in grid]
    columns = list(dict.fromkeys(layer for layer, _ in keys))
    rows = list(dict.fromkeys(part for _, part in keys))
    tables = {}
    for name, grid in grids.items():
        values = [[grid.get((column, row)) for column in columns] for row in rows]
        tables[name] = torch.tensor(
            [[torch.nan if v is None else v for v in line] for line in values]
        ).double()
    lines = -(-len(grids) // panels)
    figure = Figure(
        figsize=(panels * (0.5 * len(columns) + 0.6) + 3.0, lines * (0.42 * len(rows) + 0.5) + 1.7),
        dpi=DPI, layout="constrained",
    )  # fmt: skip
    axes: list[Axes] = list(figure.subplots(lines, panels, squeeze=False, sharex=True, sharey=True).flat)
    scale = _around_zero(torch.cat([table.flatten() for table in tables.values()]))
    for ax, (name, table) in zip(axes, tables.items(), strict=True):
        _draw(ax, table, scale, positive_is_red=False, has_numbers=True)
        ax.set_xticks(range(len(columns)), columns, fontsize=8, rotation=90)
        ax.set_yticks(range(len(rows)), rows, fontsize=8)
        if len(grids) > 1:
            ax.set_title(name, fontsize=10, color=_INK, loc="left")
    _finish(figure, axes, title, "mean cosine (below 0: conflict)")
    return figure


def _around_zero(values: Tensor) -> Normalize:
    finite = values[values.isfinite()].abs()
    most = max(finite.max().item(), 1e-6) if len(finite) else 1.0
    return Normalize(-most, most)


def _draw(ax: Axes, shown: Tensor, scale: Normalize, *, positive_is_red: bool, has_numbers: bool) -> None:
    """``shown``: float `[rows, columns]`; NaN leaves a cell grey."""
    colors = colormaps["RdBu_r" if positive_is_red else "RdBu"].with_extremes(bad=_EMPTY)
    ax.imshow(shown.numpy(), cmap=colors, norm=scale, interpolation="none")
    ax.tick_params(length=0, pad=3, colors=_INK)
    for spine in ax.spines.values():
        spine.set_visible(False)
    if not has_numbers:
        return
    # Thousandths where the scale is small; the unit stands at the colour bar.
    most = float(scale.vmax or 0)
    decimals = 1 if most >= 10 else 2 if most >= 0.3 else 3
    for row, column in (~shown.isnan()).nonzero().tolist():
        text = f"{shown[row, column]:z.{decimals}f}"
        is_dark = abs(float(scale(shown[row, column].item())) - 0.5) > 0.35
        ax.text(
            column, row, text, ha="center", va="center", fontsize=7 if len(text) < 5 else 6,
            color="white" if is_dark else _INK,
        )  # fmt: skip


def _finish(figure: Figure, axes: Sequence[Axes], title: str, label: str) -> None:
    figure.suptitle(title, x=0.01, ha="left", fontsize=11, color=_INK)
    bar = figure.colorbar(axes[0].images[0], ax=list(axes), shrink=0.8, aspect=28, pad=0.02)
    bar.set_label(label, fontsize=9, color=_INK)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=8, length=2, color=_MUTED)
