"""Subnetworks and meta-learning: which commands the experiment runs, and what its page says."""

from __future__ import annotations

import argparse
import csv
import importlib
import json
import os
import random
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pytest
import torch

from neuron_spec.artifacts import signature
from neuron_spec.cli.main import main, module_of
from neuron_spec.directions import parse_directions
from neuron_spec.errors import ArtifactError
from neuron_spec.neurons.masks import NeuronMasks
from neuron_spec.scoring.comparison import compare, comparison_signature
from neuron_spec.scoring.comparison_files import write_comparison
from neuron_spec.scoring.evaluation import Evaluation, evaluate
from neuron_spec.scoring.metrics import Outputs
from neuron_spec.scoring.systems import System, comparable
from neuron_spec.studies.subnetworks.page import KNOWN, curves, read_subnetworks

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "experiments" / "subnetworks.sh"
SYSTEMS = ("full", "full-longer", "static", "dynamic", "meta-full", "meta-static", "meta-dynamic")
ENVIRONMENT = {
    **os.environ,
    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    "PYTHONWARNINGS": "ignore",
}


def script(*arguments: object, status: int = 0) -> subprocess.CompletedProcess[str]:
    command = [str(part) for part in (SCRIPT, *arguments)]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == status, done.stdout[-2000:] + done.stderr[-4000:]
    return done


def commands(*arguments: object) -> list[str]:
    return script("--dry-run", *arguments).stdout.splitlines()


def value(words: list[str], flag: str) -> str | None:
    """The last one, which counts."""
    found = [after for word, after in pairwise(words) if word == flag]
    return found[-1] if found else None


# ---------------------------------------------------------------- commands


@pytest.fixture(scope="module")
def cpu_commands() -> list[list[str]]:
    return [line.split() for line in commands("--cpu", "--seeds", "1,2")]


def trainings(found: list[list[str]]) -> dict[str, list[str]]:
    own = [words for words in found if "50_specialize" in words[0] and "/seed-2/" in words[4]]
    return {Path(words[4]).name: words for words in own}


def test_new_languages_are_in_no_training(cpu_commands: list[list[str]]) -> None:
    trained = {
        value(words, "--lang-pairs")
        for words in cpu_commands
        if words[0] in ("scripts/20_pretrain.sh", "scripts/50_specialize.sh")
    }
    (known,) = trained
    (new,) = {value(words, "--lang-pairs") for words in cpu_commands if words[:2] == ["neuron-spec", "adapt"]}
    assert known is not None and new is not None
    assert len(known.split(",")) == 18
    assert len(new.split(",")) == 6
    langs = [{code for pair in pairs.split(",") for code in pair.split("-")} for pairs in (known, new)]
    assert langs[0] & langs[1] == {"en"}


def test_systems_differ_in_what_they_are_alone(cpu_commands: list[list[str]]) -> None:
    found = trainings(cpu_commands)
    assert tuple(found) == SYSTEMS
    for name, words in found.items():
        assert value(words, "--task") == "neuron_spec_meta"
        assert value(words, "--meta") == ("fomaml" if name.startswith("meta-") else "none")
        assert value(words, "--dynamic-masks") == ("learned" if name.endswith("dynamic") else None)
        assert (words[3] == "none") == ("full" in name)
        assert words[2].endswith("seed-2/dense/checkpoint_last.pt")
        assert value(words, "--seed") == "2"
    updates = {name: int(value(words, "--max-update") or 0) for name, words in found.items()}
    # Three steps on half of the sentences and one on the others: twice the gradients of ordinary training.
    assert updates == {name: 400 if name == "full-longer" else 200 for name in SYSTEMS}


def test_masked_models_alone_borrow_masks(cpu_commands: list[list[str]]) -> None:
    adaptations = [words for words in cpu_commands if words[:2] == ["neuron-spec", "adapt"]]
    assert len(adaptations) == 2 * len(SYSTEMS)
    for words in adaptations:
        is_masked = "full" not in Path(value(words, "--output") or "").name
        assert ("--borrow" in words) == ("--missing-direction" in words) == is_masked


def test_every_command_of_ours_parses(cpu_commands: list[list[str]]) -> None:
    ours = [words[1:] for words in cpu_commands if words[0] == "neuron-spec"]
    assert {words[0] for words in ours} == {
        "prune",
        "adapt",
        "conflict",
        "transfer",
        "compare",
        "subnetworks",
    }
    for command, *words in ours:
        parser = argparse.ArgumentParser()
        importlib.import_module(module_of(command)).add_arguments(parser)
        parser.parse_args(words[: words.index("--")] if "--" in words else words)
    assert all((ROOT / words[0]).is_file() for words in cpu_commands if words[0].startswith("scripts/"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--meta maml", "got 'maml'"),
        ("--dynamic none", "got 'none'"),
        ("--shots 0,x", "got 'x'"),
        ("--shots 20,20", "20 is named twice"),
        ("--voters 0", "got '0'"),
        ("--cpu --smoke", "choose one"),
    ],
)
def test_bad_arguments_are_refused_before_anything_runs(arguments: str, message: str, tmp_path: Path) -> None:
    done = script("--run", tmp_path / "run", *arguments.split(), status=2)
    assert message in done.stderr
    assert not (tmp_path / "run").exists()


