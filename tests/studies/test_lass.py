"""The loop over directions. fairseq-train is stood in for where only the loop matters; the last test runs it."""

from __future__ import annotations

import fcntl
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from neuron_spec.backends.fairseq import fine_tuning
from neuron_spec.backends.fairseq.checkpoints import checkpoint_sha256, read_checkpoint
from neuron_spec.backends.fairseq.fine_tuning import FineTuning
from neuron_spec.cli.main import main
from neuron_spec.directions import Direction, parse_directions
from neuron_spec.errors import ArtifactError, DirectionError, NeuronSpecError, SelectionError
from neuron_spec.studies.lass.measure import Masking, make_masks
from neuron_spec.studies.lass.weight_masks import WeightMasks, magnitude_mask

pytestmark = pytest.mark.slow

DIRECTIONS = parse_directions("en-qa,qa-en")
KEY = "decoder.layers.1.encoder_attn.k_proj.weight"


def flag(command: list[str], name: str) -> str:
    return command[command.index(name) + 1]


class FakeTrain:
    """Writes a checkpoint whose weights depend on the direction, as fairseq-train would leave one."""

    def __init__(self) -> None:
        self.trained: list[str] = []
        self.fails: Callable[[str], bool] = lambda direction: False

    def __call__(self, command: list[str], log: Path, lock: Any) -> None:
        direction, folder = flag(command, "--lang-pairs"), Path(flag(command, "--save-dir"))
        state = read_checkpoint(flag(command, "--finetune-from-model"))
        generator = torch.Generator().manual_seed(sum(map(ord, direction)) + ord(direction[0]))
        state["model"] = {
            key: torch.randn(value.shape, generator=generator) if value.is_floating_point() else value
            for key, value in state["model"].items()
        }
        state["extra_state"]["previous_training_time"] = 12.345
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(state, folder / "checkpoint_last.pt")
        if self.fails(direction):
            raise NeuronSpecError("fairseq-train failed")
        self.trained.append(direction)


@pytest.fixture
def train(monkeypatch: pytest.MonkeyPatch) -> FakeTrain:
    fake = FakeTrain()
    monkeypatch.setattr(fine_tuning, "_train", fake)
    return fake


@pytest.fixture(scope="module")
def training(checkpoint: Path, data_bin: Path) -> FineTuning:
    return FineTuning(checkpoint, data_bin, DIRECTIONS, ["--lr", "0.1"])


def make(training: FineTuning, folder: Path, name: str = "m", **masking: Any) -> WeightMasks:
    return make_masks(
        training, Masking(**{"alpha": 0.7, **masking}), folder / f"{name}.safetensors", folder / "work"
    )


def test_masks_are_those_of_the_fine_tuned_weights(train, training, checkpoint, tmp_path):
    masks = make(training, tmp_path, keep_checkpoints=True)
    assert masks.directions == DIRECTIONS and train.trained == ["en-qa", "qa-en"]
    for direction in DIRECTIONS:
        copy = read_checkpoint(tmp_path / "work" / str(direction) / "train" / "checkpoint_last.pt")["model"]
        assert masks.shapes.keys() < copy.keys()
        for key in masks.packed:
            assert torch.equal(masks.kept(key, direction), magnitude_mask(copy[key], 0.7))
    assert masks.metadata["checkpoint_sha256"] == checkpoint_sha256(checkpoint)
    assert masks.metadata["fine_tuning_seconds"] == {"en-qa": 12.35, "qa-en": 12.35}
    summary = json.loads((tmp_path / "m.json").read_text())
    assert summary["dropped_percent"]["en-qa"] == pytest.approx(70, abs=0.1) and summary["alpha"] == 0.7


def test_the_dense_models_own_training_is_not_counted(train, checkpoint, data_bin, tmp_path):
    state = torch.load(checkpoint, weights_only=True)
    # fairseq-train takes this over from --finetune-from-model and counts on.
    state["extra_state"] = {"previous_training_time": 10.0}
    torch.save(state, tmp_path / "dense.pt")
    training = FineTuning(tmp_path / "dense.pt", data_bin, DIRECTIONS, ["--lr", "0.1"])
    seconds = make(training, tmp_path).metadata["fine_tuning_seconds"]
    assert seconds == {"en-qa": pytest.approx(2.35), "qa-en": pytest.approx(2.35)}


def test_copies_are_deleted_and_complete_work_is_skipped(train, training, tmp_path):
    first = make(training, tmp_path)
    assert not list(tmp_path.rglob("*.pt"))
    before = (tmp_path / "m.safetensors").stat().st_mtime_ns
    again = make(training, tmp_path)
    assert again.fingerprint == first.fingerprint and train.trained == ["en-qa", "qa-en"]
    assert (tmp_path / "m.safetensors").stat().st_mtime_ns == before
    (tmp_path / "m.safetensors").unlink()  # the parts are there
    assert make(training, tmp_path).fingerprint == first.fingerprint and len(train.trained) == 2


def test_a_failed_direction_is_done_again_and_those_before_it_are_not(train, training, tmp_path):
    train.fails = lambda direction: direction == "qa-en"
    with pytest.raises(NeuronSpecError, match="fairseq-train failed"):
        make(training, tmp_path)
    assert not (tmp_path / "m.safetensors").exists()
    # What it left is not taken for complete, and stays to be resumed from.
    assert (tmp_path / "work" / "qa-en" / "train" / "checkpoint_last.pt").is_file()
    train.fails = lambda direction: False
    make(training, tmp_path)
    assert train.trained == ["en-qa", "qa-en"]


