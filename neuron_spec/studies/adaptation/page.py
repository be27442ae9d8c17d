"""The table and the figure of an adaptation: BLEU and chrF++ (0-100) against the number of shots."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from matplotlib.figure import Figure

from neuron_spec.artifacts import ADAPTATION, read_json, recorded_command, write_text
from neuron_spec.directions import Direction
from neuron_spec.errors import ArtifactError
from neuron_spec.pages import style
from neuron_spec.pages.curves import Point, line_panels
from neuron_spec.pages.page import Block, Paragraph, Section, Table, again, left_in, plain
from neuron_spec.pages.tables import Cell, markdown_table
from neuron_spec.scoring.evaluation import ALL, Evaluation
from neuron_spec.scoring.metrics import DirectionScore
from neuron_spec.studies.adaptation.measure import Updates

Results = Mapping[Direction, Mapping[int, Evaluation]]

METRICS: dict[str, Callable[[DirectionScore], float]] = {"BLEU": lambda s: s.bleu, "chrF++": lambda s: s.chrf}


def write_adaptation(
    output: Path,
    results: Results,
    updates: Updates,
    trained: Sequence[Direction],
    lenders: Mapping[Direction, Direction],
) -> Path:
    """Write ``adaptation.png``, ``.svg`` and, last, ``.md``, whose path is returned.

    Args:
        trained: the directions that the checkpoint was trained on.
        lenders: direction -> the one whose masks it ran through, of those that borrowed.
    """
    for suffix in (".png", ".svg"):
        style.save(curves(results), output / f"{ADAPTATION}{suffix}")
    path = output / f"{ADAPTATION}.md"
    write_text(path, as_markdown(results, updates, trained, lenders))
    return path


def as_markdown(
    results: Results, updates: Updates, trained: Sequence[Direction], lenders: Mapping[Direction, Direction]
) -> str:
    """The page ``adaptation.md``."""
    known = [str(direction) for direction in results if direction in trained]
    signatures = {
        name: sorted({getattr(of.scores[0], name) for curve in results.values() for of in curve.values()})
        for name in ("bleu_signature", "chrf_signature")
    }
    borrowed = [f"{direction} through those of {lender}" for direction, lender in lenders.items()]
    notes = [
        f"{updates.steps} updates of {updates.optimizer} at rate {updates.rate:g}, each on a batch of up to "
        f"{updates.max_tokens} tokens, seed {updates.seed}; 0 shots is the model as it is.",
        "One draw of sentences for each direction: another seed gives other scores, the more so the fewer the shots.",
        f"In the model's own training: {', '.join(known) or 'none of these directions'}.",
        *([f"Masks are borrowed: {', '.join(borrowed)}."] if borrowed else []),
        f"All directions as one evaluation, for `neuron-spec compare`: `{ALL}/` and the number of shots.",
        *(f"`{text}`" for texts in signatures.values() for text in texts),
    ]
    parts = ["# Adaptation to few training sentences", f"![Scores against shots]({ADAPTATION}.png)"]
    for name in METRICS:
        parts += [f"## {name}", table(results, name)]
    return "\n\n".join([*parts, "\n".join(f"- {note}" for note in notes)]) + "\n"


def table(results: Results, metric: str) -> str:
    """A row per direction, a column per number of shots, and the mean over directions."""
    read = METRICS[metric]
    shots = list(next(iter(results.values())))
    rows: list[list[Cell]] = [
        [str(direction), *(read(curve[n].scores[0]) for n in shots)] for direction, curve in results.items()
    ]
    if len(rows) > 1:
        rows.append(["mean", *(fmean(read(c[n].scores[0]) for c in results.values()) for n in shots)])
    return markdown_table(["direction", *(f"{n} shots" for n in shots)], rows)


def curves(results: Results) -> Figure:
    """A panel per metric, a line per direction; numbers of shots stand at equal distances."""
    panels = {
        name: {
            direction.arrow: {float(n): Point(read(of.scores[0])) for n, of in curve.items()}
            for direction, curve in results.items()
        }
        for name, read in METRICS.items()
    }
    shots = {float(n): f"{n:,}" for n in next(iter(results.values()))}
    title, label = "Scores against shots", "training sentences (shots)"
    return line_panels([panels], title=title, label=label, ticks=shots, zero="bottom")


# In a report ----------------------------------------------------------------------------------

_SHOWN = {"bleu": "BLEU", "chrf": "chrF++"}


def section(folders: Mapping[str, Path]) -> Section:
    """The scores of each folder."""
    text = (
        "Scores against the number of training sentences (shots) of directions that a copy of the model learns; 0 shots "
        "is the model as it is."
    )
    sections = [_headline(*each) for each in folders.items()]
    return Section("Adaptation to few training sentences", [Paragraph(text)], sections)


def _headline(name: str, folder: Path) -> Section:
    found = _read(folder / f"{ADAPTATION}.json")
    shots = list(next(iter(found["directions"].values()))["shots"])
    rows: list[list[Cell]] = [
        [direction, *(own["shots"][n][metric] for metric in _SHOWN for n in shots)]
        for direction, own in found["directions"].items()
    ]
    if len(rows) > 1:
        rows.append(["mean", *(fmean(row[i] for row in rows) for i in range(1, len(rows[0])))])  # type: ignore[misc]
    header = ("direction", *(f"{metric}, {n} shots" for metric in _SHOWN.values() for n in shots))
    caption = "BLEU and chrF++ against the number of shots"
    blocks: list[Block] = [
        Table(header, rows),
        *_borrowing(found),
        *left_in(folder, ADAPTATION, name.replace("/", "-"), caption),
        *again(recorded_command(found, folder), f"{name}/{ADAPTATION}.md"),
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
