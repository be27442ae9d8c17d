"""What a GPU may not change: run with ``pytest -m gpu tests/test_gpu.py`` where there is one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from neuron_spec.backends.fairseq.checkpoints import read_checkpoint
from neuron_spec.cli.main import main
from neuron_spec.modules.specialized_ffn import Route, SpecializedFC1, SpecializedFC2
from neuron_spec.neurons.activations import ActivationCounts
from neuron_spec.neurons.masks import NeuronMasks
from neuron_spec.scoring.evaluation import read_evaluation

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU"),
]

PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
DIM, FFN, KEPT = 64, 256, 150


def command(*words: object) -> None:
    assert main([str(word) for word in words]) == 0


@pytest.fixture(scope="module")
def run(workshop: Any, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of the tiny checkpoint's profiles, by device and precision, and the sets of each."""
    folder = tmp_path_factory.mktemp("gpu")
    for name, flags in {"cpu": ["--cpu"], "fp32": [], "fp16": ["--fp16"], "bf16": ["--bf16"]}.items():
        profile = folder / f"profile-{name}.safetensors"
        command("profile", workshop.data_bin, "--path", checkpoint, "--output", profile, *flags)
        command("select", profile, "--output", folder / f"masks-{name}.safetensors", "--k", 70)
    return folder


@pytest.fixture(scope="module")
def specialized(workshop: Any, run: Path, checkpoint: Path) -> dict[str, Path]:
    """A training of six updates on the GPU by precision, and one with frozen neurons. fairseq's --bf16 asks for a TPU."""
    trainings = {
        "fp32": [],
        "fp16": ["--fp16"],
        "frozen": ["--dropped-neurons", "frozen"],
    }
    found = {}
    for name, flags in trainings.items():
        found[name] = run / name / "checkpoint_last.pt"
        train(workshop, checkpoint, run / "masks-cpu.safetensors", run / name, *flags)
    return found


def train(workshop: Any, dense: Path, masks: Path, folder: Path, *flags: object) -> None:
    command(
        "specialize", workshop.data_bin, "--path", dense, "--masks", masks, "--save-dir", folder, "--",
        "--max-update", 6, "--lr", 0.01, "--max-tokens", 500, "--dropout", 0, "--disable-validation",
        "--no-epoch-checkpoints", "--num-workers", 0, "--no-progress-bar", *flags,
    )  # fmt: skip


# The layers ---------------------------------------------------------------------------------------


def ffn(path: str, kept: torch.Tensor, dtype: torch.dtype, dropped_neurons: str) -> torch.nn.Sequential:
    torch.manual_seed(1)
    fc1, fc2 = SpecializedFC1(DIM, FFN), SpecializedFC2(FFN, DIM)
    fc2.follow(fc1)
    fc1.ffn_path, fc1.dropped_neurons, fc1.route = path, dropped_neurons, Route((0,))
    found = torch.nn.Sequential(fc1, torch.nn.ReLU(), fc2).to("cuda", dtype)
    fc1.set_mask(kept)
    return found


