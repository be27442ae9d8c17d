"""Heads are masked in the whole model, wherever fairseq's attention goes: fused, cached, mixed, checkpointed."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from fairseq.modules import MultiheadAttention
from net_inputs import log_probabilities, rows_of
from torch import Tensor

from neuron_spec.directions import direction_id, parse_directions
from neuron_spec.errors import ModelError
from neuron_spec.modules.specialized_attention import SpecializedAttention
from neuron_spec.neurons.masks import NeuronMasks


@pytest.fixture(scope="module")
def batch(workshop) -> dict[str, Any]:
    """One mixed batch: several directions, rows of different lengths."""
    _, task, _ = workshop.build("--batching", "mixed")
    task.load_dataset("valid")
    dataset = task.dataset("valid")
    n = workshop.sizes["valid"]
    return dataset.collater([dataset[i] for i in (0, 1, n, n + 1, 2 * n, 3 * n, 4 * n, 5 * n)])


def head_masks(workshop: Any, model: Any, pairs: str = "") -> NeuronMasks:
    """Random; no direction keeps all heads, nor drops all."""
    generator = torch.Generator().manual_seed(3)
    directions = parse_directions(pairs or workshop.lang_pairs)
    kept = {}
    for site, attention in model.attentions().items():
        order = torch.rand(len(directions), attention.num_heads, generator=generator).argsort(dim=1)
        kept[site] = order < attention.num_heads // 2
    return NeuronMasks(directions, kept)


def with_neurons(workshop: Any, model: Any) -> NeuronMasks:
    heads = head_masks(workshop, model)
    return NeuronMasks(heads.directions, heads.kept | workshop.masks(model).kept)


def loss_and_gradients(
    cfg: Any, task: Any, model: Any, batch: dict[str, Any]
) -> tuple[Tensor, dict[str, Tensor]]:
    """In training mode, dropout and all."""
    criterion = task.build_criterion(cfg.criterion)
    model.train()
    torch.manual_seed(5)
    loss = criterion(model, batch)[0]
    model.zero_grad()
    loss.backward()
    model.eval()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_what_an_attention_refuses():
    attention = SpecializedAttention.of(MultiheadAttention(8, 2, self_attention=True))
    x = torch.randn(3, 1, 8)
    with pytest.raises(ModelError, match=r"another number of heads\n +got: +3\n +expected: +2"):
        attention.set_mask(torch.ones(1, 3, dtype=torch.bool))
    attention.use_xformers = True
    with pytest.raises(ModelError, match="drop the xFormers flags"):
        attention.set_mask(torch.ones(1, 2, dtype=torch.bool))
    attention.set_mask(None)
    attention.use_xformers = False
    attention.set_mask(torch.ones(1, 2, dtype=torch.bool))
    with pytest.raises(ModelError, match="without direction ids"):
        attention(x, x, x)


def test_the_model_lists_its_sites(workshop):
    _, _, model = workshop.build()
    sites = model.sites()
    assert list(NeuronMasks([], {s: torch.ones(0, n).bool() for s, n in sites.items()}).sites) == [
        *("encoder.layers.0", "encoder.layers.0.self_attn", "encoder.layers.1", "encoder.layers.1.self_attn"),
        *("decoder.layers.0", "decoder.layers.0.self_attn", "decoder.layers.0.encoder_attn"),
        *("decoder.layers.1", "decoder.layers.1.self_attn", "decoder.layers.1.encoder_attn"),
    ]
    assert sites["decoder.layers.0"] == 40 and sites["decoder.layers.0.encoder_attn"] == 2


def test_masks_that_keep_all_heads_change_nothing_bit_for_bit(workshop, batch):
    dense, ours = workshop.build(), workshop.build()
    masks = head_masks(workshop, ours[2])
    ours[2].set_masks(
        NeuronMasks(masks.directions, {s: torch.ones_like(kept) for s, kept in masks.kept.items()}),
        workshop.langs,
    )
    net_input = batch["net_input"]
    assert torch.equal(log_probabilities(ours[2], net_input), log_probabilities(dense[2], net_input))
    loss, gradients = loss_and_gradients(*ours, batch)
    dense_loss, dense_gradients = loss_and_gradients(*dense, batch)
    assert torch.equal(loss, dense_loss)
    assert all(torch.equal(gradients[name], dense_gradients[name]) for name in dense_gradients)


def test_it_is_the_plain_model_without_the_heads_columns_of_out_proj(workshop, batch):
    _, _, model = workshop.build()
    masks = head_masks(workshop, model)
    dense = copy.deepcopy(model)
    model.set_masks(masks, workshop.langs)
    mixed, plain = (log_probabilities(m, batch["net_input"]) for m in (model, dense))
    for row, direction in enumerate(masks.directions):
        masked = copy.deepcopy(dense)
        for site, attention in masked.attentions().items():
            with torch.no_grad():
                attention.out_proj.weight *= masks.kept[site][row].repeat_interleave(attention.head_dim)
        rows = batch["net_input"]["direction_ids"] == direction_id(direction, workshop.langs)
        expected = log_probabilities(masked, rows_of(batch["net_input"], rows))
        one_direction = log_probabilities(model, rows_of(batch["net_input"], rows))
        torch.testing.assert_close(one_direction, expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(mixed[rows], expected, atol=1e-5, rtol=1e-5)
        assert (mixed[rows] - plain[rows]).abs().amax() > 1e-3


def test_every_site_matters(workshop, batch):
    _, _, model = workshop.build()
    dense = log_probabilities(model, batch["net_input"])
    masks = head_masks(workshop, model)
    for site in masks.head_sites:
        kept = {s: torch.ones_like(k) if s != site else k for s, k in masks.kept.items()}
        model.set_masks(NeuronMasks(masks.directions, kept), workshop.langs)
        assert (log_probabilities(model, batch["net_input"]) - dense).abs().max() > 1e-4, site


def test_a_dropped_head_gets_no_gradient_in_training(workshop, batch):
    cfg, task, model = workshop.build()
    masks = head_masks(workshop, model)
    model.set_masks(masks, workshop.langs)
    rows = batch["net_input"]["direction_ids"] == direction_id(masks.directions[0], workshop.langs)
    sample = {**batch, "net_input": rows_of(batch["net_input"], rows), "target": batch["target"][rows]}
    _, gradients = loss_and_gradients(cfg, task, model, sample)
    for site, kept in masks.kept.items():
        for name in ("v_proj.weight", "out_proj.weight"):
            gradient = gradients[f"{site}.{name}"]
            of_head = (gradient if name[0] == "v" else gradient.T).unflatten(0, (kept.size(1), -1))
            of_head = of_head.abs().sum((1, 2))
            assert bool((of_head[~kept[0]] == 0).all()) and bool((of_head[kept[0]] > 0).all())


def test_checkpointed_activations_change_nothing(workshop, batch):
    results = []
    for flags in ([], ["--checkpoint-activations"]):
        cfg, task, model = workshop.build(*flags)
        model.set_masks(with_neurons(workshop, model), workshop.langs)
        results.append(loss_and_gradients(cfg, task, model, batch))
    (expected, gradients), (loss, found) = results
    assert torch.equal(loss, expected)
    for name in gradients:
        torch.testing.assert_close(found[name], gradients[name], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("is_mixed", [False, True])
def test_beam_search_scores_are_those_of_teacher_forcing(workshop, batch, is_mixed):
    cfg, task, model = workshop.build("--source-lang", "en", "--target-lang", "qb")
    model.set_masks(with_neurons(workshop, model), workshop.langs)
    sample = batch if is_mixed else workshop.batches(task, "test")[0]
    generation = copy.deepcopy(cfg.generation)
    generation.beam, generation.max_len_a, generation.max_len_b, generation.nbest = 4, 0, 10, 4
    generator = task.build_generator([model], generation)
    first = batch["target"][:, :1] if is_mixed else None
    hypotheses = task.inference_step(generator, [model], sample, prefix_tokens=first)
    for row, beams in enumerate(hypotheses[:4]):
        for beam in beams:
            tokens = beam["tokens"]
            alone = rows_of(sample["net_input"], torch.tensor([row]))
            alone["prev_output_tokens"] = torch.cat([tokens.new_tensor([2]), tokens[:-1]])[None]
            scores = log_probabilities(model, alone)[0].gather(1, tokens[:, None]).squeeze(1)
            torch.testing.assert_close(beam["positional_scores"], scores, atol=1e-4, rtol=0)


def test_checkpoints_carry_head_masks_and_dense_ones_load(workshop, batch):
    _, _, model = workshop.build()
    dense_state = copy.deepcopy(model.state_dict())
    assert not any("mask" in key for key in dense_state)
    model.set_masks(head_masks(workshop, model), workshop.langs)
    expected = log_probabilities(model, batch["net_input"])
    model.load_state_dict(dense_state, strict=True)
    assert torch.equal(log_probabilities(model, batch["net_input"]), expected)
    _, _, other = workshop.build(seed=7)
    other.load_state_dict(model.state_dict(), strict=True)
    assert torch.equal(log_probabilities(other, batch["net_input"]), expected)
    assert other.masks(workshop.langs).fingerprint == model.masks(workshop.langs).fingerprint


@pytest.mark.parametrize("kind", ["other heads", "neurons", "both"])
def test_other_masks_than_the_checkpoints_are_refused(workshop, kind):
    _, _, model = workshop.build()
    heads = head_masks(workshop, model)
    model.set_masks(heads, workshop.langs)
    _, _, other = workshop.build()
    masks = {
        "other heads": NeuronMasks(heads.directions, {s: ~kept for s, kept in heads.kept.items()}),
        "neurons": workshop.masks(other),
        "both": with_neurons(workshop, other),
    }[kind]
    other.set_masks(masks, workshop.langs)
    with pytest.raises(ModelError, match="other masks"):
        other.load_state_dict(model.state_dict(), strict=True)
    with pytest.raises(ModelError, match="other masks"):
        model.load_state_dict(other.state_dict(), strict=True)


def test_new_masks_replace_those_of_all_sites(workshop, batch):
    _, _, model = workshop.build()
    _, _, fresh = workshop.build()
    heads, neurons = head_masks(workshop, model), workshop.masks(model)
    for masks in (with_neurons(workshop, model), neurons, heads, neurons):
        model.set_masks(masks, workshop.langs)
        assert list(model.masks(workshop.langs).sites) == list(masks.sites)
    fresh.set_masks(neurons, workshop.langs)
    net_input = batch["net_input"]
    assert torch.equal(log_probabilities(model, net_input), log_probabilities(fresh, net_input))


def test_masks_of_another_number_of_heads_are_refused(workshop):
    _, _, model = workshop.build()
    masks = head_masks(workshop, model)
    kept = {**masks.kept, "decoder.layers.1.encoder_attn": torch.ones(6, 3).bool()}
    with pytest.raises(ModelError, match=r"decoder\.layers\.1\.encoder_attn: 3"):
        model.set_masks(NeuronMasks(masks.directions, kept), workshop.langs)
    assert not model.has_masks


def test_a_direction_without_masks_may_run_dense(workshop, batch):
    _, _, model = workshop.build("--missing-direction", "dense")
    dense = log_probabilities(model, batch["net_input"])
    model.set_masks(head_masks(workshop, model, "en-qa,qa-en"), workshop.langs)
    got = log_probabilities(model, batch["net_input"])
    masked = torch.isin(batch["net_input"]["direction_ids"], torch.tensor([1, 4]))
    assert (got - dense)[masked].abs().amax(dim=(1, 2)).min() > 1e-3
    torch.testing.assert_close(got[~masked], dense[~masked], atol=1e-5, rtol=1e-5)
