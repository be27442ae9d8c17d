"""LaSS before its joint training: fine-tune a copy of the dense model per direction, mask what stays small.

Each direction is a ``fairseq-train`` in a process of its own, so that its memory goes when it ends, and only
its masks stay, a bit per weight. What is complete is skipped; a killed direction goes on from its last checkpoint.

    WORK/en-de/train/                   the fine-tuned copy, deleted once it is masked
    WORK/en-de/train.log
    WORK/en-de/alpha-0.7.safetensors    the direction's masks, complete when it is there
    WORK/en-de/signature.json           what it is fine-tuned from, and how
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any

from fairseq import tasks

import neuron_spec
from neuron_spec import tasks as tasks_of_ours
from neuron_spec.artifacts import (
    SIGNATURE,
    atomic_path,
    hash_text,
    is_already_here,
    read_json,
    signature,
    write_json,
)
from neuron_spec.checkpoints import read_checkpoint, task_args, token_flags, weights_sha256
from neuron_spec.data.data_bin import check_data_bin, data_sha256, folder_with, shards_of
from neuron_spec.directions import Direction, direction_id
from neuron_spec.errors import ArtifactError, NeuronSpecError
from neuron_spec.fairseq_commands import generation_config
from neuron_spec.neurons.weight_masks import WeightMasks, require_alpha

assert tasks_of_ours  # registered

_COMPLETE = "complete"
_LINES_SHOWN = 15  # of a failed training's log


class FineTuning:
    """How each direction's copy is trained, and of what it is a copy."""

    def __init__(
        self, dense: Path, data_bin: Path, directions: Sequence[Direction], flags: Sequence[str]
    ) -> None:
        """Check everything that can be checked before the first training.

        Args:
            flags: of ``fairseq-train``; language flags are read from the checkpoint.

        Raises:
            ArtifactError: if the checkpoint or a data file is missing or damaged.
            DirectionError: if the checkpoint does not know a language.
        """
        state = read_checkpoint(dense)
        trained = task_args(state, dense)
        for direction in directions:
            direction_id(direction, trained.langs)
        self.shards = shards_of(data_bin) or [data_bin]
        for shard in self.shards:
            check_data_bin(shard, trained.langs, "train", directions)
        self.dense, self.data_bin, self.directions = dense, data_bin, list(directions)
        self.langs: list[str] = list(trained.langs)
        self.flags = [*flags, *token_flags(trained)]
        self.checkpoint_sha256 = weights_sha256(state)

    def command(self, direction: Direction, folder: Path) -> list[str]:
        """``fairseq-train`` of one direction; it resumes if the folder has a checkpoint."""
        return [
            *(sys.executable, "-m", "fairseq_cli.train", os.pathsep.join(map(str, self.shards))),
            *("--user-dir", str(Path(neuron_spec.__file__).parent), "--task", "neuron_specialization"),
            *("--finetune-from-model", str(self.dense), "--save-dir", str(folder), "--no-epoch-checkpoints"),
            *self.flags,
            *("--lang-pairs", str(direction)),
        ]

    def signature(self, directions: Sequence[Direction]) -> dict[str, Any]:
        data = hash_text(*(data_sha256(shard, "train", directions) for shard in self.shards))
        return signature(
            "lass",
            inputs={"checkpoint": self.checkpoint_sha256, "data": data},
            parameters={"directions": [str(d) for d in directions], "flags": self.flags},
        )

    @cached_property
    def dictionary_sha256(self) -> str:
        """Of the data-bin's symbols, language tokens among them."""
        first = self.directions[0]
        cfg = generation_config(
            [
                *(str(folder_with(self.data_bin, "train")), "--path", str(self.dense)),
                *("--task", "neuron_specialization", *token_flags(task_args(read_checkpoint(self.dense)))),
                *("--lang-pairs", str(first), "-s", first.source, "-t", first.target),
            ]
        )
        return hash_text(*tasks.setup_task(cfg.task).source_dictionary.symbols)


@dataclass(frozen=True)
class Masking:
    """What becomes of a fine-tuned copy.

    Attributes:
        alpha: the fraction of each matrix' weights that is dropped, 0 to below 1.
        checkpoint: which of fairseq's checkpoints is masked: ``last``, or ``best`` on validation data.
        keep_checkpoints: leave the copy, so that another alpha needs no other training.
    """

    alpha: float
    checkpoint: str = "last"
    keep_checkpoints: bool = False

    def __post_init__(self) -> None:
        require_alpha(self.alpha)

    @property
    def file_name(self) -> str:
        which = "" if self.checkpoint == "last" else f"-{self.checkpoint}"
        return f"alpha-{self.alpha:g}{which}.safetensors"


