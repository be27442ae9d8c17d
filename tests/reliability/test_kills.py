"""Every stage killed at any of its writes, and started again: what comes out is what an undisturbed run leaves."""

from __future__ import annotations

import os
import random
import signal
import subprocess
from pathlib import Path

import pytest
from stages import EVERY, ROOT, SEED, STAGES, UPDATES, Line, kill_and_restart

from neuron_spec.backends.fairseq.checkpoints import read_checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.reliability]

# Two of every stage but those that are another's twin: 20 kills.
KILLED = [stage.name for stage in STAGES if stage.name not in ("continuation", "evaluate dense")]
TRAINED = {"pretrain": "dense", "specialize": "specialized", "dynamic": "dynamic", "meta": "meta"}


@pytest.mark.parametrize("name", KILLED)
def test_a_killed_stage_goes_on_to_the_same_bytes(line: Line, name: str) -> None:
    for moment in line.points(name, 2, SEED):
        kill_and_restart(line, name, moment)


@pytest.mark.parametrize("name", ["data", "specialize", "evaluate", "analyze"])
def test_a_stage_killed_by_the_clock_goes_on_too(line: Line, name: str) -> None:
    """Between writes, at a time that is another on every machine."""
    share = random.Random(f"{SEED} {name}").uniform(0.2, 0.95)
    ended = line.strike(name, f"clock@{round(1000 * share * line.seconds[name])}", SEED)
    assert ended.status in (-signal.SIGALRM, 0)  # a faster one had ended
    line.finish(name, f"{name}, killed after {share:.2f} of its time, seed {SEED}")


@pytest.mark.parametrize("name", ["pretrain", "specialize"])
def test_a_training_torn_in_the_middle_of_a_file_goes_on(line: Line, name: str) -> None:
    """The kernel ends it at a byte: a checkpoint is half written, under its temporary name."""
    folder = line.run_folder / TRAINED[name]
    ended = line.strike(name, "none", SEED, limit=60_000, torn=True)
    assert ended.status < 0
    assert [path.stat().st_size for path in folder.iterdir()] == [60_000]
    line.finish(name, f"{name}, torn")


def test_an_ended_training_is_not_trained_on_without_its_mark(line: Line) -> None:
    name = "specialize"
    line.restore(name)
    assert line.run(EVERY[name].words).status == 0
    mark = line.run_folder / "specialized" / "complete.txt"
    mark.unlink()
    again = line.run(EVERY[name].words)
    assert (again.status, mark.is_file()) == (0, True)
    assert not [event for event in again.events if "checkpoint" in event]
    state = read_checkpoint(line.run_folder / "specialized" / "checkpoint_last.pt")
    assert state["optimizer_history"][-1]["num_updates"] == UPDATES


def test_a_training_out_of_patience_stops_where_it_would_have(line: Line) -> None:
    name = "impatient"
    line.prepare([name])
    state = read_checkpoint(line.run_folder / name / "checkpoint_last.pt")
    assert 6 < state["optimizer_history"][-1]["num_updates"] < 60
    writes = line.writes[name]
    saves = [number for number, event in enumerate(writes, start=1) if event.endswith(".pt.tmp")]
    for moment in (saves[-1], len(writes)):  # between two validations that are no better; after the last
        kill_and_restart(line, name, moment)


def test_a_mark_that_was_begun_is_written_and_nothing_left(tmp_path: Path) -> None:
    """scripts/once.sh, killed between writing a mark and giving it its name, by a ``mv`` that kills."""
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "mv").write_text("#!/usr/bin/env bash\nkill -KILL $PPID\n")
    (tools / "mv").chmod(0o755)
    mark, made = tmp_path / "marks" / "complete.txt", tmp_path / "made.txt"
    mark.parent.mkdir()
    words = [str(ROOT / "scripts" / "once.sh"), str(mark), "--", "bash", "-c", f"echo line >> {made}"]
    killed = subprocess.run(words, env={**os.environ, "PATH": f"{tools}:{os.environ['PATH']}"})
    assert killed.returncode != 0 and not mark.exists()
    assert len(list(mark.parent.iterdir())) == 1
    for _ in range(2):
        subprocess.run(words, check=True)
        assert [path.name for path in mark.parent.iterdir()] == ["complete.txt"]
    assert made.read_text() == "line\n" * 2  # the third found the mark
