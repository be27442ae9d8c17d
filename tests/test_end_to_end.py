"""The whole method through the real command lines, on the toy corpus."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from neuron_spec.backends.fairseq.checkpoints import is_specialized, read_checkpoint
from neuron_spec.corpora import toy
from neuron_spec.neurons.masks import NeuronMasks
from neuron_spec.neurons.overlap import pairwise_iou
from neuron_spec.scoring.evaluation import read_evaluation
from neuron_spec.scoring.logs import read_generate_output
from neuron_spec.statistics import family_contrast

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "configs" / "smoke"
ENVIRONMENT = {
    **os.environ,
    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    "PYTHONWARNINGS": "ignore",
    "OMP_WAIT_POLICY": "PASSIVE",
}
UPDATES = "450"


def run(*command: object, status: int = 0, **kwargs: object) -> str:
    """Run a command; its output, with errors, unless it ends otherwise than expected."""
    done = subprocess.run(
        [str(part) for part in command],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        **kwargs,  # type: ignore[call-overload]
    )
    assert done.returncode == status, done.stdout[-4000:]
    return done.stdout


def script(name: str, *arguments: object) -> str:
    return run(ROOT / "scripts" / name, *arguments)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete run: corpus, dense, profile, masks, specialized, evaluations, report."""
    folder = tmp_path_factory.mktemp("run")
    data_bin = folder / "corpus" / "data-bin"
    script(
        "10_data.sh", "toy", folder / "corpus", "--train-size", 1500, "--valid-size", 60, "--test-size", 20
    )
    quick = ["--cpu", "--log-format", "simple"]
    script(
        "20_pretrain.sh", data_bin, folder / "dense", CONFIGS / "pretrain.yaml", *quick,
        "--max-update", UPDATES, "--total-num-update", UPDATES,
    )  # fmt: skip
    dense = folder / "dense" / "checkpoint_last.pt"
    script("30_profile.sh", data_bin, dense, folder / "profile.safetensors", "--cpu")
    script("40_select.sh", folder / "profile.safetensors", folder / "masks.safetensors")
    specialize(folder, "specialized", 40)
    for system in ("dense", "specialized"):
        checkpoint = folder / system / "checkpoint_last.pt"
        script("60_evaluate.sh", data_bin, checkpoint, folder / "evaluation" / system, "--cpu")
    script("70_report.sh", folder)
    return folder


def specialize(folder: Path, name: str, updates: int, masks: object = None) -> None:
    script(
        "50_specialize.sh", folder / "corpus" / "data-bin", folder / "dense" / "checkpoint_last.pt",
        masks or folder / "masks.safetensors", folder / name, CONFIGS / "continue.yaml", "--cpu",
        "--max-update", updates, "--total-num-update", 40, "--log-format", "simple",
        "--save-interval-updates", 20, "--disable-validation",
    )  # fmt: skip


def task_flags(folder: Path, source: str, target: str) -> list[object]:
    data_bin = folder / "corpus" / "data-bin"
    return [
        data_bin, "--user-dir", ROOT / "neuron_spec", "--task", "neuron_specialization",
        "--langs", (data_bin / "langs.txt").read_text().replace("\n", ",").strip(","),
        "--lang-pairs", f"{source}-{target}", "-s", source, "-t", target,
        "--encoder-langtok", "src", "--decoder-langtok", "--cpu", "--num-workers", 0,
    ]  # fmt: skip


def test_the_model_learns_and_specialization_does_not_break_it(folder: Path) -> None:
    for system in ("dense", "specialized"):
        overall = next(
            row for row in read_evaluation(folder / "evaluation" / system).summary if row.kind == "overall"
        )
        assert overall.bleu > 15, system  # untrained: 0
        assert overall.empty_fraction == 0


def test_related_languages_overlap_more_than_unrelated_ones(folder: Path) -> None:
    masks = NeuronMasks.load(folder / "masks.safetensors")
    contrasts = {}
    for layer in masks.layers:
        side = "source" if layer.startswith("encoder") else "target"
        rows = [i for i, d in enumerate(masks.directions) if getattr(d, side) != "en"]
        families = [toy.FAMILIES[getattr(masks.directions[i], side)] for i in rows]
        within, between = family_contrast(pairwise_iou(masks.kept[layer][rows]), families)
        contrasts[layer] = within - between
    assert all(contrast > 0 for contrast in contrasts.values()), contrasts


