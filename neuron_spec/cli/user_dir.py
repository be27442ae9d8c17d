"""Print the folder to pass to fairseq's --user-dir.

example:
  fairseq-train DATA_BIN --user-dir $(neuron-spec user-dir) --task neuron_specialization ...
"""

from __future__ import annotations

import argparse

from neuron_spec.shared import PACKAGE


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """No arguments."""


def run(args: argparse.Namespace) -> None:
    print(PACKAGE)
