"""The systems side by side: which commands run, what bilingual models get, what the table counts."""

from __future__ import annotations

import argparse
import csv
import importlib
import json
import os
import random
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from neuron_spec.artifacts import signature, write_json
from neuron_spec.backends.fairseq.checkpoints import read_checkpoint
from neuron_spec.cli.main import main, module_of
from neuron_spec.directions import Direction, parse_directions
from neuron_spec.errors import ArtifactError, DirectionError, NeuronSpecError
from neuron_spec.scoring.comparison import compare, comparison_signature
from neuron_spec.scoring.comparison_files import write_comparison
from neuron_spec.scoring.evaluation import evaluate, read_evaluation, write_evaluation
from neuron_spec.scoring.joining import join
from neuron_spec.scoring.metrics import Outputs
from neuron_spec.scoring.systems import System, comparable
from neuron_spec.studies.bilingual import command as bilingual
from neuron_spec.studies.lass.weight_masks import WeightMasks
from neuron_spec.studies.systems.measure import parameters_of, read_systems, trained_of, write_systems

ROOT = Path(__file__).parents[2]
EXPERIMENTS = ROOT / "scripts" / "experiments"
BASELINES = ("adapters-pair", "adapters-family", "lass", "bilingual")
ENVIRONMENT = {
    **os.environ,
    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    "PYTHONWARNINGS": "ignore",
}


def script(path: Path, *arguments: object, status: int = 0) -> subprocess.CompletedProcess[str]:
    command = [str(part) for part in (path, *arguments)]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == status, done.stdout[-2000:] + done.stderr[-4000:]
    return done


def commands(*arguments: object, name: str = "systems") -> list[str]:
    return script(EXPERIMENTS / f"{name}.sh", "--dry-run", *arguments).stdout.splitlines()


# ---------------------------------------------------------------- commands


@pytest.fixture(scope="module")
def cpu_commands() -> list[str]:
    return commands("--cpu", "--seeds", "1,2")


def test_what_the_built_in_experiment_has_trained_is_taken_over(cpu_commands: list[str]) -> None:
    theirs = commands("--cpu", "--seeds", "1,2", name="homeassistant")
    shared = [line for line in theirs if re.match(r"scripts/(10|20|30|40|50|60)_", line)]
    assert len(shared) > 20
    alone = [line for line in shared if line not in cpu_commands]  # the ceiling is a bound and no system
    assert alone and all(re.search(r"/seed-[12]/ceiling[ /]", line) for line in alone)


def test_all_continuations_are_trained_by_the_same_words_but_for_what_they_are(
    cpu_commands: list[str],
) -> None:
    own = [line for line in cpu_commands if "50_specialize" in line and "/seed-2/" in line]
    words = [line.partition("configs/homeassistant/cpu/continue.yaml")[2] for line in own]
    assert len(own) == 7
    assert all(line.startswith(words[0]) for line in words)
    assert [line.removeprefix(words[0]).split() for line in words[4:]] == [
        ["--arch", "neuron_spec_adapters_tiny", "--adapters", "pair", "--adapter-size", "64"],
        ["--arch", "neuron_spec_adapters_tiny", "--adapters", "family", "--adapter-size", "64"],
        [
            *("--arch", "neuron_spec_lass_tiny"),
            *("--weight-masks", "runs/homeassistant-cpu/seed-2/masks/lass-0.7.safetensors"),
        ],
    ]
    assert {line.split()[2] for line in own} == {"runs/homeassistant-cpu/seed-2/dense/checkpoint_last.pt"}


def test_every_command_of_ours_parses(cpu_commands: list[str]) -> None:
    ours = [line.split()[1:] for line in cpu_commands if line.startswith("neuron-spec ")]
    assert {words[0] for words in ours} == {"lass", "bilingual", "compare", "systems"}
    for command, *words in ours:
        parser = argparse.ArgumentParser()
        importlib.import_module(module_of(command)).add_arguments(parser)
        parser.parse_args(words[: words.index("--")] if "--" in words else words)
    assert all((ROOT / line.split()[0]).is_file() for line in cpu_commands if line.startswith("scripts/"))


