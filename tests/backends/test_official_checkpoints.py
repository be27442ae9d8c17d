"""Official masks, counts and checkpoints through the command line, and through a model."""

import argparse
import json
import pickle

import pytest
import torch
from fairseq import checkpoint_utils

from neuron_spec.backends.fairseq.checkpoints import masks_of, read_checkpoint
from neuron_spec.cli.main import main
from neuron_spec.directions import Direction, direction_id
from neuron_spec.neurons.activations import ActivationCounts
from neuron_spec.neurons.masks import NeuronMasks

FLAGS = {"mask_path": '{"en-qa": "masks/en-qa.pt"}', "no_save_static_mask": False, "mask_embedding": False}


@pytest.fixture(scope="module")
def made(workshop, tmp_path_factory):
    """The same specialized model in our form and the official one's, the dense one, and the masks."""
    folder = tmp_path_factory.mktemp("official")
    cfg, _, model = workshop.build()
    workshop.save(folder / "dense.pt", cfg, model)
    masks = workshop.masks(model)
    model.set_masks(masks, workshop.langs)
    workshop.save(folder / "ours.pt", cfg, model)
    masks.save(folder / "masks.safetensors")
    torch.save(officially(read_checkpoint(folder / "ours.pt"), masks), folder / "theirs.pt")
    torch.save(officially(read_checkpoint(folder / "ours.pt"), None), folder / "without.pt")
    return folder


def officially(state, masks):
    """A checkpoint as the official code saves it: `global_weight`, one name for shared weights, `language_mask`."""
    weights, names = {}, {}
    for key in sorted(state["model"].keys() - masks_of(state).keys()):
        value = state["model"][key]
        linear = key.endswith(".weight") and value.dim() == 2 and "embed" not in key
        if names.setdefault((value.data_ptr(), value.shape), key) == key:
            weights[key.replace(".weight", ".global_weight") if linear else key] = value
    for row, name in enumerate(masks.names if masks else ()):
        for layer, kept in masks.kept.items():
            columns = state["model"][f"{layer}.fc1.weight"].size(1)
            key = f"language_mask.{name}.{layer.replace('.', '|')}|fc1|weight"
            weights[key] = kept[row].unsqueeze(1).repeat(1, columns)
    cfg = {
        name: dict(section) if isinstance(section, dict) else section
        for name, section in state["cfg"].items()
    }
    for section in ("model", "task"):
        of = cfg[section] if isinstance(cfg[section], dict) else vars(cfg[section])
        of = {**of, **FLAGS, "task": "mask_translation_multi_simple_epoch", "arch": "architecture_for_test"}
        of["_name"] = of["arch"] if section == "model" else of["task"]
        cfg[section] = argparse.Namespace(**of)
    cfg["common"]["user_dir"] = "elsewhere/fairseq_code"
    return {**state, "cfg": cfg, "model": weights, "last_optimizer_state": {"state": {}}}


def run(*words, status=0):
    assert main([*map(str, words)]) == status
    return words[-1]


def refused(capsys, *words):
    assert main([*map(str, words)]) == 2
    return capsys.readouterr().err


def test_their_checkpoint_is_ours(made, tmp_path):
    ours = read_checkpoint(made / "ours.pt")
    for name, flags in {"theirs.pt": (), "without.pt": ("--masks", made / "masks.safetensors")}.items():
        found = run(
            "checkpoint", "import-official", "--path", made / name, *flags, "--output", tmp_path / name
        )
        state = read_checkpoint(found)
        assert state["model"].keys() == ours["model"].keys()
        assert all(torch.equal(state["model"][key], value) for key, value in ours["model"].items())
        assert not {*FLAGS} & {*vars(state["cfg"]["model"])}
        assert state["cfg"]["common"]["user_dir"] is None
        run("checkpoint", "import-official", "--path", made / name, *flags, "--output", tmp_path / name)


