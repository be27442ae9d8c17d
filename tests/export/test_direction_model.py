"""What is cut away computes nothing that is not folded into a bias: against the reference form, layer by layer."""

from __future__ import annotations

import pytest
import torch

from neuron_spec.export.direction_model import cut, padded, widest
from neuron_spec.modules.specialized_ffn import Route, SpecializedFC1, SpecializedFC2
from neuron_spec.studies.lass.weight_masks import pack

LAYER = "decoder.layers.0"
MASKS = torch.tensor([[1, 0, 1, 1, 0, 0, 1, 0], [0, 1, 1, 0, 0, 1, 0, 0]], dtype=torch.bool)


def ffn(dropped_neurons: str) -> torch.nn.ModuleDict:
    torch.manual_seed(3)
    fc1, fc2 = SpecializedFC1(4, 8), SpecializedFC2(8, 4)
    fc1.set_mask(MASKS)
    fc1.dropped_neurons = dropped_neurons
    fc2.follow(fc1)
    return torch.nn.ModuleDict({"fc1": fc1, "fc2": fc2}).eval()


def weights_of(layer: torch.nn.ModuleDict) -> dict[str, torch.Tensor]:
    return {f"{LAYER}.{key}": value for key, value in layer.state_dict().items()}


def run(weights: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    def of(name: str) -> tuple[torch.Tensor, torch.Tensor]:
        return weights[f"{LAYER}.{name}.weight"], weights[f"{LAYER}.{name}.bias"]

    return torch.nn.functional.linear(torch.relu(torch.nn.functional.linear(x, *of("fc1"))), *of("fc2"))


@pytest.mark.parametrize("row", [0, 1])
@pytest.mark.parametrize("dropped_neurons", ["bias", "zero", "frozen"])
def test_a_cut_ffn_computes_the_same(dropped_neurons, row):
    layer = ffn(dropped_neurons)
    plain = cut(weights_of(layer), {"decoder": row}, dropped_neurons=dropped_neurons)
    x = torch.randn(5, 4)
    layer["fc1"].route = Route((row,))
    wanted = layer["fc2"](torch.relu(layer["fc1"](x)))
    assert plain.keys() == {f"{LAYER}.fc{n}.{name}" for n in (1, 2) for name in ("weight", "bias")}
    torch.testing.assert_close(run(plain, x), wanted, rtol=0, atol=1e-6)
    kept = 8 if dropped_neurons == "frozen" else int(MASKS[row].sum())
    assert plain[f"{LAYER}.fc1.weight"].shape == (kept, 4)
    assert plain[f"{LAYER}.fc2.weight"].shape == (4, kept)


def test_constants_are_folded_only_where_neurons_emit_them():
    weights = weights_of(ffn("zero"))
    biases = {
        dropped: cut(weights, {"decoder": 0}, dropped_neurons=dropped)[f"{LAYER}.fc2.bias"]
        for dropped in ("bias", "zero")
    }
    assert torch.equal(biases["zero"], weights[f"{LAYER}.fc2.bias"])
    assert not torch.equal(biases["bias"], biases["zero"])


def test_one_past_the_last_row_keeps_all():
    weights = weights_of(ffn("bias"))
    plain = cut(weights, {"decoder": len(MASKS)})
    assert all(value is weights[key] or torch.equal(value, weights[key]) for key, value in plain.items())


def test_a_dense_model_is_not_changed():
    weights = {key: value for key, value in weights_of(ffn("bias")).items() if "mask" not in key}
    plain = cut(weights, {})
    assert plain.keys() == weights.keys()
    assert all(torch.equal(plain[key], weights[key]) for key in weights)


def test_masked_heads_and_weights_are_zeros():
    weight = torch.randn(4, 4)
    heads = {
        f"{LAYER}.self_attn.out_proj.weight": weight,
        f"{LAYER}.self_attn.head_mask": torch.tensor([[True, False]]),
    }
    kept = torch.rand(1, 4, 4) < 0.5
    single = {f"{LAYER}.fc1.weight": weight, f"{LAYER}.fc1.weight_mask": pack(kept)}
    (no_second_head,) = cut(heads, {"decoder": 0}).values()
    (own_weights,) = cut(single, {"decoder": 0}).values()
    assert torch.equal(no_second_head[:, :2], weight[:, :2])
    assert not no_second_head[:, 2:].any()
    assert torch.equal(own_weights, weight * kept[0])


def test_padding_changes_nothing():
    plain = cut(weights_of(ffn("bias")), {"decoder": 0})
    wide = padded(plain, {LAYER: 7})
    assert wide[f"{LAYER}.fc1.weight"].shape == (7, 4)
    assert wide[f"{LAYER}.fc2.weight"].shape == (4, 7)
    x = torch.randn(5, 4)
    torch.testing.assert_close(run(wide, x), run(plain, x), rtol=0, atol=1e-6)


def test_the_widest_is_that_of_a_side():
    widths = {"encoder.layers.0": 3, "encoder.layers.1": 5, "decoder.layers.0": 2}
    assert widest(widths) == {"encoder.layers.0": 5, "encoder.layers.1": 5, "decoder.layers.0": 2}
