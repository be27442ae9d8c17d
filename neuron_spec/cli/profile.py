"""Count how often each FFN neuron is active (> 0 after ReLU), per direction and layer.

One pass over the validation set, teacher-forced, all directions; language flags are read from the
checkpoint. Flags of fairseq-validate, such as --distributed-world-size, may follow after --.

examples:
  neuron-spec profile DATA_BIN --path dense.pt --output profile.safetensors
  neuron-spec profile DATA_BIN --path dense.pt --output half-1.safetensors --part 1/2
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from neuron_spec.neurons.stability import WHOLE, part_flag


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "data_bin", type=Path, help="fairseq data-bin, or the folder of its shard0, shard1, ..."
    )
    parser.add_argument("--path", type=Path, required=True, metavar="FILE", help="the dense checkpoint")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="profile.safetensors")
    parser.add_argument(
        "--lang-pairs", metavar="de-en,...", help="default: those the checkpoint was trained on"
    )
    parser.add_argument("--gen-subset", default="valid", metavar="NAME", help="the subset to count on")
    parser.add_argument(
        "--part",
        type=part_flag,
        default=str(WHOLE),
        metavar="I/N",
        help="count only every Nth sentence of each direction, from the Ith on, such as the halves 1/2 and 2/2 "
        "for neuron-spec analyze --profile (default: all)",
    )
    parser.add_argument("--max-tokens", type=int, default=4000, metavar="N", help="tokens per batch")
    parser.add_argument(
        "--count-padding",
        action="store_true",
        help="count padding positions too, as the official code does; the result then depends on --max-tokens",
    )
    parser.add_argument("--cpu", action="store_true", help="do not use a GPU")
    precision = parser.add_mutually_exclusive_group()
    for name in ("fp16", "bf16"):
        precision.add_argument(
            f"--{name}",
            dest="dtype",
            action="store_const",
            const=name,
            default="fp32",
            help=f"run the model in {name}, not fp32; counts differ slightly",
        )
    parser.add_argument(
        "--num-workers",
        type=_number_of_workers,
        default=0,
        metavar="N",
        help="processes that prepare batches; 0, the default, prepares them in this one",
    )


def _number_of_workers(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not 0 or more")
    return int(text)


def run(args: argparse.Namespace) -> None:
    from neuron_spec import tasks as tasks  # registers
    from neuron_spec.backends.fairseq.checkpoints import (
        read_checkpoint,
        task_args,
        token_flags,
        weights_sha256,
    )
    from neuron_spec.backends.fairseq.commands import validate
    from neuron_spec.backends.fairseq.data_bin import check_data_bin, data_sha256, folder_with
    from neuron_spec.backends.fairseq.profiling import DTYPES, profile_signature
    from neuron_spec.directions import direction_id, parse_directions
    from neuron_spec.neurons.activations import ActivationCounts
    from neuron_spec.neurons.stability import Part

    state = read_checkpoint(args.path)
    trained = task_args(state, args.path)
    directions = parse_directions(args.lang_pairs or trained.lang_pairs)
    for direction in directions:
        direction_id(direction, trained.langs)
    check_data_bin(args.data_bin, trained.langs, args.gen_subset, directions)
    wanted = profile_signature(
        checkpoint=weights_sha256(state),
        data=data_sha256(args.data_bin, args.gen_subset, directions),
        subset=args.gen_subset,
        directions=directions,
        count_padding=args.count_padding,
        dtype=DTYPES[args.dtype],
        part=Part.parse(args.part),
    )
    if not _is_complete(args.output, wanted):
        folder = folder_with(args.data_bin, args.gen_subset)
        flags = [str(folder), "--path", str(args.path), "--task", "neuron_profiling"]
        flags += ["--lang-pairs", ",".join(map(str, directions)), *token_flags(trained)]
        flags += ["--valid-subset", args.gen_subset, "--max-tokens", str(args.max_tokens)]
        flags += ["--profile-output", str(args.output), "--profile-part", args.part]
        flags += ["--skip-invalid-size-inputs-valid-test"]
        # Processes exchange a record of every batch; fairseq's 16 kB hold few.
        flags += ["--all-gather-list-size", str(2**22)]
        flags += ["--profile-dtype", args.dtype, "--num-workers", str(args.num_workers)]
        flags += [f"--{name.replace('_', '-')}" for name in ("count_padding", "cpu") if getattr(args, name)]
        validate([*flags, *args.fairseq_flags])
    profile = ActivationCounts.load(args.output)
    for side, tokens in profile.tokens.items():
        print(f"{side}: {int(tokens.sum()):,} tokens of {len(directions)} directions", file=sys.stderr)
    print(args.output)


def _is_complete(output: Path, wanted: dict[str, Any]) -> bool:
    from neuron_spec.artifacts import is_already_here
    from neuron_spec.neurons.activations import ActivationCounts

    found = ActivationCounts.load(output).metadata.get("signature", {}) if output.is_file() else None
    if is_already_here(output, found, wanted["signature"], what="profile"):
        print(f"{output}: complete already", file=sys.stderr)
        return True
    return False
