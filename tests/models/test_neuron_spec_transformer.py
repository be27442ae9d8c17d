"""The whole model, through fairseq's own construction, loading and beam search."""

from __future__ import annotations

import copy
import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from net_inputs import log_probabilities, require_no_order_nor_padding, require_sentence_by_sentence, rows_of
from torch import Tensor

from neuron_spec.directions import Direction, direction_id
from neuron_spec.errors import DirectionError, ModelError
from neuron_spec.modules.specialized_ffn import SpecializedFC1, SpecializedFC2
from neuron_spec.neurons.masks import NeuronMasks

PATHS = ["auto", "gather", "multiply"]


@pytest.fixture(scope="module")
def batch(workshop) -> dict[str, Any]:
    """One mixed batch: several directions, rows of different lengths."""
    _, task, _ = workshop.build("--batching", "mixed")
    task.load_dataset("valid")
    dataset = task.dataset("valid")
    n = workshop.sizes["valid"]
    sample = dataset.collater([dataset[i] for i in (0, 1, n, n + 1, 2 * n, 3 * n, 4 * n, 5 * n)])
    assert len(sample["net_input"]["direction_ids"].unique()) == 6
    assert sample["net_input"]["src_tokens"].eq(1).any() and sample["target"].eq(1).any()
    return sample


def one_direction(batch: dict[str, Any], number: int) -> dict[str, Tensor]:
    return rows_of(batch["net_input"], batch["net_input"]["direction_ids"] == number)


def all_in(net_input: dict[str, Any], direction: str, langs: Sequence[str]) -> dict[str, Any]:
    number = direction_id(Direction.parse(direction), langs)
    ids = torch.full_like(net_input["direction_ids"], number)
    return {**net_input, "direction_ids": ids, "distinct_ids": (number,)}


def loss_and_gradients(
    cfg: Any, task: Any, model: Any, batch: dict[str, Any]
) -> tuple[Tensor, dict[str, Tensor]]:
    """In training mode, dropout and all."""
    criterion = task.build_criterion(cfg.criterion)
    model.train()
    torch.manual_seed(5)
    loss, _, _ = criterion(model, batch)
    model.zero_grad()
    loss.backward()
    model.eval()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def all_ones(workshop: Any, model: Any) -> NeuronMasks:
    masks = workshop.masks(model)
    return NeuronMasks(masks.directions, {key: torch.ones_like(kept) for key, kept in masks.kept.items()})


def without_ids(batch: dict[str, Any]) -> dict[str, Any]:
    ids = ("direction_ids", "distinct_ids")
    net_input = {key: value for key, value in batch["net_input"].items() if key not in ids}
    return {**batch, "net_input": net_input}


@pytest.fixture
def specialized(workshop) -> tuple[Any, Any, Any, NeuronMasks]:
    cfg, task, model = workshop.build()
    masks = workshop.masks(model)
    model.set_masks(masks, workshop.langs)
    return cfg, task, model, masks


# Without masks, and with masks that keep all


def test_without_masks_it_is_fairseqs_transformer_bit_for_bit(workshop, batch):
    ours = workshop.build()
    plain = workshop.build(task="translation_multi_simple_epoch", arch="transformer")
    assert type(plain[2]).__name__ == "TransformerModel"
    state, theirs = ours[2].state_dict(), plain[2].state_dict()
    assert list(state) == list(theirs)
    assert all(torch.equal(state[key], theirs[key]) for key in state)
    plain_input = without_ids(batch)["net_input"]
    assert torch.equal(
        log_probabilities(ours[2], batch["net_input"]), log_probabilities(plain[2], plain_input)
    )
    loss, gradients = loss_and_gradients(*ours, batch)
    plain_loss, plain_gradients = loss_and_gradients(*plain, without_ids(batch))
    assert torch.equal(loss, plain_loss)
    assert gradients.keys() == plain_gradients.keys()
    assert all(torch.equal(gradients[name], plain_gradients[name]) for name in gradients)


def test_without_masks_it_needs_no_ids(workshop, batch):
    _, _, model = workshop.build()
    got = log_probabilities(model, without_ids(batch)["net_input"])
    assert torch.equal(got, log_probabilities(model, batch["net_input"]))


