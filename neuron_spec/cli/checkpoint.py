"""Make a checkpoint small enough to ship, or check that a shipped one fits a corpus.

examples:
  neuron-spec checkpoint shrink --path RUN/checkpoint_last.pt --corpus CORPUS --output dense.pt
  neuron-spec checkpoint check dense.json --corpus CORPUS
"""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True)
    shrink = actions.add_parser("shrink", help="weights only, half precision; writes a signature beside it")
    shrink.add_argument(
        "--path", type=Path, required=True, metavar="FILE", help="a checkpoint of fairseq-train"
    )
    shrink.add_argument("--output", type=Path, required=True, metavar="FILE")
    check = actions.add_parser(
        "check", help="is a shipped checkpoint whole, and this corpus the one it knows?"
    )
    check.add_argument("signature", type=Path, help="the .json beside the checkpoint")
    for action in (shrink, check):
        action.add_argument(
            "--corpus", type=Path, required=True, metavar="DIR", help="the corpus it was trained on"
        )


def run(args: argparse.Namespace) -> None:
    from neuron_spec.backends.fairseq import shipping

    if args.action == "shrink":
        shipping.shrink(args.path, args.corpus, args.output)
        print(args.output)
    else:
        shipping.check(args.signature, args.corpus)
        print(args.signature.with_suffix(".pt"))
