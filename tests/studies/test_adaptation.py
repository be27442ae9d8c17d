"""Adapting a tiny model of random weights to a language that its training left out."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from neuron_spec.backends.fairseq.checkpoints import checkpoint_sha256
from neuron_spec.backends.fairseq.generation import Translator
from neuron_spec.cli.main import main
from neuron_spec.directions import Direction, parse_directions
from neuron_spec.errors import ArtifactError, CorpusError, DirectionError, ModelError, NeuronSpecError
from neuron_spec.pages.tables import markdown_table
from neuron_spec.scoring.evaluation import read_evaluation
from neuron_spec.studies.adaptation.measure import Adaptation, Test, Updates, require_languages
from neuron_spec.studies.adaptation.page import curves, table
from neuron_spec.studies.meta.inner_steps import adapt, restored

pytestmark = pytest.mark.slow

NEW = parse_directions("qm-en,en-qm")
# Short hypotheses, as random weights never end one.
FLAGS = ["--cpu", "--beam", "1", "--max-len-a", "0", "--max-len-b", "6", "--max-tokens", "2000"]
UPDATES = Updates(steps=3, rate=0.5)


@pytest.fixture(scope="module")
def held_out(workshop: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with qm among its languages and not in its training, without dropout."""
    cfg, _, model = workshop.build("--lang-pairs", "en-qa,qa-en,en-qb,qb-en", "--dropout", "0")
    return workshop.save(tmp_path_factory.mktemp("held-out") / "checkpoint.pt", cfg, model)


def make(
    held_out: Path, data_bin: Path, shots: str = "0,4,20", updates: Updates = UPDATES, **kinds: Any
) -> Adaptation:
    directions = kinds.get("directions", NEW)
    test = Test("test", {}, [*FLAGS, *kinds.get("flags", [])], kinds.get("families"), kinds.get("tiers"))
    numbers = [int(n) for n in shots.split(",")]
    return Adaptation(held_out, data_bin, directions, numbers, updates, test, kinds.get("borrow"))


@pytest.fixture(scope="module")
def adaptation(held_out: Path, data_bin: Path) -> Adaptation:
    return make(held_out, data_bin)


