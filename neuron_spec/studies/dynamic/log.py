"""How masks moved in training, read from its log: see ``neuron_spec_dynamic`` for what it logs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from matplotlib.figure import Figure

from neuron_spec.artifacts import require_file
from neuron_spec.pages import style

# Measure -> its panel's title. Logged as fractions, drawn in percent.
MEASURES = {
    "mask_churn": "churn, %",
    "mask_kept_fraction": "kept, %",
    "mask_overlap": "overlap of two directions, %",
}
_UPDATE = "num_updates"
# fairseq's formats simple (name=1.5) and json ("name": "1.5") in one; the means of an epoch are written otherwise.
_VALUE = re.compile(rf'\b({"|".join([_UPDATE, *MEASURES])})"?[=:] ?"?([-+.\de]+)')

# Measure -> update -> value, 0-1; a measure that was never logged is missing.
Curves = Mapping[str, Mapping[int, float]]


def read_churn(log: Path) -> Curves:
    """The measures of a training in the order of its updates; empty if its masks never moved.

    Of a training that was resumed, what was trained anew counts, and what it replaces does not.

    Raises:
        ArtifactError: if there is no log.
    """
    rows: dict[int, dict[str, float]] = {}
    with open(require_file(log, "training log"), encoding="utf-8", errors="replace") as lines:
        for line in lines:
            values = dict(_VALUE.findall(line))
            if len(values) < 2 or _UPDATE not in values:
                continue
            update = int(values.pop(_UPDATE))
            if rows and update <= max(rows):
                rows = {before: row for before, row in rows.items() if before < update}
            rows[update] = {name: float(value) for name, value in values.items()}
    found = {name: {update: row[name] for update, row in rows.items() if name in row} for name in MEASURES}
    return {name: curve for name, curve in found.items() if curve}


def churn_curves(trainings: Mapping[str, Curves]) -> Figure:
    """A panel per measure against updates, a line per training."""
    figure = Figure(figsize=(10.2, 2.9), dpi=style.DPI, layout="constrained")
    for ax, (name, title) in zip(figure.subplots(1, len(MEASURES)), MEASURES.items(), strict=True):
        for number, (label, curves) in enumerate(trainings.items()):
            curve = curves.get(name, {})
            ax.plot(
                list(curve), [100 * value for value in curve.values()],
                color=style.COLORS[number % len(style.COLORS)], linewidth=1.3, label=label,
                marker="o" if len(curve) == 1 else None, markersize=3,
            )  # fmt: skip
        ax.set_title(title, fontsize=9, color="#222222", loc="left")
        ax.spines[["top", "right", "left"]].set_visible(False)
        ax.tick_params(length=0, colors="#222222", labelsize=8)
        ax.grid(axis="y", color="#DDDDDD", linewidth=0.6)
        ax.set_axisbelow(True)
    figure.supxlabel("updates", fontsize=9, color="#222222")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=4, frameon=False, fontsize=8.5)
    return figure
