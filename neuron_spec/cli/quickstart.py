"""The whole method on real text, to a report: neuron-spec init, then the quickstart's script. Run again to resume.

What follows -- goes to the script: --minutes N, --from-scratch, --smoke, --dry-run.

examples:
  neuron-spec quickstart
  neuron-spec quickstart --output try -- --smoke
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from neuron_spec.arguments import output_folder
from neuron_spec.cli.init import write_shared


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--output",
        type=output_folder,
        default=Path("neuron-spec-quickstart"),
        metavar="DIR",
        help="where scripts and runs go (default %(default)s)",
    )


def run(args: argparse.Namespace) -> None:
    write_shared(args.output)
    script = args.output / "scripts" / "quickstart.sh"
    os.execv(script, [str(script), *args.fairseq_flags])
