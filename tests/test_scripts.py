"""What scripts share: a finished run is known by everything that it is made of and holds."""

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCED = 'self=quickstart.sh; source "$PIPELINE"; run=runs/mine again=($AGAIN); set -euo pipefail\n'


@pytest.fixture
def bash(tmp_path):
    """Run lines of a script in a checkout of a few files."""
    program = tmp_path / ".venv" / "bin" / "neuron-spec"  # asked for --user-dir
    for path, text in (
        (program, '#!/usr/bin/env bash\n[[ $1 == user-dir ]] && echo "$PWD/code"\n'),
        (tmp_path / "code" / "module.py", "x = 1\n"),
        (tmp_path / "scripts" / "10_data.sh", "true\n"),
        (tmp_path / "configs" / "a.yaml", "lr: 1\n"),
        (tmp_path / "shipped" / "dense.pt", "weights"),
        (tmp_path / "runs" / "mine" / "scores with spaces.json", "{}"),
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    program.chmod(0o755)

    def run(lines, again=""):
        words = ["bash", "-c", SOURCED + lines]
        env = {"PATH": "/usr/bin:/bin", "PIPELINE": str(ROOT / "scripts/pipeline.sh"), "AGAIN": again}
        return subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, text=True)

    return run


def test_a_run_that_was_not_finished_is_not(bash):
    assert bash("is_finished shipped").returncode == 1


def test_a_finished_run_is_finished_until_anything_changes(bash, tmp_path):
    assert bash("finish shipped", "--minutes 5").returncode == 0
    assert bash("is_finished shipped", "--minutes 5").returncode == 0
    assert bash("is_finished shipped", "--minutes 6").returncode == 1
    files = [path for path in tmp_path.rglob("*") if path.is_file() and ".venv" not in path.parts]
    changed = [path for path in files if path.name != "complete.txt"]
    assert len(changed) == 5
    for path in changed:
        text = path.read_text()
        path.write_text(text + "#")
        assert bash("is_finished shipped", "--minutes 5").returncode == 1, path
        path.unlink()
        assert bash("is_finished shipped", "--minutes 5").returncode == 1, path
        path.write_text(text)
        assert bash("is_finished shipped", "--minutes 5").returncode == 0, path
    (tmp_path / "runs" / "mine" / "more.txt").write_text("")
    assert bash("is_finished shipped", "--minutes 5").returncode == 1
