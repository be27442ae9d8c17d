"""Ours beside the published: equal scores differ by nothing, and what is not comparable is refused or said."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from neuron_spec.directions import Direction
from neuron_spec.errors import ArtifactError, NeuronSpecError
from neuron_spec.pages.page import Page, Paragraph, as_markdown
from neuron_spec.pages.tables import markdown_table
from neuron_spec.scoring.evaluation import Evaluation, evaluate
from neuron_spec.scoring.logs import read_generate_output
from neuron_spec.scoring.metrics import DirectionScore
from neuron_spec.scoring.published import (
    GAIN,
    SYSTEMS,
    TEST_SENTENCES,
    compare_with_published,
    directions_table,
    means_table,
    published_section,
    read_published,
)

ROOT = Path(__file__).parents[2]
FILE = ROOT / "results" / "published" / "ec30.csv"
PUBLISHED = read_published(FILE)
OFFICIAL = ROOT.parent / "shared" / "official_ec30"
OFFICIAL_LOGS = {
    "dense": sorted(OFFICIAL.glob("dense/*/generate-test.txt")),
    "specialized": sorted(OFFICIAL.glob("NS/*/generate-test.txt")),
}
ROUND_TRIP = {"official_scoring": True, "references": "data-bin"}


def made(system, *, directions=None, shift=0.0, sentences=TEST_SENTENCES, parameters=ROUND_TRIP, comet=None):
    """An evaluation whose BLEU is the published plus ``shift``, and chrF++ the double of that."""
    scores = []
    for direction in directions or PUBLISHED.members:
        bleu = PUBLISHED.directions[system].get(direction, 10.0) + shift
        score = (direction, bleu, 2 * bleu, sentences, 1, 1, 0.0, None, None, "b", "c")
        scores.append(DirectionScore(*score, comet=comet))
    return Evaluation({"parameters": parameters}, [], scores)


def both(**settings):
    return {system: made(system, **settings) for system in SYSTEMS}


def means(comparison, metric="bleu"):
    rows = [row for row in comparison.rows if row.metric == metric and row.name == "mean"]
    return {(row.system, row.tier, row.group): row for row in rows}


# ---------------------------------------------------------------- the file


def test_every_direction_and_every_mean_is_there():
    assert len(PUBLISHED.members) == 60
    assert all(len(PUBLISHED.directions[system]) == 60 for system in SYSTEMS)
    assert len(PUBLISHED.means) == 2 * 3 * 4 * 3
    for tier in ("high", "medium", "low"):
        for group in ("O2M", "M2O"):
            assert list(PUBLISHED.members.values()).count((tier, group)) == 10
    for direction, (tier, group) in PUBLISHED.members.items():
        assert group == ("O2M" if direction.source == "en" else "M2O")
        assert PUBLISHED.members[Direction(direction.target, direction.source)][0] == tier


def test_printed_means_are_those_of_the_printed_directions():
    for row in compare_with_published(both(), PUBLISHED).rows:
        if row.name == "mean" and row.metric == "bleu":
            # Directions are rounded, and so is their mean; a gain has two of each.
            assert abs(row.difference) <= (0.2 if row.system == GAIN else 0.1)


def test_all_is_halfway_between_both_groups():
    for (system, metric, tier, group), value in PUBLISHED.means.items():
        if group == "all":
            parts = [PUBLISHED.means[system, metric, tier, g] for g in ("O2M", "M2O")]
            assert value == pytest.approx(sum(parts) / 2, abs=0.0011 if metric == "comet" else 0.11)


def test_as_many_directions_rise_and_fall_as_the_authors_say():
    gains = {
        str(d): PUBLISHED.directions["specialized"][d] - PUBLISHED.directions["dense"][d]
        for d in PUBLISHED.members
    }
    assert sum(gain > 0.01 for gain in gains.values()) == 57
    assert [d for d, gain in gains.items() if abs(gain) < 0.01] == ["en-ha"]
    assert sorted(d for d, gain in gains.items() if gain < -0.01) == ["ha-en", "oc-en"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.replace("scope", "where", 1), "the columns"),
        (lambda text: text.replace("dense,bleu,en-de", "LaSS,bleu,en-de", 1), "one of dense, specialized"),
        (lambda text: text + "dense,bleu,en-de,high,O2M,31.6\n", "each figure once"),
        (lambda text: text.replace(",31.6\n", ",n/a\n", 1), "a number"),
        (lambda text: text + "dense,chrf,en-de,high,O2M,31.6\n", "BLEU alone"),
        (lambda text: text + "dense,bleu,ende,high,O2M,31.6\n", "malformed direction"),
    ],
)
def test_malformed_files(tmp_path, change, message):
    path = tmp_path / "published.csv"
    path.write_text(change(FILE.read_text(encoding="utf-8")), encoding="utf-8")
    with pytest.raises(NeuronSpecError, match=message):
        read_published(path)


def test_absent_file(tmp_path):
    with pytest.raises(ArtifactError, match="not found"):
        read_published(tmp_path / "ec30.csv")


# ---------------------------------------------------------------- the comparison


def test_equal_scores_differ_by_nothing_and_a_shift_is_the_difference():
    for shift in (0.0, 1.5):
        rows = compare_with_published(both(shift=shift), PUBLISHED).rows
        directions = [row for row in rows if row.name != "mean"]
        assert len(directions) == 3 * 60
        for row in directions:
            assert row.difference == pytest.approx(0 if row.system == GAIN else shift)


def test_order_of_systems_and_directions_does_not_matter():
    reverse = dict(reversed(both(directions=list(reversed(PUBLISHED.members))).items()))
    assert compare_with_published(reverse, PUBLISHED) == compare_with_published(both(), PUBLISHED)


def test_an_incomplete_group_is_compared_over_the_same_directions():
    absent = Direction("en", "sd")  # far below the mean: with it on one side only, the means would differ
    some = [d for d in PUBLISHED.members if d != absent]
    comparison = compare_with_published(both(directions=some), PUBLISHED)
    found = means(comparison)
    low = found["dense", "low", "O2M"]
    assert low.directions == 9
    assert low.difference == pytest.approx(0)
    assert low.published == pytest.approx((10 * 18.9 - 4.3) / 9, abs=0.1)
    assert found["dense", "high", "O2M"].published == 28.1  # complete: as printed
    # chrF++ is published as means alone: an incomplete group has nothing to stand beside.
    assert {key[1:] for key in means(comparison, "chrf")} == {
        (tier, group)
        for tier, group in {(t, g) for _, _, t, g in PUBLISHED.means}
        if not (tier in ("low", "all") and group in ("O2M", "all"))
    }
    assert "59 of the 60 published directions" in comparison.notes[1]


def test_directions_and_systems_without_counterpart_are_left_out():
    foreign = [Direction("en", "xx"), *list(PUBLISHED.members)[:4]]
    evaluations = {**both(directions=foreign), "dense-continuation": made("dense")}
    comparison = compare_with_published(evaluations, PUBLISHED)
    assert {row.name for row in comparison.rows} == {"mean", *map(str, foreign[1:])}
    assert {row.system for row in comparison.rows} == {*SYSTEMS, GAIN}
    # What only one system has cannot show a gain.
    uneven = {"dense": made("dense"), "specialized": made("specialized", directions=foreign)}
    assert compare_with_published(uneven, PUBLISHED).rows == comparison.rows


def test_a_gain_needs_both_systems():
    comparison = compare_with_published({"specialized": made("specialized")}, PUBLISHED)
    assert {row.system for row in comparison.rows} == {"specialized"}
    gains = means(compare_with_published(both(shift=3.0), PUBLISHED))
    assert gains[GAIN, "all", "all"].published == pytest.approx(29.0 - 27.6)
    assert gains[GAIN, "all", "all"].ours == pytest.approx(1.4, abs=0.1)


def test_comet_only_where_ours_has_it():
    assert not means(compare_with_published(both(), PUBLISHED), "comet")
    comparison = compare_with_published(both(comet=0.8), PUBLISHED)
    assert means(comparison, "comet")["dense", "all", "all"].difference == pytest.approx(0.8 - 0.791)
    _, rows = means_table(comparison, "comet")
    assert rows[-1] == [
        "all",
        "all",
        60,
        "0.800",
        "0.791",
        "+0.009",
        "0.800",
        "0.800",
        "+0.000",
        "+0.000",
        "+0.009",
        "-0.009",
    ]


@pytest.mark.parametrize(
    ("parameters", "comparable"),
    [
        (ROUND_TRIP, True),
        ({"official_scoring": True, "references": "T lines of the logs"}, True),
        ({"official_scoring": True, "references": "raw"}, False),
        ({"official_scoring": False, "references": "data-bin"}, False),
    ],
)
def test_the_way_of_scoring_is_said_first(parameters, comparable):
    comparison = compare_with_published(both(parameters=parameters), PUBLISHED)
    assert ("not comparable" in comparison.notes[0]) != comparable
    assert ("official round trip, for ours and the published" in comparison.notes[0]) == comparable


@pytest.mark.parametrize(
    ("evaluations", "message"),
    [
        ({}, "nothing to compare"),
        ({"dense-continuation": made("dense")}, "nothing to compare"),
        ({"dense": made("dense", directions=[Direction("en", "xx")])}, "0 published directions"),
        ({"dense": made("dense", sentences=200)}, "another test set"),
        ({"dense": made("dense", parameters={})}, "how it was scored"),
        (
            {
                "dense": made("dense"),
                "specialized": made("specialized", parameters={**ROUND_TRIP, "official_scoring": False}),
            },
            "dense: official, specialized: raw",
        ),
    ],
)
def test_what_cannot_be_compared_is_refused(evaluations, message):
    with pytest.raises(NeuronSpecError, match=message):
        compare_with_published(evaluations, PUBLISHED)


def test_tables_have_a_line_for_each_row_and_no_minus_zero():
    evaluations = both(shift=-0.01)
    comparison = compare_with_published(evaluations, PUBLISHED)
    header, rows = directions_table(comparison)
    assert len(rows) == 60
    assert len(means_table(comparison, "chrf")[1]) == 12
    assert rows[0] == [
        "en-de",
        "high",
        "31.6",
        "31.6",
        "+0.0",
        "34.3",
        "34.3",
        "+0.0",
        "+2.7",
        "+2.7",
        "+0.0",
    ]
    assert len(markdown_table(header, rows).splitlines()) == 62


def test_a_section_says_the_conditions_and_then_shows_all_that_is_compared():
    evaluations = both(shift=0.4)
    comparison = compare_with_published(evaluations, PUBLISHED)
    section = published_section(evaluations, PUBLISHED)
    assert section.blocks == [Paragraph(note) for note in comparison.notes]
    assert [inner.title for inner in section.sections] == ["BLEU, means", "chrF++, means", "BLEU, directions"]
    text = as_markdown(Page("run", [], [section]))
    for row in (*means_table(comparison, "bleu")[1], *directions_table(comparison)[1]):
        cells = [str(cell) for cell in row]
        assert any([c.strip() for c in line.strip("|").split("|")] == cells for line in text.splitlines())


def test_where_one_system_lacks_a_score_its_cells_are_empty():
    with_comet = both(comet=0.8)
    scores = [
        score if PUBLISHED.members[score.direction][0] == "high" else replace(score, comet=None)
        for score in with_comet["specialized"].scores
    ]
    partly = {**with_comet, "specialized": replace(with_comet["specialized"], scores=scores)}
    _, rows = means_table(compare_with_published(partly, PUBLISHED), "comet")
    assert rows[0][6:9] == ["0.800", "0.837", "-0.037"]
    assert rows[-1][3:] == ["0.800", "0.791", "+0.009", *[None] * 6]


@pytest.mark.slow
@pytest.mark.skipif(not all(OFFICIAL_LOGS.values()), reason=f"no official EC30 outputs in {OFFICIAL}")
def test_the_official_outputs_have_the_published_scores():
    pytest.importorskip("sacremoses")
    evaluations = {
        system: evaluate(
            [read_generate_output(log) for log in logs],
            signature={"parameters": {"official_scoring": True, "references": "T lines of the logs"}},
            official=True,
        )
        for system, logs in OFFICIAL_LOGS.items()
    }
    comparison = compare_with_published(evaluations, PUBLISHED)
    rows = [row for row in comparison.rows if row.name != "mean" and row.system in SYSTEMS]
    assert len(rows) == 8
    for row in rows:
        assert round(row.ours, 1) == row.published
