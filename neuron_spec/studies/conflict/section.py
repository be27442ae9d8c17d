"""Interference between directions: whose gradients are in conflict, and whose steps help or harm whom."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from neuron_spec.artifacts import CONFLICT, CONFLICT_LAYERS, TRANSFER, read_json
from neuron_spec.pages.page import Block, Code, Paragraph, Section, Table, plain
from neuron_spec.pages.tables import Cell
from neuron_spec.report.commands import conflict_command, transfer_command
from neuron_spec.report.run_folder import Run
from neuron_spec.report.words import left_in, p_value

_FAMILIES = ("same family", "other families", "p")


def conflicts(run: Run) -> list[Section]:
    folders = run.holding(f"{CONFLICT}*/{CONFLICT}.json")
    if not folders:
        return []
    text = (
        "The cosine of two directions' gradients, over all parameters: below 0, a step for one raises the loss of the "
        "other. *Split half*: of a direction with itself, between the halves of its text, the most that noise lets a "
        "pair reach. p: whether pairs of one family are more alike than others; one-sided."
    )
    return [Section("Gradient conflict", [Paragraph(text)], [_conflict(run, folder) for folder in folders])]


def _conflict(run: Run, folder: Path) -> Section:
    found = read_json(folder / f"{CONFLICT}.json", "conflict")
    rows: list[list[Cell]] = []
    for checkpoint, own in found["checkpoints"].items():
        group = own["groups"]["all parameters"]  # further groups are sides, layers and their parts
        rows += [
            [
                checkpoint,
                kind,
                values["pairs"],
                _signed(values["mean"], 2),
                _percent(values["conflict_fraction"]),
                _signed(values["split_half"], 2),
                *_families(group["families"].get(kind), 2),
            ]
            for kind, values in group["kinds"].items()
        ]
    header = ("checkpoint", "pairs", "number", "cosine", "in conflict", "split half", *_FAMILIES)
    command = conflict_command(run, folder, found["signature"])
    captions = {
        CONFLICT: "Cosine of the gradients of all pairs",
        CONFLICT_LAYERS: "Mean cosine by layer and part",
    }
    return _section(run, folder, Table(header, rows), captions, f"{CONFLICT}.md", command)


def transfers(run: Run) -> list[Section]:
    folders = run.holding(f"{TRANSFER}*/{TRANSFER}.json")
    if not folders:
        return []
    text = (
        "How validation losses change, in nats per target token, by a step on the training text of one direction: "
        "negative where it helps. *Own*: of that direction; *others*: of the others of the kind; *harmed*: the share of "
        "pairs whose loss rose. Beside the families, the gain; p: whether one's own family gains more; one-sided."
    )
    sections = [_transfer(run, folder) for folder in folders]
    return [Section("Transfer between directions", [Paragraph(text)], sections)]


def _transfer(run: Run, folder: Path) -> Section:
    found = read_json(folder / f"{TRANSFER}.json", "transfer")
    rows: list[list[Cell]] = [
        [
            kind,
            values["pairs"],
            _signed(values["own"], 5),
            _signed(values["others"], 5),
            _percent(values["harmed_fraction"]),
            *_families(found["families"].get(kind), 5),
        ]
        for kind, values in found["groups"].items()
    ]
    header = ("pairs", "number", "own", "others", "harmed", *_FAMILIES)
    command = transfer_command(run, folder, found["signature"])
    captions = {TRANSFER: "Change of every direction's loss by a step on another"}
    return _section(run, folder, Table(header, rows), captions, f"{TRANSFER}.md", command)


def _families(test: Mapping[str, Any] | None, decimals: int) -> list[Cell]:
    if test is None or test["reason"]:
        return [None, None, None]
    return [_signed(test["same"], decimals), _signed(test["other"], decimals), p_value(test["p"])]


def _section(
    run: Run, folder: Path, table: Table, captions: Mapping[str, str], page: str, command: str
) -> Section:
    """A folder's headline numbers, its figures, and how to make them again."""
    name = run.name_of(folder)
    blocks: list[Block] = [table]
    for figure, caption in captions.items():
        blocks += left_in(folder, figure, f"{name.replace('/', '-')}-{figure}", caption)
    blocks += [Paragraph(f"In full: *{plain(f'{name}/{page}')}*. Again:"), Code(command)]
    return Section(name, blocks)


def _signed(value: float | None, decimals: int) -> Cell:
    return None if value is None else f"{value:+z.{decimals}f}"


def _percent(fraction: float | None) -> Cell:
    return None if fraction is None else f"{100 * fraction:.0f}%"
