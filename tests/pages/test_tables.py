"""Markdown tables: shape and alignment."""

import pytest

from neuron_spec.pages.tables import markdown_table


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
