"""An exported direction is the model's: the same log-probabilities, and the translations of ``generate``."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import tiny_tokenizers
import torch
from converted import quickstart
from test_huggingface_deltas import with_deltas
from tiny_models import build, random_masks, transformers
from tiny_tokenizers import TEXT

from neuron_spec.artifacts import load_tensors, read_json
from neuron_spec.backends.huggingface import (
    direction,
    export,
    merge_delta,
    profile,
    save_specialized,
    specialize,
)
from neuron_spec.cli.main import main
from neuron_spec.errors import ArtifactError, DirectionError, ModelError
from neuron_spec.export.folder import MODEL_JSON, PIECES, WEIGHTS, ExportFolder, Pieces
from neuron_spec.neurons.selection import select

ctranslate2 = pytest.importorskip("ctranslate2", reason="needs the extra export")

LINES = [
    "The light is on.",
    "Unable to connect",
    "The device is already configured.",
    "Enter the host name or the IP address of your device.",
    "Turn off the lights in the kitchen",
    "Battery level",
    "Invalid authentication",
    "The password of the user",
]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return tiny_tokenizers.m2m_100(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    return quickstart(tmp_path_factory.mktemp("quickstart"))


def log_probabilities(model: Any, tokenizer: Any, source: str, target: str, asked: str) -> list[float]:
    tokenizer.src_lang, tokenizer.tgt_lang = asked.split("-")
    inputs = tokenizer([source], text_target=[target], return_tensors="pt")
    with torch.no_grad(), direction(model, asked):
        found = model(**inputs).logits.log_softmax(-1)
    return found.gather(2, inputs["labels"].unsqueeze(2)).flatten().tolist()


def of_export(folder: Path, tokenizer: Any, source: str, target: str, asked: str) -> list[float]:
    tokens = []
    for text, code in zip((source, target), asked.split("-"), strict=True):
        tokens.append([f"__{code}__", *tokenizer.tokenize(text)])
    translator = ctranslate2.Translator(str(folder), device="cpu", intra_threads=1)
    (found,) = translator.score_batch([tokens[0]], [tokens[1]])
    return list(found.log_probs)


def models(kind: str, size: int) -> Any:
    """A model with masks, or deltas, and what is in it of M2M-100's kind."""
    name, _, how = kind.partition(" ")
    if how == "deltas":
        return with_deltas(name, vocab_size=size)
    model = build(name, vocab_size=size, scale_embedding=how != "zero")
    if name == "mbart":
        model.final_logits_bias.normal_()
    return specialize(
        model,
        None if how == "plain" else random_masks(model),
        dropped_neurons=how if how in ("zero", "frozen") else "bias",
    )


@pytest.mark.parametrize(
    "kind",
    ["m2m_100 bias", "m2m_100 zero", "m2m_100 frozen", "m2m_100 plain", "m2m_100 deltas", "mbart bias"],
)
def test_log_probabilities_are_the_same(kind, tokenizer, tmp_path):
    model = models(kind, tiny_tokenizers.size(tokenizer))
    for asked in ("en-de", "de-en"):
        source, target = TEXT[asked[:2]][0], TEXT[asked[-2:]][0]
        export(model, tokenizer, asked, tmp_path / asked)
        wanted = log_probabilities(model, tokenizer, source, target, asked)
        found = of_export(tmp_path / asked, tokenizer, source, target, asked)
        assert found == pytest.approx(wanted, abs=1e-4)
        said = ExportFolder.read(tmp_path / asked)
        assert (said.source_tag, said.target_tag) == tuple(f"__{code}__" for code in asked.split("-"))
        assert said.max_source_positions == 64 and not said.scores_tag


def translations(model: Any, tokenizer: Any, asked: str) -> list[str]:
    source, target = asked.split("-")
    tokenizer.src_lang, found = source, []
    how = {"num_beams": 5, "early_stopping": True, "do_sample": False, "max_length": 202}
    for line in LINES:
        with torch.no_grad(), direction(model, asked):
            tokens = model.generate(
                **tokenizer([line], return_tensors="pt"),
                forced_bos_token_id=tokenizer.get_lang_id(target),
                **how,
            )
        found.append(tokenizer.decode(tokens[0, 2:], skip_special_tokens=True).strip())
    return found


def test_translations_are_those_of_generate(trained, tmp_path, monkeypatch, capsys):
    """Of the small model that is shipped, dense and with masks, by the commands."""
    model, tokenizer = trained
    text = {"en-de": [(line, line) for line in LINES], "en-nl": [(line, line) for line in LINES]}
    masks = select(profile(model, text, tokenizer), k=97)
    specialize(model, masks)
    save_specialized(model, tmp_path / "model", tokenizer)
    command = ["export", "--hf", str(tmp_path / "model"), "--all", "--format", "ctranslate2"]
    assert main([*command, "--output", str(tmp_path / "out")]) == 0
    assert "of 1536" in capsys.readouterr().err
    for asked in ("en-de", "en-nl"):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO("\n".join(LINES).encode())))
        words = ["translate", "--path", str(tmp_path / "out"), "--direction", asked, "--cpu"]
        assert main(words) == 0
        found = capsys.readouterr().out.splitlines()
        assert found == translations(model, tokenizer, asked)
        assert len({*found}) == len(LINES)
    assert main([*command, "--output", str(tmp_path / "out")]) == 0
    assert "complete already" in capsys.readouterr().err
    assert main([*command, "--output", str(tmp_path / "out"), "--quantization", "int8"]) == 2
    assert "another export is already here" in capsys.readouterr().err


