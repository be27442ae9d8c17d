"""``neuron-spec evaluate --zero-shot``: which directions, their text, composed sets and all neurons, and what is refused."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import small_run
import torch

from neuron_spec.backends.fairseq.generation import Translator
from neuron_spec.cli.main import main
from neuron_spec.corpora import build, toy
from neuron_spec.directions import parse_directions
from neuron_spec.neurons.masks import NeuronMasks
from neuron_spec.report.report import write_report
from neuron_spec.scoring.evaluation import read_evaluation

pytestmark = pytest.mark.slow

BETWEEN = ["qa-qb", "qa-qm", "qb-qa", "qb-qm", "qm-qa", "qm-qb"]
Run = Callable[..., Path]


@pytest.fixture
def run(workshop, tmp_path) -> Run:
    def evaluate(name: str, path: Path, *flags: object, status: int = 0, **given: Any) -> Path:
        words = [
            *("evaluate", given.get("data_bin", workshop.data_bin), "--path", path),
            *("--output", tmp_path / name, "--cpu", "--beam", "2", *flags),
            *("--", "--max-len-a", "0", "--max-len-b", "6", *given.get("end", ())),
        ]
        assert main([*map(str, words)]) == status
        return tmp_path / name

    return evaluate


@pytest.fixture
def specialized(workshop, tmp_path) -> Path:
    cfg, task, model = workshop.build()
    model.set_masks(workshop.masks(model), task.langs)
    return workshop.save(tmp_path / "specialized.pt", cfg, model)


def texts(folder: Path) -> dict[str, str]:
    return {
        f"{path.parent.name}/{path.name}": path.read_text(encoding="utf-8") for path in folder.rglob("*.txt")
    }


def copy_of_corpus(workshop: Any, folder: Path) -> Path:
    shutil.copytree(workshop.data_bin.parent, folder)
    return folder / "data-bin"


def test_alone_it_is_of_all_directions_without_english_and_the_table_has_both_ways(
    workshop, run, specialized, tmp_path, capsys
):
    folder = run("z", specialized, "--zero-shot")
    rows = list(csv.DictReader((folder / "zero-shot.csv").read_text(encoding="utf-8").splitlines()))
    assert [row["mean over"] for row in rows if row["mean over"] in BETWEEN] == BETWEEN
    assert rows[0]["mean over"] == "all" and rows[0]["directions"] == "6"
    for name in ("composed", "dense-neurons"):
        evaluation = read_evaluation(folder / name)
        assert [str(score.direction) for score in evaluation.scores] == BETWEEN
        assert all(score.off_target_fraction is not None and score.nll for score in evaluation.scores)
        for row, score in zip(rows[-6:], evaluation.scores, strict=True):
            assert float(row[f"chrf {name}"]) == score.chrf and float(row[f"nll {name}"]) == score.nll
        mean = sum(score.nll for score in evaluation.scores) / 6
        assert float(rows[0][f"nll {name}"]) == pytest.approx(mean)
    # The sources of qa-qb are qa's lines beside English, the references qb's.
    raw = workshop.data_bin.parent / "raw"
    assert texts(folder / "composed")["sources/qa-qb.txt"] == (raw / "test.qa-en.qa").read_text()
    assert texts(folder / "composed")["references/qa-qb.txt"] == (raw / "test.qb-en.qb").read_text()
    assert texts(folder / "composed") != texts(folder / "dense-neurons")
    assert main(["compare", str(folder / "dense-neurons"), str(folder / "composed")]) == 0
    assert "qa-qb" in capsys.readouterr().out


def test_composed_equals_sets_of_the_directions_own_that_are_so_made(workshop, run, specialized, tmp_path):
    """The encoder's of qa-en, the decoder's of en-qb; and the text is that of a corpus which has qa-qb's own sets."""
    corpus = tmp_path / "between"
    read = toy.read(langs=workshop.langs[1:], sizes=workshop.sizes, seed=1)
    parameters = {"corpus": "toy", "zero_shot": "qa-qb"}
    build.build(read, corpus, vocab_size=300, parameters=parameters, zero_shot=[("qa", "qb")])
    cfg, task, model = workshop.build()
    masks = workshop.masks(model)
    encoder, decoder = masks.rows(["qa-en", "en-qb"])
    own = {
        site: kept[[encoder if site.startswith("encoder") else decoder]] for site, kept in masks.kept.items()
    }
    model.set_masks(NeuronMasks(parse_directions("qa-qb"), own), task.langs)
    explicit = workshop.save(tmp_path / "explicit.pt", cfg, model)
    wanted = run("explicit", explicit, "--lang-pairs", "qa-qb", data_bin=corpus / "data-bin")
    aligned = run("aligned", specialized, "--zero-shot", "--lang-pairs", "qa-qb")
    given = run("given", specialized, "--zero-shot", "--lang-pairs", "qa-qb", data_bin=corpus / "data-bin")
    assert texts(wanted) == texts(aligned / "composed") == texts(given / "composed")
    nll = {read_evaluation(of).scores[0].nll for of in (wanted, aligned / "composed", given / "composed")}
    assert max(nll) - min(nll) < 1e-5