@pytest.mark.parametrize("ffn_path", PATHS)
def test_masks_that_keep_all_change_nothing_bit_for_bit(workshop, batch, ffn_path):
    dense = workshop.build()
    cfg, task, model = workshop.build("--ffn-path", ffn_path)
    model.set_masks(all_ones(workshop, model), workshop.langs)
    for net_input in (batch["net_input"], one_direction(batch, 1)):
        assert torch.equal(log_probabilities(model, net_input), log_probabilities(dense[2], net_input))
    loss, gradients = loss_and_gradients(cfg, task, model, batch)
    dense_loss, dense_gradients = loss_and_gradients(*dense, batch)
    assert torch.equal(loss, dense_loss)
    assert all(torch.equal(gradients[name], dense_gradients[name]) for name in dense_gradients)


# What masks do


@pytest.mark.parametrize("ffn_path", PATHS)
@pytest.mark.parametrize("side", ["encoder", "decoder"])
@pytest.mark.parametrize("normalize", [True, False])
def test_a_zero_mask_on_one_side_changes_the_output(workshop, batch, ffn_path, side, normalize):
    _, _, model = workshop.build("--ffn-path", ffn_path)
    if not normalize:  # fairseq 0.12.2 has a fast path for post-norm encoder layers
        for layer in [*model.encoder.layers, *model.decoder.layers]:
            layer.normalize_before = False
    dense = log_probabilities(model, batch["net_input"])
    masks = all_ones(workshop, model)
    for layer, kept in masks.side(side).items():
        masks.kept[layer] = torch.zeros_like(kept)
    model.set_masks(masks, workshop.langs)
    for number in batch["net_input"]["direction_ids"].unique().tolist():
        rows = batch["net_input"]["direction_ids"] == number
        got = log_probabilities(model, one_direction(batch, number))
        assert (got - dense[rows]).abs().amax() > 1e-3
    assert (log_probabilities(model, batch["net_input"]) - dense).abs().amax(dim=(1, 2)).min() > 1e-3


@pytest.mark.parametrize("dropped_neurons", ["bias", "zero"])
def test_it_is_the_plain_model_with_masked_weights(workshop, batch, dropped_neurons):
    _, _, model = workshop.build("--dropped-neurons", dropped_neurons)
    masks = workshop.masks(model)
    dense = copy.deepcopy(model)
    model.set_masks(masks, workshop.langs)
    for row, direction in enumerate(masks.directions):
        masked = copy.deepcopy(dense)
        for key, fc1 in masked.ffn_layers().items():
            with torch.no_grad():
                fc1.weight *= masks.kept[key][row][:, None]
                if dropped_neurons == "zero":
                    fc1.bias *= masks.kept[key][row]
        net_input = one_direction(batch, direction_id(direction, workshop.langs))
        torch.testing.assert_close(
            log_probabilities(model, net_input), log_probabilities(masked, net_input), atol=1e-5, rtol=1e-5
        )


@pytest.mark.parametrize("ffn_path", PATHS)
def test_mixed_batches_equal_sentence_by_sentence(specialized, batch, ffn_path):
    _, _, model, _ = specialized
    for fc1 in model.ffn_layers().values():
        fc1.ffn_path = ffn_path
    require_sentence_by_sentence(model, batch["net_input"], tolerance=1e-5)


def test_neither_row_order_nor_padding_matters(specialized, batch):
    _, _, model, _ = specialized
    require_no_order_nor_padding(model, batch["net_input"], tolerance=1e-5)


def test_dropped_rows_get_no_gradient_from_their_direction(specialized, batch, workshop):
    cfg, task, model, masks = specialized
    number = direction_id(masks.directions[0], workshop.langs)
    rows = batch["net_input"]["direction_ids"] == number
    sample = {**batch, "net_input": one_direction(batch, number), "target": batch["target"][rows]}
    _, gradients = loss_and_gradients(cfg, task, model, sample)
    for key, kept in masks.kept.items():
        of_row = gradients[f"{key}.fc1.weight"].abs().sum(dim=1)
        assert bool((of_row[~kept[0]] == 0).all()) and bool((of_row[kept[0]] > 0).any())


# Checkpoints


