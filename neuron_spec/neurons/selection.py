"""From activation counts to specialized neurons.

Axis letters: N directions, F ffn. True = kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction

import torch
from torch import Tensor

from neuron_spec.directions import Direction, matching
from neuron_spec.errors import SelectionError
from neuron_spec.neurons.activations import SIDES, ActivationCounts, side_of
from neuron_spec.neurons.masks import NeuronMasks

DEFAULT_K = Fraction(95)
NEURON_SETS = ("direction", "language")


def parse_k(text: str) -> Fraction:
    """Read k, a percentage, exactly: ``95``, ``99.5``.

    Raises:
        SelectionError: if it is not a number in (0, 100].
    """
    try:
        k = Fraction(text)
    except (ValueError, ZeroDivisionError):
        k = Fraction(0)
    if not 0 < k <= 100:
        raise SelectionError("bad k", got=repr(text), expected="a percentage in (0, 100], such as 95")
    return k


def cumulative(counts: Tensor, k: Fraction) -> Tensor:
    """The fewest most-active neurons that together cover k percent of all activations.

    Section 4 of the paper: sort by count, keep the smallest prefix whose sum is at least k percent of
    the total. Sums are compared as integers, so no rounding decides; neurons with equal counts are taken
    in the order of their index, so the same counts always give the same sets.

    Args:
        counts: int64 ``[F]``.
        k: percent, in (0, 100].

    Returns:
        bool ``[F]``, True = kept.

    Raises:
        SelectionError: if no neuron was ever active.
    """
    values = counts.tolist()
    total = sum(values)
    if total == 0:
        raise SelectionError("no neuron was active on any token", mend="profile a trained checkpoint")
    order = sorted(range(len(values)), key=lambda i: -values[i])
    kept = torch.zeros(len(values), dtype=torch.bool)
    covered = 0
    for index in order:
        # covered / total >= k / 100, in integers
        if covered * 100 * k.denominator >= k.numerator * total:
            break
        kept[index] = True
        covered += values[index]
    return kept


def ks_per_direction(
    directions: Sequence[Direction],
    *,
    k: Fraction = DEFAULT_K,
    encoder_k: Fraction | None = None,
    decoder_k: Fraction | None = None,
    k_for: Sequence[str] = (),
) -> dict[str, list[Fraction]]:
    """k of every direction, per side.

    Args:
        k_for: such as ``en-*:decoder=90`` or ``de-en=99``; later ones win.

    Raises:
        SelectionError: if one cannot be read or k is out of range.
        DirectionError: if a pattern names no direction.
    """
    sides = {"encoder": encoder_k, "decoder": decoder_k}
    ks = {side: [k if own is None else own for _ in directions] for side, own in sides.items()}
    for text in k_for:
        left, equals, value = text.partition("=")
        pattern, _, side = left.partition(":")
        if not equals or side not in ("", *SIDES):
            raise SelectionError(
                "malformed --k-for",
                got=text,
                expected="PATTERN[:encoder|:decoder]=K, such as 'en-*:decoder=90'",
            )
        for direction in matching(pattern, directions):
            for chosen in (side,) if side else SIDES:
                ks[chosen][directions.index(direction)] = parse_k(value)
    return ks


def by_language(profile: ActivationCounts) -> dict[str, Tensor]:
    """Counts summed over directions that share a language: the encoder's over directions with the same
    source, the decoder's over those with the same target. int64 ``[N, F]`` per layer, equal rows for
    equal languages, so that all else works as for directions."""
    languages = {
        "encoder": [d.source for d in profile.directions],
        "decoder": [d.target for d in profile.directions],
    }
    pooled = {}
    for layer, counts in profile.counts.items():
        codes = languages[side_of(layer)]
        same = torch.tensor([[a == b for b in codes] for a in codes], dtype=torch.int64)
        pooled[layer] = same @ counts
    return pooled


def select(
    profile: ActivationCounts, ks: Mapping[str, Sequence[Fraction]], *, neuron_sets: str = "direction"
) -> NeuronMasks:
    """Select the specialized neurons of every direction and layer.

    Args:
        ks: per side, k of each direction: what `ks_per_direction` returns.
        neuron_sets: ``direction`` (the paper: one set per direction) or ``language`` (the encoder's by
            source language, the decoder's by target language).

    Raises:
        SelectionError: if a direction has no tokens, or a layer no activations.
    """
    profile.require_tokens()
    counts = by_language(profile) if neuron_sets == "language" else profile.counts
    kept = {
        layer: torch.stack(
            [cumulative(row, k) for row, k in zip(counts[layer], ks[side_of(layer)], strict=True)]
        )
        for layer in profile.layers
    }
    names = [str(direction) for direction in profile.directions]
    metadata = {
        "method": "cumulative",
        "neuron_sets": neuron_sets,
        "k_percent": {side: {n: float(k) for n, k in zip(names, ks[side], strict=True)} for side in SIDES},
    }
    for key in ("checkpoint_sha256", "dictionary_sha256", "langs"):
        if key in profile.metadata:
            metadata[key] = profile.metadata[key]
    return NeuronMasks(profile.directions, kept, metadata)
