"""Switch off each direction's specialized neurons and measure what every direction loses: are the sets
functional, or only correlated? By default the distinctive neurons, those that the fewest others hold.

One validation pass per set, one intact, one per random control; a killed run goes on where it stopped.
Writes ablation.md, ablation.json, ablation.csv and a figure (PNG and SVG).

examples:
  neuron-spec ablate DATA_BIN --path dense.pt --masks masks.safetensors --output ablation
  neuron-spec ablate --hf facebook/m2m100_418M --text en-de=dev.en,dev.de --masks masks.safetensors --output ablation
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from neuron_spec.arguments import (
    add_allow_other_checkpoint,
    add_device,
    add_huggingface,
    add_model_and_text,
    add_tag,
    input_file,
    is_huggingface,
    output_folder,
    real_number,
    seed,
    whole_number,
)

if TYPE_CHECKING:
    from neuron_spec.directions import Direction
    from neuron_spec.neurons.masks import NeuronMasks
    from neuron_spec.studies.ablation.measure import Ablates, Neurons

DEFAULT_FRACTION = 0.05


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_and_text(
        parser,
        directions="which directions are evaluated, and whose neurons switched off (default: those of the masks)",
        required=False,
    )
    add_huggingface(parser)
    parser.add_argument(
        "--masks", type=input_file("mask file"), required=True, metavar="FILE", help="masks.safetensors"
    )
    parser.add_argument("--output", type=output_folder, required=True, metavar="DIR")
    parser.add_argument(
        "--ablate",
        choices=("distinctive", "whole"),
        default="distinctive",
        help="of each set the neurons that the fewest other sets hold, or all of them",
    )
    number = parser.add_mutually_exclusive_group()
    number.add_argument(
        "--fraction",
        type=real_number(lambda value: 0 < value <= 1, "a fraction above 0, up to 1"),
        metavar="X",
        help=f"how many distinctive neurons, of each layer's, 0 to 1 (default {DEFAULT_FRACTION:g})",
    )
    number.add_argument(
        "--count", type=whole_number(1), metavar="N", help="how many distinctive neurons per layer"
    )
    parser.add_argument("--side", choices=("both", "encoder", "decoder"), default="both", help="whose layers")
    parser.add_argument(
        "--random-draws",
        type=whole_number(0),
        default=3,
        metavar="N",
        help="controls with as many random neurons per layer (default %(default)s)",
    )
    parser.add_argument("--seed", type=seed, default=1, metavar="N", help="of random neurons and tests")
    add_allow_other_checkpoint(parser)
    add_tag(parser)
    add_device(parser, precision="")


@dataclass(frozen=True)
class _Asked:
    """A model of either backend, and the text that it is run on; ``inputs`` and ``parameters`` are of a signature."""

    directions: Sequence[Direction]
    inputs: Mapping[str, str]
    parameters: Mapping[str, Any]
    is_specialized: bool
    load: Callable[[], Ablates]
    families: Mapping[str, str] | None = None


def _of_fairseq(args: argparse.Namespace, masks: NeuronMasks) -> _Asked:
    from functools import partial

    from neuron_spec.backends.fairseq.asked import Asked
    from neuron_spec.neurons.counting import DTYPES
    from neuron_spec.studies.ablation.measure import Ablator

    asked = Asked.read(
        args.path,
        args.data_bin,
        lang_pairs=args.lang_pairs or masks.directions,
        compared="an ablation compares",
    )
    asked.require_masks(masks, args.masks, allow_other_checkpoint=args.allow_other_checkpoint)
    asked = asked.of_text(args.gen_subset)
    load = partial(
        asked.load,
        Ablator,
        subset=args.gen_subset,
        dictionary_sha256=masks.metadata.get("dictionary_sha256"),
        with_tag=args.tag == "kept",
        max_tokens=args.max_tokens,
        dtype=DTYPES[args.dtype],
        cpu=args.cpu,
    )
    return _Asked(
        asked.directions, asked.inputs, asked.parameters, asked.is_specialized, load, asked.families
    )


def _of_huggingface(args: argparse.Namespace, masks: NeuronMasks) -> _Asked:
    from neuron_spec.backends.huggingface.directed_text import DirectedText
    from neuron_spec.backends.huggingface.loading import load_model, load_tokenizer
    from neuron_spec.backends.huggingface.specialization import (
        config_sha256,
        require_masks,
        specialization_of,
        weights_sha256,
    )
    from neuron_spec.backends.huggingface.text import of_files
    from neuron_spec.statistics import NothingToCompare
    from neuron_spec.studies.ablation.huggingface import HuggingFaceAblator

    text = of_files(args.text, args.lang_pairs or ",".join(masks.names))
    if len(text) < 2:
        raise NothingToCompare(
            "an ablation compares directions: there is nothing to compare",
            got=", ".join(map(str, text)),
            expected="two directions or more",
        )
    masks.require_directions(text, args.masks, "name fewer --lang-pairs, or profile and select these too")
    model, tokenizer = load_model(args.hf, args.dtype, cpu=args.cpu), load_tokenizer(args.hf)
    state = specialization_of(model)
    # A specialized one has moved on from the one that was profiled.
    require_masks(model, masks, args.allow_other_checkpoint or state is not None)
    tokens = DirectedText(text, tokenizer, model)
    inputs = {
        "checkpoint": weights_sha256(model),
        "checkpoint's masks": "none" if state is None or state.masks is None else state.masks.fingerprint,
        "configuration": config_sha256(model),
        "data": tokens.sha256,
    }
    return _Asked(
        tokens.directions,
        inputs,
        {"subset": "text", "directions": list(map(str, tokens.directions))},
        state is not None,
        lambda: HuggingFaceAblator(model, tokens, max_tokens=args.max_tokens),
    )


def run(args: argparse.Namespace) -> None:
    import torch

    from neuron_spec.arguments import LOSS_OF
    from neuron_spec.artifacts import hash_file, hash_state, signature
    from neuron_spec.errors import NeuronSpecError
    from neuron_spec.neurons.masks import NeuronMasks
    from neuron_spec.studies.ablation import measure
    from neuron_spec.studies.ablation.page import PAGE, write_ablation

    is_asked = _of_huggingface if is_huggingface(args, ("gen_subset", "tag")) else _of_fairseq
    masks = NeuronMasks.load(args.masks)
    asked = is_asked(args, masks)
    how_many: dict[str, Any] = {}
    if args.ablate == "whole":
        if (args.fraction, args.count) != (None, None):
            raise NeuronSpecError(
                "--fraction and --count are for distinctive neurons",
                got="--ablate whole",
                mend="drop one of the two flags",
            )
    elif args.count is not None:
        how_many = {"count": args.count}
    else:
        how_many = {"fraction": DEFAULT_FRACTION if args.fraction is None else args.fraction}
    chosen = measure.choose(masks, ablate=args.ablate, side=args.side, **how_many)
    # Owners that the directions have nothing to do with are left out.
    names = {name for d in asked.directions for name in (str(d), d.source, d.target)}
    chosen = {owner: neurons for owner, neurons in chosen.items() if owner in names}
    ablations = {"intact": {}, **chosen, **measure.draw_random(chosen, args.random_draws, args.seed)}
    parameters = {**asked.parameters, "loss": LOSS_OF[args.tag], "dtype": args.dtype}

    def sign(neurons: Neurons) -> dict[str, Any]:
        inputs = {**asked.inputs, "switched off": hash_state(neurons)}
        return signature("ablation row", inputs=inputs, parameters=parameters)

    def write() -> None:
        rows = measure.measure(ablations, args.output / "rows", sign, asked.load)
        nats = torch.tensor([[*row["nats"].values()] for row in rows.values()], dtype=torch.float64)
        owners, controls = list(chosen), 1 + len(chosen)
        of_direction = [measure.owner_of(direction, masks, args.side) for direction in asked.directions]
        ablation = measure.Ablation(
            asked.directions,
            [int(tokens) for tokens in rows["intact"]["tokens"].values()],
            owners,
            [owners.index(owner) if owner in owners else None for owner in of_direction],
            nats[0],
            nats[1:controls],
            nats[controls:],
            asked.families,
        )
        switched_off = {}
        for layer, holders in measure.held_by_others(masks, chosen, args.side).items():
            numbers = [int(neurons[layer].sum()) for neurons in chosen.values() if layer in neurons]
            switched_off[layer] = {
                "neurons": masks.widths[layer],
                "switched_off": sum(numbers) / len(numbers),
                "held_by_others": holders,
            }
        write_ablation(args.output, ablation, switched_off, whole, seed=args.seed)

    whole = signature(
        "ablate",
        inputs={**asked.inputs, "masks": hash_file(args.masks)},
        parameters={
            **parameters,
            "checkpoint": "specialized" if asked.is_specialized else "dense",
            "ablate": args.ablate,
            "side": args.side,
            "seed": args.seed,
            "random_draws": args.random_draws,
            "families": asked.families or "language table",
            **how_many,
        },
    )
    PAGE.make(args.output, whole, write)
