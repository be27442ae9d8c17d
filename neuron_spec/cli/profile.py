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

from neuron_spec.arguments import add_device, add_model_and_text, whole_number
from neuron_spec.neurons.choices import WHOLE, part_flag


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_and_text(
        parser,
        data_bin="fairseq data-bin, or the folder of its shard0, shard1, ...",
        checkpoint="the dense checkpoint",
        what_for="the subset to count on",
    )
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="profile.safetensors")
    parser.add_argument(
        "--part",
        type=part_flag,
        default=str(WHOLE),
        metavar="I/N",
        help="count only every Nth sentence of each direction, from the Ith on, such as the halves 1/2 and 2/2 "
        "for neuron-spec analyze --profile (default: all)",
    )
    parser.add_argument(
        "--count-padding",
        action="store_true",
        help="count padding positions too, as the official code does; the result then depends on --max-tokens",
    )
    add_device(parser, precision="; counts differ slightly")
    parser.add_argument(
        "--num-workers",
        type=whole_number(0),
        default=0,
        metavar="N",
        help="processes that prepare batches; 0, the default, prepares them in this one",
    )


def run(args: argparse.Namespace) -> None:
    from neuron_spec import tasks as tasks  # registers
    from neuron_spec.artifacts import completed
    from neuron_spec.backends.fairseq.asked import Asked
    from neuron_spec.backends.fairseq.checkpoints import token_flags
    from neuron_spec.backends.fairseq.commands import fixed_dictionary_in, validate
    from neuron_spec.backends.fairseq.data_bin import folder_with
    from neuron_spec.neurons.activations import ActivationCounts
    from neuron_spec.neurons.choices import Part
    from neuron_spec.neurons.counting import DTYPES, profile_signature

    asked = Asked.read(
        args.path,
        args.data_bin,
        args.gen_subset,
        lang_pairs=args.lang_pairs,
        fixed_dictionary=fixed_dictionary_in(args.fairseq_flags),
    )
    wanted = profile_signature(
        checkpoint=asked.checkpoint_sha256,
        data=asked.data_sha256(),
        subset=args.gen_subset,
        directions=asked.directions,
        count_padding=args.count_padding,
        dtype=DTYPES[args.dtype],
        part=Part.parse(args.part),
    )
    if not completed(args.output, wanted["signature"], what="profile"):
        folder = folder_with(args.data_bin, args.gen_subset)
        flags = [str(folder), "--path", str(args.path), "--task", "neuron_profiling"]
        flags += ["--lang-pairs", ",".join(asked.names), *token_flags(asked.trained)]
        flags += ["--valid-subset", args.gen_subset, "--max-tokens", str(args.max_tokens)]
        flags += ["--profile-output", str(args.output), "--profile-part", args.part]
        # Processes exchange a record of every batch; fairseq's 16 kB hold few.
        flags += ["--skip-invalid-size-inputs-valid-test", "--all-gather-list-size", str(2**22)]
        flags += ["--profile-dtype", args.dtype, "--num-workers", str(args.num_workers)]
        flags += ["--count-padding"] * args.count_padding + ["--cpu"] * args.cpu
        validate([*flags, *args.fairseq_flags])
    profile = ActivationCounts.load(args.output)
    for side, tokens in profile.tokens.items():
        print(f"{side}: {int(tokens.sum()):,} tokens of {len(asked.directions)} directions", file=sys.stderr)
    print(args.output)
