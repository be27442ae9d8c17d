"""Work on mask files. vote: the units that at least half of several files keep, such as of several seeds.

example:
  neuron-spec masks vote seed1.safetensors seed2.safetensors seed3.safetensors --output voted.safetensors
"""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    vote = actions.add_parser("vote", help="the units that at least half of the files keep")
    vote.add_argument("masks", type=Path, nargs="+", metavar="FILE", help="two mask files or more")
    vote.add_argument("--output", type=Path, required=True, metavar="FILE", help="masks.safetensors")


def run(args: argparse.Namespace) -> None:
    from neuron_spec.artifacts import completed, signature
    from neuron_spec.neurons.masks import NeuronMasks
    from neuron_spec.studies.pruning.sets import vote

    files = [NeuronMasks.load(path) for path in args.masks]
    voted = vote(files)
    voters = ",".join(sorted(file.fingerprint for file in files))  # their order does not matter
    voted.metadata["signature"] = signature("masks vote", inputs={"masks": voters}, parameters={})
    if not completed(args.output, voted.metadata["signature"], what="mask file"):
        voted.save(args.output)
    print(args.output)
