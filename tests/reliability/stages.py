"""The stages of a run on a toy corpus, killed and started again: what every one is, and what has to come out."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from neuron_spec.artifacts import hash_text, load_tensors, read_json
from neuron_spec.backends.fairseq.checkpoints import read_checkpoint
from neuron_spec.shared import PACKAGE

HERE = Path(__file__).parent
INJECTED = HERE / "injected"
ROOT = HERE.parents[1]
DATA_BIN = "run/corpus/data-bin"
DENSE = "run/dense/checkpoint_last.pt"
UPDATES = 6
SEED = int(os.environ.get("NEURON_SPEC_SEED", "1"))  # of the moments
_OF_TIME = ("metrics", "previous_training_time")  # of a checkpoint's extra_state: clocks, and speeds

_SHAPE = [
    *("--encoder-layers", "2", "--decoder-layers", "2", "--encoder-embed-dim", "16", "--decoder-embed-dim", "16"),
    *("--encoder-ffn-embed-dim", "32", "--decoder-ffn-embed-dim", "24"),
    *("--encoder-attention-heads", "2", "--decoder-attention-heads", "2"),
]  # fmt: skip
# Three saves and validations; the best checkpoint is the last one's twin or not.
_TRAINING = [
    *("--cpu", "--max-update", str(UPDATES), "--save-interval-updates", "2", "--keep-interval-updates", "1"),
    *("--max-tokens", "300", "--optimizer", "adam", "--lr", "0.003", "--dropout", "0.1", "--seed", "1"),
    *("--no-epoch-checkpoints", "--num-workers", "0", "--log-format", "simple"),
]  # fmt: skip
_MULTILINGUAL = [
    *("--langs", "en,qx,qy", "--lang-pairs", "en-qx,qx-en,en-qy,qy-en", "--encoder-langtok", "src"),
    "--decoder-langtok",
]  # fmt: skip


def _continued(name: str, *flags: str, masks: str = "run/masks.safetensors") -> list[str]:
    return [
        *("fairseq-train", DATA_BIN, "--user-dir", str(PACKAGE), "--finetune-from-model", DENSE),
        *("--arch", "neuron_spec_transformer", "--share-all-embeddings", *_SHAPE, *_MULTILINGUAL, *_TRAINING),
        *("--criterion", "label_smoothed_cross_entropy_text", "--best-checkpoint-metric", "text_nll_loss"),
        *(("--neuron-masks", masks) if masks else ()),
        *("--save-dir", f"run/{name}", *flags),
    ]


def _evaluated(name: str) -> list[str]:
    return [
        *("neuron-spec", "evaluate", DATA_BIN, "--path", f"run/{name}/checkpoint_last.pt", "--cpu"),
        *("--output", f"run/evaluation/{name}", "--beam", "1", "--", "--max-len-a", "0", "--max-len-b", "12"),
    ]


@dataclass(frozen=True)
class Stage:
    """``is_rewritten``: it has no mark, and makes its page again whenever it is asked."""

    name: str
    words: list[str] = field(repr=False)
    is_rewritten: bool = False

    @property
    def trains(self) -> bool:
        return self.words[0] == "fairseq-train" or self.words[1] in ("specialize", "lass")


STAGES = [
    Stage("data", [
        *("neuron-spec", "data", "toy", "--langs", "qx,qy", "--output", "run/corpus", "--vocab-size", "150"),
        *("--train-size", "90", "--valid-size", "12", "--test-size", "8"),
    ]),
    Stage("pretrain", [
        *("fairseq-train", DATA_BIN, "--user-dir", str(PACKAGE), "--task", "translation_multi_simple_epoch"),
        *("--arch", "transformer", "--share-all-embeddings", *_SHAPE, *_MULTILINGUAL, *_TRAINING),
        *("--criterion", "label_smoothed_cross_entropy", "--save-dir", "run/dense"),
    ]),
    Stage("profile", [
        *("neuron-spec", "profile", DATA_BIN, "--path", DENSE, "--cpu"),
        *("--output", "run/profile.safetensors"),
    ]),
    Stage("select", ["neuron-spec", "select", "run/profile.safetensors", "--output", "run/masks.safetensors"]),
    Stage("specialize", [
        *("neuron-spec", "specialize", DATA_BIN, "--path", DENSE, "--masks", "run/masks.safetensors"),
        *("--save-dir", "run/specialized", "--", *_TRAINING, "--patience", "4"),
    ]),
    Stage("continuation", [
        *("neuron-spec", "specialize", DATA_BIN, "--path", DENSE, "--masks", "none"),
        *("--save-dir", "run/dense-continuation", "--", *_TRAINING),
    ]),
    Stage("evaluate dense", _evaluated("dense")),
    Stage("evaluate", _evaluated("specialized")),
    Stage("analyze", [
        *("neuron-spec", "analyze", "run/masks.safetensors", "--corpus-card", "run/corpus/corpus.json"),
        *("--output", "run/analysis"),
    ]),
    Stage("compare", [
        *("neuron-spec", "compare", "run/evaluation/dense", "run/evaluation/specialized"),
        *("--output", "run/comparison", "--bootstrap", "40"),
    ]),
    Stage("export", [
        *("neuron-spec", "export", "--path", "run/specialized/checkpoint_last.pt", "--direction", "en-qx"),
        *("--output", "run/export", "--format", "safetensors"),
    ]),
    Stage("report", ["neuron-spec", "report", "run"], is_rewritten=True),
]  # fmt: skip
# The other ways to train, and studies.
FURTHER = [
    Stage("dynamic", _continued(
        "dynamic", "--task", "neuron_spec_dynamic", "--dynamic-masks", "reselect", "--reselect-every", "3"
    )),
    Stage("meta", _continued("meta", "--task", "neuron_spec_meta", "--meta", "reptile", "--inner-lr", "0.1")),
    Stage("impatient", _continued(
        "impatient", "--task", "neuron_specialization", "--lr", "0.3", "--max-update", "60", "--patience", "3",
        "--keep-best-checkpoints", "1",
    )),
    Stage("lass", [
        *("neuron-spec", "lass", DATA_BIN, "--path", DENSE, "--output", "run/weight_masks.safetensors", "--cpu"),
        *("--work", "run/lass", "--alpha", "0.5", "--lang-pairs", "en-qx,qx-en", "--config", "lass.yaml"),
    ]),
    Stage("ablate", [
        *("neuron-spec", "ablate", DATA_BIN, "--path", DENSE, "--masks", "run/masks.safetensors", "--cpu"),
        *("--output", "run/ablation"),
    ]),
]  # fmt: skip
EVERY = {stage.name: stage for stage in STAGES + FURTHER}


def content(path: Path) -> str:
    """A hash of a file's bytes; of a training's checkpoint that of all it holds but clocks, speeds, and how often it was resumed."""
    if path.suffix == ".pt" and path.name.startswith("checkpoint"):
        state = read_checkpoint(path)
        extra = {key: value for key, value in state["extra_state"].items() if key not in _OF_TIME}
        # Of the history fairseq keeps a line for every start.
        last = state["optimizer_history"][-1]
        return hash_text(*_leaves({**state, "extra_state": extra, "optimizer_history": last}))
    if path.name == "train.log":
        return ""  # of every start, with the time
    if path.name.startswith(
        ("weight_masks", "alpha-")
    ):  # of LASS, which notes how long each copy was trained
        tensors, noted = (
            load_tensors(path, "masks") if path.suffix == ".safetensors" else ({}, read_json(path, "masks"))
        )
        return hash_text(*_leaves([tensors, {name: noted[name] for name in noted if "seconds" not in name}]))
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _leaves(value: Any, name: str = "") -> Iterator[str]:
    if isinstance(value, Mapping):
        for key in sorted(value, key=str):  # safetensors keeps no order
            yield from _leaves(value[key], f"{name}/{key}")
    elif isinstance(value, list | tuple):
        for number, part in enumerate(value):
            yield from _leaves(part, f"{name}/{number}")
    elif hasattr(value, "numpy"):
        yield f"{name} {value.dtype} {tuple(value.shape)} {hashlib.sha256(value.numpy().tobytes()).hexdigest()}"
    else:
        yield f"{name} {value!r}"


def _text(path: Path) -> str:
    return path.read_text(errors="replace") if path.is_file() else ""


@dataclass(frozen=True)
class Ended:
    status: int
    said: str
    events: list[str]


class Line:
    """The stages one after the other in one folder, so that the commands are the same words every time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "lass.yaml").write_text(
            "arch: neuron_spec_transformer\nshare-all-embeddings: true\ncriterion: label_smoothed_cross_entropy\noptimizer: adam\nlr: 0.003\n"
            "max-tokens: 300\nmax-update: 4\nsave-interval-updates: 2\ndisable-validation: true\nnum-workers: 0\n"
            + "".join(f"{name[2:]}: {value}\n" for name, value in zip(_SHAPE[::2], _SHAPE[1::2], strict=True))
        )  # fmt: skip
        environment = {
            **os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", "CUDA_VISIBLE_DEVICES": "",
            "PYTHONPATH": os.pathsep.join([str(INJECTED), str(ROOT), os.environ.get("PYTHONPATH", "")]),
        }  # fmt: skip
        self.server = subprocess.Popen(
            [sys.executable, str(HERE / "fork_server.py")], cwd=folder, env=environment, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        assert self.server.stdout and self.server.stdout.readline() == "ready\n"
        self.before: dict[str, Path] = {}
        self.after: dict[str, dict[str, str]] = {}
        self.writes: dict[str, list[str]] = {}
        self.seconds: dict[str, float] = {}

    def close(self) -> None:
        assert self.server.stdin
        self.server.stdin.close()
        self.server.wait()

    @property
    def run_folder(self) -> Path:
        return self.folder / "run"

    def run(self, words: list[str], fault: str = "none", **how: Any) -> Ended:
        """A command to its end; ``fault`` and ``how`` as the server takes them."""
        (ended,) = self.run_together([{"words": words, "fault": fault, **how}])
        return ended

    def run_together(self, commands: list[dict[str, Any]]) -> list[Ended]:
        for number, command in enumerate(commands):
            log, events = self.folder / f"log-{number}.txt", self.folder / f"events-{number}.txt"
            for file in (log, events):
                file.unlink(missing_ok=True)
            command |= {"log": str(log), "root": "run", "events": str(events)}
        assert self.server.stdin and self.server.stdout
        print(json.dumps(commands), file=self.server.stdin, flush=True)
        statuses = json.loads(self.server.stdout.readline())
        return [
            Ended(status, _text(Path(command["log"])), _text(Path(command["events"])).splitlines())
            for status, command in zip(statuses, commands, strict=True)
        ]

    def prepare(self, names: list[str]) -> None:
        """Every stage once, undisturbed; what was there before it, and what is after."""
        for name in names:
            stage = EVERY[name]
            self.before[name] = self.folder / "before" / name
            self.run_folder.mkdir(exist_ok=True)
            shutil.copytree(self.run_folder, self.before[name])
            start = time.monotonic()
            ended = self.run(stage.words)
            assert ended.status == 0, ended.said[-4000:]
            self.seconds[name] = time.monotonic() - start
            self.writes[name], self.after[name] = ended.events, self.tree()

    def restore(self, name: str) -> dict[str, str]:
        """What was there before a stage."""
        shutil.rmtree(self.run_folder, ignore_errors=True)
        shutil.copytree(self.before[name], self.run_folder)
        return self.tree()

    def tree(self) -> dict[str, str]:
        files = (path for path in sorted(self.run_folder.rglob("*")) if not path.is_dir())
        return {str(path.relative_to(self.run_folder)): content(path) for path in files}

    def points(self, name: str, number: int, seed: int) -> list[int]:
        """Moments of a stage to strike at, by count of its writes: the last one, before which its mark is missing, first."""
        moments = [*range(1, len(self.writes[name]))]
        random.Random(f"{seed} {name}").shuffle(moments)
        return [len(self.writes[name]), *moments][:number]

    def finish(self, name: str, at: str) -> None:
        """Run a stage that was stopped again: the same comes out, nothing is left over, and a third time nothing is written."""
        ended = self.run(EVERY[name].words)
        assert ended.status == 0, f"{at}: {ended.said[-4000:]}"
        found, wanted = self.tree(), self.after[name]
        apart = {path for path in {*found, *wanted} if found.get(path) != wanted.get(path)}
        assert not apart, f"{at}: {sorted(apart)}; got {sorted(found)}"
        if not EVERY[name].is_rewritten:
            again = self.run(EVERY[name].words)
            assert (again.status, self._lasting(name, again.events)) == (0, []), f"{at}: {again.events}"

    def _lasting(self, name: str, events: list[str]) -> list[str]:
        """Without the file by which fairseq-train sees whether it may write, and locks."""
        return [event for event in events if not event.endswith(("/dummy", "/.lock"))]

    def strike(self, name: str, fault: str, seed: object, **how: Any) -> Ended:
        """Run a stage into a fault; what other stages left must be as it was."""
        before = self.restore(name)
        ended = self.run(EVERY[name].words, fault, **how)
        now = self.tree_but_damaged()
        where = f"{name}, {fault} {how}, seed {seed}, after {ended.events[-1:]}"
        changed = [
            path for path, of in before.items() if now.get(path) != of and not EVERY[name].is_rewritten
        ]
        assert not changed, f"{where}: {changed}"
        return ended

    def tree_but_damaged(self) -> dict[str, str]:
        files = (path for path in sorted(self.run_folder.rglob("*")) if not path.is_dir())
        found = {}
        for path in files:
            try:
                found[str(path.relative_to(self.run_folder))] = content(path)
            except Exception as error:
                found[str(path.relative_to(self.run_folder))] = repr(error)
        return found


def kill_and_restart(line: Line, name: str, moment: int) -> None:
    ended = line.strike(name, f"kill@{moment}", SEED)
    at = f"{name}, killed before write {moment} of {len(line.writes[name])}, {ended.events[-1:]}, seed {SEED}"
    assert ended.status == -9, f"{at}: {ended.status} {ended.said[-2000:]}"
    line.finish(name, at)
