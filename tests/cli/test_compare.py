"""neuron-spec compare on small made-up evaluations."""

from __future__ import annotations

import csv
import json
import os
from dataclasses import replace

import numpy as np
import pytest

from neuron_spec.cli.main import main
from neuron_spec.directions import Direction
from neuron_spec.scoring.endpoints import NLL, SentenceScores
from neuron_spec.scoring.evaluation import evaluate, write_evaluation
from neuron_spec.scoring.metrics import Outputs

REFERENCES = [f"the {noun} in the {room} is {state}" for noun in ("lamp", "door", "fan", "pump") 
              for room in ("kitchen", "hall", "bath") for state in ("on", "off")]  # fmt: skip
FILES = {"comparison.csv", "comparison.json", "comparison.md", "comparison.png", "comparison.svg"}


def write(folder, hypotheses, directions=("en-de", "de-en"), **inputs):
    outputs = [Outputs(Direction.parse(d), hypotheses, REFERENCES) for d in directions]
    write_evaluation(folder, evaluate(outputs, signature={"stage": "evaluate", "inputs": inputs}))
    return folder


@pytest.fixture
def folders(tmp_path):
    worse = [line.replace("the", "a") for line in REFERENCES]
    worst = [line.replace("the", "a").replace("is", "was") for line in REFERENCES]
    return [
        write(tmp_path / name, text)
        for name, text in (("good", REFERENCES), ("worse", worse), ("worst", worst))
    ]


def run(*arguments):
    return main(["compare", "--bootstrap", "100", *map(str, arguments)])


@pytest.fixture
def refused(capsys, tmp_path):
    def check(*arguments):
        capsys.readouterr()
        assert run(*arguments, "--output", tmp_path / "out") == 2
        said = capsys.readouterr()
        assert said.out == ""
        assert "Traceback" not in said.err
        assert not (tmp_path / "out").exists()
        return said.err

    return check


def test_tables_files_and_skipping(folders, tmp_path, capsys):
    output = tmp_path / "out"
    assert run(*folders, "--output", output) == 0
    table = capsys.readouterr().out
    assert table.startswith("# worse against good\n")
    assert "# worst against good\n" in table
    assert {path.name for path in output.iterdir()} == FILES
    assert (output / "comparison.md").read_text(encoding="utf-8") == table

    made = {path.name: path.stat().st_mtime_ns for path in output.iterdir()}
    assert run(*folders, "--output", output) == 0
    said = capsys.readouterr()
    assert "complete already" in said.err
    assert said.out == table
    assert {path.name: path.stat().st_mtime_ns for path in output.iterdir()} == made

    # What was cut short is made again, as before; what is of another comparison stays.
    before = (output / "comparison.json").read_bytes()
    (output / "comparison.json").unlink()
    assert run(*folders, "--output", output) == 0
    assert (output / "comparison.json").read_bytes() == before
    assert run(*folders, "--output", output, "--alpha", "0.1") == 2
    assert "parameters.alpha: 0.05" in capsys.readouterr().err
    assert (output / "comparison.json").read_bytes() == before


def write_with_likelihood(folder, hypotheses, nll, missing=()):
    """Of three tokens a sentence, so many nats a token on the mean."""
    outputs = [Outputs(Direction.parse(d), hypotheses, REFERENCES) for d in ("en-de", "de-en")]
    evaluation = evaluate(outputs, signature={"stage": "evaluate"})
    values = 3 * np.linspace(nll - 0.1, nll + 0.1, len(REFERENCES))
    tokens = np.full(len(REFERENCES), 3.0)
    values[list(missing)] = tokens[list(missing)] = np.nan
    sentences = SentenceScores(text_nll=values, text_tokens=tokens)
    known = replace(
        evaluation,
        sentences={output.direction: sentences for output in outputs},
        scores=[replace(score, nll=sentences.ratio(NLL.key).value) for score in evaluation.scores],
    )
    write_evaluation(folder, known)
    return folder


