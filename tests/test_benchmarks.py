"""Every benchmark runs end to end on the smallest model, and what it says is about what it claims to measure."""

from __future__ import annotations

import itertools
import json
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from neuron_spec.cli.main import main

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parent.parent
BENCHMARKS = ROOT / "benchmarks"
# These need what was trained: test_systems.py, tests/cli/test_export.py and the last test here have it.
NEED_TRAINED = ("measuring", "systems", "export", "training")
SCRIPTS = sorted(path.stem for path in BENCHMARKS.glob("*.py") if path.stem not in NEED_TRAINED)
BENCH = ROOT / "scripts" / "gpu" / "bench.sh"
ON_CPU_ONLY = {"comparison", "data_text", "many_directions", "memory", "padding", "report"}  # use no GPU

FLAGS = {
    "comparison": f"--against {ROOT} --repeats 1 --systems 2 --directions 2 --seeds 1 --sentences 8 --bootstrap 30",
    "data_text": "--pairs 400 800 --vocab-size 200",
    "ec30_plan": "--size tiny --repeats 1 --tokens 128 --length 8 --pairs 6000",
    "ffn_step": "--size tiny --repeats 1 --tokens 64 --length 8 --sparsity 30",
    "generation": "--size tiny --repeats 1 --sentences 2 --length 3 --sparsity 0 30",
    "many_directions": "--directions 4 --layers 1 --ffn 64 --sentences 8",
    "masks_memory": "--size tiny --repeats 1 --directions 2 6",
    "memory": "--minutes 0.1 --points 12 --train-size 300",
    "padding": "--sentences 100",
    "profiling": "--size tiny --repeats 1 --tokens 64 --length 8",
    "report": "--repeats 1 --directions 4 --layers 1 --ffn 64 --sentences 8",
    "scaling": "--repeats 1 --dim 16 --ffn 32 --layers 1 --directions 2 5 --tokens 64",
}
Run = Callable[[str], dict[str, Any]]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """A benchmark's JSON; each runs once, in this process, which has loaded torch and fairseq already."""
    found: dict[str, dict[str, Any]] = {}

    def once(name: str) -> dict[str, Any]:
        if name not in found:
            output = tmp_path_factory.mktemp(name)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(
                    sys,
                    "argv",
                    [str(BENCHMARKS / f"{name}.py"), "--output", str(output), *FLAGS[name].split()],
                )
                runpy.run_path(sys.argv[0], run_name="__main__")
            (file,) = output.iterdir()
            assert file.name in (f"{name}.cpu.json", f"{name}_tiny.cpu.json")
            found[name] = json.loads(file.read_text(encoding="utf-8"))
        return found[name]

    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        yield once


