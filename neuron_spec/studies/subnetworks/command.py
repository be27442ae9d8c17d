"""One page of subnetworks and meta-learning (subnetworks.md, .csv, .json and a figure): scores of directions in
training and of new languages against training sentences, with significance, and how far masks moved, from what
scripts/experiments/subnetworks.sh left.

example:
  neuron-spec subnetworks runs/subnetworks-smoke/comparison-seeds-1 --seed runs/subnetworks-smoke/seed-1 --output page
"""

from __future__ import annotations

import argparse
from pathlib import Path

from neuron_spec.arguments import output_folder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "comparisons", type=Path, help="folder of neuron-spec compare's: against-full, shots-0, shots-20, ..."
    )
    parser.add_argument(
        "--seed", type=Path, metavar="DIR", help="with SYSTEM/checkpoint_last.pt, whose masks are described"
    )
    parser.add_argument(
        "--checkpoint",
        default="checkpoint_last.pt",
        metavar="NAME",
        help="which is read (default %(default)s)",
    )
    parser.add_argument("--output", type=output_folder, required=True, metavar="DIR")


def run(args: argparse.Namespace) -> None:
    from neuron_spec.studies.subnetworks.page import read_subnetworks, write_subnetworks

    print(write_subnetworks(args.output, read_subnetworks(args.comparisons, args.seed, args.checkpoint)))
