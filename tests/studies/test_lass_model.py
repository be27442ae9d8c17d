"""The model of masked weights, through fairseq's own construction, loading, training and beam search."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from net_inputs import log_probabilities
from torch import Tensor

from neuron_spec.artifacts import hash_text
from neuron_spec.backends.fairseq.checkpoints import checkpoint_sha256, is_specialized, weights_sha256
from neuron_spec.directions import Direction, direction_id, parse_directions
from neuron_spec.errors import ArtifactError, DirectionError, ModelError
from neuron_spec.studies.lass.model import NeuronSpecLass
from neuron_spec.studies.lass.weight_masks import WeightMasks, pack

pytestmark = pytest.mark.slow

ARCH = "neuron_spec_lass_tiny"
EN_QA, QA_EN = Direction("en", "qa"), Direction("qa", "en")


def build(workshop: Any, *flags: str, seed: int = 1) -> tuple[Any, Any, NeuronSpecLass]:
    return workshop.build(*flags, arch=ARCH, seed=seed)


def random_masks(
    workshop: Any, model: NeuronSpecLass, directions: str = "", *, kept: float = 0.5, seed: int = 1
) -> WeightMasks:
    generator = torch.Generator().manual_seed(seed)
    named = parse_directions(directions or workshop.lang_pairs)
    shapes = {key: linear.weight.shape for key, linear in model.linears().items()}
    return WeightMasks(
        named,
        {
            key: pack(torch.rand(len(named), *shape, generator=generator) < kept)
            for key, shape in shapes.items()
        },
        {key: shape[1] for key, shape in shapes.items()},
    )


def batch_of(workshop: Any, task: Any, direction: Direction) -> dict[str, Any]:
    number = direction_id(direction, workshop.langs)
    return next(b for b in workshop.batches(task) if b["net_input"]["distinct_ids"] == (number,))


def as_direction(sample: dict[str, Any], direction: str, langs: Any) -> dict[str, Any]:
    net_input = sample["net_input"]
    number = direction_id(Direction.parse(direction), langs)
    ids = torch.full_like(net_input["direction_ids"], number)
    return {**net_input, "direction_ids": ids, "distinct_ids": (number,)}


def gradients(cfg: Any, task: Any, model: Any, sample: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss and gradients in training mode, dropout and all."""
    model.train()
    torch.manual_seed(5)
    loss, _, _ = task.build_criterion(cfg.criterion)(model, sample)
    model.zero_grad()
    loss.backward()
    model.eval()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def with_weights_masked(model: Any, masks: WeightMasks, direction: Direction) -> Any:
    """The dense model whose weights are overwritten: what the masks mean."""
    masked = copy.deepcopy(model)
    parameters = dict(masked.named_parameters())
    with torch.no_grad():
        for key in masks.packed:
            parameters[key] *= masks.kept(key, direction)
    return masked


# Without masks, and with masks that keep all


def test_without_masks_it_is_the_plain_model_bit_for_bit(workshop):
    _, task, model = build(workshop)
    plain = workshop.build(task="translation_multi_simple_epoch", arch="transformer")[2]
    state, theirs = model.state_dict(), plain.state_dict()
    assert list(state) == list(theirs) and all(torch.equal(state[key], theirs[key]) for key in state)
    sample = batch_of(workshop, task, EN_QA)
    ids = ("direction_ids", "distinct_ids")
    bare = {key: value for key, value in sample["net_input"].items() if key not in ids}
    assert torch.equal(log_probabilities(model, sample["net_input"]), log_probabilities(plain, bare))


def test_masks_that_keep_all_change_nothing_bit_for_bit(workshop):
    cfg, task, dense = build(workshop)
    model = build(workshop)[2]
    model.set_weight_masks(
        WeightMasks.join(
            [
                WeightMasks.by_magnitude(dense.state_dict(), direction, 0)
                for direction in parse_directions(workshop.lang_pairs)
            ]
        ),
        workshop.langs,
    )
    sample = batch_of(workshop, task, QA_EN)
    assert torch.equal(
        log_probabilities(model, sample["net_input"]), log_probabilities(dense, sample["net_input"])
    )
    loss, found = gradients(cfg, task, model, sample)
    dense_loss, expected = gradients(cfg, task, dense, sample)
    assert torch.equal(loss, dense_loss)
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)


