"""A direction with a delta is the only one that changes, and what it changes can be taken away, saved and merged."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_models import DIRECTIONS, KINDS, batch, build, random_masks, t5, transformers

from neuron_spec.artifacts import load_tensors, save_tensors
from neuron_spec.backends.huggingface import (
    add_delta,
    delta_parameters,
    direction,
    load_delta,
    merge_delta,
    remove_delta,
    save_delta,
    specialize,
    unspecialize,
    weights_sha256,
)
from neuron_spec.backends.huggingface.ffns import ffns
from neuron_spec.backends.huggingface.specialization import specialization_of
from neuron_spec.errors import ArtifactError, DirectionError, ModelError
from neuron_spec.neurons.masks import NeuronMasks

OTHER = "fr-en"  # without a delta


def logits(model: Any, inputs: dict[str, torch.Tensor], asked: Any = None) -> torch.Tensor:
    with torch.no_grad():
        if asked is None:
            return model(**inputs).logits
        with direction(model, asked):
            return model(**inputs).logits


def with_deltas(kind: str = "m2m_100", directions: Any = DIRECTIONS[:2], **config: Any) -> Any:
    """A model whose deltas are random."""
    model = build(kind, **config)
    masks = random_masks(model, kept=0.4)
    for one in directions:
        add_delta(model, one, masks)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in delta_parameters(model).values():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model


def test_a_delta_of_zeros_changes_nothing():
    model, inputs = build(), batch()
    plain = logits(model, inputs)
    add_delta(model, "en-de", random_masks(model))
    assert torch.equal(logits(model, inputs, "en-de"), plain)


@pytest.mark.parametrize("kind", KINDS)
def test_other_directions_are_bit_for_bit_the_base_however_many_have_deltas(kind):
    inputs = batch()
    plain = logits(build(kind), inputs)
    model = with_deltas(kind, DIRECTIONS)
    assert torch.equal(logits(model, inputs, OTHER), plain)
    found = [logits(model, inputs, one) for one in DIRECTIONS]
    assert not any(torch.allclose(a, b) for a in (plain, *found) for b in found if a is not b)
    mixed = logits(model, inputs, [OTHER, "en-de", OTHER, "en-fr", "de-en", OTHER])
    for row, wanted in enumerate((plain, found[0], plain, found[2], found[1], plain)):
        if wanted is plain:
            assert torch.equal(mixed[row], plain[row])
        else:
            torch.testing.assert_close(mixed[row], wanted[row], rtol=0, atol=1e-5)
    by_place = logits(model, inputs, torch.tensor([3, 0, 3, 2, 1, 3]))
    assert torch.equal(by_place, mixed)


def test_it_is_the_base_with_its_rows_biases_and_columns_replaced():
    model, inputs = with_deltas(), batch()
    masks, by_hand = random_masks(model, kept=0.4), build()
    for key, kept in masks.kept.items():
        ours, theirs = (m.get_submodule(f"model.{key}") for m in (model, by_hand))
        rows, columns = ours.fc1.deltas["de-en"], ours.fc2.deltas["de-en"]
        assert torch.equal(rows.neurons, kept[1].nonzero().flatten())
        with torch.no_grad():
            theirs.fc1.weight[kept[1]] += rows.weight
            theirs.fc1.bias[kept[1]] += rows.bias
            theirs.fc2.weight[:, kept[1]] += columns.weight
    assert torch.equal(logits(model, inputs, "de-en"), logits(by_hand, inputs))


def test_a_merged_delta_is_the_routed_one_in_a_plain_copy():
    model, inputs = with_deltas(), batch()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    merged = merge_delta(model, "de-en")
    assert specialization_of(merged) is None and list(merged.state_dict()) == list(build().state_dict())
    assert torch.equal(logits(merged, inputs), logits(model, inputs, "de-en"))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    how = {"max_new_tokens": 10, "num_beams": 3, "do_sample": False}
    tokens = {key: inputs[key] for key in ("input_ids", "attention_mask")}
    with direction(model, "de-en"):
        assert torch.equal(model.generate(**tokens, **how), merged.generate(**tokens, **how))


def test_added_and_removed_the_model_is_bit_for_bit_what_it_was(tmp_path):
    inputs, base = batch(), build()
    state, plain = {key: value.clone() for key, value in base.state_dict().items()}, logits(base, inputs)
    model = with_deltas(directions=["en-de"])
    save_delta(model, "en-de", tmp_path / "d.safetensors")
    load_delta(base, tmp_path / "d.safetensors")
    changed = logits(base, inputs, "en-de")
    assert torch.equal(changed, logits(model, inputs, "en-de")) and not torch.equal(changed, plain)
    remove_delta(base, "en-de")
    assert torch.equal(logits(base, inputs), plain) and torch.equal(logits(base, inputs, "en-de"), plain)
    assert all(torch.equal(value, state[key]) for key, value in base.state_dict().items())
    assert base.state_dict().keys() == state.keys()
    load_delta(base, tmp_path / "d.safetensors")
    assert torch.equal(logits(base, inputs, "en-de"), changed)
    unspecialize(base)
    assert torch.equal(logits(base, inputs), plain) and base.state_dict().keys() == state.keys()
    assert not any(".deltas." in key for key in base._keys_to_ignore_on_save or ())


def test_one_of_several_is_removed_and_the_others_stay():
    model, inputs = with_deltas(directions=DIRECTIONS), batch()
    of = {one: logits(model, inputs, one) for one in (*DIRECTIONS, OTHER)}
    remove_delta(model, "en-de")
    assert all(getattr(m, "_reused", None) is None for m in model.modules()), "what was added up is let go"
    for one in DIRECTIONS[1:]:
        assert torch.equal(logits(model, inputs, one), of[one])
    assert torch.equal(logits(model, inputs, "en-de"), of[OTHER])
    add_delta(model, "en-de", random_masks(model))  # of zeros
    assert torch.equal(logits(model, inputs, "en-de"), of[OTHER])


def test_files_are_loaded_in_any_order(tmp_path):
    model, inputs = with_deltas(directions=DIRECTIONS), batch()
    for one in DIRECTIONS:
        save_delta(model, one, tmp_path / f"{one}.safetensors")
    other = build()
    for one in reversed(DIRECTIONS):
        assert str(load_delta(other, tmp_path / f"{one}.safetensors")) == one
    for one in (*DIRECTIONS, OTHER):
        assert torch.equal(logits(other, inputs, one), logits(model, inputs, one))


def test_a_file_says_what_it_is_of_and_is_small(tmp_path):
    model = with_deltas()
    save_delta(model, "en-de", tmp_path / "d.safetensors")
    tensors, header = load_tensors(tmp_path / "d.safetensors", "delta")
    kept = {key: int(of[0].sum()) for key, of in random_masks(model, kept=0.4).kept.items()}
    assert header["direction"] == "en-de" and header["base"]["weights_sha256"] == weights_sha256(build())
    assert header["signature"]["stage"] == "delta"
    parameters = sum(value.numel() for key, value in tensors.items() if not key.endswith("neurons"))
    assert parameters == sum(k * (2 * 16 + 1) for k in kept.values())
    own = sum(value.numel() for value in delta_parameters(model, "en-de").values())
    assert own == parameters and len(delta_parameters(model)) == 2 * len(delta_parameters(model, "en-de"))
    save_delta(model, "en-de", tmp_path / "half.safetensors", dtype=torch.bfloat16)
    sizes = [(tmp_path / name).stat().st_size for name in ("d.safetensors", "half.safetensors")]
    assert abs(sizes[0] - sizes[1] - 2 * parameters) < 64  # headers name the types


def test_a_file_is_as_large_as_the_documentation_says(tmp_path):
    """L x K x (2 D + 1) weights, and a bit per neuron: of a real file, and then of the table's."""
    model = build(encoder_ffn_dim=48, decoder_ffn_dim=48)
    masks = NeuronMasks.from_dict({"en-de": {key: torch.arange(48) < 12 for key in ffns(model)}})
    save_delta(add_delta(model, "en-de", masks), "en-de", tmp_path / "d.safetensors", dtype=torch.bfloat16)
    held = load_tensors(tmp_path / "d.safetensors", "delta")[0].values()
    assert sum(value.nbytes for value in held) == 4 * (12 * (2 * 16 + 1) * 2 + 48 // 8)
    page = (Path(__file__).parents[3] / "docs" / "huggingface.md").read_text(encoding="utf-8")
    found = re.findall(r"^\| (\d+) %.* \| (\d+) \| ([\d,]+) \| ([\d.]+) \| ([\d.]+) \|$", page, re.M)
    assert len(found) == 5
    for percent, k, weights, *sizes in found:
        assert int(k) == math.ceil(int(percent) / 100 * 4096)  # as top-fraction rounds
        number = 24 * int(k) * (2 * 1024 + 1)
        assert int(weights.replace(",", "")) == number
        assert [f"{(number * of + 24 * 4096 / 8) / 1e6:.1f}" for of in (4, 2)] == sizes


def test_only_the_deltas_rows_biases_and_columns_learn():
    model, inputs = with_deltas().train(), batch()
    model.requires_grad_(False)
    own = delta_parameters(model, "en-de")
    for parameter in own.values():
        parameter.requires_grad_(True)
    others = {key: value.clone() for key, value in model.state_dict().items() if key not in own}
    before = {one: logits(model, inputs, one) for one in (OTHER, "en-de", "de-en")}
    optimizer = torch.optim.Adam(own.values(), lr=0.01)
    for asked in ("en-de", [OTHER, "en-de", "de-en"] * 2):
        with direction(model, asked):
            model(**inputs).loss.backward()
        assert all(bool((parameter.grad != 0).any()) for parameter in own.values())
        optimizer.step()
        optimizer.zero_grad()
    assert all(torch.equal(model.state_dict()[key], value) for key, value in others.items())
    model.eval()
    for one in (OTHER, "de-en"):
        assert torch.equal(logits(model, inputs, one), before[one])
    assert not torch.equal(logits(model, inputs, "en-de"), before["en-de"])


def test_gradients_are_those_of_the_merged_models_own_rows():
    model, inputs = with_deltas().train(), batch()
    merged = merge_delta(model, "en-de").train()
    with direction(model, "en-de"):
        model(**inputs).loss.backward()
    merged(**inputs).loss.backward()
    for key, kept in random_masks(model, kept=0.4).kept.items():
        ours, theirs = (m.get_submodule(f"model.{key}") for m in (model, merged))
        rows, columns = ours.fc1.deltas["en-de"], ours.fc2.deltas["en-de"]
        torch.testing.assert_close(rows.weight.grad, theirs.fc1.weight.grad[kept[0]], rtol=0, atol=1e-7)
        torch.testing.assert_close(rows.bias.grad, theirs.fc1.bias.grad[kept[0]], rtol=0, atol=1e-7)
        torch.testing.assert_close(columns.weight.grad, theirs.fc2.weight.grad[:, kept[0]], rtol=0, atol=1e-7)


def test_what_was_added_up_is_not_used_after_the_delta_or_the_base_changes():
    model, inputs = with_deltas(), batch()
    first = logits(model, inputs, "en-de")
    assert torch.equal(logits(model, inputs, "en-de"), first)
    with torch.no_grad():
        next(iter(delta_parameters(model, "en-de").values())).mul_(2)
    second = logits(model, inputs, "en-de")
    assert not torch.equal(second, first)
    with torch.no_grad():
        model.model.encoder.layers[0].fc1.weight.mul_(2)
    assert not torch.equal(logits(model, inputs, "en-de"), second)
    assert torch.equal(logits(model, inputs, "en-de"), logits(merge_delta(model, "en-de"), inputs))


def test_generation_of_several_directions_is_that_of_each_alone():
    model, inputs = with_deltas(), batch(4)
    del inputs["labels"]
    asked, how = (
        ["en-de", OTHER, "de-en", "en-de"],
        {"max_new_tokens": 10, "num_beams": 3, "do_sample": False},
    )
    with direction(model, asked):
        mixed = model.generate(**inputs, **how)
    for row, one in enumerate(asked):
        with direction(model, one):
            alone = model.generate(**{key: value[row : row + 1] for key, value in inputs.items()}, **how)[0]
        length = min(len(alone), mixed.size(1))
        assert mixed[row, :length].tolist() == alone[:length].tolist()


def test_gradient_checkpointing_and_half_precision():
    model, inputs = with_deltas().train(), batch()
    found = []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        model.zero_grad()
        losses = []
        for asked in ("en-de", ["de-en", OTHER] * 3):
            with direction(model, asked):
                losses.append(model(**inputs, use_cache=False).loss)
        sum(losses).backward()
        found.append([parameter.grad.clone() for parameter in delta_parameters(model).values()])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-7)
    model.to(torch.bfloat16).eval()
    assert logits(model, inputs, "en-de").dtype == torch.bfloat16


