"""Select each direction's specialized neurons, or the sets of a control to compare them with.

examples:
  neuron-spec select profile.safetensors --output masks.safetensors
  neuron-spec select profile.safetensors --output masks.safetensors --k 90 --k-for 'en-*:decoder=95'
  neuron-spec select profile.safetensors --output random.safetensors --method matched-random --seed 2
  neuron-spec select profile.safetensors --output encoder.safetensors --only-side encoder
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from math import gcd
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neuron_spec.arguments import add_output_with_summary, input_file, seed
from neuron_spec.errors import SelectionError
from neuron_spec.neurons.choices import DEFAULT_CORE, DEFAULT_K, METHODS, NEURON_SETS, SIDES, SUMMARY_MARK

if TYPE_CHECKING:
    from neuron_spec.neurons.activations import ActivationCounts
    from neuron_spec.neurons.choices import Part

DEFAULT_SEED = 1

_COVERING = ("cumulative", "shared-core", "matched-random", "intersection-of-all", "other-direction")
# Which methods look at a flag; all look at the others.
_METHODS_OF = {
    **dict.fromkeys(("k", "encoder_k", "decoder_k", "k_for"), _COVERING),
    "fraction": ("top-fraction",),
    "core": ("shared-core",),
    "seed": ("matched-random",),
    "swap": ("other-direction",),
}
# What makes masks other masks; the rest of the metadata follows from these and the profile.
_PARAMETERS = (
    "method",
    "neuron_sets",
    "k_percent",
    "core_percent",
    "fraction_percent",
    "seed",
    "set_of",
    "only_side",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "profile", type=input_file("profile"), nargs="+", help="profile.safetensors; several are added up"
    )
    add_output_with_summary(parser, "masks.safetensors", SUMMARY_MARK)
    parser.add_argument(
        "--method",
        choices=METHODS,
        default=next(iter(METHODS)),
        help="; ".join(f"{name}: {text}" for name, text in METHODS.items()) + " (default %(default)s)",
    )
    parser.add_argument("--k", metavar="PERCENT", help=f"coverage (default {DEFAULT_K})")
    parser.add_argument("--encoder-k", metavar="PERCENT", help="k of the encoder layers")
    parser.add_argument("--decoder-k", metavar="PERCENT", help="k of the decoder layers")
    parser.add_argument(
        "--k-for",
        action="append",
        default=[],
        metavar="PATTERN[:SIDE]=PERCENT",
        help="k of some directions, such as 'en-*:decoder=90'; may be given again, later ones win",
    )
    parser.add_argument(
        "--fraction", metavar="PERCENT", help="top-fraction: of each layer's neurons, such as 75; rounded up"
    )
    parser.add_argument(
        "--core",
        metavar="PERCENT",
        help="shared-core: the neurons active on so many of every direction's tokens are kept for all "
        f"(default {DEFAULT_CORE})",
    )
    parser.add_argument(
        "--seed", type=seed, metavar="N", help=f"matched-random: of the draw (default {DEFAULT_SEED})"
    )
    parser.add_argument(
        "--swap",
        metavar="en-de:en-ru,...",
        help="other-direction: these pairs swap their sets, the others keep their own "
        "(default: each takes the set of another family)",
    )
    parser.add_argument(
        "--neuron-sets",
        choices=NEURON_SETS,
        default=NEURON_SETS[0],
        help="a set per direction, or per language: the encoder's by source, the decoder's by target",
    )
    parser.add_argument(
        "--only-side", choices=SIDES, help="select in this side's layers; the other side keeps all neurons"
    )


def run(args: argparse.Namespace) -> None:
    from neuron_spec.artifacts import completed, hash_file, signature
    from neuron_spec.neurons import selection
    from neuron_spec.neurons.activations import ActivationCounts
    from neuron_spec.neurons.masks import NeuronMasks

    _require_flags_that_combine(args)
    given = {name: getattr(args, name) for name in ("k", "encoder_k", "decoder_k")}
    ks = {name: selection.parse_k(text) for name, text in given.items() if text is not None}
    fraction = None if args.fraction is None else selection.parse_k(args.fraction, "--fraction")
    profiles = [ActivationCounts.load(path) for path in args.profile]
    profile = sum(profiles[1:], start=profiles[0])
    _require_other_tokens(args.profile, profiles)
    swap = [] if args.swap is None else selection.parse_swap(args.swap, profile.directions)

    if fraction is not None:
        masks = selection.select_top_fraction(profile, fraction, neuron_sets=args.neuron_sets)
    else:
        k_of = selection.ks_per_direction(profile.directions, k_for=args.k_for, **ks)
    if args.method == "shared-core":
        core = selection.parse_k(DEFAULT_CORE if args.core is None else args.core, "--core")
        masks = selection.select_shared_core(profile, k_of, core, neuron_sets=args.neuron_sets)
    elif fraction is None:
        masks = selection.select(profile, k_of, neuron_sets=args.neuron_sets)
    if args.only_side:
        masks = selection.only_side(masks, args.only_side)
    # Sets that keep all neurons come out of each of these as they are.
    if args.method == "matched-random":
        masks = selection.matched_random(masks, DEFAULT_SEED if args.seed is None else args.seed)
    elif args.method == "intersection-of-all":
        masks = selection.intersection_of_all(masks)
    elif args.method == "other-direction":
        masks = selection.other_direction(masks, swap)

    # Several profiles may have one name, and their sum does not depend on their order.
    hashes: dict[str, list[str]] = {}
    for path in args.profile:
        hashes.setdefault(f"profile {path.name}", []).append(hash_file(path))
    masks.metadata["signature"] = signature(
        "select",
        inputs={name: "+".join(sorted(of_name)) for name, of_name in hashes.items()},
        parameters={key: masks.metadata[key] for key in _PARAMETERS if key in masks.metadata},
    )
    if completed(args.output, masks.metadata["signature"], what="mask file"):
        masks = NeuronMasks.load(args.output)
    else:
        masks.save(args.output)
    print(f"{'dropped neurons, percent':<26}{'min':>8}{'mean':>8}{'max':>8}", file=sys.stderr)
    for layer, dropped in masks.sparsity().items():
        low, mean, high = (100 * float(v) for v in (dropped.min(), dropped.mean(), dropped.max()))
        print(f"{layer:<26}{low:>8.1f}{mean:>8.1f}{high:>8.1f}", file=sys.stderr)
    print(args.output)


def _require_flags_that_combine(args: argparse.Namespace) -> None:
    """Raises: SelectionError if a flag would change nothing, or one is missing."""
    for name, methods in _METHODS_OF.items():
        if getattr(args, name) not in (None, []) and args.method not in methods:
            flag = f"--{name.replace('_', '-')}"
            raise SelectionError(
                f"{flag} changes nothing here",
                got=f"--method {args.method}",
                expected=f"--method {', '.join(methods)}",
                mend=f"drop {flag}, or choose such a method",
            )
    if args.method == "top-fraction" and args.fraction is None:
        raise SelectionError("how many neurons?", got="--method top-fraction", mend="pass --fraction PERCENT")
    if None not in (args.k, *(getattr(args, f"{side}_k") for side in SIDES)):
        raise SelectionError(
            "--k changes nothing here", got="--k, --encoder-k and --decoder-k", mend="drop one of the three"
        )
    for side in SIDES if args.only_side else ():
        flags = [f"--k-for {text}" for text in args.k_for if text.partition("=")[0].endswith(f":{side}")]
        flags += [] if getattr(args, f"{side}_k") is None else [f"--{side}-k"]
        if flags and side != args.only_side:
            raise SelectionError(
                f"a k of the {side} changes nothing here",
                got=f"--only-side {args.only_side}, and {flags[0]}",
                mend="drop one of the two",
            )


def _require_other_tokens(paths: Sequence[Path], profiles: Sequence[ActivationCounts]) -> None:
    """Raises: SelectionError if profiles that are to be added up count a sentence twice, as far as they say what they count."""
    from neuron_spec.neurons.stability import part_of

    seen: list[tuple[Path, Any, Part]] = []
    for path, profile in zip(paths, profiles, strict=True):
        signed, part = profile.metadata.get("signature") or {}, part_of(profile)
        text = signed.get("inputs"), {**signed.get("parameters", {}), "part": None}
        for other, other_text, other_part in seen if signed else ():
            # Parts i/n and j/m have a sentence in common if i and j leave one remainder, divided by what divides n and m.
            if text == other_text and (part.number - other_part.number) % gcd(part.of, other_part.of) == 0:
                raise SelectionError(
                    "sentences are counted twice: profiles of the same text are not added up",
                    where=f"{other}, {path}",
                    got=f"parts {other_part} and {part} of it",
                    expected="profiles of other text, or parts without a sentence in common, such as 1/2 and 2/2",
                    mend="give each profile once",
                )
        seen.append((path, text, part))
