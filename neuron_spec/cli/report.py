"""Write a run's report from what the stages left in its folder: report.html, one page that holds everything
itself, and the same as report.md with figures/*.png.

Two layouts are known: that of the quickstart (corpus/, masks.safetensors, evaluation/SYSTEM) and that of the
built-in experiment (corpus/, seed-N/masks/specialized.safetensors, seed-N/evaluation/SYSTEM). Systems are compared
as by 'neuron-spec compare' if they were not yet, and the comparison is kept in the run.

examples:
  neuron-spec report runs/quickstart
  neuron-spec report runs/homeassistant
  neuron-spec report runs/ec30 --published results/published/ec30.csv
"""

from __future__ import annotations

import argparse
from pathlib import Path

from neuron_spec.arguments import input_folder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=input_folder("run"), help="the run's folder")
    parser.add_argument(
        "--published",
        type=Path,
        metavar="FILE",
        help="set these published scores beside the run's, direction by direction",
    )


def run(args: argparse.Namespace) -> None:
    from neuron_spec.report.report import write_report

    for path in write_report(args.run, args.published):
        print(path)