def test_save_pretrained_writes_the_base_alone(tmp_path: Path):
    model = with_deltas()
    model.save_pretrained(tmp_path)
    loaded = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path)
    plain = build().state_dict()
    saved = load_file(tmp_path / "model.safetensors")
    assert not any(".deltas." in key for key in saved) and "model.shared.weight" in saved
    assert loaded.state_dict().keys() == plain.keys()
    assert all(torch.equal(value, plain[key]) for key, value in loaded.state_dict().items())


def test_what_does_not_fit_is_refused(tmp_path):
    model, path = with_deltas(), tmp_path / "d.safetensors"
    save_delta(model, "en-de", path)
    with pytest.raises(DirectionError, match="has a delta"):
        load_delta(model, path)
    with pytest.raises(DirectionError, match="has a delta"):
        add_delta(model, "en-de", random_masks(model))
    with pytest.raises(DirectionError, match="en-xx"):
        add_delta(model, "en-xx", random_masks(model))
    for act in (remove_delta, merge_delta, delta_parameters):
        with pytest.raises(DirectionError, match=r"without a delta(.|\n)*en-de, de-en"):
            act(model, OTHER)
    with pytest.raises(DirectionError, match="without a delta"):
        save_delta(model, OTHER, tmp_path / "no.safetensors")
    with pytest.raises(ModelError, match="takes no masks"):
        specialize(model, random_masks(model))
    with pytest.raises(ModelError, match="takes no deltas"):
        load_delta(specialize(build(), random_masks(build())), path)
    with pytest.raises(ModelError, match="without a direction"):
        model(**batch())
    other = build(seed=2)
    with pytest.raises(ModelError, match="of other weights"):
        load_delta(other, path)
    assert specialization_of(other) is None, "nothing was changed"
    load_delta(other, path, allow_other_checkpoint=True)
    for config in ({"encoder_layers": 1}, {"encoder_ffn_dim": 40}, {"d_model": 32}):
        with pytest.raises(ModelError, match="of another model"):
            load_delta(build(**config), path, allow_other_checkpoint=True)
    with pytest.raises(ModelError, match="of another model"):
        load_delta(t5(), path)
    with pytest.raises(ModelError, match="call specialize"):
        remove_delta(build(), "en-de")


