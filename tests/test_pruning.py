"""Pruning keeps every direction above the floor, goes on after a kill, and leaves masks that training takes."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from neuron_spec.cli.main import main
from neuron_spec.directions import parse_directions
from neuron_spec.errors import ArtifactError, SelectionError
from neuron_spec.importance import ImportanceMeter
from neuron_spec.neurons.masks import NeuronMasks
from neuron_spec.pruning import Rules, prune

PAIRS = "en-qa,qa-en,en-qb"


@pytest.fixture(scope="module")
def meter(workshop, checkpoint) -> ImportanceMeter:
    flags = ["--langs", ",".join(workshop.langs), "--encoder-langtok", "src", "--decoder-langtok"]
    directions = parse_directions(PAIRS)
    return ImportanceMeter(checkpoint, workshop.data_bin, directions, token_flags=flags, cpu=True)


def metadata(**more: Any) -> dict[str, Any]:
    return {"signature": {"stage": "prune", "inputs": {}, "parameters": more}}


def qualities(meter: ImportanceMeter, masks: NeuronMasks) -> list[float]:
    """By their definition."""
    text = meter.read("valid")
    meter.set_masks(
        NeuronMasks(masks.directions, {s: torch.ones_like(kept) for s, kept in masks.kept.items()})
    )
    dense = meter.mean_losses(text)
    meter.set_masks(masks)
    return [math.exp(d - own) for d, own in zip(dense, meter.mean_losses(text), strict=True)]


@pytest.mark.parametrize("neuron_sets", ["direction", "language"])
def test_every_direction_stays_above_the_floor(meter, tmp_path, neuron_sets):
    floor = 0.995
    rules = Rules("both", neuron_sets, 0.3, floor)
    masks = prune(tmp_path / "m.safetensors", lambda: meter, "valid", rules, metadata())
    found = qualities(meter, masks)
    assert min(found) >= floor
    assert list(masks.metadata["quality"].values()) == pytest.approx(found, rel=1e-5)
    dropped = torch.cat([rows.flatten() for rows in masks.sparsity(masks.sites).values()])
    assert 0 < float(dropped.mean()) < 1  # something went, and the floor stopped it
    assert all(bool(kept.any(dim=1).all()) for kept in masks.kept.values())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.json", "m.safetensors"]
    for site, kept in masks.kept.items():
        if neuron_sets == "language":  # en-qa and en-qb share the encoder's, no two the decoder's
            assert torch.equal(kept[0], kept[2]) or site.startswith("decoder")
    if neuron_sets == "direction":
        assert any(bool((kept != kept[0]).any()) for kept in masks.kept.values())


def test_a_killed_run_goes_on_to_the_same_masks(meter, tmp_path, monkeypatch):
    rules = Rules("heads", "direction", 0.2, 0.5)
    expected = prune(tmp_path / "whole.safetensors", lambda: meter, "valid", rules, metadata())
    measure, calls = ImportanceMeter.importance, []

    def killed(self: Any, *args: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return measure(self, *args)

    output = tmp_path / "m.safetensors"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(ImportanceMeter, "importance", killed)
        prune(output, lambda: meter, "valid", rules, metadata())
    so_far = NeuronMasks.load(tmp_path / "m.steps.safetensors")
    assert [step["step"] for step in so_far.metadata["steps"]] == [1, 2] and not output.exists()
    with pytest.raises(ArtifactError, match="another mask file"):
        prune(output, lambda: meter, "valid", rules, metadata(seed=2))
    found = prune(output, lambda: meter, "valid", rules, metadata())
    assert found.fingerprint == expected.fingerprint and found.metadata == expected.metadata
    assert len(found.metadata["steps"]) > 2
    again = prune(output, lambda: pytest.fail("complete already"), "valid", rules, metadata())
    assert again.fingerprint == found.fingerprint


def test_fractions_out_of_range_are_refused():
    for rules in (("heads", "direction", 0.0, 0.9), ("heads", "direction", 0.1, 1.0)):
        with pytest.raises(SelectionError, match="fraction"):
            Rules(*rules)


def test_the_commands_and_training_take_the_masks(workshop, checkpoint, tmp_path, capsys):
    def pruned(name: str, *more: str) -> Path:
        output = tmp_path / f"{name}.safetensors"
        flags = ["prune", str(workshop.data_bin), "--path", str(checkpoint), "--output", str(output)]
        assert main([*flags, "--max-steps", "1", "--quality-floor", "0.5", "--cpu", *more]) == 0
        return output

    files = [pruned("one"), pruned("two", "--step-fraction", "0.3", "--dropped-neurons", "zero")]
    voted = tmp_path / "voted.safetensors"
    assert main(["masks", "vote", *map(str, files), "--output", str(voted)]) == 0
    masks = NeuronMasks.load(voted)
    assert masks.head_sites and not masks.layers
    assert json.loads(voted.with_suffix(".json").read_text())["voters"] == 2
    flags = ["--neuron-masks", str(voted), "--finetune-from-model", str(checkpoint)]
    _, _, model = workshop.build(*flags)
    assert all(
        torch.equal(kept, masks.kept[site]) for site, kept in by_direction(model, masks, workshop).items()
    )
    capsys.readouterr()
    assert main(["analyze", str(voted), "--output", str(tmp_path / "analysis")]) == 2
    assert "attention heads alone" in capsys.readouterr().err


def by_direction(model: Any, masks: NeuronMasks, workshop: Any) -> dict[str, torch.Tensor]:
    """The model's masks in the order of the file's directions."""
    own = model.masks(workshop.langs)
    order = [own.directions.index(direction) for direction in masks.directions]
    return {site: kept[order] for site, kept in own.kept.items()}
