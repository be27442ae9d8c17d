"""Fine-tuning a copy of the dense model per direction, for what is then made of the copy.

Each copy is a ``fairseq-train`` in a process of its own, so that its memory goes when it ends. What is complete is
skipped; a killed copy goes on from its last checkpoint. Of a copy's folder:

    train/            the fine-tuned copy, deleted once its product is there
    train.log
    signature.json    what it is fine-tuned from, and how
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from fairseq import tasks

from neuron_spec.artifacts import SIGNATURE, completed, hash_text, signature, write_json
from neuron_spec.backends.fairseq.asked import Asked
from neuron_spec.backends.fairseq.checkpoints import token_flags
from neuron_spec.backends.fairseq.commands import generation_config
from neuron_spec.backends.fairseq.data_bin import check_data_bin, data_sha256, folder_with, shards_of
from neuron_spec.directions import Direction
from neuron_spec.errors import NeuronSpecError
from neuron_spec.shared import PACKAGE

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
        asked = Asked.read(dense, data_bin, lang_pairs=directions)
        self.shards = shards_of(data_bin) or [data_bin]
        for shard in self.shards:
            check_data_bin(shard, asked.langs, "train", directions, asked.trained.fixed_dictionary)
        self.dense, self.data_bin, self.directions = dense, data_bin, asked.directions
        self.langs, self.checkpoint_sha256 = asked.langs, asked.checkpoint_sha256
        self._token_flags = token_flags(asked.trained)
        self.flags = [*flags, *self._token_flags]
        self._dense_seconds = _seconds_trained(asked.state)

    def command(self, direction: Direction, folder: Path, seed: int | None = None) -> list[str]:
        """``fairseq-train`` of one direction; it resumes if the folder has a checkpoint.

        Args:
            seed: instead of the one that the flags name.
        """
        return [
            *(sys.executable, "-m", "fairseq_cli.train", os.pathsep.join(map(str, self.shards))),
            *("--user-dir", str(PACKAGE), "--task", "neuron_specialization"),
            *("--finetune-from-model", str(self.dense), "--save-dir", str(folder), "--no-epoch-checkpoints"),
            *self.flags,
            *("--lang-pairs", str(direction)),
            *([] if seed is None else ["--seed", str(seed)]),
        ]

    def signature(
        self, stage: str, directions: Sequence[Direction], seed: int | None = None
    ) -> dict[str, Any]:
        """Of what ``stage`` makes of these directions' copies."""
        parameters: dict[str, Any] = {"directions": [str(d) for d in directions], "flags": self.flags}
        if seed is not None:
            parameters["seed"] = seed
        inputs = {"checkpoint": self.checkpoint_sha256, "data": self.data_sha256(directions)}
        return signature(stage, inputs=inputs, parameters=parameters)

    def data_sha256(self, directions: Sequence[Direction]) -> str:
        """Of their training text in all shards."""
        return hash_text(*(data_sha256(shard, "train", directions) for shard in self.shards))

    def seconds(self, state: dict[str, Any]) -> float:
        """How long a copy was fine-tuned; fairseq adds it up over resumes. Starting its process is not in it."""
        # A copy goes on counting where the dense model stopped.
        return round(_seconds_trained(state) - self._dense_seconds, 2)

    @property
    def dictionary_sha256(self) -> str:
        """Of the data-bin's symbols, language tokens among them."""
        folder = folder_with(self.data_bin, "train")
        cfg = generation_config(self.dense, folder, self.directions[:1], self._token_flags)
        return hash_text(*tasks.setup_task(cfg.task).source_dictionary.symbols)


@dataclass(frozen=True)
class Copy:
    """A fine-tuned copy of one direction, and where it is.

    Attributes:
        seed: of its training; None: as the flags say.
        keep: leave it when its product is there.
    """

    training: FineTuning
    direction: Direction
    folder: Path
    seed: int | None = None
    keep: bool = False

    def checkpoint(self, which: str) -> Path:
        """``last`` or ``best``, as fairseq names them."""
        return self.folder / "train" / f"checkpoint_{which}.pt"

    def make(self, product: Path, from_copy: Callable[[], Any], signature: dict[str, Any]) -> None:
        """Fine-tune, and call ``from_copy`` to leave ``product``, unless that is there.

        Args:
            signature: of the fine-tuning.

        Raises:
            ArtifactError: if the folder holds what was fine-tuned otherwise.
            NeuronSpecError: if the training fails, or another process holds the folder.
        """
        with alone_in(self.folder) as lock:
            path, train = self.folder / SIGNATURE, self.folder / "train"
            if not completed(path, signature, what="fine-tuning", where=self.folder, quiet=True):
                write_json(path, signature)
            if not product.is_file():
                if not (train / _COMPLETE).is_file():
                    command = self.training.command(self.direction, train, self.seed)
                    _train(command, self.folder / "train.log", lock)
                    (train / _COMPLETE).touch()
                from_copy()
            if not self.keep:
                shutil.rmtree(train, ignore_errors=True)


def _seconds_trained(state: dict[str, Any]) -> float:
    # None is in a checkpoint that was made small, such as the quickstart's.
    return float((state.get("extra_state") or {}).get("previous_training_time", 0.0))


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
def alone_in(folder: Path) -> Iterator[IO[str]]:
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
                mend="wait for it, or end it: a training outlives a killed neuron-spec",
            ) from error
        yield lock
