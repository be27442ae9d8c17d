"""The specialized neurons of every direction: a small set of neurons per layer, kept in one file.

Axis letters: N directions, F ffn. True = kept.
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
from neuron_spec.neurons.activations import layer_order, side_of

FORMAT = 1


def _pack(kept: Tensor) -> Tensor:
    """bool ``[N, F]`` to uint8 ``[N, ceil(F / 8)]``."""
    return torch.from_numpy(np.packbits(kept.cpu().numpy(), axis=1))


def _unpack(packed: Tensor, width: int) -> Tensor:
    return torch.from_numpy(np.unpackbits(packed.numpy(), axis=1, count=width)).bool()


@dataclass
class NeuronMasks:
    """Which neurons each direction runs through.

    Attributes:
        directions: the N directions, naming the rows.
        kept: layer key (``encoder.layers.0``) -> bool ``[N, F]``, True = kept.
        metadata: how they were selected: sets, method, k's, the profile they come from.
    """

    directions: list[Direction]
    kept: dict[str, Tensor]
    metadata: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for layer, kept in self.kept.items():
            if kept.dtype != torch.bool or kept.dim() != 2 or kept.size(0) != len(self.directions):
                raise ArtifactError(
                    f"malformed masks: layer {layer}",
                    got=f"{kept.dtype} {list(kept.shape)}",
                    expected=f"torch.bool [{len(self.directions)}, ffn]",
                )

    @property
    def layers(self) -> list[str]:
        return sorted(self.kept, key=layer_order)

    @property
    def widths(self) -> dict[str, int]:
        return {layer: self.kept[layer].size(1) for layer in self.layers}

    @property
    def fingerprint(self) -> str:
        """sha256 of the sets alone: which directions keep which neurons."""
        return hash_state({f"{layer} {self._names()}": kept for layer, kept in self.kept.items()})

    def _names(self) -> list[str]:
        return [str(direction) for direction in self.directions]

    def sparsity(self) -> dict[str, Tensor]:
        """Layer -> float64 ``[N]``, the fraction of neurons dropped."""
        return {layer: 1 - self.kept[layer].double().mean(dim=1) for layer in self.layers}

    def summary(self) -> dict[str, Any]:
        """What a reader wants to know without tools; percent of neurons dropped."""
        sparsity = self.sparsity()
        return {
            **self.metadata,
            "directions": self._names(),
            "widths": self.widths,
            "dropped_percent": {
                layer: {
                    "mean": round(100 * float(values.mean()), 3),
                    **{n: round(100 * float(v), 3) for n, v in zip(self._names(), values, strict=True)},
                }
                for layer, values in sparsity.items()
            },
        }

    def require_fit(self, widths: Mapping[str, int], where: object = None) -> None:
        """Raises: ModelError if a model with these ffn widths per layer has other layers or widths."""
        if dict(widths) == self.widths:
            return
        layers = sorted({*widths, *self.widths}, key=layer_order)
        wrong = [layer for layer in layers if widths.get(layer) != self.widths.get(layer)]
        raise ModelError(
            "the masks are for another model",
            where=where,
            got=", ".join(f"{layer}: {self.widths.get(layer, 'absent')}" for layer in wrong),
            expected=", ".join(f"{layer}: {widths.get(layer, 'absent')}" for layer in wrong),
            mend="profile and select on the checkpoint that training starts from",
        )

    def require_directions(self, wanted: Iterable[Direction], where: object = None) -> None:
        """Raises: ModelError if a direction to be trained has no masks."""
        if missing := [str(d) for d in wanted if d not in self.directions]:
            raise ModelError(
                "directions without masks",
                where=where,
                got=f"masks for {', '.join(self._names())}",
                expected=f"also {', '.join(missing)}",
                mend="profile them too, or pass --missing-direction compose or dense",
            )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one bit per neuron to ``path``, and a readable summary to the same name with .json."""
        header = {"format": FORMAT, "directions": self._names(), "widths": self.widths, **self.metadata}
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
        """The kept sets of the encoder's or decoder's layers."""
        return {layer: self.kept[layer] for layer in self.layers if side_of(layer) == side}
