"""Counts are a property of model and text, not of how the text was batched."""

from __future__ import annotations

import argparse
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from neuron_spec.backends.fairseq.profiling import NeuronCounter
from neuron_spec.cli.main import main
from neuron_spec.directions import direction_id, parse_directions
from neuron_spec.errors import ModelError
from neuron_spec.neurons import counting
from neuron_spec.neurons.activations import ActivationCounts, side_of
from neuron_spec.neurons.choices import WHOLE, Part
from neuron_spec.neurons.selection import select
from neuron_spec.neurons.stability import are_split, part_of
from neuron_spec.tasks.neuron_profiling import NeuronProfilingTask

PAD = 1


def count(workshop: Any, model: Any, batches: list[dict[str, Any]], **how: Any) -> ActivationCounts:
    directions = parse_directions(workshop.lang_pairs)
    counter = NeuronCounter(model, directions, workshop.langs, **how)
    for batch in batches:
        with counter.counting(batch["net_input"], batch.get("id")), torch.no_grad():
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


@pytest.mark.parametrize(("dtype", "count_padding"), [(torch.float32, False), (torch.bfloat16, True)])
def test_parts_add_up_to_the_whole(workshop, built, dtype, count_padding):
    task, model = built
    batches = workshop.batches(task)
    model.to(dtype)

    def counted(part: Part) -> ActivationCounts:
        return count(workshop, model, batches, count_padding=count_padding, part=part)

    whole = counted(WHOLE)
    for of in (2, 3):
        parts = [counted(Part(number, of)) for number in range(1, of + 1)]
        assert all(bool((tokens > 0).all()) for part in parts for tokens in part.tokens.values())
        assert same(sum(parts[1:], parts[0]), whole)


def test_a_part_holds_every_nth_sentence_of_each_direction(workshop, built):
    task, model = built
    batches = workshop.batches(task)
    found = count(workshop, model, batches, part=Part(2, 3))
    dataset = task.dataset("valid")
    row_of = {direction_id(d, workshop.langs): row for row, d in enumerate(found.directions)}
    tokens = [0] * len(found.directions)
    for index in range(len(dataset)):  # one direction's sentences after the other's
        if index % workshop.sizes["valid"] % 3 == 1:
            tokens[row_of[dataset[index]["direction_id"]]] += len(dataset[index]["source"])
    assert found.tokens["encoder"].tolist() == tokens


def test_a_part_needs_the_sentences_indices(workshop, built):
    task, model = built
    counter = NeuronCounter(model, parse_directions(workshop.lang_pairs), workshop.langs, part=Part(1, 2))
    with pytest.raises(ModelError, match="which sentences"):
        counter.counting(workshop.batches(task)[0]["net_input"]).__enter__()


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


@pytest.mark.parametrize("rows", [1, 7])
def test_it_does_not_matter_how_many_rows_are_added_up_at_a_time(
    workshop, built, expected, monkeypatch, rows
):
    monkeypatch.setattr(counting, "_ROWS_AT_A_TIME", rows)
    task, model = built
    assert same(count(workshop, model, workshop.batches(task)), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_active_neuron_of_the_very_forward_pass_is_counted(workshop, built, dtype):
    task, model = built
    model.to(dtype)
    by_hand: dict[str, torch.Tensor] = {}
    modules = dict(model.named_modules())
    positions = {"encoder": "src_tokens", "decoder": "prev_output_tokens"}
    running: list[dict[str, Any]] = []
    for key in model.ffn_layers():

        def look(module: Any, inputs: tuple[torch.Tensor, ...], key: str = key) -> None:
            assert inputs[0].dtype == dtype
            real = running[-1][positions[side_of(key)]].t() != PAD
            active = ((inputs[0] > 0) & real.unsqueeze(2)).sum((0, 1))
            by_hand[key] = by_hand.get(key, 0) + active

        modules[f"{key}.fc2"].register_forward_pre_hook(look)
    counter = NeuronCounter(model, parse_directions(workshop.lang_pairs), workshop.langs)
    for batch in workshop.batches(task):
        running.append(batch["net_input"])
        with counter.counting(batch["net_input"]), torch.no_grad():
            model(**batch["net_input"])
    for key, values in counter.result().counts.items():
        assert torch.equal(values.sum(0), by_hand[key])


def test_counting_never_waits_for_the_device(workshop, built):
    """On the meta device nothing can be read: whatever would wait for a GPU raises."""
    task, model = built
    batch = workshop.batches(task)[0]["net_input"]
    model.to("meta")
    net_input = {key: value.to("meta") if torch.is_tensor(value) else value for key, value in batch.items()}
    modules = dict(model.named_modules())
    counter = NeuronCounter(model, parse_directions(workshop.lang_pairs), workshop.langs)

    def run_ffns(net_input: dict[str, Any]) -> None:
        with counter.counting(net_input), torch.no_grad():
            for key, fc1 in model.ffn_layers().items():
                tokens = net_input["src_tokens" if side_of(key) == "encoder" else "prev_output_tokens"]
                modules[f"{key}.fc2"](torch.zeros(*tokens.t().shape, fc1.out_features, device="meta"))

    run_ffns(net_input)
    del net_input["distinct_ids"]  # the ids are then read from the device
    with pytest.raises((RuntimeError, NotImplementedError), match=r"(?i)meta"):
        run_ffns(net_input)


def test_without_ids_on_the_host_they_are_read_from_the_device(workshop, built, expected):
    task, model = built
    batches = workshop.batches(task)
    for batch in batches:
        del batch["net_input"]["distinct_ids"]
    assert same(count(workshop, model, batches), expected)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"distinct_ids": (1, 4)}, "2 directions"),
        ({"distinct_ids": ()}, "0 directions"),
        ({"distinct_ids": None, "direction_ids": torch.tensor([1, 4])}, "2 directions"),
        ({"distinct_ids": None, "direction_ids": None}, "without direction ids"),
        ({"distinct_ids": (0,)}, "not profiled"),  # en-en
    ],
)
def test_other_batches_than_of_one_direction_are_refused(workshop, built, change, said):
    task, model = built
    counter = NeuronCounter(model, parse_directions(workshop.lang_pairs), workshop.langs)
    net_input = {**workshop.batches(task)[0]["net_input"], **change}
    with pytest.raises(ModelError, match=said), counter.counting(net_input):
        pass
    assert not any(bool(tokens.any()) for tokens in counter.result().tokens.values())