def test_where_sets_keep_all_the_two_ways_and_the_dense_model_are_one(workshop, run, checkpoint, tmp_path):
    cfg, task, model = workshop.build()
    masks = workshop.masks(model)
    everything = {site: torch.ones_like(kept) for site, kept in masks.kept.items()}
    model.set_masks(NeuronMasks(masks.directions, everything), task.langs)
    path = workshop.save(tmp_path / "all.pt", cfg, model)
    of_all = run("all", path, "--zero-shot", "--lang-pairs", "qa-qb")
    dense = run("dense", checkpoint, "--zero-shot", "--lang-pairs", "qa-qb")
    assert texts(of_all / "composed") == texts(of_all / "dense-neurons") == texts(dense / "dense-neurons")
    assert not (dense / "composed").exists()


def test_what_was_not_measured_has_no_column(run, specialized):
    folder = run("z", specialized, "--zero-shot", "--lang-pairs", "qa-qb", "--no-likelihood")
    for table in ("zero-shot.csv", "zero-shot.md"):
        header = (folder / table).read_text(encoding="utf-8").casefold()
        assert "chrf" in header and "nll," not in header and "nll composed" not in header


def test_it_resumes_and_skips_what_is_complete(run, specialized, monkeypatch, capsys):
    asked = ("--zero-shot", "--lang-pairs", "qa-qb,qb-qa")
    folder = run("z", specialized, *asked)
    before, table = texts(folder), (folder / "zero-shot.csv").read_bytes()
    (folder / "dense-neurons" / "scores.json").unlink()
    (folder / "dense-neurons" / "hypotheses" / "qb-qa.txt").unlink()
    translated, translate = [], Translator.translate
    monkeypatch.setattr(
        Translator, "translate", lambda self, of: translated.append(str(of)) or translate(self, of)
    )
    run("z", specialized, *asked)
    assert translated == ["qb-qa"] and texts(folder) == before
    assert (folder / "zero-shot.csv").read_bytes() == table
    # One of the two ways alone; what is there of the other stays in the table.
    run("z", specialized, *asked, end=["--missing-direction", "compose"])
    assert translated == ["qb-qa"] and (folder / "zero-shot.csv").read_bytes() == table
    capsys.readouterr()
    run("z", specialized, "--zero-shot", "--lang-pairs", "qa-qb", status=2)
    assert "another evaluation is already here" in capsys.readouterr().err


def test_what_has_no_zero_shot_directions_is_refused(
    workshop, run, specialized, checkpoint, tmp_path, capsys
):
    def refused(what: str, path: Path, *flags: object, **given: Any) -> None:
        folder = run("refused", path, "--zero-shot", *flags, status=2, **given)
        assert what in capsys.readouterr().err
        assert not folder.exists()

    refused("have training data", specialized, "--lang-pairs", "qa-qb,en-qa")
    refused("unknown language", specialized, "--lang-pairs", "qa-xx")
    refused("--lenpen-from DIR", specialized, "--tune-lenpen")
    refused("nothing to compose", checkpoint, end=["--missing-direction", "compose"])
    refused("have no sets", specialized, end=["--missing-direction", "error"])
    words = ["evaluate", "--generate-output", "x", "--zero-shot", "--output", str(tmp_path / "refused")]
    assert main(words) == 2 and "--zero-shot" in capsys.readouterr().err
    # A training set of the pair, whatever the checkpoint says.
    data_bin = copy_of_corpus(workshop, tmp_path / "trained")
    shutil.copy(data_bin / "train.qa-en.qa.idx", data_bin / "train.qa-qb.qa.idx")
    refused("qb-qa", specialized, "--lang-pairs", "qb-qa", data_bin=data_bin)
    # Into a language that no direction with masks has as target.
    cfg, task, model = workshop.build()
    model.set_masks(workshop.masks(model, ["en-qa", "en-qb"]), task.langs)
    out_of_english = workshop.save(tmp_path / "out.pt", cfg, model)
    refused("no direction from qa", out_of_english, "--lang-pairs", "qa-qb")
    run("alone", out_of_english, "--zero-shot", "--lang-pairs", "qa-qb", end=["--missing-direction", "dense"])


