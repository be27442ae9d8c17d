"""How masks moved in the trainings that move them, read from their logs: ``neuron_spec_dynamic`` says what it logs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from matplotlib.figure import Figure

from neuron_spec.artifacts import require_file, shown_command, training_command
from neuron_spec.pages.curves import Point, line_panels
from neuron_spec.pages.page import Block, Code, Paragraph, Section, Table
from neuron_spec.pages.style import drawn, look
from neuron_spec.pages.tables import Cell

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

_ABOUT = (
    "Of trainings that move their masks, as their logs have it, in percent: the mean over sites and directions, and over "
    "the moves since the line before. *Churn*: 1 - IoU of a mask before and after it moves; *kept*: neurons and heads; "
    "*overlap*: IoU of two directions. At the first and the last line:"
)


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
    curves = {name: {update: row[name] for update, row in rows.items() if name in row} for name in MEASURES}
    return {name: curve for name, curve in curves.items() if curve}


def section(folders: Mapping[str, Path]) -> Section | None:
    """Of the trainings whose masks moved; None where none did."""
    moving = {
        name: curves for name, folder in folders.items() if (curves := read_churn(folder / "train.log"))
    }
    if not moving:
        return None
    blocks: list[Block] = [
        Paragraph(_ABOUT),
        Table(
            ("training", "last update", "churn", "kept", "overlap"),
            [[name, *_row(curves)] for name, curves in moving.items()],
        ),
        drawn(
            "churn",
            "Churn, kept neurons and overlap of the masks over training",
            churn_curves(moving),
        ),
    ]
    if commands := [shown_command(words) for name in moving if (words := training_command(folders[name]))]:
        blocks.append(Code("\n".join(commands)))
    return Section("Masks that moved", blocks)


def _row(curves: Curves) -> list[Cell]:
    row: list[Cell] = [max(update for curve in curves.values() for update in curve)]
    for name in MEASURES:
        values = [100 * value for value in curves.get(name, {}).values()]
        row.append(f"{values[0]:.1f} to {values[-1]:.1f}" if values else None)
    return row


def churn_curves(trainings: Mapping[str, Curves]) -> Figure:
    """A panel per measure in percent against updates, a line per training."""
    panels = {
        title: {
            name: {float(update): Point(100 * value) for update, value in curves.get(measure, {}).items()}
            for name, curves in trainings.items()
        }
        for measure, title in MEASURES.items()
    }
    # A log has hundreds of points: markers, but for a line of one, would hide it.
    looks = {
        name: look(number, marker="o" if all(len(curve) == 1 for curve in curves.values()) else None)
        for number, (name, curves) in enumerate(trainings.items())
    }
    return line_panels([panels], title="Masks over training", label="updates", looks=looks)
