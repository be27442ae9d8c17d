"""Standard input and output that are closed, full or of another encoding; and what else the environment says."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from neuron_spec.cli.main import main


def bash(line: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a line in which ``$N`` is ``neuron-spec``."""
    env = {**os.environ, "N": f"{sys.executable} -m neuron_spec", **environment}
    return subprocess.run(["bash", "-c", line], cwd=folder, env=env, capture_output=True, text=True)


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("line", ["$N user-dir", "$N user-dir 2>&1"])
def test_a_reader_that_has_seen_enough_is_no_error(line: str, unbuffered: str, tmp_path: Path) -> None:
    done = bash(f"({line}; echo $? > status) | true", tmp_path, PYTHONUNBUFFERED=unbuffered)
    assert done.stderr == "" and (tmp_path / "status").read_text() in ("141\n", "0\n")


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_full_disk_behind_standard_output_is_said(unbuffered: str, tmp_path: Path) -> None:
    done = bash("$N user-dir > /dev/full", tmp_path, PYTHONUNBUFFERED=unbuffered)
    assert done.returncode == 2 and done.stderr.startswith("neuron-spec user-dir: the disk is full")
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr


def test_closed_output_is_none(tmp_path: Path) -> None:
    assert bash("$N user-dir >&- 2>&-", tmp_path).returncode == 0


@pytest.mark.parametrize("level", ["loud", "WARN ING"])
def test_a_log_level_that_is_none_is_refused(level: str, tmp_path: Path) -> None:
    done = bash("$N user-dir", tmp_path, LOGLEVEL=level)
    assert (
        done.returncode == 2 and f"LOGLEVEL={level.upper()}" in done.stderr and "Traceback" not in done.stderr
    )
    assert bash("$N user-dir", tmp_path, LOGLEVEL="").returncode == 0


def test_a_character_that_the_output_has_not(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(args: object) -> None:
        "\u2192".encode("ascii")

    monkeypatch.setattr("neuron_spec.cli.flags.run", run)
    assert main(["flags", "setup.py"]) == 2
    said = capsys.readouterr().err
    assert "ascii, and '\\u2192'" in said and "PYTHONIOENCODING=utf-8" in said


def test_a_name_that_is_too_long(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["select", "n" * 300, "--output", "x"], ["report", "n" * 300], ["flags", "n" * 300]):
        assert main(words) == 2
        assert "a name is longer than the disk allows" in capsys.readouterr().err


def test_closed_input_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    from neuron_spec.cli.translate import _read
    from neuron_spec.errors import ArtifactError

    monkeypatch.setattr("sys.stdin", None)
    with pytest.raises(ArtifactError, match="standard input is closed"):
        _read(None)
