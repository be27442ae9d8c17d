"""neuron-spec tune and translate --hf, on a tiny model and parallel files."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "backends" / "huggingface"))
tiny_tokenizers = pytest.importorskip("tiny_tokenizers", reason="needs the extra huggingface")

from tiny_models import build, random_masks  # noqa: E402

from neuron_spec.artifacts import load_tensors  # noqa: E402
from neuron_spec.backends.huggingface import add_delta, load_delta, save_delta  # noqa: E402
from neuron_spec.backends.huggingface.directed_text import DirectedText  # noqa: E402
from neuron_spec.backends.huggingface.loading import load_model, load_tokenizer  # noqa: E402
from neuron_spec.backends.huggingface.text import of_files  # noqa: E402
from neuron_spec.backends.huggingface.training import text_loss  # noqa: E402
from neuron_spec.cli.main import main  # noqa: E402
from neuron_spec.neurons.counting import DTYPES  # noqa: E402
from neuron_spec.neurons.masks import NeuronMasks  # noqa: E402

pytestmark = pytest.mark.slow

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
    source, found = str(files / f"text.{TO_DE}.eng_Latn"), {}
    for name, more in (("plain", []), ("delta", ["--delta", delta])):
        out = tmp_path / name
        words = ["translate", "--hf", model, "--direction", TO_DE, "--input", source, "--beam", "2", "--cpu"]
        assert main([*words, "--output", str(out), *more]) == 0
        found[name] = out.read_text(encoding="utf-8")
    assert found["plain"].count("\n") == found["delta"].count("\n") == 4

    # What is complete is left; with other arguments it is another training.
    capsys.readouterr()
    tune(files, output, "--lang-pairs", TO_DE)
    assert "complete already" in capsys.readouterr().err
    tune(files, output, "--lang-pairs", TO_DE, "--seed", "2", status=2)
    assert json.loads((output / "losses.json").read_text()) == losses


@pytest.mark.parametrize("command", ["translate", "export"])
def test_a_direction_that_no_delta_is_of_is_refused(files, tmp_path, capsys, command):
    model, masks = build(vocab_size=tiny_tokenizers.size(tiny_tokenizers.nllb())), files / "masks.safetensors"
    deltas = []
    for one in (TO_DE, TO_EN):
        deltas.append(tmp_path / f"{one}.safetensors")
        save_delta(add_delta(model, one, NeuronMasks.load(masks)), one, deltas[-1])
    words = [
        command,
        "--hf",
        str(files / "model"),
        "--delta",
        *map(str, deltas),
        "--output",
        str(tmp_path / "out"),
    ]
    if command == "translate":
        words += ["--input", str(files / f"text.{TO_DE}.eng_Latn"), "--cpu"]
    else:
        words += ["--format", "safetensors"]
    assert main([*words, "--direction", FR]) == 2
    said = capsys.readouterr().err
    assert "no delta of the direction" in said and FR in said and f"one of {TO_DE}, {TO_EN}" in said
    assert not (tmp_path / "out").exists()
    assert main([*words, "--direction", TO_EN]) == 0


def test_all_directions_of_the_deltas_are_exported(files, tmp_path, capsys):
    model = build(vocab_size=tiny_tokenizers.size(tiny_tokenizers.nllb()))
    file, out = tmp_path / "delta.safetensors", tmp_path / "out"
    save_delta(add_delta(model, TO_DE, NeuronMasks.load(files / "masks.safetensors")), TO_DE, file)
    words = ["export", "--all", "--format", "safetensors", "--output", str(out)]
    assert main([*words, "--hf", str(files / "model"), "--delta", str(file)]) == 0
    assert [path.name for path in out.iterdir()] == [TO_DE]
    assert main([*words, "--path", str(file), "--delta", str(file)]) == 2
    assert "deltas are of models of Hugging Face" in capsys.readouterr().err


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_losses_are_of_the_deltas_as_they_are_in_the_files(files, tmp_path, dtype):
    """In half precision a delta is another one: what was measured is what is loaded, to the last bit."""
    tune(files, tmp_path / "out", "--lang-pairs", TO_DE, "--delta-dtype", dtype)
    model, file = load_model(files / "model", cpu=True), tmp_path / "out" / f"{TO_DE}.delta.safetensors"
    load_delta(model, file)
    text = DirectedText(of_files([str(files / "text")]), load_tokenizer(files / "model"), model)
    found = {
        str(one): round(loss.per_token, 6) for one, loss in text_loss(model, text, max_tokens=60).items()
    }
    assert found == json.loads((tmp_path / "out" / "losses.json").read_text())["after"]
    weights, _ = load_tensors(file, "delta")
    assert {value.dtype for value in weights.values() if value.is_floating_point()} == {DTYPES[dtype]}


def test_a_tuned_models_export_has_the_sentencepiece_model(files, tmp_path, capsys, monkeypatch):
    """transformers saves NLLB's tokenizer as tokenizer.json alone; specialized and plain, tuned again, and exported."""
    pytest.importorskip("ctranslate2", reason="needs the extra export")
    base = tmp_path / "base"
    tokenizer = tiny_tokenizers.nllb_with_pieces(base)
    model = build(vocab_size=tiny_tokenizers.size(tokenizer))
    model.save_pretrained(base)
    for name, more in (("specialized", ["--masks", str(files / "masks.safetensors")]), ("again", [])):
        words = [
            "tune",
            "--hf",
            str(base),
            "--mode",
            "joint",
            "--text",
            str(files / "text"),
            "--updates",
            "1",
            *more,
        ]
        assert main([*words, "--cpu", "--output", str(tmp_path / name)]) == 0
        assert (tmp_path / name / "sentencepiece.bpe.model").read_bytes() == (
            base / "sentencepiece.bpe.model"
        ).read_bytes()
    source = files / f"text.{TO_DE}.eng_Latn"
    for name in ("specialized", "again"):
        exported, text = tmp_path / f"{name}-exported", tmp_path / f"{name}.txt"
        words = ["export", "--hf", str(tmp_path / name), "--direction", TO_DE, "--format", "ctranslate2"]
        assert main([*words, "--output", str(exported)]) == 0
        words = ["translate", "--path", str(exported), "--direction", TO_DE, "--input", str(source), "--cpu"]
        assert main([*words, "--output", str(text)]) == 0
        assert text.read_text(encoding="utf-8").count("\n") == 4
    assert "--spm" not in capsys.readouterr().err


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
        (
            ["tune", "--hf", "m", "--mode", "joint", "--text", "t", "--output", "o", "--delta-dtype", "bf16"],
            "no deltas",
        ),
    ],
)
def test_what_is_missing_or_not_heeded_is_said(words, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def _ended_early(files, output, *more, mode: str = "delta") -> None:
    """A training that was ended behind its first checkpoint."""
    from neuron_spec.backends.huggingface.training import SpecializedTrainer

    def save(self, *given, **named):
        whole(self, *given, **named)
        raise KeyboardInterrupt

    whole = SpecializedTrainer._save_checkpoint
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SpecializedTrainer, "_save_checkpoint", save)
        tune(files, output, *more, mode=mode, status=130)
    assert (output / "checkpoints" / "checkpoint-2").is_dir()


