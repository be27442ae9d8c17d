"""Importance is the derivative of a sentence's loss by the mask: held against finite differences."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from neuron_spec.cli.main import main
from neuron_spec.directions import parse_directions
from neuron_spec.errors import ArtifactError
from neuron_spec.neurons.activations import is_head_site
from neuron_spec.neurons.choices import Part
from neuron_spec.neurons.masks import NeuronMasks
from neuron_spec.studies.pruning.importance import Importance, ImportanceMeter


@pytest.fixture(scope="module")
def open_meter(workshop, checkpoint) -> Any:
    flags = ["--langs", ",".join(workshop.langs), "--encoder-langtok", "src", "--decoder-langtok"]

    def open_(**options: Any) -> ImportanceMeter:
        directions = parse_directions(workshop.lang_pairs)
        return ImportanceMeter(
            checkpoint, workshop.data_bin, directions, token_flags=flags, cpu=True, **options
        )

    return open_


@pytest.fixture(scope="module")
def meter(open_meter) -> ImportanceMeter:
    return open_meter()


def loss(meter: ImportanceMeter, text: Any) -> float:
    """Of the first direction's only sentence, nats."""
    return meter.mean_losses(text)[0] * text.tokens[0]


@pytest.mark.parametrize("dropped_neurons", ["bias", "zero"])
def test_it_is_the_derivative_by_the_mask(open_meter, dropped_neurons):
    meter = open_meter(dropped_neurons=dropped_neurons, dtype=torch.float64)
    text = meter.read("valid", sentences=1)
    found = meter.importance(text)
    modules = dict(meter.model.named_modules())
    step = 0.01
    for site, sums in found.items():
        unit = int(sums[0].argmax())
        if is_head_site(site):
            size = meter.model.attentions()[site].head_dim
            weight = modules[f"{site}.out_proj"].weight.data[:, unit * size : (unit + 1) * size]
        elif dropped_neurons == "bias":
            weight = modules[f"{site}.fc1"].weight.data[unit]
        else:
            weight = modules[f"{site}.fc2"].weight.data[:, unit]
        as_it_was, losses = weight.clone(), []
        for factor in (1 + step, 1 - step):
            weight.copy_(as_it_was * factor)
            losses.append(loss(meter, text))
        weight.copy_(as_it_was)
        assert float(sums[0, unit]) == pytest.approx(
            abs(losses[0] - losses[1]) / (2 * step), rel=0.02, abs=1e-4
        )
        assert float(sums[0, unit]) > 1e-3


def test_batches_do_not_matter_and_sentences_add_up(open_meter, meter):
    whole = meter.importance(meter.read("valid"))
    alone = open_meter(max_tokens=30)  # a sentence or two a batch
    for site, sums in alone.importance(alone.read("valid")).items():
        torch.testing.assert_close(sums, whole[site], rtol=1e-3, atol=1e-5)
    halves = [meter.importance(meter.read("valid", part=Part(number, 2))) for number in (1, 2)]
    for site, sums in whole.items():
        torch.testing.assert_close(halves[0][site] + halves[1][site], sums, rtol=1e-3, atol=1e-5)
        assert len({tuple(row) for row in sums.tolist()}) == len(sums)


def test_only_the_directions_asked_for_and_nothing_stays_behind(meter):
    text = meter.read("valid", sentences=2)
    before = meter.mean_losses(text)
    found = meter.importance(text, {1, 3})
    for sums in found.values():
        assert sums.any(dim=1).tolist() == [False, True, False, True, False, False]
    assert meter.mean_losses(text) == before
    assert all(parameter.grad is None for parameter in meter.model.parameters())
    assert not any(attention.watched for attention in meter.model.attentions().values())


@pytest.mark.parametrize("dropped_neurons", ["bias", "zero"])
def test_units_that_are_dropped_have_none(workshop, open_meter, dropped_neurons):
    meter = open_meter(dropped_neurons=dropped_neurons)
    generator = torch.Generator().manual_seed(2)
    sites = meter.model.sites()
    kept = {s: torch.rand(6, n, generator=generator) < 0.5 for s, n in sites.items()}
    meter.set_masks(NeuronMasks(meter.directions, kept))
    for site, sums in meter.importance(meter.read("valid", sentences=2)).items():
        assert bool((sums[~kept[site]] == 0).all())
        assert bool((sums[kept[site]] > 0).any())


def test_the_command(workshop, checkpoint, tmp_path, capsys):
    output = tmp_path / "importance.safetensors"
    flags = ["importance", str(workshop.data_bin), "--path", str(checkpoint), "--output", str(output)]
    assert main([*flags, "--lang-pairs", "en-qa,qa-en", "--cpu"]) == 0
    found = Importance.load(output)
    assert [str(d) for d in found.directions] == ["en-qa", "qa-en"]
    assert found.metadata["signature"]["parameters"]["subset"] == "valid"
    assert "complete already" not in capsys.readouterr().err
    assert main([*flags, "--lang-pairs", "en-qa,qa-en", "--cpu"]) == 0
    assert "complete already" in capsys.readouterr().err
    assert main([*flags, "--lang-pairs", "en-qa", "--cpu"]) == 2
    assert "another file of importance" in capsys.readouterr().err
    with pytest.raises(ArtifactError, match="not a mask file"):
        NeuronMasks.load(output)
