"""neuron-spec sweep on small made-up evaluations and masks."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import numpy as np
import pytest
import torch

from neuron_spec.cli.main import main
from neuron_spec.directions import Direction
from neuron_spec.errors import NeuronSpecError
from neuron_spec.neurons.masks import NeuronMasks
from neuron_spec.pages.curves import sweep_curves
from neuron_spec.scoring.endpoints import SentenceScores
from neuron_spec.scoring.evaluation import evaluate, read_evaluation, write_evaluation
from neuron_spec.scoring.metrics import Outputs
from neuron_spec.studies.sweep.page import changes, read_sweep

LANGUAGES = ("de", "nl", "es", "pt", "cs", "ru")
DIRECTIONS = [Direction.parse(d) for lang in LANGUAGES for d in (f"en-{lang}", f"{lang}-en")]
REFERENCES = [f"the {noun} in the {room} is {state}" for noun in ("lamp", "door") for room in ("kitchen", "hall")
              for state in ("on", "off")]  # fmt: skip


def write(
    folder: Path,
    good: int,
    *,
    references: list[str] = REFERENCES,
    checkpoint: str = "a" * 64,
    nll: float | None = None,
) -> None:
    """An evaluation in which ``good`` sentences of 8 are right, and one more from direction to direction; ``nll`` nats a
    token in all."""
    outputs = []
    for number, direction in enumerate(DIRECTIONS):
        right = min(len(references), good + number // 4)
        wrong = [line.replace("the", "a") for line in references]
        outputs.append(Outputs(direction, references[:right] + wrong[right:], references))
    signature = {"stage": "evaluate", "inputs": {"checkpoint": checkpoint, "masks": "b" * 64}}
    evaluation = evaluate(outputs, signature=signature)
    if nll is not None:
        tokens = np.arange(1.0, len(references) + 1)
        sentences = {
            of.direction: SentenceScores(text_nll=nll * tokens, text_tokens=tokens) for of in outputs
        }
        scores = [replace(score, nll=nll) for score in evaluation.scores]
        evaluation = replace(evaluation, sentences=sentences, scores=scores)
    write_evaluation(folder, evaluation)


def write_masks(path: Path, k: float, dropped: int, *, checkpoint: str = "a" * 64) -> None:
    """Drop ``dropped`` of 10 neurons in the encoder, twice as many in the decoder."""
    kept = torch.ones(len(DIRECTIONS), 10, dtype=torch.bool)
    encoder, decoder = kept.clone(), kept.clone()
    encoder[:, :dropped] = decoder[:, : 2 * dropped] = False
    ks = {str(direction): k for direction in DIRECTIONS}
    NeuronMasks(
        DIRECTIONS,
        {"encoder.layers.0": encoder, "decoder.layers.0": decoder},
        {"k_percent": {"encoder": ks, "decoder": ks}, "checkpoint_sha256": checkpoint},
    ).save(path)


@pytest.fixture
def k_sweep(tmp_path: Path) -> Path:
    write(tmp_path / "evaluation" / "dense", 1)
    write(tmp_path / "evaluation" / "dense-continuation", 2)
    for k, good, dropped in ((80, 1, 4), (9.5, 3, 2), (100, None, 0)):
        write_masks(tmp_path / f"k-{k}" / "masks.safetensors", k, dropped)
        if good is not None:
            write(tmp_path / f"k-{k}" / "evaluation" / "specialized", good)
    (tmp_path / "corpus").mkdir()  # what else lies there is no point
    return tmp_path


@pytest.fixture
def depth_sweep(tmp_path: Path) -> Path:
    for depth in (2, 10):  # as text, 10 would come first
        for better, system in enumerate(("dense", "dense-continuation", "specialized")):
            write(tmp_path / f"depth-{depth}" / "evaluation" / system, depth // 2 + better)
    return tmp_path


def bleu(folder: Path) -> dict[str, float]:
    return {
        name: row["bleu"]
        for name, row in json.loads((folder / "scores.json").read_text())["directions"].items()
    }


def test_changes_are_means_over_directions_of_differences(k_sweep: Path) -> None:
    found = {(c.value, c.baseline, c.name): c for c in changes(read_sweep(k_sweep))}
    assert {value for value, _, _ in found} == {9.5, 80, 100}
    for reference in ("dense", "dense-continuation"):
        before, after = (
            bleu(k_sweep / "evaluation" / reference),
            bleu(k_sweep / "k-80/evaluation/specialized"),
        )
        for group, matches in (("O2M", "en-"), ("M2O", "-en"), ("all", "-")):
            of = [after[d] - before[d] for d in after if matches in d]
            change = found[80, reference, group]
            assert change.directions == len(of)
            assert change.difference == pytest.approx(fmean(of))
            assert change.low <= change.difference <= change.high
            assert (change.low == change.high) == (change.difference == 0)
    assert found[9.5, "dense", "all"].difference > found[80, "dense", "all"].difference


def test_the_dense_continuation_stands_for_k_100_unless_that_was_evaluated(k_sweep: Path) -> None:
    def at_100() -> dict[str, float]:
        return {
            c.baseline: c.difference
            for c in changes(read_sweep(k_sweep))
            if (c.value, c.name) == (100, "all")
        }

    before = at_100()
    assert before["dense-continuation"] == 0
    assert before["dense"] > 0
    write(k_sweep / "k-100" / "evaluation" / "specialized", 4)
    assert at_100()["dense-continuation"] > 0


def test_depths_are_ordered_as_numbers_and_compared_with_the_deepest_dense_model(depth_sweep: Path) -> None:
    sweep = read_sweep(depth_sweep)
    assert [point.value for point in sweep.points] == [2, 10]
    every = changes(sweep)
    of_same = "dense-continuation of the same depth"
    assert {c.baseline for c in every} == {"dense of depth 10", of_same}
    found = {(c.value, c.system): c for c in every if c.name == "all" and c.baseline != of_same}
    own = {c.value: c for c in every if c.name == "all" and c.baseline == of_same}
    assert own.keys() == {2, 10}
    for depth, change in own.items():
        between = found[depth, "specialized"].difference - found[depth, "dense-continuation"].difference
        assert (change.system, change.difference) == ("specialized", pytest.approx(between))
    assert found[10, "dense"].difference == 0
    assert found[2, "dense"].difference < found[2, "specialized"].difference < 0


@pytest.mark.slow
def test_table_csv_and_figure_are_written_and_the_same_again(k_sweep: Path, tmp_path: Path, capsys) -> None:
    output = tmp_path / "out"
    assert main(["sweep", str(k_sweep), "--output", str(output)]) == 0
    assert capsys.readouterr().out == f"{output / 'sweep.md'}\n"
    files = {path.name: path.read_bytes() for path in output.iterdir()}
    assert set(files) == {"sweep.csv", "sweep.md", "sweep.png", "sweep.svg"}
    rows = list(csv.DictReader(files["sweep.csv"].decode().splitlines()))
    assert len(rows) == 3 * 2 * 3  # values, references, groups
    (row,) = (r for r in rows if (r["k"], r["reference"], r["group"]) == ("80", "dense", "all"))
    assert [float(row[f"dropped_{n}_percent"]) for n in ("min", "mean", "max")] == [40, 60, 80]
    after, before = (read_evaluation(k_sweep / place).summary[0] for place in ("k-80/evaluation/specialized", "evaluation/dense"))  # fmt: skip
    assert float(row["bleu"]) == pytest.approx(after.bleu, abs=1e-4)
    assert float(row["bleu_change"]) == pytest.approx(after.bleu - before.bleu, abs=1e-4)
    assert float(row["chrf_change"]) == pytest.approx(after.chrf - before.chrf, abs=1e-4)
    text = files["sweep.md"].decode()
    assert "## specialized against dense-continuation" in text
    assert "40.0-80.0" in text
    assert "k = 100 was not trained" in text
    assert main(["sweep", str(k_sweep), "--output", str(output)]) == 0
    assert files == {path.name: path.read_bytes() for path in output.iterdir()}


@pytest.mark.slow
def test_likelihoods_stand_before_bleu_where_they_are_known(depth_sweep: Path) -> None:
    for depth in (2, 10):
        for number, system in enumerate(("dense", "dense-continuation", "specialized")):
            write(
                depth_sweep / f"depth-{depth}" / "evaluation" / system, 3, nll=3 - depth / 10 - 0.02 * number
            )
    sweep = read_sweep(depth_sweep)
    found = {(c.baseline, c.value, c.system): c.nll_difference for c in changes(sweep) if c.name == "all"}
    assert found["dense of depth 10", 2, "specialized"] == pytest.approx(0.8 - 0.04)
    for depth in (2, 10):
        assert found["dense-continuation of the same depth", depth, "specialized"] == pytest.approx(-0.02)
    assert main(["sweep", str(depth_sweep)]) == 0
    rows = csv.DictReader((depth_sweep / "sweep.csv").read_text().splitlines())
    (row,) = (
        r for r in rows if r["reference"].startswith("dense-c") and r["depth"] == "2" and r["group"] == "all"
    )
    assert [float(row[name]) for name in ("nll", "nll_change")] == pytest.approx([2.76, -0.02])
    text = (depth_sweep / "sweep.md").read_text()
    assert text.index("NLL all") < text.index("BLEU all")
    assert "-0.020" in text


def test_the_page_of_a_depth_sweep_shows_every_system(depth_sweep: Path) -> None:
    assert main(["sweep", str(depth_sweep)]) == 0
    text = (depth_sweep / "sweep.md").read_text(encoding="utf-8")
    for system in ("dense", "dense-continuation", "specialized"):
        assert f"## {system} against dense of depth 10" in text
    assert "dropped %" not in text


def test_the_figure_shows_the_changes() -> None:
    curve = {70.0: (-1.0, -2.0, 0.5), 95.0: (1.5, None, None)}
    rows = {
        f"BLEU against {name}": {"en→x": {"specialized": curve}, "x→en": {"specialized": curve}}
        for name in ("dense", "dense-continuation")
    }
    figure = sweep_curves(rows, {70.0: "70", 95.0: "95\n10–20"}, "k")
    assert len(figure.axes) == 4
    for ax in figure.axes:
        (line,) = (line for line in ax.lines if line.get_color() != "#777777")
        assert list(line.get_xdata()) == [0, 1]
        assert list(line.get_ydata()) == [-1.0, 1.5]
        (interval,) = ax.collections
        assert interval.get_segments()[0].tolist() == [[0, -2.0], [0, 0.5]]
        assert [tick.get_text() for tick in ax.get_xticklabels()] == ["70", "95\n10–20"]
        (zero,) = (line for line in ax.lines if line.get_color() == "#777777")
        assert list(zero.get_ydata()) == [0, 0]
    assert [ax.get_title("left") for ax in figure.axes] == ["en→x", "x→en"] * 2
    assert [ax.get_ylabel() for ax in figure.axes[::2]] == [
        f"BLEU against {name}" for name in ("dense", "dense-continuation")
    ]
    assert figure.get_supxlabel() == "k"
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["specialized"]


def test_systems_stand_side_by_side_in_the_figure() -> None:
    curves = {name: {70.0: (change, change - 1, change + 1)} for name, change in (("a", 1.0), ("b", -2.0))}
    figure = sweep_curves({"dense": {"en→x": curves}}, {70.0: "70"}, "k")
    (ax,) = figure.axes
    a, b = (line for line in ax.lines if line.get_color() != "#777777")
    assert a.get_color() != b.get_color() and a.get_marker() != b.get_marker()
    assert a.get_xdata()[0] < 0 < b.get_xdata()[0]
    for line, interval in zip((a, b), ax.collections, strict=True):
        (x,), (y,) = line.get_data()
        assert interval.get_segments()[0].tolist() == [[x, y - 1], [x, y + 1]]


def test_more_systems_than_colours_are_refused() -> None:
    for count in (0, 8):
        systems = {str(number): {70.0: (0.0, None, None)} for number in range(count)}
        with pytest.raises(NeuronSpecError, match="cannot be drawn"):
            sweep_curves({"dense": {"en→x": systems}}, {70.0: "70"}, "k")


# What is refused ------------------------------------------------------------------------------


@pytest.fixture
def refused(capsys):
    def check(run: Path) -> str:
        assert main(["sweep", str(run)]) == 2
        said = capsys.readouterr()
        assert said.out == ""
        assert not list(run.glob("sweep.*"))
        return said.err

    return check


def test_no_points(tmp_path: Path, refused) -> None:
    assert "no points of a sweep" in refused(tmp_path)


def test_points_of_two_settings(k_sweep: Path, refused) -> None:
    write(k_sweep / "depth-3" / "evaluation" / "dense", 1)
    assert "two settings at once" in refused(k_sweep)


def test_a_point_without_an_evaluation(k_sweep: Path, refused) -> None:
    write_masks(k_sweep / "k-70" / "masks.safetensors", 70, 1)
    assert "was not evaluated" in refused(k_sweep)


def test_an_evaluation_that_was_cut_short(k_sweep: Path, refused) -> None:
    (k_sweep / "k-80" / "evaluation" / "specialized" / "scores.json").unlink()
    assert "complete evaluation not found" in refused(k_sweep)


def test_masks_of_another_k_than_their_folder(k_sweep: Path, refused) -> None:
    write_masks(k_sweep / "k-80" / "masks.safetensors", 90, 1)
    said = refused(k_sweep)
    assert "another k" in said
    assert "90" in said


def test_masks_of_another_dense_model(k_sweep: Path, refused) -> None:
    write_masks(k_sweep / "k-80" / "masks.safetensors", 80, 1, checkpoint="c" * 64)
    assert "another dense model" in refused(k_sweep)


def test_points_with_different_systems(depth_sweep: Path, refused) -> None:
    write(depth_sweep / "depth-2" / "evaluation" / "matched-random", 1)
    assert "different systems" in refused(depth_sweep)


def test_depths_without_a_dense_model(tmp_path: Path, refused) -> None:
    write(tmp_path / "depth-2" / "evaluation" / "specialized", 1)
    assert "nothing to measure changes against" in refused(tmp_path)


def test_evaluations_on_other_tests(depth_sweep: Path, refused) -> None:
    write(depth_sweep / "depth-2" / "evaluation" / "dense", 1, references=[*REFERENCES[:-1], "another end"])
    assert "different references" in refused(depth_sweep)
