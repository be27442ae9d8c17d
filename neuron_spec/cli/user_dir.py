"""Print the folder to pass to fairseq's --user-dir.

example:
  fairseq-train DATA_BIN --user-dir $(neuron-spec user-dir) --task neuron_specialization ...
"""

from __future__ import annotations

import argparse
from pathlib import Path

import neuron_spec

FOLDER = Path(neuron_spec.__file__).parent


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """No arguments."""


def run(args: argparse.Namespace) -> None:
    print(FOLDER)