def test_a_checkpoint_of_one_namespace_is_read_too(made, tmp_path):
    state = read_checkpoint(made / "theirs.pt")
    state["args"] = argparse.Namespace(**vars(state["cfg"]["task"]), **{
        key: value for key, value in vars(state["cfg"]["model"]).items() if key not in state["cfg"]["task"]
    })  # fmt: skip
    state["cfg"] = None
    torch.save(state, tmp_path / "old.pt")
    found = run(
        "checkpoint", "import-official", "--path", tmp_path / "old.pt", "--output", tmp_path / "new.pt"
    )
    flags = read_checkpoint(found)["args"]
    assert (flags.task, flags.arch) == ("neuron_specialization", "neuron_spec_transformer")
    assert read_checkpoint(found)["model"].keys() == read_checkpoint(made / "ours.pt")["model"].keys()


@torch.no_grad()
def test_each_direction_computes_what_masked_weights_do(made, workshop, tmp_path):
    found = run("checkpoint", "import-official", "--path", made / "theirs.pt", "--output", tmp_path / "c.pt")
    _, task, plain = workshop.build()
    (model,), _ = checkpoint_utils.load_model_ensemble([str(found)], task=task)
    model.eval()
    masks = NeuronMasks.load(made / "masks.safetensors")
    dense_weights = read_checkpoint(made / "dense.pt")["model"]
    seen = set()
    for batch in workshop.batches(task):
        inputs = batch["net_input"]
        (number,) = inputs["distinct_ids"]
        row = next(
            row for row, of in enumerate(masks.directions) if direction_id(of, workshop.langs) == number
        )
        masked = {
            key: value * masks.kept[key.removesuffix(".fc1.weight")][row][:, None]
            if key.endswith(".fc1.weight")
            else value
            for key, value in dense_weights.items()
        }
        plain.load_state_dict(masked)
        expected, _ = plain(**inputs)
        got, _ = model(**inputs)
        torch.testing.assert_close(got, expected)
        seen.add(row)
    assert len(seen) == len(masks.directions)


def test_masks_there_and_back_by_the_command_line(made, tmp_path, capsys):
    dense = made / "dense.pt"
    words = (
        "masks",
        "export-official",
        made / "masks.safetensors",
        "--path",
        dense,
        "--output",
        tmp_path / "m",
    )
    folder = run(*words)
    run(*words)
    assert "complete already" in capsys.readouterr().err
    masks = NeuronMasks.load(made / "masks.safetensors")
    names = {path.name for path in folder.iterdir()}
    assert names == {f"{name}.pt" for name in masks.names} | {"signature.json"}
    back = run("masks", "import-official", folder, "--path", dense, "--output", tmp_path / "b.safetensors")
    again = NeuronMasks.load(back)
    assert again.fingerprint == masks.fingerprint
    assert len(again.metadata["checkpoint_sha256"]) == 64
    own = run(
        "masks",
        "import-official",
        made / "theirs.pt",
        "--path",
        dense,
        "--output",
        tmp_path / "o.safetensors",
    )
    assert NeuronMasks.load(own).fingerprint == masks.fingerprint
    assert own.read_bytes() == back.read_bytes()
    few = ("--lang-pairs", "qa-en,en-qa", "--output")
    for source in (folder, made / "theirs.pt"):
        chosen = run("masks", "import-official", source, *few, tmp_path / f"{source.name}.safetensors")
        assert NeuronMasks.load(chosen).names == ["qa-en", "en-qa"]


def counts_in(folder, widths, names):
    for number, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        of = {layer.replace(".layers.", "_layer_"): torch.arange(w) + number for layer, w in widths.items()}
        (folder / name / "activations.pkl").write_bytes(pickle.dumps(of))
    return folder


