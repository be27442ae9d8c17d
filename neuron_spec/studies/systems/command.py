"""One table of systems (systems.md, .csv, .json): scores with significance, parameters, bytes a direction, seconds
to extract, speed and memory, from what scripts/experiments/systems.sh left in a seed's folder.

example:
  neuron-spec systems runs/systems-smoke/seed-1 --output table \\
    --comparison runs/systems-smoke/systems-seeds-1/against-dense-continuation \\
    --benchmark runs/systems-smoke/systems-seeds-1/systems.cpu.json
"""

from __future__ import annotations

import argparse
from pathlib import Path

from neuron_spec.arguments import output_folder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("seed", type=Path, help="folder with SYSTEM/checkpoint_last.pt, masks and extraction")
    parser.add_argument(
        "--comparison", type=Path, required=True, metavar="DIR", help="written by neuron-spec compare"
    )
    parser.add_argument(
        "--benchmark", type=Path, metavar="FILE", help="JSON of benchmarks/systems.py; without it no speeds"
    )
    parser.add_argument(
        "--checkpoint",
        default="checkpoint_last.pt",
        metavar="NAME",
        help="which is counted (default %(default)s)",
    )
    parser.add_argument("--output", type=output_folder, required=True, metavar="DIR")


def run(args: argparse.Namespace) -> None:
    from neuron_spec.studies.systems.measure import read_systems, write_systems

    systems = read_systems(args.seed, args.comparison, args.benchmark, args.checkpoint)
    print(write_systems(args.output, systems))
