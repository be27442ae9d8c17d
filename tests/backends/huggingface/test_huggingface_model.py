"""A specialized model of transformers: what fairseq's is, bit for bit the plain one where nothing is dropped."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from tiny_models import DIRECTIONS, KINDS, PAD, batch, build, random_masks, t5, transformers

from neuron_spec.backends.huggingface import direction, specialize, unspecialize, weights_sha256
from neuron_spec.backends.huggingface.ffns import ffns
from neuron_spec.errors import DirectionError, ModelError
from neuron_spec.modules.specialized_ffn import SpecializedFC1
from neuron_spec.neurons.masks import NeuronMasks

EN_DE = DIRECTIONS[0]


@pytest.fixture
def model() -> Any:
    return build()


def logits(model: Any, inputs: dict[str, torch.Tensor], asked: Any = None) -> torch.Tensor:
    with torch.no_grad():
        if asked is None:
            return model(**inputs).logits
        with direction(model, asked):
            return model(**inputs).logits


def text_of(logits: torch.Tensor, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    return logits[inputs["labels"] != -100]


@pytest.mark.parametrize("kind", KINDS)
def test_without_masks_and_with_all_kept_it_is_the_plain_model_bit_for_bit(kind):
    model, inputs = build(kind), batch()
    plain = logits(model, inputs)
    assert specialize(model) is model
    assert torch.equal(logits(model, inputs), plain)
    specialize(model, random_masks(model, kept=2.0))
    assert torch.equal(logits(model, inputs, EN_DE), plain)
    specialize(model, random_masks(model))
    assert not torch.allclose(logits(model, inputs, EN_DE), plain)


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_the_reference_form(kind):
    """fc2(relu(mask * (W1 x) + b1)), computed by hooks in a plain model."""
    model, inputs = build(kind), batch()
    masks = random_masks(model)
    for key, ffn in ffns(model).items():
        kept, fc1 = masks.kept[key][1], ffn.layer.fc1
        fc1.register_forward_hook(lambda fc1, _, out, kept=kept: (out - fc1.bias) * kept + fc1.bias)
    by_hand = logits(model, inputs)
    found = logits(specialize(build(kind), masks), inputs, "de-en")
    torch.testing.assert_close(text_of(found, inputs), text_of(by_hand, inputs), rtol=0, atol=1e-5)


def test_it_is_idempotent_and_takes_other_masks(model):
    inputs, masks = batch(), random_masks(model)
    specialize(model, masks)
    once, names = logits(model, inputs, EN_DE), [type(m) for m in model.modules()]
    specialize(model, masks)
    assert [type(m) for m in model.modules()] == names
    assert torch.equal(logits(model, inputs, EN_DE), once)
    specialize(model)  # those that are there stay
    assert torch.equal(logits(model, inputs, EN_DE), once)
    specialize(model, random_masks(model, seed=2))
    other = logits(model, inputs, EN_DE)
    assert torch.equal(other, logits(specialize(build(), random_masks(model, seed=2)), inputs, EN_DE))
    assert not torch.equal(other, once)


def test_it_is_made_plain_again_bit_for_bit(model):
    inputs, modules = batch(), list(model.modules())
    kinds, keys, before = list(map(type, modules)), list(model.state_dict()), logits(model, inputs)
    parameters = list(model.parameters())
    specialize(model, random_masks(model))
    assert list(model.state_dict()) == keys, "masks do not travel with the weights"
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    assert unspecialize(model) is model
    assert list(model.modules()) == modules and list(map(type, modules)) == kinds
    assert torch.equal(logits(model, inputs), before)
    assert unspecialize(model) is model
    assert not any("neuron" in name for module in model.modules() for name in vars(module))


def test_unspecialized_keeps_what_was_learned_and_the_precision(model):
    specialize(model, random_masks(model))
    with torch.no_grad():
        model.get_encoder().layers[0].fc1.weight += 1
    model.double()
    state = {key: value.clone() for key, value in model.state_dict().items()}
    unspecialize(model)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert {value.dtype for value in state.values()} == {torch.float64}


@pytest.mark.parametrize("dropped", ["bias", "zero"])
def test_gathering_equals_multiplying(model, dropped):
    inputs, masks, found, widths = batch(), random_masks(model), {}, {}
    for path in ("gather", "multiply", "auto"):
        specialize(model, masks, ffn_path=path, dropped_neurons=dropped)
        fc2 = model.get_encoder().layers[0].fc2
        seen = fc2.register_forward_pre_hook(
            lambda _, args, path=path: widths.update({path: args[0].size(-1)})
        )
        found[path] = logits(model, inputs, EN_DE)
        seen.remove()
    assert widths["gather"] == widths["auto"] < widths["multiply"] == 48
    torch.testing.assert_close(found["gather"], found["multiply"], rtol=0, atol=1e-5)
    assert torch.equal(found["gather"], found["auto"])


@pytest.mark.parametrize("as_tensor", [False, True])
def test_several_directions_in_a_batch_are_each_as_alone(model, as_tensor):
    inputs = batch(6)
    specialize(model, random_masks(model), ffn_path="multiply")
    numbers = [0, 2, 1, 1, 0, 2]
    asked = torch.tensor(numbers) if as_tensor else [DIRECTIONS[i] for i in numbers]
    mixed = logits(model, inputs, asked)
    for row, number in enumerate(numbers):
        alone = logits(model, inputs, DIRECTIONS[number])[row]
        torch.testing.assert_close(mixed[row], alone, rtol=0, atol=1e-6)


def test_padding_and_batch_size_change_nothing(model):
    specialize(model, random_masks(model))
    inputs, padded = batch(6), batch(6, source=3, target=2)
    whole = logits(model, inputs, EN_DE)
    more = logits(model, padded, EN_DE)[:, : whole.size(1)]
    torch.testing.assert_close(text_of(more, inputs), text_of(whole, inputs), rtol=0, atol=1e-5)
    for row in range(6):
        one = {key: value[row : row + 1] for key, value in inputs.items()}
        torch.testing.assert_close(logits(model, one, EN_DE)[0], whole[row], rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "how", [{"num_beams": 3}, {"num_beams": 4, "num_return_sequences": 2}, {"use_cache": False}]
)
def test_generation_of_several_directions_is_that_of_each_alone(kind, how):
    model, inputs = build(kind), batch(6)
    del inputs["labels"]
    specialize(model, random_masks(model), ffn_path="multiply")
    asked = ["en-de", "en-fr", "de-en", "de-en", "en-fr", "en-de"]
    how = {"max_new_tokens": 12, "do_sample": False, **how}
    with direction(model, asked):
        mixed = model.generate(**inputs, **how)
    times = how.get("num_return_sequences", 1)
    seen = set()
    for row, one in enumerate(asked):
        alone = {key: value[row : row + 1] for key, value in inputs.items()}
        with direction(model, one):
            found = model.generate(**alone, **how)
        ours = mixed[row * times : (row + 1) * times]
        for mine, theirs in zip(ours, found, strict=True):
            length = min(len(mine), len(theirs))
            assert mine[:length].tolist() == theirs[:length].tolist()
            assert set(mine[length:].tolist()) | set(theirs[length:].tolist()) <= {PAD}
        seen.add(tuple(found[0].tolist()))
    assert len(seen) > 1


def gradients(model: Any, work: Any) -> dict[str, torch.Tensor]:
    model.zero_grad()
    work()
    return {key: p.grad.clone() for key, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("path", ["gather", "multiply"])
def test_dropped_neurons_get_no_gradient(model, path):
    masks = random_masks(model)
    specialize(model.train(), masks, ffn_path=path, dropped_neurons="zero")

    def work() -> None:
        with direction(model, EN_DE):
            model(**batch()).loss.backward()

    found = gradients(model, work)
    for key, kept in masks.kept.items():
        of = found[f"model.{key}.fc1.weight"]
        assert bool((of[~kept[0]] == 0).all()) and bool((of[kept[0]] != 0).any())
        of = found[f"model.{key}.fc2.weight"]
        assert bool((of[:, ~kept[0]] == 0).all()) and bool((of[:, kept[0]] != 0).any())


def test_frozen_neurons_compute_and_do_not_learn(model):
    masks, inputs = random_masks(model), batch()
    plain = logits(model, inputs)
    specialize(model.train(), masks, dropped_neurons="frozen")
    for asked in (EN_DE, [EN_DE, "de-en"] * 3):

        def work(asked: Any = asked) -> None:
            with direction(model, asked):
                model(**inputs).loss.backward()

        assert torch.equal(logits(model, inputs, asked), plain)
        found = gradients(model, work)
        for key, kept in masks.kept.items():
            own = kept[0] if asked == EN_DE else kept[:2].any(0)
            of = found[f"model.{key}.fc1.weight"]
            assert bool((of[~own] == 0).all()) and bool((of[own] != 0).any())


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_gives_the_same_gradients(reentrant):
    """Another direction runs between the forward and the backward pass, as where gradients are accumulated."""
    model, masks, first, second = build(), random_masks(build()), batch(seed=1), batch(seed=2)
    specialize(model.train(), masks)

    def work() -> None:
        losses = []
        for asked, inputs in ((EN_DE, first), (["de-en", "en-fr"] * 3, second)):
            with direction(model, asked):
                losses.append(model(**inputs, use_cache=False).loss)
        sum(losses).backward()

    wanted = gradients(model, work)
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    if reentrant:
        model.enable_input_require_grads()
    assert model.get_encoder().layers[0].gradient_checkpointing
    found = gradients(model, work)
    assert wanted.keys() == found.keys()
    for key, value in wanted.items():  # some are added up in another order
        torch.testing.assert_close(found[key], value, rtol=0, atol=1e-7)


def test_it_runs_in_bfloat16(model):
    inputs = batch()
    specialize(model, random_masks(model))
    wanted = logits(model, inputs, EN_DE)
    found = logits(model.to(torch.bfloat16), inputs, EN_DE)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), wanted, rtol=0.1, atol=0.1)
    with direction(model, [EN_DE, "de-en", "en-fr"] * 2):
        model.train()(**inputs).loss.backward()
    assert model.get_encoder().layers[0].fc1.weight.grad.dtype == torch.bfloat16


def test_attention_by_sdpa_and_eager_is_the_same():
    inputs, found = batch(), []
    for attention in ("sdpa", "eager"):
        model = build(attn_implementation=attention)
        assert model.config._attn_implementation == attention
        found.append(text_of(logits(specialize(model, random_masks(model)), inputs, EN_DE), inputs))
    torch.testing.assert_close(*found, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_compiling_leaves_the_ffns_and_does_not_compile_anew_for_each_direction():
    from torch._dynamo.testing import CompileCounter

    model, inputs = build(encoder_layers=1, decoder_layers=1), batch()
    names = [f"{a}-{b}" for a in ("aa", "ab", "ac") for b in ("ba", "bb", "bc", "bd")]
    specialize(model, random_masks(model, directions=names))
    counter = CompileCounter()
    compiled, graphs = torch.compile(model, backend=counter), []
    for one in names:
        with torch.no_grad(), direction(model, one):
            assert torch.equal(compiled(**inputs).logits, model(**inputs).logits)
        graphs.append(counter.frame_count)
    assert graphs[0] > 0 and graphs[-1] <= graphs[3] + 2


def test_a_copy_is_a_model_of_its_own(model):
    inputs = batch()
    specialize(model, random_masks(model))
    wanted, other = logits(model, inputs, EN_DE), copy.deepcopy(model)
    with direction(model, "de-en"):
        assert torch.equal(logits(other, inputs, EN_DE), wanted)
    unspecialize(model)
    assert torch.equal(logits(other, inputs, EN_DE), wanted)
    with torch.no_grad():
        other.get_encoder().layers[0].fc2.bias += 1
    assert not torch.equal(logits(other, inputs, EN_DE), wanted)
    assert torch.equal(logits(specialize(model, random_masks(model)), inputs, EN_DE), wanted)


def test_directions_nest_and_end_with_their_block(model):
    inputs = batch()
    specialize(model, random_masks(model))
    of = {one: logits(model, inputs, one) for one in DIRECTIONS}
    with torch.no_grad(), direction(model, "en-de"):
        with pytest.raises(ZeroDivisionError), direction(model, "en-fr"):
            assert torch.equal(model(**inputs).logits, of["en-fr"])
            raise ZeroDivisionError
        assert torch.equal(model(**inputs).logits, of["en-de"])
    with pytest.raises(ModelError, match="without a direction"):
        model(**inputs)


@pytest.mark.parametrize(
    ("asked", "error", "said"),
    [
        ("en-dx", DirectionError, "did you mean en-de"),
        ("ende", DirectionError, "malformed direction"),
        (["en-de", "en-xx"], DirectionError, "en-xx"),
        ([], DirectionError, "no directions"),
        (torch.tensor([0, 3]), DirectionError, "0 to 2"),
        (torch.tensor([-1]), DirectionError, "-1"),
        (torch.tensor([0.0]), DirectionError, "int64"),
        (None, DirectionError, "not a direction"),
        (5, DirectionError, "not a direction"),
        ([None], DirectionError, "malformed direction"),
    ],
)
def test_unknown_directions_are_refused(model, asked, error, said):
    specialize(model, random_masks(model))
    with pytest.raises(error, match=said), direction(model, asked):
        pass


@pytest.mark.parametrize(
    "asked", [["en-de"] * 3, ["en-de", "de-en", "en-fr"], ["en-de"] * 12, torch.tensor([0, 1])]
)
def test_directions_of_another_batch_are_refused(model, asked):
    specialize(model, random_masks(model))
    with pytest.raises(ModelError, match="6 sentences"), direction(model, asked):
        model(**batch(6))


def test_a_plain_model_has_no_direction(model):
    with pytest.raises(ModelError, match="specialize"), direction(model, EN_DE):
        pass
    specialize(model)  # without masks directions change nothing
    inputs = batch()
    assert torch.equal(logits(model, inputs, EN_DE), logits(model, inputs))


def change(masks: NeuronMasks, **metadata: Any) -> NeuronMasks:
    return NeuronMasks(masks.directions, masks.kept, metadata)


def test_masks_of_another_model_are_refused(model):
    masks = random_masks(model)
    fewer = NeuronMasks(masks.directions, {k: v for k, v in masks.kept.items() if "0" in k})
    wider = NeuronMasks(masks.directions, {k: torch.cat([v, v], 1) for k, v in masks.kept.items()})
    heads = NeuronMasks(
        masks.directions, masks.kept | {"encoder.layers.0.self_attn": torch.ones(3, 2).bool()}
    )
    other = change(masks, checkpoint_sha256=weights_sha256(build(seed=2)))
    for wrong, said in (
        (fewer, "another model"), (wider, "another model"), (heads, "attention heads"), (other, "other weights"),
    ):  # fmt: skip
        with pytest.raises(ModelError, match=said):
            specialize(model, wrong)
        assert not any(isinstance(module, SpecializedFC1) for module in model.modules()), (
            "nothing was changed"
        )
    specialize(model, other, allow_other_checkpoint=True)
    unspecialize(model)
    specialize(model, change(masks, checkpoint_sha256=weights_sha256(model)))


def test_weights_have_the_same_hash_in_bfloat16_and_specialized():
    model = build()
    wanted = weights_sha256(model)
    specialize(model, random_masks(model))
    assert weights_sha256(model) == wanted
    assert weights_sha256(build().to(torch.bfloat16)) == wanted
    assert weights_sha256(build(seed=2)) != wanted


def refused(model: Any, said: str) -> None:
    with pytest.raises(ModelError, match=said):
        specialize(model)


def test_other_models_are_refused_with_the_reason():
    refused(build("bart", activation_function="gelu"), "another activation(.|\n)*encoder.layers.0(.|\n)*GELU")
    refused(t5(), "GLU")
    refused(t5(gated=False), "only profiled(.|\n)*wi, wo")
    config = transformers.GPT2Config(vocab_size=10, n_embd=8, n_layer=1, n_head=1)
    refused(transformers.GPT2LMHeadModel(config), "not an encoder-decoder(.|\n)*GPT2LMHeadModel")
    refused(torch.nn.Linear(2, 2), "not an encoder-decoder")
    model = build()
    model.get_encoder().layers[1].fc1 = torch.nn.Sequential(model.get_encoder().layers[1].fc1)
    refused(model, "encoder.layers.1(.|\n)*Sequential(.|\n)*merge adapters")
    model = build()
    model.get_decoder().layers[0].fc2 = type("Linear4bit", (torch.nn.Linear,), {})(40, 16)
    refused(model, "decoder.layers.0(.|\n)*Linear4bit(.|\n)*without quantization")
    model = build()
    model.get_encoder().layers[0].forward = lambda *args, **kwargs: args[0]
    refused(model, "forward was replaced")


@pytest.mark.parametrize("flag", [{"dropped_neurons": "gone"}, {"ffn_path": "fast"}])
def test_unknown_choices_are_refused(model, flag):
    with pytest.raises(ModelError, match="no such choice"):
        specialize(model, random_masks(model), **flag)
