"""Give each direction a copy of every FFN of a dense model, to see what sharing none gains: the ceiling.

Train what it leaves as stage 2, with masks.safetensors and the flags in flags.yaml, beside dense continuation.

example:
  neuron-spec unshare --path dense.pt --output ceiling
  fairseq-train DATA_BIN --task neuron_specialization --finetune-from-model ceiling/dense.pt \\
    --neuron-masks ceiling/masks.safetensors $(neuron-spec flags ceiling/flags.yaml) ...
"""

from __future__ import annotations

import argparse

from neuron_spec.arguments import input_file, output_folder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--path", type=input_file("checkpoint"), required=True, metavar="FILE", help="the dense checkpoint"
    )
    parser.add_argument(
        "--lang-pairs", metavar="de-en,...", help="default: those the checkpoint was trained on"
    )
    parser.add_argument("--output", type=output_folder, required=True, metavar="DIR")


def run(args: argparse.Namespace) -> None:
    from neuron_spec.backends.fairseq.asked import Asked
    from neuron_spec.studies.unsharing.measure import MASKS, is_written, write_unshared

    asked = Asked.read(args.path, args.output, lang_pairs=args.lang_pairs)
    if not is_written(asked, args.output):
        write_unshared(asked, args.output)
    print(args.output / MASKS)
