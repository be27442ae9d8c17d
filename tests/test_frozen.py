"""Files that released versions wrote: every later one reads them, and gets the same from them.

``tests/frozen/VERSION/README.md`` says how each was made.
"""

from __future__ import annotations

import csv
import json
import lzma
import shutil
from pathlib import Path
from typing import Any

import pytest
from frozen import log_probabilities

from neuron_spec.backends.fairseq.checkpoints import read_checkpoint, weights_sha256
from neuron_spec.backends.fairseq.generation import Translator
from neuron_spec.cli.main import main
from neuron_spec.neurons.masks import NeuronMasks
from neuron_spec.scoring.evaluation import read_evaluation
from neuron_spec.studies.lass.weight_masks import WeightMasks
from neuron_spec.studies.pruning.importance import Importance

FOLDER = Path(__file__).parent / "frozen"
FROZEN = FOLDER / "0.1.0"
DATA_BIN = FROZEN / "corpus/data-bin"
KNOWN = ["en-qa", "qa-en", "en-qb", "qb-en", "en-qm", "qm-en"]
IDENTITIES = json.loads((FROZEN / "identities.json").read_text())
MASKS = sorted(IDENTITIES["masks"])
CHECKPOINTS = sorted(IDENTITIES["checkpoints"])


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of all checkpoints, unpacked, and of what stands beside them."""
    folder = tmp_path_factory.mktemp("checkpoints")
    for path in (FROZEN / "checkpoints").iterdir():
        if path.suffix == ".xz":
            (folder / path.stem).write_bytes(lzma.decompress(path.read_bytes()))
        else:
            shutil.copy(path, folder)
    return folder


def command(*words: object) -> None:
    assert main([str(word) for word in words]) == 0


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def rows(path: Path) -> list[dict[str, Any]]:
    """Of a CSV, numbers as floats."""
    found = csv.DictReader(path.read_text(encoding="utf-8").splitlines())
    return [{key: number(value) for key, value in row.items()} for row in found]


def number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def assert_holds(found: Any, recorded: Any, where: str = "") -> None:
    """That all that was recorded is still there; more may be, and floats may differ in the last digits."""
    if isinstance(recorded, dict):
        for key in recorded.keys() - {"signature", "versions", "seconds"}:
            assert key in found, f"{where}.{key}"
            assert_holds(found[key], recorded[key], f"{where}.{key}")
    elif isinstance(recorded, list):
        assert len(found) == len(recorded), where
        for number, (new, old) in enumerate(zip(found, recorded, strict=True)):
            assert_holds(new, old, f"{where}[{number}]")
    elif isinstance(recorded, float):
        assert found == pytest.approx(recorded, rel=1e-3, abs=2e-4), where
    else:
        assert found == recorded, where


# ---------------------------------------------------------------- profile and sets


@pytest.mark.parametrize("name", MASKS)
def test_masks_are_the_same_sets_of_the_same_directions(name: str) -> None:
    masks = NeuronMasks.load(FROZEN / f"masks/{name}.safetensors")
    assert masks.fingerprint == IDENTITIES["masks"][name]
    assert [str(direction) for direction in masks.directions] == KNOWN
    assert all(kept.any() and not kept.all() for kept in (masks.kept[layer] for layer in masks.layers))


def test_masks_of_heads_and_neurons_have_both() -> None:
    masks = NeuronMasks.load(FROZEN / "masks/pruned.safetensors")
    assert len(masks.layers) == 4
    assert len(masks.head_sites) == 6


@pytest.mark.parametrize(
    ("name", "flags"),
    [
        ("direction", []),
        ("language", ["--neuron-sets", "language"]),
        ("matched-random", ["--method", "matched-random", "--seed", 2]),
    ],
)
def test_the_profile_selects_the_same_sets(name: str, flags: list[object], tmp_path: Path) -> None:
    output = tmp_path / "masks.safetensors"
    command("select", FROZEN / "profile.safetensors", "--output", output, "--k", 80, *flags)
    assert NeuronMasks.load(output).fingerprint == IDENTITIES["masks"][name]


def test_importance_and_weight_masks_can_be_read() -> None:
    importance = Importance.load(FROZEN / "importance.safetensors")
    assert [str(direction) for direction in importance.directions] == KNOWN
    weights = WeightMasks.load(FROZEN / "masks/weights.safetensors")
    assert [str(direction) for direction in weights.directions] == KNOWN


def test_an_analysis_comes_out_the_same(tmp_path: Path) -> None:
    masks, card = FROZEN / "masks/direction.safetensors", FROZEN / "corpus/corpus.json"
    command("analyze", masks, "--corpus-card", card, "--output", tmp_path)
    assert_holds(read(tmp_path / "analysis.json"), read(FROZEN / "analysis/analysis.json"))


# ---------------------------------------------------------------- checkpoints


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_checkpoint_has_the_same_weights(name: str, checkpoints: Path) -> None:
    assert weights_sha256(read_checkpoint(checkpoints / f"{name}.pt")) == IDENTITIES["checkpoints"][name]


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_checkpoint_gives_sentences_the_same_probabilities(name: str, checkpoints: Path) -> None:
    recorded = read(FROZEN / "log_probabilities.json")[name]
    assert len(recorded) == 48
    assert log_probabilities.of_valid(DATA_BIN, checkpoints / f"{name}.pt") == pytest.approx(
        recorded, abs=2e-3
    )


@pytest.mark.parametrize("name", ["dense", "specialized"])
def test_a_checkpoint_translates_and_scores_the_same(name: str, checkpoints: Path, tmp_path: Path) -> None:
    checkpoint = checkpoints / f"{name}.pt"
    pairs = ",".join(KNOWN)
    command(
        "evaluate", DATA_BIN, "--path", checkpoint, "--output", tmp_path, "--lang-pairs", pairs, "--beam", 2, "--cpu"
    )  # fmt: skip
    recorded = FROZEN / "evaluation" / name
    for path in recorded.rglob("*.txt"):
        assert (tmp_path / path.relative_to(recorded)).read_text() == path.read_text()
    assert_holds(rows(tmp_path / "scores.csv"), rows(recorded / "scores.csv"))
    assert_holds(read(tmp_path / "scores.json"), read(recorded / "scores.json"))


def test_a_likelihood_is_added_to_an_old_evaluation(
    checkpoints: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "evaluation"
    shutil.copytree(FROZEN / "evaluation/dense", folder)
    monkeypatch.setattr(Translator, "translate", None)  # nothing is translated again
    command(
        "evaluate", DATA_BIN, "--path", checkpoints / "dense.pt", "--output", folder,
        "--lang-pairs", ",".join(KNOWN), "--beam", 2, "--cpu",
    )  # fmt: skip
    old, new = (read(of / "scores.json") for of in (FROZEN / "evaluation/dense", folder))
    for direction, scores in old["directions"].items():
        added = new["directions"][direction]
        assert added.items() >= scores.items()
        assert 0 < added["nll"] < 10
        assert 0 < added["length_ratio"] < 3
    assert new["signature"]["versions"] == old["signature"]["versions"]
    evaluation = read_evaluation(folder)
    assert list(evaluation.sentences) == [score.direction for score in evaluation.scores]


def test_a_shipped_checkpoint_knows_its_corpus(checkpoints: Path) -> None:
    for name in ("dense", "specialized"):
        command("checkpoint", "check", checkpoints / f"{name}.json", "--corpus", FROZEN / "corpus")


def test_logs_of_fairseq_generate_score_the_same(tmp_path: Path) -> None:
    command(
        "evaluate", "--generate-output", *sorted(FROZEN.glob("logs/*/generate-test.txt")), "--output", tmp_path
    )  # fmt: skip
    recorded = FROZEN / "evaluation-of-logs"
    assert_holds(rows(tmp_path / "scores.csv"), rows(recorded / "scores.csv"))


# ---------------------------------------------------------------- comparisons and studies


def test_a_comparison_comes_out_the_same(tmp_path: Path) -> None:
    systems = [FROZEN / "evaluation" / name for name in ("dense-continuation", "specialized")]
    command("compare", *systems, "--output", tmp_path, "--bootstrap", 200)
    recorded = read(FROZEN / "comparison/comparison.json")
    for row in recorded["groups"]:
        # Directions are no sample: there is no interval over them any more, and their test has a name of its own.
        del row["interval"]
        row["sign_flip_p_value"] = row.pop("p_value")
    assert_holds(read(tmp_path / "comparison.json"), recorded)
    differing = json.loads(json.dumps(recorded))
    differing["bootstrap"] = 201
    with pytest.raises(AssertionError):
        assert_holds(read(tmp_path / "comparison.json"), differing)


@pytest.mark.slow
def test_an_ablation_comes_out_the_same(checkpoints: Path, tmp_path: Path) -> None:
    command(
        "ablate", DATA_BIN, "--path", checkpoints / "dense.pt", "--masks", FROZEN / "masks/direction.safetensors",
        "--output", tmp_path, "--cpu", "--random-draws", 1, "--tag", "kept",
    )  # fmt: skip
    assert_holds(read(tmp_path / "ablation.json"), read(FROZEN / "ablation/ablation.json"))


def test_a_conflict_comes_out_the_same(checkpoints: Path, tmp_path: Path) -> None:
    command(
        "conflict", DATA_BIN, "--path", checkpoints / "dense.pt", "--overlap", FROZEN / "masks/direction.safetensors",
        "--lang-pairs", "en-qa,qa-en,en-qm,qm-en", "--output", tmp_path, "--cpu", "--tag", "kept",
    )  # fmt: skip
    assert_holds(read(tmp_path / "conflict.json"), read(FROZEN / "conflict/conflict.json"))


@pytest.mark.slow
def test_a_report_takes_what_studies_wrote(tmp_path: Path) -> None:
    run = tmp_path / "run"
    for folder in ("corpus", "evaluation", "ablation", "conflict", "transfer", "adaptation"):
        shutil.copytree(FROZEN / folder, run / folder)
    shutil.copy(FROZEN / "masks/direction.safetensors", run / "masks.safetensors")
    command("report", run)
    text = (run / "report.md").read_text(encoding="utf-8")
    for word in ("specialized", "ablation", "conflict", "transfer", "adaptation"):
        assert word in text
    # Losses were of the language token then, and the page says so.
    assert text.count("The loss is of the language token that targets begin with too") == 3
    hypothesis = (FROZEN / "evaluation/specialized/hypotheses/qm-en.txt").read_text().splitlines()
    assert any(line in text for line in hypothesis)
