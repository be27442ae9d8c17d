"""Measure how much each attention head and FFN neuron matters to each direction: the mean absolute gradient of a
sentence's loss with respect to the unit's mask (Michel, Levy and Neubig 2019).

One teacher-forced pass with its backward pass over the validation set, in single precision; a specialized
checkpoint runs through its own masks.

example:
  neuron-spec importance DATA_BIN --path dense.pt --output importance.safetensors
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from neuron_spec.backends.fairseq.asked import positive
from neuron_spec.modules.specialized_ffn import DROPPED_NEURONS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_shared_arguments(parser)
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="importance.safetensors")


def add_shared_arguments(parser: argparse.ArgumentParser) -> None:
    """What is measured, and on what: also for neuron-spec prune."""
    parser.add_argument("data_bin", type=Path, help="fairseq data-bin")
    parser.add_argument("--path", type=Path, required=True, metavar="FILE", help="the checkpoint")
    parser.add_argument("--gen-subset", default="valid", metavar="NAME", help="the subset to measure on")
    parser.add_argument(
        "--sentences",
        type=positive,
        metavar="N",
        help="of each direction, spread over its set (default: all)",
    )
    parser.add_argument(
        "--lang-pairs", metavar="de-en,...", help="default: those the checkpoint was trained on"
    )
    parser.add_argument(
        "--dropped-neurons",
        choices=DROPPED_NEURONS,
        help="what a dropped neuron would emit: its constant act(bias), or zero "
        f"(default: as the checkpoint was trained; {DROPPED_NEURONS[0]} for one of plain fairseq)",
    )
    parser.add_argument("--max-tokens", type=int, default=4000, metavar="N", help="tokens per batch")
    parser.add_argument("--cpu", action="store_true", help="do not use a GPU")


def run(args: argparse.Namespace) -> None:
    import torch
    from tqdm import tqdm

    from neuron_spec.artifacts import hash_state, hash_text, is_already_here, signature
    from neuron_spec.backends.fairseq.checkpoints import (
        masks_of,
        read_checkpoint,
        task_args,
        token_flags,
        weights_sha256,
    )
    from neuron_spec.backends.fairseq.data_bin import check_data_bin, data_sha256, folder_with
    from neuron_spec.directions import direction_id, parse_directions
    from neuron_spec.studies.pruning.importance import Importance
    from neuron_spec.studies.pruning.meter import ImportanceMeter

    state = read_checkpoint(args.path)
    trained = task_args(state, args.path)
    directions = parse_directions(args.lang_pairs or trained.lang_pairs)
    for direction in directions:
        direction_id(direction, trained.langs)
    data_bin = folder_with(args.data_bin, args.gen_subset)
    check_data_bin(data_bin, trained.langs, args.gen_subset, directions)
    made = signature(
        "importance",
        inputs={
            "checkpoint": weights_sha256(state),
            "checkpoint's masks": hash_state(masks_of(state)),
            "data": data_sha256(data_bin, args.gen_subset, directions),
        },
        parameters={
            "subset": args.gen_subset,
            "sentences": args.sentences or "all",
            "directions": [str(direction) for direction in directions],
            "dropped_neurons": args.dropped_neurons or "as trained",
        },
    )
    found = Importance.load(args.output).metadata.get("signature", {}) if args.output.is_file() else None
    if is_already_here(args.output, found, made, what="file of importance"):
        print(f"{args.output}: complete already", file=sys.stderr)
    else:
        meter = ImportanceMeter(
            args.path,
            data_bin,
            directions,
            token_flags=token_flags(trained),
            dropped_neurons=args.dropped_neurons,
            max_tokens=args.max_tokens,
            cpu=args.cpu,
        )
        text = meter.read(args.gen_subset, sentences=args.sentences)
        with tqdm(total=len(text.batches), unit="batch", file=sys.stderr, desc="importance") as bar:
            sums = meter.importance(text, each_batch=bar.update)
        metadata = {
            "checkpoint_sha256": made["inputs"]["checkpoint"],
            "dictionary_sha256": hash_text(*meter.model.encoder.dictionary.symbols),
            "langs": list(trained.langs),
            "signature": made,
        }
        Importance(directions, sums, torch.tensor(text.tokens), metadata).save(args.output)
    importance = Importance.load(args.output)
    print(f"{'milli-nats per token':<32}{'min':>9}{'mean':>9}{'max':>9}", file=sys.stderr)
    for site, values in importance.per_token().items():
        low, mean, high = (1000 * float(v) for v in (values.min(), values.mean(), values.max()))
        print(f"{site:<32}{low:>9.4f}{mean:>9.4f}{high:>9.4f}", file=sys.stderr)
    print(args.output)
