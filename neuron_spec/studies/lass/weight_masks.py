"""LaSS's subnetworks: which single weights each direction keeps, a bit each, in memory and on disk.

Lin et al. (ACL 2021) mask, per weight matrix, the fraction alpha of weights that are smallest after
fine-tuning on one direction. Every matrix of the encoder's and decoder's layers is masked; embeddings,
layer norms and biases are not, nor (ours, where it is not tied to an embedding) the output projection.

Axis letters: N directions, O out, I in, P = ceil(I / 8) bytes. True = kept.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from neuron_spec.artifacts import hash_state, load_tensors, save_tensors, write_json
from neuron_spec.directions import ENGLISH, Direction, parse_directions
from neuron_spec.errors import ArtifactError, DirectionError, ModelError, SelectionError
from neuron_spec.neurons.activations import side_of
from neuron_spec.neurons.choices import SIDES

FORMAT = "weight masks 1"


def pack(kept: Tensor) -> Tensor:
    """bool ``[..., I]`` to uint8 ``[..., P]``; the bits beyond I are 0."""
    return torch.from_numpy(np.packbits(kept.cpu().numpy(), axis=-1))


def unpack(packed: Tensor, width: int) -> Tensor:
    """uint8 ``[..., P]`` to bool ``[..., I]``, where the tensor is: no wait for a device."""
    bits = 128 >> torch.arange(8, dtype=torch.uint8, device=packed.device)  # as np.packbits fills a byte
    return packed.unsqueeze(-1).bitwise_and(bits).ne(0).flatten(-2)[..., :width].contiguous()


def magnitude_mask(weight: Tensor, alpha: float) -> Tensor:
    """Which weights to keep: bool, of the weight's shape, all but the fraction alpha of smallest magnitude.

    As ``torch.nn.utils.prune.l1_unstructured`` (exactly ``round(alpha * numel)`` are dropped), except that
    of equal magnitudes the earlier in row-major order is dropped, so that the same weights give the same mask.

    Raises:
        SelectionError: if alpha is not a fraction below 1, or a weight is not finite.
    """
    require_alpha(alpha)
    magnitude = weight.detach().abs().flatten()
    if not bool(magnitude.isfinite().all()):
        raise SelectionError("weights that are not finite have no magnitude", mend="fine-tuning diverged")
    kept = torch.ones(len(magnitude), dtype=torch.bool, device=weight.device)
    kept[magnitude.argsort(stable=True)[: round(alpha * len(magnitude))]] = False
    return kept.view(weight.shape)


def require_alpha(alpha: float) -> None:
    """Raises: SelectionError if alpha is not a fraction from 0 to below 1."""
    if not 0 <= alpha < 1:
        raise SelectionError("alpha is the fraction of weights to drop", got=alpha, expected="0 <= alpha < 1")


def maskable(names_and_shapes: Mapping[str, Sequence[int]]) -> dict[str, tuple[int, int]]:
    """Those of a model's parameters that are masked: name -> ``(O, I)``, every matrix of every layer."""
    return {
        name: (shape[0], shape[1])
        for name, shape in names_and_shapes.items()
        if name.startswith(tuple(f"{side}.layers." for side in SIDES))
        and name.endswith(".weight")
        and len(shape) == 2
    }


