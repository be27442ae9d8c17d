"""Adaptation to few training sentences, of each checkpoint that adapted."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean
from typing import Any

from neuron_spec.artifacts import ADAPTATION, read_json
from neuron_spec.errors import ArtifactError
from neuron_spec.pages.page import Block, Code, Paragraph, Section, Table, plain
from neuron_spec.pages.tables import Cell
from neuron_spec.report.commands import adapt_command
from neuron_spec.report.run_folder import Run
from neuron_spec.report.words import left_in

_METRICS = {"bleu": "BLEU", "chrf": "chrF++"}


def adaptations(run: Run) -> list[Section]:
    folders = run.holding(f"{ADAPTATION}*/{ADAPTATION}.json")
    if not folders:
        return []
    text = (
        "Scores against the number of training sentences (shots) of directions that a copy of the model learns; 0 shots "
        "is the model as it is."
    )
    sections = [_adaptation(run, folder) for folder in folders]
    return [Section("Adaptation to few training sentences", [Paragraph(text)], sections)]


def _adaptation(run: Run, folder: Path) -> Section:
    found = _read(folder / f"{ADAPTATION}.json")
    name = run.name_of(folder)
    shots = list(next(iter(found["directions"].values()))["shots"])
    rows: list[list[Cell]] = [
        [direction, *(own["shots"][n][metric] for metric in _METRICS for n in shots)]
        for direction, own in found["directions"].items()
    ]
    if len(rows) > 1:
        rows.append(["mean", *(fmean(row[i] for row in rows) for i in range(1, len(rows[0])))])  # type: ignore[misc]
    header = ("direction", *(f"{metric}, {n} shots" for metric in _METRICS.values() for n in shots))
    caption = "BLEU and chrF++ against the number of shots"
    blocks: list[Block] = [
        Table(header, rows),
        *_borrowing(found),
        *left_in(folder, ADAPTATION, name.replace("/", "-"), caption),
        Paragraph(f"In full: *{plain(f'{name}/{ADAPTATION}.md')}*. Again:"),
        Code(adapt_command(run, folder, found)),
    ]
    return Section(name, blocks)


def _read(path: Path) -> dict[str, Any]:
    """Raises: ArtifactError if it is not as neuron-spec adapt writes it now."""
    found = read_json(path, "adaptation")
    expected = ("checkpoint_sha256", "updates", "subset", "references", "fairseq_flags", "borrow", "borrowed")
    missing = [key for key in (*expected, "directions") if not isinstance(found, dict) or key not in found]
    if missing:
        raise ArtifactError(
            "an adaptation is not of the form that neuron-spec writes",
            where=path,
            got=f"no {', '.join(missing)}",
            mend="give the same neuron-spec adapt again: it keeps what is complete, and writes this file anew",
        )
    return dict(found)


def _borrowing(found: dict[str, Any]) -> list[Block]:
    borrowed = [f"{direction} through those of {lender}" for direction, lender in found["borrowed"].items()]
    return [Paragraph(plain(f"Masks are borrowed: {', '.join(borrowed)}."))] if borrowed else []