def test_a_dense_checkpoint_starts_a_specialized_model(workshop, batch, specialized):
    _, _, model, masks = specialized
    _, _, dense = workshop.build(seed=7)
    model.load_state_dict(dense.state_dict(), strict=True)
    assert model.masks(workshop.langs).fingerprint == NeuronMasks(*by_id(masks, workshop.langs)).fingerprint
    dense.set_masks(masks, workshop.langs)
    net_input = batch["net_input"]
    assert torch.equal(log_probabilities(model, net_input), log_probabilities(dense, net_input))


def by_id(masks: NeuronMasks, langs: Any) -> tuple[list[Direction], dict[str, Tensor]]:
    order = sorted(range(len(masks.directions)), key=lambda row: direction_id(masks.directions[row], langs))
    return [masks.directions[row] for row in order], {key: kept[order] for key, kept in masks.kept.items()}


def test_a_specialized_checkpoint_carries_its_masks(workshop, batch, specialized):
    _, _, model, masks = specialized
    _, _, other = workshop.build(seed=7)
    assert not other.has_masks
    other.load_state_dict(model.state_dict(), strict=True)
    assert other.has_masks
    directions, kept = by_id(masks, workshop.langs)
    got = other.masks(workshop.langs)
    assert got.directions == directions
    assert all(torch.equal(got.kept[key], kept[key]) for key in kept)
    assert torch.equal(
        log_probabilities(other, batch["net_input"]), log_probabilities(model, batch["net_input"])
    )
    other.load_state_dict(other.state_dict(), strict=True)  # and once more, with masks on both sides


def test_other_masks_than_the_checkpoints_are_refused(workshop, specialized):
    _, _, model, masks = specialized
    _, _, other = workshop.build()
    other.set_masks(workshop.masks(other, seed=2), workshop.langs)
    with pytest.raises(ModelError, match="other masks"):
        other.load_state_dict(model.state_dict(), strict=True)
    other.set_masks(NeuronMasks(masks.directions[::-1], masks.kept), workshop.langs)
    with pytest.raises(ModelError, match="other masks"):  # the same sets of other directions
        other.load_state_dict(model.state_dict(), strict=True)


def test_masks_of_more_directions_leave_the_checkpoints_as_they_are(workshop, batch):
    _, _, model = workshop.build("--missing-direction", "dense")
    langs, everything = workshop.langs, workshop.masks(model)
    old = everything.of(["qa-en", "en-qa", "qb-en"])
    model.set_masks(old, langs)
    _, _, wider = workshop.build(seed=7)
    wider.set_masks(everything, langs)  # rows in another order
    wider.load_state_dict(model.state_dict(), strict=True)
    assert wider.masks(langs).fingerprint == NeuronMasks(*by_id(everything, langs)).fingerprint
    _, _, explicit = workshop.build(seed=7)
    explicit.set_masks(everything, langs)
    plain = {key: value for key, value in model.state_dict().items() if "mask" not in key}
    explicit.load_state_dict(plain, strict=False)
    for name in ("en-qa", "qa-en", "qb-en", "en-qm"):
        net_input = one_direction(batch, direction_id(Direction.parse(name), langs))
        got, before, wanted = (log_probabilities(of, net_input) for of in (wider, model, explicit))
        assert torch.equal(got, wanted)
        # An old direction as before, bit for bit; the new one was without masks.
        assert torch.equal(got, before) == (name in old.names)
    # Not the other way round, and not where one of them differs.
    with pytest.raises(ModelError, match="other masks"):
        model.load_state_dict(wider.state_dict(), strict=True)
    changed = {site: kept.clone() for site, kept in everything.kept.items()}
    changed["decoder.layers.1"][everything.rows(["en-qa"])[0], 0] ^= True
    _, _, other = workshop.build()
    other.set_masks(NeuronMasks(everything.directions, changed), langs)
    with pytest.raises(ModelError, match="other masks"):
        other.load_state_dict({**model.state_dict()}, strict=True)


@pytest.mark.parametrize("side", ["encoder", "decoder"])
def test_a_checkpoint_of_another_dictionary_is_refused(workshop, side):
    _, _, model = workshop.build()
    state = model.state_dict()
    key = f"{side}.embed_tokens.weight"
    state[key] = torch.cat([state[key], state[key][:1]])
    with pytest.raises(ModelError, match="another dictionary"):
        model.load_state_dict(state, strict=True)


def test_a_dense_model_has_no_masks_to_give(workshop):
    with pytest.raises(ModelError, match="no masks"):
        workshop.build()[2].masks(workshop.langs)


