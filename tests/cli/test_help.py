"""Help comes at once: no command imports what is slow before it runs."""

import subprocess
import sys

import pytest

from neuron_spec.cli.main import COMMANDS

SLOW = ("torch", "fairseq", "matplotlib", "scipy")


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
