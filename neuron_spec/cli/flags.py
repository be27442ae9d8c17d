"""Print the fairseq flags of a config file, one per line, after checking that fairseq knows them.

example:
  mapfile -t FLAGS < <(neuron-spec flags configs/quickstart/pretrain.yaml)
  fairseq-train DATA_BIN "${FLAGS[@]}" --save-dir RUN
"""

from __future__ import annotations

import argparse
from pathlib import Path

from neuron_spec.config import read_flags


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", type=Path, help="a YAML file whose keys are flags of fairseq-train")


def run(args: argparse.Namespace) -> None:
    print("\n".join(read_flags(args.config)))
