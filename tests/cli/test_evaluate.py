"""``neuron-spec evaluate`` end to end on the tiny model: likelihood, length penalty, COMET, and adding to what is there."""

from __future__ import annotations

import csv
import json
import lzma
import math
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from neuron_spec.backends.fairseq.data_bin import data_sha256
from neuron_spec.backends.fairseq.generation import Translator
from neuron_spec.backends.fairseq.loading import TeacherForced
from neuron_spec.cli.main import main
from neuron_spec.corpora.build import raw_texts
from neuron_spec.directions import parse_directions
from neuron_spec.errors import NeuronSpecError
from neuron_spec.scoring.comet import Comet
from neuron_spec.scoring.evaluation import read_evaluation
from neuron_spec.scoring.length_penalty import GRID
from neuron_spec.scoring.metrics import Outputs

pytestmark = pytest.mark.slow

PAIRS = "en-qa,qa-en"
DIRECTIONS = parse_directions(PAIRS)
SHORT = ["--", "--max-len-a", "0", "--max-len-b", "6"]
LONG = ["--", "--max-len-a", "0", "--max-len-b", "40"]
TUNED = ["--tune-lenpen", "--tune-sentences", "6"]
OF_LIKELIHOOD = {"nll", "tag_nll", "bits_per_character"}


@pytest.fixture
def evaluate(workshop, checkpoint, tmp_path) -> Callable[..., Path]:
    def run(name: str, *flags: object, status: int = 0, end: list[str] = SHORT, **given: Any) -> Path:
        output = tmp_path / name
        words = [
            "evaluate",
            given.get("data_bin", workshop.data_bin),
            "--path",
            given.get("path", checkpoint),
        ]
        words += [
            "--output",
            output,
            "--cpu",
            "--beam",
            "2",
            "--lang-pairs",
            given.get("pairs", PAIRS),
            *flags,
        ]
        assert main([*map(str, words), *end]) == status
        return output

    return run


def rows(folder: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((folder / "scores.csv").read_text(encoding="utf-8").splitlines()))


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def parameters(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "signature.json").read_text())["parameters"]


@pytest.fixture
def no_translating(monkeypatch) -> None:
    def translate(*_: Any) -> None:
        raise AssertionError("translated again")

    monkeypatch.setattr(Translator, "translate", translate)


# ---------------------------------------------------------------- likelihood


def by_hand(
    task: Any, model: Any, direction: Any, subset: str = "test"
) -> dict[int, tuple[float, int, float]]:
    """Sentence -> nats of its text, its tokens and nats of its tag, by a plain forward pass, token by token."""
    found = {}
    of_direction = task.langs.index(direction.source) * len(task.langs) + task.langs.index(direction.target)
    dataset = task.data_manager.load_dataset(subset, training=False, epoch=1)
    for index in range(len(dataset)):
        batch = dataset.collater([dataset[index]])
        if batch["net_input"]["distinct_ids"] != (of_direction,):
            continue
        with torch.no_grad():
            scores = model(**batch["net_input"])[0].log_softmax(-1)[0]
        nats = [-scores[place, token].item() for place, token in enumerate(batch["target"][0].tolist())]
        found[int(batch["id"])] = sum(nats[1:]), len(nats) - 1, nats[0]
    return found