def make_masks(training: FineTuning, masking: Masking, output: Path, work: Path) -> WeightMasks:
    """The masks of all directions, in ``output``; several processes may share ``work``, not a direction.

    Raises:
        ArtifactError: if ``output`` or ``work`` holds what was made from something else.
        NeuronSpecError: if a training fails, or another process is at work on a direction.
    """
    made = training.signature(training.directions)
    made["parameters"] |= {"alpha": masking.alpha, "checkpoint": masking.checkpoint}
    found = WeightMasks.load(output).metadata.get("signature", {}) if output.is_file() else None
    if is_already_here(output, found, made, what="set of weight masks"):
        print(f"{output}: complete already", file=sys.stderr)
        return WeightMasks.load(output)
    dictionary = training.dictionary_sha256  # before any training, as it reads the data-bin
    parts = []
    for number, direction in enumerate(training.directions, start=1):
        print(f"{direction} ({number} of {len(training.directions)})", file=sys.stderr)
        parts.append(masks_of(training, masking, direction, work / str(direction)))
    masks = WeightMasks.join(
        parts,
        {
            "method": "lass",
            "alpha": masking.alpha,
            "checkpoint_sha256": training.checkpoint_sha256,
            "dictionary_sha256": dictionary,
            "langs": training.langs,
            "fine_tuning_seconds": {str(part.directions[0]): part.metadata["seconds"] for part in parts},
            "signature": made,
        },
    )
    masks.save(output)
    return masks


def masks_of(training: FineTuning, masking: Masking, direction: Direction, folder: Path) -> WeightMasks:
    """One direction's masks: read if they are complete, else fine-tuned for."""
    with _alone_in(folder) as lock:
        made = training.signature([direction])
        found = read_json(folder / SIGNATURE, "signature") if (folder / SIGNATURE).is_file() else None
        is_already_here(folder, found, made, what="fine-tuning")
        write_json(folder / SIGNATURE, made)
        copy, part = folder / "train", folder / masking.file_name
        if not part.is_file():
            if not (copy / _COMPLETE).is_file():
                _train(training.command(direction, copy), folder / "train.log", lock)
                with atomic_path(copy / _COMPLETE) as mark:
                    mark.touch()
            _mask(copy / f"checkpoint_{masking.checkpoint}.pt", direction, masking, made).save(part)
        if not masking.keep_checkpoints:
            shutil.rmtree(copy, ignore_errors=True)
        return WeightMasks.load(part)


def _mask(path: Path, direction: Direction, masking: Masking, made: dict[str, Any]) -> WeightMasks:
    if masking.checkpoint == "best" and not path.is_file():
        raise ArtifactError(
            "fine-tuning left no best checkpoint",
            where=path,
            mend="let it validate (no disable-validation in --config), or mask the last checkpoint",
        )
    state = read_checkpoint(path)
    masks = WeightMasks.by_magnitude(state["model"], direction, masking.alpha)
    # fairseq adds up the time over resumes; starting its process is not in it.
    masks.metadata |= {"seconds": round(state["extra_state"]["previous_training_time"], 2), "signature": made}
    return masks


def _train(command: Sequence[str], log: Path, lock: IO[str]) -> None:
    with open(log, "a", encoding="utf-8") as file:
        done = subprocess.run(
            command,
            stdout=file,
            stderr=subprocess.STDOUT,
            env={**os.environ, "LOGLEVEL": "INFO"},
            pass_fds=[lock.fileno()],  # so that it is held until the training ends, whatever becomes of us
            check=False,
        )
    if done.returncode:
        last = log.read_text(encoding="utf-8", errors="replace").splitlines()[-_LINES_SHOWN:]
        raise NeuronSpecError(
            "fairseq-train failed",
            where=log,
            got="\n".join([f"exit code {done.returncode}; the log ends with", *(x[:300] for x in last)]),
            mend="mend its cause and run the command again: it goes on where it stopped",
        )


@contextmanager
def _alone_in(folder: Path) -> Iterator[IO[str]]:
    """Hold a direction's folder.

    Raises:
        NeuronSpecError: if another process holds it, or a training that it left behind.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise NeuronSpecError(
                "another process is fine-tuning this direction",
                where=folder,
                mend="wait for it, or end it: a training outlives a killed neuron-spec lass",
            ) from error
        yield lock