# What masks do


def test_every_matrix_of_every_layer_is_masked_and_nothing_else(workshop):
    model = build(workshop)[2]
    matrices = {
        name
        for name, p in model.named_parameters()
        if p.dim() == 2 and "embed" not in name and "output_projection" not in name
    }
    assert set(model.linears()) == matrices
    assert len(matrices) == 2 * 6 + 2 * 10
    assert not any("norm" in name for name in matrices)


@pytest.mark.parametrize("direction", [EN_QA, QA_EN])
def test_it_is_the_dense_model_with_its_weights_overwritten(workshop, direction):
    _, task, model = build(workshop)
    masks = random_masks(workshop, model)
    expected = with_weights_masked(model, masks, direction)
    net_input = batch_of(workshop, task, direction)["net_input"]
    dense = log_probabilities(model, net_input)
    model.set_weight_masks(masks, workshop.langs)
    got = log_probabilities(model, net_input)
    assert torch.equal(got, log_probabilities(expected, net_input))
    assert (got - dense).abs().amax() > 1e-3


def test_each_matrix_counts(workshop):
    """fairseq's attention reads its projections' weights past their forward."""
    _, task, model = build(workshop)
    net_input = batch_of(workshop, task, EN_QA)["net_input"]
    everything = random_masks(workshop, model, kept=2.0)
    model.set_weight_masks(everything, workshop.langs)
    dense = log_probabilities(model, net_input)
    for key, packed in everything.packed.items():
        model.set_weight_masks(
            WeightMasks(
                everything.directions,
                {**everything.packed, key: torch.zeros_like(packed)},
                everything.widths,
            ),
            workshop.langs,
        )
        assert (log_probabilities(model, net_input) - dense).abs().amax() > 1e-6, key


@pytest.mark.parametrize("checkpointed", [False, True])
def test_dropped_weights_get_a_gradient_of_exactly_zero(workshop, checkpointed):
    flags = ["--checkpoint-activations"] if checkpointed else []
    cfg, task, model = build(workshop, *flags)
    masks = random_masks(workshop, model)
    model.set_weight_masks(masks, workshop.langs)
    first, second = (batch_of(workshop, task, direction) for direction in (EN_QA, QA_EN))
    _, found = gradients(cfg, task, model, first)
    _, expected = gradients(cfg, task, with_weights_masked(build(workshop)[2], masks, EN_QA), first)
    for key in masks.packed:
        kept = masks.kept(key, EN_QA)
        assert bool((found[key][~kept] == 0).all()) and bool((found[key][kept] != 0).any()), key
        torch.testing.assert_close(found[key], expected[key] * kept, atol=1e-5, rtol=1e-4)
    # Two passes before one backward pass: each back through its own direction's weights.
    model.train()
    criterion = task.build_criterion(cfg.criterion)
    model.zero_grad()
    torch.manual_seed(5)
    (criterion(model, first)[0] + criterion(model, second)[0]).backward()
    for name, parameter in model.named_parameters():
        if name in masks.packed:
            neither = ~masks.kept(name, EN_QA) & ~masks.kept(name, QA_EN)
            assert bool((parameter.grad[neither] == 0).all()), name


def test_checkpointed_activations_change_nothing(workshop):
    results = []
    for flags in ([], ["--checkpoint-activations"]):
        cfg, task, model = build(workshop, *flags)
        model.set_weight_masks(random_masks(workshop, model), workshop.langs)
        criterion = task.build_criterion(cfg.criterion)
        model.train()
        torch.manual_seed(5)
        samples = [batch_of(workshop, task, direction) for direction in (EN_QA, QA_EN)]
        sum(criterion(model, sample)[0] for sample in samples).backward()
        results.append({name: p.grad for name, p in model.named_parameters()})
    plain, again = results
    for name in plain:
        torch.testing.assert_close(again[name], plain[name], atol=1e-5, rtol=1e-4)