def test_every_direction_has_a_bilingual_model(cpu_commands: list[str]) -> None:
    trained = [line.split()[2] for line in cpu_commands if "bilingual.sh" in line and "/seed-1/" in line]
    langs = ["de", "nl", "sv", "es", "pt", "it", "cs", "sk", "ru", "hu", "et", "tr"]
    assert trained == [direction for lang in langs for direction in (f"en-{lang}", f"{lang}-en")]


@pytest.mark.parametrize("left_out", BASELINES)
def test_a_system_left_out_is_nowhere(left_out: str) -> None:
    found = commands("--smoke", "--without", left_out, "--run", "R")
    in_other_words = [line.replace(f"without-{left_out}", "") for line in found]
    assert not any(left_out in line for line in in_other_words)
    assert all(any(f"{other}=" in line for line in found) for other in BASELINES if other != left_out)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--without dense", "got 'dense'"),
        ("--without lass,lass", "lass is named twice"),
        ("--alpha 1", "got '1'"),
        ("--adapter-size 0", "got '0'"),
        ("--cpu --smoke", "choose one"),
        ("--stop-after soon", "got 'soon'"),
        ("--seeds 0", "got '0'"),
    ],
)
def test_bad_arguments_are_refused_before_anything_runs(arguments: str, message: str, tmp_path: Path) -> None:
    done = script(EXPERIMENTS / "systems.sh", "--run", tmp_path / "run", *arguments.split(), status=2)
    assert message in done.stderr
    assert not (tmp_path / "run").exists()


def test_bilingual_models_get_as_many_tokens_as_the_two_stages() -> None:
    text = (EXPERIMENTS / "systems.sh").read_text(encoding="utf-8")
    for size in ("gpu", "cpu"):
        of = {
            stage: yaml.safe_load((ROOT / f"configs/homeassistant/{size}/{stage}.yaml").read_text())
            for stage in ("pretrain", "continue")
        }
        tokens = [c["max-update"] * c["max-tokens"] * c.get("update-freq", 1) for c in of.values()]
        (updates,) = re.findall(rf"{size}\) bilingual_updates=(\d+)", text)
        assert int(updates) * of["pretrain"]["max-tokens"] == sum(tokens)


def test_timing_is_noted_once_and_only_of_what_was_made(tmp_path: Path) -> None:
    note, made = tmp_path / "note.json", tmp_path / "made"
    command = (ROOT / "scripts/timed.sh", note, made, "--", "bash", "-c", f"sleep 0.2; date +%N >> {made}")
    made.write_text("made before, and not timed\n")
    script(*command)
    first = made.read_text()
    assert "before" not in first
    assert 0.2 <= json.loads(note.read_text())["seconds"] < 60
    assert "complete already" in script(*command).stderr
    assert made.read_text() == first
    note.unlink()
    script(ROOT / "scripts/timed.sh", note, made, "--", "false", status=1)
    assert not note.exists()


# ---------------------------------------------------------------- bilingual


def test_shares_follow_the_temperature() -> None:
    counts = [100, 300, 600]
    assert bilingual.share(counts, 1) == pytest.approx([0.1, 0.3, 0.6])
    assert bilingual.share(counts, 1e9) == pytest.approx([1 / 3] * 3)
    milder = bilingual.share(counts, 2)
    assert sum(milder) == pytest.approx(1)
    assert 0.1 < milder[0] < milder[1] < milder[2] < 0.6


def corpus(folder: Path) -> Path:
    card = {"lang_pairs": ["en-de", "de-en", "en-nl", "nl-en"], "pairs": {"train": {"de": 400, "nl": 100}}}
    write_json(folder / "corpus.json", card)
    (folder / "data-bin").mkdir()
    return folder / "data-bin"


