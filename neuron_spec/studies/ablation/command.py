"""Switch off each direction's specialized neurons and measure what every direction loses: are the sets
functional, or only correlated? By default the distinctive neurons, those that the fewest others hold.

One validation pass per set, one intact, one per random control; a killed run goes on where it stopped.
Writes ablation.md, ablation.json, ablation.csv and a figure (PNG and SVG).

example:
  neuron-spec ablate DATA_BIN --path dense.pt --masks masks.safetensors --output ablation
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from neuron_spec.directions import Direction
    from neuron_spec.neurons.masks import NeuronMasks
    from neuron_spec.studies.ablation.measure import Ablator, Neurons
    from neuron_spec.studies.ablation.page import Ablation

DEFAULT_FRACTION = 0.05
ROWS = "rows"
INTACT = "intact"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "data_bin", type=Path, help="fairseq data-bin; of a sharded one, the first shard with the text"
    )
    parser.add_argument("--path", type=Path, required=True, metavar="FILE", help="the checkpoint")
    parser.add_argument("--masks", type=Path, required=True, metavar="FILE", help="masks.safetensors")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    parser.add_argument("--gen-subset", default="valid", metavar="NAME", help="the subset to measure on")
    parser.add_argument(
        "--lang-pairs",
        metavar="de-en,...",
        help="which directions are evaluated, and whose neurons switched off (default: those of the masks)",
    )
    parser.add_argument(
        "--ablate",
        choices=("distinctive", "whole"),
        default="distinctive",
        help="of each set the neurons that the fewest other sets hold, or all of them",
    )
    number = parser.add_mutually_exclusive_group()
    number.add_argument(
        "--fraction",
        type=_fraction,
        metavar="X",
        help=f"how many distinctive neurons, of each layer's, 0 to 1 (default {DEFAULT_FRACTION:g})",
    )
    number.add_argument("--count", type=_number, metavar="N", help="how many distinctive neurons per layer")
    parser.add_argument("--side", choices=("both", "encoder", "decoder"), default="both", help="whose layers")
    parser.add_argument(
        "--random-draws",
        type=_number,
        default=3,
        metavar="N",
        help="controls with as many random neurons per layer (default %(default)s)",
    )
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="of random neurons and tests")
    parser.add_argument("--max-tokens", type=int, default=4000, metavar="N", help="tokens per batch")
    parser.add_argument(
        "--allow-other-checkpoint",
        action="store_true",
        help="accept masks that were profiled on another dense checkpoint",
    )
    parser.add_argument("--cpu", action="store_true", help="do not use a GPU")
    precision = parser.add_mutually_exclusive_group()
    for name in ("fp16", "bf16"):
        precision.add_argument(
            f"--{name}",
            dest="dtype",
            action="store_const",
            const=name,
            default="fp32",
            help=f"run the model in {name}, not fp32",
        )


def _fraction(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a fraction from 0 to 1")
    return value


def _number(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not 0 or more")
    return int(text)


def run(args: argparse.Namespace) -> None:
    from neuron_spec.artifacts import hash_file, hash_state, is_already_here, read_json, signature
    from neuron_spec.backends.fairseq.checkpoints import (
        is_specialized,
        masks_of,
        read_checkpoint,
        task_args,
        weights_sha256,
    )
    from neuron_spec.backends.fairseq.data_bin import check_data_bin, data_sha256
    from neuron_spec.corpora.build import card_of
    from neuron_spec.neurons.masks import NeuronMasks
    from neuron_spec.studies.ablation.measure import draw_random, measure
    from neuron_spec.studies.ablation.page import ABLATION_JSON, ABLATION_TABLE, write_ablation

    state = read_checkpoint(args.path)
    trained = task_args(state, args.path)
    masks = NeuronMasks.load(args.masks)
    _require_fit(args, masks, state)
    directions = _directions(args, masks, trained.langs)
    check_data_bin(args.data_bin, trained.langs, args.gen_subset, directions)
    chosen = _chosen(args, masks, directions)
    ablations = {INTACT: {}, **chosen, **draw_random(chosen, args.random_draws, args.seed)}

    inputs = {
        "checkpoint": weights_sha256(state),
        "checkpoint's masks": hash_state(masks_of(state)),
        "data": data_sha256(args.data_bin, args.gen_subset, directions),
    }
    parameters = {
        "subset": args.gen_subset,
        "directions": [str(direction) for direction in directions],
        "dtype": args.dtype,
    }

    def sign(neurons: Neurons) -> dict[str, Any]:
        return signature(
            "ablation row", inputs={**inputs, "switched off": hash_state(neurons)}, parameters=parameters
        )

    families = (card_of(args.data_bin) or {}).get("families")
    made = signature(
        "ablate",
        inputs={**inputs, "masks": hash_file(args.masks)},
        parameters={
            **parameters,
            "checkpoint": "specialized" if is_specialized(state) else "dense",
            "ablate": args.ablate,
            "side": args.side,
            "seed": args.seed,
            "random_draws": args.random_draws,
            "families": families or "language table",
            **({} if args.ablate == "whole" else _how_many(args)),
        },
    )
    done = args.output / ABLATION_JSON
    found = read_json(done, "ablation").get("signature", {}) if done.is_file() else None
    if is_already_here(args.output, found, made, what="ablation"):
        print(f"{args.output}: complete already", file=sys.stderr)
    else:
        rows = measure(ablations, args.output / ROWS, sign, lambda: _load(args, trained, masks, directions))
        ablation = _ablation(args, masks, directions, list(chosen), rows, families)
        write_ablation(args.output, ablation, _switched_off(args, masks, chosen), made, seed=args.seed)
    print(args.output / ABLATION_TABLE)


def _how_many(args: argparse.Namespace) -> dict[str, Any]:
    if args.count is not None:
        return {"count": args.count}
    return {"fraction": DEFAULT_FRACTION if args.fraction is None else args.fraction}


def _require_fit(args: argparse.Namespace, masks: NeuronMasks, state: dict[str, Any]) -> None:
    """Raises: ModelError if the masks are of a model of another shape, or of another dense checkpoint."""
    from neuron_spec.backends.fairseq.checkpoints import is_specialized, weights_sha256
    from neuron_spec.errors import ModelError

    end = ".fc1.weight"
    masks.require_fit(
        {key.removesuffix(end): len(value) for key, value in state["model"].items() if key.endswith(end)},
        where=args.masks,
    )
    profiled = masks.metadata.get("checkpoint_sha256")
    if profiled is None or args.allow_other_checkpoint or is_specialized(state):
        return  # a specialized checkpoint has moved on from the one that was profiled
    if (found := weights_sha256(state)) != profiled:
        raise ModelError(
            "the masks are from the profile of another checkpoint",
            where=args.masks,
            got=f"weights {found[:12]} in --path {args.path}",
            expected=f"weights {profiled[:12]}",
            mend="name the checkpoint that was profiled, or pass --allow-other-checkpoint",
        )


def _directions(args: argparse.Namespace, masks: NeuronMasks, langs: Sequence[str]) -> list[Direction]:
    """Which directions are evaluated.

    Raises:
        NeuronSpecError: if one has no masks, or a language that the checkpoint does not know, or there is
            nothing to compare.
    """
    from neuron_spec.directions import direction_id, parse_directions
    from neuron_spec.errors import DirectionError
    from neuron_spec.neurons.overlap import NothingToCompare

    directions = parse_directions(args.lang_pairs) if args.lang_pairs else masks.directions
    for direction in directions:
        direction_id(direction, langs)
    if missing := [str(direction) for direction in directions if direction not in masks.directions]:
        raise DirectionError(
            "directions without masks",
            where=args.masks,
            got=", ".join(missing),
            expected=f"some of {', '.join(map(str, masks.directions))}",
            mend="name fewer --lang-pairs, or profile and select these too",
        )
    if len(directions) < 2:
        raise NothingToCompare(
            "an ablation compares directions: there is nothing to compare",
            got=str(directions[0]),
            expected="two directions or more",
        )
    return directions


def _chosen(
    args: argparse.Namespace, masks: NeuronMasks, directions: Sequence[Direction]
) -> dict[str, Neurons]:
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
    codes = {code for direction in directions for code in (direction.source, direction.target)}
    names = codes | set(map(str, directions))
    return {owner: neurons for owner, neurons in chosen.items() if owner in names}


def _load(
    args: argparse.Namespace,
    trained: argparse.Namespace,
    masks: NeuronMasks,
    directions: Sequence[Direction],
) -> Ablator:
    from neuron_spec.backends.fairseq.checkpoints import token_flags
    from neuron_spec.backends.fairseq.profiling import DTYPES
    from neuron_spec.studies.ablation.measure import Ablator

    return Ablator(
        args.path,
        args.data_bin,
        directions,
        args.gen_subset,
        token_flags=token_flags(trained),
        dictionary_sha256=masks.metadata.get("dictionary_sha256"),
        max_tokens=args.max_tokens,
        dtype=DTYPES[args.dtype],
        cpu=args.cpu,
    )


def _ablation(
    args: argparse.Namespace,
    masks: NeuronMasks,
    directions: Sequence[Direction],
    owners: list[str],
    rows: Mapping[str, Mapping[str, Mapping[str, float]]],
    families: Mapping[str, str] | None,
) -> Ablation:
    import torch

    from neuron_spec.studies.ablation.measure import owner_of
    from neuron_spec.studies.ablation.page import Ablation

    names = [str(direction) for direction in directions]
    nats = {
        name: torch.tensor([row["nats"][n] for n in names], dtype=torch.float64) for name, row in rows.items()
    }
    draws = [values for name, values in nats.items() if name not in (INTACT, *owners)]
    own = [owner_of(direction, masks, args.side) for direction in directions]
    return Ablation(
        directions,
        [int(rows[INTACT]["tokens"][name]) for name in names],
        owners,
        [owners.index(owner) if owner in owners else None for owner in own],
        nats[INTACT],
        torch.stack([nats[owner] for owner in owners]),
        torch.stack(draws) if draws else nats[INTACT].new_empty(0, len(names)),
        families,
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