def train(model: Any, cfg: Any, task: Any, samples: list[dict[str, Any]], optimizer: Any) -> None:
    criterion = task.build_criterion(cfg.criterion)
    model.train()
    for sample in samples:
        optimizer.zero_grad()
        criterion(model, sample)[0].backward()
        optimizer.step()
    model.eval()


def test_under_sgd_a_direction_leaves_the_weights_it_drops_where_they_are(workshop):
    cfg, task, model = build(workshop)
    masks = random_masks(workshop, model)
    model.set_weight_masks(masks, workshop.langs)
    before = copy.deepcopy(model.state_dict())
    sample = batch_of(workshop, task, EN_QA)
    train(model, cfg, task, [sample] * 3, torch.optim.SGD(model.parameters(), lr=0.1))
    for key in masks.packed:
        moved = model.state_dict()[key] != before[key]
        kept = masks.kept(key, EN_QA)
        assert not bool(moved[~kept].any()) and bool(moved[kept].any()), key


def test_under_adam_only_what_no_direction_keeps_stays(workshop):
    cfg, task, model = build(workshop)
    masks = random_masks(workshop, model)
    model.set_weight_masks(masks, workshop.langs)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    first, second = (batch_of(workshop, task, direction) for direction in (EN_QA, QA_EN))
    before = copy.deepcopy(model.state_dict())
    train(model, cfg, task, [first], optimizer)
    between = copy.deepcopy(model.state_dict())
    train(model, cfg, task, [second], optimizer)
    after = model.state_dict()
    for key in masks.packed:
        of_first, of_second = masks.kept(key, EN_QA), masks.kept(key, QA_EN)
        assert torch.equal(after[key][~of_first & ~of_second], before[key][~of_first & ~of_second])
        # Momentum from the first direction's update.
        moved = after[key] != between[key]
        assert bool(moved[of_first & ~of_second].any()), key


def test_half_precision_runs_through_the_same_weights(workshop):
    _, task, model = build(workshop)
    model.set_weight_masks(random_masks(workshop, model), workshop.langs)
    net_input = batch_of(workshop, task, EN_QA)["net_input"]
    expected = log_probabilities(model, net_input)
    assert (log_probabilities(model.bfloat16(), net_input) - expected).abs().max() < 0.1


# Memory


