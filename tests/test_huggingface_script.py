"""scripts/huggingface/nllb.sh: what it refuses, which commands it runs, and all of them on a tiny model."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from neuron_spec.cli.main import COMMANDS

SCRIPT = Path(__file__).parents[1] / "scripts" / "huggingface" / "nllb.sh"


def run(*words: object, status: int = 0, **environment: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [str(SCRIPT), *map(str, words)], env={**os.environ, **environment}, capture_output=True, text=True
    )
    assert done.returncode == status, done.stderr[-3000:]
    return done


def commands(*words: object) -> list[list[str]]:
    return [line.split() for line in run("--dry-run", *words).stdout.splitlines()]


def value(words: list[str], flag: str) -> str:
    return words[words.index(flag) + 1]


def test_each_direction_of_the_pairs_is_trained_and_the_tuned_ones_get_deltas() -> None:
    found = commands(
        "--run", "R", "--pairs", "eng_Latn-deu_Latn,eng_Latn-zho_Hans", "--text", "/t/mine", "--k", "30"
    )
    assert {words[1] for words in found if words[0] == "neuron-spec"} <= {*COMMANDS}
    both = "eng_Latn-deu_Latn,deu_Latn-eng_Latn,eng_Latn-zho_Hans,zho_Hans-eng_Latn"
    joint, delta = (words for words in found if words[1] == "tune")
    assert (value(joint, "--lang-pairs"), value(joint, "--masks")) == (both, "R/masks-95.safetensors")
    assert value(delta, "--lang-pairs") == "eng_Latn-deu_Latn,deu_Latn-eng_Latn"
    assert value(delta, "--masks") == "R/masks-30.safetensors"
    for words in (joint, delta):
        assert value(words, "--hf") == "facebook/nllb-200-distilled-600M" and "--bf16" in words
    profile, *_ = found
    assert (value(profile, "--text"), value(profile, "--lang-pairs")) == ("/t/mine-valid", both)
    translated = [words for words in found if words[1] == "translate"]
    assert [(value(words, "--direction"), value(words, "--hf")) for words in translated[:3]] == [
        ("eng_Latn-deu_Latn", "facebook/nllb-200-distilled-600M"),
        ("eng_Latn-deu_Latn", "R/joint"),
        ("eng_Latn-deu_Latn", "facebook/nllb-200-distilled-600M"),
    ]
    assert len(translated) == 6 == sum("sacrebleu" in words for words in found)
    # The other way round reads the same two files, the other way round.
    assert value(translated[3], "--input") == "/t/mine-test.eng_Latn-deu_Latn.deu_Latn"
    assert "/t/mine-test.eng_Latn-deu_Latn.eng_Latn" in found[found.index(translated[3]) + 1]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--pairs en-de", "expected pairs such as eng_Latn-deu_Latn"),
        ("--tuned eng_Latn", "expected directions such as"),
        ("--updates 0", "got '0'"),
        ("--k 100", "got '100'"),
        ("--cpu", "unknown option: --cpu"),
        ("--smoke --text a", "leave out --text and --model"),
    ],
)
def test_bad_arguments_are_refused_before_anything_runs(words: str, said: str, tmp_path: Path) -> None:
    done = run("--run", tmp_path / "run", *words.split(), status=2)
    assert said in done.stderr and not done.stdout
    assert not (tmp_path / "run").exists()


def test_help_shows_every_option() -> None:
    text = run("--help").stdout
    for option in ("smoke", "text", "pairs", "tuned", "model", "updates", "k", "run", "dry-run"):
        assert f"--{option}" in text


@pytest.mark.experiment
@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("transformers") is None, reason="needs the extra huggingface")
def test_the_smoke_run_and_again(tmp_path: Path) -> None:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    words = ("--smoke", "--tuned", "eng_Latn-deu_Latn", "--run", tmp_path / "run")
    run(*words, PATH=path)
    losses = json.loads((tmp_path / "run" / "deltas" / "losses.json").read_text())
    for one, loss in losses["after"].items():
        assert (loss == losses["before"][one]) == (one != "eng_Latn-deu_Latn")
    scores = [*(tmp_path / "run" / "translations").rglob("*.json")]
    assert len(scores) == 3
    assert run(*words, PATH=path).stderr.count("complete already") >= 3