@pytest.fixture(scope="module")
def generated_log(folder: Path) -> Path:
    """What ``fairseq-generate`` says of the specialized checkpoint, without the file of its masks."""
    hidden = (folder / "masks.safetensors").rename(folder / "hidden.safetensors")
    try:
        log = run(
            "fairseq-generate", *task_flags(folder, "en", "qx"), "--beam", 5, "--remove-bpe", "sentencepiece",
            "--path", folder / "specialized" / "checkpoint_last.pt", "--max-tokens", 300,
        )  # fmt: skip
    finally:
        hidden.rename(folder / "masks.safetensors")
    path = folder / "en-qx" / "generate-test.txt"
    path.parent.mkdir()
    path.write_text(log)
    return path


def test_a_specialized_checkpoint_carries_its_masks_and_needs_no_mask_file(
    folder: Path, generated_log: Path
) -> None:
    assert is_specialized(read_checkpoint(folder / "specialized" / "checkpoint_last.pt"))
    assert not is_specialized(read_checkpoint(folder / "dense" / "checkpoint_last.pt"))
    generated = read_generate_output(generated_log).hypotheses
    ours = folder / "evaluation" / "specialized" / "hypotheses" / "en-qx.txt"
    # Another batch size, fairseq's own command: the same translations.
    assert generated == ours.read_text().splitlines()


def test_existing_logs_are_scored_like_our_own_translations(folder: Path, generated_log: Path) -> None:
    run("neuron-spec", "evaluate", "--generate-output", generated_log, "--output", folder / "from-log")
    (score,) = read_evaluation(folder / "from-log").scores
    own = {s.direction: s for s in read_evaluation(folder / "evaluation" / "specialized").scores}
    assert score.bleu == pytest.approx(own[score.direction].bleu)


def test_interactive_and_validate_run_on_a_specialized_checkpoint(folder: Path) -> None:
    checkpoint = folder / "specialized" / "checkpoint_last.pt"
    lines = (folder / "corpus" / "raw" / "test.qx-en.en").read_text().splitlines()[:2]
    output = run(
        "fairseq-interactive", *task_flags(folder, "en", "qx"), "--path", checkpoint, "--beam", 5,
        "--bpe", "sentencepiece", "--sentencepiece-model", folder / "corpus" / "spm" / "sentencepiece.model",
        input="\n".join(lines) + "\n",
    )  # fmt: skip
    translated = [line.split("\t")[2] for line in output.splitlines() if line.startswith("D-")]
    ours = folder / "evaluation" / "specialized" / "hypotheses" / "en-qx.txt"
    assert translated == ours.read_text().splitlines()[:2]
    output = run(
        "fairseq-validate", folder / "corpus" / "data-bin", "--user-dir", ROOT / "neuron_spec",
        "--task", "neuron_specialization", "--path", checkpoint, "--max-tokens", 1000, "--cpu",
    )  # fmt: skip
    assert "bsz 720" in output  # 12 directions of 60 sentences, none dropped


def test_another_task_is_refused_rather_than_run_without_masks(folder: Path) -> None:
    flags = [
        "translation_multi_simple_epoch" if f == "neuron_specialization" else f
        for f in task_flags(folder, "en", "qx")
    ]
    checkpoint = folder / "specialized" / "checkpoint_last.pt"
    assert "would ignore its masks" in run("fairseq-generate", *flags, "--path", checkpoint, status=2)


def test_training_resumes_to_the_same_weights(folder: Path) -> None:
    specialize(folder, "resumed", 20)
    specialize(folder, "resumed", 40)
    straight, resumed = (
        read_checkpoint(folder / name / "checkpoint_last.pt")["model"] for name in ("specialized", "resumed")
    )
    assert straight.keys() == resumed.keys()
    assert all(torch.equal(straight[key], resumed[key]) for key in straight)


