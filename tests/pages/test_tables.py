"""Markdown tables: shape and alignment, what is compared with what, and what must not be."""

from dataclasses import dataclass, field, replace

import pytest

from neuron_spec.directions import Direction
from neuron_spec.errors import NeuronSpecError
from neuron_spec.pages.tables import comparison_table, markdown_table, scores_table


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


def test_scores_table_shows_directions_means_and_signatures():
    evaluation = result(10.0, 20.0, off_target_fraction=0.125, language_id_accuracy_fraction=0.99)
    table = scores_table(evaluation)
    assert row_named(table, "en-it") == [["en-it", "100", "20.0", "40.0", "12.5%", "0.0%", "99.0%"]]
    assert row_named(table, "all") == [["all", "all", "2", "15.0", "30.0", "-", "0.0%"]]
    assert row_named(table, "high") == [["high", "O2M", "1", "10.0", "10.0", "-", "0.0%"]]
    assert "- BLEU: `tok:13a`" in table
    assert "- chrF++: `nw:2`" in table
    assert "Families" not in table  # none given, so no empty table


def test_comparison_with_the_first():
    dense, ns, random = result(10.0, 20.0), result(11.0, 19.5), result(10.0, 20.0)
    table = comparison_table({"dense": dense, "NS": ns, "random": random})
    bleu, chrf = row_named(table, "en-de")
    assert bleu == ["en-de", "10.0", "11.0", "10.0", "+1.0", "+0.0"]
    assert chrf == ["en-de", "20.0", "22.0", "20.0", "+2.0", "+0.0"]
    assert row_named(table, "en-it")[0][-2:] == ["-0.5", "+0.0"]
    assert row_named(table, "mean all")[0][-2:] == ["+0.2", "+0.0"]
    assert row_named(table, "mean high, O2M")[0][1:3] == ["10.0", "11.0"]
    assert "NS - dense" in table


def test_differences_are_of_unrounded_scores():
    table = comparison_table({"a": result(10.04, 1.0), "b": result(10.06, 1.0)})
    assert row_named(table, "en-de")[0] == ["en-de", "10.0", "10.1", "+0.0"]


def test_order_of_directions_does_not_matter():
    first, second = result(10.0, 20.0), result(11.0, 19.5)
    turned = Result(second.scores[::-1], second.summary[::-1])
    assert comparison_table({"a": first, "b": second}) == comparison_table({"a": first, "b": turned})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sentences": 99}, "tests of different length"),
        ({"bleu_signature": "tok:zh"}, "different BLEU signatures"),
        ({"chrf_signature": "nw:0"}, "different chrF\\+\\+ signatures"),
        ({"reference_tokens": 901}, "different references"),
    ],
)
def test_scores_made_otherwise_are_not_compared(change, message):
    first = result(10.0, 20.0)
    other = Result([first.scores[0], replace(first.scores[1], **change)], first.summary)
    with pytest.raises(NeuronSpecError, match=message) as error:
        comparison_table({"dense": first, "NS": other})
    assert "en-it in dense, NS" in str(error.value)


def test_different_directions_are_not_compared():
    first = result(10.0, 20.0)
    with pytest.raises(NeuronSpecError, match="only in one of them: en-it"):
        comparison_table({"dense": first, "NS": Result(first.scores[:1])})
    with pytest.raises(NeuronSpecError, match="two or more"):
        comparison_table({"dense": first})
