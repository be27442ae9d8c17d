"""Sets of new directions beside others: those stay as they are, bit for bit, and the new ones are as if selected with them."""

from __future__ import annotations

import pytest
import torch

from neuron_spec.directions import parse_directions
from neuron_spec.errors import DirectionError, ModelError, SelectionError
from neuron_spec.neurons.activations import ActivationCounts
from neuron_spec.neurons.adding import add_directions
from neuron_spec.neurons.masks import NeuronMasks
from neuron_spec.neurons.selection import (
    ks_per_direction,
    matched_random,
    only_side,
    select,
    select_top_fraction,
)

WIDTHS = {"encoder.layers.0": 40, "decoder.layers.0": 56, "decoder.layers.1": 24}
OLD, NEW = "en-qa,qa-en", "en-qm,qm-en"


def profile_of(directions: str, widths: dict[str, int] = WIDTHS, seed: int = 1) -> ActivationCounts:
    profile = ActivationCounts.zeros(parse_directions(directions), widths)
    for layer, counts in profile.counts.items():
        for name, row in zip(profile.names, counts, strict=True):
            generator = torch.Generator().manual_seed(seed + sum(map(ord, layer + name)))
            row += torch.randint(0, 900, row.shape, generator=generator)
    for tokens in profile.tokens.values():
        tokens += 1000
    return profile


@pytest.mark.parametrize("ks", [{"k": 95}, {"encoder_k": 80, "decoder_k": 60}])
def test_they_are_as_if_all_had_been_selected_together(ks):
    together = profile_of(f"{OLD},{NEW}")
    old = select(together.of(OLD.split(",")), ks_per_direction(parse_directions(OLD), **ks))
    before = {layer: kept.clone() for layer, kept in old.kept.items()}
    wider = add_directions(old, together.of(NEW.split(",")))
    wanted = select(together, ks_per_direction(together.directions, **ks))
    assert wider.names == wanted.names and wider.fingerprint == wanted.fingerprint
    assert wider.metadata["k_percent"] == wanted.metadata["k_percent"]
    assert all(torch.equal(old.kept[layer], kept) for layer, kept in before.items())
    # One after the other is the same.
    one = add_directions(old, together, parse_directions("en-qm"))
    assert (
        add_directions(one, together, parse_directions("qm-en"), k=ks.get("k")).fingerprint
        == wanted.fingerprint
    )


def test_the_bits_of_the_others_are_the_same_in_the_file(tmp_path):
    from safetensors.torch import load_file

    old = select(profile_of(OLD))
    old.save(tmp_path / "old.safetensors")
    add_directions(old, profile_of(NEW)).save(tmp_path / "wider.safetensors")
    before, after = (load_file(tmp_path / f"{name}.safetensors") for name in ("old", "wider"))
    for layer in WIDTHS:
        assert len(before[layer]) == 2 and len(after[layer]) == 4
        assert torch.equal(after[layer][:2], before[layer])


def test_a_side_that_is_dense_stays_so():
    old = only_side(select(profile_of(OLD)), "decoder")
    wider = add_directions(old, profile_of(NEW))
    assert wider.kept["encoder.layers.0"].all()
    wanted = select(profile_of(NEW))
    assert torch.equal(wider.kept["decoder.layers.0"][2:], wanted.kept["decoder.layers.0"])


def test_masks_of_ones_own_need_a_k():
    own = NeuronMasks.from_dict(select(profile_of(OLD)).to_dict())
    with pytest.raises(SelectionError, match="with which k"):
        add_directions(own, profile_of(NEW))
    wider = add_directions(own, profile_of(NEW), k=70)
    assert torch.equal(
        wider.kept["encoder.layers.0"][2:], select(profile_of(NEW), 70).kept["encoder.layers.0"]
    )


def test_what_would_touch_the_others_or_differ_from_them_is_refused():
    old, new = select(profile_of(OLD), 90), profile_of(NEW)
    with pytest.raises(SelectionError, match=r"(?s)have masks already.*en-qa"):
        add_directions(old, profile_of(f"{NEW},en-qa"))
    with pytest.raises(SelectionError, match=r"(?s)another k than that of the masks.*--k 95.*90"):
        add_directions(old, new, k=95)
    with pytest.raises(DirectionError, match="en-xx"):
        add_directions(old, new, parse_directions("en-xx"))
    with pytest.raises(ModelError, match="for another model"):
        add_directions(old, profile_of(NEW, {**WIDTHS, "decoder.layers.1": 25}))
    with pytest.raises(ModelError, match="for another model"):
        add_directions(old, profile_of(NEW, {layer: WIDTHS[layer] for layer in [*WIDTHS][:2]}))
    per_direction = select(profile_of(OLD), ks_per_direction(parse_directions(OLD), k=90, k_for=["qa-en=80"]))
    with pytest.raises(SelectionError, match="several in the masks"):
        add_directions(per_direction, new)
    assert add_directions(per_direction, new, k=80).metadata["k_percent"]["encoder"]["en-qm"] == 80
    for others in (
        matched_random(old, 1),
        select_top_fraction(profile_of(OLD), 50),
        select(profile_of(OLD), neuron_sets="language"),
    ):
        with pytest.raises(SelectionError, match="of these masks that cannot be"):
            add_directions(others, new)
    heads = {**old.kept, "encoder.layers.0.self_attn": torch.ones(2, 4, dtype=torch.bool)}
    with pytest.raises(ModelError, match="attention heads"):
        add_directions(NeuronMasks(old.directions, heads, old.metadata), new)


@pytest.mark.parametrize(
    "made",
    [{"part": "1/2"}, {"signature": {"parameters": {"counted": "every position, padding too"}}}],
    ids=["part", "padding"],
)
def test_a_profile_of_part_of_a_set_or_of_padding_is_none_of_all(made):
    profile = profile_of(NEW)
    profile.metadata |= made
    with pytest.raises(SelectionError, match="from all of a set"):
        add_directions(select(profile_of(OLD)), profile)
    profile.metadata["signature"] = {"parameters": {"counted": "real tokens"}}
    profile.metadata.pop("part", None)
    add_directions(select(profile_of(OLD)), profile)