@pytest.fixture
def measuring(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(BENCHMARKS)
    import measuring

    return measuring


@pytest.fixture
def ec30_plan(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(BENCHMARKS)
    import ec30_plan

    return ec30_plan


def ratios(found: Any) -> list[float]:
    """Every number under a key that says ratio, at any depth."""
    if isinstance(found, list):
        return [ratio for item in found for ratio in ratios(item)]
    if not isinstance(found, dict):
        return []
    own = [value for key, value in found.items() if "ratio" in key and isinstance(value, float)]
    return own + ratios(list(found.values()))


def test_every_script_is_tried_here() -> None:
    assert sorted(FLAGS) == SCRIPTS, "give a new benchmark its smallest flags in FLAGS"


@pytest.mark.parametrize("name", SCRIPTS)
def test_runs_and_says_how_it_measured(run: Run, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = run(name)
    assert found["command"].startswith(f"python benchmarks/{name}.py --output ")
    assert found["machine"]["torch"] == torch.__version__
    assert found["machine"]["threads"] == torch.get_num_threads()
    assert ratios(found)
    assert all(ratio > 0 for ratio in ratios(found))
    assert "\n|--" in capsys.readouterr().out  # a table


def test_a_checkout_compares_as_itself(run: Run) -> None:
    found = run("comparison")
    assert found["same_numbers"]
    assert found["checkouts"]["other"]["ratio"] == 1


def test_ec30_plan_is_what_its_formulas_say(run: Run, ec30_plan: Any) -> None:
    found = run("ec30_plan")
    parameters = found["parameters"]
    assert (parameters["embeddings"], parameters["embedding_tables"]) == (6000 * 128, 1)
    assert (parameters["neurons"], parameters["ffn_weights"]) == (6 * 512, 6 * 2 * 512 * 128)
    assert found["state_bytes"] == {
        name: parameters["all"] * of for name, of in ec30_plan.STATE["fp32"].items()
    }
    for row in found["variants"].values():
        assert row["vocabulary_bytes_per_token"] == 4 * 6000  # the log-probabilities
        assert row["tokens_per_s"] == pytest.approx(1000 * 128 / row["ms"], rel=0.01)
    (_, hundred, many) = found["plans"]
    assert many["parameters"] - hundred["parameters"] == (256_000 - 128_000) * 128
    assert (many["mask_bytes"], many["mask_bytes_among_all"]) == (600 * 6 * 512, 300 * 301 * 6 * 512)


def test_ec30_plan_guesses_nothing_without_a_gpu(run: Run) -> None:
    found = run("ec30_plan")
    assert all(row["peak_bytes"] is None for row in found["variants"].values())
    assert [row["gpus"] for row in found["hours_per_10k_updates"]] == [1, 4, 8]
    assert all(row["dense"] is row["specialized"] is None for row in found["hours_per_10k_updates"])
    # 645,120 tokens are 5,040 micro-batches of 128, and one step of the optimizer.
    ms = 5040 * found["variants"]["dense"]["ms"] + found["optimizer_step"]["ms"]
    assert found["extrapolated_update_hours"]["dense"] == pytest.approx(ms / 3.6e6)


def test_half_precision_keeps_copies(measuring: Any, ec30_plan: Any) -> None:
    from neuron_spec.models.neuron_spec_transformer import NeuronSpecTransformer

    model = measuring.build_model("tiny", NeuronSpecTransformer, device="cpu", dtype="bf16")
    optimizer = ec30_plan.build_optimizer(model, "bf16")
    before = [p.clone() for p in model.parameters()]
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    ec30_plan.update(optimizer)
    count = ec30_plan.count_parameters(model, 6000)["all"]
    assert ec30_plan.state_bytes(model, optimizer) == {
        name: count * of for name, of in ec30_plan.STATE["bf16"].items()
    }
    assert optimizer.fp32_params[0].grad.eq(1).all()  # the update saw the gradients
    assert any(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_saved_bytes_leave_weights_out_and_count_each_storage_once(ec30_plan: Any) -> None:
    linear = torch.nn.Linear(4, 7)
    x = torch.ones(3, 4, requires_grad=True)
    with ec30_plan.saved_for_backward(linear, vocabulary=7) as found:
        linear(x).log_softmax(-1)
    assert found == {"layers": 3 * 4 * 4, "vocabulary": 3 * 7 * 4}
    with ec30_plan.saved_for_backward(linear, vocabulary=7) as twice:
        (linear(x) + linear(x)).log_softmax(-1)
    assert twice == found


@pytest.mark.parametrize(("vocabulary", "token_bytes"), [(64_000, 2), (128_000, 4)])
def test_a_larger_vocabulary_doubles_the_data_bin(ec30_plan: Any, vocabulary: int, token_bytes: int) -> None:
    found = ec30_plan.data_bytes(vocabulary, length=5, sentences=10)
    assert found == {"per_token": token_bytes, "per_sentence": 4 + 8}


def test_generation_has_equal_work_for_all(run: Run) -> None:
    variants = run("generation")["sizes"]["tiny"]["variants"]
    assert {row["tokens"] for row in variants.values()} == {2 * (3 + 1)}  # with the end of sentence
    assert variants["dense"]["ratio"] == 1
    for row in variants.values():
        assert row["tokens_per_s"] == pytest.approx(1000 * row["tokens"] / row["ms"], rel=0.01)


def test_generation_ends_no_output_early(measuring: Any) -> None:
    import generation
    from fairseq.models.transformer import TransformerModel

    model = measuring.build_model("tiny", TransformerModel, device="cpu")
    with torch.no_grad():  # a model that always wants to end
        model.decoder.layer_norm.weight.zero_()
        model.decoder.layer_norm.bias.copy_(
            10 * model.decoder.embed_tokens.weight[model.decoder.dictionary.eos()]
        )
    batch = measuring.batch("tiny", 10, 5, "cpu")
    assert generation.translating(model, batch, itertools.repeat({}), beam=2, length=3)() == 2 * (3 + 1)


def test_masks_memory_counts_what_is_there(run: Run) -> None:
    two, six = run("masks_memory")["rows"]
    for row in (two, six):
        assert row["mask_bytes"] == row["directions"] * 6 * 512
        assert row["memory_bytes"] >= row["mask_bytes"] + 6 * 8 * 512  # and the order of the last direction
        assert row["checkpoint_bytes"] > row["mask_bytes"] > row["disk_bytes"]
        assert row["dense_masks_bytes"] == row["directions"] * 6 * 512 * 128
    # What is kept for the running direction does not grow with their number; 2 and 6 of them have 2 and 4 languages.
    tables = 3 * 8 * (4**2 - 2**2)
    assert six["memory_bytes"] - two["memory_bytes"] == 4 * 6 * 512 + tables
    # A quarter dropped: of fc1 and fc2, 384 rows and columns, and both biases.
    assert two["gathered_weights_bytes"] == 6 * 4 * (2 * 384 * 128 + 384 + 128)


def test_many_directions_measures_every_command(run: Run) -> None:
    found = run("many_directions")["commands"]
    assert list(found) == ["select", "load", "analyze", "compare"]
    for row in found.values():
        assert row["peak_bytes"] > 50e6  # an interpreter and torch, and not the launcher alone
        assert row["cpu_seconds"] > 0 and row["input_bytes"] > 0
    assert found["select"]["output_bytes"] > 0


def test_memory_is_read_from_a_training(run: Run) -> None:
    found = run("memory")
    over_time = found["over_time"]
    (number,) = {len(values) for values in over_time.values()}
    assert 8 <= number <= 12
    assert over_time["minutes"] == sorted(over_time["minutes"])
    assert (
        min(over_time["rss_mb"]) > min(over_time["anonymous_mb"]) > 100
    )  # fairseq's, and not a starting process's
    assert found["updates"] > 0


def test_a_slope_is_that_of_the_second_half(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    import memory

    grows = [{"minutes": minute, "rss_mb": 500.0 if minute < 20 else 500 + minute} for minute in range(40)]
    assert memory.trend(grows, "rss_mb")["mb_per_hour"] == 60
    flat = [{"minutes": minute, "rss_mb": min(100.0 * minute, 800)} for minute in range(40)]
    assert memory.trend(flat, "rss_mb") == {"mb_per_hour": 0, "standard_error": 0, "ratio": 1}


def test_the_report_that_is_measured_is_a_whole_one(run: Run) -> None:
    found = run("report")
    assert found["page"]["figures"] >= 3
    assert found["page"]["table_cells"] > 200
    assert (found["opened"] is None) == (shutil.which("chromium") is shutil.which("google-chrome") is None)


@pytest.mark.slow
@pytest.mark.long
def test_300_directions_of_the_largest_model_fit_into_4_gib(tmp_path: Path) -> None:
    """Each in a process of its own; the seconds depend on the machine, and are not asserted."""
    command = [sys.executable, BENCHMARKS / "many_directions.py", "--output", tmp_path]
    subprocess.run([*map(str, command)], check=True)
    found = json.loads((tmp_path / "many_directions.cpu.json").read_text(encoding="utf-8"))
    assert (found["directions"], found["layers"], found["ffn"]) == (300, 24, 16384)
    assert all(row["peak_bytes"] < 4 * 2**30 for row in found["commands"].values())


def test_scaling_varies_one_thing_at_a_time(run: Run) -> None:
    found = run("scaling")
    assert set(found["varied"]) == set(found["base"])
    for varied, rows in found["varied"].items():
        for row in rows:
            assert {key: row[key] for key in found["base"] if key != varied} == {
                key: value for key, value in found["base"].items() if key != varied
            }
            assert row["mask_bytes"] == row["directions"] * 2 * row["layers"] * row["ffn"]


def test_a_sharing_copy_has_its_own_masks(measuring: Any) -> None:
    from neuron_spec.models.neuron_spec_transformer import NeuronSpecTransformer

    model = measuring.build_model("tiny", NeuronSpecTransformer, device="cpu")
    copied = measuring.sharing(model)
    assert all(a is b for a, b in zip(model.parameters(), copied.parameters(), strict=True))
    measuring.specialize(copied, 0.3, 2)
    assert copied.has_masks
    assert not model.has_masks
    assert all(fc1.neuron_mask is None for fc1 in model.ffn_layers().values())


@pytest.mark.parametrize("dropped", [0.0, 0.25, 0.3])
def test_random_masks_drop_just_the_fraction(measuring: Any, dropped: float) -> None:
    from neuron_spec.models.neuron_spec_transformer import NeuronSpecTransformer

    model = measuring.build_model("tiny", NeuronSpecTransformer, device="cpu")
    _, directions = measuring.languages(3)
    assert len(directions) == 3
    masks = measuring.random_masks(model, directions, dropped)
    assert all((kept.sum(1) == 512 - round(dropped * 512)).all() for kept in masks.kept.values())


def test_a_ratio_is_the_median_of_the_rounds_ratios(measuring: Any) -> None:
    # Round 2 met a busy machine: both took ten times as long.
    found = measuring.ratio({"ours": [1.0, 11.0, 1.2], "dense": [2.0, 20.0, 2.0]}, "ours", "dense")
    assert (found["ratio"], found["least"], found["greatest"]) == (0.55, 0.5, 0.6)


def test_all_that_run_on_gpus_are_in_the_gpu_script() -> None:
    lines = BENCH.read_text(encoding="utf-8").splitlines()
    calls = [line.split() for line in lines if line.startswith("measure ")]
    assert {benchmark for _, _, benchmark, *_ in calls} == set(SCRIPTS) - ON_CPU_ONLY
    assert sum(int(seconds) for _, seconds, *_ in calls) < 600


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_the_gpu_script_refuses_a_machine_without_one() -> None:
    done = subprocess.run([BENCH], capture_output=True, text=True)
    assert done.returncode == 2
    assert "torch sees no GPU here" in done.stderr
    assert not done.stdout


def test_the_gpu_script_refuses_what_it_does_not_know() -> None:
    done = subprocess.run([BENCH, "--wheel", "x"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, "unknown option: --wheel; see --help\n")


def test_real_trainings_are_timed_in_turns(workshop: Any, checkpoint: Path, tmp_path: Path) -> None:
    profile, masks, config = (tmp_path / name for name in ("p.safetensors", "m.safetensors", "continue.yaml"))
    data_bin = str(workshop.data_bin)
    for words in (
        ["profile", data_bin, "--path", str(checkpoint), "--output", str(profile), "--cpu"],
        ["select", str(profile), "--output", str(masks), "--k", "70"],
    ):
        assert main(words) == 0
    config.write_text("optimizer: adam\nlr: 0.001\nmax-tokens: 500\nnum-workers: 0\n", encoding="utf-8")
    given = [
        data_bin,
        "--path",
        checkpoint,
        "--masks",
        masks,
        "--config",
        config,
        "--updates",
        8,
        "--repeats",
        1,
    ]
    command = [sys.executable, BENCHMARKS / "training.py", *given, "--output", tmp_path]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "training.cpu.json").read_text(encoding="utf-8"))["variants"]
    assert list(found) == ["dense continuation", "specialized", "frozen"]
    assert all(row["ratio"] > 0 and row["tokens_per_s"] > 0 for row in found.values())
