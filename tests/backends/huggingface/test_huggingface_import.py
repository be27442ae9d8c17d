"""A torchaudio that cannot be loaded, as fairseq's wheel brings it beside a CPU torch, is in nobody's way."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(
    ("file", "is_there"),
    [("raise OSError('Could not load this library')", False), ("raise ImportError", False), ("", True)],
)
def test_a_broken_torchaudio_is_taken_for_absent(tmp_path, file, is_there):
    package = tmp_path / "torchaudio"
    package.mkdir()
    (package / "__init__.py").write_text(f"from torchaudio import part\n{file}\n", encoding="utf-8")
    (package / "part.py").touch()
    code = (
        "import importlib.util, sys\n"
        "import neuron_spec.backends.huggingface\n"
        "found = importlib.util.find_spec('torchaudio') is not None\n"
        "sys.exit(0 if found == (sys.argv[1] == 'True') and 'transformers' not in sys.modules else str(sys.modules['torchaudio']))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(is_there)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