@pytest.mark.parametrize("kind", ["raw", "binarized", "missing"])
def test_test_sets_of_other_sentences_are_no_references(workshop, run, specialized, tmp_path, capsys, kind):
    data_bin = copy_of_corpus(workshop, tmp_path / "corpus")
    if kind == "raw":
        file = data_bin.parent / "raw" / "test.qb-en.en"
        lines = file.read_text().splitlines(keepends=True)
        file.write_text("".join([lines[1], lines[0], *lines[2:]]))
    elif kind == "binarized":
        content = bytearray((data_bin / "test.qb-en.en.bin").read_bytes())
        content[:4] = content[4:8]
        (data_bin / "test.qb-en.en.bin").write_bytes(content)
    else:
        for file in data_bin.glob("test.qb-en.*"):
            file.unlink()
    asked = ("--zero-shot", "--lang-pairs", "qa-qb")
    folder = run("z", specialized, *asked, status=2, data_bin=data_bin)
    error = capsys.readouterr().err
    assert ("nor one of each" if kind == "missing" else "not the same sentences") in error
    assert not folder.exists()
    if kind == "raw":  # which nobody looks at here
        run("z", specialized, *asked, "--references", "data-bin", data_bin=data_bin)
        assert json.loads((folder / "composed" / "scores.json").read_text())["directions"].keys() == {"qa-qb"}


@pytest.mark.parametrize("changed", ["beam", "directions", "masks"])
def test_one_table_sets_no_different_evaluations_side_by_side(
    workshop, run, specialized, tmp_path, capsys, changed
):
    given = ["--zero-shot", "--no-likelihood", "--lang-pairs", "qa-qb"]
    run("z", specialized, *given, end=["--missing-direction", "compose"])
    before, path = texts(tmp_path / "z"), specialized
    table = (tmp_path / "z" / "zero-shot.csv").read_bytes()
    if changed == "beam":
        given += ["--beam", "3"]
    elif changed == "directions":
        given[-1] = "qa-qb,qb-qa"
    else:
        cfg, task, model = workshop.build()
        masks = workshop.masks(model)
        model.set_masks(
            NeuronMasks(masks.directions, {key: ~of for key, of in masks.kept.items()}), task.langs
        )
        path = workshop.save(tmp_path / "other.pt", cfg, model)
    capsys.readouterr()
    run("z", path, *given, end=["--missing-direction", "dense"], status=2)
    assert "another evaluation is already here" in capsys.readouterr().err
    assert not (tmp_path / "z" / "dense-neurons").exists() and texts(tmp_path / "z") == before
    assert (tmp_path / "z" / "zero-shot.csv").read_bytes() == table
    run("other", path, *given, end=["--missing-direction", "dense"])


def test_a_language_into_itself_is_no_pair(run, specialized, tmp_path, capsys):
    run("z", specialized, "--zero-shot", "--lang-pairs", "qa-qa", status=2)
    assert "from a language into itself" in capsys.readouterr().err
    assert not (tmp_path / "z").exists()


def test_a_report_shows_them(run, specialized, tmp_path):
    folder = run("z", specialized, "--zero-shot", "--lang-pairs", "qa-qb")
    of_run = small_run.write_run(tmp_path / "run", families={"de": "Germanic"}, systems={"specialized": 0.3})
    shutil.copytree(folder, of_run / "zero-shot" / "specialized")
    write_report(of_run)
    text = (of_run / "report.md").read_text(encoding="utf-8")
    assert "Zero-shot directions" in text and "qa-qb" in text and "dense-neurons" in text


def test_adapters_are_composed_too(workshop, run, tmp_path):
    adapters = ("--adapters", "pair", "--adapter-size", "4")
    cfg, _, model = workshop.build(*adapters, arch="neuron_spec_adapters_tiny")
    path = workshop.save(tmp_path / "adapters.pt", cfg, model)
    folder = run("z", path, "--zero-shot", "--lang-pairs", "qa-qb", "--no-likelihood")
    assert all((folder / name / "scores.json").is_file() for name in ("composed", "dense-neurons"))
