"""Static subnetworks: which units are removed together, which go next, the vote over several models, and the
joint file of sets that were made apart.

After Choenni, Garrette and Shutova (2023), whose exact rules are not public. Ours are: the importance of Michel et
al. (2019), divided by its Euclidean norm over a site's kept units, as they do; ranked over all sites of a set, heads
and neurons apart; a site never loses its last unit.

Axis letters: N directions, F units of a site. True = kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from neuron_spec.directions import Direction
from neuron_spec.errors import SelectionError
from neuron_spec.neurons.activations import is_head_site, language_of, layer_order, side_of
from neuron_spec.neurons.choices import SIDES
from neuron_spec.neurons.masks import NeuronMasks


@dataclass(frozen=True)
class PrunedSet:
    """Directions and sites that keep the same units.

    Attributes:
        name: the direction, or a side and its language: ``encoder de``.
        sites: where its units are.
        rows: of its directions.
    """

    name: str
    sites: tuple[str, ...]
    rows: tuple[int, ...]


def sites_of_kind(sites: Mapping[str, int], kind: str) -> dict[str, int]:
    """Those of the sites that are ``heads``, ``neurons`` or ``both``."""
    return {s: size for s, size in sites.items() if kind == "both" or is_head_site(s) == (kind == "heads")}


def sets_of(directions: Sequence[Direction], sites: Sequence[str], neuron_sets: str) -> list[PrunedSet]:
    """One set per ``direction``, or per ``language``: the encoder's by source, the decoder's by target."""
    if neuron_sets == "direction":
        return [PrunedSet(str(d), tuple(sites), (row,)) for row, d in enumerate(directions)]
    sets = []
    for side in SIDES:
        of_side = tuple(site for site in sites if side_of(site) == side)
        codes = [language_of(direction, side) for direction in directions]
        for code in dict.fromkeys(codes):
            rows = tuple(row for row, other in enumerate(codes) if other == code)
            sets.append(PrunedSet(f"{side} {code}", of_side, rows))
    return sets


def without_least_important(
    kept: Mapping[str, Tensor], importance: Mapping[str, Tensor], step_fraction: float
) -> dict[str, Tensor]:
    """A set after one more step: without ``step_fraction`` of its units, rounded down, and at least one.

    Heads and neurons are ranked apart, each over all sites; of equals the earlier goes.

    Args:
        kept: site -> bool ``[F]``.
        importance: site -> float64 ``[F]``, in any unit.

    Returns:
        As ``kept``; the same where every site is down to its last unit.
    """
    after = dict(kept)
    for is_heads in (True, False):
        sites = [site for site in sorted(kept, key=layer_order) if is_head_site(site) == is_heads]
        if not sites:
            continue
        left = torch.cat([kept[site] for site in sites])
        ranks = torch.cat([_ranks(importance[site], kept[site]) for site in sites])
        number = max(1, int(step_fraction * int(left.sum()) + 1e-9))
        least = ranks.argsort(stable=True)[:number]
        left[least[ranks[least].isfinite()]] = False
        after |= zip(sites, left.split([len(kept[site]) for site in sites]), strict=True)
    return after


def _ranks(importance: Tensor, kept: Tensor) -> Tensor:
    """Importance relative to the site's, float64 ``[F]``; infinite for what cannot be removed."""
    of_kept = importance.double().where(kept, 0.0)
    ranks = (of_kept / of_kept.norm().clamp(min=torch.finfo(of_kept.dtype).tiny)).where(kept, torch.inf)
    most = ranks.where(kept, -1.0).argmax()
    return ranks.index_fill(0, most, torch.inf)


def vote(masks: Sequence[NeuronMasks]) -> NeuronMasks:
    """The units that at least half of several models' masks keep, such as of several seeds.

    A site where no unit has so many votes keeps the one with the most, of equals the first. Metadata that all
    share stays.

    Raises:
        SelectionError: if there are fewer than two, or their directions, sites, sizes or kinds of sets differ.
    """
    if len(masks) < 2:
        raise SelectionError("a vote needs several masks", got=len(masks), expected="2 or more")
    first = masks[0]
    _require_alike(
        "voted on",
        directions=[voter.names for voter in masks],
        sites=[voter.sites for voter in masks],
        sets=[voter.metadata.get("neuron_sets") for voter in masks],
    )
    kept = {}
    for site in first.sites:
        votes = torch.stack([voter.kept[site] for voter in masks]).sum(0)  # [N, F]
        kept[site] = 2 * votes >= len(masks)
        empty = ~kept[site].any(dim=1)
        kept[site][empty, votes.argmax(dim=1)[empty]] = True
    shared: dict[str, Any] = {
        key: value
        for key, value in first.metadata.items()
        if key != "signature" and all(voter.metadata.get(key) == value for voter in masks)
    }
    return NeuronMasks(first.directions, kept, {**shared, "voters": len(masks)})


def join(parts: Sequence[NeuronMasks], metadata: Mapping[str, Any]) -> NeuronMasks:
    """One set of masks of all directions, out of masks of some directions each.

    Raises:
        SelectionError: if there are none, two name the same direction, or their sites or sizes differ.
    """
    if not parts:
        raise SelectionError("no masks to join")
    _require_alike("joined", sites=[part.sites for part in parts])
    directions = [direction for part in parts for direction in part.directions]
    if twice := sorted({str(d) for d in directions if directions.count(d) > 1}):
        raise SelectionError(
            "a direction has masks twice", got=", ".join(twice), expected="each direction once"
        )
    kept = {site: torch.cat([part.kept[site] for part in parts]) for site in parts[0].sites}
    return NeuronMasks(directions, kept, dict(metadata))


def _require_alike(used: str, **values: Sequence[object]) -> None:
    for what, (first, *others) in values.items():
        for number, other in enumerate(others, start=2):
            if other != first:
                raise SelectionError(
                    f"masks of different {what} cannot be {used}",
                    where=f"masks 1 and {number}",
                    got=other,
                    expected=first,
                )
