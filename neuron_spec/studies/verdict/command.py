"""Read comparisons by rules that were fixed before they were made (verdict.md, .json and figures of the trainings): is
there interference, is there something to gain, does specialization gain it? From what scripts/experiments/bible.sh
left, or any comparisons of systems with the same names.

example:
  neuron-spec verdict runs/bible-cpu/comparison-seeds-1-2-3 --seeds runs/bible-cpu/seed-1 runs/bible-cpu/seed-2 \\
    runs/bible-cpu/seed-3 --output runs/bible-cpu/verdict
"""

from __future__ import annotations

import argparse
from pathlib import Path

from neuron_spec.arguments import output_folder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "comparisons", type=Path, help="folder of neuron-spec compare's, NAME/comparison.json"
    )
    parser.add_argument(
        "--seeds",
        type=Path,
        nargs="+",
        default=[],
        metavar="DIR",
        help="with SYSTEM/train.log, whose validations are drawn",
    )
    parser.add_argument("--output", type=output_folder, required=True, metavar="DIR")


def run(args: argparse.Namespace) -> None:
    from neuron_spec.studies.verdict.measure import read_outcomes, read_trainings
    from neuron_spec.studies.verdict.page import write_verdict

    outcomes = read_outcomes(args.comparisons)
    print(write_verdict(args.output, outcomes, read_trainings(args.seeds)))
