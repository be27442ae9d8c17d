"""Ablating a model of transformers is ablating the checkpoint that it was converted from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny_tokenizers
import torch
from converted import m2m_100
from test_huggingface_profiling import of_fairseq as of_fairseq  # a fixture
from tiny_models import build, random_masks, rows
from tiny_tokenizers import TEXT

from neuron_spec.backends.huggingface import save_specialized, specialize
from neuron_spec.backends.huggingface.directed_text import DirectedText
from neuron_spec.cli.main import main
from neuron_spec.directions import parse_directions
from neuron_spec.errors import ModelError
from neuron_spec.neurons.masks import NeuronMasks
from neuron_spec.studies.ablation.huggingface import HuggingFaceAblator
from neuron_spec.studies.ablation.measure import Ablator, choose


def test_losses_are_those_of_fairseqs_backend(workshop, checkpoint, of_fairseq):
    model, text = of_fairseq
    theirs = m2m_100(model.state_dict(), heads=2)
    masks = random_masks(theirs, directions=list(text))
    flags = ["--langs", ",".join(workshop.langs), "--encoder-langtok", "src", "--decoder-langtok"]
    wanted = Ablator(
        checkpoint, workshop.data_bin, parse_directions(list(text)), "valid", token_flags=flags, cpu=True,
        with_tag=True,  # tokens without a tokenizer are all text
    )  # fmt: skip
    found = HuggingFaceAblator(theirs, DirectedText(text, None, theirs), max_tokens=300)
    assert list(found.tokens) == wanted.tokens and found.batches > len(text)
    one, *_ = choose(masks, fraction=0.3).values()
    intact = found.losses({})
    for neurons in ({}, one):
        assert found.losses(neurons) == pytest.approx(wanted.losses(neurons), abs=2e-5)
    assert max(abs(a - b) for a, b in zip(found.losses(one), intact, strict=True)) > 1e-3
    assert found.losses({}) == intact  # nothing stays switched off


def test_a_specialized_model_keeps_its_own_masks():
    model = build()
    masks = random_masks(model)
    text = DirectedText(
        {one: rows(6) for one in masks.names}, None, specialize(model, masks, dropped_neurons="zero")
    )
    off = {layer: ~kept[0] for layer, kept in masks.kept.items()}  # what en-de drops anyway
    ablator = HuggingFaceAblator(model, text, max_tokens=100)
    intact, without = ablator.losses({}), ablator.losses(off)
    assert without[0] == pytest.approx(intact[0], abs=1e-6)
    assert max(abs(a - b) for a, b in zip(intact[1:], without[1:], strict=True)) > 1e-4


def test_a_loss_that_is_no_number_is_refused():
    model = build()
    text = DirectedText({"en-de": rows(4), "de-en": rows(4)}, None, model)
    with torch.no_grad():
        model.lm_head.weight[3, 3] = float("nan")
    with pytest.raises(ModelError, match="not a number"):
        HuggingFaceAblator(model, text, max_tokens=100).losses({})


# Through the command


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model and its tokenizer, text, and masks of its profile."""
    folder = tmp_path_factory.mktemp("ablation")
    tokenizer = tiny_tokenizers.nllb()
    build(vocab_size=tiny_tokenizers.size(tokenizer)).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    for lang, code in (("de", "deu_Latn"), ("fr", "fra_Latn")):
        for of, name in (("en", "eng_Latn"), (lang, code)):
            path = folder / f"dev.eng_Latn-{code}.{name}"
            path.write_text("\n".join(TEXT[of]) + "\n", encoding="utf-8")
    words = ["--hf", folder / "model", "--text", folder / "dev", "--cpu"]
    assert run("profile", *words, "--output", folder / "p.safetensors") == 0
    assert run("select", folder / "p.safetensors", "--k", 70, "--output", folder / "m.safetensors") == 0
    return folder


def run(*words: object) -> int:
    return main(list(map(str, words)))


