"""The package as fairseq's --user-dir."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import neuron_spec

USER_DIR = Path(neuron_spec.__file__).parent
LOAD = f"""
import argparse
from fairseq.utils import import_user_module
import_user_module(argparse.Namespace(user_dir={str(USER_DIR)!r}))
"""
IMPORT = "import neuron_spec.models, neuron_spec.tasks\n"
CHECK = """
from fairseq.models import ARCH_MODEL_REGISTRY
from fairseq.tasks import TASK_REGISTRY
for name in ("", "_tiny", "_iwslt", "_big"):
    assert f"neuron_spec_transformer{name}" in ARCH_MODEL_REGISTRY, name
for name in ("neuron_specialization", "neuron_profiling"):
    assert TASK_REGISTRY[name].__module__ == f"neuron_spec.tasks.{name}"
import argparse, io, torch
buffer = io.BytesIO()
torch.save({"args": argparse.Namespace(lr=[0.1])}, buffer)
buffer.seek(0)
assert torch.load(buffer, weights_only=True)["args"].lr == [0.1]
"""


@pytest.mark.parametrize(
    "ways_in",
    [LOAD, IMPORT, LOAD + IMPORT, IMPORT + LOAD, LOAD + LOAD],
    ids=["user-dir", "import", "both", "reversed", "twice"],
)
def test_registered_once_whichever_way_it_comes_in(ways_in: str) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", ways_in + CHECK], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_nothing_beside_the_package_shadows_the_standard_library() -> None:
    # --user-dir puts the package's parent folder first on the path.
    beside = {path.stem for path in USER_DIR.parent.glob("*.py")} | {
        p.name for p in USER_DIR.parent.iterdir() if p.is_dir()
    }
    assert not beside & set(sys.stdlib_module_names)


def test_user_dir_command_names_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    from neuron_spec.cli.main import main

    assert main(["user-dir"]) == 0
    assert Path(capsys.readouterr().out.strip()) == USER_DIR
