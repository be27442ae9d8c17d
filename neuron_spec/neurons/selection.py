"""From activation counts to specialized neurons, and to the sets they are to be compared with.

`select` is the paper's method. `matched_random`, `intersection_of_all` and `other_direction` make
controls of its masks, `select_top_fraction` one of the counts; `only_side` leaves a side dense.

Axis letters: N directions, F ffn. True = kept.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from neuron_spec.artifacts import hash_text
from neuron_spec.directions import FROM_ENGLISH, INTO_ENGLISH, Direction, matching
from neuron_spec.errors import SelectionError
from neuron_spec.languages import by_family, is_pivot, language
from neuron_spec.neurons.activations import ActivationCounts, is_head_site, language_of, side_of
from neuron_spec.neurons.choices import DEFAULT_CORE, DEFAULT_K, NEURON_SETS, SIDES
from neuron_spec.neurons.masks import NeuronMasks

_EXPONENT = re.compile(r"e[+-]?[0-9_]{3}", re.IGNORECASE)
Percent = int | float | Fraction | str
Ks = Mapping[str, Sequence[Fraction]]  # side -> k of each direction
_HALF, _LOW = 32, 2**32 - 1  # of an int64: bits, and the lower ones
OTHER_DIRECTION_RULE = (
    "en->x and x->en apart, languages in the order of family and code; each takes the set of the language "
    "as many places on as the largest family has members, or of the next if there is one family"
)


def parse_k(value: Percent, name: str = "k") -> Fraction:
    """Read k, or another percentage called ``name``, exactly: ``95``, ``99.5``, as number or text.

    Raises:
        SelectionError: if it is not a number in (0, 100].
    """
    try:
        # 99.9 is meant, not the nearest binary number; an exponent beyond any percentage would take minutes.
        percent = Fraction(0 if _EXPONENT.search(str(value)) else str(value))
    except (ValueError, ZeroDivisionError):
        percent = Fraction(0)
    if not 0 < percent <= 100:
        raise SelectionError(f"bad {name}", got=repr(value), expected="a percentage in (0, 100], such as 95")
    return percent


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
        SelectionError: if no neuron was ever active, or these are no counts.
    """
    order = _most_active_first(counts)
    # Sums in two halves of 32 bits: exact where int64 would overflow, and far faster than Python's integers.
    high, low = (part.cumsum(0) for part in (counts[order] >> _HALF, counts[order] & _LOW))
    high, low = high + (low >> _HALF), low & _LOW
    total = (int(high[-1]) << _HALF) + int(low[-1])
    needed = math.ceil(k * total / 100)  # so that covered / total >= k / 100, in integers
    is_short = (high < needed >> _HALF) | ((high == needed >> _HALF) & (low < needed & _LOW))
    kept = torch.zeros_like(counts, dtype=torch.bool)
    kept[order[: int(is_short.sum()) + 1]] = True
    return kept


def top_fraction(counts: Tensor, percent: Fraction) -> Tensor:
    """The most active ``percent`` of the neurons, rounded up: what they cover plays no part. Ours.

    Args:
        counts: int64 ``[F]``; equal counts are taken in the order of their index, as in `cumulative`.
        percent: of F, in (0, 100].

    Returns:
        bool ``[F]``, True = kept.

    Raises:
        SelectionError: if no neuron was ever active, or these are no counts.
    """
    order = _most_active_first(counts)
    kept = torch.zeros_like(counts, dtype=torch.bool)
    kept[order[: math.ceil(percent * len(order) / 100)]] = True
    return kept


def always_active(counts: Tensor, tokens: Tensor, percent: Fraction) -> Tensor:
    """The neurons that are active on at least ``percent`` of the tokens of every direction: the core. Ours, after CMoE.

    arXiv 2502.04416 shares the neurons of high activation rate among all experts in the same way.

    Args:
        counts: int64 ``[N, F]``.
        tokens: that were looked at, int64 ``[N]``.
        percent: of them, in (0, 100].

    Returns:
        bool ``[F]``; perhaps none.
    """
    needed = [math.ceil(percent * count / 100) for count in tokens.tolist()]
    return (counts >= torch.tensor(needed).unsqueeze(1)).all(dim=0)


def _most_active_first(counts: Tensor) -> Tensor:
    """Places of neurons, int64 ``[F]``."""
    if counts.dtype != torch.int64 or counts.dim() != 1 or (counts < 0).any():
        raise SelectionError(
            "not the activation counts of a layer",
            got=f"{counts.dtype} {list(counts.shape)}" + (", some below 0" if (counts < 0).any() else ""),
            expected="torch.int64 [ffn], from 0",
        )
    if not counts.any():
        raise SelectionError("no neuron was active on any token", mend="profile a trained checkpoint")
    return counts.argsort(dim=0, descending=True, stable=True)  # stable: ties by index


