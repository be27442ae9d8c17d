"""Counts are a property of model and text, not of how the text was batched."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from neuron_spec.cli.main import main
from neuron_spec.directions import direction_id, parse_directions
from neuron_spec.errors import ModelError
from neuron_spec.neurons.activations import ActivationCounts, side_of
from neuron_spec.profiling import NeuronCounter

PAD = 1


def count(
    workshop: Any, model: Any, batches: list[dict[str, Any]], *, count_padding: bool = False
) -> ActivationCounts:
    directions = parse_directions(workshop.lang_pairs)
    counter = NeuronCounter(model, directions, workshop.langs, count_padding=count_padding)
    for batch in batches:
        with counter.counting(batch["net_input"]), torch.no_grad():
            model(**batch["net_input"])
    return counter.result()


def same(a: ActivationCounts, b: ActivationCounts) -> bool:
    return all(torch.equal(a.counts[layer], b.counts[layer]) for layer in a.counts) and all(
        torch.equal(a.tokens[side], b.tokens[side]) for side in a.tokens
    )


@pytest.fixture
def built(workshop) -> tuple[Any, Any]:
    """Anew for each test: a counter leaves its hooks behind."""
    _, task, model = workshop.build()
    return task, model


@pytest.fixture(scope="module")
def expected(workshop) -> ActivationCounts:
    """Counted by hand, one sentence at a time, from the data set itself."""
    _, task, model = workshop.build()
    task.load_dataset("valid")
    dataset = task.dataset("valid")
    directions = parse_directions(workshop.lang_pairs)
    row_of = {direction_id(d, workshop.langs): row for row, d in enumerate(directions)}
    found = ActivationCounts.zeros(directions, {key: f.out_features for key, f in model.ffn_layers().items()})
    hidden: dict[str, torch.Tensor] = {}
    modules = dict(model.named_modules())
    for key in found.counts:
        modules[f"{key}.fc1"].register_forward_hook(
            lambda module, inputs, output, key=key: hidden.__setitem__(key, F.relu(output))
        )
    for index in range(len(dataset)):
        sample = dataset[index]
        row = row_of[sample["direction_id"]]
        source, target = sample["source"][None], sample["target"][None]
        shifted = torch.cat([target[:, -1:], target[:, :-1]], dim=1)
        with torch.no_grad():
            model(source, torch.tensor([source.size(1)]), shifted)
        for key, values in hidden.items():
            found.counts[key][row] += (values > 0).sum(dim=(0, 1))
        found.tokens["encoder"][row] += source.size(1)
        found.tokens["decoder"][row] += target.size(1)
    return found


@pytest.mark.parametrize("max_tokens", [60, 200, 5000])
def test_counts_are_those_of_single_sentences_whatever_the_batches(workshop, built, expected, max_tokens):
    task, model = built
    found = count(workshop, model, workshop.batches(task, max_tokens=max_tokens))
    assert same(found, expected)
    assert any(bool((values > 0).any()) for values in found.counts.values())
    for layer, values in found.counts.items():
        assert bool((values <= found.tokens[side_of(layer)][:, None]).all())


def test_neither_row_order_nor_padding_matters(workshop, built, expected):
    task, model = built
    changed = []
    for batch in workshop.batches(task):
        order = torch.arange(len(batch["target"])).flip(0)
        net_input = {
            key: value[order] if torch.is_tensor(value) else value
            for key, value in batch["net_input"].items()
        }
        net_input["src_tokens"] = F.pad(net_input["src_tokens"], (2, 0), value=PAD)
        net_input["prev_output_tokens"] = F.pad(net_input["prev_output_tokens"], (0, 3), value=PAD)
        changed.append({"net_input": net_input})
    assert same(count(workshop, model, changed[::-1]), expected)


def test_counting_padding_counts_more_and_depends_on_the_batches(workshop, expected):
    found = []
    for max_tokens in (60, 5000):
        _, task, model = workshop.build()
        batches = workshop.batches(task, max_tokens=max_tokens)
        found.append(count(workshop, model, batches, count_padding=True))
        positions = sum(batch["net_input"]["src_tokens"].numel() for batch in batches)
        assert int(found[-1].tokens["encoder"].sum()) == positions
    small, large = found
    assert not same(small, expected) and not same(large, expected) and not same(small, large)
    for layer in expected.counts:
        assert bool((large.counts[layer] >= expected.counts[layer]).all())
        assert int(large.counts[layer].sum()) > int(expected.counts[layer].sum())


def test_forward_passes_outside_the_block_are_not_counted(workshop, built, expected):
    task, model = built
    batches = workshop.batches(task)
    counter = NeuronCounter(model, parse_directions(workshop.lang_pairs), workshop.langs)
    for batch in batches:
        with torch.no_grad():
            model(**batch["net_input"])
            with counter.counting(batch["net_input"]):
                model(**batch["net_input"])
    assert same(counter.result(), expected)


@pytest.mark.parametrize("ffn_path", ["auto", "gather"])
def test_a_specialized_model_can_be_profiled(workshop, ffn_path):
    _, task, model = workshop.build("--ffn-path", ffn_path, "--dropped-neurons", "zero")
    masks = workshop.masks(model, kept=0.5)
    model.set_masks(masks, workshop.langs)
    found = count(workshop, model, workshop.batches(task))
    for layer, values in found.counts.items():
        assert values.shape == masks.kept[layer].shape
        assert bool((values[~masks.kept[layer]] == 0).all())
        assert bool((values[masks.kept[layer]] > 0).any())


def test_dropped_neurons_are_active_where_their_constant_is(workshop):
    _, task, model = workshop.build()
    masks = workshop.masks(model, kept=0.5)
    model.set_masks(masks, workshop.langs)
    found = count(workshop, model, workshop.batches(task))
    for layer, values in found.counts.items():
        active = model.ffn_layers()[layer].bias > 0
        constant = active * found.tokens[side_of(layer)][:, None]
        assert torch.equal(values[~masks.kept[layer]], constant[~masks.kept[layer]])


def test_counts_of_processes_are_added(workshop, built, expected):
    task, model = built
    counter = NeuronCounter(model, parse_directions(workshop.lang_pairs), workshop.langs)
    for batch in workshop.batches(task):
        with counter.counting(batch["net_input"]), torch.no_grad():
            model(**batch["net_input"])
    twice = counter.result(lambda counts: counts * 2)  # as if another process had counted the same
    assert same(twice, expected + expected)


def test_other_activations_are_refused(workshop):
    _, _, model = workshop.build("--activation-fn", "gelu")
    with pytest.raises(ModelError, match="gelu"):
        NeuronCounter(model, parse_directions("en-qa"), workshop.langs)


# Through the command


def profile(workshop: Any, checkpoint: Path, output: Path, *flags: str) -> ActivationCounts:
    command = ["profile", str(workshop.data_bin), "--path", str(checkpoint), "--output", str(output), "--cpu"]
    assert main([*command, *flags]) == 0
    return ActivationCounts.load(output)


@pytest.mark.parametrize("max_tokens", ["80", "4000"])
def test_the_command_counts_the_same(workshop, checkpoint, expected, tmp_path, max_tokens):
    found = profile(workshop, checkpoint, tmp_path / "p.safetensors", "--max-tokens", max_tokens)
    assert same(found, expected)
    assert found.metadata["langs"] == list(workshop.langs)


def test_the_command_counts_some_directions_alone(workshop, checkpoint, expected, tmp_path):
    found = profile(workshop, checkpoint, tmp_path / "p.safetensors", "--lang-pairs", "qm-en,en-qa")
    assert [str(d) for d in found.directions] == ["qm-en", "en-qa"]
    for layer, values in found.counts.items():
        assert torch.equal(values, expected.counts[layer][[5, 0]])


# fairseq-validate gathers its log lines through CUDA tensors, which a CPU lacks.


@pytest.mark.slow
def test_two_processes_count_what_one_does(workshop, checkpoint, expected, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    output = tmp_path / "p.safetensors"
    command = [
        sys.executable,
        "-m",
        "neuron_spec",
        "profile",
        str(workshop.data_bin),
        "--path",
        str(checkpoint),
    ]
    command += ["--output", str(output), "--cpu", "--max-tokens", "100", "--"]
    command += ["--distributed-world-size", "2", "--distributed-no-spawn", "--distributed-backend", "gloo"]
    command += ["--ddp-backend", "legacy_ddp", "--distributed-init-method", f"tcp://127.0.0.1:{port}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [*command, "--distributed-rank", str(rank)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in (0, 1)
    ]
    try:
        said = [process.communicate(timeout=180)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(said)
    assert same(ActivationCounts.load(output), expected)
