"""Taps see what sites hand on, may replace it, and leave the model as it was."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch

from neuron_spec.modules.taps import tapped

FFN, HEADS = "encoder.layers.1", "decoder.layers.0.encoder_attn"


@pytest.fixture(params=["dense", "specialized"])
def model(request, workshop) -> Any:
    _, task, model = workshop.build()
    if request.param == "specialized":
        masks = workshop.masks(model)
        masks.kept |= {site: torch.tensor([[True, False]] * 6) for site in model.attentions()}
        model.set_masks(masks, workshop.langs)
    model.batch = workshop.batches(task)[0]["net_input"]
    return model


def run(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(**model.batch)[0]


def state(model: Any) -> list[Any]:
    modules = dict(model.named_modules())
    return [
        [(fc1.ffn_path, fc1.watch, len(modules[f"{key}.fc2"]._forward_pre_hooks)) for key, fc1 in model.ffn_layers().items()],
        [(own.watched, len(own.out_proj._forward_pre_hooks)) for own in model.attentions().values()],
    ]  # fmt: skip


def test_a_tap_that_only_watches_changes_nothing(model):
    with tapped(model):
        before = run(model)
    seen: dict[str, torch.Tensor] = {}
    watching = {site: partial(seen.__setitem__, site) for site in model.sites()}
    with tapped(model, {site: tap for site, tap in watching.items() if site in model.ffn_layers()}):
        assert torch.equal(run(model), before)
    with tapped(model, watching):  # heads leave torch's fused attention, which rounds otherwise
        torch.testing.assert_close(run(model), before)
    assert seen.keys() == model.sites().keys()
    assert seen[FFN].size(-1) == model.sites()[FFN]


def test_what_a_tap_returns_is_handed_on(model):
    modules = dict(model.named_modules())
    received: dict[str, torch.Tensor] = {}
    hooks = [
        reader.register_forward_hook(lambda _, inputs, __, site=site: received.__setitem__(site, inputs[0]))
        for site, reader in ((FFN, modules[f"{FFN}.fc2"]), (HEADS, modules[HEADS].out_proj))
    ]
    with tapped(model, dict.fromkeys((FFN, HEADS), torch.zeros_like)):
        changed = run(model)
    for hook in hooks:
        hook.remove()
    assert not received[FFN].any() and not received[HEADS].any()
    assert not torch.equal(changed, run(model))


def test_before_masks_dropped_units_are_shown_too(model):
    shown: dict[str, torch.Tensor] = {}
    handed_on: dict[str, torch.Tensor] = {}
    with tapped(
        model,
        {site: lambda x, site=site: handed_on.__setitem__(site, x) for site in (FFN, HEADS)},
        before_masks={site: lambda x, site=site: shown.__setitem__(site, x) for site in (FFN, HEADS)},
    ):
        run(model)
    assert not any(x.requires_grad for x in shown.values())
    if model.has_masks:
        mask, fc1 = model.ffn_layers()[FFN].neuron_mask, model.ffn_layers()[FFN]
        row = model.encoder.mask_rows[model.batch["direction_ids"][0]]
        kept = mask[row]
        torch.testing.assert_close(handed_on[FFN][..., kept], fc1.activation(shown[FFN][..., kept]))
        assert (shown[FFN][..., ~kept] > 0).any()
    else:
        assert FFN not in shown  # without masks there is nothing before them
        assert torch.equal(shown[HEADS], handed_on[HEADS])


def test_afterwards_nothing_is_changed_whatever_happened(model):
    before = state(model)
    model.ffn_layers()[FFN].ffn_path = before[0][1] = "gather"
    before = state(model)
    plain = run(model)

    def fail(hidden: torch.Tensor) -> None:
        raise RuntimeError("in a tap")

    with (
        pytest.raises(RuntimeError, match="in a tap"),
        tapped(model, {HEADS: fail}, before_masks={HEADS: id, FFN: id}),
    ):
        run(model)
    assert state(model) == before
    assert torch.equal(run(model), plain)


def test_taps_nest(model):
    order: list[str] = []
    with tapped(model, {FFN: lambda x: order.append("outer")}):
        with tapped(model, {FFN: lambda x: order.append("inner")}):
            run(model)
        run(model)
    assert order == ["outer", "inner", "outer"]
