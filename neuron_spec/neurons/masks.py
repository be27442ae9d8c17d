"""The specialized neurons and attention heads of every direction: a small set per site, kept in one file.

A site is where a mask sits: a layer's FFN (``encoder.layers.0``), or the heads of one of its attentions
(``encoder.layers.0.self_attn``, ``decoder.layers.0.encoder_attn``). Masks of one kind need no other: sites that
a file does not name are dense.

Axis letters: N directions, F units of a site: neurons or heads. True = kept.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from neuron_spec.artifacts import hash_state, load_tensors, save_tensors, write_json
from neuron_spec.directions import Direction, parse_directions
from neuron_spec.errors import ArtifactError, ModelError
from neuron_spec.neurons.activations import is_head_site, layer_order, side_of

FORMAT = 1


def _pack(kept: Tensor) -> Tensor:
    """bool ``[N, F]`` to uint8 ``[N, ceil(F / 8)]``."""
    return torch.from_numpy(np.packbits(kept.cpu().numpy(), axis=1))


def _unpack(packed: Tensor, width: int) -> Tensor:
    return torch.from_numpy(np.unpackbits(packed.numpy(), axis=1, count=width)).bool()


def _by_kind(sites: Mapping[str, int]) -> dict[bool, dict[str, int]]:
    """Heads (True) and neurons apart; a kind without sites is absent."""
    kinds: dict[bool, dict[str, int]] = {}
    for site, size in sites.items():
        kinds.setdefault(is_head_site(site), {})[site] = size
    return kinds


@dataclass
class NeuronMasks:
    """Which neurons and heads each direction runs through.

    Attributes:
        directions: the N directions, naming the rows.
        kept: site -> bool ``[N, F]``, True = kept.
        metadata: how they were selected: sets, method, k's, the profile they come from.
    """

    directions: list[Direction]
    kept: dict[str, Tensor]
    metadata: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for site, kept in self.kept.items():
            layer_order(site)
            if kept.dtype != torch.bool or kept.dim() != 2 or kept.size(0) != len(self.directions):
                raise ArtifactError(
                    f"malformed masks: {site}",
                    got=f"{kept.dtype} {list(kept.shape)}",
                    expected=f"torch.bool [{len(self.directions)}, neurons or heads]",
                )

    @property
    def sites(self) -> dict[str, int]:
        """Every site and how many units it has, in the model's order."""
        return {site: self.kept[site].size(1) for site in sorted(self.kept, key=layer_order)}

    @property
    def layers(self) -> list[str]:
        """The sites that are FFNs."""
        return [site for site in self.sites if not is_head_site(site)]

    @property
    def widths(self) -> dict[str, int]:
        """The FFNs and how many neurons each has."""
        return {layer: self.kept[layer].size(1) for layer in self.layers}

    @property
    def head_sites(self) -> list[str]:
        """The sites that are attentions."""
        return [site for site in self.sites if is_head_site(site)]

    @property
    def fingerprint(self) -> str:
        """sha256 of the sets alone: which directions keep which neurons."""
        return hash_state({f"{layer} {self._names()}": kept for layer, kept in self.kept.items()})

    def _names(self) -> list[str]:
        return [str(direction) for direction in self.directions]

    def sparsity(self, sites: Iterable[str] | None = None) -> dict[str, Tensor]:
        """Site -> float64 ``[N]``, the fraction of units dropped; of the FFNs unless ``sites`` says which."""
        chosen = self.layers if sites is None else sites
        return {site: 1 - self.kept[site].double().mean(dim=1) for site in chosen}

    def summary(self) -> dict[str, Any]:
        """What a reader wants to know without tools; percent of neurons or heads dropped."""
        sparsity = self.sparsity(self.sites)
        return {
            **self.metadata,
            "directions": self._names(),
            "widths": self.sites,
            "dropped_percent": {
                layer: {
                    "mean": round(100 * float(values.mean()), 3),
                    **{n: round(100 * float(v), 3) for n, v in zip(self._names(), values, strict=True)},
                }
                for layer, values in sparsity.items()
            },
        }

    def require_fit(self, sizes: Mapping[str, int], where: object = None) -> None:
        """That the masks are for a model with these sites.

        Args:
            sizes: site -> neurons or heads of the model. Where no heads are among them, those of the masks
                are not looked at.

        Raises:
            ModelError: if the model has other sites of a kind that the masks have, or other sizes; or if
                the masks have neither kind.
        """
        models = _by_kind(sizes)
        ours = {kind: sites for kind, sites in _by_kind(self.sites).items() if kind in models}
        wanted = {kind: models[kind] for kind in ours} or models
        if ours == wanted:
            return
        mine, theirs = (
            {site: size for sites in kinds.values() for site, size in sites.items()}
            for kinds in (ours, wanted)
        )
        wrong = [s for s in sorted({*mine, *theirs}, key=layer_order) if mine.get(s) != theirs.get(s)]
        raise ModelError(
            "the masks are for another model",
            where=where,
            got=", ".join(f"{site}: {mine.get(site, 'absent')}" for site in wrong),
            expected=", ".join(f"{site}: {theirs.get(site, 'absent')}" for site in wrong),
            mend="profile and select on the checkpoint that training starts from",
        )

    def require_neurons(self, where: object = None) -> None:
        """Raises: ArtifactError if the masks are of heads alone, for what looks at neurons."""
        if not self.layers:
            raise ArtifactError(
                "masks of attention heads alone",
                where=where,
                got=", ".join(self.head_sites),
                expected="masks of neurons, such as of encoder.layers.0",
            )

    def require_directions(
        self,
        wanted: Iterable[Direction],
        where: object = None,
        mend: str = "profile them too, or pass --missing-direction compose or dense",
    ) -> None:
        """Raises: ModelError if one of these directions has no masks."""
        if missing := [str(d) for d in wanted if d not in self.directions]:
            raise ModelError(
                "directions without masks",
                where=where,
                got=f"masks for {', '.join(self._names())}",
                expected=f"also {', '.join(missing)}",
                mend=mend,
            )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one bit per unit to ``path``, and a readable summary to the same name with .json."""
        header = {"format": FORMAT, "directions": self._names(), "widths": self.sites, **self.metadata}
        write_json(Path(path).with_suffix(".json"), self.summary())
        # Last, because a stage is complete when this file is there.
        save_tensors(path, {layer: _pack(kept) for layer, kept in self.kept.items()}, header)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> NeuronMasks:
        """Raises: ArtifactError if the file is missing, damaged, or holds no masks."""
        tensors, metadata = load_tensors(path, "mask file")
        if metadata.pop("format", None) != FORMAT:
            raise ArtifactError("not a mask file", where=path, mend="make one with neuron-spec select")
        directions = parse_directions(metadata.pop("directions"))
        widths: dict[str, int] = metadata.pop("widths")
        shapes = {layer: tuple(packed.shape) for layer, packed in tensors.items()}
        wanted = {layer: (len(directions), -(-width // 8)) for layer, width in widths.items()}
        if shapes != wanted:
            raise ArtifactError("damaged mask file", where=path, got=shapes, expected=wanted)
        return cls(directions, {layer: _unpack(tensors[layer], widths[layer]) for layer in widths}, metadata)

    def side(self, side: str) -> dict[str, Tensor]:
        """The kept neurons of the encoder's or decoder's layers."""
        return {layer: self.kept[layer] for layer in self.layers if side_of(layer) == side}
