"""How masks moved in the trainings that move them, read from their logs: ``neuron_spec_dynamic`` says what it logs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from matplotlib.figure import Figure

from neuron_spec.artifacts import shown_command, training_command
from neuron_spec.backends.fairseq.training_log import read_log
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
    return read_log(log, MEASURES, "train_inner")


def section(folders: Mapping[str, Path]) -> Section | None:
    """Of the trainings whose masks moved; None where none did."""
    moving = {
        name: curves for name, folder in folders.items() if (curves := read_churn(folder / "train.log"))
    }
    if not moving:
        return None
    rows: list[list[Cell]] = []
    for name, curves in moving.items():
        rows.append([name, max(update for curve in curves.values() for update in curve)])
        for measure in MEASURES:
            values = [100 * value for value in curves.get(measure, {}).values()]
            rows[-1].append(f"{values[0]:.1f} to {values[-1]:.1f}" if values else None)
    caption = "Churn, kept neurons and overlap of the masks over training"
    blocks: list[Block] = [
        Paragraph(_ABOUT),
        Table(("training", "last update", "churn", "kept", "overlap"), rows),
        drawn("churn", caption, churn_curves(moving)),
    ]
    if commands := [shown_command(words) for name in moving if (words := training_command(folders[name]))]:
        blocks.append(Code("\n".join(commands)))
    return Section("Masks that moved", blocks)


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
