"""Take a step of gradient descent on each direction's training text in turn: what does it do to every direction's
validation loss? Negative = transfer helps, positive = interference.

The gradient is scaled to one length, so that directions are comparable: --lr is the length of a step. Dropout is
off. Writes transfer.md, transfer.json, transfer.csv and a figure (PNG and SVG); a killed run goes on.

example:
  neuron-spec transfer DATA_BIN --path dense.pt --lr 0.1 --overlap masks.safetensors --output transfer
"""

from __future__ import annotations

import argparse
from typing import Any

from neuron_spec.arguments import (
    add_device,
    add_masks_run_through,
    add_model_and_text,
    add_tag,
    learning_rate,
    output_folder,
    whole_number,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_and_text(parser)
    parser.add_argument("--output", type=output_folder, required=True, metavar="DIR")
    add_masks_run_through(parser)
    add_tag(parser)
    add_device(parser)
    parser.add_argument(
        "--lr",
        type=learning_rate,
        required=True,
        metavar="X",
        help="the length of a step, in the Euclidean norm over all trained parameters",
    )
    parser.add_argument(
        "--steps",
        type=whole_number(1),
        default=1,
        metavar="N",
        help="on each direction (default %(default)s)",
    )
    parser.add_argument("--train-subset", default="train", metavar="NAME", help="the subset to step on")
    parser.add_argument(
        "--sentences",
        type=whole_number(1),
        default=1000,
        metavar="N",
        help="of each direction in a step, spread over its set (default %(default)s)",
    )
    parser.add_argument(
        "--normalize-rows",
        action="store_true",
        help="draw changes over what the direction that is stepped on gains; tables hold both",
    )


def run(args: argparse.Namespace) -> None:
    import torch

    from neuron_spec.arguments import LOSS_OF
    from neuron_spec.artifacts import signature
    from neuron_spec.backends.fairseq.asked import AskedThroughMasks
    from neuron_spec.studies.transfer.measure import INTACT, Lookahead, Transfer, transfer_rows
    from neuron_spec.studies.transfer.page import PAGE, write_transfer

    asked = AskedThroughMasks.of(args, args.path, args.gen_subset, args.train_subset)
    inputs = {**asked.inputs, "training data": asked.data_sha256(args.train_subset)}
    asked_of = {**asked.parameters, "loss": LOSS_OF[args.tag]}
    step = {name: getattr(args, name) for name in ("lr", "steps", "train_subset", "sentences")}

    def sign(name: str) -> dict[str, Any]:
        steps = {"step_on": "none"} if name == INTACT else {"step_on": name, **step}
        return signature("transfer row", inputs=inputs, parameters={**asked_of, **steps})

    def load() -> Lookahead:
        given = {name: getattr(args, name) for name in ("train_subset", "gen_subset", "steps", "sentences")}
        return Lookahead(asked.load_through_masks(args, with_tag=args.tag == "kept"), **given)

    def write() -> None:
        rows = transfer_rows(args.output / "rows", asked.names, sign, load, args.lr)
        nats = torch.tensor([[*row["nats"].values()] for row in rows.values()], dtype=torch.float64)
        tokens = [*rows[INTACT]["tokens"].values()]
        transfer = Transfer(tokens, nats[0], nats[1:], rows[INTACT]["norm"])
        write_transfer(args.output, asked.pairs, transfer, whole, seed=args.seed)

    parameters = {**asked_of, **step, **asked.reported(args.seed)}
    parameters["normalize_rows"] = args.normalize_rows
    whole = signature("transfer", inputs=inputs, parameters=parameters)
    PAGE.make(args.output, whole, write)