def ks_per_direction(
    directions: Sequence[Direction],
    *,
    k: Percent = DEFAULT_K,
    encoder_k: Percent | None = None,
    decoder_k: Percent | None = None,
    k_for: Sequence[str] = (),
) -> dict[str, list[Fraction]]:
    """k of every direction, per side, for `select`.

    Args:
        k_for: such as ``en-*:decoder=90`` or ``de-en=99``; later ones win.

    Raises:
        SelectionError: if one cannot be read or k is out of range.
        DirectionError: if a pattern names no direction.

    Examples:
        >>> from neuron_spec import ks_per_direction, parse_directions
        >>> ks = ks_per_direction(parse_directions("en-de,de-en"), k=95, k_for=["en-*:decoder=90"])
        >>> {side: list(map(int, of_side)) for side, of_side in ks.items()}
        {'encoder': [95, 95], 'decoder': [90, 95]}
    """
    sides = {"encoder": encoder_k, "decoder": decoder_k}
    ks = {
        side: [parse_k(k if of_side is None else of_side)] * len(directions)
        for side, of_side in sides.items()
    }
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


def by_language(profile: ActivationCounts, layer: str) -> Tensor:
    """Counts of a layer summed over directions that share a language: the encoder's over directions with the
    same source, the decoder's over those with the same target. int64 ``[N, F]``, equal rows for equal
    languages, so that all else works as for directions."""
    counts, codes = profile.counts[layer], [language_of(direction, layer) for direction in profile.directions]
    distinct = list(dict.fromkeys(codes))
    rows = torch.tensor([distinct.index(code) for code in codes], device=counts.device)
    return counts.new_zeros(len(distinct), counts.size(1)).index_add_(0, rows, counts)[rows]


def select(
    profile: ActivationCounts, k: Percent | Ks = DEFAULT_K, *, neuron_sets: str = "direction"
) -> NeuronMasks:
    """Select the specialized neurons of every direction and layer: `cumulative`, section 4 of the paper.

    Args:
        k: percent, in (0, 100], for all, the paper's 95 by default; or what `ks_per_direction` returns, per side
            that of each direction.
        neuron_sets: ``direction`` (the paper: one set per direction) or ``language`` (the encoder's by
            source language, the decoder's by target language).

    Raises:
        SelectionError: if k is out of range or not one for each direction, a direction has no tokens, or a layer no
            activations.
        ArtifactError: if it is no profile.

    Examples:
        The three neurons of a layer were active on 9, 5 and 0 of ten tokens for German, and the other way round for
        Russian; to cover 60 % of all activations, German needs only its first neuron:

        >>> import torch
        >>> from neuron_spec import ActivationCounts, parse_directions, select
        >>> profile = ActivationCounts.zeros(parse_directions("en-de,en-ru"), {"decoder.layers.0": 3})
        >>> profile.counts["decoder.layers.0"] += torch.tensor([[9, 5, 0], [0, 5, 9]])
        >>> profile.tokens = {"encoder": torch.tensor([10, 10]), "decoder": torch.tensor([10, 10])}
        >>> select(profile, 60).kept["decoder.layers.0"].int().tolist()
        [[1, 0, 0], [0, 0, 1]]
        >>> select(profile, 95).kept["decoder.layers.0"].int().tolist()
        [[1, 1, 0], [0, 1, 1]]
    """
    ks = _ks(profile, k)
    k_percent = {side: dict(zip(profile.names, map(float, ks[side]), strict=True)) for side in SIDES}
    return _selected(
        profile,
        lambda counts, layer: map(cumulative, counts, ks[side_of(layer)]),
        method="cumulative",
        neuron_sets=neuron_sets,
        k_percent=k_percent,
    )


def select_shared_core(
    profile: ActivationCounts,
    k: Percent | Ks = DEFAULT_K,
    core_percent: Percent = DEFAULT_CORE,
    *,
    neuron_sets: str = "direction",
) -> NeuronMasks:
    """All directions keep the core (`always_active`); of the other neurons each keeps what `cumulative` would. Ours.

    Args:
        k: as for `select`, of the activations outside the core.
        core_percent: of the tokens, in (0, 100].
        neuron_sets: as for `select`.

    Raises:
        SelectionError: if a percentage is out of range, a direction has no tokens, or it is not known how many.
    """
    ks, core_share = _ks(profile, k), parse_k(core_percent, "core_percent")
    if not profile.knows_tokens:
        raise SelectionError(
            "what share of the tokens a neuron is active on is not known",
            got="--method shared-core, of counts that do not say of how many tokens they are, as the official code's",
            mend="count with neuron-spec profile, or choose another method",
        )

    def choose(counts: Tensor, layer: str) -> Iterable[Tensor]:
        core = always_active(profile.counts[layer], profile.tokens[side_of(layer)], core_share)
        outside = counts.masked_fill(core, 0)
        for row, of_row in zip(outside, ks[side_of(layer)], strict=True):
            yield core | (cumulative(row, of_row) if row.any() else torch.zeros_like(core))

    return _selected(
        profile,
        choose,
        method="shared-core",
        neuron_sets=neuron_sets,
        k_percent={side: dict(zip(profile.names, map(float, ks[side]), strict=True)) for side in SIDES},
        core_percent=float(core_share),
    )