# ---------------------------------------------------------------- the page

FAMILIES = {"qa": "A", "qb": "A", "qx": "X"}
NEW = "en-qb,qb-en,en-qx,qx-en"


def evaluation(names: str, errors: int, seed: int) -> Evaluation:
    """Of made-up text, the same for all; more errors translate worse."""
    words = random.Random(names)
    outputs = []
    for direction in parse_directions(names):
        lines = [" ".join(words.choices(["ba", "ko", "li", "mu", "pe"], k=9)) for _ in range(12)]
        written = [" ".join("xx" if i % 9 < errors else w for i, w in enumerate(s.split())) for s in lines]
        outputs.append(Outputs(direction, written, lines, [line.upper() for line in lines]))
    made = signature(
        "evaluate",
        inputs={"data": names, "checkpoint": str(seed)},
        parameters={"directions": names.split(",")},
    )
    return evaluate(outputs, signature=made, families=FAMILIES)


def write(folder: Path, names: str, errors: dict[str, tuple[int, int]]) -> None:
    """A comparison over two seeds."""
    systems = comparable(
        [
            System(name, [evaluation(names, n, seed) for seed, n in enumerate(of_seeds)])
            for name, of_seeds in errors.items()
        ]
    )
    made = comparison_signature(systems, samples=20, alpha=0.05)
    write_comparison(folder, compare(systems, signature=made, samples=20, alpha=0.05))


