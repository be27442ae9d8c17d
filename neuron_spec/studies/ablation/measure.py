"""Switching neurons off and measuring what the model loses: are specialized neurons functional, or only
correlated with their direction?

The definition is ours. A neuron that is switched off emits zero for every direction, its constant
ReLU(bias) included; all else stays. The loss is the mean negative log-likelihood of a target token, as
`teacher_forcing` has it.

Sets of directions overlap by far the most, so a model without one whole set is a ruin for all. What tells
directions apart are the *distinctive* neurons of a set: those that the fewest other sets hold.

`summarize` gives what the losses say, as it stands in ``ablation.json``: nats per target token, and whether a direction
loses more by its own neurons than by those of others. What cannot be computed is None, with the reason beside it.

Axis letters: D directions, F ffn, S sets, n directions of one group. True = kept, or switched off where the text
says so.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from neuron_spec.artifacts import hash_text
from neuron_spec.backends.fairseq.loading import TeacherForced, measured_rows
from neuron_spec.directions import GROUPS, Direction, family_of
from neuron_spec.errors import ModelError, NeuronSpecError
from neuron_spec.modules.taps import Tap, tapped
from neuron_spec.neurons.activations import side_of
from neuron_spec.neurons.masks import NeuronMasks
from neuron_spec.neurons.pairs import FAMILY_KEYS, family_test, or_reason
from neuron_spec.statistics import NothingToCompare, PermutationTest, diagonal_test

Neurons = dict[str, Tensor]
"""Layer key -> bool ``[F]``, True = switched off. Layers that are not named stay whole."""

RANDOM = "random"


# Which neurons --------------------------------------------------------------------------------


def owner_of(direction: Direction, masks: NeuronMasks, side: str = "both") -> str | None:
    """Whose set is a direction's own: its own name or, where the sets are per language, a language.

    That is the source language for the encoder's sets, the target language for the decoder's, and for both
    sides the one that is not English; None where neither is English.
    """
    if not _is_by_language(masks):
        return str(direction)
    if side != "both":
        return direction.source if side == "encoder" else direction.target
    return direction.foreign


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


def _is_by_language(masks: NeuronMasks) -> bool:
    return masks.metadata.get("neuron_sets") == "language"


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
    per_layer: dict[str, list[Tensor]] = {}
    for neurons in chosen.values():
        for layer, off in neurons.items():
            per_layer.setdefault(layer, []).append(off)
    return {
        f"{RANDOM}-{number}": {
            layer: _draw(torch.stack(offs), hash_text(str(seed), str(number), layer))
            for layer, offs in per_layer.items()
        }
        for number in range(1, draws + 1)
    }


def _draw(offs: Tensor, digest: str) -> Tensor:
    """As many of F neurons as are True in the rows of ``[owners, F]`` on average, rounded."""
    generator = torch.Generator().manual_seed(int(digest[:8], 16))
    size = int(offs.sum().item() / len(offs) + 0.5)
    drawn = torch.zeros_like(offs[0])
    drawn[torch.randperm(offs.size(1), generator=generator)[:size]] = True
    return drawn


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
        self.tokens = self._text.tokens

    @property
    def batches(self) -> int:
        return len(self._text.batches)

    def losses(self, neurons: Neurons, each_batch: Callable[[], Any] = lambda: None) -> list[float]:
        """Mean nats per target token of each direction, without these neurons: one pass."""
        switched_off = {
            layer: _zero(off.nonzero().flatten().to(self.device)) for layer, off in neurons.items()
        }
        with tapped(self.model, switched_off):
            return self.mean_losses(self._text, each_batch)


def _zero(index: Tensor) -> Tap:
    """Emits zero in these places of the hidden vector; index int64 ``[neurons switched off]``."""
    return lambda hidden: hidden.index_fill(-1, index, 0)


# Rows -----------------------------------------------------------------------------------------


def measure(
    ablations: Mapping[str, Neurons],
    folder: Path,
    sign: Callable[[Neurons], Mapping[str, Any]],
    load: Callable[[], Ablator],
) -> dict[str, dict[str, dict[str, float]]]:
    """The losses of all ablations, one pass each; what is in the folder already is not measured again.

    Args:
        ablations: name -> what is switched off.
        folder: where each finished row is written at once, so that a killed run goes on.
        sign: the signature of a row.
        load: called if a row is missing.

    Returns:
        Name -> ``nats`` and ``tokens`` -> direction -> its loss per target token, and their number.

    Raises:
        ArtifactError: if a row was measured on something else.
    """

    def missing_rows(missing: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
        ablator = load()
        names = [str(direction) for direction in ablator.directions]
        with tqdm(total=len(missing) * ablator.batches, unit="batch", file=sys.stderr) as bar:
            for number, name in enumerate(missing, start=1):
                bar.set_description(f"without {name} ({number}/{len(missing)})")
                nats = ablator.losses(ablations[name], bar.update)
                yield (
                    name,
                    {
                        "nats": dict(zip(names, nats, strict=True)),
                        "tokens": dict(zip(names, ablator.tokens, strict=True)),
                    },
                )

    return measured_rows(
        list(ablations), folder, lambda name: sign(ablations[name]), missing_rows, what="row of an ablation"
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
    families: Mapping[str, str] | None = field(default=None)

    @property
    def change(self) -> Tensor:
        """float64 `[S, D]`: the loss without a set minus the loss with all neurons."""
        return self.without - self.intact

    @property
    def random_change(self) -> Tensor:
        """float64 `[D]`, the mean over draws; NaN without any."""
        return self.without_random.mean(dim=0) - self.intact

    def family(self, code: str) -> str:
        return family_of(code, self.families)


def summarize(ablation: Ablation, *, seed: int) -> dict[str, Any]:
    """Everything that stands in ``ablation.json``, without signature and the neurons' numbers.

    Args:
        seed: of random relabellings.
    """
    groups: dict[str, Any] = {}
    for group in GROUPS:
        columns = [i for i, d in enumerate(ablation.directions) if d.group == group]
        if columns:
            groups[group.text] = _group(ablation, columns, seed)
    names = [str(direction) for direction in ablation.directions]
    return {
        "unit": "nats per target token",
        "tokens": dict(zip(names, ablation.tokens, strict=True)),
        "intact": dict(zip(names, ablation.intact.tolist(), strict=True)),
        "own_set": {
            name: None if row is None else ablation.owners[row]
            for name, row in zip(names, ablation.own, strict=True)
        },
        "change": {
            owner: dict(zip(names, values, strict=True))
            for owner, values in zip(ablation.owners, ablation.change.tolist(), strict=True)
        },
        "random_change": [
            dict(zip(names, values, strict=True))
            for values in (ablation.without_random - ablation.intact).tolist()
        ],
        "groups": groups,
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
        test = diagonal_test(square, seed=seed)
        is_own = torch.eye(len(square), dtype=torch.bool)
        most_of_others = square.masked_fill(is_own, -torch.inf).amax(dim=0)
        return {
            "own": _mean(square[is_own]),
            "others": _mean(square[~is_own]),
            "own_is_largest": int((square.diagonal() > most_of_others).sum()),
            **test._asdict(),
            "families": or_reason(FAMILY_KEYS, lambda: family_test(square, families, seed)),
        }

    keys = ("own", "others", "own_is_largest", *PermutationTest._fields, "families")
    return {
        "directions": [str(ablation.directions[i]) for i in columns],
        "random": _mean(ablation.random_change[columns]),
        **or_reason(keys, compare),
        "other_rows": _mean(change[[row for row in range(len(ablation.owners)) if row not in rows]]),
    }


def _mean(values: Tensor) -> float | None:
    return values.mean().item() if values.numel() and not values.isnan().any() else None