def test_counts_do_not_depend_on_threads(workshop, built, expected):
    task, model = built
    torch.set_num_threads(2)
    try:
        assert same(count(workshop, model, workshop.batches(task, max_tokens=2000)), expected)
    finally:
        torch.set_num_threads(1)


def test_counts_of_processes_are_added(workshop, built, expected):
    task, model = built
    counter = NeuronCounter(model, parse_directions(workshop.lang_pairs), workshop.langs)
    for batch in workshop.batches(task):
        with counter.counting(batch["net_input"]), torch.no_grad():
            model(**batch["net_input"])
    twice = counter.result(lambda counts: counts * 2)  # as if another process had counted the same
    assert same(twice, expected + expected)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_layer_that_hands_on_no_numbers_is_named_with_its_directions(workshop, built, value):
    task, model = built
    tag = task.target_dictionary.index("__qa__")
    fc1 = model.decoder.layers[1].fc1

    def spoil(module: Any, inputs: tuple[torch.Tensor], output: torch.Tensor) -> torch.Tensor:
        return output.index_fill(2, torch.tensor([7]), value) if is_qa else output

    fc1.register_forward_hook(spoil)
    counter = NeuronCounter(model, parse_directions(workshop.lang_pairs), workshop.langs)
    for batch in workshop.batches(task):
        is_qa = bool((batch["net_input"]["prev_output_tokens"] == tag).any())
        with counter.counting(batch["net_input"]), torch.no_grad():
            model(**batch["net_input"])
    with pytest.raises(ModelError, match=r"not a number[\s\S]*decoder\.layers\.1\n[\s\S]*batches of en-qa\n"):
        counter.result()


@pytest.mark.parametrize("flags", [[], ["--fp16"]])
def test_half_precision_that_overflows_is_refused(workshop, tmp_path, capsys, flags):
    """65504 is the largest number of fp16."""
    cfg, _, model = workshop.build()
    with torch.no_grad():
        model.encoder.layers[0].fc1.bias[5] = 7e4
    path = workshop.save(tmp_path / "large.pt", cfg, model)
    output = tmp_path / "p.safetensors"
    command = [
        "profile",
        str(workshop.data_bin),
        "--path",
        str(path),
        "--output",
        str(output),
        "--cpu",
        *flags,
    ]
    assert main(command) == (2 if flags else 0)
    said = capsys.readouterr().err
    assert not flags or ("encoder.layers.0" in said and "en-qa, qa-en" in said and "without --fp16" in said)
    assert output.exists() != bool(flags)


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


def test_parts_by_the_command_add_up_and_are_profiles_of_their_own(
    workshop, checkpoint, expected, tmp_path, capsys
):
    # Other batches for the one than for the other.
    first = profile(workshop, checkpoint, tmp_path / "1.safetensors", "--part", "1/2", "--max-tokens", "80")
    second = profile(workshop, checkpoint, tmp_path / "2.safetensors", "--part", "2/2")
    assert same(first + second, expected)
    assert not same(first, second)
    assert first.metadata["part"] == first.metadata["signature"]["parameters"]["part"] == "1/2"
    assert part_of(second) == Part(2, 2)
    whole = profile(workshop, checkpoint, tmp_path / "w.safetensors", "--part", "1/1")
    assert "part" not in whole.metadata and "part" not in whole.metadata["signature"]["parameters"]
    assert are_split([first, second]) and not are_split([first, whole])
    capsys.readouterr()
    command = ["profile", str(workshop.data_bin), "--path", str(checkpoint)]
    command += ["--output", str(tmp_path / "1.safetensors"), "--cpu"]
    assert main([*command, "--part", "1/2"]) == 0
    assert "complete already" in capsys.readouterr().err
    for other in (["--part", "2/2"], []):
        assert main([*command, *other]) == 2
        assert "parameters.part" in capsys.readouterr().err


