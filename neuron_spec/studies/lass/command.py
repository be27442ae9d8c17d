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

_CHECKPOINTS = ("last", "best")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "data_bin", type=Path, help="fairseq data-bin; a sharded one is trained shard by shard"
    )
    parser.add_argument("--path", type=Path, required=True, metavar="FILE", help="the dense checkpoint")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="weight_masks.safetensors")
    parser.add_argument(
        "--work", type=Path, required=True, metavar="DIR", help="a folder per direction; one copy at a time"
    )
    parser.add_argument(
        "--alpha",
        type=_alpha,
        required=True,
        metavar="X",
        help="fraction of each matrix to drop, 0 to below 1; the published configuration does not say it",
    )
    parser.add_argument(
        "--config", type=Path, required=True, metavar="FILE", help="fairseq's flags for fine-tuning"
    )
    parser.add_argument(
        "--lang-pairs", metavar="de-en,...", help="default: those the checkpoint was trained on"
    )
    parser.add_argument(
        "--checkpoint",
        choices=_CHECKPOINTS,
        default="last",
        help="which checkpoint of the fine-tuning is masked; best needs validation (default %(default)s)",
    )
    parser.add_argument(
        "--keep-checkpoints",
        action="store_true",
        help="keep the fine-tuned copies, so that another alpha needs no other training",
    )
    parser.add_argument("--cpu", action="store_true", help="do not use a GPU")


def _alpha(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a fraction from 0 to below 1")
    return value


def run(args: argparse.Namespace) -> None:
    from neuron_spec.backends.fairseq.checkpoints import read_checkpoint, task_args
    from neuron_spec.backends.fairseq.config import read_flags
    from neuron_spec.backends.fairseq.fine_tuning import FineTuning
    from neuron_spec.directions import parse_directions
    from neuron_spec.studies.lass.measure import Masking, make_masks

    flags = [*read_flags(args.config), *(["--cpu"] if args.cpu else []), *args.fairseq_flags]
    trained = task_args(read_checkpoint(args.path), args.path)
    directions = parse_directions(args.lang_pairs or trained.lang_pairs)
    training = FineTuning(args.path, args.data_bin, directions, flags)
    masking = Masking(args.alpha, args.checkpoint, args.keep_checkpoints)
    masks = make_masks(training, masking, args.output, args.work)
    seconds = masks.metadata["fine_tuning_seconds"]
    for name, percent in masks.summary()["dropped_percent"].items():
        print(f"{name}: {percent:g} % of weights dropped, fine-tuned in {seconds[name]:g} s", file=sys.stderr)
    print(args.output)
