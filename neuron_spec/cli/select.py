"""Select each direction's specialized neurons: per layer the fewest most-active ones that together
cover k percent of the activations.

examples:
  neuron-spec select profile.safetensors --output masks.safetensors
  neuron-spec select profile.safetensors --output masks.safetensors --k 90 --k-for 'en-*:decoder=95'
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from neuron_spec.artifacts import hash_file, signature
from neuron_spec.neurons.activations import ActivationCounts
from neuron_spec.neurons.masks import NeuronMasks
from neuron_spec.neurons.selection import DEFAULT_K, NEURON_SETS, ks_per_direction, parse_k, select


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("profile", type=Path, nargs="+", help="profile.safetensors; several are added up")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="masks.safetensors")
    parser.add_argument(
        "--k", default=str(DEFAULT_K), metavar="PERCENT", help="coverage (default %(default)s)"
    )
    parser.add_argument("--encoder-k", metavar="PERCENT", help="k of the encoder layers")
    parser.add_argument("--decoder-k", metavar="PERCENT", help="k of the decoder layers")
    parser.add_argument(
        "--k-for",
        action="append",
        default=[],
        metavar="PATTERN[:SIDE]=PERCENT",
        help="k of some directions, such as 'en-*:decoder=90'; may be given again, later ones win",
    )
    parser.add_argument(
        "--neuron-sets",
        choices=NEURON_SETS,
        default=NEURON_SETS[0],
        help="a set per direction, or per language: the encoder's by source, the decoder's by target",
    )


def run(args: argparse.Namespace) -> None:
    ks = {
        "k": parse_k(args.k),
        "encoder_k": args.encoder_k and parse_k(args.encoder_k),
        "decoder_k": args.decoder_k and parse_k(args.decoder_k),
    }
    profiles = [ActivationCounts.load(path) for path in args.profile]
    profile = sum(profiles[1:], start=profiles[0])
    masks = select(
        profile, ks_per_direction(profile.directions, k_for=args.k_for, **ks), neuron_sets=args.neuron_sets
    )
    masks.metadata["signature"] = signature(
        "select",
        inputs={f"profile {path.name}": hash_file(path) for path in args.profile},
        parameters={
            "k_percent": masks.metadata["k_percent"],
            "method": masks.metadata["method"],
            "neuron_sets": args.neuron_sets,
        },
    )
    masks.save(args.output)
    _print_sparsity(masks)
    print(args.output)


def _print_sparsity(masks: NeuronMasks) -> None:
    print(f"{'dropped neurons, percent':<26}{'min':>8}{'mean':>8}{'max':>8}", file=sys.stderr)
    for layer, dropped in masks.sparsity().items():
        low, mean, high = (100 * float(v) for v in (dropped.min(), dropped.mean(), dropped.max()))
        print(f"{layer:<26}{low:>8.1f}{mean:>8.1f}{high:>8.1f}", file=sys.stderr)
