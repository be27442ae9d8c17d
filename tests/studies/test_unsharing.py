"""The ceiling: it starts as the dense model, and in its FFNs directions share nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from net_inputs import log_probabilities

from neuron_spec.backends.fairseq.asked import Asked
from neuron_spec.backends.fairseq.checkpoints import read_checkpoint
from neuron_spec.directions import parse_directions
from neuron_spec.errors import ArtifactError, ModelError
from neuron_spec.studies.unsharing.measure import DENSE, FLAGS, MASKS, is_written, unshared, write_unshared

pytestmark = pytest.mark.slow

WIDTH = 48  # a multiple of 16: gathering adds no neuron
SHAPE = ("--encoder-ffn-embed-dim", str(WIDTH), "--decoder-ffn-embed-dim", str(WIDTH))


@pytest.fixture(scope="module")
def dense(workshop, tmp_path_factory):
    cfg, _, model = workshop.build(*SHAPE)
    return workshop.save(tmp_path_factory.mktemp("unsharing") / "dense.pt", cfg, model), model


@pytest.fixture(scope="module")
def batches(workshop):
    return [b for b in workshop.batches(workshop.build()[1]) if len(b["net_input"]["distinct_ids"]) == 1]


def wide_model(workshop, state, masks):
    copies = len(masks.directions) * WIDTH
    flags = [f"--{side}-ffn-embed-dim={copies}" for side in ("encoder", "decoder")]
    cfg, task, model = workshop.build(*flags, "--dropped-neurons", "zero")
    model.load_state_dict(state["model"])
    model.set_masks(masks, workshop.langs)
    return cfg, task, model


def test_it_starts_as_the_dense_model_bit_for_bit(workshop, dense, batches):
    path, plain = dense
    state, masks = unshared(read_checkpoint(path), parse_directions(workshop.lang_pairs))
    assert all(
        kept.sum(dim=0).eq(1).all() and kept.sum(dim=1).eq(WIDTH).all() for kept in masks.kept.values()
    )
    _, _, model = wide_model(workshop, state, masks)
    seen = set()
    for batch in batches:
        seen |= {*batch["net_input"]["distinct_ids"]}
        assert torch.equal(
            log_probabilities(model, batch["net_input"]), log_probabilities(plain, batch["net_input"])
        )
    assert len(seen) == len(masks.directions)


def test_a_direction_moves_its_own_copy_alone(workshop, dense, batches):
    path, _ = dense
    state, masks = unshared(read_checkpoint(path), parse_directions(workshop.lang_pairs))
    cfg, task, model = wide_model(workshop, state, masks)
    model.train()
    batch = batches[0]
    task.build_criterion(cfg.criterion)(model, batch)[0].backward()
    fc1 = model.encoder.layers[0].fc1
    row = model.encoder.mask_rows[batch["net_input"]["distinct_ids"][0]]
    own = masks.kept["encoder.layers.0"][row]
    assert not fc1.weight.grad[~own].any() and fc1.weight.grad[own].any()
    assert not fc1.bias.grad[~own].any()
    columns = model.encoder.layers[0].fc2.weight.grad
    assert not columns[:, ~own].any() and columns[:, own].any()


def test_a_specialized_checkpoint_is_refused(workshop, dense, tmp_path):
    cfg, _, model = workshop.build(*SHAPE)
    model.set_masks(workshop.masks(model), workshop.langs)
    state = read_checkpoint(workshop.save(tmp_path / "specialized.pt", cfg, model))
    with pytest.raises(ModelError, match="no longer share"):
        unshared(state, parse_directions(workshop.lang_pairs))


def test_a_folder_holds_one_and_nothing_of_others_is_replaced(workshop, dense, tmp_path):
    path, _ = dense
    asked = Asked.read(path, workshop.data_bin)
    own = tmp_path / "own"
    own.mkdir()
    (own / DENSE).write_bytes(path.read_bytes())
    with pytest.raises(ArtifactError, match="files of others"):
        is_written(asked, own)
    assert (own / DENSE).read_bytes() == path.read_bytes()

    ours = tmp_path / "ours"
    assert not is_written(asked, ours)
    write_unshared(asked, ours)
    assert is_written(asked, ours)
    for name in (DENSE, FLAGS, MASKS):  # as a kill would leave it
        (ours / name).unlink()
        assert not is_written(asked, ours)
        write_unshared(asked, ours)
        assert is_written(asked, ours)
    fewer = SimpleNamespace(checkpoint_sha256=asked.checkpoint_sha256, names=asked.names[:-1])
    with pytest.raises(ArtifactError, match="another unshared model"):
        is_written(fewer, ours)


def test_without_its_masks_it_is_no_model(workshop, dense, tmp_path):
    path, _ = dense
    write_unshared(Asked.read(path, workshop.data_bin), tmp_path)
    with pytest.raises(ModelError, match="through its masks alone"):
        Asked.read(tmp_path / DENSE, workshop.data_bin)
    assert Asked.read(tmp_path / DENSE, workshop.data_bin, through_masks=True).names


def test_from_command_to_training(workshop, dense, tmp_path):
    path, _ = dense
    ceiling = tmp_path / "ceiling"

    def run(*command: object, ends_with: int = 0) -> str:
        done = subprocess.run(
            [sys.executable, "-m", *map(str, command)], text=True, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, env={**os.environ, "PYTHONWARNINGS": "ignore"},
        )  # fmt: skip
        assert (done.returncode == 0) == (ends_with == 0), done.stdout[-3000:]
        return done.stdout

    run("neuron_spec", "unshare", "--path", path, "--output", ceiling)
    assert "complete already" in run("neuron_spec", "unshare", "--path", path, "--output", ceiling)
    copies = len(parse_directions(workshop.lang_pairs)) * WIDTH
    text = (ceiling / "flags.yaml").read_text()
    assert f"encoder-ffn-embed-dim: {copies}" in text and "dropped-neurons: zero" in text
    user_dir = Path(__file__).parents[2] / "neuron_spec"
    training = [
        "fairseq_cli.train", workshop.data_bin, "--user-dir", user_dir, "--task", "neuron_specialization",
        "--arch", "neuron_spec_transformer_tiny", "--encoder-layers", 2, "--decoder-layers", 2,
        "--encoder-embed-dim", 16, "--decoder-embed-dim", 16, "--encoder-attention-heads", 2,
        "--decoder-attention-heads", 2, f"--encoder-ffn-embed-dim={copies}", f"--decoder-ffn-embed-dim={copies}",
        "--langs", ",".join(workshop.langs), "--lang-pairs", workshop.lang_pairs, "--encoder-langtok", "src",
        "--decoder-langtok", "--finetune-from-model", ceiling / "dense.pt", "--neuron-masks",
        ceiling / "masks.safetensors", "--cpu", "--criterion", "label_smoothed_cross_entropy", "--optimizer",
        "adam", "--lr", 0.001, "--max-tokens", 300, "--max-update", 2, "--disable-validation",
        "--no-epoch-checkpoints", "--num-workers", 0, "--save-dir", tmp_path / "trained",
    ]  # fmt: skip
    # What the other copies emit would be added.
    assert "need dropped neurons of another kind" in run(*training, ends_with=1)
    run(*training, "--dropped-neurons", "zero")
    run(
        "neuron_spec", "evaluate", workshop.data_bin, "--path", tmp_path / "trained" / "checkpoint_last.pt",
        "--output", tmp_path / "evaluation", "--cpu", "--beam", 1, "--", "--max-len-b", 5,
    )  # fmt: skip