@dataclass
class WeightMasks:
    """Which weights each direction runs through.

    Attributes:
        directions: the N directions, naming the rows.
        packed: weight key (``encoder.layers.0.fc1.weight``) -> uint8 ``[N, O, P]``, a bit per weight, 1 = kept.
        widths: weight key -> I, the bits that count of every P bytes.
        metadata: how they were made: alpha, the checkpoint they belong to, seconds per direction.
    """

    directions: list[Direction]
    packed: dict[str, Tensor]
    widths: dict[str, int]
    metadata: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.packed.keys() != self.widths.keys():
            raise ArtifactError(
                "malformed weight masks: a matrix without bits or without a width",
                got=", ".join(sorted(self.packed.keys() ^ self.widths.keys())),
            )
        for key, packed in self.packed.items():
            wanted = (len(self.directions), -(-self.widths[key] // 8))
            if packed.dtype != torch.uint8 or packed.dim() != 3 or (packed.size(0), packed.size(2)) != wanted:
                raise ArtifactError(
                    f"malformed weight masks: {key}",
                    got=f"{packed.dtype} {list(packed.shape)}",
                    expected=f"torch.uint8 [{wanted[0]}, out, {wanted[1]}]",
                )

    @classmethod
    def by_magnitude(cls, weights: Mapping[str, Tensor], direction: Direction, alpha: float) -> WeightMasks:
        """One direction's masks, from the model fine-tuned on it (`magnitude_mask`, per matrix).

        Args:
            weights: a whole model's, by name; what is not masked is passed over.

        Raises:
            SelectionError: if there is nothing to mask, alpha is no fraction, or a weight is not finite.
        """
        shapes = maskable({name: weight.shape for name, weight in weights.items()})
        if not shapes:
            raise SelectionError(
                "a model without weights to mask",
                got=", ".join(list(weights)[:3]) or "no weights",
                expected="matrices named as in fairseq's transformer, such as encoder.layers.0.fc1.weight",
            )
        packed = {key: pack(magnitude_mask(weights[key], alpha)[None]) for key in shapes}
        return cls([direction], packed, {key: width for key, (_, width) in shapes.items()}, {"alpha": alpha})

    @classmethod
    def join(cls, parts: Sequence[WeightMasks], metadata: Mapping[str, Any] | None = None) -> WeightMasks:
        """The masks of all the parts' directions, in order.

        Raises:
            ModelError: if the parts are of models of different shapes.
            DirectionError: if a direction is in two parts, or there is no part.
        """
        directions = parse_directions(str(direction) for part in parts for direction in part.directions)
        first = parts[0]
        for part in parts[1:]:
            part.require_fit(first.shapes)
        packed = {key: torch.cat([part.packed[key] for part in parts]) for key in first.packed}
        return cls(directions, packed, dict(first.widths), dict(metadata or {}))

    @property
    def shapes(self) -> dict[str, tuple[int, int]]:
        """Weight key -> ``(O, I)``."""
        return {key: (packed.size(1), self.widths[key]) for key, packed in self.packed.items()}

    @property
    def fingerprint(self) -> str:
        """sha256 of the masks alone: which directions keep which weights."""
        names = ",".join(self._names())
        return hash_state({f"{key} {self.widths[key]} {names}": bits for key, bits in self.packed.items()})

    def _names(self) -> list[str]:
        return [str(direction) for direction in self.directions]

    def kept(self, key: str, direction: Direction) -> Tensor:
        """One direction's mask of one matrix, bool ``[O, I]``.

        Raises:
            DirectionError: if the direction has no masks.
        """
        return unpack(self.packed[key][self._row(direction)], self.widths[key])

    def _row(self, direction: Direction) -> int:
        if direction not in self.directions:
            raise DirectionError(
                "a direction without masks", got=direction, expected=f"one of {', '.join(self._names())}"
            )
        return self.directions.index(direction)

    def sparsity(self) -> dict[str, Tensor]:
        """Weight key -> float64 ``[N]``, the fraction of weights dropped."""
        return {
            # Direction by direction: all bits at once would be eight times the masks.
            key: 1 - torch.tensor([np.unpackbits(row).sum() for row in packed.numpy()], dtype=torch.float64)
            / (packed.size(1) * self.widths[key])
            for key, packed in self.packed.items()
        }  # fmt: skip

    def summary(self) -> dict[str, Any]:
        """What a reader wants to know without tools; percent of all maskable weights dropped, per direction."""
        sparsity = self.sparsity()
        sizes = {key: rows * width for key, (rows, width) in self.shapes.items()}
        dropped = sum((sparsity[key] * sizes[key] for key in sizes), torch.zeros(len(self.directions)))
        percent = (100 * dropped / max(sum(sizes.values()), 1)).tolist()
        return {
            **self.metadata,
            "directions": self._names(),
            "maskable_weights": sum(sizes.values()),
            "dropped_percent": {name: round(p, 3) for name, p in zip(self._names(), percent, strict=True)},
            "shapes": {key: list(shape) for key, shape in self.shapes.items()},
        }

    def require_fit(self, shapes: Mapping[str, tuple[int, int]], where: object = None) -> None:
        """Raises: ModelError if a model whose maskable matrices have these ``(O, I)`` has others than the masks."""
        ours = self.shapes
        if ours == dict(shapes):
            return
        wrong = [key for key in sorted({*ours, *shapes}) if ours.get(key) != shapes.get(key)]

        def told(of: Mapping[str, tuple[int, int]]) -> str:
            more = f", and {len(wrong) - 4} more" if len(wrong) > 4 else ""
            return ", ".join(f"{key}: {list(of[key]) if key in of else 'absent'}" for key in wrong[:4]) + more

        raise ModelError(
            "the weight masks are for another model",
            where=where,
            got=told(ours),
            expected=told(shapes),
            mend="make them from the checkpoint that training starts from, with neuron-spec lass",
        )

    def require_directions(self, wanted: Iterable[Direction], where: object = None) -> None:
        """Raises: ModelError if a direction to be trained has no masks."""
        if missing := [str(d) for d in wanted if d not in self.directions]:
            raise ModelError(
                "directions without masks",
                where=where,
                got=f"masks for {', '.join(self._names())}",
                expected=f"also {', '.join(missing)}",
                mend="make theirs too, or pass --missing-direction compose or dense",
            )

    def compose(self, direction: Direction, pivot: str = ENGLISH) -> WeightMasks:
        """A zero-shot direction's masks, of it alone: x-z takes the encoder's of x-en and the decoder's of en-z.

        Raises:
            DirectionError: if one of the two has no masks.
        """
        rows = {
            "encoder": self._row(Direction(direction.source, pivot)),
            "decoder": self._row(Direction(pivot, direction.target)),
        }
        packed = {key: bits[rows[side_of(key)]][None] for key, bits in self.packed.items()}
        return WeightMasks([direction], packed, dict(self.widths), dict(self.metadata))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one bit per weight to ``path``, and a readable summary to the same name with .json."""
        header = {"format": FORMAT, "directions": self._names(), "shapes": self.shapes, **self.metadata}
        write_json(Path(path).with_suffix(".json"), self.summary())
        # Last, because a stage is complete when this file is there.
        save_tensors(path, self.packed, header)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> WeightMasks:
        """Raises: ArtifactError if the file is missing, damaged, or holds no weight masks."""
        tensors, metadata = load_tensors(path, "weight mask file")
        if metadata.pop("format", None) != FORMAT:
            raise ArtifactError("not a weight mask file", where=path, mend="make one with neuron-spec lass")
        directions = parse_directions(metadata.pop("directions"))
        shapes: dict[str, list[int]] = metadata.pop("shapes")
        wanted = {key: (len(directions), rows, -(-width // 8)) for key, (rows, width) in shapes.items()}
        got = {key: tuple(packed.shape) for key, packed in tensors.items()}
        if got != wanted:
            wrong = [key for key in sorted({*got, *wanted}) if got.get(key) != wanted.get(key)]
            raise ArtifactError(
                "damaged weight mask file",
                where=path,
                got=", ".join(f"{key}: {got.get(key, 'absent')}" for key in wrong),
                expected=", ".join(f"{key}: {wanted.get(key, 'absent')}" for key in wrong),
            )
        return cls(directions, tensors, {key: width for key, (_, width) in shapes.items()}, metadata)