@pytest.fixture(scope="module")
def results(adaptation: Adaptation, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    output = tmp_path_factory.mktemp("results")
    return output, adaptation.run(output)


def test_scores_are_summed_up_by_the_corpus_own_families(held_out, data_bin, tmp_path):
    groups = {"families": {"qm": "M", "en": "E"}, "tiers": {"qm": "low"}}
    make(held_out, data_bin, "0", **groups).run(tmp_path)
    found = read_evaluation(tmp_path / "all" / "0")
    assert (found.families, found.tiers) == (groups["families"], groups["tiers"])
    assert {row.name for row in found.summary if row.kind == "family"} == {"M"}


def hypotheses(results: Any) -> dict[tuple[str, int], list[str]]:
    return {(str(d), n): of.outputs[0].hypotheses for d, curve in results.items() for n, of in curve.items()}


def test_fewer_shots_are_part_of_more_and_another_seed_draws_others(adaptation, held_out, data_bin):
    few, more = (adaptation.sentences(NEW[0], n) for n in (20, 100))
    assert more[:20] == few and len(set(more)) == 100
    assert min(more) >= 0 and max(more) < 300
    other = make(held_out, data_bin, updates=Updates(steps=3, rate=0.5, seed=2)).sentences(NEW[0], 100)
    assert 0 < len(set(other) & set(more)) < 70


def test_both_directions_learn_from_the_same_sentence_pairs(adaptation):
    pairs = []
    for direction in NEW:
        dataset = adaptation._training_sets[direction]
        sentences = [dataset[i] for i in adaptation.sentences(direction, 10)]
        sides = [[s["source"].tolist()[1:], s["target"].tolist()[1:]] for s in sentences]  # without the token
        pairs.append(sides if direction.source == "en" else [pair[::-1] for pair in sides])
    assert pairs[0] == pairs[1]


def test_the_updates_are_the_inner_steps_of_meta_learning(adaptation):
    model, parameters = adaptation._model, adaptation._parameters
    dataset = adaptation._training_sets[NEW[0]]
    batch = dataset.collater([dataset[i] for i in adaptation.sentences(NEW[0], 4)])
    with restored(parameters):
        losses = adaptation.learn(NEW[0], 4)
        learned = copy.deepcopy(model.state_dict())
    with restored(parameters):
        expected = adapt(parameters, lambda: adaptation._criterion(model, batch)[:2], steps=3, rate=0.5)
        for key, value in model.state_dict().items():
            torch.testing.assert_close(learned[key], value, atol=1e-4, rtol=1e-4)
    assert losses == pytest.approx(expected.tolist(), rel=1e-4)
    assert adaptation._criterion(model, batch)[1] == batch["ntokens"] - 4  # without the language tokens
    assert losses[0] > losses[1] > losses[2]
    moved = learned["encoder.embed_tokens.weight"] != model.state_dict()["encoder.embed_tokens.weight"]
    token = adaptation._task(NEW[0]).source_dictionary.index("__qm__")
    assert moved[token].any(), "the new language's token learns"


def test_every_sentence_is_seen_where_updates_suffice(held_out, data_bin):
    adaptation = make(held_out, data_bin, updates=Updates(steps=40, rate=0.0, max_tokens=60))
    seen = []
    criterion = adaptation._criterion
    adaptation._criterion = lambda model, batch: seen.append(batch["id"].tolist()) or criterion(model, batch)
    adaptation.learn(NEW[1], 20)
    assert len(seen) == 40 and {i for ids in seen for i in ids} == set(adaptation.sentences(NEW[1], 20))
    assert seen[0] != seen[1] and seen.count(seen[0]) > 1


def test_zero_shots_is_the_model_as_it_is(results, held_out, data_bin):
    translator = Translator(held_out, data_bin, NEW, "test", FLAGS)
    for direction in NEW:
        assert hypotheses(results[1])[str(direction), 0] == translator.translate(direction)
        assert hypotheses(results[1])[str(direction), 20] != hypotheses(results[1])[str(direction), 0]


def test_each_copy_starts_from_the_checkpoint_whatever_came_before(results, held_out, data_bin, tmp_path):
    alone = make(held_out, data_bin, "20", directions=NEW[1:]).run(tmp_path)
    assert hypotheses(alone)["en-qm", 20] == hypotheses(results[1])["en-qm", 20]


def test_what_is_complete_is_skipped_and_what_is_missing_is_made_again(
    results, adaptation, tmp_path, monkeypatch
):
    output, before = tmp_path / "run", results[1]
    shutil.copytree(results[0], output)
    learned = []
    learn = adaptation.learn
    monkeypatch.setattr(adaptation, "learn", lambda *of: learned.append(of) or learn(*of))
    (output / "qm-en" / "4" / "scores.json").unlink()
    again = adaptation.run(output)
    assert learned == [(NEW[0], 4)]
    assert hypotheses(again) == hypotheses(before)


def test_what_was_made_otherwise_is_refused_before_any_work(
    results, held_out, data_bin, tmp_path, monkeypatch
):
    shutil.copytree(results[0], tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "qm-en" / "0")
    other = make(held_out, data_bin, updates=Updates(steps=4, rate=0.5))
    monkeypatch.setattr(other, "learn", lambda *of: pytest.fail("worked"))
    with pytest.raises(ArtifactError, match=r"another adaptation is already here[\s\S]*steps"):
        other.run(tmp_path / "run")


def test_the_json_holds_all_scores_and_what_they_were_made_from(results, held_out):
    content = json.loads((results[0] / "adaptation.json").read_text())
    assert content["checkpoint_sha256"] == checkpoint_sha256(held_out)
    assert list(content["directions"]) == ["qm-en", "en-qm"]
    for direction, curve in results[1].items():
        plain = content["directions"][str(direction)]
        assert plain["in_training"] is False
        assert plain["shots"] == {
            str(n): {"bleu": of.scores[0].bleu, "chrf": of.scores[0].chrf} for n, of in curve.items()
        }


def test_the_table_has_a_row_per_direction_and_their_mean(results):
    content = json.loads((results[0] / "adaptation.json").read_text())
    shown = table({name: of["shots"] for name, of in content["directions"].items()}, {"chrf": ""})
    lines = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in markdown_table(shown.header, shown.rows).split("\n")
    ]
    assert lines[0] == ["direction", "0 shots", "4 shots", "20 shots"]
    assert [line[0] for line in lines[2:]] == ["qm-en", "en-qm", "mean"]
    scores = [results[1][d][20].scores[0].chrf for d in NEW]
    assert [line[3] for line in lines[2:]] == [f"{x:.1f}" for x in (*scores, sum(scores) / 2)]