# Training in pieces


@pytest.mark.parametrize("ffn_path", PATHS)
def test_checkpointed_activations_change_nothing(workshop, batch, ffn_path):
    results = []
    for flags in ([], ["--checkpoint-activations"], ["--checkpoint-activations", "--offload-activations"]):
        cfg, task, model = workshop.build("--ffn-path", ffn_path, *flags)
        model.set_masks(workshop.masks(model), workshop.langs)
        criterion = task.build_criterion(cfg.criterion)
        model.train()
        torch.manual_seed(5)
        # Both forward passes before the one backward pass: each must be computed again its own way.
        loss = sum(
            criterion(model, {**batch, "net_input": net_input, "target": net_input["prev_output_tokens"]})[0]
            for net_input in (one_direction(batch, 1), one_direction(batch, 4), batch["net_input"])
        )
        loss.backward()
        results.append((loss.detach(), {name: p.grad for name, p in model.named_parameters()}))
    (expected, gradients), *others = results
    for loss, found in others:
        assert torch.equal(loss, expected)
        for name in gradients:  # the three passes' gradients are added in another order
            torch.testing.assert_close(found[name], gradients[name], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("ffn_path", PATHS)
def test_gradients_add_up_over_batches_of_different_directions(workshop, batch, ffn_path):
    cfg, task, model = workshop.build("--ffn-path", ffn_path)
    model.set_masks(workshop.masks(model), workshop.langs)
    criterion = task.build_criterion(cfg.criterion)
    model.eval()  # no dropout, so that the mixed batch is comparable

    def gradients(numbers: list[int]) -> dict[str, Tensor]:
        rows = torch.isin(batch["net_input"]["direction_ids"], torch.tensor(numbers))
        net_input = rows_of(batch["net_input"], rows)
        model.zero_grad()
        criterion(model, {**batch, "net_input": net_input, "target": batch["target"][rows]})[0].backward()
        return {name: p.grad.clone() for name, p in model.named_parameters()}

    one, other, both = gradients([1]), gradients([4]), gradients([1, 4])
    for name in both:
        torch.testing.assert_close(one[name] + other[name], both[name], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("ffn_path", PATHS)
def test_half_precision_runs_through_the_same_neurons(workshop, batch, ffn_path):
    _, _, model = workshop.build("--ffn-path", ffn_path)
    model.set_masks(workshop.masks(model), workshop.langs)
    net_input = one_direction(batch, 1)
    expected = log_probabilities(model, net_input)
    model.bfloat16()
    got = log_probabilities(model, net_input)
    assert (got - expected).abs().max() < 0.1


# Refusals


def test_without_ids_it_refuses(specialized, batch):
    _, _, model, _ = specialized
    with pytest.raises(ModelError, match="without direction ids"):
        log_probabilities(model, without_ids(batch)["net_input"])
    encoded = model.encoder(
        batch["net_input"]["src_tokens"], direction_ids=batch["net_input"]["direction_ids"]
    )
    encoded["direction_ids"] = []
    with pytest.raises(ModelError, match="decoder"):
        model.decoder(batch["net_input"]["prev_output_tokens"], encoder_out=encoded)


def test_other_widths_layers_or_languages_are_refused(workshop):
    _, _, model = workshop.build()
    masks = workshop.masks(model)
    wider = NeuronMasks(
        masks.directions, {**masks.kept, "encoder.layers.1": torch.ones(6, 49, dtype=torch.bool)}
    )
    fewer = NeuronMasks(masks.directions, masks.side("encoder"))
    for wrong in (wider, fewer):
        with pytest.raises(ModelError, match="another model"):
            model.set_masks(wrong, workshop.langs)
    with pytest.raises(DirectionError, match="unknown language"):
        model.set_masks(workshop.masks(model, ["en-xx"]), workshop.langs)
    assert not model.has_masks
    assert all(fc1.neuron_mask is None for fc1 in model.ffn_layers().values())


def test_other_activations_are_refused(workshop):
    _, _, model = workshop.build("--activation-fn", "gelu")
    with pytest.raises(ModelError, match="gelu"):
        model.set_masks(workshop.masks(model), workshop.langs)


def test_quantization_noise_is_refused(workshop):
    with pytest.raises(ModelError, match="quantization noise"):
        workshop.build("--quant-noise-pq", "0.1")


def test_ids_on_the_host_must_be_those_of_the_batch(specialized, batch):
    _, _, model, _ = specialized
    ids = batch["net_input"]["direction_ids"].unique().tolist()
    with pytest.raises(ModelError, match="distinct_ids are not those"):
        log_probabilities(model, {**batch["net_input"], "distinct_ids": tuple(ids[:-1])})
    net_input = {key: value for key, value in batch["net_input"].items() if key != "distinct_ids"}
    expected = log_probabilities(model, batch["net_input"])
    assert torch.equal(log_probabilities(model, net_input), expected)


# Directions without masks


def test_a_missing_direction_is_an_error_by_default(workshop, batch):
    _, _, model = workshop.build()
    model.set_masks(workshop.masks(model, ["en-qa", "qa-en"]), workshop.langs)
    with pytest.raises(ModelError, match="directions without masks") as caught:
        log_probabilities(model, batch["net_input"])
    assert "en-qb" in str(caught.value) and "en-qa, qa-en" in str(caught.value)
    log_probabilities(model, one_direction(batch, direction_id(Direction("en", "qa"), workshop.langs)))


@pytest.mark.parametrize("ffn_path", PATHS)
def test_a_missing_direction_may_run_dense(workshop, batch, ffn_path):
    _, _, model = workshop.build("--missing-direction", "dense", "--ffn-path", ffn_path)
    dense = log_probabilities(model, batch["net_input"])
    model.set_masks(workshop.masks(model, ["en-qa", "qa-en"]), workshop.langs)
    for net_input, expected in (
        (batch["net_input"], dense),
        *(
            (one_direction(batch, i), dense[batch["net_input"]["direction_ids"] == i])
            for i in batch["net_input"]["direction_ids"].unique().tolist()
        ),
    ):
        got, masked = (
            log_probabilities(model, net_input),
            torch.isin(net_input["direction_ids"], torch.tensor([1, 4])),
        )
        got, expected = got[:, : expected.size(1)], expected
        for row in range(len(got)):
            assert torch.allclose(got[row], expected[row], atol=1e-5) != bool(masked[row])


@pytest.mark.parametrize("ffn_path", PATHS)
def test_a_missing_direction_may_be_composed(workshop, batch, ffn_path):
    _, _, model = workshop.build("--missing-direction", "compose", "--ffn-path", ffn_path)
    langs = workshop.langs
    # qa-qb has the source of qa-en and the target of en-qb.
    parts = workshop.masks(model, ["qa-en", "en-qb"])
    net_input = one_direction(batch, direction_id(Direction("qa", "en"), langs))
    net_input = all_in(net_input, "qa-qb", langs)
    expected = copy.deepcopy(model)
    kept = {key: value[:1] if key.startswith("encoder") else value[1:] for key, value in parts.kept.items()}
    expected.set_masks(NeuronMasks([Direction("qa", "qb")], kept), langs)
    model.set_masks(parts, langs)
    torch.testing.assert_close(log_probabilities(model, net_input), log_probabilities(expected, net_input))
    with pytest.raises(ModelError, match="qm-qb"):  # nobody comes from qm
        log_probabilities(model, all_in(net_input, "qm-qb", langs))


def test_what_a_missing_direction_does_may_change_between_passes(workshop, batch):
    langs = workshop.langs
    _, _, model = workshop.build()
    parts = workshop.masks(model, ["qa-en", "en-qb"])
    model.set_masks(parts, langs)
    net_input = one_direction(batch, direction_id(Direction("qa", "en"), langs))
    net_input = all_in(net_input, "qa-qb", langs)
    outputs = {}
    for missing in ("dense", "compose"):
        model.set_languages(langs, missing)
        outputs[missing] = log_probabilities(model, net_input)
    assert not torch.allclose(outputs["dense"], outputs["compose"])
    model.set_languages(langs, "error")
    with pytest.raises(ModelError, match="directions without masks"):
        log_probabilities(model, net_input)
    model.set_languages(langs, "dense")
    assert torch.equal(log_probabilities(model, net_input), outputs["dense"])


# Beam search


def test_a_borrowing_direction_runs_through_its_lenders_neurons(workshop, batch):
    _, _, model = workshop.build("--missing-direction", "dense")
    model.set_masks(workshop.masks(model, ["en-qa", "qa-en", "en-qb"]), workshop.langs)
    borrower, lender, other = (
        one_direction(batch, direction_id(Direction.parse(name), workshop.langs))
        for name in ("en-qm", "en-qa", "en-qb")
    )
    as_lender, as_before, dense, lenders_own = (
        log_probabilities(model, all_in(borrower, "en-qa", workshop.langs)),
        log_probabilities(model, other),
        log_probabilities(model, borrower),  # looked up before, which borrowing must not outlive
        log_probabilities(model, lender),
    )
    model.borrow(Direction("en", "qm"), Direction("en", "qa"), workshop.langs)
    assert torch.equal(log_probabilities(model, borrower), as_lender) and not torch.equal(dense, as_lender)
    assert torch.equal(log_probabilities(model, other), as_before)
    assert torch.equal(log_probabilities(model, lender), lenders_own)
    masks = model.masks(workshop.langs)
    rows = [masks.directions.index(Direction("en", target)) for target in ("qm", "qa")]
    assert all(torch.equal(kept[rows[0]], kept[rows[1]]) for kept in masks.kept.values())


def test_only_a_direction_without_masks_borrows_and_only_from_one_with(workshop):
    en_qa, en_qb, en_qm = (Direction("en", target) for target in ("qa", "qb", "qm"))
    _, _, model = workshop.build()
    with pytest.raises(ModelError, match="dense model has no masks to borrow"):
        model.borrow(en_qm, en_qa, workshop.langs)
    model.set_masks(workshop.masks(model, ["en-qa", "qa-en"]), workshop.langs)
    with pytest.raises(ModelError, match="of its own"):
        model.borrow(Direction("qa", "en"), en_qa, workshop.langs)
    with pytest.raises(ModelError, match=r"cannot lend[\s\S]*one of en-qa, qa-en"):
        model.borrow(en_qm, en_qb, workshop.langs)
    with pytest.raises(DirectionError, match="unknown language"):
        model.borrow(en_qm, Direction("en", "xx"), workshop.langs)
    assert [str(d) for d in model.masks(workshop.langs).directions] == ["en-qa", "qa-en"]


@pytest.mark.parametrize("ffn_path", PATHS)
def test_beam_search_scores_are_those_of_teacher_forcing(workshop, ffn_path):
    cfg, task, model = workshop.build("--source-lang", "en", "--target-lang", "qb", "--ffn-path", ffn_path)
    masks = workshop.masks(model)
    model.set_masks(masks, workshop.langs)
    (sample, *_) = workshop.batches(task, "test")
    hypotheses = search(cfg, task, model, sample)
    differs_from_dense = 0.0
    for row, beams in enumerate(hypotheses):
        for beam in beams:
            net_input = teacher_forced(sample["net_input"], row, beam["tokens"])
            scores = log_probabilities(model, net_input)[0].gather(1, beam["tokens"][:, None]).squeeze(1)
            torch.testing.assert_close(beam["positional_scores"], scores, atol=1e-4, rtol=0)
            assert abs(float(beam["score"]) * len(scores) - float(scores.sum())) < 1e-4
            dense = workshop.build()[2] if not differs_from_dense else None
            if dense is not None:
                plain = log_probabilities(dense, net_input)[0].gather(1, beam["tokens"][:, None]).squeeze(1)
                differs_from_dense = float((plain - scores).abs().max())
    assert differs_from_dense > 1e-3


def search(
    cfg: Any, task: Any, model: Any, sample: dict[str, Any], **more: Any
) -> list[list[dict[str, Any]]]:
    generation = copy.deepcopy(cfg.generation)
    generation.beam, generation.max_len_a, generation.max_len_b, generation.nbest = 4, 0, 10, 4
    return task.inference_step(task.build_generator([model], generation), [model], sample, **more)


def teacher_forced(net_input: dict[str, Tensor], row: int, tokens: Tensor) -> dict[str, Tensor]:
    alone = rows_of(net_input, torch.tensor([row]))
    alone["prev_output_tokens"] = torch.cat([tokens.new_tensor([2]), tokens[:-1]])[None]
    return alone


def test_weights_are_gathered_once_per_direction_and_anew_after_training(workshop, monkeypatch):
    cfg, task, model = workshop.build("--source-lang", "en", "--target-lang", "qb", "--ffn-path", "gather")
    model.set_masks(workshop.masks(model), workshop.langs)
    gathered = []
    for kind, name in ((SpecializedFC1, "_rows"), (SpecializedFC2, "_columns")):
        method = getattr(kind, name)
        monkeypatch.setattr(kind, name, lambda *args, m=method: gathered.append(1) or m(*args))
    first, second, *_ = workshop.batches(task, "test")
    search(cfg, task, model, first)
    assert len(gathered) == 2 * len(model.ffn_layers())
    before = search(cfg, task, model, second)
    assert len(gathered) == 2 * len(model.ffn_layers())

    model.train()
    for fc1 in model.ffn_layers().values():  # as fairseq's optimizers write
        fc1.weight.data.mul_(-1)
    model.eval()
    after = search(cfg, task, model, second)
    assert len(gathered) == 4 * len(model.ffn_layers())
    assert float(before[0][0]["score"]) != float(after[0][0]["score"])
    monkeypatch.setattr(torch, "is_grad_enabled", lambda: True)  # never reuses
    fresh = search(cfg, task, model, second)
    assert [float(beams[0]["score"]) for beams in fresh] == [float(beams[0]["score"]) for beams in after]


def test_beam_search_on_a_mixed_batch_equals_sentence_by_sentence(workshop, batch):
    cfg, task, model = workshop.build("--source-lang", "en", "--target-lang", "qb")
    model.set_masks(workshop.masks(model), workshop.langs)
    first = batch["target"][:, :1]  # each sentence's own target language token
    together = search(cfg, task, model, batch, prefix_tokens=first)
    for row in range(len(first)):
        length = int(batch["net_input"]["src_lengths"][row])
        alone = rows_of(batch["net_input"], torch.tensor([row]))
        alone["src_tokens"] = alone["src_tokens"][:, -length:]
        (beams,) = search(cfg, task, model, {**batch, "net_input": alone}, prefix_tokens=first[row : row + 1])
        for one, other in zip(beams, together[row], strict=True):
            assert torch.equal(one["tokens"], other["tokens"])
            torch.testing.assert_close(
                one["positional_scores"], other["positional_scores"], atol=1e-4, rtol=0
            )


def test_interactive_batches_get_their_direction(workshop):
    cfg, task, model = workshop.build("--source-lang", "en", "--target-lang", "qb")
    model.set_masks(workshop.masks(model), workshop.langs)
    (sample, *_) = workshop.batches(task, "test")
    expected = search(cfg, task, model, sample)
    bare = {key: sample["net_input"][key] for key in ("src_tokens", "src_lengths")}
    got = search(cfg, task, model, {"net_input": bare})
    for beams, others in zip(got, expected, strict=True):
        assert [float(b["score"]) for b in beams] == [float(b["score"]) for b in others]


# The task's part


def test_the_task_specializes_from_a_file(workshop, batch, tmp_path):
    _, _, dense = workshop.build()
    masks = workshop.masks(dense)
    masks.save(tmp_path / "masks.safetensors")
    _, _, model = workshop.build("--neuron-masks", str(tmp_path / "masks.safetensors"))
    dense.set_masks(masks, workshop.langs)
    net_input = batch["net_input"]
    assert torch.equal(log_probabilities(model, net_input), log_probabilities(dense, net_input))


@pytest.mark.parametrize(
    ("metadata", "directions", "match"),
    [
        ({"dictionary_sha256": "other"}, None, "another dictionary"),
        ({}, ["en-qa"], "directions without masks"),
        ({"neuron_sets": "direction"}, None, "another kind"),
        ({"checkpoint_sha256": "other"}, None, "another checkpoint"),
    ],
)
def test_the_task_refuses_masks_made_for_something_else(
    workshop, checkpoint, tmp_path, metadata, directions, match
):
    masks = workshop.masks(workshop.build()[2], directions or ())
    masks.metadata = {"neuron_sets": "language", **metadata}
    masks.save(tmp_path / "masks.safetensors")
    flags = ["--neuron-masks", str(tmp_path / "masks.safetensors"), "--neuron-sets", "language"]
    with pytest.raises(ModelError, match=match):
        workshop.build(*flags, "--finetune-from-model", str(checkpoint))


def test_the_task_takes_masks_of_the_checkpoint_it_starts_from(workshop, checkpoint, tmp_path):
    from neuron_spec.backends.fairseq.checkpoints import checkpoint_sha256

    masks = workshop.masks(workshop.build()[2])
    masks.metadata = {"checkpoint_sha256": checkpoint_sha256(checkpoint)}
    masks.save(tmp_path / "masks.safetensors")
    flags = ["--neuron-masks", str(tmp_path / "masks.safetensors")]
    assert workshop.build(*flags, "--finetune-from-model", str(checkpoint))[2].has_masks


@pytest.mark.parametrize(
    "flags",
    [
        ("--langs", "en,zh-Hans", "--lang-pairs", "zh-Hans-en,en-zh-Hans"),
        ("--langs", "en,zh-Hans"),
        ("--lang-pairs", "en-qa,qa-zh-Hans"),
        ("--source-lang", "zh-Hans", "--target-lang", "en"),
    ],
)
def test_codes_that_fairseq_would_part_are_refused_by_the_task(workshop, flags):
    with pytest.raises(DirectionError, match=r"at every hyphen[\s\S]*zh_Hans"):
        workshop.build(*flags)


@pytest.mark.parametrize("flags", [("--enable-lang-ids",), ("--lang-tok-replacing-bos-eos",)])
def test_the_task_refuses_flags_that_would_lose_directions(workshop, flags):
    with pytest.raises(ModelError, match="not supported"):
        workshop.build(*flags)


def test_a_loaded_ensemble_from_disk_translates_as_the_model_in_memory(
    workshop, specialized, batch, tmp_path
):
    from fairseq import checkpoint_utils

    cfg, _, model, _ = specialized
    path = workshop.save(tmp_path / "specialized.pt", cfg, model)
    random.seed(0)
    (loaded,), _, _ = checkpoint_utils.load_model_ensemble_and_task([str(path)])
    loaded.eval()
    assert torch.equal(
        log_probabilities(loaded, batch["net_input"]), log_probabilities(model, batch["net_input"])
    )


@pytest.mark.parametrize("is_mixed", [False, True])
def test_frozen_neurons_leave_the_dense_model_as_it_is(workshop, batch, is_mixed):
    dense = workshop.build()
    cfg, task, model = workshop.build("--dropped-neurons", "frozen")
    masks = workshop.masks(model)
    for kept in masks.kept.values():
        kept[:, :3] = False
    model.set_masks(masks, workshop.langs)
    net_input = batch["net_input"] if is_mixed else one_direction(batch, 1)
    assert torch.equal(log_probabilities(model, net_input), log_probabilities(dense[2], net_input))
    sample = {**batch, "net_input": net_input, "target": batch["target"][: len(net_input["src_tokens"])]}
    _, gradients = loss_and_gradients(cfg, task, model, sample)
    _, dense_gradients = loss_and_gradients(*dense, sample)
    everyone_drops = {key: ~kept.any(dim=0) for key, kept in masks.kept.items()}
    assert any(rows.any() for rows in everyone_drops.values())
    for key, rows in everyone_drops.items():
        assert (
            not gradients[f"{key}.fc1.weight"][rows].any()
            and not gradients[f"{key}.fc2.weight"][:, rows].any()
        )
    shared = next(name for name in gradients if "embed_tokens" in name)
    torch.testing.assert_close(gradients[shared], dense_gradients[shared])


def test_weight_decay_moves_no_frozen_neuron(workshop, tmp_path):
    workshop.masks(workshop.build()[2]).save(tmp_path / "masks.safetensors")
    flags = (
        *("--neuron-masks", tmp_path / "masks.safetensors", "--masks-on-random-weights"),
        *("--dropped-neurons", "frozen", "--weight-decay", "0.1"),
    )
    with pytest.raises(ModelError, match="weight decay moves"):
        workshop.build(*map(str, flags))
    workshop.build(*map(str, flags[:-1]), "0")


@pytest.mark.parametrize(
    "flags", [("--frozen-weights", "fc1.weight"), ("--dropped-neurons", "frozen", "--frozen-weights", "fc3")]
)
def test_weights_are_frozen_where_they_can_be(workshop, flags):
    with pytest.raises(ModelError, match="cannot be heeded"):
        workshop.build(*flags)