@pytest.mark.parametrize("part", ["0/2", "3/2", "x", "1", "1/0", "-1/2", "1/2/2", "½"])
def test_a_bad_part_is_refused_when_flags_are_read(part, capsys):
    with pytest.raises(SystemExit) as left:
        main(["profile", "anywhere", "--path", "a.pt", "--output", "p", f"--part={part}"])
    assert left.value.code == 2
    parser = argparse.ArgumentParser()
    NeuronProfilingTask.add_args(parser)
    with pytest.raises(SystemExit):
        parser.parse_args(["anywhere", f"--profile-part={part}"])
    said = capsys.readouterr().err
    assert "--part: bad part" in said and "--profile-part: bad part" in said and repr(part) in said


def test_a_part_without_sentences_of_a_direction_is_refused(workshop, checkpoint, tmp_path, capsys):
    output = tmp_path / "p.safetensors"
    command = ["profile", str(workshop.data_bin), "--path", str(checkpoint), "--output", str(output), "--cpu"]
    assert main([*command, "--part", "22/22"]) == 2  # of 21 sentences
    assert "0 tokens for" in capsys.readouterr().err
    assert not output.exists()


@pytest.mark.slow
def test_the_command_counts_the_same_with_worker_processes(workshop, checkpoint, expected, tmp_path):
    # In a process of its own: fairseq leaves its workers waiting, and they go when it ends.
    output = tmp_path / "p.safetensors"
    flags = ["--path", str(checkpoint), "--output", str(output), "--cpu", "--num-workers", "2"]
    command = [sys.executable, "-m", "neuron_spec", "profile", str(workshop.data_bin), *flags]
    subprocess.run(command, check=True, timeout=180, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert same(ActivationCounts.load(output), expected)


@pytest.mark.parametrize(("flag", "dtype"), [("--bf16", "bfloat16"), ("--fp16", "float16")])
def test_half_precision_is_another_profile(workshop, checkpoint, expected, tmp_path, capsys, flag, dtype):
    output = tmp_path / "p.safetensors"
    found = profile(workshop, checkpoint, output, flag)
    assert found.metadata["signature"]["parameters"]["dtype"] == dtype
    for side, tokens in found.tokens.items():
        assert torch.equal(tokens, expected.tokens[side])
    assert not same(found, expected)
    for layer, values in found.counts.items():
        differ = (values - expected.counts[layer]).abs().sum()
        assert int(differ) < 0.02 * int(expected.counts[layer].sum())
    capsys.readouterr()
    profile(workshop, checkpoint, output, flag)
    assert "complete already" in capsys.readouterr().err
    command = ["profile", str(workshop.data_bin), "--path", str(checkpoint), "--output", str(output)]
    assert main([*command, "--cpu"]) == 2
    assert "another profile" in capsys.readouterr().err


@pytest.mark.parametrize(("flag", "most"), [("--bf16", 0.02), ("--fp16", 0.004)])
def test_the_sets_of_half_precision_differ_in_few_neurons(workshop, checkpoint, tmp_path, flag, most):
    """docs/reliability.md has the figures of a trained model."""
    full = select(profile(workshop, checkpoint, tmp_path / "full.safetensors"), k=95)
    half = select(profile(workshop, checkpoint, tmp_path / "half.safetensors", flag), k=95)
    differ, of = (
        sum(int(count(full.kept[layer], half.kept[layer])) for layer in full.kept)
        for count in (lambda a, b: (a != b).sum(), lambda a, b: a.numel())
    )
    assert differ <= most * of, f"{differ} of {of}"


def test_the_precision_of_training_is_not_that_of_profiling(workshop, expected, tmp_path):
    cfg, _, model = workshop.build("--bf16")
    path = workshop.save(tmp_path / "trained_in_bf16.pt", cfg, model)
    found = profile(workshop, path, tmp_path / "p.safetensors")
    assert found.metadata["signature"]["parameters"]["dtype"] == "float32"
    assert same(found, expected)


def test_contradictory_precisions_are_refused(workshop, checkpoint, tmp_path, capsys):
    output = tmp_path / "p.safetensors"
    command = ["profile", str(workshop.data_bin), "--path", str(checkpoint), "--output", str(output), "--cpu"]
    with pytest.raises(SystemExit) as left:
        main([*command, "--fp16", "--bf16"])
    assert left.value.code == 2
    assert main([*command, "--bf16", "--", "--fp16"]) == 2
    assert "different precisions" in capsys.readouterr().err
    assert not output.exists()


@pytest.mark.parametrize("number", ["-1", "two"])
def test_a_wrong_number_of_workers_is_refused(number, capsys):
    with pytest.raises(SystemExit):
        main(["profile", "anywhere", "--path", "a.pt", "--output", "p", f"--num-workers={number}"])
    assert "--num-workers" in capsys.readouterr().err


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