def test_updates_of_all_directions_are_those_to_be_shared(tmp_path: Path) -> None:
    data_bin, config = (
        corpus(tmp_path / "corpus"),
        ROOT / "configs/homeassistant/cpu/pretrain.yaml",
    )  # temperature 2
    found = {
        name: bilingual.updates_of(data_bin, Direction.parse(name), config, 4800)
        for name in ("en-de", "de-en", "en-nl", "nl-en")
    }
    assert found == {name: (1600, 89) if "de" in name else (800, 44) for name in found}
    # Out of English alone, each has twice the share.
    of_two = bilingual.updates_of(data_bin, Direction.parse("en-de"), config, 4800, among="en-de,en-nl")
    assert of_two == (3200, 178)
    for among in ("en-nl,nl-en", "en-de,en-tr"):
        with pytest.raises(DirectionError, match="does not have"):
            bilingual.updates_of(data_bin, Direction.parse("en-de"), config, 4800, among=among)
    with pytest.raises(DirectionError, match="does not have this direction"):
        bilingual.updates_of(data_bin, Direction.parse("en-tr"), config, 4800)
    with pytest.raises(ArtifactError, match="without a corpus card"):
        bilingual.updates_of(tmp_path / "elsewhere" / "data-bin", Direction.parse("en-de"), config, 4800)


def evaluation(names: str, seed: int = 1, **parameters: Any) -> Any:
    """Of made-up text; a larger seed translates worse."""
    words = random.Random(names)
    outputs = []
    for direction in parse_directions(names):
        lines = [" ".join(words.choices(["ba", "ko", "li", "mu", "pe"], k=9)) for _ in range(12)]
        written = [" ".join("xx" if i % 9 < seed else w for i, w in enumerate(s.split())) for s in lines]
        outputs.append(Outputs(direction, written, lines, [line.upper() for line in lines]))
    made = signature(
        "evaluate",
        inputs={"checkpoint": names, "data": names},
        parameters={"directions": names.split(","), "beam": 5, **parameters},
    )
    return evaluate(outputs, signature=made, families={"de": "Germanic"})


def test_joined_evaluations_are_one_of_all_directions(tmp_path: Path) -> None:
    parts = [evaluation("en-de"), evaluation("de-en,en-nl", seed=2)]
    for number, part in enumerate(parts):
        write_evaluation(tmp_path / str(number), part)
    folders = [str(tmp_path / "0"), str(tmp_path / "1")]
    assert main(["bilingual", "join", *folders, "--output", str(tmp_path / "all")]) == 0
    found = read_evaluation(tmp_path / "all")
    assert found.scores == [score for part in parts for score in part.scores]
    assert found.outputs == [outputs for part in parts for outputs in part.outputs]
    assert found.families == {"de": "Germanic"}
    made = (tmp_path / "all" / "scores.json").stat().st_mtime_ns
    join([Path(folder) for folder in folders], tmp_path / "all")
    assert (tmp_path / "all" / "scores.json").stat().st_mtime_ns == made
    with pytest.raises(ArtifactError, match="another evaluation"):
        join([tmp_path / "0"], tmp_path / "all")


def test_only_evaluations_made_alike_are_joined(tmp_path: Path) -> None:
    write_evaluation(tmp_path / "a", evaluation("en-de"))
    write_evaluation(tmp_path / "b", evaluation("de-en", beam=4))
    with pytest.raises(NeuronSpecError, match="different ways"):
        join([tmp_path / "a", tmp_path / "b"], tmp_path / "all")
    with pytest.raises(DirectionError):
        join([tmp_path / "a", tmp_path / "a"], tmp_path / "all")
    assert not (tmp_path / "all").exists()


# ---------------------------------------------------------------- the table


