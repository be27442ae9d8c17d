"""Sets of new directions beside those that are there, which stay as they are, bit for bit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

import torch

from neuron_spec.directions import Direction
from neuron_spec.errors import ModelError, SelectionError
from neuron_spec.neurons.activations import ActivationCounts
from neuron_spec.neurons.choices import SIDES
from neuron_spec.neurons.counting import REAL_TOKENS
from neuron_spec.neurons.masks import NeuronMasks
from neuron_spec.neurons.selection import Percent, ks_per_direction, only_side, parse_k, select


def add_directions(
    masks: NeuronMasks,
    profile: ActivationCounts,
    directions: Sequence[Direction] | None = None,
    *,
    k: Percent | None = None,
) -> NeuronMasks:
    """The masks with those of new directions, selected as they were: by `selection.select`, with their k, per direction.

    Whether the profile is of the masks' model is the caller's to know, but for its layers and widths.

    Args:
        directions: which of the profile's (default: all).
        k: percent; None: that of the masks, per side.

    Raises:
        SelectionError: if a direction has masks already, or the masks were selected in another way, or with another k
            than the one given or with none that is known; or if the profile is of part of a set, or counts padding.
        ModelError: if the masks are of attention heads too, or the profile is of another model.
        DirectionError: if the profile does not have a direction.
    """
    asked = list(profile.directions if directions is None else directions)
    if twice := [str(direction) for direction in asked if direction in masks.directions]:
        raise SelectionError(
            "directions that have masks already, which adding leaves as they are",
            got=", ".join(twice),
            expected="new directions",
            mend="name the new ones with --lang-pairs, or select all of them again",
        )
    _require_whole(profile)
    if masks.head_sites:
        raise ModelError(
            "a profile has no attention heads, of which these masks are too",
            got=", ".join(masks.head_sites[:3]),
            expected="masks of neurons alone",
        )
    counts = profile.of(asked)
    masks.require_fit(counts.widths, mend="profile the model that the masks are of")
    made = masks.metadata
    method, neuron_sets = made.get("method"), made.get("neuron_sets", "direction")
    if method not in (None, "cumulative") or neuron_sets != "direction":
        raise SelectionError(
            "new directions are selected as those that are there, and of these masks that cannot be",
            got=f"--method {method}"
            if neuron_sets == "direction"
            else f"--neuron-sets {neuron_sets}, which share",
            expected="masks of --method cumulative, a set per direction",
        )
    known = {side: {*map(str, of.values())} for side, of in made.get("k_percent", {}).items()}
    ks = _ks(known, k, only=made.get("only_side"))
    added = select(counts, ks_per_direction(asked, encoder_k=ks["encoder"], decoder_k=ks["decoder"]))
    if side := made.get("only_side"):
        added = only_side(added, side)
    k_percent = {
        side: {**made.get("k_percent", {}).get(side, {}), **of}
        for side, of in added.metadata["k_percent"].items()
    }
    kept = {layer: torch.cat([masks.kept[layer], added.kept[layer]]) for layer in masks.layers}
    metadata: dict[str, Any] = {**made, "k_percent": k_percent}
    return NeuronMasks([*masks.directions, *asked], kept, metadata)


def _require_whole(profile: ActivationCounts) -> None:
    """Raises: SelectionError if the profile counts part of its set, or padding: other counts than the masks are from."""
    counted = (profile.metadata.get("signature") or {}).get("parameters", {}).get("counted", REAL_TOKENS)
    part = profile.metadata.get("part")
    if part is not None or counted != REAL_TOKENS:
        raise SelectionError(
            "new directions are selected from all of a set, as those that are there",
            got=f"a profile of part {part}" if part is not None else f"a profile of {counted}",
            expected=f"one of {REAL_TOKENS}, of the whole set",
            mend="profile them without --part and --count-padding, or select all directions again",
        )


def _ks(known: Mapping[str, set[str]], k: Percent | None, *, only: str | None) -> dict[str, Fraction]:
    """Side -> k: the one that is known, which the one given has to be."""
    if not known and k is None:
        raise SelectionError(
            "with which k? The masks do not say with which they were selected", mend="give --k PERCENT"
        )
    given = None if k is None else parse_k(k)
    ks = {}
    for side in SIDES:
        of_side = {parse_k(value) for value in known.get(side, ())}
        if only not in (None, side):
            ks[side] = Fraction(100)  # left dense
        elif given is None and len(of_side) == 1:
            (ks[side],) = of_side
        elif given is not None and (given in of_side or not known):
            ks[side] = given
        else:
            raise SelectionError(
                "with which k?" if given is None else "another k than that of the masks",
                where=f"{side} layers",
                got="several in the masks" if given is None else f"--k {float(given):g}",
                expected=f"one of {', '.join(f'{float(value):g}' for value in sorted(of_side))}",
                mend="give --k PERCENT" if given is None else "leave --k out, or select all directions again",
            )
    return ks
