"""Help comes at once: no command imports what is slow before it runs."""

import subprocess
import sys

import pytest

from neuron_spec.cli.main import COMMANDS

SLOW = ("torch", "numpy", "fairseq", "matplotlib", "scipy")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_imports_nothing_slow(command):
    code = (
        "import sys\nfrom neuron_spec.cli.main import main\n"
        f"try: main(['{command}', '--help'])\n"
        "except SystemExit as end: assert end.code == 0\n"
        f"sys.exit(str({{*{SLOW}}} & {{*sys.modules}} or '') or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"usage: neuron-spec {command}")


REFUSED = {  # a mistyped path -> what is said of it
    ("profile", "DATA_BIN", "--path", "typo.pt", "--output", "x"): "checkpoint not found",
    ("evaluate", "DATA_BIN", "--path", "typo.pt", "--output", "x"): "checkpoint not found",
    ("export", "--path", "typo.pt", "--all", "--format", "fairseq", "--output", "x"): "checkpoint not found",
    ("translate", "--path", "typo.pt", "--output", "x"): "checkpoint, or folder of exports, not found",
    ("evaluate", "typo", "--path", "FILE", "--output", "x"): "data-bin not found",
    ("profile", "FILE", "--path", "FILE", "--output", "x"): "data-bin not found",
    ("ablate", "DATA_BIN", "--path", "FILE", "--masks", "typo", "--output", "x"): "mask file not found",
    ("conflict", "DATA_BIN", "--path", "typo.pt", "--output", "x"): "checkpoint not found",
    ("unshare", "--path", "typo.pt", "--output", "x"): "checkpoint not found",
    ("checkpoint", "shrink", "--path", "typo.pt", "--corpus", "x", "--output", "x"): "checkpoint not found",
    ("masks", "add", "typo", "typo", "--output", "x"): "mask file not found",
    ("masks", "add", "FILE", "typo", "--output", "x"): "profile not found",
    ("checkpoint", "add-language", "xx", "--path", "typo.pt", "--output", "x"): "checkpoint not found",
    ("select", "typo", "--output", "x"): "profile not found",
    ("select", "POINTER", "--output", "x"): "a Git-LFS pointer stands in place of the file",
    ("analyze", "typo", "--output", "x"): "mask file not found",
    ("analyze", "FILE", "--profile", "typo", "--output", "x"): "profile not found",
    ("report", "typo"): "run not found",
    ("flags", "typo"): "config file not found",
    ("data", "toy", "--output", "FILE"): "nothing can be written here",
    ("select", "FILE", "--output", "FILE/x"): "nothing can be written below a file",
    ("select", "FILE", "--output", "DATA_BIN"): "nothing can be written here",
    ("translate", "--path", "DATA_BIN", "--output", "FILE/x"): "nothing can be written below a file",
}


@pytest.mark.parametrize("words", REFUSED, ids=" ".join)
def test_a_mistyped_path_is_refused_before_anything_slow_is_imported(words, tmp_path):
    (tmp_path / "DATA_BIN").mkdir()
    (tmp_path / "FILE").touch()
    (tmp_path / "POINTER").write_text("version https://git-lfs.github.com/spec/v1\n")
    code = (
        "import sys\nfrom neuron_spec.cli.main import main\n"
        f"assert main({list(words)}) == 2\n"
        f"sys.exit(str({{*{SLOW}}} & {{*sys.modules}} or '') or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith(f"neuron-spec {words[0]}: {REFUSED[words]}\n  where:    ")
    assert not (tmp_path / "x").exists()
