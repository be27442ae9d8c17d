"""Tables: shape and alignment, what a table of scores shows."""

from dataclasses import dataclass, field

import pytest

from neuron_spec.directions import Direction
from neuron_spec.pages.tables import csv_text, markdown_table


@dataclass(frozen=True)
class Row:
    direction: Direction
    bleu: float
    chrf: float
    off_target_fraction: float | None = None
    empty_fraction: float = 0.0
    sentences: int = 100
    reference_tokens: int = 900
    language_id_accuracy_fraction: float | None = None
    bleu_signature: str = "tok:13a"
    chrf_signature: str = "nw:2"


@dataclass(frozen=True)
class Mean:
    kind: str
    name: str
    group: str
    directions: int
    bleu: float
    chrf: float
    off_target_fraction: float | None = None
    empty_fraction: float = 0.0


@dataclass(frozen=True)
class Result:
    scores: list[Row]
    summary: list[Mean] = field(default_factory=list)


def cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


def row_named(table, name):
    return [cells(line) for line in table.split("\n") if line.startswith("|") and cells(line)[0] == name]


def result(de, it, **changes):
    rows = [Row(Direction("en", lang), bleu, 2 * bleu, **changes) for lang, bleu in (("de", de), ("it", it))]
    overall = Mean("overall", "all", "all", 2, (de + it) / 2, de + it)
    return Result(rows, [overall, Mean("tier", "high", "O2M", 1, de, de)])


def test_numbers_go_right_and_text_left():
    table = markdown_table(
        ["name", "score", "change", "note"],
        [["de-en", 31.25, "+1.0", "a|b"], ["x", 7.0, None, None]],
    )
    assert table.split("\n") == [
        "| name  | score | change | note |",
        "| ----- | ----: | -----: | ---- |",
        "| de-en |  31.2 |   +1.0 | a\\|b |",
        "| x     |   7.0 |      - | -    |",
    ]


def test_table_without_rows_and_with_a_wrong_one():
    assert markdown_table(["a"], []) == "| a   |\n| --- |"
    with pytest.raises(ValueError, match="zip"):
        markdown_table(["a", "b"], [["x"]])


def test_a_csv_file_leaves_unknown_cells_empty_and_quotes_what_must_be():
    assert csv_text(("a", "b"), [["x,y", None], [1, "0.50"]]) == 'a,b\n"x,y",\n1,0.50\n'
