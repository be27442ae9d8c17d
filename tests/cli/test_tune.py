"""neuron-spec tune and translate --hf, on a tiny model and parallel files."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "backends" / "huggingface"))
tiny_tokenizers = pytest.importorskip("tiny_tokenizers", reason="needs the extra huggingface")

from tiny_models import build, random_masks  # noqa: E402

from neuron_spec.cli.main import main  # noqa: E402

TO_DE, TO_EN, FR = "eng_Latn-deu_Latn", "deu_Latn-eng_Latn", "eng_Latn-fra_Latn"


@pytest.fixture(scope="module")
def files(tmp_path_factory: Any) -> Path:
    """A model, masks and text."""
    folder = tmp_path_factory.mktemp("tune")
    tokenizer = tiny_tokenizers.nllb()
    model = build(vocab_size=tiny_tokenizers.size(tokenizer))
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    for pair, (lang, code) in {TO_DE: ("de", "deu_Latn"), FR: ("fr", "fra_Latn")}.items():
        for of, name in (("en", "eng_Latn"), (lang, code)):
            (folder / f"text.{pair}.{name}").write_text(
                "\n".join(tiny_tokenizers.TEXT[of]) + "\n", encoding="utf-8"
            )
    random_masks(model, directions=[TO_DE, TO_EN, FR, "fra_Latn-eng_Latn"]).save(folder / "masks.safetensors")
    return folder


def tune(files: Path, output: Path, *more: str, mode: str = "delta", status: int = 0) -> None:
    text = str(files / "text")
    words = [
        "tune", "--hf", str(files / "model"), "--mode", mode, "--masks", str(files / "masks.safetensors"),
        "--text", text, "--valid", text, "--output", str(output), "--updates", "4", "--max-tokens", "60", "--cpu",
        "--lr", "0.01", "--save-interval-updates", "2", *more,
    ]  # fmt: skip
    assert main(words) == status


def test_deltas_are_trained_and_translate_and_nothing_else_changes(files, tmp_path, capsys):
    output = tmp_path / "deltas"
    tune(files, output, "--lang-pairs", TO_DE)
    losses = json.loads((output / "losses.json").read_text())
    before, after = losses["before"], losses["after"]
    assert after[TO_DE] < before[TO_DE]
    assert len(after) == 4 and all(after[one] == before[one] for one in after if one != TO_DE)
    assert sorted(path.name for path in output.glob("*.safetensors")) == [f"{TO_DE}.delta.safetensors"]

    model, delta = str(files / "model"), str(output / f"{TO_DE}.delta.safetensors")
    found = {}
    for one in (TO_DE, FR):
        for name, more in (("plain", []), ("delta", ["--delta", delta])):
            out = tmp_path / f"{one}.{name}"
            words = [
                "translate",
                "--hf",
                model,
                "--direction",
                one,
                "--input",
                str(files / f"text.{TO_DE}.eng_Latn"),
            ]
            assert main([*words, "--output", str(out), "--beam", "2", "--cpu", *more]) == 0
            found[one, name] = out.read_text(encoding="utf-8")
    assert found[FR, "plain"] == found[FR, "delta"]
    assert found[TO_DE, "plain"].count("\n") == 4

    # What is complete is left; with other arguments it is another training.
    capsys.readouterr()
    tune(files, output, "--lang-pairs", TO_DE)
    assert "complete already" in capsys.readouterr().err
    tune(files, output, "--lang-pairs", TO_DE, "--seed", "2", status=2)
    assert json.loads((output / "losses.json").read_text()) == losses


def test_a_training_that_was_ended_goes_on(files, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for output in (whole, parts):
        tune(files, output, mode="joint")
    wanted = json.loads((whole / "losses.json").read_text())
    # As if it had been killed behind its last checkpoint, before it wrote the model.
    for path in (parts / "losses.json", parts / "model.safetensors", parts / "neuron_masks.safetensors"):
        path.unlink()
    (parts / "losses-before.json").write_text(json.dumps(wanted["before"]))
    tune(files, parts, mode="joint")
    found = json.loads((parts / "losses.json").read_text())
    assert found["after"] == wanted["after"] and found["before"] == wanted["before"]
    assert all(wanted["after"][one] < wanted["before"][one] for one in wanted["after"])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--lang-pairs", "eng_Latn-xyz_Latn"], "no text of a direction"),
        (["--hf", "nowhere/model"], "transformers cannot load it"),
    ],
)
def test_bad_requests_end_with_one_message(files, tmp_path, capsys, words, said):
    tune(files, tmp_path / "out", *words, status=2)
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["translate", "--direction", "en-de"], "--path PATH, or --hf MODEL"),
        (["translate", "--hf", "m", "--path", "p", "--direction", "en-de"], "--path and --hf"),
        (["translate", "--hf", "m"], "no direction"),
        (["translate", "--hf", "m", "--direction", "en-de", "--max-len-a", "1"], "--max-len-a"),
        (["tune", "--hf", "m", "--mode", "delta", "--text", "t", "--output", "o"], "--masks FILE"),
    ],
)
def test_what_is_missing_or_not_heeded_is_said(words, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