@pytest.mark.parametrize("is_specialized", [False, True])
def test_the_likelihood_is_the_models_own_of_the_text_without_the_tag(
    workshop, checkpoint, evaluate, tmp_path, is_specialized
):
    cfg, task, model = workshop.build()
    path = checkpoint
    if is_specialized:
        model.set_masks(workshop.masks(model), task.langs)
        path = workshop.save(tmp_path / "specialized.pt", cfg, model)
    folder = evaluate("e", path=path)
    raw = raw_texts(workshop.data_bin, "test", DIRECTIONS)
    for direction, score in zip(DIRECTIONS, read_evaluation(folder).scores, strict=True):
        expected = by_hand(task, model, direction)
        assert sorted(expected) == list(range(workshop.sizes["test"]))
        text = (folder / "sentences" / f"{direction}.csv").read_text().splitlines()
        assert text[0] == "text_nll,text_tokens,tag_nll"
        for number, line in enumerate(text[1:]):
            assert [float(x) for x in line.split(",")] == pytest.approx(expected[number], rel=1e-4)
        nats, tokens, tags = np.array([expected[i] for i in sorted(expected)]).T
        assert score.nll == pytest.approx(nats.sum() / tokens.sum(), rel=1e-5)
        assert score.tag_nll == pytest.approx(tags.mean(), rel=1e-5)
        characters = sum(map(len, raw[direction][1]))
        assert score.bits_per_character == pytest.approx(nats.sum() / math.log(2) / characters, rel=1e-5)
    summary = json.loads((folder / "scores.json").read_text())["summary"][0]
    assert summary["nll"] == pytest.approx(np.mean([float(row["nll"]) for row in rows(folder)]))
    assert f"{summary['nll']:.3f}" in (folder / "table.md").read_text()


def test_the_likelihood_does_not_depend_on_batches(evaluate):
    one, other = (evaluate(f"e{n}", "--max-tokens", n) for n in (60, 2000))
    for x, y in zip(rows(one), rows(other), strict=True):
        for key in OF_LIKELIHOOD:
            assert float(x[key]) == pytest.approx(float(y[key]), rel=1e-5)


def test_without_likelihood_all_else_is_the_same(evaluate):
    whole, without = evaluate("whole"), evaluate("without", "--no-likelihood")
    for x, y in zip(rows(whole), rows(without), strict=True):
        assert {key for key in x if x[key] != y[key]} == OF_LIKELIHOOD
        assert all(y[key] == "" for key in OF_LIKELIHOOD)
    assert not (without / "sentences").exists()
    assert "No likelihood" in (without / "table.md").read_text()
    assert parameters(whole) == {**parameters(without), "likelihood": True}


def test_a_likelihood_is_added_to_what_was_evaluated_without(evaluate, capsys, request):
    fresh, upgraded = evaluate("fresh"), evaluate("upgraded", "--no-likelihood")
    request.getfixturevalue("no_translating")
    evaluate("upgraded")
    assert files(upgraded) == files(fresh)
    capsys.readouterr()
    evaluate("upgraded")
    evaluate("upgraded", "--no-likelihood")  # what is there holds more
    assert capsys.readouterr().err.count("complete already") == 2
    assert files(upgraded) == files(fresh)