def ablate(files: Path, output: Path, *more: object) -> int:
    words: list[Any] = [
        "ablate",
        "--hf",
        files / "model",
        "--text",
        files / "dev",
        "--masks",
        files / "m.safetensors",
    ]
    return run(*words, "--output", output, "--cpu", "--random-draws", 1, *more)


def test_profile_select_ablate_and_what_is_complete_is_left(files, tmp_path, capsys):
    assert ablate(files, tmp_path / "a") == 0
    found = json.loads((tmp_path / "a" / "ablation.json").read_text(encoding="utf-8"))
    four = ["deu_Latn-eng_Latn", "eng_Latn-deu_Latn", "eng_Latn-fra_Latn", "fra_Latn-eng_Latn"]
    assert sorted(found["tokens"]) == sorted(found["change"]) == four
    assert found["own_set"] == {one: one for one in four}
    assert found["groups"]["en->x"]["own"] is not None and all(loss > 0 for loss in found["intact"].values())
    assert {path.name for path in (tmp_path / "a").iterdir()} >= {
        "ablation.md",
        "ablation.csv",
        "ablation.png",
    }
    capsys.readouterr()
    assert ablate(files, tmp_path / "a") == 0
    assert "complete already" in capsys.readouterr().err
    assert ablate(files, tmp_path / "a", "--bf16") == 2
    assert "another ablation is already here" in capsys.readouterr().err
    rows_left = {path: path.stat().st_mtime_ns for path in (tmp_path / "a" / "rows").iterdir()}
    (tmp_path / "a" / "ablation.json").unlink()  # as if it had been killed at the end
    assert ablate(files, tmp_path / "a") == 0
    assert {path: path.stat().st_mtime_ns for path in rows_left} == rows_left


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--tag", "kept"], "--tag"),
        (["--gen-subset", "test"], "--gen-subset"),
        (["--lang-pairs", "eng_Latn-deu_Latn"], "nothing to compare"),
        (["--lang-pairs", "eng_Latn-deu_Latn,eng_Latn-spa_Latn"], "no text of a direction"),
        (["--masks", "OTHER"], "directions without masks"),
        (["--hf", "OTHER_MODEL"], "profile of other weights"),
    ],
)
def test_what_cannot_be_ablated_is_refused_in_one_message(files, tmp_path, capsys, more, said):
    masks = NeuronMasks.load(files / "m.safetensors")
    masks.of(masks.directions[:1]).save(tmp_path / "one.safetensors")
    other = build(seed=2, vocab_size=tiny_tokenizers.size(tiny_tokenizers.nllb()))
    if "OTHER_MODEL" in more:
        other.save_pretrained(tmp_path / "other")
        tiny_tokenizers.nllb().save_pretrained(tmp_path / "other")
    if "OTHER" in more:
        more = [*more, "--lang-pairs", "eng_Latn-deu_Latn,deu_Latn-eng_Latn"]
    places = {"OTHER": tmp_path / "one.safetensors", "OTHER_MODEL": tmp_path / "other"}
    assert ablate(files, tmp_path / "out", *(places.get(word, word) for word in more)) == 2
    assert said in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_a_specialized_model_is_taken_with_the_masks_of_its_base(files, tmp_path):
    from neuron_spec.backends.huggingface.loading import load_model, load_tokenizer

    masks = NeuronMasks.load(files / "m.safetensors")
    model = specialize(load_model(files / "model", cpu=True), masks)
    with torch.no_grad():  # as training moves it
        model.get_encoder().layers[0].fc2.weight.mul_(1.1)
    save_specialized(model, tmp_path / "model", load_tokenizer(files / "model"))
    assert ablate(files, tmp_path / "out", "--hf", tmp_path / "model") == 0
    found = json.loads((tmp_path / "out" / "ablation.json").read_text(encoding="utf-8"))
    assert found["signature"]["parameters"]["checkpoint"] == "specialized"
