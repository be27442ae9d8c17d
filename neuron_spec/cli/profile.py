"""Count how often each FFN neuron is active (> 0 after ReLU), per direction and layer.

One pass over the validation set, teacher-forced, all directions; language flags are read from the
checkpoint. Flags of fairseq-validate, such as --distributed-world-size, may follow after --.
A model of Hugging Face (the extra neuron_spec[huggingface]) is profiled on parallel text files instead.

examples:
  neuron-spec profile DATA_BIN --path dense.pt --output profile.safetensors
  neuron-spec profile DATA_BIN --path dense.pt --output half-1.safetensors --part 1/2
  neuron-spec profile DATA_BIN --path specialized.pt --lang-pairs en-xx --output new.safetensors -- --missing-direction dense
  neuron-spec profile --hf facebook/m2m100_418M --text en-de=dev.en,dev.de --output profile.safetensors
"""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from neuron_spec.arguments import (
    MISSING_DIRECTION,
    add_device,
    add_huggingface,
    add_model_and_text,
    is_huggingface,
    output_file,
    whole_number,
)
from neuron_spec.errors import in_file
from neuron_spec.neurons.choices import ACTIVE_RULES, WHOLE, part_flag

if TYPE_CHECKING:
    from neuron_spec.neurons.activations import ActivationCounts


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_and_text(
        parser,
        data_bin="fairseq data-bin, or the folder of its shard0, shard1, ...",
        checkpoint="the checkpoint, usually a dense one",
        directions="default: those the checkpoint was trained on; of --text both directions of each pair",
        what_for="the subset to count on",
        required=False,
    )
    add_huggingface(parser)
    parser.add_argument(
        "--active-rule",
        choices=ACTIVE_RULES,
        help="with --hf: when a neuron is active: relu (default), or gate, of GLUs, where its gate is > 0",
    )
    parser.add_argument(
        "--output", type=output_file, required=True, metavar="FILE", help="profile.safetensors"
    )
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
    of_fairseq, of_huggingface = ("gen_subset", "num_workers"), ("active_rule",)
    profile = (_of_huggingface if is_huggingface(args, of_fairseq, of_huggingface) else _of_fairseq)(args)
    for side, tokens in profile.tokens.items():
        print(f"{side}: {int(tokens.sum()):,} tokens of {len(tokens)} directions", file=sys.stderr)
    print(args.output)


def _of_huggingface(args: argparse.Namespace) -> ActivationCounts:
    from neuron_spec.artifacts import completed
    from neuron_spec.backends.huggingface.loading import load_model, load_tokenizer
    from neuron_spec.backends.huggingface.profiling import profile, signed_profile
    from neuron_spec.backends.huggingface.text import of_files
    from neuron_spec.neurons.activations import ActivationCounts
    from neuron_spec.neurons.choices import Part

    text = of_files(args.text, args.lang_pairs)
    model, tokenizer = load_model(args.hf, args.dtype, cpu=args.cpu), load_tokenizer(args.hf)
    how: Any = {
        "active_rule": args.active_rule,
        "part": Part.parse(args.part),
        "count_padding": args.count_padding,
    }
    if completed(args.output, signed_profile(model, text, tokenizer, **how)["signature"], what="profile"):
        return ActivationCounts.load(args.output)
    found = profile(model, text, tokenizer, max_tokens=args.max_tokens, **how)
    found.save(args.output)
    return found


def _of_fairseq(args: argparse.Namespace) -> ActivationCounts:
    from neuron_spec import tasks as tasks  # registers
    from neuron_spec.artifacts import completed
    from neuron_spec.backends.fairseq.asked import Asked
    from neuron_spec.backends.fairseq.checkpoints import token_flags
    from neuron_spec.backends.fairseq.commands import fixed_dictionary_in, missing_direction_in, validate
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
        missing_direction=missing_direction_in(args.fairseq_flags)[0] or MISSING_DIRECTION[0],
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
        with in_file(args.path):
            validate([*flags, *args.fairseq_flags])
    return ActivationCounts.load(args.output)
