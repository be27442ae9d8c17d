"""How masks moved in the trainings that move them."""

from __future__ import annotations

from neuron_spec.pages.page import Block, Code, Paragraph, Section, Table
from neuron_spec.pages.tables import Cell
from neuron_spec.report.commands import training_command
from neuron_spec.report.run_folder import Run
from neuron_spec.report.words import drawn
from neuron_spec.studies.dynamic.log import MEASURES, Curves, churn_curves, read_churn

_ABOUT = (
    "Of trainings that move their masks, as their logs have it, in percent: the mean over sites and directions, and over "
    "the moves since the line before. *Churn*: 1 - IoU of a mask before and after it moves; *kept*: neurons and heads; "
    "*overlap*: IoU of two directions. At the first and the last line:"
)


def churn(run: Run) -> list[Section]:
    found = {folder: read_churn(folder / "train.log") for folder in run.holding("*/train.log")}
    moving = {folder: curves for folder, curves in found.items() if curves}
    if not moving:
        return []
    blocks: list[Block] = [
        Paragraph(_ABOUT),
        Table(
            ("training", "last update", "churn", "kept", "overlap"),
            [[run.name_of(folder), *_row(curves)] for folder, curves in moving.items()],
        ),
        drawn(
            "churn",
            "Churn, kept neurons and overlap of the masks over training",
            churn_curves({run.name_of(folder): curves for folder, curves in moving.items()}),
        ),
    ]
    if commands := [command for folder in moving if (command := training_command(folder))]:
        blocks.append(Code("\n".join(commands)))
    return [Section("Masks that moved", blocks)]


def _row(curves: Curves) -> list[Cell]:
    row: list[Cell] = [max(update for curve in curves.values() for update in curve)]
    for name in MEASURES:
        values = [100 * value for value in curves.get(name, {}).values()]
        row.append(f"{values[0]:.1f} to {values[-1]:.1f}" if values else None)
    return row
