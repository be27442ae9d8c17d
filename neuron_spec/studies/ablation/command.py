"""Switch off each direction's specialized neurons and measure what every direction loses: are the sets
functional, or only correlated? By default the distinctive neurons, those that the fewest others hold.

One validation pass per set, one intact, one per random control; a killed run goes on where it stopped.
Writes ablation.md, ablation.json, ablation.csv and a figure (PNG and SVG).

example:
  neuron-spec ablate DATA_BIN --path dense.pt --masks masks.safetensors --output ablation
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neuron_spec.arguments import (
    add_allow_other_checkpoint,
    add_device,
    add_model_and_text,
    real_number,
    whole_number,
)

if TYPE_CHECKING:
    from neuron_spec.backends.fairseq.asked import Asked
    from neuron_spec.neurons.masks import NeuronMasks
    from neuron_spec.studies.ablation.measure import Ablation, Neurons

DEFAULT_FRACTION = 0.05
ROWS = "rows"
INTACT = "intact"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_and_text(
        parser,
        directions="which directions are evaluated, and whose neurons switched off (default: those of the masks)",
    )
    parser.add_argument("--masks", type=Path, required=True, metavar="FILE", help="masks.safetensors")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    parser.add_argument(
        "--ablate",
        choices=("distinctive", "whole"),
        default="distinctive",
        help="of each set the neurons that the fewest other sets hold, or all of them",
    )
    number = parser.add_mutually_exclusive_group()
    number.add_argument(
        "--fraction",
        type=real_number(lambda value: 0 <= value <= 1, "a fraction from 0 to 1"),
        metavar="X",
        help=f"how many distinctive neurons, of each layer's, 0 to 1 (default {DEFAULT_FRACTION:g})",
    )
    number.add_argument(
        "--count", type=whole_number(0), metavar="N", help="how many distinctive neurons per layer"
    )
    parser.add_argument("--side", choices=("both", "encoder", "decoder"), default="both", help="whose layers")
    parser.add_argument(
        "--random-draws",
        type=whole_number(0),
        default=3,
        metavar="N",
        help="controls with as many random neurons per layer (default %(default)s)",
    )
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="of random neurons and tests")
    add_allow_other_checkpoint(parser)
    add_device(parser, precision="")


def run(args: argparse.Namespace) -> None:
    from neuron_spec.artifacts import completed, hash_file, hash_state, signature
    from neuron_spec.backends.fairseq.asked import Asked
    from neuron_spec.backends.fairseq.profiling import DTYPES
    from neuron_spec.neurons.masks import NeuronMasks
    from neuron_spec.studies.ablation.measure import Ablator, draw_random, measure
    from neuron_spec.studies.ablation.page import ABLATION_JSON, ABLATION_TABLE, write_ablation

    masks = NeuronMasks.load(args.masks)
    asked = Asked.read(
        args.path,
        args.data_bin,
        lang_pairs=args.lang_pairs or masks.directions,
        compared="an ablation compares",
    )
    asked.require_masks(masks, args.masks, allow_other_checkpoint=args.allow_other_checkpoint)
    asked = asked.of_text(args.gen_subset)
    chosen = _chosen(args, masks, asked)
    ablations = {INTACT: {}, **chosen, **draw_random(chosen, args.random_draws, args.seed)}
    parameters = {**asked.parameters, "dtype": args.dtype}

    def sign(neurons: Neurons) -> dict[str, Any]:
        inputs = {**asked.inputs, "switched off": hash_state(neurons)}
        return signature("ablation row", inputs=inputs, parameters=parameters)

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
            **({} if args.ablate == "whole" else _how_many(args)),
        },
    )
    if not completed(args.output / ABLATION_JSON, whole, what="ablation", where=args.output):

        def load() -> Ablator:
            return asked.load(
                Ablator,
                subset=args.gen_subset,
                dictionary_sha256=masks.metadata.get("dictionary_sha256"),
                max_tokens=args.max_tokens,
                dtype=DTYPES[args.dtype],
                cpu=args.cpu,
            )

        rows = measure(ablations, args.output / ROWS, sign, load)
        ablation = _ablation(args, masks, asked, list(chosen), rows)
        write_ablation(args.output, ablation, _switched_off(args, masks, chosen), whole, seed=args.seed)
    print(args.output / ABLATION_TABLE)


def _how_many(args: argparse.Namespace) -> dict[str, Any]:
    if args.count is not None:
        return {"count": args.count}
    return {"fraction": DEFAULT_FRACTION if args.fraction is None else args.fraction}


def _chosen(args: argparse.Namespace, masks: NeuronMasks, asked: Asked) -> dict[str, Neurons]:
    """What is switched off for each owner of a set that the directions have to do with.

    Raises:
        NeuronSpecError: if so many neurons cannot be chosen.
    """
    from neuron_spec.errors import NeuronSpecError
    from neuron_spec.studies.ablation.measure import choose

    if args.ablate == "whole" and (args.fraction, args.count) != (None, None):
        raise NeuronSpecError(
            "--fraction and --count are for distinctive neurons",
            got="--ablate whole",
            mend="drop one of the two flags",
        )
    chosen = choose(masks, ablate=args.ablate, side=args.side, **_how_many(args))
    codes = {code for direction in asked.directions for code in (direction.source, direction.target)}
    names = codes | set(asked.names)
    return {owner: neurons for owner, neurons in chosen.items() if owner in names}


def _ablation(
    args: argparse.Namespace,
    masks: NeuronMasks,
    asked: Asked,
    owners: Sequence[str],
    rows: Mapping[str, Mapping[str, Mapping[str, float]]],
) -> Ablation:
    import torch

    from neuron_spec.studies.ablation.measure import Ablation, owner_of

    losses = {
        name: torch.tensor([row["nats"][n] for n in asked.names], dtype=torch.float64)
        for name, row in rows.items()
    }
    random = [values for name, values in losses.items() if name not in (INTACT, *owners)]
    owner_names = [owner_of(direction, masks, args.side) for direction in asked.directions]
    return Ablation(
        asked.directions,
        [int(rows[INTACT]["tokens"][name]) for name in asked.names],
        owners,
        [owners.index(owner) if owner in owners else None for owner in owner_names],
        losses[INTACT],
        torch.stack([losses[owner] for owner in owners]),
        torch.stack(random) if random else losses[INTACT].new_empty(0, len(asked.names)),
        asked.families,
    )


def _switched_off(
    args: argparse.Namespace, masks: NeuronMasks, chosen: Mapping[str, Neurons]
) -> dict[str, dict[str, Any]]:
    """Layer -> how many neurons it has, how many are switched off, and how distinctive they are."""
    from neuron_spec.studies.ablation.measure import held_by_others

    table = {}
    for layer, holders in held_by_others(masks, chosen, args.side).items():
        numbers = [int(neurons[layer].sum()) for neurons in chosen.values() if layer in neurons]
        table[layer] = {
            "neurons": masks.widths[layer],
            "switched_off": sum(numbers) / len(numbers),
            "held_by_others": holders,
        }
    return table