def test_damaged_files_are_refused(tmp_path):
    model, path = build(), tmp_path / "d.safetensors"
    save_delta(with_deltas(), "en-de", path)
    tensors, header = load_tensors(path, "delta")
    for change in (
        {key: value for key, value in tensors.items() if key != "encoder.layers.0.fc1.weight"},
        {key: value for key, value in tensors.items() if key != "encoder.layers.0.neurons"},
        tensors | {"encoder.layers.0.neurons": torch.zeros(6, dtype=torch.uint8)},
        tensors | {"encoder.layers.0.fc2.weight": torch.zeros(16, 3)},
    ):
        save_tensors(path, change, header)
        with pytest.raises((ModelError, ArtifactError), match=r"of another model|damaged"):
            load_delta(model, path)
    for key in ("direction", "widths", "base"):
        for other in ({}, {key: 3}):
            save_tensors(path, tensors, {name: of for name, of in header.items() if name != key} | other)
            with pytest.raises(ArtifactError, match="damaged"):
                load_delta(model, path)
    for key, value in (
        ("encoder.layers.0.neurons", tensors["encoder.layers.0.neurons"].float()),
        ("encoder.layers.0.fc1.bias", tensors["encoder.layers.0.fc1.bias"].long()),
    ):
        save_tensors(path, tensors | {key: value}, header)
        with pytest.raises(ArtifactError, match="damaged"):
            load_delta(model, path)
    bad = tensors["decoder.layers.0.fc2.weight"].clone()
    bad[0, 0] = float("nan")
    save_tensors(path, tensors | {"decoder.layers.0.fc2.weight": bad}, header)
    with pytest.raises(ModelError, match=r"not numbers(.|\n)*decoder.layers.0.fc2.weight"):
        load_delta(model, path)
    save_tensors(path, tensors, {})
    with pytest.raises(ArtifactError, match="not a delta"):
        load_delta(model, path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ArtifactError, match="cannot be read"):
        load_delta(model, path)
    assert specialization_of(model) is None