def test_the_figure_has_a_panel_per_metric_and_a_line_per_direction(results):
    content = json.loads((results[0] / "adaptation.json").read_text())
    figure = curves({name: of["shots"] for name, of in content["directions"].items()})
    assert [ax.get_title("left") for ax in figure.axes] == ["BLEU", "chrF++"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["qm→en", "en→qm"]
    assert figure.get_supxlabel() == "training sentences (shots)"
    for ax, metric in zip(figure.axes, ("bleu", "chrf"), strict=True):
        assert [label.get_text() for label in ax.get_xticklabels()] == ["0", "4", "20"]
        assert ax.get_ylim()[0] == 0
        for line, direction in zip(ax.lines, NEW, strict=True):
            scores = [getattr(of.scores[0], metric) for of in results[1][direction].values()]
            assert line.get_xydata().tolist() == [[x, score] for x, score in enumerate(scores)]


def test_a_language_without_a_token_is_refused():
    with pytest.raises(
        DirectionError, match=r"no language token[\s\S]*xx in en-xx[\s\S]*--lang-pairs that leave"
    ):
        require_languages([Direction("qa", "en"), Direction("en", "xx")], ["en", "qa"], "checkpoint.pt")


def test_bad_input_is_refused(held_out, data_bin):
    with pytest.raises(DirectionError, match="no language token"):
        make(held_out, data_bin, directions=[Direction("xx", "en")])
    with pytest.raises(CorpusError, match="fewer training sentences"):
        make(held_out, data_bin, "0,301")
    with pytest.raises(CorpusError, match="fit into the model and into 3 tokens"):
        make(held_out, data_bin, "4", updates=Updates(steps=1, rate=0.1, max_tokens=3))
    for shots in ("4,4", "-1,4"):
        with pytest.raises(NeuronSpecError, match="numbers of shots"):
            make(held_out, data_bin, shots)
    for values in ({"steps": 0}, {"rate": -1.0}, {"rate": float("nan")}, {"optimizer": "lion"}):
        with pytest.raises(NeuronSpecError):
            Updates(**{"steps": 1, "rate": 0.1, **values})


def test_a_specialized_model_needs_to_know_what_a_new_direction_runs_through(workshop, data_bin, tmp_path):
    cfg, _, model = workshop.build("--lang-pairs", "en-qa,qa-en,en-qb,qb-en")
    model.set_masks(workshop.masks(model, ["en-qa", "qa-en"]), workshop.langs)
    path = workshop.save(tmp_path / "specialized.pt", cfg, model)
    with pytest.raises(ModelError, match="mask"):
        make(path, data_bin, "4", directions=NEW[:1]).run(tmp_path / "refused")
    dense = make(path, data_bin, "4", directions=NEW[:1], flags=["--missing-direction", "dense"])
    assert dense.run(tmp_path / "dense")[NEW[0]].keys() == {4}


@pytest.fixture(scope="module")
def specialized(workshop: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With masks for qa and qb, and none for qm."""
    cfg, _, model = workshop.build("--lang-pairs", "en-qa,qa-en,en-qb,qb-en", "--dropout", "0")
    model.set_masks(workshop.masks(model, ["en-qa", "qa-en", "en-qb", "qb-en"]), workshop.langs)
    return workshop.save(tmp_path_factory.mktemp("specialized") / "checkpoint.pt", cfg, model)


def test_a_direction_learns_and_translates_through_borrowed_masks(specialized, data_bin, workshop):
    adaptation = make(specialized, data_bin, "4", borrow={"qm": "qb"})
    before = {key: value.clone() for key, value in adaptation._model.state_dict().items()}
    for model in (adaptation._model, *adaptation._translator.models):
        masks = model.masks(workshop.langs)
        for direction in NEW:
            own, lent = (masks.directions.index(d) for d in (direction, adaptation.lenders[direction]))
            assert all(torch.equal(kept[own], kept[lent]) for kept in masks.kept.values())
    lent = masks.directions.index(Direction("en", "qb"))
    with restored(adaptation._parameters):
        adaptation.learn(Direction("en", "qm"), 4)
        for layer, kept in masks.kept.items():
            weight = adaptation._model.state_dict()[f"{layer}.fc1.weight"]
            moved = (weight != before[f"{layer}.fc1.weight"]).any(dim=1)
            assert moved.any() and not moved[~kept[lent]].any(), "only the lender's neurons learn"


def test_lenders_are_signed_only_where_there_are_any(specialized, held_out, data_bin, tmp_path):
    results = make(specialized, data_bin, "0", borrow={"qm": "qa"}).run(tmp_path)
    borrowed = {"qm-en": "qa-en", "en-qm": "en-qa"}
    assert results[NEW[0]][0].signature["parameters"]["borrowed"] == borrowed
    assert json.loads((tmp_path / "adaptation.json").read_text())["borrowed"] == borrowed
    assert "borrowed" not in make(held_out, data_bin)._signature(NEW[0], 0)["parameters"]
    with pytest.raises(ArtifactError, match=r"another adaptation[\s\S]*borrowed.qm-en"):
        make(specialized, data_bin, "0", borrow={"qm": "qb"}).run(tmp_path)


def test_lenders_that_make_no_sense_are_refused(specialized, held_out, data_bin):
    for path, borrow, words in (
        (held_out, {"qm": "qa"}, "dense model has no masks"),
        (specialized, {"qm": "xx"}, "unknown language"),
        (specialized, {"qm": "qm"}, "cannot lend"),
        (specialized, {"qm": "qa", "qb": "qa"}, r"in no direction[\s\S]*qb"),
    ):
        with pytest.raises(NeuronSpecError, match=words):
            make(path, data_bin, borrow=borrow)
    with pytest.raises(ModelError, match="of its own"):
        make(specialized, data_bin, directions=[Direction("en", "qb")], borrow={"qb": "qa"})


def test_all_directions_are_one_evaluation_for_each_number_of_shots(results, adaptation):
    output, by_direction = results
    for shots in (0, 4, 20):
        together = read_evaluation(output / "all" / str(shots))
        assert together.outputs == [by_direction[d][shots].outputs[0] for d in NEW]
        assert together.scores == [by_direction[d][shots].scores[0] for d in NEW]
        assert (output / "all" / str(shots) / "signature.json").is_file()
    at = (output / "all" / "4" / "scores.json").stat().st_mtime_ns
    adaptation.run(output)
    assert (output / "all" / "4" / "scores.json").stat().st_mtime_ns == at, "complete work is left"


def test_more_directions_in_the_same_folder_are_joined_anew(results, held_out, data_bin, tmp_path):
    shutil.copytree(results[0], tmp_path / "run")
    make(held_out, data_bin, "4", directions=NEW[:1]).run(tmp_path / "run")
    for shots, expected in ((4, NEW[:1]), (20, NEW)):
        found = read_evaluation(tmp_path / "run" / "all" / str(shots))
        assert [score.direction for score in found.scores] == expected


def test_adaptations_of_other_checkpoints_and_seeds_can_be_compared(
    results, specialized, held_out, data_bin, tmp_path, capsys
):
    make(specialized, data_bin, "20", borrow={"qm": "qa"}).run(tmp_path / "specialized")
    make(held_out, data_bin, "20", updates=Updates(steps=3, rate=0.5, seed=2)).run(tmp_path / "seed-2")
    systems = [
        f"dense={results[0]}/all/20,{tmp_path}/seed-2/all/20",
        f"specialized={tmp_path}/specialized/all/20",
    ]
    assert main(["compare", *systems, "--bootstrap", "20", "--json"]) == 0
    compared = json.loads(capsys.readouterr().out)
    assert {row["direction"] for row in compared["directions"]} == {"qm-en", "en-qm"}
    assert len(compared["directions"][0]["seeds"]) == 2


def test_the_command_writes_a_page_and_figures(held_out, data_bin, tmp_path, capsys):
    arguments = [
        "adapt",
        data_bin,
        "--path",
        held_out,
        "--lang-pairs",
        "qm-en",
        "--shots",
        "0,5",
        "--steps",
        "1",
    ]
    arguments += ["--lr", "0.1", "--optimizer", "adam", "--output", tmp_path, "--beam", "1", "--cpu"]
    arguments += ["--", "--max-len-a", "0", "--max-len-b", "4"]
    assert main([*map(str, arguments)]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "adaptation.md")
    page = (tmp_path / "adaptation.md").read_text()
    assert "1 updates of adam at rate 0.1" in page and "none of these directions" in page
    for name in ("adaptation.png", "adaptation.svg", "adaptation.json", "qm-en/5/sources/qm-en.txt"):
        assert (tmp_path / name).stat().st_size > 0
    assert main([*map(str, [*arguments[:4], "--lang-pairs", "xx-en", *arguments[6:]])]) == 2