def test_after_a_kill_no_direction_is_run_again(evaluate, monkeypatch, request):
    fresh = evaluate("fresh")
    measure, measured = TeacherForced.sentence_likelihoods, []

    def one_and_no_more(self, text, row, *rest):
        if measured:
            raise KeyboardInterrupt
        measured.append(row)
        return measure(self, text, row, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(TeacherForced, "sentence_likelihoods", one_and_no_more)
        evaluate("killed", status=130)
    killed = read_evaluation(fresh.parent / "killed")
    assert [score.nll for score in killed.scores] == [None, None]  # complete, and without
    measured.clear()
    request.getfixturevalue("no_translating")
    with monkeypatch.context() as patch:
        patch.setattr(TeacherForced, "sentence_likelihoods", one_and_no_more)
        evaluate("killed")
    assert measured == [1]
    assert files(fresh.parent / "killed") == files(fresh)


def test_sentences_longer_than_the_model_have_none_and_are_told(evaluate):
    folder = evaluate("e", end=[*SHORT, "--max-target-positions", "12"])
    whole = evaluate("whole")
    for direction in DIRECTIONS:
        short, long = (
            read_evaluation(folder).sentences[direction],
            read_evaluation(whole).sentences[direction],
        )
        left_out = np.isnan(short.text_nll)
        assert 0 < left_out.sum() < len(left_out)
        assert (left_out == (long.text_tokens + 1 > 12)).all()
        np.testing.assert_allclose(short.text_nll[~left_out], long.text_nll[~left_out], rtol=1e-4)
        assert f"{left_out.sum()} of {direction}" in (folder / "table.md").read_text()


def test_directions_without_masks_have_the_likelihood_that_they_are_translated_by(
    workshop, evaluate, tmp_path
):
    cfg, task, model = workshop.build()
    dense = workshop.save(tmp_path / "dense.pt", cfg, model)
    model.set_masks(workshop.masks(model, ["en-qb", "qb-en"]), task.langs)
    path = workshop.save(tmp_path / "specialized.pt", cfg, model)
    through = evaluate("through", path=path, end=[*SHORT, "--missing-direction", "dense"])
    for x, y in zip(rows(through), rows(evaluate("dense", path=dense)), strict=True):
        assert float(x["nll"]) == pytest.approx(float(y["nll"]), rel=1e-5)


def test_a_likelihood_under_dropout_is_refused(evaluate, capsys, tmp_path):
    evaluate("e", status=2, end=[*SHORT, "--retain-dropout"])
    assert "--no-likelihood" in capsys.readouterr().err
    assert not (tmp_path / "e").exists()


# ---------------------------------------------------------------- length penalty


FROZEN = Path(__file__).parents[1] / "frozen/0.1.0"
FLAGS = ["--cpu", "--max-tokens", "500", "--beam", "5", "--max-len-a", "0", "--max-len-b", "40"]


@pytest.fixture(scope="module")
def learned(tmp_path_factory) -> Path:
    """A checkpoint that ends sentences at different lengths, so that penalties differ."""
    path = tmp_path_factory.mktemp("learned") / "dense.pt"
    path.write_bytes(lzma.decompress((FROZEN / "checkpoints/dense.pt.xz").read_bytes()))
    return path


@pytest.fixture
def tune(evaluate, learned) -> Callable[..., Path]:
    def run(
        name: str, *flags: object, end: list[str] = LONG, data_bin: Path = FROZEN / "corpus/data-bin"
    ) -> Path:
        flags = ("--references", "data-bin", *flags)
        return evaluate(name, *flags, path=learned, data_bin=data_bin, end=end)

    return run


def chosen(folder: Path) -> dict[str, Any]:
    content = json.loads((folder / "lenpen.json").read_text())
    del content["signature"]["command"]
    return content


def test_one_search_gives_what_every_length_penalty_would(learned):
    def translator(value: float) -> Translator:
        flags = [*FLAGS, "--lenpen", str(value)]
        return Translator(learned, FROZEN / "corpus/data-bin", DIRECTIONS, "test", flags)

    values, positions = (0.2, 1.0, 2.0), [0, 2, 3, 5]
    for direction in DIRECTIONS:
        found = translator(0).translate_by_lenpen(direction, values, positions)
        assert found[0] != found[1] and found[0] != found[2]
        for value, texts in zip(values, found, strict=True):
            whole = translator(value).translate(direction)
            assert texts == [whole[position] for position in positions]


def test_the_length_penalty_is_chosen_by_validation_text_alone(tune, tmp_path):
    corpus = tmp_path / "corpus"
    shutil.copytree(FROZEN / "corpus", corpus)
    for path in corpus.glob("data-bin/test.*"):  # another test set
        shutil.copy(path.with_name(path.name.replace("test.", "valid.")), path)
    one, other = tune("one", *TUNED), tune("other", *TUNED, data_bin=corpus / "data-bin")
    assert (one / "references/en-qa.txt").read_text() != (other / "references/en-qa.txt").read_text()
    assert chosen(one) == chosen(other)
    made = chosen(one)["signature"]
    assert made["inputs"]["data"] == data_sha256(FROZEN / "corpus/data-bin", "valid", DIRECTIONS)
    grid = {of["lenpen"]: of["bleu"] for of in chosen(one)["grid"]}
    assert list(grid) == list(GRID)
    assert len(set(grid.values())) > 1
    assert grid[chosen(one)["lenpen"]] == max(grid.values())
    lengths = [of["length_ratio"] for of in chosen(one)["grid"]]
    assert lengths == sorted(lengths)
    on_valid = tune("valid", "--gen-subset", "valid", end=[*LONG, "--lenpen", "0.2"])
    mean = read_evaluation(on_valid).summary[0]
    shortest = chosen(tune("whole", "--tune-lenpen"))["grid"][0]
    assert shortest == pytest.approx({"lenpen": 0.2, "bleu": mean.bleu, "length_ratio": mean.length_ratio})


def test_the_chosen_penalty_translates_and_is_taken_over(tune, capsys, request):
    baseline = tune("baseline", *TUNED)
    value = parameters(baseline)["lenpen"]
    assert value == chosen(baseline)["lenpen"] != 1
    plain = tune("plain", end=[*LONG, "--lenpen", str(value)])
    other = tune("other", "--lenpen-from", baseline)
    again = tune("again", "--lenpen-from", baseline / "lenpen.json")
    for direction in DIRECTIONS:
        texts = [(x / "hypotheses" / f"{direction}.txt").read_text() for x in (baseline, plain, other, again)]
        assert len(set(texts)) == 1
    signed = [json.loads((x / "signature.json").read_text()) for x in (baseline, other, again)]
    assert signed[0]["inputs"] == signed[1]["inputs"] == signed[2]["inputs"]
    assert signed[0]["parameters"] == signed[1]["parameters"]
    capsys.readouterr()
    request.getfixturevalue("no_translating")
    tune("baseline", *TUNED)
    tune("other", "--lenpen-from", baseline)
    assert capsys.readouterr().err.count("complete already") == 2


@pytest.mark.parametrize(
    ("flags", "end", "message"),
    [
        (["--tune-lenpen"], ["--lenpen", "1.2"], "two length penalties"),
        (["--tune-lenpen"], ["--lenpen=1.2"], "two length penalties"),
        (["--tune-lenpen"], ["--unnormalized"], "--tune-lenpen and --unnormalized"),
        (["--tune-lenpen", "--tune-subset", "test"], [], "by the text that is scored"),
        (["--tune-sentences", "5"], [], "add --tune-lenpen"),
        (["--tune-subset", "valid"], [], "add --tune-lenpen"),
        (["--lenpen-from", "nowhere"], [], "no chosen length penalty"),
        (["--comet-program", "x"], [], "add --comet MODEL"),
    ],
)
def test_flags_that_do_not_go_together(evaluate, capsys, tmp_path, flags, end, message):
    evaluate("e", *flags, status=2, end=[*SHORT, *end])
    assert message in capsys.readouterr().err
    assert not (tmp_path / "e").exists()


def test_a_penalty_of_another_beam_or_text_is_refused(evaluate, workshop, capsys, tmp_path):
    baseline = evaluate("baseline", *TUNED)
    evaluate("e", "--lenpen-from", baseline, "--beam", "3", status=2)
    assert "another beam" in capsys.readouterr().err
    path = baseline / "lenpen.json"
    content = json.loads(path.read_text())
    content["signature"]["inputs"]["data"] = "0" * 64
    (tmp_path / "other.json").write_text(json.dumps(content))
    evaluate("e", "--lenpen-from", tmp_path / "other.json", status=2)
    assert "another data-bin" in capsys.readouterr().err
    for damaged in ("{", "[]", '{"grid": []}', '{"grid": [{"lenpen": 1}], "lenpen": 1, "signature": {}}'):
        (tmp_path / "other.json").write_text(damaged)
        evaluate("e", "--lenpen-from", tmp_path / "other.json", status=2)
    assert not (tmp_path / "e").exists()


def test_nothing_is_chosen_for_a_folder_that_has_another_evaluation(evaluate, capsys):
    folder = evaluate("e")
    before = files(folder)
    evaluate("e", *TUNED, status=2)
    assert "another evaluation is already here" in capsys.readouterr().err
    assert files(folder) == before


# ---------------------------------------------------------------- COMET

PROGRAM = f"""#!{sys.executable}
import argparse, json, sys
parser = argparse.ArgumentParser()
for flag in "-s", "-t", "-r", "--model", "--to_json", "--gpus":
    parser.add_argument(flag)
parser.add_argument("--quiet", action="store_true")
args = parser.parse_args()
model = args.model
if model == "fails":
    print("loading")
    sys.exit("no such model: fails")
read = lambda name: [line.strip() for line in open(name, encoding="utf-8").readlines()]
rows = [dict(src=s, mt=t, ref=r, COMET=(len(s) + 2 * len(t) + 3 * len(r)) / 1000)
        for s, t, r in zip(read(args.s), read(args.t), read(args.r), strict=True)]
if model == "few":
    rows.pop()
if model == "not-a-number":
    rows[1]["COMET"] = float("nan")
if model == "shuffled":
    rows.reverse()
content = {{}} if model == "empty" else {{args.t: rows}}
if model != "writes-nothing":
    json.dump(content, open(args.to_json, "w"))
open(__file__ + ".calls", "a").write(" ".join(sys.argv[1:]) + "\\n")
"""


@pytest.fixture
def program(tmp_path) -> Path:
    path = tmp_path / "environment" / "comet-score"
    path.parent.mkdir()
    path.write_text(PROGRAM)
    path.chmod(0o755)
    return path


def calls(program: Path) -> list[str]:
    path = Path(f"{program}.calls")
    return path.read_text().splitlines() if path.is_file() else []


def test_comet_is_added_to_what_is_evaluated(evaluate, program, request, workshop):
    fresh = evaluate("fresh", "--comet", "some/model", "--comet-program", program)
    added = evaluate("added")
    assert "COMET" not in (added / "table.md").read_text()
    request.getfixturevalue("no_translating")
    evaluate("added", "--comet", "some/model", "--comet-program", program)
    assert files(added) == files(fresh)
    assert len(calls(program)) == 2
    assert "--model some/model" in calls(program)[0] and "--gpus 0" in calls(program)[0]
    evaluation = read_evaluation(added)
    for outputs, score in zip(evaluation.outputs, evaluation.scores, strict=True):
        texts = zip(outputs.sources, outputs.hypotheses, outputs.references, strict=True)
        expected = [(len(s.strip()) + 2 * len(t) + 3 * len(r.strip())) / 1000 for s, t, r in texts]
        of = evaluation.sentences[score.direction]
        assert of.comet == pytest.approx(expected)
        assert of.text_nll is not None
        assert score.comet == pytest.approx(np.mean(expected))
    assert parameters(added)["comet"] == "some/model"
    assert "COMET" in (added / "table.md").read_text()
    evaluate("added", "--comet", "some/model", "--comet-program", program)
    evaluate("added")
    assert len(calls(program)) == 2
    evaluate("added", "--comet", "another", "--comet-program", program, status=2)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("fails", "no such model: fails"),
        ("few", "39, not 40"),
        ("not-a-number", "nan of sentence 2"),
        ("shuffled", "it scored other sentences"),
        ("empty", "cannot be read"),
        ("writes-nothing", "no scores"),
    ],
)
def test_what_comet_cannot_score_is_said_and_the_rest_is_kept(evaluate, program, capsys, model, message):
    folder = evaluate("e", "--comet", model, "--comet-program", program, status=2)
    assert message in capsys.readouterr().err
    evaluation = read_evaluation(folder)
    assert all(score.nll is not None and score.comet is None for score in evaluation.scores)
    assert "comet" not in parameters(folder)
    evaluate("e", "--comet", "right", "--comet-program", program)
    assert all(score.comet is not None for score in read_evaluation(folder).scores)