def test_likelihoods_written_by_evaluate_are_compared_first(folders, tmp_path, capsys):
    _, worse, _ = folders
    a = write_with_likelihood(tmp_path / "a", REFERENCES, 3.0)
    b = write_with_likelihood(tmp_path / "b", REFERENCES, 2.9)
    output = tmp_path / "out"
    assert run(a, b, "--output", output) == 0
    table = capsys.readouterr().out
    row = next(line for line in table.splitlines() if line.startswith("| all languages"))
    cells = [cell.strip() for cell in row.split("|")[1:-1]]
    assert cells == ["all languages", "all", "3.000", "2.900", "-0.100", "-0.100 to -0.100", "0.010", "0.000"]
    with open(output / "comparison.csv", encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["metric"] == "nll"]
    assert [(row["result"], row["sacrebleu_p_value"]) for row in rows] == [("win", "")] * 2
    content = json.loads((output / "comparison.json").read_text(encoding="utf-8"))
    assert content["left_out"] == {}
    assert content["draws"] == [["en-de"], ["de-en"]]  # no sources, and references of two languages

    assert run(a, b, worse) == 0
    assert "NLL is left out: not known of worse." in capsys.readouterr().out
    long = write_with_likelihood(tmp_path / "long", REFERENCES, 3.0, missing=[3])
    assert run(a, long, "--output", tmp_path / "refused") == 2
    said = capsys.readouterr()
    assert said.out == "" and "NLL of different sentences" in said.err and "sentence 4" in said.err
    assert not (tmp_path / "refused").exists()


def test_json_on_stdout_with_seeds(folders, tmp_path, capsys):
    good, worse, worst = folders
    assert run(f"dense={good}", f"special={worse},{worst}", "--json", "--output", tmp_path / "out") == 0
    out = capsys.readouterr().out
    content = json.loads(out)
    assert content["baseline"] == "dense"
    assert {row["system"] for row in content["directions"]} == {"special"}
    assert [seed["result"] for seed in content["directions"][0]["seeds"]] == ["loss", "loss"]
    assert list(content["signature"]["inputs"]) == ["dense", "special, seed 1", "special, seed 2"]
    assert out == (tmp_path / "out" / "comparison.json").read_text(encoding="utf-8")


def test_copies_of_one_training_are_no_seeds(folders, refused, tmp_path, capsys):
    seeds = [write(tmp_path / f"seed-{n}", REFERENCES, checkpoint=of) for n, of in enumerate("aba")]
    said = refused(f"dense={seeds[0]},{seeds[2]}", f"special={folders[0]},{folders[1]}")
    assert "two seeds are one training" in said and "dense" in said
    assert run(f"dense={seeds[0]},{seeds[1]}", f"special={folders[0]},{folders[1]}") == 0
    assert "without a name or folder" in refused(f"dense={seeds[0]},", folders[1])


def test_folders_that_cannot_be_compared(folders, refused, tmp_path):
    good, worse, _ = folders
    assert "nothing to compare" in refused(good)
    assert "given twice" in refused(good, f"other={good}")
    assert "given twice" in refused(good, f"other={os.path.relpath(good)},{worse}")
    assert "two systems have one name" in refused(f"a={good}", f"a={worse}")
    assert "without a name" in refused(good, f"{good},{worse}")
    assert "without a name" in refused(good, "a=")
    assert "evaluate` to the end" in refused(good, tmp_path / "absent")
    fewer = write(tmp_path / "fewer", REFERENCES, ["en-de"])
    assert "only good has de-en" in refused(good, fewer)
    assert run(good, fewer, "--common-directions") == 0


@pytest.mark.parametrize(("lines", "message"), [("", "0 lines"), ("a\nb\n", "2 lines"), (None, "not found")])
def test_damaged_hypotheses(folders, refused, lines, message):
    path = folders[1] / "hypotheses" / "de-en.txt"
    if lines is None:
        path.unlink()
    else:
        path.write_text(lines, encoding="utf-8")
    error = refused(*folders)
    assert message in error
    assert str(path) in error


def test_hypotheses_changed_after_scoring(folders, refused):
    path = folders[1] / "hypotheses" / "de-en.txt"
    path.write_text("x\n" * len(REFERENCES), encoding="utf-8")
    assert "scores of an evaluation are not those of its texts" in refused(*folders)


def test_scores_changed_after_they_were_compared(folders, tmp_path, capsys):
    """The comparison is of the texts, and complete; the scores beside them may be another evaluation's."""
    assert run(*folders, "--output", tmp_path / "out") == 0
    places = [folder / "scores.json" for folder in folders]
    before = [place.read_text() for place in places]
    for at, of in ((0, 1), (1, 2)):
        places[at].write_text(before[of])
        capsys.readouterr()
        assert run(*folders, "--output", tmp_path / "out") == 2
        assert "not those that were compared" in capsys.readouterr().err
        places[at].write_text(before[at])
    assert run(*folders, "--output", tmp_path / "out") == 0


def test_a_folder_with_an_equals_sign(folders, tmp_path, capsys):
    odd = folders[1].rename(tmp_path / "lr=5")
    assert run(folders[0], odd) == 0
    assert "# lr=5 against good" in capsys.readouterr().out