@pytest.fixture(scope="module")
def seed(tmp_path_factory: pytest.TempPathFactory, workshop: Any) -> Path:
    """Tiny checkpoints of every kind of system, with their masks and the notes of time."""
    folder = tmp_path_factory.mktemp("run") / "seed-1"

    def save(name: str, cfg: Any, model: Any) -> None:
        path = folder / name / "checkpoint_last.pt"
        path.parent.mkdir(parents=True)
        workshop.save(path, cfg, model)

    dense = workshop.build(task="translation_multi_simple_epoch", arch="transformer")
    save("dense", dense[0], dense[2])
    save("dense-continuation", dense[0], dense[2])
    for name in ("en-qa", "qa-en"):
        save(f"bilingual/{name}", dense[0], dense[2])
    cfg, _, model = workshop.build()
    masks = workshop.masks(model)
    model.set_masks(masks, workshop.langs)
    masks.save(folder / "masks" / "specialized.safetensors")
    save("specialized", cfg, model)
    cfg, _, model = workshop.build(
        "--adapters", "pair", "--adapter-size", "4", arch="neuron_spec_adapters_tiny"
    )
    save("adapters-pair", cfg, model)
    cfg, _, model = workshop.build(arch="neuron_spec_lass_tiny")
    kept = [
        WeightMasks.by_magnitude(model.state_dict(), direction, 0.5)
        for direction in parse_directions(workshop.lang_pairs)
    ]
    weight_masks = WeightMasks.join(kept, {"fine_tuning_seconds": {"en-qa": 20.0, "qa-en": 30.0}})
    model.set_weight_masks(weight_masks, workshop.langs)
    weight_masks.save(folder / "masks" / "lass-0.5.safetensors")
    save("lass", cfg, model)
    for stage, seconds in (("profile", 2.5), ("select", 0.5)):
        write_json(folder / "extraction" / f"{stage}.json", {"seconds": seconds})
    return folder


SYSTEMS = ("dense-continuation", "dense", "specialized", "adapters-pair", "lass", "bilingual")


@pytest.fixture(scope="module")
def comparison(seed: Path) -> Path:
    named = [System(name, [evaluation("en-qa,qa-en", seed=i)]) for i, name in enumerate(SYSTEMS, start=1)]
    systems = comparable(named)
    made = comparison_signature(systems, samples=20, alpha=0.05)
    write_comparison(seed.parent / "comparison", compare(systems, signature=made, samples=20, alpha=0.05))
    return seed.parent / "comparison"


@pytest.fixture(scope="module")
def benchmark_file(seed: Path, workshop: Any) -> Path:
    output = seed.parent / "benchmark"
    flags = ["--repeats", "1", "--tokens", "8", "--length", "4", "--sentences", "2", "--beam", "2"]
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks")
        arguments = [str(seed), "--data-bin", str(workshop.data_bin), "--output", str(output), *flags]
        patch.setattr(sys, "argv", [str(ROOT / "benchmarks/systems.py"), *arguments])
        runpy.run_path(sys.argv[0], run_name="__main__")
    return output / "systems.cpu.json"


def test_tied_parameters_count_once_and_masks_not_at_all(seed: Path, workshop: Any) -> None:
    _, _, model = workshop.build()
    plain = sum(parameter.numel() for parameter in model.parameters())
    counted = {
        name: parameters_of(read_checkpoint(seed / name / "checkpoint_last.pt"))
        for name in ("dense", "specialized")
    }
    for found in counted.values():
        assert sum(value.numel() for value in found.values()) == plain


def test_beside_a_frozen_base_the_adapters_alone_are_trained(seed: Path, workshop: Any) -> None:
    state = read_checkpoint(seed / "adapters-pair" / "checkpoint_last.pt")
    _, _, model = workshop.build("--adapter-size", "4", arch="neuron_spec_adapters_tiny")
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    found = trained_of(state, parameters_of(state))
    assert sum(value.numel() for value in found.values()) == trained > 0
    state["cfg"]["model"].base = "trained"
    assert trained_of(state, parameters_of(state)).keys() == parameters_of(state).keys()


@pytest.mark.slow
def test_the_benchmark_times_what_differs(benchmark_file: Path) -> None:
    found = json.loads(benchmark_file.read_text())["systems"]
    assert set(found) == {"dense", "specialized", "adapters-pair", "lass"}
    for row in found.values():
        assert row["training"]["ratio"] > 0
        assert row["generation"]["tokens_per_s"] > 0
        assert row["peak_bytes"] > 0
    assert found["dense"]["training"]["ratio"] == found["dense"]["generation"]["ratio"] == 1


