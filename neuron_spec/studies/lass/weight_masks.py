"""LaSS's subnetworks: which single weights each direction keeps, a bit each, in memory and on disk.

Lin et al. (ACL 2021) mask, per weight matrix, the fraction alpha of weights that are smallest after
fine-tuning on one direction. Every matrix of the encoder's and decoder's layers is masked; embeddings,
layer norms and biases are not, nor (ours, where it is not tied to an embedding) the output projection.

Axis letters: N directions, O out, I in, P = ceil(I / 8) bytes. True = kept.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from neuron_spec.artifacts import differences, hash_state, require_summary_place, write_json
from neuron_spec.directions import Direction, parse_directions
from neuron_spec.errors import ArtifactError, ModelError, SelectionError
from neuron_spec.forms import number
from neuron_spec.languages import ENGLISH, is_english
from neuron_spec.neurons.activations import side_of
from neuron_spec.neurons.by_direction import Masks, pack, require_packed, unpack
from neuron_spec.neurons.choices import SIDES, SUMMARY_MARK


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


def _is_shape(value: Any) -> bool:
    """rows and columns of a matrix"""
    return isinstance(value, list) and len(value) == 2 and all(map(number(1, 2**31, whole=True), value))


@dataclass(repr=False)  # tensors of all directions would fill pages
class WeightMasks(Masks):
    """Which weights each direction runs through.

    Attributes:
        directions: the N directions, naming the rows.
        packed: weight key (``encoder.layers.0.fc1.weight``) -> uint8 ``[N, O, P]``, a bit per weight, 1 = kept.
        widths: weight key -> I, the bits that count of every P bytes.
        metadata: how they were made: alpha, the checkpoint they belong to, seconds per direction.
    """

    what, command, format = "weight mask file", "lass", "weight masks 1"
    kind, how, origin = "weight masks", "make theirs too", "were made from"
    form = {
        "shapes": {str: _is_shape},
        "alpha?": number(0, 1),
        "seconds?": number(0),
        "fine_tuning_seconds?": {str: number(0)},
    }

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
            width = -(-self.widths[key] // 8)
            self.require_shape(packed, torch.uint8, "out", width, what=f"malformed weight masks: {key}")

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
        names = ",".join(self.names)
        return hash_state({f"{key} {self.widths[key]} {names}": bits for key, bits in self.packed.items()})

    def kept(self, key: str, direction: Direction) -> Tensor:
        """One direction's mask of one matrix, bool ``[O, I]``.

        Raises:
            DirectionError: if the direction has no masks.
        """
        (row,) = self.rows([direction])
        return unpack(self.packed[key][row], self.widths[key])

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
            "directions": self.names,
            "maskable_weights": sum(sizes.values()),
            "dropped_percent": {name: round(p, 3) for name, p in zip(self.names, percent, strict=True)},
            "shapes": {key: list(shape) for key, shape in self.shapes.items()},
        }

    def require_fit(self, shapes: Mapping[str, tuple[int, int]], where: object = None) -> None:
        """Raises: ModelError if a model whose maskable matrices have these ``(O, I)`` has others than the masks."""
        ours, theirs = ({key: list(shape) for key, shape in both.items()} for both in (self.shapes, shapes))
        if ours != theirs:
            raise ModelError(
                "the weight masks are for another model",
                where=where,
                **differences(ours, theirs, at_most=4),
                mend="make them from the checkpoint that training starts from, with neuron-spec lass",
            )

    def compose(self, direction: Direction, pivot: str | None = None) -> WeightMasks:
        """A zero-shot direction's masks, of it alone: x-z takes the encoder's of x-en and the decoder's of en-z.

        Args:
            pivot: in place of English, which is found under its own code.

        Raises:
            DirectionError: if one of the two has no masks.
        """
        if pivot is None:
            codes = (code for of in self.directions for code in (of.source, of.target))
            pivot = next(filter(is_english, codes), ENGLISH)
        encoder, decoder = self.rows([Direction(direction.source, pivot), Direction(pivot, direction.target)])
        packed = {
            key: bits[[encoder if side_of(key) == "encoder" else decoder]]
            for key, bits in self.packed.items()
        }
        return WeightMasks([direction], packed, dict(self.widths), dict(self.metadata))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one bit per weight to ``path``, and a readable summary to the same name with .json."""
        require_summary_place(path, SUMMARY_MARK)
        write_json(Path(path).with_suffix(".json"), self.summary())
        # Last, because a stage is complete when this file is there.
        self.write(path, self.packed, shapes=self.shapes)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> WeightMasks:
        """Raises: ArtifactError if the file is missing, damaged, or holds no weight masks."""
        directions, packed, metadata = cls.read(path)
        shapes: dict[str, list[int]] = metadata.pop("shapes")
        require_packed(packed, len(directions), shapes, where=path, what=cls.what)
        return cls(directions, packed, {key: width for key, (_, width) in shapes.items()}, metadata)