@pytest.fixture(scope="module")
def comparisons(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("comparisons")
    write(
        folder / KNOWN,
        "en-qa,qa-en",
        {"full": (1, 1), "static": (1, 1), "dynamic": (2, 2), "meta-static": (1, 2)},
    )
    write(
        folder / "shots-0", NEW, {"full": (5, 6), "static": (4, 5), "dynamic": (5, 6), "meta-static": (4, 5)}
    )
    write(
        folder / "shots-20", NEW, {"full": (3, 4), "static": (2, 2), "dynamic": (4, 4), "meta-static": (1, 1)}
    )
    return folder


@pytest.fixture(scope="module")
def seed(tmp_path_factory: pytest.TempPathFactory, workshop: Any) -> Path:
    """A dense checkpoint, one with masks, and one whose masks have moved."""
    folder = tmp_path_factory.mktemp("run") / "seed-1"
    for name in ("full", "static", "dynamic", "meta-static"):
        (folder / name).mkdir(parents=True)
        cfg, _, model = workshop.build()
        if name != "full":
            masks = workshop.masks(model)
            kept = {site: rows.clone() for site, rows in masks.kept.items()}
            if name == "dynamic":
                kept = {site: rows.roll(1, dims=1) for site, rows in kept.items()}
            model.set_masks(NeuronMasks(masks.directions, kept, masks.metadata), workshop.langs)
        workshop.save(folder / name / "checkpoint_last.pt", cfg, model)
    return folder


@pytest.mark.slow
def test_the_page_holds_what_the_comparisons_hold(comparisons: Path, seed: Path, tmp_path: Path) -> None:
    assert main(["subnetworks", str(comparisons), "--seed", str(seed), "--output", str(tmp_path)]) == 0
    rows = list(csv.DictReader((tmp_path / "subnetworks.csv").read_text().splitlines()))
    of = {(row["system"], row["shots"], row["family"]): row for row in rows}
    assert {key[1] for key in of} == {"", "0", "20"}
    assert {key[2] for key in of if key[1] == "20"} == {"all", "A", "X"}
    for shots, folder in (("", KNOWN), ("0", "shots-0"), ("20", "shots-20")):
        found = json.loads((comparisons / folder / "comparison.json").read_text())
        (theirs,) = (
            row
            for row in found["groups"]
            if (row["system"], row["metric"], row["kind"], row["group"])
            == ("static", "bleu", "overall", "all")
        )
        ours, base = of["static", shots, "all"], of["full", shots, "all"]
        assert float(ours["bleu"]) == pytest.approx(theirs["score"]["mean"], abs=1e-5)
        assert float(base["bleu"]) == pytest.approx(theirs["baseline"]["mean"], abs=1e-5)
        assert float(ours["difference"]) == pytest.approx(float(ours["bleu"]) - float(base["bleu"]), abs=2e-5)
        assert base["difference"] == base["wins"] == ""
        assert int(ours["wins"]) == theirs["holm_results"]["win"]
    assert (
        float(of["static", "20", "all"]["difference"]) > 0 > float(of["dynamic", "20", "all"]["difference"])
    )
    page = (tmp_path / "subnetworks.md").read_text()
    assert (
        page.index("### 0 sentences")
        < page.index("### 20 sentences")
        < page.index("## Directions in training")
    )
    assert "X (no relative in training)" in page
    assert "A (no relative" not in page
    assert (tmp_path / "subnetworks.png").read_bytes().startswith(b"\x89PNG")


def test_masks_are_those_of_the_checkpoints(comparisons: Path, seed: Path, workshop: Any) -> None:
    found = read_subnetworks(comparisons, seed).masks
    assert set(found) == {"static", "dynamic", "meta-static"}
    _, _, model = workshop.build()
    kept = workshop.masks(model).kept
    fractions = torch.stack([rows.double().mean() for rows in kept.values()])
    assert found["static"].neurons_kept == pytest.approx(float(fractions.mean()))
    assert found["static"].heads_kept is None
    assert found["static"].moved == 0
    assert found["dynamic"].neurons_kept == found["static"].neurons_kept
    assert 0 < found["dynamic"].moved < 1
    assert read_subnetworks(comparisons).masks == {}


def test_scores_of_every_seed_are_in_the_curves(comparisons: Path) -> None:
    found = read_subnetworks(comparisons)
    assert found.seeds == 2
    assert [curve.direction for curve in found.curves["static"]] == NEW.split(",")
    first, second = found.curves["static"][0].scores
    assert first.keys() == {0, 20}
    # Of the seeds at no shots 4 and 5 errors, at 20 shots 2 both.
    assert first[0] > second[0]
    assert first[20] == second[20] > first[0]


def test_the_figure_has_a_panel_per_direction_and_dashes_what_was_trained_by_episodes(
    comparisons: Path,
) -> None:
    found = read_subnetworks(comparisons)
    figure = curves(found)
    titles = [ax.get_title("left") for ax in figure.axes]
    assert titles == [
        "en→qb\nA",
        "en→qx\nX (no relative in training)",
        "qb→en\nA",
        "qx→en\nX (no relative in training)",
    ]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == found.systems
    by_direction = {
        (name, curve.direction): curve.scores for name, of in found.curves.items() for curve in of
    }
    for ax, title in zip(figure.axes, titles, strict=True):
        assert [label.get_text() for label in ax.get_xticklabels()] == ["0", "20"]
        assert ax.get_ylim()[0] == 0
        direction = title.partition("\n")[0].replace("→", "-")
        segments = [of.get_segments()[0][:, 1].tolist() for of in ax.collections]
        for line, name in zip(ax.lines, found.systems, strict=True):
            seeds = by_direction[name, direction]
            means = [fmean(of[shots] for of in seeds) for shots in (0, 20)]
            assert list(line.get_ydata()) == pytest.approx(means)
            for mean, shots in zip(means, (0, 20), strict=True):
                spread = stdev(of[shots] for of in seeds)
                assert segments.pop(0) == pytest.approx([mean - spread, mean + spread])
            is_dashed = line.get_linestyle() == "--" and line.get_markerfacecolor() == "white"
            assert is_dashed == name.startswith("meta-")
    colors = {name: line.get_color() for name, line in zip(found.systems, figure.axes[0].lines, strict=True)}
    assert colors["meta-static"] == colors["static"] and len(set(colors.values())) == 3


def test_episodes_are_set_against_the_same_system_trained_ordinarily(comparisons: Path) -> None:
    found = read_subnetworks(comparisons)
    rows = {(row.system, row.shots): row for row in found.rows if row.name == "all"}
    assert [(row.system, row.baseline, row.shots) for row in found.episodes] == [
        ("meta-static", "static", shots) for shots in (None, 0, 20)
    ]
    for row in found.episodes:
        means = [rows[name, row.shots].bleu for name in (row.system, row.baseline)]
        assert row.difference == pytest.approx(means[0] - means[1])
    in_training, none, some = found.episodes
    assert in_training.difference < none.difference == 0 < some.difference
    # Two seeds: a spread, and no interval.
    assert (none.difference_std, none.p_value) == (0, None)
    assert in_training.difference_std > 0
    assert in_training.low is None


def test_what_does_not_belong_together_is_refused(comparisons: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no comparison of adaptations"):
        read_subnetworks(tmp_path)
    for name in (KNOWN, "shots-0"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "comparison.json").write_text((comparisons / name / "comparison.json").read_text())
    write(tmp_path / "shots-20", NEW, {"full": (3, 4), "static": (2, 2)})
    with pytest.raises(ArtifactError, match="different systems"):
        read_subnetworks(tmp_path)
    with pytest.raises(ArtifactError, match="checkpoint"):
        read_subnetworks(comparisons, tmp_path)


@pytest.mark.experiment
@pytest.mark.slow
def test_every_system_is_on_the_page_of_the_smoke_run(tmp_path: Path) -> None:
    script("--smoke", "--run", tmp_path / "run", "--results", tmp_path / "results")
    rows = list(csv.DictReader((tmp_path / "results" / "subnetworks.csv").read_text().splitlines()))
    assert {row["system"] for row in rows} == {*SYSTEMS}
    assert {row["shots"] for row in rows} == {"", "0", "20"}
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*.pt")}
    script("--smoke", "--run", tmp_path / "run")
    assert made == {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*.pt")}