def test_two_processes_train_as_one_with_twice_the_update_freq(folder: Path) -> None:
    """Each process' batch holds another direction, so the processes update different rows of fc1."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    data_bin = folder / "corpus" / "data-bin"
    flags = run("neuron-spec", "flags", CONFIGS / "continue.yaml").splitlines()
    command = [
        "fairseq-train", data_bin, "--user-dir", ROOT / "neuron_spec", "--task", "neuron_specialization",
        "--langs", (data_bin / "langs.txt").read_text().replace("\n", ",").strip(","),
        "--lang-pairs", data_bin / "lang_pairs.txt", "--finetune-from-model", folder / "dense" / "checkpoint_last.pt",
        "--neuron-masks", folder / "masks.safetensors", *flags, "--cpu", "--dropout", 0, "--ffn-path", "gather",
        "--max-update", 4, "--total-num-update", 4, "--disable-validation", "--no-epoch-checkpoints",
    ]  # fmt: skip
    run(*command, "--update-freq", 2, "--save-dir", folder / "one")
    two = [
        *command, "--update-freq", 1, "--save-dir", folder / "two", "--distributed-world-size", 2,
        "--distributed-no-spawn", "--distributed-backend", "gloo", "--ddp-backend", "legacy_ddp",
        "--distributed-init-method", f"tcp://127.0.0.1:{port}",
    ]  # fmt: skip
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda rank: run(*two, "--distributed-rank", rank), (0, 1)))
    one, other = (read_checkpoint(folder / name / "checkpoint_last.pt")["model"] for name in ("one", "two"))
    dense = read_checkpoint(folder / "dense" / "checkpoint_last.pt")["model"]
    for key, trained in one.items():
        torch.testing.assert_close(other[key], trained, atol=1e-6, rtol=1e-5)
        assert not key.endswith(".weight") or not torch.equal(dense[key], trained)


def test_masks_of_another_checkpoint_are_refused(folder: Path) -> None:
    other = read_checkpoint(folder / "dense" / "checkpoint_last.pt")
    other["model"]["encoder.layers.0.fc1.weight"] = other["model"]["encoder.layers.0.fc1.weight"] + 1
    torch.save(other, folder / "other.pt")
    output = run(
        ROOT / "scripts" / "50_specialize.sh", folder / "corpus" / "data-bin", folder / "other.pt",
        folder / "masks.safetensors", folder / "refused", CONFIGS / "continue.yaml", "--cpu", "--max-update", 5,
        "--total-num-update", 5, status=2,
    )  # fmt: skip
    assert "the masks are from the profile of another checkpoint" in output


def test_stages_skip_what_is_complete(folder: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in folder.glob("*.safetensors")}
    dense = folder / "dense" / "checkpoint_last.pt"
    output = script(
        "30_profile.sh", folder / "corpus" / "data-bin", dense, folder / "profile.safetensors", "--cpu"
    )
    assert "complete already" in output
    assert before[folder / "profile.safetensors"] == (folder / "profile.safetensors").stat().st_mtime_ns
    evaluation = folder / "evaluation" / "dense"
    assert "complete already" in script(
        "60_evaluate.sh", folder / "corpus" / "data-bin", dense, evaluation, "--cpu"
    )


def test_another_evaluation_in_the_same_folder_is_refused(folder: Path) -> None:
    evaluation = folder / "evaluation" / "dense"
    before = (evaluation / "scores.json").read_text()
    command = ["neuron-spec", "evaluate", folder / "corpus" / "data-bin", "--output", evaluation, "--cpu"]
    output = run(*command, "--path", folder / "specialized" / "checkpoint_last.pt", status=2)
    assert "another evaluation is already here" in output
    assert (evaluation / "scores.json").read_text() == before


def test_the_report_shows_scores_and_figures(folder: Path) -> None:
    text = (folder / "report.md").read_text()
    assert "**specialized against dense, BLEU:**" in text
    assert "specialized against dense" in (folder / "report.html").read_text()
    for figure in ("scores", "sparsity", "overlap", "iou"):
        assert f"figures/{figure}.png" in text
        assert (folder / "figures" / f"{figure}.png").stat().st_size > 10_000