def test_one_direction_at_a_time_is_unpacked_and_no_masked_weight_is_kept(workshop, monkeypatch):
    from neuron_spec.studies.lass import model as neuron_spec_lass

    _, task, model = build(workshop)
    model.set_weight_masks(random_masks(workshop, model), workshop.langs)
    unpacked = []
    original = neuron_spec_lass.unpack
    monkeypatch.setattr(neuron_spec_lass, "unpack", lambda *args: unpacked.append(1) or original(*args))
    number = len(model.linears())
    for direction, expected in ((EN_QA, 1), (EN_QA, 1), (QA_EN, 2), (EN_QA, 3)):
        log_probabilities(model, batch_of(workshop, task, direction)["net_input"])
        assert len(unpacked) == expected * number
    for linear in model.linears().values():
        assert "weight" not in vars(linear) and isinstance(linear.weight, torch.nn.Parameter)
        assert linear.weight_mask.dtype == torch.uint8
        assert linear.weight_mask.numel() == 6 * linear.out_features * -(-linear.in_features // 8)


def test_the_parameters_are_as_before_after_an_error(workshop):
    _, task, model = build(workshop)
    model.set_weight_masks(random_masks(workshop, model), workshop.langs)
    names = [name for name, _ in model.named_parameters()]
    net_input = batch_of(workshop, task, EN_QA)["net_input"]
    with pytest.raises(Exception, match=""):
        log_probabilities(model, {**net_input, "prev_output_tokens": None})
    model.encoder.layers[0].register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        log_probabilities(model, net_input)
    assert [name for name, _ in model.named_parameters()] == names
    assert all("weight" not in vars(linear) for linear in model.linears().values())


# Checkpoints


def test_a_dense_checkpoint_starts_it_and_its_own_carries_the_masks(workshop):
    _, task, model = build(workshop)
    masks = random_masks(workshop, model)
    model.set_weight_masks(masks, workshop.langs)
    model.load_state_dict(workshop.build(seed=7)[2].state_dict(), strict=True)
    other = build(workshop)[2]
    assert not other.has_masks
    other.load_state_dict(model.state_dict(), strict=True)
    assert other.has_masks
    net_input = batch_of(workshop, task, QA_EN)["net_input"]
    assert torch.equal(log_probabilities(other, net_input), log_probabilities(model, net_input))
    other.load_state_dict(other.state_dict(), strict=True)  # and once more, with masks on both sides
    got = other.weight_masks(workshop.langs)
    for direction in masks.directions:
        assert all(torch.equal(got.kept(key, direction), masks.kept(key, direction)) for key in masks.packed)


def test_masks_are_no_weights_in_a_checkpoints_name(workshop):
    model = build(workshop)[2]
    dense = weights_sha256({"model": model.state_dict()})
    model.set_weight_masks(random_masks(workshop, model), workshop.langs)
    state = {"model": model.state_dict()}
    assert is_specialized(state) and weights_sha256(state) == dense


def test_other_masks_than_the_checkpoints_are_refused(workshop):
    model, other = build(workshop)[2], build(workshop)[2]
    model.set_weight_masks(random_masks(workshop, model), workshop.langs)
    other.set_weight_masks(random_masks(workshop, model, seed=2), workshop.langs)
    with pytest.raises(ModelError, match="other masks than --weight-masks"):
        other.load_state_dict(model.state_dict(), strict=True)


# Beam search and zero-shot


def test_beam_search_scores_are_those_of_teacher_forcing(workshop):
    cfg, task, model = build(workshop, "--source-lang", "en", "--target-lang", "qb")
    model.set_weight_masks(random_masks(workshop, model), workshop.langs)
    (sample, *_) = workshop.batches(task, "test")
    generation = copy.deepcopy(cfg.generation)
    generation.beam, generation.max_len_a, generation.max_len_b, generation.nbest = 4, 0, 10, 4
    hypotheses = task.inference_step(task.build_generator([model], generation), [model], sample)
    for row, beams in enumerate(hypotheses):
        for beam in beams:
            tokens = beam["tokens"]
            alone = {k: v[row : row + 1] for k, v in sample["net_input"].items() if k != "distinct_ids"}
            alone["prev_output_tokens"] = torch.cat([tokens.new_tensor([2]), tokens[:-1]])[None]
            scores = log_probabilities(model, alone)[0].gather(1, tokens[:, None]).squeeze(1)
            torch.testing.assert_close(beam["positional_scores"], scores, atol=1e-4, rtol=0)


def test_a_zero_shot_direction_is_composed_at_run_time_as_in_the_file(workshop):
    _, task, model = build(workshop, "--missing-direction", "compose")
    masks = random_masks(workshop, model, "qa-en,en-qb")
    net_input = as_direction(batch_of(workshop, task, QA_EN), "qa-qb", workshop.langs)
    model.set_weight_masks(masks, workshop.langs)
    got = log_probabilities(model, net_input)
    composed = build(workshop)[2]
    composed.set_weight_masks(masks.compose(Direction("qa", "qb")), workshop.langs)
    assert torch.equal(got, log_probabilities(composed, net_input))
    with pytest.raises(ModelError, match="qm-qb"):  # nobody comes from qm
        log_probabilities(model, as_direction(batch_of(workshop, task, QA_EN), "qm-qb", workshop.langs))


def test_a_missing_direction_is_an_error_or_dense(workshop):
    _, task, model = build(workshop)
    net_input = batch_of(workshop, task, QA_EN)["net_input"]
    dense = log_probabilities(model, net_input)
    model.set_weight_masks(random_masks(workshop, model, "en-qa"), workshop.langs)
    with pytest.raises(ModelError, match="directions without masks"):
        log_probabilities(model, net_input)
    model.set_languages(workshop.langs, "dense")
    assert torch.equal(log_probabilities(model, net_input), dense)


# Refusals


def test_batches_of_several_directions_are_refused(workshop, tmp_path):
    _, task, model = build(workshop, "--batching", "mixed")
    masks = random_masks(workshop, model)
    model.set_weight_masks(masks, workshop.langs)
    task.load_dataset("valid")
    dataset = task.dataset("valid")
    mixed = dataset.collater([dataset[0], dataset[workshop.sizes["valid"]]])
    with pytest.raises(ModelError, match="one direction per batch"):
        log_probabilities(model, mixed["net_input"])
    masks.save(tmp_path / "m.safetensors")
    flags = ["--weight-masks", str(tmp_path / "m.safetensors"), "--batching", "mixed"]
    with pytest.raises(ModelError, match="one direction per batch"):
        build(workshop, *flags)


def test_without_ids_it_refuses(workshop):
    _, task, model = build(workshop)
    model.set_weight_masks(random_masks(workshop, model), workshop.langs)
    net_input = dict(batch_of(workshop, task, EN_QA)["net_input"])
    del net_input["direction_ids"], net_input["distinct_ids"]
    with pytest.raises(ModelError, match="would ignore its masks"):
        log_probabilities(model, net_input)


def test_masks_of_neurons_or_of_other_matrices_are_refused(workshop):
    model = build(workshop)[2]
    with pytest.raises(ModelError, match="not of neurons"):
        model.set_masks(workshop.masks(model), workshop.langs)
    masks = random_masks(workshop, model)
    del masks.packed["encoder.layers.1.fc1.weight"], masks.widths["encoder.layers.1.fc1.weight"]
    with pytest.raises(ModelError, match=r"encoder\.layers\.1\.fc1\.weight: absent"):
        model.set_weight_masks(masks, workshop.langs)
    with pytest.raises(DirectionError, match="unknown language"):
        model.set_weight_masks(random_masks(workshop, model, "en-xx"), workshop.langs)
    assert not model.has_masks


# From a file, before training


def test_training_takes_the_masks_of_a_file(workshop, checkpoint, tmp_path):
    _, task, model = build(workshop)
    masks = random_masks(workshop, model)
    masks.metadata = {
        "checkpoint_sha256": checkpoint_sha256(checkpoint),
        "dictionary_sha256": hash_text(*task.source_dictionary.symbols),
    }
    masks.save(tmp_path / "m.safetensors")
    flags = ["--weight-masks", str(tmp_path / "m.safetensors"), "--finetune-from-model", str(checkpoint)]
    got = build(workshop, *flags)[2].weight_masks(workshop.langs)
    assert all(torch.equal(got.kept(key, EN_QA), masks.kept(key, EN_QA)) for key in masks.packed)


@pytest.mark.parametrize(
    ("metadata", "directions", "match"),
    [
        ({"dictionary_sha256": "other"}, "", "another dictionary"),
        ({}, "en-qa", "directions without masks"),
        ({"checkpoint_sha256": "other"}, "", "made from another checkpoint"),
    ],
)
def test_masks_made_for_something_else_are_refused(
    workshop, checkpoint, tmp_path, metadata, directions, match
):
    path = tmp_path / "m.safetensors"
    masks = random_masks(workshop, build(workshop)[2], directions)
    masks.metadata = metadata
    masks.save(path)
    flags = ["--weight-masks", str(path), "--finetune-from-model", str(checkpoint)]
    with pytest.raises(ModelError, match=match):
        build(workshop, *flags)
    if "checkpoint_sha256" in metadata:
        assert build(workshop, *flags, "--allow-other-checkpoint")[2].has_masks
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ArtifactError, match="cannot be read"):
        build(workshop, *flags)


def test_a_checkpoint_translates_without_the_mask_file(workshop, tmp_path):
    from fairseq import checkpoint_utils

    path = tmp_path / "m.safetensors"
    random_masks(workshop, build(workshop)[2]).save(path)
    cfg, task, model = build(workshop, "--weight-masks", str(path))
    saved = workshop.save(tmp_path / "lass.pt", cfg, model)
    path.unlink()
    (loaded,), _, _ = checkpoint_utils.load_model_ensemble_and_task([str(saved)])
    net_input = batch_of(workshop, task, EN_QA)["net_input"]
    assert torch.equal(log_probabilities(loaded.eval(), net_input), log_probabilities(model, net_input))
