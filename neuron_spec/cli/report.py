"""Write a run's report (report.md) and figures, from what the stages left in its folder.

example:
  neuron-spec report runs/quickstart
"""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, help="the run's folder: corpus/, masks.safetensors, evaluation/")


def run(args: argparse.Namespace) -> None:
    from neuron_spec.reporting.report import write_report

    print(write_report(args.run))
