"""Print the fairseq flags of a config file, one per line, after checking that fairseq knows them.

A config's tokens-per-update, which is ours, is printed as the --max-tokens and --update-freq that give it
on --gpus N.

example:
  mapfile -t FLAGS < <(neuron-spec flags configs/quickstart/pretrain.yaml)
  fairseq-train DATA_BIN "${FLAGS[@]}" --save-dir RUN
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Literal

from neuron_spec.arguments import whole_number
from neuron_spec.backends.fairseq.config import keep_config, read_flags


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", type=Path, help="a YAML file whose keys are flags of fairseq-train")
    parser.add_argument(
        "--gpus",
        type=_number_of_gpus,
        metavar="N",
        help="how many train together, over all nodes, or 'all' that torch sees here (without any, the CPU "
        "is one); a config with tokens-per-update needs it",
    )
    parser.add_argument(
        "--keep",
        type=Path,
        metavar="DIR",
        help="copy the config into this folder, and refuse if a config with other values is there",
    )


def _number_of_gpus(text: str) -> int | Literal["all"]:
    if text == "all":
        return "all"
    return whole_number(1)(text)


def run(args: argparse.Namespace) -> None:
    flags = read_flags(args.config, args.gpus, kept=args.keep)
    if args.keep:
        keep_config(args.config, args.keep)
    print("\n".join(flags))
