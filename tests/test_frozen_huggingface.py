"""What released versions wrote of models of Hugging Face: every later one loads it, and computes the same.

``tests/frozen/VERSION-huggingface/README.md`` says how the files were made.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import neuron_spec.backends.huggingface  # noqa: F401  (before transformers)

pytest.importorskip("transformers", reason="needs the extra huggingface")

from frozen.make_huggingface import DIRECTIONS, WITH_DELTA, WITHOUT, logits

from neuron_spec.backends.huggingface import (
    load_delta,
    load_specialized,
    specialize,
    unspecialize,
    weights_sha256,
)
from neuron_spec.neurons.activations import ActivationCounts
from neuron_spec.neurons.masks import NeuronMasks
from neuron_spec.neurons.selection import select

FROZEN = Path(__file__).parent / "frozen" / "0.1.0-huggingface"
RECORDED = json.loads((FROZEN / "logits.json").read_text(encoding="utf-8"))


def assert_close(found: Any, recorded: Any, atol: float = 1e-5) -> None:
    torch.testing.assert_close(torch.tensor(found), torch.tensor(recorded), rtol=0, atol=atol)


def test_a_specialized_model_is_loaded_and_computes_the_same() -> None:
    model = load_specialized(FROZEN / "specialized")
    for one in DIRECTIONS:
        assert_close(logits(model, one), RECORDED["specialized"][one])
    assert RECORDED["specialized"][WITH_DELTA] != RECORDED["specialized"][WITHOUT]
    assert_close(logits(unspecialize(model)), RECORDED["plain"])


@pytest.mark.parametrize(("name", "atol"), [("delta", 1e-5), ("delta-bf16", 0.01)])
def test_a_delta_is_loaded_on_its_base_and_computes_the_same(name: str, atol: float) -> None:
    base = unspecialize(load_specialized(FROZEN / "specialized"))
    assert str(load_delta(base, FROZEN / f"{name}.safetensors")) == WITH_DELTA
    assert_close(logits(base, WITH_DELTA), RECORDED["delta"][WITH_DELTA], atol)
    assert_close(logits(base, WITHOUT), RECORDED["plain"])
    difference = torch.tensor(RECORDED["delta"][WITH_DELTA]) - torch.tensor(RECORDED["plain"])
    assert float(difference.abs().max()) > 0.1


def test_a_profile_is_selected_from_and_its_masks_fit_the_model() -> None:
    """Also the hash of the weights: another would refuse what was made before."""
    profile = ActivationCounts.load(FROZEN / "profile.safetensors")
    masks = select(profile, k=80)
    saved = NeuronMasks.load(FROZEN / "specialized" / "neuron_masks.safetensors")
    assert all(torch.equal(masks.kept[layer], saved.kept[layer]) for layer in saved.layers)
    base = unspecialize(load_specialized(FROZEN / "specialized"))
    assert weights_sha256(base) == profile.metadata["checkpoint_sha256"]
    specialize(base, masks, dropped_neurons="zero")
    assert_close(logits(base, WITHOUT), RECORDED["specialized"][WITHOUT])
