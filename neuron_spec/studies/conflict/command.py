"""Compare the gradients of all pairs of directions: below a cosine of 0, a step for one raises the loss of the other.

By layer and group of parameters, of one checkpoint or of several, such as those of a training run. Two
halves of each direction's text say how much of a cosine is noise. Dropout is off.
Writes conflict.md, conflict.json, conflict.csv and two figures (PNG and SVG); a killed run goes on.

example:
  neuron-spec conflict DATA_BIN --path dense.pt --output conflict
  neuron-spec conflict DATA_BIN --path dense.pt --masks masks.safetensors --output conflict-through-masks
"""

from __future__ import annotations

import argparse
import math

from neuron_spec.arguments import (
    add_device,
    add_masks_run_through,
    add_model_and_text,
    add_sentences,
    add_tag,
    output_folder,
    real_number,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_and_text(parser, several=True, checkpoint="one or more checkpoints of one model")
    parser.add_argument("--output", type=output_folder, required=True, metavar="DIR")
    add_masks_run_through(parser)
    add_device(parser)
    add_sentences(parser)
    add_tag(parser, both=True)
    parser.add_argument(
        "--gradient-space",
        type=real_number(lambda value: 0 < value < math.inf, "a positive number"),
        default=4.0,
        metavar="GiB",
        help="how much of the gradients lies in --output at a time; if that is not all, the text is passed "
        "over several times (default %(default)g)",
    )


def run(args: argparse.Namespace) -> None:
    import torch

    from neuron_spec.arguments import LOSS_OF
    from neuron_spec.artifacts import signature
    from neuron_spec.backends.fairseq.asked import AskedThroughMasks
    from neuron_spec.backends.fairseq.language_tokens import LanguageTokens
    from neuron_spec.errors import ModelError, NeuronSpecError
    from neuron_spec.studies.conflict.measure import Cell, Conflict, Gradients, gradient_products
    from neuron_spec.studies.conflict.page import PAGE, WITH_TAG, write_conflict

    # Where files share a name, their folders tell them apart.
    names = [path.stem for path in args.path]
    if len(set(names)) < len(names):
        names = [f"{path.resolve().parent.name}-{path.stem}" for path in args.path]
    if len(set(names)) < len(names):
        raise NeuronSpecError(
            "checkpoints with the same name in folders of the same name",
            got=", ".join(map(str, args.path)),
            mend="name each once, or copy them elsewhere",
        )
    asked_each = [AskedThroughMasks.of(args, path, args.gen_subset) for path in args.path]
    checkpoints, first = dict(zip(names, asked_each, strict=True)), asked_each[0]
    for name, asked in checkpoints.items():
        differ = LanguageTokens.of(first.trained).differences(LanguageTokens.of(asked.trained))
        if differ or asked.directions != first.directions:
            raise ModelError(
                "checkpoints of other directions or language tokens",
                where=f"{names[0]}, {name}",
                got="; ".join(f"{one} and {two}" for one, two in differ.values())
                or f"{len(first.directions)} and {len(asked.directions)} directions, or another order",
                mend="name --lang-pairs that both know, or compare them one by one",
            )
    parameters = {**first.parameters, "sentences": args.sentences or "all"}

    def conflict(name: str, asked: AskedThroughMasks, loss: str) -> Conflict:
        def load() -> Gradients:
            model = asked.load_through_masks(args, with_tag=loss == LOSS_OF["kept"])
            return Gradients(model, args.gen_subset, args.sentences)

        products, metadata = gradient_products(
            args.output / "products" / name,
            asked.names,
            signature("gradient products", inputs=asked.inputs, parameters={**parameters, "loss": loss}),
            load,
            gibibytes=args.gradient_space,
            description=name,
        )
        sizes = {Cell.parse(cell): size for cell, size in metadata["parameters"].items()}
        return Conflict(products, torch.tensor(metadata["tokens"]), sizes)

    def write() -> None:
        conflicts = {}
        for name, asked in checkpoints.items():
            if args.tag == "both":
                conflicts[name] = conflict(name, asked, LOSS_OF["left-out"])
                conflicts[name + WITH_TAG] = conflict(name + WITH_TAG, asked, LOSS_OF["kept"])
            else:
                conflicts[name] = conflict(name, asked, LOSS_OF[args.tag])
        write_conflict(args.output, first.pairs, conflicts, whole, seed=args.seed)

    whole = signature(
        "conflict",
        inputs={
            f"{name}: {what}": value
            for name, asked in checkpoints.items()
            for what, value in asked.inputs.items()
        },
        parameters={**parameters, "loss": LOSS_OF[args.tag], **first.reported(args.seed)},
    )
    PAGE.make(args.output, whole, write)
