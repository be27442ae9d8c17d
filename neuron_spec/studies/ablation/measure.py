"""Switching neurons off and measuring what the model loses: are specialized neurons functional, or only
correlated with their direction?

The definition is ours. A neuron that is switched off emits zero for every direction, its constant ReLU(bias) included;
all else stays. Sets of directions overlap by far the most, so a model without one whole set is a ruin for all. What
tells directions apart are the *distinctive* neurons of a set: those that the fewest other sets hold.

Axis letters: D directions, F ffn, S sets, n directions of one group. True = kept, or switched off where the text
says so. What cannot be computed is None, with the reason beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from neuron_spec.artifacts import hash_text
from neuron_spec.backends.fairseq.loading import TeacherForced, measured_rows
from neuron_spec.directions import Direction
from neuron_spec.errors import ModelError, NeuronSpecError
from neuron_spec.modules.taps import Tap, tapped
from neuron_spec.neurons.activations import side_of
from neuron_spec.neurons.masks import NeuronMasks
from neuron_spec.neurons.pairs import (
    FAMILY_KEYS,
    Compared,
    by_name,
    by_names,
    family_test,
    mean_known,
    or_reason,
)
from neuron_spec.statistics import NothingToCompare, PermutationTest, diagonal_test

Neurons = dict[str, Tensor]
"""Layer key -> bool ``[F]``, True = switched off. Layers that are not named stay whole."""


# Which neurons --------------------------------------------------------------------------------


def owner_of(direction: Direction, masks: NeuronMasks, side: str = "both") -> str | None:
    """Whose set is a direction's own: its own name or, where the sets are per language, a language.

    That is the source language for the encoder's sets, the target language for the decoder's, and for both
    sides the one that is not English; None where neither is English.
    """
    if masks.metadata.get("neuron_sets") != "language":
        return str(direction)
    return {"both": direction.foreign, "encoder": direction.source, "decoder": direction.target}[side]


def owned_sets(masks: NeuronMasks, side: str = "both") -> dict[str, dict[str, Tensor]]:
    """Layer -> owner, a direction or a language -> its set there, bool ``[F]``; each owner once.

    Args:
        side: ``both``, ``encoder`` or ``decoder``.

    Raises:
        ModelError: if the sets are per language, but differ between directions of one language.
    """
    sets: dict[str, dict[str, Tensor]] = {}
    for layer in masks.layers:
        if side in ("both", side_of(layer)):
            sets[layer] = {}
            for direction, kept in zip(masks.directions, masks.kept[layer], strict=True):
                owner = owner_of(direction, masks, side_of(layer))
                assert owner is not None
                if not torch.equal(sets[layer].setdefault(owner, kept), kept):
                    raise ModelError(
                        "directions of one language have different sets",
                        where=f"{layer}, {owner}",
                        expected="one set per language",
                        mend="select with the same k for all directions",
                    )
    return sets


def distinctive(sets: Mapping[str, Tensor], count: int, where: object = None) -> dict[str, Tensor]:
    """The ``count`` neurons of each set that the fewest other sets hold.

    Among equals by index: sets that tie over the same neurons then lose the same ones, so that a tie makes
    two ablations alike, and never different.

    Args:
        sets: owner -> bool ``[F]``, True = kept, all of one layer.

    Returns:
        owner -> bool ``[F]``, True = switched off.

    Raises:
        NothingToCompare: if all sets are the same.
        NeuronSpecError: if a set is smaller than ``count``.
    """
    kept = torch.stack(list(sets.values()))
    if bool((kept == kept[0]).all()):
        raise NothingToCompare(
            "no neurons are distinctive where all sets are the same",
            where=where,
            got=f"one set for {', '.join(sets)}",
            mend="name the other --side, or pass --ablate whole",
        )
    owner, size = min(zip(sets, kept.sum(1).tolist(), strict=True), key=lambda pair: pair[1])
    if count > size:
        raise NeuronSpecError(
            "more neurons to switch off than a set holds",
            where=f"{where}, {owner}",
            got=count,
            expected=f"at most {size}",
            mend="lower --fraction or --count",
        )
    holders = kept.sum(0).where(kept, len(kept) + 1)  # the neurons of other sets come last
    chosen = holders.argsort(dim=1, stable=True)[:, :count]
    return dict(zip(sets, torch.zeros_like(kept).scatter_(1, chosen, True), strict=True))


def choose(
    masks: NeuronMasks,
    *,
    ablate: str = "distinctive",
    fraction: float = 0.0,
    count: int | None = None,
    side: str = "both",
) -> dict[str, Neurons]:
    """What is switched off for each owner of a set.

    Args:
        ablate: ``distinctive``, the neurons of each set that the fewest other sets hold, or ``whole``.
        fraction: how many distinctive neurons, as a fraction (0-1) of each layer's, rounded.
        count: how many, instead.
        side: ``both``, ``encoder`` or ``decoder``; the other side stays whole. A language that no
            direction translates from has no set in the encoder, and nothing of it is switched off there.

    Returns:
        owner -> layer -> bool ``[F]``, True = switched off.

    Raises:
        NothingToCompare: if in a layer all sets are the same.
        NeuronSpecError: if a set is smaller than what is to be switched off.
    """
    chosen: dict[str, Neurons] = {}
    for layer, sets in owned_sets(masks, side).items():
        if ablate == "distinctive":
            width = masks.widths[layer]
            sets = distinctive(sets, int(fraction * width + 0.5) if count is None else count, where=layer)
        for owner, neurons in sets.items():
            chosen.setdefault(owner, {})[layer] = neurons
    return chosen


def draw_random(chosen: Mapping[str, Neurons], draws: int, seed: int) -> dict[str, Neurons]:
    """Controls: as many neurons per layer as are switched off for the owners on average, of all neurons.

    Returns:
        ``random-1`` and so on -> layer -> bool ``[F]``, True = switched off.
    """
    controls: dict[str, Neurons] = {f"random-{number}": {} for number in range(1, draws + 1)}
    for layer in dict.fromkeys(layer for neurons in chosen.values() for layer in neurons):
        offs = torch.stack([neurons[layer] for neurons in chosen.values() if layer in neurons])
        size = int(offs.sum().item() / len(offs) + 0.5)
        for number, control in enumerate(controls.values(), start=1):
            digest = hash_text(str(seed), str(number), layer)
            generator = torch.Generator().manual_seed(int(digest[:8], 16))
            control[layer] = torch.zeros_like(offs[0])
            control[layer][torch.randperm(offs.size(1), generator=generator)[:size]] = True
    return controls


def held_by_others(
    masks: NeuronMasks, chosen: Mapping[str, Neurons], side: str = "both"
) -> dict[str, dict[str, float]]:
    """How distinctive the choice is: layer -> owner -> by how many other sets a chosen neuron is held, mean.

    Owners of whom nothing is switched off in a layer are left out.
    """
    holders_by_layer: dict[str, dict[str, float]] = {}
    for layer, sets in owned_sets(masks, side).items():
        holders = torch.stack(list(sets.values())).sum(0).double()
        holders_by_layer[layer] = {
            owner: (holders[neurons[layer]] - 1).mean().item()
            for owner, neurons in chosen.items()
            if layer in neurons and neurons[layer].any()
        }
    return holders_by_layer


# The loss without them ------------------------------------------------------------------------


class Ablates(Protocol):
    """A model and text in memory, of either backend."""

    @property
    def tokens(self) -> Sequence[int]: ...
    @property
    def batches(self) -> int: ...
    def losses(self, neurons: Neurons, each_batch: Callable[[], Any] = ...) -> list[float]: ...
    def by_name(self, values: Iterable[Any]) -> dict[str, Any]: ...


def without(neurons: Neurons, device: torch.device) -> dict[str, Tap]:
    """Taps by which these neurons emit zero, their constant ReLU(bias) included."""
    places = {layer: off.nonzero().flatten().to(device) for layer, off in neurons.items()}
    return {layer: partial(torch.index_fill, dim=-1, index=index, value=0) for layer, index in places.items()}


class Ablator(TeacherForced):
    """A checkpoint and a validation set in memory, to be run with any neurons switched off.

    A specialized checkpoint keeps its own masks besides.

    Attributes:
        tokens: target tokens of each direction.
        batches: how many one pass has.
    """

    def __init__(
        self, path: Path, data_bin: Path, directions: Sequence[Direction], subset: str, **options: Any
    ) -> None:
        """Load both once.

        Args:
            options: as `TeacherForced` takes them.

        Raises:
            NeuronSpecError: as `TeacherForced` and its `read`.
        """
        super().__init__(path, data_bin, directions, **options)
        self._text = self.read(subset)
        self.tokens, self.batches = self._text.tokens, len(self._text.batches)

    def losses(self, neurons: Neurons, each_batch: Callable[[], Any] = lambda: None) -> list[float]:
        """Mean nats per target token of each direction, without these neurons: one pass."""
        with tapped(self.model, without(neurons, self.device)):
            return self.mean_losses(self._text, each_batch)


def measure(
    ablations: Mapping[str, Neurons],
    folder: Path,
    sign: Callable[[Neurons], Mapping[str, Any]],
    load: Callable[[], Ablates],
) -> dict[str, dict[str, dict[str, float]]]:
    """The losses of all ablations, one pass each.

    Args:
        ablations: name -> what is switched off.
        folder, sign, load: as `measured_rows` takes them.

    Returns:
        Name -> ``nats`` and ``tokens`` -> direction -> its loss per target token, and their number.

    Raises:
        ArtifactError: if a row was measured on something else.
    """

    def row(ablator: Ablates, name: str, each_batch: Callable[[], Any]) -> dict[str, Any]:
        nats = ablator.losses(ablations[name], each_batch)
        return {"nats": ablator.by_name(nats), "tokens": ablator.by_name(ablator.tokens)}

    return measured_rows(
        ablations,
        folder,
        lambda name: sign(ablations[name]),
        load,
        batches=lambda ablator, _: ablator.batches,
        measure=row,
        what="row of an ablation",
    )


# What the losses say --------------------------------------------------------------------------


@dataclass(frozen=True)
class Ablation:
    """The losses of an ablation.

    Attributes:
        directions: the D directions that were evaluated.
        tokens: target tokens of each.
        owners: whose neurons were switched off, S directions or languages.
        own: the row of each direction's own set; None where it has none, or several.
        intact: float64 `[D]`, the loss with all neurons.
        without: float64 `[S, D]`, without those of each owner.
        without_random: float64 `[draws, D]`, without as many random ones.
        families: language -> family; None: those of the language table.
    """

    directions: Sequence[Direction]
    tokens: Sequence[int]
    owners: Sequence[str]
    own: Sequence[int | None]
    intact: Tensor
    without: Tensor
    without_random: Tensor
    families: Mapping[str, str] | None = None

    @property
    def change(self) -> Tensor:
        """float64 `[S, D]`: the loss without a set minus the loss with all neurons."""
        return self.without - self.intact

    @property
    def random_change(self) -> Tensor:
        """float64 `[D]`, the mean over draws; NaN without any."""
        return self.without_random.mean(dim=0) - self.intact


def summarize(ablation: Ablation, *, seed: int) -> dict[str, Any]:
    """Everything that stands in ``ablation.json``, without signature and the neurons' numbers.

    Args:
        seed: of random relabellings.
    """
    names = [str(direction) for direction in ablation.directions]
    owner_names = [None if row is None else ablation.owners[row] for row in ablation.own]
    members = Compared(ablation.directions).members()
    return {
        "unit": "nats per target token",
        "tokens": dict(zip(names, ablation.tokens, strict=True)),
        "intact": by_name(names, ablation.intact),
        "own_set": dict(zip(names, owner_names, strict=True)),
        "change": by_names(ablation.owners, names, ablation.change),
        "random_change": [by_name(names, nats - ablation.intact) for nats in ablation.without_random],
        "groups": {kind: _group(ablation, columns, seed) for kind, columns in members.items()},
    }


def _group(ablation: Ablation, columns: list[int], seed: int) -> dict[str, Any]:
    """Directions of one kind, and what they lose by each other's sets."""
    change = ablation.change[:, columns]
    rows = [row for row in (ablation.own[i] for i in columns) if row is not None]
    families = [ablation.directions[i].family(ablation.families) for i in columns]

    def compare() -> dict[str, Any]:
        if len(rows) < len(columns) or len(set(rows)) < len(rows):
            raise NothingToCompare("these directions share a set, or own several")
        square = change[rows]  # [n, n], own sets on the diagonal
        is_own = torch.eye(len(square), dtype=torch.bool)
        most_of_others = square.masked_fill(is_own, -torch.inf).amax(dim=0)
        return {
            "own": mean_known(square[is_own]),
            "others": mean_known(square[~is_own]),
            "own_is_largest": int((square.diagonal() > most_of_others).sum()),
            **diagonal_test(square, seed=seed)._asdict(),
            "families": or_reason(FAMILY_KEYS, lambda: family_test(square, families, seed)),
        }

    keys = ("own", "others", "own_is_largest", *PermutationTest._fields, "families")
    return {
        "directions": [str(ablation.directions[i]) for i in columns],
        "random": mean_known(ablation.random_change[columns]),
        **or_reason(keys, compare),
        "other_rows": mean_known(change[[row for row in range(len(ablation.owners)) if row not in rows]]),
    }
