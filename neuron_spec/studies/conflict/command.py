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
import sys
from pathlib import Path

from neuron_spec.backends.fairseq.asked import Asked, add_shared_arguments, positive


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "data_bin", type=Path, help="fairseq data-bin; of a sharded one, the first shard with the text"
    )
    parser.add_argument(
        "--path", type=Path, required=True, nargs="+", metavar="FILE", help="one or more checkpoints of one model"
    )  # fmt: skip
    add_shared_arguments(parser)
    parser.add_argument(
        "--sentences", type=positive, metavar="N", help="of each direction, spread over its set (default: all)"
    )  # fmt: skip
    parser.add_argument(
        "--gradient-space",
        type=_gibibytes,
        default=4.0,
        metavar="GiB",
        help="how much of the gradients lies in --output at a time; if that is not all, the text is passed "
        "over several times (default %(default)g)",
    )


def _gibibytes(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no positive number")
    return value


def run(args: argparse.Namespace) -> None:
    import torch

    from neuron_spec.artifacts import is_already_here, read_json, signature
    from neuron_spec.backends.fairseq.data_bin import data_sha256
    from neuron_spec.studies.conflict.measure import Cell, Gradients, gradient_products
    from neuron_spec.studies.conflict.page import CONFLICT_JSON, CONFLICT_TABLE, Conflict, write_conflict

    asked = {name: Asked.read(args, path, [args.gen_subset]) for name, path in names_of(args.path).items()}
    first = next(iter(asked.values()))
    _require_alike(asked)
    inputs = {
        name: {**own.inputs, "data": data_sha256(args.data_bin, args.gen_subset, own.directions)}
        for name, own in asked.items()
    }
    parameters = {**first.parameters(), "sentences": args.sentences or "all"}
    made = signature(
        "conflict",
        inputs={f"{name}: {what}": value for name, own in inputs.items() for what, value in own.items()},
        parameters={**parameters, **first.reported()},
    )
    done = args.output / CONFLICT_JSON
    found = read_json(done, "conflict").get("signature", {}) if done.is_file() else None
    if is_already_here(args.output, found, made, what="conflict"):
        print(f"{args.output}: complete already", file=sys.stderr)
    else:
        conflicts = {}
        for name, own in asked.items():
            products, metadata = gradient_products(
                args.output / "products" / name,
                [str(direction) for direction in own.directions],
                signature("gradient products", inputs=inputs[name], parameters=parameters),
                lambda own=own: Gradients(own.load(), args.gen_subset, args.sentences),  # type: ignore[misc]
                gibibytes=args.gradient_space,
                description=name,
            )
            sizes = {Cell.parse(cell): size for cell, size in metadata["parameters"].items()}
            conflicts[name] = Conflict(products, torch.tensor(metadata["tokens"]), sizes)
        write_conflict(args.output, first.compared(), conflicts, made, seed=args.seed)
    print(args.output / CONFLICT_TABLE)


def names_of(paths: list[Path]) -> dict[str, Path]:
    """A short name for each checkpoint: its file's or, where several share that, with its folder's.

    Raises:
        NeuronSpecError: if these are the same too.
    """
    from neuron_spec.errors import NeuronSpecError

    for names in (
        [path.stem for path in paths],
        [f"{path.resolve().parent.name}-{path.stem}" for path in paths],
    ):
        if len(set(names)) == len(names):
            return dict(zip(names, paths, strict=True))
    raise NeuronSpecError(
        "checkpoints with the same name in folders of the same name",
        got=", ".join(map(str, paths)),
        mend="name each once, or copy them elsewhere",
    )


def _require_alike(asked: dict[str, Asked]) -> None:
    """Raises: ModelError if checkpoints that stand side by side have other directions or language tokens."""
    from neuron_spec.backends.fairseq.checkpoints import differing_token_flags
    from neuron_spec.errors import ModelError

    (name, first), *others = asked.items()
    for other, own in others:
        differ = differing_token_flags(first.trained, own.trained)
        if differ or own.directions != first.directions:
            raise ModelError(
                "checkpoints of other directions or language tokens",
                where=f"{name}, {other}",
                got="; ".join(f"{flag}: {one} and {two}" for flag, (one, two) in differ.items())
                or f"{len(first.directions)} and {len(own.directions)} directions, or another order",
                mend="name --lang-pairs that both know, or compare them one by one",
            )