def test_the_table_says_what_each_system_costs(
    seed: Path, comparison: Path, benchmark_file: Path, tmp_path: Path
) -> None:
    arguments = [
        "--comparison",
        str(comparison),
        "--benchmark",
        str(benchmark_file),
        "--output",
        str(tmp_path),
    ]
    assert main(["systems", str(seed), *arguments]) == 0
    rows = {row["system"]: row for row in csv.DictReader((tmp_path / "systems.csv").read_text().splitlines())}
    assert tuple(rows) == SYSTEMS
    dense, ours, adapted, lass, models = (rows[name] for name in SYSTEMS[1:])
    assert int(ours["parameters"]) == int(ours["trained_parameters"]) == int(dense["parameters"])
    assert int(lass["parameters"]) == int(lass["trained_parameters"]) == int(dense["parameters"])
    assert int(adapted["parameters"]) == int(dense["parameters"]) + int(adapted["trained_parameters"])
    assert int(models["parameters"]) == 2 * int(dense["parameters"])
    # Two directions were evaluated.
    masks = (seed / "masks" / "specialized.safetensors").stat().st_size
    assert float(ours["bytes_per_direction"]) == masks / 2
    assert float(adapted["bytes_per_direction"]) == 4 * int(adapted["trained_parameters"]) / 2
    assert float(models["bytes_per_direction"]) == 4 * int(dense["parameters"])
    assert float(dense["bytes_per_direction"]) == 0
    assert float(ours["extraction_seconds"]) == 3.0
    assert float(lass["extraction_seconds"]) == 50.0
    assert adapted["extraction_seconds"] == dense["extraction_seconds"] == ""
    assert models["training_ratio"] == dense["training_ratio"] == "1.0"
    assert float(dense["bleu_difference"]) == pytest.approx(
        float(dense["bleu"]) - float(rows[SYSTEMS[0]]["bleu"]), abs=1e-5
    )
    page = (tmp_path / "systems.md").read_text()
    assert all(page.count(f"\n| {name} ") == 2 for name in SYSTEMS)


def test_what_was_not_measured_is_not_shown(seed: Path, comparison: Path, tmp_path: Path) -> None:
    copy = tmp_path / "seed-1"
    shutil.copytree(seed, copy, ignore=shutil.ignore_patterns("extraction"))
    table = read_systems(copy, comparison)
    assert table.costs["specialized"].extraction_seconds is None
    assert table.costs["specialized"].training_ratio is None
    row = next(
        line
        for line in write_systems(tmp_path, table).read_text().split("## Costs")[1].splitlines()
        if line.startswith("| specialized ")
    )
    assert [cell.strip() for cell in row.split("|")[5:-1]] == ["-"] * 4


def test_what_is_missing_is_refused(
    seed: Path, comparison: Path, benchmark_file: Path, tmp_path: Path
) -> None:
    with pytest.raises(ArtifactError, match="checkpoint of a compared system"):
        read_systems(tmp_path, comparison)
    timed = json.loads(benchmark_file.read_text())
    del timed["systems"]["specialized"]
    write_json(tmp_path / "systems.json", timed)
    with pytest.raises(ArtifactError, match="did not time this system"):
        read_systems(seed, comparison, tmp_path / "systems.json")


@pytest.mark.experiment
@pytest.mark.slow
def test_every_system_is_in_the_table_of_the_smoke_run(tmp_path: Path) -> None:
    script(EXPERIMENTS / "systems.sh", "--smoke", "--run", tmp_path)
    result = tmp_path / "systems-seeds-1"
    rows = {row["system"]: row for row in csv.DictReader((result / "systems.csv").read_text().splitlines())}
    assert set(rows) == {
        "dense",
        "dense-continuation",
        "specialized",
        "matched-random",
        "other-direction",
        *BASELINES,
    }
    assert all(
        row["training_ratio"] and row["generation_ratio"] and row["peak_bytes"] for row in rows.values()
    )
    assert float(rows["lass"]["extraction_seconds"]) > 0
    assert float(rows["specialized"]["bytes_per_direction"]) < float(rows["lass"]["bytes_per_direction"])
    made = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.pt")}
    script(EXPERIMENTS / "systems.sh", "--smoke", "--run", tmp_path)
    assert made == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.pt")}
