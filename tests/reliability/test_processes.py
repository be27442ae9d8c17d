"""Processes that work together, on CPUs by gloo: what they count, and how they end when one of them is lost."""

from __future__ import annotations

import socket
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from stages import DENSE, EVERY, Ended, Line

from neuron_spec.backends.fairseq import processes
from neuron_spec.backends.fairseq.checkpoints import read_checkpoint
from neuron_spec.errors import NeuronSpecError
from neuron_spec.neurons.activations import ActivationCounts

pytestmark = [pytest.mark.slow, pytest.mark.reliability]

GONE = "another of the processes that work together has ended"
SOON = {"environment": {processes.SECONDS: "6"}}


def together(
    line: Line, words: list[str], size: int, faults: dict[int, str] | None = None, **how: Any
) -> list[Ended]:
    """As many processes of a command, each with its rank; within a minute."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    flags = [
        *("--distributed-world-size", str(size), "--distributed-no-spawn", "--distributed-backend", "gloo"),
        *("--ddp-backend", "legacy_ddp", "--distributed-init-method", f"tcp://127.0.0.1:{port}"),
    ]  # fmt: skip
    commands = [
        {"words": [*words, *flags, "--distributed-rank", str(rank)], "fault": (faults or {}).get(rank), **how}
        for rank in range(size)
    ]
    start = time.monotonic()
    ended = line.run_together(commands)
    assert time.monotonic() - start < 60
    return ended


# Counts ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize(("flags", "shards"), [
    (["--max-tokens", "60"], "uneven"),
    (["--max-tokens", "4000"], "of one batch"),
    (["--max-tokens", "4000", "--lang-pairs", "en-qx"], "empty but one"),
])  # fmt: skip
def test_counts_do_not_depend_on_how_many_processes_count(
    line: Line, size: int, flags: list[str], shards: str
) -> None:
    line.restore("profile")
    words = [*EVERY["profile"].words, *flags]
    alone, shared = Path("run/alone.safetensors"), Path("run/shared.safetensors")
    place = words.index("--output") + 1
    assert line.run([*words[:place], str(alone), *words[place + 1 :]]).status == 0
    ended = together(line, [*words[:place], str(shared), *words[place + 1 :], "--"], size)
    assert [of.status for of in ended] == [0] * size, "\n".join(of.said[-2000:] for of in ended)
    one, other = (ActivationCounts.load(line.folder / path) for path in (alone, shared))
    assert all(torch.equal(one.counts[layer], other.counts[layer]) for layer in one.layers)
    assert all(torch.equal(one.tokens[side], other.tokens[side]) for side in one.tokens)


# Lost processes --------------------------------------------------------------------------------


def require_end(ended: list[Ended], lost: int, message: str) -> None:
    assert ended[lost].status == -9
    for rank, of in enumerate(ended):
        assert rank == lost or (of.status, message in of.said) == (2, True), (
            f"{rank}: {of.status} {of.said[-3000:]}"
        )


@pytest.mark.parametrize(("size", "lost"), [(2, 0), (2, 1), (4, 0), (4, 3)])
def test_a_process_that_never_comes(line: Line, size: int, lost: int) -> None:
    line.restore("pretrain")
    ended = together(line, EVERY["pretrain"].words, size, {lost: "absent"}, **SOON)
    require_end(ended, lost, "not all processes came together")


@pytest.mark.parametrize(("size", "lost"), [(2, 0), (2, 1), (4, 0), (4, 3)])
def test_a_process_lost_at_work(line: Line, size: int, lost: int) -> None:
    line.restore("pretrain")
    ended = together(line, EVERY["pretrain"].words, size, {lost: "lost@5"})
    require_end(ended, lost, GONE)


def test_a_profile_s_process_lost_at_work(line: Line) -> None:
    line.restore("profile")
    ended = together(line, [*EVERY["profile"].words, "--max-tokens", "60", "--"], 2, {1: "lost@1"})
    require_end(ended, 1, GONE)
    assert not (line.run_folder / "profile.safetensors").exists()


@pytest.mark.parametrize("size", [2, 4])
def test_a_process_lost_while_it_saves_and_all_started_again(line: Line, size: int) -> None:
    words = EVERY["pretrain"].words
    line.restore("pretrain")
    whole = together(line, words, size)
    assert [of.status for of in whole] == [0] * size, whole[0].said[-3000:]
    wanted = read_checkpoint(line.folder / DENSE)["model"]
    (saving,) = [
        number
        for number, event in enumerate(whole[0].events, start=1)
        if event.endswith("checkpoint_1_4.pt.tmp")
    ]

    line.restore("pretrain")
    require_end(together(line, words, size, {0: f"kill@{saving + 1}"}), 0, GONE)
    assert (line.run_folder / "dense" / "checkpoint_1_4.pt.tmp").is_file()
    again = together(line, words, size)
    assert [of.status for of in again] == [0] * size, again[0].said[-3000:]
    found = read_checkpoint(line.folder / DENSE)["model"]
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert not list(line.run_folder.rglob("*.tmp"))


def test_how_long_processes_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(processes.SECONDS, raising=False)
    assert processes._limit("127.0.0.1") < 60 < processes._limit("node-1")
    monkeypatch.setenv(processes.SECONDS, "7")
    assert processes._limit("node-1") == 7
    monkeypatch.setenv(processes.SECONDS, "soon")
    with pytest.raises(NeuronSpecError, match=r"bad time limit[\s\S]*soon"):
        processes._limit("node-1")
