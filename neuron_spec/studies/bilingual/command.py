"""The bilingual baseline, a dense model per direction: how long each trains, and all their scores as one system's.

updates: of N updates, the direction's share under the config's sampling temperature, so that all models together
train as long as a multilingual one; and after a space, how many of them warm up.

join: evaluations of single directions into one, for neuron-spec compare.

examples:
  neuron-spec bilingual updates DATA_BIN en-de --config configs/homeassistant/cpu/pretrain.yaml --of 4800
  neuron-spec bilingual join bilingual/en-de/evaluation bilingual/de-en/evaluation --output evaluation/bilingual
"""

from __future__ import annotations

import argparse
from pathlib import Path

from neuron_spec.artifacts import SCORES_JSON


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True)
    updates = actions.add_parser(
        "updates", help="print the updates of a direction's model, and of its warm-up"
    )
    updates.add_argument("data_bin", type=Path, help="made by neuron-spec data")
    updates.add_argument("direction", help="such as en-de")
    updates.add_argument(
        "--config", type=Path, required=True, metavar="FILE", help="of the multilingual training"
    )
    updates.add_argument("--of", type=int, required=True, metavar="N", help="updates of all models together")
    join = actions.add_parser("join", help="make one evaluation of several, each of other directions")
    join.add_argument("evaluations", nargs="+", type=Path, metavar="DIR")
    join.add_argument("--output", type=Path, required=True, metavar="DIR")


def run(args: argparse.Namespace) -> None:
    from neuron_spec.directions import Direction
    from neuron_spec.scoring.evaluation import join
    from neuron_spec.studies.bilingual import measure as bilingual

    if args.action == "updates":
        print(*bilingual.updates_of(args.data_bin, Direction.parse(args.direction), args.config, args.of))
    else:
        join(args.evaluations, args.output)
        print(args.output / SCORES_JSON)