def test_counts_to_masks_by_the_command_line(made, workshop, tmp_path, capsys):
    widths = NeuronMasks.load(made / "masks.safetensors").widths
    source = counts_in(tmp_path / "n", widths, workshop.lang_pairs.split(","))
    words = (
        "masks",
        "import-activations",
        source,
        "--path",
        made / "dense.pt",
        "--output",
        tmp_path / "p.safetensors",
    )
    profile = ActivationCounts.load(run(*words))
    assert ",".join(profile.names) == workshop.lang_pairs
    masks = NeuronMasks.load(run("select", words[-1], "--output", tmp_path / "m.safetensors"))
    assert masks.metadata["checkpoint_sha256"] == profile.metadata["checkpoint_sha256"]
    out = tmp_path / "a"
    run("analyze", tmp_path / "m.safetensors", "--profile", words[-1], "--permutations", 10, "--output", out)
    (of,) = json.loads((out / "analysis.json").read_text())["stability"]["profiles"].values()
    assert of["encoder"] is None and of["decoder"] is None
    (source / "qa-en" / "activations.pkl").unlink()
    said = refused(capsys, *words[:-1], tmp_path / "other.safetensors")
    assert "a direction has no file" in said and "qa-en/activations.pkl" in said
    for path in source.glob("*/activations.pkl"):
        narrow = {"encoder_layer_0": torch.arange(4), "decoder_layer_0": torch.arange(4)}
        path.write_bytes(pickle.dumps(narrow))
    said = refused(capsys, *words[:-1], tmp_path / "other.safetensors", "--lang-pairs", "en-qa,en-qb")
    assert "counts of another model" in said
    assert not (tmp_path / "other.safetensors").exists()


def test_what_is_refused_leaves_nothing(made, workshop, tmp_path, capsys):
    dense, masks = made / "dense.pt", made / "masks.safetensors"
    folder = run("masks", "export-official", masks, "--path", dense, "--output", tmp_path / "m")
    wide = NeuronMasks.load(masks)
    wide.kept["encoder.layers.0"] = torch.ones(len(wide.directions), 7).bool()
    wide.save(tmp_path / "wide.safetensors")
    other = NeuronMasks.load(masks)
    other.metadata["checkpoint_sha256"] = "0" * 64
    other.save(tmp_path / "other.safetensors")
    part = NeuronMasks.load(masks).of([Direction("en", "qa")])
    part.save(tmp_path / "part.safetensors")
    out = tmp_path / "out"
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    (folder / "en-qb.pt").unlink()
    export = ("masks", "export-official")
    convert = ("checkpoint", "import-official", "--output", out, "--path")
    for words, said in (
        ((*export, tmp_path / "wide.safetensors", "--path", dense, "--output", out), "for another model"),
        ((*export, tmp_path / "other.safetensors", "--path", dense, "--output", out), "profile of another checkpoint"),
        ((*export, masks, "--path", dense, "--output", tmp_path / "full"), "something is already here"),
        ((*export, tmp_path / "part.safetensors", "--path", dense, "--output", folder), "another folder of masks"),
        (("masks", "import-official", folder, "--path", dense, "--output", out), "a direction has no file"),
        (("masks", "import-official", folder, "--path", made / "ours.pt", "--output", out), "has moved on"),
        (("masks", "import-official", dense, "--output", out), "carries no masks of the official code"),
        (("masks", "import-official", tmp_path / "typo", "--output", out), "not found"),
        ((*convert, dense), "not a specialized checkpoint of the official code"),
        ((*convert, made / "ours.pt"), "a checkpoint of neuron_spec"),
        ((*convert, made / "without.pt"), "saved without its masks"),
        ((*convert, made / "without.pt", "--masks", tmp_path / "wide.safetensors"), "for another model"),
        ((*convert, made / "theirs.pt", "--masks", tmp_path / "part.safetensors"), "others than the checkpoint's own"),
    ):  # fmt: skip
        assert said in refused(capsys, *words), words
        assert not out.exists(), words
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["file"]
    assert not list(tmp_path.rglob("*.tmp"))
