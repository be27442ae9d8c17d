"""Full and read-only disks, Ctrl-C and SIGTERM, in every stage: the exit code, one message, and nothing lost."""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from stages import EVERY, SEED, STAGES, Ended, Line

pytestmark = [pytest.mark.slow, pytest.mark.reliability]

NAMES = [stage.name for stage in STAGES if stage.name not in ("continuation", "evaluate dense")]
MESSAGES = {"full": "the disk is full", "readonly": "the disk is read-only"}
STOPPED = {
    "int": (130, "stopped by SIGINT; run it again to go on"),
    "term": (143, "stopped by SIGTERM; run it again to go on"),
}


def require_message(ended: Ended, name: str, fault: str, status: int, message: str) -> None:
    at = f"{name}, {fault}, seed {SEED}, {ended.events[-1:]}: {ended.said[-3000:]}"
    assert ended.status == status, at
    program = " ".join(EVERY[name].words[: 1 if EVERY[name].words[0] == "fairseq-train" else 2])
    ours = [
        number
        for number, line in enumerate(ended.said.splitlines())
        if line.startswith(f"{program}: {message}")
    ]
    assert ours, at
    rest = ended.said.splitlines()[ours[-1] + 1 :]
    assert all(line.startswith("  ") for line in rest), at  # where, mend
    if not EVERY[name].trains:  # fairseq's log has its own
        assert "Traceback" not in ended.said, at


@pytest.mark.parametrize("name", NAMES)
def test_disks_that_cannot_be_written(line: Line, name: str) -> None:
    """From the start, before any work; and from some write on."""
    opened = [
        number for number in line.points(name, 1000, SEED) if line.writes[name][number - 1].startswith("open")
    ]
    for fault in ("readonly@1", "full@1", f"full@{opened[0]}"):
        ended = line.strike(name, fault, SEED)
        require_message(ended, name, fault, 2, MESSAGES[fault.partition("@")[0]])
        assert not list(line.run_folder.rglob("*.tmp*")), fault
        line.finish(name, f"{name}, {fault}") if fault.endswith("full@1") else None


# fairseq-train ends by SIGTERM itself, as it does without us.
@pytest.mark.parametrize(("name", "fault"), [
    *((name, "int") for name in NAMES if name not in ("export", "report")),
    *((name, "term") for name in ("data", "profile", "select", "specialize", "evaluate")),
])  # fmt: skip
def test_stopping(line: Line, name: str, fault: str) -> None:
    status, message = STOPPED[fault]
    moment = line.points(name, 3, SEED)[-1]
    ended = line.strike(name, f"{fault}@{moment}", SEED)
    require_message(ended, name, f"{fault}@{moment}", status, message)
    left = [path.name for path in line.run_folder.rglob("*.tmp*") if not path.name.startswith("checkpoint")]
    assert not left
    line.finish(name, f"{name}, {fault}@{moment}, seed {SEED}")


# Real disks ------------------------------------------------------------------------------------

_MS_RDONLY = 1


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    libc = ctypes.CDLL(None, use_errno=True)
    disk = tmp_path / "disk"
    disk.mkdir()
    if libc.mount(b"tmpfs", os.fsencode(disk), b"tmpfs", 0, b"size=120k"):
        pytest.skip("no permission to mount a disk")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize("name", ["data", "profile", "specialize", "evaluate"])
def test_a_disk_that_fills_up(line: Line, small_disk: Path, name: str) -> None:
    line.restore(name)
    words = [
        word.replace(output, str(small_disk / "out"))
        for output in (_output(name),)
        for word in EVERY[name].words
    ]
    (small_disk / "filler").write_bytes(bytes({"profile": 118, "evaluate": 100}.get(name, 20) * 1024))
    ended = line.run(words)
    assert ended.status == 2, ended.said[-3000:]
    assert "the disk is full" in ended.said or "too little disk space" in ended.said, ended.said[-3000:]
    kept = {
        path: path.read_bytes() for path in small_disk.rglob("*") if path.is_file() and path.name != "filler"
    }
    (small_disk / "filler").unlink()
    subprocess.run(["mount", "-o", "remount,size=40m", str(small_disk)], check=True)
    assert line.run(words).status == 0
    is_whole = [
        path for path, of in kept.items() if path.name.endswith((".txt", ".bin")) and path.read_bytes() != of
    ]
    assert not is_whole


def _output(name: str) -> str:
    words = EVERY[name].words
    return words[words.index("--save-dir" if name == "specialize" else "--output") + 1]
