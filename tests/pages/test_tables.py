"""Tables: shape and alignment."""

import csv
import io

import pytest

from neuron_spec.pages.tables import csv_text, markdown_table


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


@pytest.mark.parametrize("text", ["=cmd|' /C calc'!A0", "+1+cmd", "-2+3", "@SUM(1)", "\t=1", "\r=1", "--x"])
def test_text_is_no_formula_in_a_csv_file_and_numbers_stay_numbers(text):
    (header, row) = csv.reader(io.StringIO(csv_text((text, "b"), [[text, -0.137]])))
    escaped = f"'{text}".replace("\r", " ")
    assert (header[0], row) == (escaped, [escaped, "-0.137"])
    assert csv_text(("-", "c"), [["-0.137", "+1.20"], ["a=b", "zh-en"]]) == "'-,c\n-0.137,+1.20\na=b,zh-en\n"


def test_a_csv_file_leaves_unknown_cells_empty_and_quotes_what_must_be():
    assert csv_text(("a", "b"), [["x,y", None], [1, "0.50"]]) == 'a,b\n"x,y",\n1,0.50\n'


def test_text_is_no_markup_in_a_table():
    table = markdown_table(["<b>", "x"], [["<img src=x>", "[a](b)\n*c*"]])
    assert [line.split() for line in table.split("\n")[::2]] == [
        ["|", r"\<b>", "|", "x", "|"],
        ["|", r"\<img", "src=x>", "|", r"\[a\](b)", r"\*c\*", "|"],
    ]
