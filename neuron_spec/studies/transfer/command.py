"""Take a step of gradient descent on each direction's training text in turn: what does it do to every direction's
validation loss? Negative = transfer helps, positive = interference.

The gradient is scaled to one length, so that directions are comparable: --lr is the length of a step. Dropout is
off. Writes transfer.md, transfer.json, transfer.csv and a figure (PNG and SVG); a killed run goes on.

example:
  neuron-spec transfer DATA_BIN --path dense.pt --lr 0.1 --overlap masks.safetensors --output transfer
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path
from typing import Any

from neuron_spec.backends.fairseq.asked import Asked, add_shared_arguments, positive

ROWS = "rows"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "data_bin", type=Path, help="fairseq data-bin; of a sharded one, the first shard with the text"
    )
    parser.add_argument("--path", type=Path, required=True, metavar="FILE", help="the checkpoint")
    add_shared_arguments(parser)
    parser.add_argument(
        "--lr",
        type=_rate,
        required=True,
        metavar="X",
        help="the length of a step, in the Euclidean norm over all trained parameters",
    )
    parser.add_argument(
        "--steps", type=positive, default=1, metavar="N", help="on each direction (default %(default)s)"
    )
    parser.add_argument("--train-subset", default="train", metavar="NAME", help="the subset to step on")
    parser.add_argument(
        "--sentences",
        type=positive,
        default=1000,
        metavar="N",
        help="of each direction in a step, spread over its set (default %(default)s)",
    )
    parser.add_argument(
        "--normalize-rows",
        action="store_true",
        help="draw changes over what the direction that is stepped on gains; tables hold both",
    )


def _rate(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.inf
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a rate, 0 or more")
    return value


def run(args: argparse.Namespace) -> None:
    import torch

    from neuron_spec.artifacts import is_already_here, read_json, signature
    from neuron_spec.backends.fairseq.data_bin import data_sha256
    from neuron_spec.studies.transfer.measure import INTACT, transfer_rows
    from neuron_spec.studies.transfer.page import TRANSFER_JSON, TRANSFER_TABLE, Transfer, write_transfer

    asked = Asked.read(args, args.path, [args.gen_subset, args.train_subset])
    names = [str(direction) for direction in asked.directions]
    inputs = {**asked.inputs, "data": data_sha256(args.data_bin, args.gen_subset, asked.directions)}
    inputs |= {"training data": data_sha256(args.data_bin, args.train_subset, asked.directions)}
    step = {
        "lr": args.lr,
        "steps": args.steps,
        "train_subset": args.train_subset,
        "sentences": args.sentences,
    }

    def sign(name: str) -> dict[str, Any]:
        own = {"step_on": "none"} if name == INTACT else {"step_on": name, **step}
        return signature("transfer row", inputs=inputs, parameters={**asked.parameters(), **own})

    parameters = {**asked.parameters(), **step, **asked.reported(), "normalize_rows": args.normalize_rows}
    made = signature("transfer", inputs=inputs, parameters=parameters)
    done = args.output / TRANSFER_JSON
    found = read_json(done, "transfer").get("signature", {}) if done.is_file() else None
    if is_already_here(args.output, found, made, what="transfer"):
        print(f"{args.output}: complete already", file=sys.stderr)
    else:
        rows = transfer_rows(args.output / ROWS, names, sign, lambda: _load(asked), args.lr)
        nats = {
            name: torch.tensor([row["nats"][n] for n in names], dtype=torch.float64)
            for name, row in rows.items()
        }
        intact = rows[INTACT]
        transfer = Transfer(
            [int(intact["tokens"][name]) for name in names],
            nats[INTACT],
            torch.stack([nats[name] for name in names]),
            intact["norm"],
        )
        write_transfer(
            args.output, asked.compared(), transfer, made, seed=args.seed, normalize_rows=args.normalize_rows
        )  # fmt: skip
    print(args.output / TRANSFER_TABLE)


def _load(asked: Asked) -> Any:
    from neuron_spec.studies.transfer.measure import Lookahead

    args = asked.args
    return Lookahead(
        asked.load(),
        train_subset=args.train_subset,
        gen_subset=args.gen_subset,
        steps=args.steps,
        sentences=args.sentences,
    )
