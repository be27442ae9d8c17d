"""Cells and tables, as Markdown and CSV."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Sequence

Cell = str | int | float | None
_NO_VALUE = "-"
# A mark between letters, as in neuron_spec, is none.
_MARKS = re.compile(r"[\\`*\[\]&~$]|<(?!\d)|(?<!\w)_|_(?!\w)")
# Also what has a spread, a bound or thousands: 16.5 ± 0.3, <0.001, 69,906.
_NUMBER = re.compile(r"[<+-]?\d[\d,]*(\.\d+)?%?( ± \d+(\.\d+)?)?")


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[Cell]]) -> str:
    """A Markdown table: floats with one decimal, None as ``-``, columns of numbers to the right; text is no mark-up.

    Raises:
        ValueError: if a row is not as long as the header.
    """
    lines = [[plain(shown(cell)).replace("|", "\\|") for cell in line] for line in (header, *rows)]
    widths = [max(3, *map(len, column)) for column in zip(*lines, strict=True)]
    columns = list(zip(widths, columns_of_numbers(header, rows), strict=True))
    rule = ["-" * (width - 1) + (":" if is_right else "-") for width, is_right in columns]
    texts = []
    for line in (lines[0], rule, *lines[1:]):
        cells = zip(line, columns, strict=True)
        padded = (cell.rjust(width) if is_right else cell.ljust(width) for cell, (width, is_right) in cells)
        texts.append(f"| {' | '.join(padded)} |")
    return "\n".join(texts)


def plain(text: str) -> str:
    """``text`` for use in a paragraph of Markdown: what would be a mark gets a backslash."""
    return _MARKS.sub(r"\\\g<0>", " ".join(text.split()))


def csv_text(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table as a CSV file; None is an empty cell. What a spreadsheet would take for a formula begins with an apostrophe."""
    text = io.StringIO()
    lines = ([_no_formula(cell) for cell in line] for line in (header, *rows))
    csv.writer(text, lineterminator="\n").writerows(lines)
    return text.getvalue()


def _no_formula(cell: object) -> object:
    if not isinstance(cell, str) or _NUMBER.fullmatch(cell):
        return cell
    is_like_one = cell.startswith(("=", "+", "-", "@", "\t", "\r"))
    return "'" * is_like_one + cell.replace(
        "\r", " "
    )  # else a line's end, which the csv module does not quote


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


def fixed(value: float | None, decimals: int) -> Cell:
    """With more decimals than `shown` gives."""
    return None if value is None else f"{value:.{decimals}f}"


def percent(fraction: float | None, decimals: int = 0) -> Cell:
    """A fraction, 0-1."""
    return None if fraction is None else f"{100 * fraction:.{decimals}f}%"


def bounds(low: float, high: float, decimals: int = 2) -> str:
    """An interval of differences."""
    return f"{low:+z.{decimals}f} to {high:+z.{decimals}f}"


def counted(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


def columns_of_numbers(header: Sequence[str], rows: Sequence[Sequence[Cell]]) -> list[bool]:
    """Of each column, whether all its cells are numbers, at least one of them known."""
    columns = zip(*([shown(cell) for cell in line] for line in (header, *rows)), strict=True)
    known = [[cell for cell in cells if cell != _NO_VALUE] for _, *cells in columns]
    return [bool(values) and all(map(_NUMBER.fullmatch, values)) for values in known]
