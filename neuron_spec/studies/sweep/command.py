"""Show a sweep over k or over depth: BLEU changes and sparsity in a table (sweep.csv, sweep.md) and a figure
(sweep.png, sweep.svg), from what scripts/experiments/k_sweep.sh or depth_sweep.sh left in its folder.

examples:
  neuron-spec sweep runs/k-sweep
  neuron-spec sweep runs/depth-sweep --output figure-3
"""

from __future__ import annotations

import argparse
from pathlib import Path

from neuron_spec.arguments import output_folder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "run",
        type=Path,
        help="with folders k-95, k-90 ... or depth-6, depth-3 ..., each with evaluation/SYSTEM",
    )
    parser.add_argument(
        "--output", type=output_folder, metavar="DIR", help="where to write (default: the run's folder)"
    )


def run(args: argparse.Namespace) -> None:
    from neuron_spec.studies.sweep.page import read_sweep, write_sweep

    print(write_sweep(args.output or args.run, read_sweep(args.run)))
