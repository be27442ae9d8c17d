"""Further languages for a trained model, and directions that are profiled on it: what was there stays, bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from neuron_spec.backends.fairseq.checkpoints import carried_masks, read_checkpoint, task_args, weights_sha256
from neuron_spec.backends.fairseq.growing import add_languages
from neuron_spec.backends.fairseq.loading import TeacherForced
from neuron_spec.cli.main import main
from neuron_spec.corpora import build, toy
from neuron_spec.errors import ArtifactError, DirectionError, ModelError
from neuron_spec.neurons.masks import NeuronMasks

PAIRS = "en-qa,qb-en"
NEW = "en-qn,qn-en"


@pytest.fixture(scope="module")
def new_corpus(data_bin: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus of a language that the tiny models do not know, in their pieces."""
    output = tmp_path_factory.mktemp("new")
    corpus = toy.read(langs=["qn"], sizes={"train": 60, "valid": 20, "test": 20}, seed=1)
    pieces = data_bin.parent / "spm" / "sentencepiece.model"
    build.build(corpus, output, vocab_size=0, parameters={"corpus": "toy"}, sentencepiece_model=pieces)
    return output / "data-bin"


@pytest.fixture
def specialized(workshop: Any, checkpoint: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A checkpoint of masks that were selected from a profile of the dense one, and moved on; and the masks' file."""
    words = [workshop.data_bin, "--path", checkpoint, "--output", tmp_path / "profile.safetensors", "--cpu"]
    assert main(["profile", *map(str, words)]) == 0
    masks = tmp_path / "masks.safetensors"
    assert main(["select", str(tmp_path / "profile.safetensors"), "--output", str(masks), "--k", "70"]) == 0
    cfg, task, model = workshop.build()
    model.set_masks(NeuronMasks.load(masks), task.langs)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.01
    return workshop.save(tmp_path / "specialized.pt", cfg, model), masks


def outputs(path: Path, data_bin: Path, pairs: str = PAIRS, **options: Any) -> list[tuple[torch.Tensor, ...]]:
    """Features and logits of every batch, teacher-forced."""
    from neuron_spec.backends.fairseq.asked import Asked

    loaded = Asked.read(path, data_bin, "test", lang_pairs=pairs).load(
        TeacherForced, cpu=True, max_tokens=400
    )
    found = []
    text = loaded.read("test")
    for row in range(len(loaded.directions)):
        for batch in text.of(row):
            with torch.no_grad():
                features = loaded.model.eval()(**batch["net_input"], features_only=True)[0]
            found.append((features, loaded.model.decoder.output_layer(features)))
    return found


@pytest.mark.parametrize("is_specialized", [False, True])
def test_old_languages_stay_bit_for_bit_up_to_the_softmax(
    workshop, checkpoint, specialized, tmp_path, is_specialized
):
    path = specialized[0] if is_specialized else checkpoint
    grown = tmp_path / "grown.pt"
    add_languages(path, ["qn", "qx"], grown, workshop.data_bin)
    before, after = read_checkpoint(path), read_checkpoint(grown)
    assert task_args(after).langs == [*workshop.langs, "qn", "qx"]
    for key, old in before["model"].items():
        new = after["model"][key]
        if "mask_rows" not in key:
            assert torch.equal(new[: len(old)], old), key
    if is_specialized:
        masks = carried_masks(after, task_args(after).langs)
        assert not NeuronMasks.load(specialized[1]).differing(masks) and len(masks.directions) == 6
    size = len(before["model"]["encoder.embed_tokens.weight"])
    for old, new in zip(outputs(path, workshop.data_bin), outputs(grown, workshop.data_bin), strict=True):
        assert torch.equal(new[0], old[0])
        # As many columns as before, of a product with more: the same but for how it is computed.
        torch.testing.assert_close(new[1][..., :size], old[1], rtol=1e-5, atol=1e-6)
        shift = new[1].log_softmax(-1)[..., :size] - old[1].log_softmax(-1)
        taken = new[1].softmax(-1)[..., size:].sum(-1, keepdim=True)
        torch.testing.assert_close(shift, torch.log1p(-taken).expand_as(shift), rtol=0, atol=2e-6)


def test_a_new_token_is_the_mean_of_the_others_and_shared_embeddings_stay_shared(
    workshop, checkpoint, tmp_path
):
    grown = tmp_path / "grown.pt"
    add_languages(checkpoint, ["qn"], grown, workshop.data_bin)
    model = read_checkpoint(grown)["model"]
    encoder, output = model["encoder.embed_tokens.weight"], model["decoder.output_projection.weight"]
    assert encoder.data_ptr() == output.data_ptr() == model["decoder.embed_tokens.weight"].data_ptr()
    torch.testing.assert_close(encoder[-1], encoder[-1 - len(workshop.langs) : -1].mean(0))
    # Again it is there already; another one is not written over it.
    when = grown.stat().st_mtime_ns
    add_languages(checkpoint, ["qn"], grown, workshop.data_bin)
    assert grown.stat().st_mtime_ns == when
    with pytest.raises(ArtifactError, match="already here"):
        add_languages(checkpoint, ["qx"], grown, workshop.data_bin)


def test_languages_that_cannot_be_added_are_refused(workshop, checkpoint, new_corpus, tmp_path):
    with pytest.raises(ModelError, match=r"(?s)knows already.*qa"):
        add_languages(checkpoint, ["qa"], tmp_path / "x.pt", workshop.data_bin)
    with pytest.raises(ModelError, match="twice"):
        add_languages(checkpoint, ["qn", "qn"], tmp_path / "x.pt", workshop.data_bin)
    other = tmp_path / "other"
    other.mkdir()
    for lang in ("en", "qa", "qb", "qm"):
        (other / f"dict.{lang}.txt").write_text("a 1\nb 1\n")
    with pytest.raises(ModelError, match="dictionary is not the model's"):
        add_languages(checkpoint, ["qn"], tmp_path / "x.pt", other)
    (other / "dict.qn.txt").write_text("c 1\n")
    with pytest.raises(ModelError, match="model's own pieces"):
        add_languages(checkpoint, ["qn"], tmp_path / "x.pt", other)
    for code in ("", "..", "a/b", "qn qo"):
        with pytest.raises(DirectionError, match="not a language code"):
            add_languages(checkpoint, [code], tmp_path / "x.pt", workshop.data_bin)
    for lang in ("en", "qa", "qb", "qm"):  # as many pieces, one of which is to be the language's token
        lines = (workshop.data_bin / f"dict.{lang}.txt").read_text(encoding="utf-8").splitlines()
        (other / f"dict.{lang}.txt").write_text("\n".join([*lines[:-1], "__qn__ 1", ""]), encoding="utf-8")
    (other / "dict.qn.txt").unlink()
    with pytest.raises(ModelError, match="pieces of text already"):
        add_languages(checkpoint, ["qn"], tmp_path / "x.pt", other)
    add_languages(checkpoint, ["qo"], tmp_path / "qo.pt", other)
    cfg, _, model = workshop.build(
        "--adapters", "language", "--adapter-size", "4", arch="neuron_spec_adapters_tiny"
    )
    adapters = workshop.save(tmp_path / "adapters.pt", cfg, model)
    with pytest.raises(ModelError, match="checkpoint of this kind"):
        add_languages(adapters, ["qn"], tmp_path / "x.pt", workshop.data_bin)
    assert not (tmp_path / "x.pt").exists()


def test_a_new_language_goes_through_its_own_sets_and_the_others_through_theirs(
    workshop, specialized, new_corpus, tmp_path, capsys
):
    """The whole way: grow, profile, add, and train no update."""
    path, masks = specialized
    grown, counts, wider = (tmp_path / name for name in ("grown.pt", "new.safetensors", "wider.safetensors"))
    command = ["checkpoint", "add-language", "qn", "--path", path, "--output", grown]
    assert main([*map(str, command), "--data-bin", str(workshop.data_bin)]) == 0
    command = ["profile", new_corpus, "--path", grown, "--lang-pairs", NEW, "--output", counts, "--cpu"]
    assert main([*map(str, command), "--", "--missing-direction", "dense"]) == 0
    add = ["masks", "add", str(masks), str(counts), "--output", str(wider), "--data-bin", str(new_corpus)]
    assert main(add[:-2]) == 2  # of another checkpoint, which has to be named
    assert "has to be named: --path" in capsys.readouterr().err
    assert main([*add, "--path", str(grown)]) == 0
    before, after = NeuronMasks.load(masks), NeuronMasks.load(wider)
    assert after.names == [*before.names, *NEW.split(",")] and not after.differing(before)
    made = after.metadata["signature"]
    assert made["inputs"]["checkpoint of the masks"] == before.metadata["checkpoint_sha256"]
    assert made["inputs"]["checkpoint profiled"] == weights_sha256(read_checkpoint(grown))
    assert main([*add, "--path", str(grown)]) == 0
    assert "complete already" in capsys.readouterr().err

    both = tmp_path / "both"
    both.mkdir()
    for file in [*workshop.data_bin.iterdir(), *new_corpus.iterdir()]:
        if not (both / file.name).exists():
            (both / file.name).symlink_to(file)
    line = [
        "specialize",
        both,
        "--path",
        grown,
        "--masks",
        wider,
        "--save-dir",
        tmp_path / "run",
        "--",
        "--cpu",
    ]
    line += [
        "--max-update",
        "1",
        "--lr",
        "0",
        "--num-workers",
        "0",
        "--disable-validation",
        "--weight-decay",
        "0",
    ]
    assert main([*map(str, line)]) == 0
    trained = tmp_path / "run" / "checkpoint_last.pt"
    for old, new in zip(outputs(grown, workshop.data_bin), outputs(trained, workshop.data_bin), strict=True):
        assert torch.equal(old[0], new[0]) and torch.equal(old[1], new[1])
    # The new one through the sets that were added.
    state = read_checkpoint(trained)
    assert not after.differing(carried_masks(state, task_args(state).langs))
    # A training of it goes on with all of them, not with fewer.
    line[line.index(wider)], line[line.index(grown)] = masks, trained
    line[line.index(tmp_path / "run")] = tmp_path / "narrow"
    assert main([*map(str, line)]) == 2
    assert "goes on with its own masks" in capsys.readouterr().err


def test_profiles_of_other_models_are_refused(
    workshop, specialized, checkpoint, new_corpus, tmp_path, capsys
):
    path, masks = specialized
    cfg, task, model = workshop.build(seed=3)
    stranger = workshop.save(tmp_path / "stranger.pt", cfg, model)
    model.set_masks(workshop.masks(model), task.langs)
    other_masks = workshop.save(tmp_path / "other-masks.pt", cfg, model)
    pair = "qa-qb"
    between = tmp_path / "between"
    read = toy.read(langs=workshop.langs[1:], sizes=workshop.sizes, seed=1)
    build.build(read, between, vocab_size=300, parameters={}, zero_shot=[("qa", "qb")])
    of: dict[str, Path] = {}
    for name, file in (("stranger", stranger), ("other", other_masks), ("dense", checkpoint), ("own", path)):
        of[name] = tmp_path / f"{name}.safetensors"
        words = [
            between / "data-bin",
            "--path",
            file,
            "--lang-pairs",
            pair,
            "--output",
            of[name],
            "--cpu",
            "--",
        ]
        flags = ["--missing-direction", "compose"] if name in ("other", "own") else []
        assert main(["profile", *map(str, words), *flags]) == 0

    def add(profile: str, *flags: object) -> tuple[int, str]:
        capsys.readouterr()
        words = [
            "masks",
            "add",
            masks,
            of[profile],
            "--output",
            tmp_path / f"added-{profile}.safetensors",
            *flags,
        ]
        return main([*map(str, words)]), capsys.readouterr().err

    named = ["--data-bin", between / "data-bin", "--path"]
    for profile, file, what in (
        ("stranger", stranger, "of another model than the masks"),
        ("other", other_masks, "specialized with other masks"),
        ("own", checkpoint, "of another checkpoint than --path"),
    ):
        assert add(profile)[0] == 2
        code, error = add(profile, *named, file)
        assert code == 2 and what in error, error
    assert add("dense")[0] == 0
    assert add("own", *named, path)[0] == 0
    code, error = add("dense", "--k", "95")
    assert code == 2 and "another k" in error
    code, error = add("dense", "--data-bin", between / "data-bin")
    assert code == 2 and "without --path" in error
    words = ["masks", "add", masks, of["dense"], "--output", masks]
    assert main([*map(str, words)]) == 2 and "in place" in capsys.readouterr().err


def test_a_dense_model_with_more_languages_takes_the_masks_along(
    workshop, specialized, checkpoint, new_corpus, tmp_path, capsys
):
    """The rows of the new token apart it is the model that was profiled; masks with its directions start from it."""
    grown, counts, wider = (tmp_path / name for name in ("grown.pt", "new.safetensors", "wider.safetensors"))
    add_languages(checkpoint, ["qn"], grown, workshop.data_bin)
    command = ["profile", new_corpus, "--path", grown, "--lang-pairs", NEW, "--output", counts, "--cpu"]
    assert main([*map(str, command)]) == 0
    command = [
        "masks",
        "add",
        specialized[1],
        counts,
        "--path",
        grown,
        "--data-bin",
        new_corpus,
        "--output",
        wider,
    ]
    assert main([*map(str, command)]) == 0
    assert NeuronMasks.load(wider).metadata["checkpoint_sha256"] == weights_sha256(read_checkpoint(grown))
    line = ["specialize", new_corpus, "--path", grown, "--masks", wider, "--lang-pairs", NEW]
    line += ["--save-dir", tmp_path / "run", "--dry-run", "--", "--max-update", "1", "--cpu"]
    assert main([*map(str, line)]) == 0
