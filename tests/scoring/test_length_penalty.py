"""Which length penalty is chosen."""

import json

import pytest

from neuron_spec.directions import Direction
from neuron_spec.errors import ArtifactError
from neuron_spec.scoring.length_penalty import LengthPenalty
from neuron_spec.scoring.metrics import DirectionScore

MADE = {
    "stage": "lenpen",
    "inputs": {"data": "abc"},
    "parameters": {"beam": 5, "subset": "valid", "directions": ["en-de", "en-nl"]},
}


def scores(**bleu):
    """Value of the grid (``x1_2`` is 1.2) -> BLEU of each of two directions."""
    return {
        float(name[1:].replace("_", ".")): [
            DirectionScore(
                Direction("en", lang), value, value, 10, 9, 10, 0.0, None, None, "b", "c", length_ratio=0.9
            )
            for lang, value in zip(("de", "nl"), values, strict=True)
        ]
        for name, values in bleu.items()
    }


@pytest.mark.parametrize(
    ("bleu", "value"),
    [
        (
            {"x0_8": (10, 20), "x1": (12, 12), "x1_2": (9, 20)},
            0.8,
        ),  # one for all directions: the mean decides
        ({"x0_2": (10, 10), "x1": (10, 10), "x2": (10, 10)}, 1.0),
        (
            {"x0_2": (10, 10), "x1": (9, 9), "x1_4": (10, 10), "x2": (10, 10)},
            1.4,
        ),  # of equal ones nearest to 1
    ],
)
def test_the_best_mean_over_directions_is_chosen_and_of_equal_ones_that_nearest_to_1(bleu, value):
    chosen = LengthPenalty.choose(scores(**bleu), MADE)
    assert chosen.value == value
    assert [one.lenpen for one in chosen.tried] == sorted(scores(**bleu))


def test_reading_back_is_lossless(tmp_path):
    chosen = LengthPenalty.choose(scores(x1=(1, 2), x1_2=(3, 4)), MADE)
    chosen.write(tmp_path / "lenpen.json")
    for path in (tmp_path, tmp_path / "lenpen.json"):
        assert LengthPenalty.read(path) == chosen
        assert LengthPenalty.read(path).sha256 == chosen.sha256
    assert LengthPenalty.choose(scores(x1=(5, 6), x1_2=(3, 4)), MADE).sha256 != chosen.sha256


def test_a_choice_at_the_end_of_the_grid_is_warned_of(capsys):
    for bleu, warned in (((1, 1), False), ((9, 9), True)):
        LengthPenalty.choose(scores(x0_8=(0, 0), x1=(5, 5), x1_2=bleu), MADE).say()
        assert ("at the end of the grid" in capsys.readouterr().err) == warned


def test_damaged_files_are_refused(tmp_path):
    path = tmp_path / "lenpen.json"
    LengthPenalty.choose(scores(x1=(1, 2)), MADE).write(path)
    whole = json.loads(path.read_text())
    for damage in (
        {"lenpen": 7},
        {"signature": {"inputs": {}, "parameters": {}}},
        {"signature": {"inputs": [], "parameters": whole["signature"]["parameters"]}},
        {"signature": {"inputs": {}, "parameters": 1}},
    ):
        path.write_text(json.dumps({**whole, **damage}))
        with pytest.raises(ArtifactError, match="not a chosen length penalty"):
            LengthPenalty.read(path)
