"""Whether the same neurons are selected again from other data: sets from several profiles of one checkpoint.

The other data may be another set of sentences, or the other half of one set. Ours: the paper selects once.
Axis letters: N directions, B sentences, F ffn. True = kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import torch
from torch import Tensor

from neuron_spec.errors import ArtifactError, SelectionError
from neuron_spec.neurons.activations import ActivationCounts
from neuron_spec.neurons.choices import SIDES, WHOLE, Part
from neuron_spec.neurons.masks import NeuronMasks
from neuron_spec.neurons.overlap import Compared, chance_iou, pairwise_iou
from neuron_spec.neurons.selection import only_side, select, select_top_fraction
from neuron_spec.statistics import NothingToCompare


def part_of(profile: ActivationCounts) -> Part:
    """Which part of its data set a profile counts."""
    return Part.parse(profile.metadata.get("part", str(WHOLE)))


def are_split(profiles: Sequence[ActivationCounts]) -> bool:
    """Whether they count different parts, all n-ths, of one and the same set in the same way.

    Split halves, if the n-ths are halves. Profiles that do not say how they were made are none.
    """
    parts = [part_of(profile) for profile in profiles]
    signatures = [profile.metadata.get("signature", {}) for profile in profiles]
    sets = [(of.get("inputs"), {**of.get("parameters", {}), "part": None}) for of in signatures]
    is_one_set = all(signatures) and all(of == sets[0] for of in sets)
    return is_one_set and len({part.of for part in parts}) == 1 and len(set(parts)) == len(parts) > 1


def select_again(masks: NeuronMasks, profile: ActivationCounts, where: object = None) -> NeuronMasks:
    """The sets that another profile gives for the directions of ``masks``, selected as they were.

    Such as a profile of other sentences: do these select the same neurons? Directions that ``masks`` do not hold are left out of the profile.

    Args:
        where: names the profile in messages.

    Raises:
        ArtifactError: if the profile is of another checkpoint, lacks directions, or has other layers or
            widths.
        SelectionError: if ``masks`` do not say how they were selected, or not from counts alone; or if a
            direction has no tokens.

    Examples:
        >>> import torch
        >>> from neuron_spec import ActivationCounts, overlap_of, parse_directions, select, select_again
        >>> first = ActivationCounts.zeros(parse_directions("en-de"), {"decoder.layers.0": 3})
        >>> other = ActivationCounts.zeros(parse_directions("en-de"), {"decoder.layers.0": 3})
        >>> for profile, counts in ((first, [9, 5, 0]), (other, [9, 0, 5])):
        ...     profile.counts["decoder.layers.0"] += torch.tensor(counts)
        ...     for tokens in profile.tokens.values():
        ...         tokens += 10
        >>> masks = select(first, 90)
        >>> round(overlap_of(masks, other=select_again(masks, other)).item(), 2)  # of three neurons, one in common
        0.33
    """
    ActivationCounts.require(profile)
    NeuronMasks.require(masks)
    checkpoints = [artefact.metadata.get("checkpoint_sha256") for artefact in (masks, profile)]
    if None not in checkpoints and checkpoints[0] != checkpoints[1]:
        raise ArtifactError(
            "a profile of another checkpoint than the masks",
            where=where,
            got=checkpoints[1],
            expected=checkpoints[0],
            mend="profile the checkpoint that the masks were made for",
        )
    if missing := profile.missing(masks.directions):
        raise ArtifactError(
            "a profile without directions that have masks",
            where=where,
            got=", ".join(profile.names),
            expected=f"also {', '.join(missing)}",
            mend="profile these --lang-pairs too",
        )
    if profile.widths != masks.widths:
        raise ArtifactError(
            "a profile with other layers or widths than the masks",
            where=where,
            got=profile.widths,
            expected=masks.widths,
        )
    profile = profile.of(masks.directions)
    metadata = masks.metadata
    method, sets = metadata.get("method"), metadata.get("neuron_sets", "direction")
    if method == "cumulative" and "k_percent" in metadata:
        # The dense side of one-sided masks has no k; what is selected there is replaced below.
        ks = {
            side: [Fraction(str(metadata["k_percent"].get(side, {}).get(name, 100))) for name in masks.names]
            for side in SIDES
        }
        again = select(profile, ks, neuron_sets=sets)
    elif method == "top-fraction":
        again = select_top_fraction(profile, Fraction(str(metadata["fraction_percent"])), neuron_sets=sets)
    else:
        raise SelectionError(
            "these masks cannot be selected again from another profile",
            got=f"method {method or 'unknown'}",
            expected="masks by neuron-spec select, method cumulative or top-fraction",
            mend="analyze the masks they were made from, or drop --profile",
        )
    return only_side(again, metadata["only_side"]) if "only_side" in metadata else again


def iou_per_direction(first: Tensor, second: Tensor) -> Tensor:
    """IoU of each direction's set with its own other set.

    Args:
        first, second: bool `[N, F]`, True = kept.

    Returns:
        float64 `[N]`, a fraction; two empty sets count as equal (1).
    """
    return pairwise_iou(first, second).diagonal()


def iou_with_other_languages(first: Tensor, second: Tensor, compared: Compared) -> float:
    """Mean IoU (fraction) of one profile's set for a language with another profile's set for another language.

    What `iou_per_direction` is to be held against: there, too, the data differ, so that validation sets
    which are translations of each other make no overlap.

    Args:
        first, second: bool `[num_directions, F]`, of all directions.
        compared: the directions compared and their languages.

    Raises:
        NothingToCompare: if there are not two languages.
    """
    if len(compared.distinct) < 2:
        raise NothingToCompare(
            "overlap needs a pair of languages", got=f"{len(compared.distinct)}", expected="2 or more"
        )
    is_other = torch.tensor([[a != b for b in compared.languages] for a in compared.languages])
    return pairwise_iou(first[compared.rows], second[compared.rows])[is_other].mean().item()


def chance_iou_per_direction(first: Tensor, second: Tensor) -> Tensor:
    """The chance level of `iou_per_direction`.

    Args:
        first, second: bool `[N, F]`, True = kept.

    Returns:
        float64 `[N]`, a fraction.
    """
    return chance_iou(first, second).diagonal()
