"""What is saved beside a model comes back as it was, and nothing is loaded that does not belong together."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny_tokenizers
import torch
from tiny_models import DIRECTIONS, batch, build, random_masks, transformers
from tiny_tokenizers import TEXT

from neuron_spec.backends.huggingface import (
    direction,
    load_specialized,
    profile,
    save_specialized,
    specialize,
    unspecialize,
)
from neuron_spec.backends.huggingface.loading import CARD, MASKS, load_model, load_tokenizer, model_card
from neuron_spec.backends.huggingface.profiling import signed_profile
from neuron_spec.cli.main import main
from neuron_spec.errors import ArtifactError, ModelError
from neuron_spec.neurons.activations import ActivationCounts
from neuron_spec.neurons.masks import NeuronMasks


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model and its tokenizer in a folder."""
    folder = tmp_path_factory.mktemp("dense")
    tokenizer = tiny_tokenizers.m2m_100(tmp_path_factory.mktemp("tokenizer"))
    build(vocab_size=tiny_tokenizers.size(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prefix of parallel files, de-en and en-fr."""
    folder = tmp_path_factory.mktemp("text")
    for pair, code in (("de-en", "de"), ("de-en", "en"), ("en-fr", "en"), ("en-fr", "fr")):
        (folder / f"dev.{pair}.{code}").write_text("\n".join(TEXT[code]) + "\n", encoding="utf-8")
    return folder / "dev"


def outputs(model: Any, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    found = {}
    for one in DIRECTIONS:
        with torch.no_grad(), direction(model, one):
            found[one] = model(**inputs).logits
    return found


@pytest.mark.parametrize("dropped", ["bias", "zero"])
def test_a_specialized_model_is_saved_and_loaded_exactly(tmp_path, dropped):
    model, inputs = build(), batch()
    specialize(model, random_masks(model), dropped_neurons=dropped)
    wanted = outputs(model, inputs)
    save_specialized(model, tmp_path)
    loaded = load_specialized(tmp_path)
    assert type(loaded) is type(model) and not loaded.training
    for one, found in outputs(loaded, inputs).items():
        assert torch.equal(found, wanted[one])
    half = load_specialized(tmp_path, dtype=torch.bfloat16)
    assert half.dtype == torch.bfloat16
    as_plain = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path)
    unspecialize(model)
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in as_plain.state_dict().items())
    assert load_specialized(tmp_path, model_class=transformers.M2M100ForConditionalGeneration)


def test_masks_are_bits_with_a_signature_and_a_card(tmp_path):
    model = build()
    masks = random_masks(model)
    masks.metadata = {"method": "cumulative", "signature": {"stage": "select"}}
    save_specialized(specialize(model, masks), tmp_path)
    loaded = NeuronMasks.load(tmp_path / MASKS)
    assert loaded.fingerprint == masks.fingerprint and loaded.metadata["signature"]["stage"] == "select"
    assert (tmp_path / MASKS).stat().st_size < 1500
    card = (tmp_path / CARD).read_text(encoding="utf-8")
    assert card.startswith("---\nlibrary_name: transformers\n") and "`cumulative`" in card
    kept = 100 * (1 - sum(float(of[1]) for of in masks.sparsity().values()) / 4)
    assert f"| de-en | {kept:.1f} |" in card
    assert json.loads((tmp_path / MASKS).with_suffix(".json").read_text())["directions"] == DIRECTIONS


def test_what_does_not_belong_together_is_refused(tmp_path):
    model = build()
    save_specialized(specialize(model, random_masks(model)), tmp_path / "a")
    other = build(seed=2)
    save_specialized(specialize(other, random_masks(other)), tmp_path / "b")
    shutil.copy(tmp_path / "a" / MASKS, tmp_path / "b" / MASKS)
    with pytest.raises(ModelError, match="saved with other weights"):
        load_specialized(tmp_path / "b")
    load_specialized(tmp_path / "b", allow_other_checkpoint=True)
    (tmp_path / "b" / MASKS).unlink()
    with pytest.raises(ArtifactError, match="not found"):
        load_specialized(tmp_path / "b")
    with pytest.raises(ArtifactError, match="snapshot_download"):
        load_specialized("someone/a-model")
    (tmp_path / "a" / "config.json").unlink()
    with pytest.raises(ArtifactError, match="cannot load"):
        load_specialized(tmp_path / "a")
    with pytest.raises(ModelError, match="without masks"):
        save_specialized(specialize(unspecialize(model)), tmp_path / "c")
    with pytest.raises(ModelError, match="call specialize"):
        save_specialized(build(), tmp_path / "c")
    assert not (tmp_path / "c").exists()


# Through the command


def test_a_folder_with_code_runs_none_and_asks_for_nothing(dense, tmp_path, monkeypatch):
    """transformers would ask on standard input, of which the first line may be a text such as y."""
    ran, folder = tmp_path / "ran", tmp_path / "model"
    shutil.copytree(dense, folder)
    (folder / "theirs.py").write_text(f"open({str(ran)!r}, 'w')\nclass Theirs: pass\n")
    for file, kinds in (
        ("config.json", ("AutoConfig", "AutoModelForSeq2SeqLM")),
        ("tokenizer_config.json", ("AutoTokenizer",)),
    ):
        config = json.loads((folder / file).read_text())
        named = dict.fromkeys(kinds, "theirs.Theirs" if "Tok" not in kinds[0] else ["theirs.Theirs", None])
        theirs = {"model_type": "theirs", "tokenizer_class": "Theirs", "auto_map": named}
        (folder / file).write_text(json.dumps({**config, **theirs}))
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    for load in (load_model, load_tokenizer):
        with pytest.raises(ArtifactError, match="transformers cannot load it"):
            load(folder)
    assert not ran.exists()


class Payload:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_weights_with_a_payload_are_not_run(dense, tmp_path):
    ran, folder = tmp_path / "ran", tmp_path / "model"
    shutil.copytree(dense, folder)
    (folder / "model.safetensors").unlink()
    torch.save({"model.shared.weight": Payload(ran)}, folder / "pytorch_model.bin")
    with pytest.raises(ArtifactError, match="transformers cannot load it") as error:
        load_model(folder)
    assert "weights_only" not in str(error.value)
    assert not ran.exists()
    for option in ("trust_remote_code", "weights_only"):
        with pytest.raises(ModelError, match="code in a folder"):
            load_specialized(dense, **{option: option == "trust_remote_code"})


def test_a_card_has_no_markup_of_others(tmp_path):
    model = build()
    masks = random_masks(model)
    evil = "x`\n<script>\n---\nlicense: mit"
    specialize(model, NeuronMasks(masks.directions, masks.kept, {"method": evil}))
    model.config._name_or_path = f"a/b\n{evil}"
    assert not any(part in model_card(model) for part in ("<", "license", "a/b"))


def run(*words: object) -> int:
    return main(list(map(str, words)))


def test_profile_select_and_analyze_by_their_commands(dense, text, tmp_path, capsys):
    output = tmp_path / "p.safetensors"
    command = ("profile", "--hf", dense, "--text", text, "--output", output, "--cpu")
    assert run(*command, "--max-tokens", 60) == 0
    found = ActivationCounts.load(output)
    assert found.names == ["de-en", "en-de", "en-fr", "fr-en"]
    tokenizer = transformers.AutoTokenizer.from_pretrained(dense)
    pairs = {one: tuple(TEXT[code] for code in one.split("-")) for one in found.names}
    wanted = profile(load_model(dense, cpu=True), pairs, tokenizer)
    assert all(torch.equal(found.counts[layer], wanted.counts[layer]) for layer in wanted.counts)
    assert found.metadata["checkpoint_sha256"] == wanted.metadata["checkpoint_sha256"]
    assert found.metadata["signature"]["inputs"] == wanted.metadata["signature"]["inputs"]
    capsys.readouterr()
    assert run(*command) == 0
    assert "complete already" in capsys.readouterr().err
    for more in (["--lang-pairs", "en-de"], ["--bf16"], ["--part", "1/2"], ["--count-padding"]):
        assert run(*command, *more) == 2
        assert "another profile is already here" in capsys.readouterr().err
    signed = signed_profile(load_model(dense, cpu=True), pairs, tokenizer)["signature"]
    assert all(signed[key] == found.metadata["signature"][key] for key in ("inputs", "parameters"))
    assert run("select", output, "--output", tmp_path / "m.safetensors", "--k", 80) == 0
    masks = NeuronMasks.load(tmp_path / "m.safetensors")
    specialize(load_model(dense, cpu=True), masks)
    with pytest.raises(ModelError, match="other weights"):
        specialize(build(seed=2, vocab_size=tokenizer.encoder_size + 108), masks)
    halves = [tmp_path / f"half-{i}.safetensors" for i in (1, 2)]
    for i, half in enumerate(halves, start=1):
        assert (
            run("profile", "--hf", dense, "--text", text, "--output", half, "--cpu", "--part", f"{i}/2") == 0
        )
    words = ("--profile", *halves, "--output", tmp_path / "analysis", "--group", "all", "--permutations", 20)
    assert run("analyze", tmp_path / "m.safetensors", *words) == 0
    assert (tmp_path / "analysis" / "analysis.json").is_file()


@pytest.mark.parametrize("changed", ["tokenizer", "config", "positions"])
def test_a_profile_knows_the_tokenizer_and_the_configuration(changed, dense, text, tmp_path, capsys):
    """The same weights and lines, but other tokens or another pass: another profile."""
    output, other = tmp_path / "p.safetensors", tmp_path / "other"
    command = ("profile", "--text", text, "--output", output, "--cpu")
    assert run(*command, "--hf", dense) == 0
    model, tokenizer = load_model(dense, cpu=True), load_tokenizer(dense)
    model.save_pretrained(other), tokenizer.save_pretrained(other)
    assert run(*command, "--hf", other) == 0  # saved again it is the same
    assert "complete already" in capsys.readouterr().err
    if changed == "tokenizer":
        said = json.loads((other / "vocab.json").read_text(encoding="utf-8"))
        first, second = (next(key for key, value in said.items() if value == i) for i in (10, 11))
        said |= {first: 11, second: 10}
        (other / "vocab.json").write_text(json.dumps(said), encoding="utf-8")
    else:
        said = json.loads((other / "config.json").read_text(encoding="utf-8"))
        said |= {"scale_embedding": False} if changed == "config" else {"max_position_embeddings": 12}
        (other / "config.json").write_text(json.dumps(said), encoding="utf-8")
    before = output.read_bytes()
    assert run(*command, "--hf", other) == 2
    message = capsys.readouterr().err
    assert "another profile is already here" in message and output.read_bytes() == before
    assert {"tokenizer": "tokens_sha256", "config": "config_sha256", "positions": "tokens_sha256"}[
        changed
    ] in message


def test_some_directions_alone_and_a_model_that_has_masks(dense, text, tmp_path):
    output = tmp_path / "p.safetensors"
    model = load_model(dense, cpu=True)
    save_specialized(specialize(model, random_masks(model), dropped_neurons="zero"), tmp_path / "model")
    tokenizer = transformers.AutoTokenizer.from_pretrained(dense)
    tokenizer.save_pretrained(tmp_path / "model")
    command = (
        "profile",
        "--hf",
        tmp_path / "model",
        "--output",
        output,
        "--cpu",
        "--lang-pairs",
        "en-fr,de-en",
    )
    assert (
        run(*command, "--text", f"de-en={text}.de-en.{{de,en}}", f"en-fr={text}.en-fr.en,{text}.en-fr.fr")
        == 0
    )
    found = ActivationCounts.load(output)
    assert found.names == ["en-fr", "de-en"]
    kept = random_masks(model).kept["encoder.layers.0"]
    assert bool((found.counts["encoder.layers.0"][1][~kept[1]] == 0).all())


@pytest.mark.parametrize(("words", "said"), [
    (["--hf", "DENSE"], "--hf MODEL --text FILES"),
    (["--text", "TEXT"], "--hf MODEL --text FILES"),
    ([], "neither"),
    (["--hf", "DENSE", "--text", "TEXT", "--num-workers", "0"], "--num-workers"),
    (["--hf", "DENSE", "--text", "TEXT", "--gen-subset", "test"], "--gen-subset"),
    (["--hf", "DENSE", "--text", "TEXT", "--", "--fp16"], "--"),
    (["DENSE", "--hf", "DENSE", "--text", "TEXT"], "DATA_BIN"),
    (["DENSE", "--path", "MODEL", "--active-rule", "gate"], "--active-rule"),
    (["--hf", "DENSE", "--text", "TEXT", "--active-rule", "gate"], "have no gate"),
    (["--hf", "nothing/here", "--text", "TEXT"], "transformers cannot load it"),
    (["--hf", "FOLDER", "--text", "TEXT"], "transformers cannot load it"),
    (["--hf", "DENSE", "--text", "nowhere"], "no parallel files"),
    (["--hf", "DENSE", "--text", "TEXT", "--lang-pairs", "en-xx"], "no text of a direction"),
    (["--hf", "DENSE", "--text", "en-xy=FILE.en,FILE.de"], "no such language code"),
])  # fmt: skip
def test_what_cannot_be_heeded_is_refused_in_one_message(words, said, dense, text, tmp_path, capsys):
    places = {"DENSE": dense, "TEXT": text, "FOLDER": tmp_path, "MODEL": dense / "model.safetensors"}
    words = [str(places.get(word, word)).replace("FILE", f"{text}.de-en") for word in words]
    output = tmp_path / "p.safetensors"
    flags = words if "--" not in words else words[: words.index("--")]
    assert run("profile", *flags, "--output", output, "--cpu", *words[len(flags) :]) == 2
    message = capsys.readouterr().err
    assert said in message and "Traceback" not in message and not output.exists()
