"""Counts in a model of transformers are those of fairseq's backend, and of single sentences whatever the batches."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from converted import m2m_100
from tiny_models import DIRECTIONS, KINDS, PAD, batch, build, random_masks, rows, t5

from neuron_spec.backends.huggingface import NeuronCounter, direction, profile, specialize, unspecialize
from neuron_spec.backends.huggingface.ffns import ffns
from neuron_spec.backends.huggingface.profiling import signed_profile
from neuron_spec.directions import Direction, direction_id, parse_directions
from neuron_spec.errors import CorpusError, DirectionError, ModelError, NeuronSpecError
from neuron_spec.neurons.activations import ActivationCounts, side_of
from neuron_spec.neurons.choices import Part
from neuron_spec.neurons.masks import NeuronMasks
from neuron_spec.neurons.selection import select

TEXT = {one: rows(25, seed=seed) for seed, one in enumerate(DIRECTIONS)}


def same(a: ActivationCounts, b: ActivationCounts) -> bool:
    return a.names == b.names and all(
        torch.equal(one[key], other[key])
        for one, other in ((a.counts, b.counts), (a.tokens, b.tokens))
        for key in one
    )


def by_hand(model: Any, text: dict[str, Any], rule: str = "relu") -> ActivationCounts:
    """One sentence at a time, without padding, from the pre-activations."""
    found = ActivationCounts.zeros(
        parse_directions(text), {key: ffn.width for key, ffn in ffns(model).items()}
    )
    hidden: dict[str, torch.Tensor] = {}
    for key, ffn in ffns(model).items():
        watched = getattr(ffn.holder, ffn.gate or ffn.up)
        watched.register_forward_hook(lambda _, args, out, key=key: hidden.__setitem__(key, out))
    for row, pairs in enumerate(text.values()):
        for pair in pairs:
            source, target = torch.tensor([pair["input_ids"]]), torch.tensor([pair["labels"]])
            with torch.no_grad():
                model(input_ids=source, labels=target)
            for key, values in hidden.items():
                found.counts[key][row] += (values > 0).sum(dim=(0, 1))
            found.tokens["encoder"][row] += source.size(1)
            found.tokens["decoder"][row] += target.size(1)
    return found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("max_tokens", [30, 5000])
def test_counts_are_those_of_single_sentences_whatever_the_batches(kind, max_tokens):
    wanted = by_hand(build(kind), TEXT)
    found = profile(build(kind), TEXT, max_tokens=max_tokens)
    assert same(found, wanted)
    assert all(bool((values > 0).any()) for values in found.counts.values())


def test_of_a_plain_model_nothing_is_changed():
    model = build()
    before = {key: type(module) for key, module in model.named_modules()}
    hooks = [len(module._forward_pre_hooks) for module in model.modules()]
    profile(model.train(), TEXT)
    assert {key: type(module) for key, module in model.named_modules()} == before and model.training
    assert [len(module._forward_pre_hooks) for module in model.modules()] == hooks


def test_counting_padding_counts_every_position():
    found = profile(build(), TEXT, count_padding=True)
    assert bool((found.tokens["decoder"] > profile(build(), TEXT).tokens["decoder"]).all())
    assert found.metadata["signature"]["parameters"]["counted"] == "every position, padding too"


def test_parts_add_up_to_the_whole():
    model = build()
    parts = [profile(model, TEXT, part=Part(i, 3), max_tokens=50) for i in (1, 2, 3)]
    assert same(sum(parts[1:], parts[0]), profile(model, TEXT))
    assert parts[0].metadata["part"] == "1/3"


def test_the_order_of_directions_and_how_text_comes_do_not_matter():
    model = build()
    wanted = profile(model, TEXT)

    def streamed(pairs: list[Any]) -> Iterator[Any]:
        yield from pairs

    turned = {one: streamed(TEXT[one]) for one in reversed(DIRECTIONS)}
    assert same(profile(model, turned).of(DIRECTIONS), wanted)
    again = profile(model, {one: streamed(pairs) for one, pairs in TEXT.items()})
    assert again.metadata["signature"]["inputs"] == wanted.metadata["signature"]["inputs"]
    signed = signed_profile(model, {Direction.parse(one): pairs for one, pairs in TEXT.items()})
    assert signed == wanted.metadata


def test_a_specialized_model_is_profiled_through_its_own_neurons():
    model = build()
    masks = random_masks(model)
    found = profile(specialize(model, masks, dropped_neurons="zero", ffn_path="gather"), TEXT)
    for layer, values in found.counts.items():
        assert bool((values[~masks.kept[layer]] == 0).all()) and bool((values[masks.kept[layer]] > 0).any())
    with pytest.raises(DirectionError, match="without masks"):
        profile(model, TEXT | {"en-xx": TEXT["en-de"]})


def test_a_loop_of_ones_own_counts_the_same():
    model = build()
    counter = NeuronCounter(model, ["en-de"])
    for seed in (1, 2):
        inputs = batch(seed=seed, source=2, target=3)
        with torch.no_grad(), counter.counting("en-de", inputs):
            model(**inputs)
        with torch.no_grad():
            model(**inputs)  # outside the block
    assert same(counter.result(), by_hand(build(), {"en-de": rows(6, seed=1) + rows(6, seed=2)}))


def test_without_a_mask_padding_is_told_by_its_token():
    model, inputs = build(), batch(source=2)
    counters = [NeuronCounter(model, ["en-de"]) for _ in range(2)]
    mask = inputs.pop("attention_mask")
    with torch.no_grad():
        with counters[0].counting("en-de", inputs):
            model(**inputs, attention_mask=mask)
        with counters[1].counting("en-de", {**inputs, "attention_mask": mask}):
            model(**inputs, attention_mask=mask)
    assert same(counters[0].result(), counters[1].result())
    with pytest.raises(ModelError, match="which tokens are real"), counters[0].counting("en-de", {}):
        pass
    with pytest.raises(DirectionError, match="not profiled"), counters[0].counting("de-en", inputs):
        pass


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_hundred_directions_in_one_run(dtype):
    names = [f"{a}{b}-en" for a in "abcdefghij" for b in "klmnopqrst"]
    found = profile(build().to(dtype), {one: rows(2, seed=i) for i, one in enumerate(names)})
    assert found.names == names and bool((found.tokens["encoder"] > 0).all())
    assert found.metadata["signature"]["parameters"]["dtype"] == str(dtype).removeprefix("torch.")


def test_of_the_text_only_so_many_pairs_are_in_memory(monkeypatch):
    """However long it is: of a generator no more has been drawn than was run, but for one part of a direction."""
    monkeypatch.setattr("neuron_spec.backends.huggingface.text._PAIRS_AT_A_TIME", 10)
    model, seen = build(), {"drawn": 0, "run": 0, "most": 0}

    def drawn(seed: int) -> Iterator[Any]:
        for row in rows(35, seed=seed):
            seen["drawn"] += 1
            yield row

    def run(module: Any, args: Any, inputs: dict[str, torch.Tensor]) -> None:
        seen["most"] = max(seen["most"], seen["drawn"] - seen["run"])
        seen["run"] += len(inputs["input_ids"])

    model.base_model.register_forward_pre_hook(run, with_kwargs=True)
    found = profile(model, {one: drawn(seed) for seed, one in enumerate(DIRECTIONS)}, max_tokens=60)
    assert seen == {"drawn": 105, "run": 105, "most": 10}
    assert same(found, profile(build(), {one: rows(35, seed=seed) for seed, one in enumerate(DIRECTIONS)}))


# GLUs


def test_gated_neurons_are_active_where_their_gate_is():
    found = profile(t5(), TEXT, active_rule="gate")
    assert same(found, by_hand(t5(), TEXT))
    assert found.metadata["signature"]["parameters"]["active_rule"] == "gate"
    assert "active_rule" not in profile(build(), TEXT).metadata["signature"]["parameters"]
    assert select(found, k=95).layers == found.layers


def test_t5_with_relu_is_profiled_as_it_is():
    found = profile(t5(gated=False), TEXT)
    assert same(found, by_hand(t5(gated=False), TEXT))


@pytest.mark.parametrize(
    ("model", "rule", "said"),
    [
        (t5(), None, "nearly every one(.|\n)*--active-rule gate"),
        (t5(), "relu", "nearly every one"),
        (build(), "gate", "have no gate"),
        (build(), "sigmoid", "no such rule"),
        (build("bart", activation_function="gelu"), None, "GELU"),
    ],
)
def test_rules_that_mean_nothing_are_refused(model, rule, said):
    with pytest.raises(ModelError, match=said):
        profile(model, TEXT, active_rule=rule)


# fairseq


@pytest.fixture(scope="module")
def of_fairseq(workshop: Any) -> tuple[Any, dict[str, Any]]:
    """A dense model, and its validation data as tokens."""
    _, task, model = workshop.build()
    task.load_dataset("valid")
    dataset, text = task.dataset("valid"), {one: [] for one in workshop.lang_pairs.split(",")}
    name = {direction_id(d, workshop.langs): str(d) for d in parse_directions(workshop.lang_pairs)}
    for i in range(len(dataset)):
        sample = dataset[i]
        tokens = {"input_ids": sample["source"].tolist(), "labels": sample["target"].tolist()}
        text[name[int(sample["direction_id"])]].append(tokens)
    return model, text


def test_a_profile_is_that_of_fairseqs_backend(workshop, checkpoint, of_fairseq, tmp_path):
    from neuron_spec.cli.main import main

    model, text = of_fairseq
    output = tmp_path / "p.safetensors"
    command = ["profile", str(workshop.data_bin), "--path", str(checkpoint), "--output", str(output), "--cpu"]
    assert main(command) == 0
    found = profile(m2m_100(model.state_dict(), heads=2), text)
    wanted = ActivationCounts.load(output)
    assert same(found, wanted) and bool((wanted.tokens["encoder"] > 0).all())


def test_masks_of_either_backend_work_in_the_other(workshop, of_fairseq):
    model, text = of_fairseq
    theirs = m2m_100(model.state_dict(), heads=2)
    masks = select(profile(theirs, text), k=70)
    assert min(float(values.min()) for values in masks.sparsity().values()) > 0
    _, task, ours = workshop.build()
    ours.set_masks(masks, workshop.langs)
    specialize(theirs, masks)
    for net_input in [sample["net_input"] for sample in workshop.batches(task)]:
        (number,) = net_input["distinct_ids"]
        one = next(d for d in masks.directions if direction_id(d, workshop.langs) == number)
        source, before = net_input["src_tokens"], net_input["prev_output_tokens"]
        real = before != PAD
        source_at_end = torch.full_like(source, PAD)  # fairseq pads at the start
        for row, tokens in enumerate(source):
            kept = tokens[tokens != PAD]
            source_at_end[row, : len(kept)] = kept
        with torch.no_grad(), direction(theirs, one):
            wanted = ours(**net_input)[0]
            found = theirs(
                input_ids=source_at_end,
                attention_mask=(source_at_end != PAD).long(),
                decoder_input_ids=before,
            ).logits
        torch.testing.assert_close(found[real], wanted[real], rtol=0, atol=1e-4)


def test_masks_of_fairseqs_backend_are_taken_when_asked(of_fairseq, tmp_path):
    model, _ = of_fairseq
    theirs = m2m_100(model.state_dict(), heads=2)
    masks = random_masks(theirs)
    NeuronMasks(masks.directions, masks.kept, {"checkpoint_sha256": "of a fairseq checkpoint"}).save(
        tmp_path / "m.safetensors"
    )
    loaded = NeuronMasks.load(tmp_path / "m.safetensors")
    with pytest.raises(ModelError, match="allow_other_checkpoint"):
        specialize(theirs, loaded)
    specialize(theirs, loaded, allow_other_checkpoint=True)
    unspecialize(theirs)


@pytest.mark.slow
def test_no_fairseq_is_imported():
    code = (
        "import sys\n"
        "sys.modules.update(dict.fromkeys(('fairseq', 'fairseq_cli', 'omegaconf', 'hydra')))\n"
        "from tiny_models import *\n"
        "from neuron_spec.backends.huggingface import profile, specialize\n"
        "model = build()\n"
        "specialize(model, random_masks(model))\n"
        "profile(model, {one: rows(2) for one in DIRECTIONS})\n"
        "assert sys.modules['fairseq'] is None\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parent
    )
    assert done.returncode == 0, done.stderr


# Text


@pytest.mark.parametrize(
    ("text", "error", "said"),
    [
        ({"en-de": [{"input_ids": [5, 2]}]}, CorpusError, "without labels"),
        ({"en-de": [("a", "b")]}, NeuronSpecError, "without a tokenizer"),
        ({"en-de": (["a", "b"], ["c"])}, CorpusError, "not parallel(.|\n)*1 lines, and more on the source"),
        ({"en-de": [{"translation": {"en": "a", "fr": "b"}}]}, CorpusError, "expected: *de"),
        ({"en-de": ["a", "b", "c"]}, CorpusError, "not a pair"),
        ({"en-de": ("a", "b")}, NeuronSpecError, "0 tokens"),
        ({"en-de": []}, NeuronSpecError, "0 tokens for en-de"),
        ({"ende": []}, DirectionError, "malformed"),
        ({}, DirectionError, "no directions"),
        ({"en-de": [{"input_ids": [5] * 99, "labels": [2]}]}, NeuronSpecError, "0 tokens"),
        ({"en-de": [{"input_ids": [-5, 2], "labels": [3]}]}, ModelError, "token -5"),
        ({"en-de": [{"input_ids": [5, 2], "labels": [3, -7, -100]}]}, ModelError, "token -7"),
        ({"en-de": [{"input_ids": [[5, 2]], "labels": [[3]]}]}, CorpusError, "not the tokens of a sentence"),
        ({"en-de": [{"input_ids": [5.5], "labels": [3]}]}, CorpusError, "not the tokens of a sentence"),
        ({"en-de": [{"input_ids": "5 2", "labels": [3]}]}, CorpusError, "not the tokens of a sentence"),
        ({"en-de": [{"input_ids": [5], "labels": None}]}, CorpusError, "labels of en-de"),
        ({"en-de": [{"input_ids": torch.ones(1, 3).long(), "labels": [3]}]}, CorpusError, "not the tokens"),
        ({"en-de": [{"input_ids": [], "labels": [3]}]}, CorpusError, "one or more"),
        ({"en-de": None}, CorpusError, "not pairs of en-de"),
        ({"en-de": ([1], [2])}, CorpusError, "not a pair of en-de"),
        ({"en-de": [{"en": None, "de": "a"}]}, CorpusError, "not a pair of en-de"),
        ({5: []}, DirectionError, "malformed"),
        (["en-de"], CorpusError, "not text by direction"),
        (None, CorpusError, "not text by direction"),
    ],
)
def test_text_that_cannot_be_read_is_refused(text, error, said):
    with pytest.raises(error, match=said):
        profile(build(), text)


def test_pairs_that_are_too_long_are_left_out_and_counted(capsys):
    text = {
        "en-de": [*rows(5), {"input_ids": [5] * 65, "labels": [2]}, {"input_ids": [5], "labels": [6] * 99}]
    }
    assert same(profile(build(), text), profile(build(), {"en-de": rows(5)}))
    assert "2 of 7 pairs are longer than 64 tokens" in capsys.readouterr().err


def test_layers_have_the_names_that_masks_have():
    found = profile(build(), TEXT)
    assert found.layers == ["encoder.layers.0", "encoder.layers.1", "decoder.layers.0", "decoder.layers.1"]
    assert {side_of(layer) for layer in found.layers} == {"encoder", "decoder"}