def select_top_fraction(
    profile: ActivationCounts, percent: Percent, *, neuron_sets: str = "direction"
) -> NeuronMasks:
    """Control for the data deciding how many neurons: the same number for every direction. Ours.

    Args:
        percent: of each layer's neurons; see `top_fraction`.
        neuron_sets: as for `select`.

    Raises:
        SelectionError: if the percentage is out of range, a direction has no tokens, or a layer no activations.
    """
    share = parse_k(percent, "percent")
    return _selected(
        profile,
        lambda counts, layer: (top_fraction(row, share) for row in counts),
        method="top-fraction",
        neuron_sets=neuron_sets,
        fraction_percent=float(share),
    )


def _ks(profile: ActivationCounts, k: Percent | Ks) -> Ks:
    ActivationCounts.require(profile)
    ks = k if isinstance(k, Mapping) else ks_per_direction(profile.directions, k=k)
    expected = dict.fromkeys(SIDES, len(profile.directions))
    if (got := {side: len(of_side) for side, of_side in ks.items()}) != expected:
        raise SelectionError("not a k for each direction and side", got=got, expected=expected)
    return ks


def _selected(
    profile: ActivationCounts, choose: Callable[[Tensor, str], Iterable[Tensor]], **metadata: Any
) -> NeuronMasks:
    """Masks for the model and data that were profiled; ``choose`` has a layer's counts, int64 ``[N, F]``."""
    ActivationCounts.require(profile).require_tokens()
    if metadata["neuron_sets"] not in NEURON_SETS:
        raise SelectionError(
            "bad neuron_sets", got=repr(metadata["neuron_sets"]), expected=f"one of {', '.join(NEURON_SETS)}"
        )
    is_by_language = metadata["neuron_sets"] == "language"
    kept = {}
    for layer in profile.layers:  # pooled one at a time: all counts of many directions are gigabytes
        counts = by_language(profile, layer) if is_by_language else profile.counts[layer]
        kept[layer] = torch.stack(list(choose(counts, layer)))
    shared = ("checkpoint_sha256", "dictionary_sha256", "langs")
    metadata |= {key: profile.metadata[key] for key in shared if key in profile.metadata}
    return NeuronMasks(profile.directions, kept, metadata)


def matched_random(masks: NeuronMasks, seed: int) -> NeuronMasks:
    """Control for which neurons: as many per layer and direction as ``masks`` keep, drawn at random. Ours.

    Uniform without replacement. The draw depends on the seed, the layer and the name of the set (its
    direction, or its language if ``masks`` hold sets per language) alone, so that neither the order of
    directions or layers nor which others there are changes it. Not matched is how much the sets of two
    directions overlap: drawn apart, only by chance.
    """
    is_by_language = NeuronMasks.require(masks).metadata.get("neuron_sets") == "language"
    drawn = {}
    for layer, kept in masks.kept.items():
        owners = [language_of(d, layer) for d in masks.directions] if is_by_language else masks.names
        drawn[layer] = torch.zeros_like(kept)
        for row, owner in enumerate(owners):
            # 32 bits, for torch's CPU generator looks at no more. Of two draws the larger holds the smaller.
            generator = torch.Generator().manual_seed(int(hash_text(str(seed), layer, owner)[:8], 16))
            order = torch.randperm(kept.size(1), generator=generator)
            drawn[layer][row, order[: int(kept[row].sum())]] = True
    return _with(masks, drawn, method="matched-random", seed=seed)


def intersection_of_all(masks: NeuronMasks) -> NeuronMasks:
    """Control for specialization itself: only the neurons and heads that every direction keeps. Ours.

    Raises:
        SelectionError: if a site has none.
    """
    shared = {site: masks.kept[site].all(dim=0) for site in NeuronMasks.require(masks).sites}
    for site, row in shared.items():
        if not row.any():
            raise SelectionError(
                f"no {'head' if is_head_site(site) else 'neuron'} is kept for all directions",
                where=site,
                mend="choose a larger k, or fewer directions",
            )
    kept = {site: row.repeat(len(masks.directions), 1) for site, row in shared.items()}
    return _with(masks, kept, method="intersection-of-all")