def test_another_alpha_needs_no_other_training_where_copies_are_kept(train, training, tmp_path):
    sparse = make(training, tmp_path, keep_checkpoints=True)
    less = make(training, tmp_path, "less", alpha=0.3, keep_checkpoints=True)
    assert len(train.trained) == 2
    for direction in DIRECTIONS:
        assert not bool((sparse.kept(KEY, direction) & ~less.kept(KEY, direction)).any())
    make(training, tmp_path, "no-copy", alpha=0.5)
    make(training, tmp_path, "again", alpha=0.4)  # the copies are gone now
    assert len(train.trained) == 4


def test_processes_may_share_the_work_and_one_joins_it(train, checkpoint, data_bin, tmp_path):
    for direction in DIRECTIONS[::-1]:
        make(FineTuning(checkpoint, data_bin, [direction], ["--lr", "0.1"]), tmp_path, str(direction))
    joined = make(FineTuning(checkpoint, data_bin, DIRECTIONS, ["--lr", "0.1"]), tmp_path)
    assert train.trained == ["qa-en", "en-qa"] and joined.directions == DIRECTIONS


def test_a_direction_in_other_hands_is_refused(train, training, tmp_path):
    (tmp_path / "work" / "qa-en").mkdir(parents=True)
    with open(tmp_path / "work" / "qa-en" / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(NeuronSpecError, match="another process"):
            make(training, tmp_path)
    make(training, tmp_path)


def test_what_was_made_otherwise_is_not_taken_nor_overwritten(
    train, training, checkpoint, data_bin, tmp_path
):
    make(training, tmp_path)
    other = FineTuning(checkpoint, data_bin, DIRECTIONS, ["--lr", "0.2"])
    with pytest.raises(ArtifactError, match="another set of weight masks is already here"):
        make(other, tmp_path)
    with pytest.raises(ArtifactError, match="another fine-tuning is already here"):
        make(other, tmp_path, "other")
    with pytest.raises(ArtifactError, match="alpha"):
        make(training, tmp_path, alpha=0.3)
    assert len(train.trained) == 2


def test_bad_input_is_refused_before_any_training(train, training, checkpoint, data_bin, tmp_path):
    with pytest.raises(SelectionError, match="alpha"):
        make(training, tmp_path, alpha=1.0)
    with pytest.raises(DirectionError, match="unknown language"):
        FineTuning(checkpoint, data_bin, [Direction("en", "xx")], [])
    with pytest.raises(ArtifactError, match="no train set"):
        FineTuning(checkpoint, data_bin, [Direction("qa", "qb")], [])
    with pytest.raises(ArtifactError, match="checkpoint not found"):
        FineTuning(tmp_path / "none.pt", data_bin, DIRECTIONS, [])
    assert not train.trained


def test_the_best_checkpoint_needs_validation(train, training, tmp_path):
    with pytest.raises(ArtifactError, match="no best checkpoint"):
        make(training, tmp_path, checkpoint="best")


def test_the_command_is_stock_fairseq_train_of_one_direction(training, tmp_path):
    command = training.command(DIRECTIONS[0], tmp_path)
    assert command[1:3] == ["-m", "fairseq_cli.train"]
    assert flag(command, "--lang-pairs") == "en-qa" and flag(command, "--langs") == "en,qa,qb,qm"
    assert flag(command, "--encoder-langtok") == "src" and "--decoder-langtok" in command


def test_a_training_that_fails_shows_the_end_of_its_log(tmp_path):
    with open(tmp_path / "lock", "w") as lock, pytest.raises(NeuronSpecError, match="no such flag") as caught:
        fine_tuning._train(
            [sys.executable, "-c", "import sys; sys.exit('no such flag')"], tmp_path / "log", lock
        )
    assert "exit code 1" in str(caught.value) and str(tmp_path / "log") in str(caught.value)


def test_a_training_holds_its_folder_after_we_are_gone(tmp_path):
    """Else the next run would train in the same folder at the same time."""
    with fine_tuning.alone_in(tmp_path) as lock:
        child = subprocess.Popen(
            [sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=[lock.fileno()]
        )
    with pytest.raises(NeuronSpecError, match="another process"), fine_tuning.alone_in(tmp_path):
        pass
    child.communicate(b"\n")
    with fine_tuning.alone_in(tmp_path):
        pass


def test_the_real_commands(workshop, checkpoint, data_bin, tmp_path, monkeypatch):
    config = tmp_path / "finetune.yaml"
    config.write_text(workshop.fine_tuning())
    command = ["lass", data_bin, "--path", checkpoint, "--config", config, "--alpha", 0.6, "--cpu"]
    command += ["--work", tmp_path / "work", "--output", tmp_path / "m.safetensors", "--lang-pairs", "en-qa"]
    assert main([*map(str, command), "--keep-checkpoints"]) == 0
    masks = WeightMasks.load(tmp_path / "m.safetensors")
    copy = read_checkpoint(tmp_path / "work" / "en-qa" / "train" / "checkpoint_last.pt")
    dense = read_checkpoint(checkpoint)["model"]
    assert not torch.equal(copy["model"][KEY], dense[KEY])
    assert torch.equal(masks.kept(KEY, DIRECTIONS[0]), magnitude_mask(copy["model"][KEY], 0.6))
    before = read_checkpoint(checkpoint)["extra_state"].get("previous_training_time", 0)
    total = copy["extra_state"]["previous_training_time"]
    assert 0 < masks.metadata["fine_tuning_seconds"]["en-qa"] == pytest.approx(total - before, abs=0.01)
    flags = ["--weight-masks", str(tmp_path / "m.safetensors"), "--finetune-from-model", str(checkpoint)]
    flags += ["--missing-direction", "dense"]
    assert workshop.build(*flags, arch="neuron_spec_lass_tiny")[2].has_masks
