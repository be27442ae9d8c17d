"""What is read of moving masks from logs of fairseq's two formats."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from neuron_spec.errors import ArtifactError
from neuron_spec.studies.dynamic.page import MEASURES, churn_curves, read_churn

Row = tuple[int, Mapping[str, float]]


def row(update: int, churn: float) -> Row:
    return update, {"mask_churn": churn, "mask_kept_fraction": 0.75, "mask_overlap": 0.8}


def simple(rows: Sequence[Row]) -> str:
    lines = []
    for update, values in rows:
        own = ", ".join(f"{name}={value}" for name, value in values.items())
        lines.append(
            f"2026-01-01 10:00:00 | INFO | train_inner | epoch 001: {update} / 900 loss=4.9, wps=1515.6, "
            f"num_updates={update}, lr=2e-05, {own}, train_wall=0, wall=4\n"
        )
    return "".join(lines)


def as_json(rows: Sequence[Row]) -> str:
    lines = []
    for update, values in rows:
        own = {name: str(value) for name, value in {"num_updates": update, "lr": 2e-05, **values}.items()}
        lines.append(f"2026-01-01 | INFO | train_inner | {json.dumps({'epoch': 1, 'update': 0.1, **own})}\n")
    return "".join(lines)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "train.log"


@pytest.mark.parametrize("written", [simple, as_json])
def test_both_formats_say_the_same(log, written):
    log.write_text(written([row(2, 0.5), row(4, 1e-05)]))
    assert read_churn(log) == {
        "mask_churn": {2: 0.5, 4: 1e-05},
        "mask_kept_fraction": {2: 0.75, 4: 0.75},
        "mask_overlap": {2: 0.8, 4: 0.8},
    }


def test_what_was_trained_anew_replaces_what_came_after_the_checkpoint(log):
    first = [row(update, 0.1) for update in (10, 20, 30, 40)]
    log.write_text(simple(first) + "killed\n" + simple([row(20, 0.7), row(25, 0.6)]))
    assert read_churn(log)["mask_churn"] == {10: 0.1, 20: 0.7, 25: 0.6}


def test_means_of_an_epoch_are_not_taken_for_updates(log):
    epoch = "2026 | INFO | train | epoch 001 | loss 4.7 | num_updates 4 | mask_churn 0.9 | wall 5\n"
    of_json = '| INFO | train | {"train_num_updates": "4", "train_mask_churn": "0.9"}\n'
    log.write_text(simple([row(2, 0.5)]) + epoch + of_json)
    assert read_churn(log)["mask_churn"] == {2: 0.5}


def test_masks_that_stay_have_no_curves(log):
    log.write_text(simple([(2, {"gnorm": 2.5}), (4, {"gnorm": 2.4})]))
    assert read_churn(log) == {}


def test_a_measure_may_begin_later_than_others(log):
    log.write_text(simple([(2, {"mask_kept_fraction": 0.7}), row(4, 0.1)]))
    found = read_churn(log)
    assert found["mask_kept_fraction"] == {2: 0.7, 4: 0.75} and found["mask_churn"] == {4: 0.1}


def test_a_missing_log_is_refused(log):
    with pytest.raises(ArtifactError, match="training log not found"):
        read_churn(log)


def test_the_figure_has_a_panel_per_measure_and_a_line_per_training_in_percent(log):
    log.write_text(simple([row(2, 0.5), row(4, 0.25)]))
    curves = read_churn(log)
    figure = churn_curves({"one": curves, "two": {"mask_overlap": {1: 0.1}}})
    assert [ax.get_title(loc="left") for ax in figure.axes] == list(MEASURES.values())
    drawn = [[line.get_xydata().tolist() for line in ax.lines] for ax in figure.axes]
    assert drawn[0] == [[[2, 50], [4, 25]], []]
    assert drawn[2] == [[[2, 80], [4, 80]], [[1, 10]]]
    assert figure.get_supxlabel() == "updates"
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["one", "two"]
    of_many, of_one = figure.axes[2].lines
    assert (of_many.get_marker(), of_one.get_marker()) == ("None", "o"), (
        "a line of one point would not be seen"
    )