@pytest.mark.parametrize(
    ("mode", "changed"),
    [("joint", "lr"), ("delta", "updates"), ("joint", "valid"), ("joint", "hf"), ("delta", "hf")],
)
def test_what_another_training_left_is_not_gone_on_with(files, tmp_path, capsys, mode, changed):
    output = tmp_path / "out"
    _ended_early(files, output, mode=mode)
    value = {"lr": "0.02", "updates": "6"}.get(changed)
    if changed == "valid":
        value = f"{TO_DE}={files}/text.{TO_DE}.eng_Latn,{files}/text.{TO_DE}.deu_Latn"
    elif changed == "hf":
        value = str(_of_other_weights(files, tmp_path))
    left = {path: path.stat().st_mtime_ns for path in output.rglob("*") if path.is_file()}
    tune(files, output, f"--{changed}", str(value), mode=mode, status=2)
    assert "another training is already here" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in output.rglob("*") if path.is_file()} == left
    tune(files, output, mode=mode)  # with its own it does


def _of_other_weights(files: Path, folder: Path) -> Path:
    from neuron_spec.backends.huggingface.loading import load_model, load_tokenizer

    model = load_model(files / "model", cpu=True)
    with torch.no_grad():
        model.get_encoder().layers[0].fc1.weight.mul_(2)
    for part in (model, load_tokenizer(files / "model")):
        part.save_pretrained(folder / "other")
    return folder / "other"


@pytest.mark.parametrize("mode", ["joint", "delta"])
def test_a_folder_that_holds_something_else_is_left(files, tmp_path, capsys, mode):
    """Such as the model that is to be tuned."""
    model = tmp_path / "model"
    shutil.copytree(files / "model", model)
    before = {path.name: path.read_bytes() for path in model.iterdir()}
    tune(files, model, "--hf", str(model), mode=mode, status=2)
    assert "something is already here" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in model.iterdir()} == before


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused_before_work_starts(files, tmp_path, capsys, bad):
    from neuron_spec.backends.huggingface.loading import load_model, load_tokenizer

    model, damaged, output = (
        load_model(files / "model", cpu=True),
        str(tmp_path / "damaged"),
        tmp_path / "out",
    )
    with torch.no_grad():
        model.get_decoder().layers[1].fc2.weight[1, 2] = bad
    for part in (model, load_tokenizer(files / "model")):
        part.save_pretrained(damaged)
    source, text = str(files / f"text.{TO_DE}.eng_Latn"), str(files / "text")
    words = ["--hf", damaged, "--output", str(output)]
    for more in (
        ["tune", "--mode", "joint", "--text", text, "--cpu"],
        ["translate", "--direction", TO_DE, "--input", source, "--cpu"],
        ["export", "--direction", TO_DE, "--format", "safetensors"],
        ["profile", "--text", text, "--cpu"],
    ):
        assert main([more[0], *words, *more[1:]]) == 2
        said = capsys.readouterr().err
        assert "weights that are not numbers" in said and "decoder.layers.1.fc2.weight" in said
        assert not output.exists()
