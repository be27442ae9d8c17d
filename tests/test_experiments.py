"""The experiment scripts: what they refuse, which commands they run, and the k sweep end to end."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from PIL import Image

ROOT = Path(__file__).parents[1]
SCRIPTS = ROOT / "scripts"
EXPERIMENTS = SCRIPTS / "experiments"
NAMES = sorted(path.stem for path in EXPERIMENTS.glob("*.sh"))
ENVIRONMENT = {
    **os.environ,
    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    "PYTHONWARNINGS": "ignore",
    "OMP_NUM_THREADS": "1",
}


def run(*command: object, status: int = 0, **kwargs: object) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [str(part) for part in command],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        **kwargs,  # type: ignore[call-overload]
    )
    assert done.returncode == status, done.stdout[-2000:] + done.stderr[-4000:]
    return done


def experiment(name: str, *arguments: object, **kwargs: object) -> subprocess.CompletedProcess[str]:
    return run(EXPERIMENTS / f"{name}.sh", *arguments, **kwargs)  # type: ignore[arg-type]


def commands(name: str, *arguments: object) -> list[str]:
    return experiment(name, "--dry-run", *arguments).stdout.splitlines()


@pytest.mark.parametrize(
    "path", sorted(SCRIPTS.rglob("*.sh")), ids=lambda path: str(path.relative_to(SCRIPTS))
)
def test_bash_can_read_every_script(path: Path) -> None:
    run("bash", "-n", path)


@pytest.mark.parametrize("name", NAMES)
def test_help_shows_every_option_from_any_folder(name: str, tmp_path: Path) -> None:
    link = tmp_path / "experiments"
    link.symlink_to(EXPERIMENTS)
    text = run(f"experiments/{name}.sh", "--help", cwd=tmp_path).stdout
    assert f"scripts/experiments/{name}.sh" in text
    assert "set -euo" not in text
    script = (EXPERIMENTS / f"{name}.sh").read_text()
    (taken,) = re.findall(r'^take_options "([a-z -]+)" "\$@"$', script, flags=re.MULTILINE)
    options = {*taken.split(), "--run", "--dry-run", "--smoke"}
    assert len(options) > 3
    assert {option for option in options if option not in text} == set()
    for option in options - {"--run", "--dry-run", "--smoke", "--cpu", "--both-ways"}:
        for words in ([option], [option, ""]):
            assert "needs a value" in experiment(name, *words, status=2).stderr


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("homeassistant", "--fast", "unknown option: --fast"),
        ("homeassistant", "--cpu --smoke", "choose one"),
        ("homeassistant", "--seeds", "--seeds needs a value"),
        ("homeassistant", "--seeds 1,x", "got 'x'"),
        ("homeassistant", "--seeds 0", "got '0'"),
        ("homeassistant", "--seeds 1,2,1", "1 is named twice"),
        ("homeassistant", "--seeds 1,", "got '1,'"),
        ("homeassistant", "--seeds ,1", "got ',1'"),
        ("homeassistant", "--seeds 1,,2", "got '1,,2'"),
        ("homeassistant", "--results README.md", "README.md is a file"),
        ("homeassistant", "--results page.md", "expected a folder"),
        ("homeassistant", "--stop-after 0", "got '0'"),
        ("homeassistant", "--stop-after soon", "got 'soon'"),
        ("k_sweep", "--ks 70,101", "got '101'"),
        ("k_sweep", "--ks 0", "got '0'"),
        ("k_sweep", "--ks 95,95", "95 is named twice"),
        ("k_sweep", "--updates 0", "got '0'"),
        ("k_sweep", "--dense model.pt", "go together"),
        ("k_sweep", "--smoke --dense a --data-bin b --config c", "makes its own dense model"),
        ("depth_sweep", "--depths 0", "got '0'"),
        ("depth_sweep", "--depths 2,1.5", "got '1.5'"),
        ("depth_sweep", "--updates many", "got 'many'"),
        ("depth_sweep", "more", "unknown option: more"),
    ],
)
def test_bad_arguments_are_refused_before_anything_runs(
    name: str, arguments: str, message: str, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    done = experiment(name, "--run", folder, *arguments.split(), status=2)
    assert message in done.stderr
    assert done.stdout == ""
    assert not folder.exists()


# Trained models are recognised by the words of their command: to change these is to train anew.
def test_the_words_that_make_corpus_and_dense_model_of_the_cpu_experiment() -> None:
    run = "runs/homeassistant-cpu"
    found = commands("homeassistant", "--cpu")
    assert found[0] == (
        f"scripts/10_data.sh homeassistant {run}/corpus --langs de,nl,sv,es,pt,it,cs,sk,ru,hu,et,tr"
        " --vocab-size 4000 --valid-size 300 --test-size 400"
    )
    pretraining = [line for line in found if "20_pretrain" in line]
    assert pretraining == [
        f"scripts/20_pretrain.sh {run}/corpus/data-bin {run}/seed-{seed}/dense configs/homeassistant/cpu/pretrain.yaml"
        f" --seed {seed} --cpu --log-format simple --log-interval 100 --save-interval-updates 500"
        " --keep-interval-updates 1 --validate-interval-updates 1000"
        for seed in (1, 2, 3)
    ]


def test_every_seed_has_its_own_dense_model_sets_and_continuations() -> None:
    found = commands("homeassistant", "--cpu", "--seeds", "4,7", "--run", "R")
    for seed, other in ((4, 7), (7, 4)):
        own = [line for line in found if f"R/seed-{seed}/" in line and "compare" not in line]
        assert not any(f"seed-{other}" in line for line in own)
        continued = [line for line in own if "50_specialize" in line]
        assert len(continued) == 5
        dense = f"R/corpus/data-bin R/seed-{seed}/dense/checkpoint_last.pt"
        start = f"R/seed-{seed}/ceiling-start"
        assert own.count(f"neuron-spec unshare --path {dense.split()[1]} --output {start}") == 1
        for system, masks in (
            ("dense-continuation", "none"),
            ("specialized", f"R/seed-{seed}/masks/specialized.safetensors"),
            ("matched-random", f"R/seed-{seed}/masks/matched-random.safetensors"),
            ("other-direction", f"R/seed-{seed}/masks/other-direction.safetensors"),
        ):
            (line,) = (line for line in continued if f" R/seed-{seed}/{system} " in line)
            assert f" {dense} {masks} R/seed-{seed}/{system} " in line
        ceiling = f" R/corpus/data-bin {start}/dense.pt {start}/masks.safetensors R/seed-{seed}/ceiling "
        assert sum(ceiling in line for line in continued) == 1
        # But for masks and folder (and flags.yaml of the ceiling's start, not there yet) all are trained by the same words.
        assert len({line.partition("continue.yaml")[2] for line in continued}) == 1
        assert f"--seed {seed} " in continued[0]
        assert len([line for line in own if "60_evaluate" in line]) == 6
        assert sum(f"--method matched-random --seed {seed}" in line for line in own) == 1
        assert sum("--method other-direction" in line for line in own) == 1
        assert sum("neuron-spec analyze" in line for line in own) == 1
    against = [line.split() for line in found if "neuron-spec compare" in line]
    assert [words[2].partition("=")[0] for words in against] == [
        "dense-continuation",
        "matched-random",
        "other-direction",
    ]
    assert against[0][3] == "specialized=R/seed-4/evaluation/specialized,R/seed-7/evaluation/specialized"


BASELINES = {
    "bible": "dense-continuation",
    "homeassistant": "dense-continuation",
    "systems": "dense-continuation",
    "subnetworks": "full",
    "k_sweep": "dense-continuation",
    "depth_sweep": "dense-continuation",
}


@pytest.mark.parametrize("name", NAMES)
def test_the_baseline_goes_first_and_chooses_the_length_penalty_that_the_others_take(name: str) -> None:
    found = [line.split() for line in commands(name, "--run", "R") if "60_evaluate" in line]
    chosen = [words[3] for words in found if "--tune-lenpen" in words]
    assert chosen
    assert {Path(folder).name for folder in chosen} == {BASELINES[name]}
    seen: list[str] = []
    for words in found:
        if "--tune-lenpen" in words:
            seen.append(words[3])
        else:
            taken = words[words.index("--lenpen-from") + 1]
            assert taken in seen
            assert (
                Path(taken).parents[1] in Path(words[3]).parents or name == "k_sweep"
            )  # of the same seed or depth
            assert words.index("--lenpen-from") < words.index("--")
    assert len(found) > 2 * len(chosen)


def test_verses_with_other_ffns_train_every_model_with_them() -> None:
    trained = ("20_pretrain", "50_specialize", "bilingual.sh")
    found = [
        line.split() for line in commands("bible", "--ffn", "96") if any(stage in line for stage in trained)
    ]
    assert len(found) > 20
    for words in found:
        assert [words[words.index(f"--{side}-ffn-embed-dim") + 1] for side in ("encoder", "decoder")] == [
            "96"
        ] * 2
        assert words[1].startswith("runs/bible-ffn-96/")


def test_the_quickstart_translates_all_with_the_penalty_of_the_dense_continuation() -> None:
    lines = run(SCRIPTS / "quickstart.sh", "--dry-run").stdout.splitlines()
    found = [line.split() for line in lines if "60_evaluate" in line]
    assert [Path(words[3]).name for words in found] == ["dense-continuation", "dense", "specialized"]
    assert "--tune-lenpen" in found[0]
    assert all(words[words.index("--lenpen-from") + 1] == found[0][3] for words in found[1:])


def test_only_the_gpu_size_may_use_a_gpu() -> None:
    stages = ("20_pretrain", "30_profile", "50_specialize", "60_evaluate")
    for size in ("--cpu", "--smoke"):
        found = [line for line in commands("homeassistant", size) if any(stage in line for stage in stages)]
        assert found
        assert all(" --cpu" in line for line in found)
    found = commands("homeassistant")
    assert not any("--cpu" in line for line in found)
    assert any("configs/homeassistant/gpu/pretrain.yaml" in line for line in found)


def test_results_hold_no_checkpoints_and_no_texts() -> None:
    found = commands("homeassistant", "--cpu", "--results", "results/homeassistant")
    kept = [line.split()[2:] for line in found if line.startswith("python scripts/keep_results.py ")]
    copied = [word for words in kept for word in words[:-1]]
    assert len(copied) > 20
    assert {Path(path).suffix for path in copied} <= {".csv", ".json", ".md", ".png"}


def test_results_are_kept_small(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "scores.csv").write_text('name,bleu,n,note\n"a, b",27.123456,12,inf\nc,-0.000123456,3,\n')
    (source / "all.json").write_text('{"p": [0.0123456, 1, 123456.7, null], "version": "2.123456"}')
    (source / "page.md").write_text(
        "27.123456\n\n![there](figure.png)\n\n![not there](other.png)\n\n| a    |    b |\n| ---- | ---: |\n| c  d | 1.23 |\n"
    )
    pixels = torch.rand(40, 2400, 3, generator=torch.Generator().manual_seed(1)).mul(255).byte().numpy()
    Image.fromarray(pixels).save(source / "figure.png")
    keep = [sys.executable, SCRIPTS / "keep_results.py"]
    run(*keep, *sorted(source.iterdir()), tmp_path / "kept/figures")
    kept = tmp_path / "kept/figures"
    assert (kept / "scores.csv").read_text() == 'name,bleu,n,note\n"a, b",27.12,12,inf\nc,-0.0001235,3,\n'
    assert json.loads((kept / "all.json").read_text()) == {
        "p": [0.01235, 1, 123457.0, None],
        "version": "2.123456",
    }
    assert (kept / "page.md").read_text() == (
        "27.123456\n\n![there](figure.png)\n\n| a | b |\n| --- | ---: |\n| c  d | 1.23 |\n"
    )
    with Image.open(kept / "figure.png") as figure:
        assert figure.mode == "P"
        assert figure.size == (2000, 33)
    (source / "scores.md").write_text(
        "# a\n\nof all\n\n## NLL, every direction\n\n| a |\n| -- |\n\n# How to read this\n\nso\n"
    )
    run(*keep, source / "scores.md", kept)
    assert (kept / "scores.md").read_text() == "# a\n\nof all\n\n# How to read this\n\nso\n"
    run(*keep, source / "scores.md", tmp_path / "alone")
    assert "## NLL, every direction" in (tmp_path / "alone/scores.md").read_text()
    run(*keep, source / "scores.csv", tmp_path / "kept/dense.csv")
    assert (tmp_path / "kept/dense.csv").is_file()
    (source / "cells.md").write_text("| a   | b \\| c   |\n")
    run(*keep, source / "cells.md", kept)
    assert (kept / "cells.md").read_text() == "| a | b \\| c |\n"
    for words in (
        ["scores.csv"],
        ["scores.csv", "all.json", "one.md"],
        ["scores.csv", "."],
        ["scores.csv", "a.md"],
    ):
        before = (source / "scores.csv").read_bytes()
        run(*keep, *(source / word for word in words), status=1)
        assert (source / "scores.csv").read_bytes() == before
        assert not {path.name for path in source.iterdir()} & {"one.md", "a.md"}
    (source / "model.pt").touch()
    assert "no checkpoints" in run(*keep, source / "model.pt", tmp_path / "kept", status=1).stderr
    assert not (tmp_path / "kept/model.pt").exists()


def test_what_is_in_the_repository_is_small() -> None:
    files = [path for path in (ROOT / "results").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 2_000_000
    figures = [path for path in files if path.suffix == ".png"]
    assert len(figures) >= 5
    for path in figures:
        with Image.open(path) as figure:
            assert figure.mode == "P", path


def test_the_k_sweep_trains_each_k_once_and_not_100() -> None:
    found = commands("k_sweep", "--ks", "70,99.5,100", "--run", "R")
    assert sum("30_profile" in line for line in found) == 1
    saved = [line.split()[4] for line in found if "50_specialize" in line]
    assert saved == ["R/dense-continuation", "R/k-70/specialized", "R/k-99.5/specialized"]
    assert sum("40_select" in line for line in found) == 3
    assert found[-1] == "neuron-spec sweep R"


def test_the_depth_sweep_trains_each_depth_with_its_layers_throughout() -> None:
    found = commands("depth_sweep", "--depths", "1,4", "--run", "R")
    for depth in (1, 4):
        trained = [line for line in found if f"R/depth-{depth}/" in line and ("20_" in line or "50_" in line)]
        assert len(trained) == 3
        assert all(f"--encoder-layers {depth} --decoder-layers {depth}" in line for line in trained)
    assert found[-1] == "neuron-spec sweep R"


def test_stopping_in_time_ends_well_and_says_how_to_go_on(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    done = experiment("homeassistant", "--smoke", "--run", folder, "--stop-after", "0.02")
    assert "stopped after 0.02 minutes" in done.stderr
    assert f"--smoke --run {folder} --stop-after 0.02" in done.stderr
    assert not processes_about(folder)


def test_a_kill_ends_the_work_too(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    command = [EXPERIMENTS / "homeassistant.sh", "--smoke", "--run", folder, "--stop-after", "5"]
    script = subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_until(lambda: any("10_data" in line for line in processes_about(folder)))
    script.send_signal(signal.SIGTERM)
    assert script.wait(timeout=60) != 0
    wait_until(lambda: not processes_about(folder))


def wait_until(condition, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


def processes_about(folder: Path) -> list[str]:
    """The command lines that name the folder; of a process that has ended there is none."""
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # ended since
            lines.append(path.read_text(errors="replace").replace("\0", " "))
    return [line for line in lines if str(folder) in line]


@pytest.mark.experiment
@pytest.mark.slow
def test_a_k_sweep_from_a_dense_checkpoint_to_its_figure(tmp_path: Path) -> None:
    corpus, folder = tmp_path / "corpus", tmp_path / "sweep"
    flags = ["--encoder-layers", 1, "--decoder-layers", 1]
    sizes = [
        "--langs",
        "qa,qb,qm",
        "--vocab-size",
        300,
        "--train-size",
        300,
        "--valid-size",
        20,
        "--test-size",
        8,
    ]
    run(SCRIPTS / "10_data.sh", "toy", corpus, *sizes)
    run(
        SCRIPTS / "20_pretrain.sh", corpus / "data-bin", tmp_path / "dense", ROOT / "configs/smoke/pretrain.yaml",
        *flags, "--cpu", "--max-update", 40, "--total-num-update", 40,
    )  # fmt: skip
    config = tmp_path / "continue.yaml"
    smoke = (ROOT / "configs/smoke/continue.yaml").read_text()
    config.write_text(smoke.replace("layers: 2", "layers: 1"))
    command = [
        "--ks", "60,100", "--updates", 5, "--run", folder, "--dense", tmp_path / "dense/checkpoint_last.pt",
        "--data-bin", corpus / "data-bin", "--config", config,
    ]  # fmt: skip
    experiment("k_sweep", *command)
    made = {path: path.stat().st_mtime_ns for path in folder.rglob("*.pt")}
    assert len(made) >= 2
    rows = list(csv.DictReader((folder / "sweep.csv").read_text().splitlines()))
    assert {row["k"] for row in rows} == {"60", "100"}
    by_k = {row["k"]: float(row["dropped_mean_percent"]) for row in rows}
    assert by_k["60"] > 20 > by_k["100"]
    for suffix in ("md", "png", "svg"):
        assert (folder / f"sweep.{suffix}").stat().st_size > 0
    # Again: nothing is trained anew.
    assert experiment("k_sweep", *command).stderr.count("complete already") >= 7
    assert made == {path: path.stat().st_mtime_ns for path in folder.rglob("*.pt")}