def other_direction(masks: NeuronMasks, swap: Sequence[tuple[Direction, Direction]] = ()) -> NeuronMasks:
    """Control for whose neurons: each direction gets the set of another. Ours.

    Args:
        swap: pairs of directions that swap their sets, the others keeping their own; without any,
            `another_direction` rules. Its words, or "as named", and whose set each direction got stand in
            the metadata.

    Raises:
        SelectionError: if the sets are per language, so that directions share them; or as `another_direction`.
    """
    if NeuronMasks.require(masks).metadata.get("neuron_sets") == "language":
        raise SelectionError(
            "directions share their sets, so another's may be their own",
            got="sets per language",
            expected="sets per direction",
            mend="drop --neuron-sets language",
        )
    if swap:
        set_of = {d: d for d in masks.directions} | dict(swap) | {b: a for a, b in swap}
    else:
        set_of = another_direction(masks.directions)
    rows = masks.rows(set_of[d] for d in masks.directions)
    return _with(
        masks,
        {layer: kept[rows] for layer, kept in masks.kept.items()},
        method="other-direction",
        rule="as named" if swap else OTHER_DIRECTION_RULE,
        set_of={str(d): str(other) for d, other in set_of.items()},
    )


def another_direction(directions: Sequence[Direction]) -> dict[Direction, Direction]:
    """For each direction another one, of a different language family where possible. Ours.

    Directions out of English and into English are dealt with apart, so that English stays on its side.
    In each group the languages are put in the order of family and code, and each direction takes the one
    as many places further on, around the end, as the largest family has members (the next, if there is
    one family). So every direction is taken once and none takes itself; if no family holds more than half
    the languages, all families differ, and otherwise as many as can.

    Raises:
        SelectionError: if a direction has no English side, or is alone in its group.
    """
    if strange := [str(d) for d in directions if d.foreign is None or is_pivot(d.foreign)]:
        raise SelectionError(
            "no rule for directions without English",
            got=", ".join(strange),
            expected="directions into or out of English",
            mend="name pairs with --swap",
        )
    others: dict[Direction, Direction] = {}
    for of in (FROM_ENGLISH, INTO_ENGLISH):
        group = {str(d.foreign): d for d in directions if d.group == of}
        order = by_family(group)
        if len(order) == 1:
            raise SelectionError(
                "no other direction to take a set from",
                where=str(group[order[0]]),
                got="the only direction out of or into English",
                expected="two or more of a kind",
                mend="profile more directions",
            )
        largest = max(Counter(language(code).family for code in order).values(), default=0)
        step = largest if largest < len(order) else 1
        others |= {group[code]: group[order[(i + step) % len(order)]] for i, code in enumerate(order)}
    return {direction: others[direction] for direction in directions}


def parse_swap(text: str, directions: Sequence[Direction]) -> list[tuple[Direction, Direction]]:
    """Read ``en-de:en-ru,de-en:ru-en``, pairs of directions.

    Raises:
        SelectionError: if a pair cannot be read, or a direction is not among ``directions`` or named twice.
        DirectionError: if a direction is malformed.
    """
    pairs = []
    for part in text.split(","):
        first, colon, second = part.partition(":")
        if not colon:
            raise SelectionError(
                "malformed --swap", got=repr(part), expected="pairs of directions, such as 'en-de:en-ru'"
            )
        pairs.append((Direction.parse(first), Direction.parse(second)))
    named = [direction for pair in pairs for direction in pair]
    if unknown := [str(d) for d in named if d not in directions]:
        raise SelectionError(
            "--swap names directions without a profile",
            got=", ".join(unknown),
            expected=f"some of {', '.join(map(str, directions))}",
        )
    if twice := sorted({str(d) for d in named if named.count(d) > 1}):
        raise SelectionError("--swap names a direction twice", got=", ".join(twice), expected="each once")
    return pairs


def only_side(masks: NeuronMasks, side: str) -> NeuronMasks:
    """Leave the other side dense: its layers keep all neurons for every direction. Ours.

    Args:
        side: ``encoder`` or ``decoder``, the side whose sets stay.

    Raises:
        SelectionError: if it is another word.
    """
    if side not in SIDES:
        raise SelectionError("not a side", got=repr(side), expected=f"one of {', '.join(SIDES)}")
    sets = NeuronMasks.require(masks).kept
    kept = {layer: rows if side_of(layer) == side else torch.ones_like(rows) for layer, rows in sets.items()}
    k_percent = masks.metadata.get("k_percent")
    return _with(masks, kept, only_side=side, **({"k_percent": {side: k_percent[side]}} if k_percent else {}))


def _with(masks: NeuronMasks, kept: dict[str, Tensor], **metadata: Any) -> NeuronMasks:
    return replace(masks, kept=kept, metadata={**masks.metadata, **metadata})
