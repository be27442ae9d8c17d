"""Find static subnetworks: remove each direction's or language's least important attention heads and FFN neurons,
step by step, while the validation perplexity stays within a floor (after Choenni, Garrette and Shutova 2023; the
rules are ours). The masks serve --neuron-masks.

A step costs a pass with its backward pass and one or more without. A killed run goes on after its last step.
Several models' masks, such as of several seeds, are joined by neuron-spec masks vote.

example:
  neuron-spec prune DATA_BIN --path dense.pt --output masks.safetensors --sites heads --neuron-sets language
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from neuron_spec.cli.importance import add_shared_arguments
from neuron_spec.neurons.pruning import SITE_KINDS
from neuron_spec.neurons.selection import NEURON_SETS

DEFAULT_STEP, DEFAULT_FLOOR = 0.1, 0.95


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_shared_arguments(parser)
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="masks.safetensors")
    parser.add_argument(
        "--sites", choices=SITE_KINDS, default=SITE_KINDS[0], help="what is pruned (default %(default)s)"
    )
    parser.add_argument(
        "--neuron-sets",
        choices=NEURON_SETS,
        default=NEURON_SETS[0],
        help="a set per direction, or per language: the encoder's by source, the decoder's by target",
    )
    parser.add_argument(
        "--step-fraction",
        type=float,
        default=DEFAULT_STEP,
        metavar="X",
        help="how many of a set's remaining units one step removes, of heads and of neurons (default %(default)s)",
    )
    parser.add_argument(
        "--quality-floor",
        type=float,
        default=DEFAULT_FLOOR,
        metavar="X",
        help="least quality of every direction: the dense model's perplexity over the pruned one's (default %(default)s)",
    )
    parser.add_argument(
        "--max-steps", type=int, metavar="N", help="stop after so many (default: at the floor)"
    )


def run(args: argparse.Namespace) -> None:
    from neuron_spec.artifacts import signature
    from neuron_spec.checkpoints import (
        is_specialized,
        read_checkpoint,
        task_args,
        token_flags,
        weights_sha256,
    )
    from neuron_spec.data.data_bin import check_data_bin, data_sha256
    from neuron_spec.directions import direction_id, parse_directions
    from neuron_spec.errors import ModelError
    from neuron_spec.importance import ImportanceMeter
    from neuron_spec.pruning import Rules, prune

    rules = Rules(args.sites, args.neuron_sets, args.step_fraction, args.quality_floor, args.max_steps)
    state = read_checkpoint(args.path)
    if is_specialized(state):
        raise ModelError(
            "pruning starts from a dense model",
            where=args.path,
            got="a checkpoint with masks",
            expected="a dense checkpoint, multilingual or fine-tuned",
        )
    trained = task_args(state, args.path)
    directions = parse_directions(args.lang_pairs or trained.lang_pairs)
    for direction in directions:
        direction_id(direction, trained.langs)
    check_data_bin(args.data_bin, trained.langs, args.gen_subset, directions)
    made = signature(
        "prune",
        inputs={
            "checkpoint": weights_sha256(state),
            "data": data_sha256(args.data_bin, args.gen_subset, directions),
        },
        parameters={
            **vars(rules),
            "subset": args.gen_subset,
            "directions": [str(direction) for direction in directions],
            "dropped_neurons": args.dropped_neurons or "as trained",
        },
    )

    def load() -> ImportanceMeter:
        return ImportanceMeter(
            args.path,
            args.data_bin,
            directions,
            token_flags=token_flags(trained),
            dropped_neurons=args.dropped_neurons,
            max_tokens=args.max_tokens,
            cpu=args.cpu,
        )

    metadata = {
        "checkpoint_sha256": made["inputs"]["checkpoint"],
        "langs": list(trained.langs),
        "signature": made,
    }
    masks = prune(args.output, load, args.gen_subset, rules, metadata)
    print(f"{'dropped, percent':<32}{'min':>8}{'mean':>8}{'max':>8}", file=sys.stderr)
    for site, dropped in masks.sparsity(masks.sites).items():
        low, mean, high = (100 * float(v) for v in (dropped.min(), dropped.mean(), dropped.max()))
        print(f"{site:<32}{low:>8.1f}{mean:>8.1f}{high:>8.1f}", file=sys.stderr)
    print(args.output)