def test_a_delta_and_what_it_is_merged_into_are_exported_the_same(tokenizer, tmp_path):
    model = with_deltas(vocab_size=tiny_tokenizers.size(tokenizer))
    export(model, tokenizer, "en-de", tmp_path / "routed", format="safetensors")
    export(merge_delta(model, "en-de"), tokenizer, "en-de", tmp_path / "merged", format="safetensors")
    found = [load_tensors(tmp_path / name / WEIGHTS, "weights")[0] for name in ("routed", "merged")]
    assert found[0].keys() == found[1].keys()
    assert all(torch.equal(value, found[1][key]) for key, value in found[0].items())
    tied = read_json(tmp_path / "routed" / MODEL_JSON, "model")["tied"]
    assert tied == dict.fromkeys(
        ("decoder.embed_tokens.weight", "decoder.output_projection.weight"), "encoder.embed_tokens.weight"
    )


def test_the_pieces_are_the_tokenizers(tokenizer, tmp_path):
    export(build(vocab_size=tiny_tokenizers.size(tokenizer)), tokenizer, "en-de", tmp_path / "out")
    pieces = Pieces(tmp_path / "out" / PIECES)
    assert all(pieces.of(line) == tokenizer.tokenize(line) for lines in TEXT.values() for line in lines)


def test_nllb_is_exported_and_translated_without_a_sentencepiece_model(tmp_path, capsys):
    nllb = tiny_tokenizers.nllb()
    model = build(vocab_size=len(nllb))
    export(model, nllb, "eng_Latn-deu_Latn", tmp_path / "out")
    assert (
        ExportFolder.read(tmp_path / "out").target_tag == "deu_Latn"
        and not (tmp_path / "out" / PIECES).exists()
    )
    nllb.src_lang, nllb.tgt_lang = "eng_Latn", "deu_Latn"
    inputs = nllb([TEXT["en"][0]], text_target=[TEXT["de"][0]], return_tensors="pt")
    with torch.no_grad():
        wanted = model(**inputs).logits.log_softmax(-1).gather(2, inputs["labels"].unsqueeze(2)).flatten()
    for part in (model, nllb):
        part.save_pretrained(tmp_path / "model")  # tokenizer.json alone
    command = ["export", "--hf", str(tmp_path / "model"), "--format", "ctranslate2"]
    command += ["--direction", "eng_Latn-deu_Latn", "--output", str(tmp_path / "theirs")]
    assert main(command) == 0
    assert "to translate text, name one with --spm" in capsys.readouterr().err
    translator = ctranslate2.Translator(str(tmp_path / "out"), device="cpu", intra_threads=1)
    source, target = (nllb.convert_ids_to_tokens(inputs[key][0])[:-1] for key in ("input_ids", "labels"))
    (found,) = translator.score_batch([source], [target])
    assert list(found.log_probs) == pytest.approx(wanted.tolist(), abs=1e-4)


def test_what_cannot_be_exported_is_refused(tokenizer, tmp_path):
    size, out = tiny_tokenizers.size(tokenizer), tmp_path / "out"
    for kind in ("bart", "marian"):
        with pytest.raises(ModelError, match=f"cannot be exported(.|\n)*{kind}"):
            export(build(kind, vocab_size=size), tokenizer, "en-de", out)
    with pytest.raises(ModelError, match="starts with token 1"):
        export(build(vocab_size=size, decoder_start_token_id=1), tokenizer, "en-de", out)
    model = build(vocab_size=size)
    with pytest.raises(DirectionError, match="no such language code"):
        export(model, tokenizer, "en-deu", out)
    with pytest.raises(DirectionError, match="en-nl"):
        export(specialize(build(vocab_size=size), random_masks(model)), tokenizer, "en-nl", out)
    nllb = tiny_tokenizers.nllb()
    legacy = transformers.NllbTokenizer(vocab=nllb._vocab, merges=nllb._merges, legacy_behaviour=True)
    with pytest.raises(ModelError, match=r"elsewhere(.|\n)*legacy_behaviour"):
        export(build(vocab_size=len(nllb)), legacy, "eng_Latn-deu_Latn", out)
    shipped = Path(__file__).parents[3] / "data" / "quickstart" / "sentencepiece.model"
    with pytest.raises(ArtifactError, match="of another vocabulary"):
        export(model, tokenizer, "en-de", out, spm=shipped)
    assert not out.exists()
    out.mkdir()
    (out / "file").write_text("mine")
    with pytest.raises(ArtifactError, match="something is already here"):
        export(model, tokenizer, "en-de", out)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--direction", "en-de", "--format", "fairseq"], "no checkpoint for fairseq"),
        (
            ["--direction", "en-de", "--format", "ctranslate2", "--missing-direction", "dense"],
            "--missing-direction",
        ),
        (["--all", "--format", "ctranslate2"], "name them with --direction"),
        (["--direction", "ende", "--format", "ctranslate2"], "malformed direction"),
        (["--direction", "en-de", "--format", "safetensors", "--quantization", "int8"], "CTranslate2 alone"),
    ],
)
def test_flags_that_cannot_be_heeded_are_refused(words, said, tokenizer, tmp_path, capsys):
    build(vocab_size=tiny_tokenizers.size(tokenizer)).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    assert main(["export", "--hf", str(tmp_path / "model"), "--output", str(tmp_path / "out"), *words]) == 2
    assert said in capsys.readouterr().err and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "how", [{"format": "onnx"}, {"quantization": "int4"}, {"format": "safetensors", "quantization": "int8"}]
)
def test_formats_that_there_are_not_are_refused(tokenizer, tmp_path, how):
    with pytest.raises(ModelError, match="no such"):
        export(build(), tokenizer, "en-de", tmp_path / "out", **how)
    assert not (tmp_path / "out").exists()