@pytest.mark.parametrize("dropped_neurons", ["bias", "zero"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_gathering_computes_what_multiplying_does(precision, dropped_neurons):
    dtype = PRECISIONS[precision]
    kept = torch.zeros(1, FFN, dtype=torch.bool)
    kept[0, torch.randperm(FFN, generator=torch.Generator().manual_seed(1))[:KEPT]] = True
    x = torch.randn(500, 1, DIM, generator=torch.Generator().manual_seed(2)).to("cuda", dtype)
    found = []
    for path in ("gather", "multiply"):
        layers = ffn(path, kept, dtype, dropped_neurons)
        out = layers(x)
        assert (out.dtype, out.device.type) == (dtype, "cuda")
        (out.float().square().sum() / len(out)).backward()
        found.append((out, *(p.grad for p in layers.parameters())))
        assert not layers[0].weight.grad[~kept[0].cuda()].any()
        assert layers[0].weight.grad[kept[0].cuda()].any()
    # Of the whole tensor: where a pre-activation is zero to within rounding, ReLU hands on a gradient or none.
    tolerance = {"fp32": 1e-5, "fp16": 1e-2, "bf16": 6e-2}[precision]
    for gathered, multiplied in zip(*found, strict=True):
        assert (gathered - multiplied).float().norm() <= tolerance * multiplied.float().norm()


# Counts and sets ----------------------------------------------------------------------------------


def test_the_gpu_counts_what_the_cpu_counts(run):
    here, there = (ActivationCounts.load(run / f"profile-{name}.safetensors") for name in ("cpu", "fp32"))
    assert here.directions == there.directions
    for layer, counts in here.counts.items():
        # Only where a pre-activation is zero to within rounding may one token differ.
        assert (counts - there.counts[layer]).abs().max() <= 2
        assert (counts - there.counts[layer]).abs().sum() <= 1e-3 * counts.sum()


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_half_precision_selects_nearly_the_same_neurons(run, precision):
    whole, half = (NeuronMasks.load(run / f"masks-{name}.safetensors") for name in ("fp32", precision))
    for layer, kept in whole.kept.items():
        assert (kept ^ half.kept[layer]).float().mean() < 0.03


def test_counting_twice_gives_the_same_bytes(workshop, run, checkpoint, tmp_path):
    again = tmp_path / "again.safetensors"
    command("profile", workshop.data_bin, "--path", checkpoint, "--output", again)
    assert again.read_bytes() == (run / "profile-fp32.safetensors").read_bytes()


def test_memory_that_is_used_up_is_a_message_and_leaves_nothing(workshop, checkpoint, tmp_path):
    words = ["profile", workshop.data_bin, "--path", checkpoint, "--output", tmp_path / "profile.safetensors"]
    code = (
        "import sys, torch; from neuron_spec.cli.main import main; "
        "torch.cuda.set_per_process_memory_fraction(1e-6); sys.exit(main(sys.argv[1:]))"
    )
    done = subprocess.run([sys.executable, "-c", code, *map(str, words)], capture_output=True, text=True)
    assert done.returncode == 2, done.stderr[-2000:]
    assert "the GPU's memory is used up" in done.stderr
    assert [*tmp_path.iterdir()] == []


# Training -----------------------------------------------------------------------------------------


def test_a_loss_scale_that_overflows_is_lowered_and_no_fault(workshop, run, checkpoint, tmp_path):
    train(workshop, checkpoint, run / "masks-cpu.safetensors", tmp_path, "--fp16", "--fp16-init-scale", 2**40)
    state = read_checkpoint(tmp_path / "checkpoint_last.pt")
    assert state["optimizer_history"][-1]["num_updates"] == 6
    assert all(bool(value.isfinite().all()) for value in state["model"].values())


@pytest.mark.parametrize("name", ["fp32", "fp16", "frozen"])
def test_no_row_moves_that_no_direction_keeps(run, specialized, checkpoint, name):
    before = read_checkpoint(checkpoint)["model"]
    after = read_checkpoint(specialized[name])["model"]
    # fairseq trains in half precision and writes single: what never moved was rounded all the same.
    dtype = torch.float16 if name == "fp16" else torch.float32
    masks, kept_somewhere = NeuronMasks.load(run / "masks-cpu.safetensors"), 0
    for layer, kept in masks.kept.items():
        weight = f"{layer}.fc1.weight"
        moved = (after[weight] != before[weight].to(dtype).float()).any(dim=1)
        assert not moved[~kept.any(dim=0)].any()
        assert moved[kept.any(dim=0)].float().mean() > 0.9
        kept_somewhere += int(kept.any(dim=0).sum())
        if name == "frozen":
            columns = (after[f"{layer}.fc2.weight"] != before[f"{layer}.fc2.weight"].to(dtype).float()).any(
                dim=0
            )
            assert not columns[~kept.any(dim=0)].any()
    assert kept_somewhere < sum(kept.size(1) for kept in masks.kept.values())  # else nothing was tested


def test_a_training_that_was_stopped_goes_on(workshop, run, specialized, checkpoint, tmp_path):
    train(workshop, checkpoint, run / "masks-cpu.safetensors", tmp_path, "--max-update", 3)
    (tmp_path / "complete.txt").unlink(missing_ok=True)
    train(workshop, checkpoint, run / "masks-cpu.safetensors", tmp_path)
    once, twice = (
        read_checkpoint(path)["model"] for path in (specialized["fp32"], tmp_path / "checkpoint_last.pt")
    )
    for name, value in once.items():  # a GPU's sums over a batch are in no fixed order
        torch.testing.assert_close(twice[name].float(), value.float(), rtol=1e-3, atol=1e-4)


# Likelihood and translations ----------------------------------------------------------------------


def test_likelihood_is_that_of_the_cpu(workshop, specialized, tmp_path):
    found = {}
    for name, flags in {"cpu": ["--cpu"], "fp32": [], "fp16": ["--fp16"]}.items():
        command(
            "evaluate", workshop.data_bin, "--path", specialized["fp32"], "--output", tmp_path / name, *flags,
            "--gen-subset", "valid", "--", "--max-len-a", 1, "--max-len-b", 5,
        )  # fmt: skip
        found[name] = [score.nll for score in read_evaluation(tmp_path / name).scores]
    assert found["fp32"] == pytest.approx(found["cpu"], rel=1e-5)
    assert found["fp16"] == pytest.approx(found["cpu"], rel=3e-3)
    assert found["fp16"] != found["fp32"]


def test_fairseq_s_own_commands_run_on_it(workshop, specialized):
    user_dir = Path(__file__).parents[1] / "neuron_spec"
    for program in ("generate", "validate"):
        flags = ["--fp16"] if program == "generate" else []
        done = subprocess.run(
            [
                *(sys.executable, "-m", f"fairseq_cli.{program}", str(workshop.data_bin)),
                *("--user-dir", str(user_dir), "--task", "neuron_specialization"),
                *("--path", str(specialized["fp16"]), "--source-lang", "en", "--target-lang", "qa"),
                *("--langs", ",".join(workshop.langs), "--lang-pairs", workshop.lang_pairs),
                *("--encoder-langtok", "src", "--decoder-langtok", "--max-tokens", "500", *flags),
            ],
            capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]


# Studies ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("study", ["ablate", "conflict", "transfer", "importance", "prune"])
def test_studies_run_where_the_model_is(workshop, run, checkpoint, tmp_path, study):
    masks = ["--masks", run / "masks-cpu.safetensors"]
    flags = {
        "ablate": [*masks, "--fraction", 0.1],
        "conflict": ["--sentences", 10],
        "transfer": ["--lr", 0.1, "--sentences", 10],
        "importance": ["--sentences", 10],
        "prune": ["--sentences", 10, "--max-steps", 1],
    }[study]
    output = tmp_path / ("masks.safetensors" if study in ("importance", "prune") else study)
    command(study, workshop.data_bin, "--path", checkpoint, "--output", output, *flags)
    assert output.exists()