def test_an_absent_program_is_said_before_work_starts(evaluate, capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    for flags in ([], ["--comet-program", tmp_path / "absent"]):
        evaluate("e", "--comet", "some/model", *flags, status=2)
        message = capsys.readouterr().err
        assert "pip install unbabel-comet" in message
        assert ("absent" if flags else "comet-score on the PATH") in message
    assert not (tmp_path / "e").exists()


def test_a_program_in_this_folder_needs_no_path(program, monkeypatch):
    monkeypatch.chdir(program.parent)
    monkeypatch.setenv("PATH", "")
    assert Comet.find("m", Path("./comet-score")).program == program


@pytest.mark.parametrize("scores", ["[" * 100_000, '{"t": [{"COMET": 1' + "0" * 400 + "}]}"])
def test_scores_that_no_json_should_hold(program, scores):
    program.write_text(
        f"#!{sys.executable}\nimport sys\nopen(sys.argv[sys.argv.index('--to_json') + 1], 'w').write({scores!r})"
    )
    (direction,) = parse_directions("en-de")
    with pytest.raises(NeuronSpecError, match="its scores cannot be read"):
        Comet.find("m", program).score([Outputs(direction, ["a"], ["a"], ["a"])])


def test_chinese_under_a_code_that_is_not_known_for_it_is_warned_of(tmp_path, capsys):
    for code, warned in (("cn", True), ("zh", False)):
        log = tmp_path / f"en-{code}" / "generate-test.txt"
        log.parent.mkdir()
        log.write_text("S-0\twe go\nT-0\t我们今天去学校。\nH-0\t-0.5\t我们昨天去学校。\n", encoding="utf-8")
        assert main(["evaluate", "--generate-output", str(log), "--output", str(tmp_path / code)]) == 0
        assert ("BLEU is by 13a, which finds no words" in capsys.readouterr().err) == warned


def test_the_version_is_that_of_the_python_that_runs_the_program(program):
    python = program.with_name("python3")
    python.write_text("#!/bin/sh\necho 2.2.4\n")
    python.chmod(0o755)
    assert Comet.find("m", program).versions == {}  # this environment has no unbabel-comet
    program.write_text(f"#!{python}\n")
    assert Comet.find("m", program).versions == {"unbabel-comet": "2.2.4"}
    program.write_text("#!/usr/bin/env python3\n")
    assert Comet.find("m", program).versions == {}


def test_comet_needs_sources(evaluate, program, capsys, tmp_path):
    evaluate("e", "--references", "data-bin", "--comet", "m", "--comet-program", program, status=2)
    assert "no sources" in capsys.readouterr().err
    assert not (tmp_path / "e").exists()


def test_logs_are_scored_by_comet_too(program, tmp_path, capsys):
    log = tmp_path / "en-de" / "generate-test.txt"
    log.parent.mkdir()
    lines = ["S-0\ta b", "T-0\tc d", "H-0\t-0.5\tc\rd", "S-1\te", "T-1\tf", "H-1\t-0.5\t"]
    log.write_bytes("".join(f"{line}\n" for line in lines).encode())
    words = ["evaluate", "--generate-output", str(log), "--output", str(tmp_path / "e")]
    assert main(words) == 0
    assert "No likelihood" in (tmp_path / "e" / "table.md").read_text()
    assert main([*words, "--comet", "m", "--comet-program", str(program)]) == 0
    (direction,) = parse_directions("en-de")
    assert read_evaluation(tmp_path / "e").sentences[direction].comet == pytest.approx([0.018, 0.004])
    log.write_bytes("".join(f"{line}\n" for line in lines if line[0] != "S").encode())
    words[-1] += "-without"
    assert main([*words, "--comet", "m", "--comet-program", str(program)]) == 2
    assert "no sources" in capsys.readouterr().err
    assert not (tmp_path / "e-without").exists()


def test_raw_text_that_is_not_the_data_bins_is_refused_before_translating(
    evaluate, workshop, tmp_path, capsys, monkeypatch
):
    corpus = tmp_path / "corpus"
    shutil.copytree(workshop.data_bin.parent, corpus)
    path = corpus / "raw" / "test.qa-en.en"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    monkeypatch.setattr(Translator, "translate", lambda *_: pytest.fail("translated"))
    output = evaluate("short", status=2, data_bin=corpus / "data-bin")
    said = capsys.readouterr().err
    assert "the raw text is not that of the data-bin" in said and "19 and 20 lines" in said
    assert not output.exists()


def test_of_two_evaluations_that_begin_at_once_one_is_refused(evaluate, monkeypatch, capsys):
    """Each finds the folder empty; the second would take the first one's translations for its own."""
    from neuron_spec.scoring import evaluation

    with monkeypatch.context() as patched:
        patched.setattr(evaluation, "is_evaluated", lambda folder, wanted: False)
        patched.setattr("neuron_spec.cli.evaluate._complete", lambda folder: None)
        first = evaluate("one", "--no-likelihood")
        before = {path: path.read_bytes() for path in first.rglob("*") if path.is_file()}
        evaluate("one", "--no-likelihood", end=LONG, status=2)
    assert "another evaluation is already here" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in first.rglob("*") if path.is_file()} == before
