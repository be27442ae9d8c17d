"""Cells and tables, as Markdown and CSV; those of scores. BLEU and chrF++ are 0-100, shares of sentences in percent.

Pure functions of what an evaluation holds, described below by the attributes that are read.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Sequence
from typing import Protocol

from neuron_spec.directions import Direction

Cell = str | int | float | None
_NO_VALUE = "-"
# Also what has a spread, a bound or thousands: 16.5 ± 0.3, <0.001, 69,906.
_NUMBER = re.compile(r"[<+-]?\d[\d,]*(\.\d+)?%?( ± \d+(\.\d+)?)?")


class Means(Protocol):
    """What is shown alike for one direction and for a mean over several."""

    @property
    def bleu(self) -> float: ...
    @property
    def chrf(self) -> float: ...
    @property
    def off_target_fraction(self) -> float | None: ...
    @property
    def empty_fraction(self) -> float: ...


class DirectionRow(Means, Protocol):
    @property
    def direction(self) -> Direction: ...
    @property
    def sentences(self) -> int: ...
    @property
    def reference_tokens(self) -> int: ...
    @property
    def language_id_accuracy_fraction(self) -> float | None: ...
    @property
    def bleu_signature(self) -> str: ...
    @property
    def chrf_signature(self) -> str: ...


class GroupRow(Means, Protocol):
    @property
    def kind(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def group(self) -> str: ...
    @property
    def directions(self) -> int: ...


class Scores(Protocol):
    @property
    def scores(self) -> Sequence[DirectionRow]: ...
    @property
    def summary(self) -> Sequence[GroupRow]: ...


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[Cell]]) -> str:
    """A Markdown table: floats with one decimal, None as ``-``, columns of numbers to the right.

    Raises:
        ValueError: if a row is not as long as the header.
    """
    lines = [[_escaped(shown(cell)) for cell in line] for line in (header, *rows)]
    columns = list(zip(*lines, strict=True))
    right = columns_of_numbers(header, rows)
    widths = [max(3, *map(len, column)) for column in columns]
    rule = ["-" * (width - 1) + (":" if r else "-") for width, r in zip(widths, right, strict=True)]
    return "\n".join(
        "| "
        + " | ".join(
            cell.rjust(width) if r else cell.ljust(width)
            for cell, width, r in zip(line, widths, right, strict=True)
        )
        + " |"
        for line in (lines[0], rule, *lines[1:])
    )


def csv_text(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table as a CSV file; None is an empty cell."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows((header, *rows))
    return text.getvalue()


def shown(cell: Cell) -> str:
    """What a cell says: floats with one decimal, None as ``-``."""
    if cell is None:
        return _NO_VALUE
    return f"{cell:.1f}" if isinstance(cell, float) else str(cell)


def shown_p(value: float) -> str:
    """A p-value as tables show it, never as 0."""
    return "<0.001" if value < 0.0005 else f"{value:.3f}"


def signed(value: float | None, decimals: int = 2) -> Cell:
    """With its sign; never a minus before a zero."""
    return None if value is None else f"{value:+z.{decimals}f}"


def percent(fraction: float | None, decimals: int = 0) -> Cell:
    """A fraction, 0-1."""
    return None if fraction is None else f"{100 * fraction:.{decimals}f}%"


def bounds(low: float, high: float) -> str:
    """An interval of differences."""
    return f"{low:+z.2f} to {high:+z.2f}"


def counted(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


def columns_of_numbers(header: Sequence[str], rows: Sequence[Sequence[Cell]]) -> list[bool]:
    """Of each column, whether all its cells are numbers, at least one of them known."""
    columns = zip(*([shown(cell) for cell in line] for line in (header, *rows)), strict=True)
    return [_holds_numbers(cells) for _, *cells in columns]


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _holds_numbers(cells: Sequence[str]) -> bool:
    values = [cell for cell in cells if cell != _NO_VALUE]
    return bool(values) and all(_NUMBER.fullmatch(value) for value in values)


def scores_table(evaluation: Scores) -> str:
    """One evaluation in full: means, tiers and families first, then every direction, then how."""
    names = ("BLEU", "chrF++", "off-target", "empty")
    parts = []
    for title, kinds in (
        ("Directions by group", ("overall", "group")),
        ("Tiers", ("tier",)),
        ("Families of the non-English language", ("family",)),
    ):
        means = [row for row in evaluation.summary if row.kind in kinds]
        if means:
            header = ("mean over", "group", "directions", *names)
            rows = [[row.name, row.group, row.directions, *_means(row)] for row in means]
            parts.append(f"## {title}\n\n" + markdown_table(header, rows))

    directions: list[list[Cell]] = [
        [str(row.direction), row.sentences, *_means(row), percent(row.language_id_accuracy_fraction, 1)]
        for row in evaluation.scores
    ]
    columns = ("direction", "sentences", *names, "references identified")
    parts.append("## Directions\n\n" + markdown_table(columns, directions))

    signatures = sorted({f"BLEU: `{row.bleu_signature}`" for row in evaluation.scores})
    signatures += sorted({f"chrF++: `{row.chrf_signature}`" for row in evaluation.scores})
    parts.append("\n".join(f"- {line}" for line in signatures))
    parts.append(
        "Means are unweighted over directions. Off-target: hypotheses identified as another language than\n"
        "the target; judge it by the share of references that are identified as the target."
    )
    return "\n\n".join(parts) + "\n"


def _means(row: Means) -> list[Cell]:
    return [row.bleu, row.chrf, percent(row.off_target_fraction, 1), percent(row.empty_fraction, 1)]
