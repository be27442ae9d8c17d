"""Make LaSS's masks: fine-tune a copy of the dense model on each direction, and drop, per weight matrix, the
fraction alpha that is smallest in magnitude. Complete directions are skipped, a killed one goes on.

Train jointly with them by --arch neuron_spec_lass... --weight-masks FILE; a checkpoint then carries them.
Several processes may share --work if each has other --lang-pairs; run once more with all to join their masks.
Flags of fairseq-train may follow after --.

example:
  neuron-spec lass DATA_BIN --path dense.pt --alpha 0.7 --config configs/homeassistant/cpu/finetune.yaml \\
    --work lass --output weight_masks.safetensors --cpu
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from neuron_spec.arguments import (
    add_device,
    add_model_and_text,
    add_output_with_summary,
    output_folder,
    real_number,
)
from neuron_spec.neurons.choices import SUMMARY_MARK


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_and_text(
        parser,
        data_bin="fairseq data-bin; a sharded one is trained shard by shard",
        checkpoint="the dense checkpoint",
        subset=None,
    )
    add_output_with_summary(parser, "weight_masks.safetensors", SUMMARY_MARK)
    parser.add_argument(
        "--work",
        type=output_folder,
        required=True,
        metavar="DIR",
        help="a folder per direction; one copy at a time",
    )
    parser.add_argument(
        "--alpha",
        type=real_number(lambda value: 0 <= value < 1, "a fraction from 0 to below 1"),
        required=True,
        metavar="X",
        help="fraction of each matrix to drop, 0 to below 1; the published configuration does not say it",
    )
    parser.add_argument(
        "--config", type=Path, required=True, metavar="FILE", help="fairseq's flags for fine-tuning"
    )
    parser.add_argument(
        "--checkpoint",
        choices=("last", "best"),
        default="last",
        help="which checkpoint of the fine-tuning is masked; best needs validation (default %(default)s)",
    )
    parser.add_argument(
        "--keep-checkpoints",
        action="store_true",
        help="keep the fine-tuned copies, so that another alpha needs no other training",
    )
    add_device(parser, max_tokens=None)


def run(args: argparse.Namespace) -> None:
    from neuron_spec.backends.fairseq.asked import Asked
    from neuron_spec.backends.fairseq.config import read_flags
    from neuron_spec.backends.fairseq.fine_tuning import FineTuning
    from neuron_spec.studies.lass.measure import Masking, make_masks

    flags = [*read_flags(args.config), *(["--cpu"] if args.cpu else []), *args.fairseq_flags]
    asked = Asked.read(args.path, args.data_bin, lang_pairs=args.lang_pairs)
    training = FineTuning(args.path, args.data_bin, asked.directions, flags)
    masking = Masking(args.alpha, args.checkpoint, args.keep_checkpoints)
    masks = make_masks(training, masking, args.output, args.work)
    seconds = masks.metadata.get("fine_tuning_seconds", {})
    for name, percent in masks.summary()["dropped_percent"].items():
        time = f", fine-tuned in {seconds[name]:g} s" if name in seconds else ""
        print(f"{name}: {percent:g} % of weights dropped{time}", file=sys.stderr)
    print(args.output)
