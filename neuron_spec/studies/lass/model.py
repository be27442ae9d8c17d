"""``neuron_spec_lass``: fairseq's transformer of which each direction runs through its own weights (LaSS).

A baseline: what a direction keeps to itself is a subnetwork of single weights in every matrix of the layers.
A batch holds one direction. For a layer's pass its weights are replaced by masked ones, and back-propagation
gives the dropped entries a gradient of exactly zero. Masks are buffers, a bit per weight, so a checkpoint
carries them; without masks it is the plain transformer, with the plain transformer's keys.

A gradient of zero leaves a weight alone under SGD. Under Adam, a weight that no direction keeps stays too,
but one that a direction drops and others keep moves on by momentum in that direction's updates.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import torch
from fairseq.models import register_model
from torch import Tensor, nn

from neuron_spec.backends.fairseq.checkpoints import require_trainable
from neuron_spec.directions import Direction
from neuron_spec.errors import ModelError
from neuron_spec.models.neuron_spec_transformer import (
    NeuronSpecTransformer,
    register_architectures,
    sides_of,
)
from neuron_spec.modules.specialized_ffn import Route
from neuron_spec.neurons.by_direction import unpack
from neuron_spec.studies.lass.weight_masks import WeightMasks, maskable

_MASK = "weight_mask"  # a buffer of each Linear, beside its weight: uint8 [N, O, P]


class _MaskedLayer:
    """Mixin for our layers: every Linear runs with the weights that the route's direction keeps."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.linears = [module for module in self.modules() if isinstance(module, nn.Linear)]  # type: ignore[attr-defined]
        for linear in self.linears:
            linear.register_buffer(_MASK, None)
        # One row of the masks, and what it was unpacked from (held, so that no later mask gets its id).
        self._unpacked: tuple[tuple[Any, ...], list[Tensor], list[Tensor]] | None = None

    def forward(self, *args: Any, route: Route | None = None, **kwargs: Any) -> Any:
        """As the parent, with masked weights.

        Raises:
            ModelError: if the batch holds several directions.
        """
        if route is None:  # without masks
            return super().forward(*args, **kwargs)  # type: ignore[misc]
        if len(route.distinct) != 1:
            raise ModelError(
                "weight masks need one direction per batch",
                got=f"a batch of {len(route.distinct)}",
                mend="drop --batching mixed",
            )
        try:
            for linear, kept in zip(self.linears, self._kept(route.distinct[0]), strict=True):
                # The Linears compute with other tensors; their parameters stay registered, in their order: an
                # instance's own attribute is found before a module's parameter. fairseq's attention reads its
                # projections' weights past their forward, so replacing what those compute would not do.
                # Not times the mask: a gradient that overflowed, in half precision, would not be zero times zero.
                vars(linear)["weight"] = torch.where(kept, linear.weight, 0.0)
            return super().forward(*args, **kwargs)  # type: ignore[misc]
        finally:
            for linear in self.linears:
                vars(linear).pop("weight", None)

    def _kept(self, row: int) -> list[Tensor]:
        """bool ``[O, I]`` per Linear; unpacked when the direction changes, and for one direction at a time."""
        packed: list[Tensor] = [getattr(linear, _MASK) for linear in self.linears]
        key = (row, *((id(mask), mask._version) for mask in packed))
        if self._unpacked is None or self._unpacked[0] != key:
            kept = [
                unpack(mask[row], linear.in_features)
                if row < len(mask)  # one past the last: the dense layer
                else torch.ones_like(linear.weight, dtype=torch.bool)
                for mask, linear in zip(packed, self.linears, strict=True)
            ]
            self._unpacked = key, packed, kept
        return self._unpacked[2]


@register_model("neuron_spec_lass")
class NeuronSpecLass(NeuronSpecTransformer):
    """fairseq's transformer with a mask on every weight of its layers."""

    masks_flag = "--weight-masks"
    no_masks = "this model takes masks of weights (--weight-masks), not of neurons"
    encoder_class, decoder_class = sides_of(_MaskedLayer)

    @classmethod
    def add_args(cls, parser: argparse.ArgumentParser) -> None:
        super(NeuronSpecTransformer, cls).add_args(parser)  # the parent's own flags are of specialized FFNs
        parser.add_argument(
            "--weight-masks",
            default=None,  # said, or fairseq leaves it out of the arguments
            metavar="FILE",
            help="train with these masks (from neuron-spec lass); a checkpoint carries its own",
        )

    def linears(self) -> dict[str, nn.Linear]:
        """Weight key (``encoder.layers.0.fc1.weight``) -> its Linear, for every weight that is masked."""
        shapes = maskable({name: weight.shape for name, weight in self.named_parameters()})
        modules = dict(self.named_modules())
        return {key: modules[key.removesuffix(".weight")] for key in shapes}

    def start_training(
        self, args: argparse.Namespace, directions: Sequence[Direction], langs: Sequence[str]
    ) -> None:
        """Take the masks of ``--weight-masks``, if any.

        Raises:
            ArtifactError: if the file is missing, damaged, or holds no weight masks.
            ModelError: if it is for another checkpoint, model, dictionary or other directions.
        """
        if not (path := args.weight_masks):
            return
        if args.batching != "one-direction":
            raise ModelError("weight masks need one direction per batch", got="--batching mixed")
        masks = WeightMasks.load(path)
        symbols = self.encoder.dictionary.symbols
        require_trainable(masks, args, directions=directions, langs=langs, symbols=symbols, where=path)
        self.set_weight_masks(masks, langs, where=path)

    def set_weight_masks(self, masks: WeightMasks, langs: Sequence[str], where: object = None) -> None:
        """Let each direction run through its own weights.

        Raises:
            ModelError: if the masks are for a model of other matrices.
            DirectionError: if the masks name a language that is not in ``langs``.
        """
        linears = self.linears()
        masks.require_fit({key: (len(m.weight), m.in_features) for key, m in linears.items()}, where=where)
        self.set_mask_rows(masks.directions, langs)
        for key, linear in linears.items():
            setattr(linear, _MASK, masks.packed[key].to(linear.weight.device))

    def weight_masks(self, langs: Sequence[str]) -> WeightMasks:
        """The masks that the model carries. Raises: ModelError if it has none."""
        directions, order = self.masked_directions(langs)
        linears = self.linears()
        packed = {key: getattr(linear, _MASK).cpu()[order] for key, linear in linears.items()}
        return WeightMasks(directions, packed, {key: linear.in_features for key, linear in linears.items()})

    def mask_buffers(self) -> dict[str, tuple[nn.Module, str]]:
        return {f"{key.removesuffix('weight')}{_MASK}": (m, _MASK) for key, m in self.linears().items()}


register_architectures("neuron_spec_lass")
