"""How much each FFN neuron and attention head matters to each translation direction: by gradient, not by frequency.

Michel, Levy and Neubig (2019): I = E |dL/dxi| at xi = 1, of a sentence's loss L, where xi multiplies what a head
hands on. Here xi is the mask itself, for heads and neurons alike: I estimates what masking a unit changes.

It is measured in one teacher-forced pass with its backward pass. A sentence's loss depends on its own activations
alone, so one backward pass of a batch's summed loss holds every sentence's gradient; absolute values are taken per
sentence, whatever the batches. What stands behind dL/dxi, at 1 where a unit is kept:
- a head: its product with the gradient of what it hands to ``out_proj``, summed over tokens;
- a neuron that would emit its constant act(b1) if dropped: the gradient times W1 x, where the neuron is active;
- a neuron that would emit zero: the gradient times its activation.
All three are read where ``fc2`` and ``out_proj`` take their input. Of a unit that is dropped it is 0.

Axis letters: N directions, T tokens, B sentences, D model, F units of a site: neurons or heads.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from neuron_spec.backends.fairseq.loading import TeacherForced, Text
from neuron_spec.directions import Direction
from neuron_spec.errors import ModelError
from neuron_spec.modules.taps import tapped
from neuron_spec.neurons.activations import layer_order
from neuron_spec.neurons.by_direction import ByDirection
from neuron_spec.neurons.choices import SILENCED
from neuron_spec.neurons.masks import NeuronMasks

_TOKENS = "tokens"


@dataclass(repr=False)  # tensors of all directions would fill pages
class Importance(ByDirection):
    """Sums of |dL/dxi| over sentences, L in nats summed over the text of a sentence's target, the language token left out.

    Attributes:
        directions: the N directions, naming the rows.
        sums: site (``encoder.layers.0``, ``encoder.layers.0.self_attn``) -> float64 ``[N, F]``.
        tokens: int64 ``[N]``, how many tokens that text has.
        metadata: how they were made; its ``checkpoint_sha256`` says from which weights.
    """

    what, command, format = "file of importance", "importance", "importance 1"

    directions: list[Direction]
    sums: dict[str, Tensor]
    tokens: Tensor
    metadata: dict[str, Any] = field(default_factory=dict)

    @property
    def sites(self) -> list[str]:
        return sorted(self.sums, key=layer_order)

    def per_token(self) -> dict[str, Tensor]:
        """Site -> float64 ``[N, F]``, nats per target token."""
        return {site: self.sums[site] / self.tokens[:, None] for site in self.sites}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write ``importance.safetensors``; metadata in its header, as JSON."""
        self.write(path, {**self.sums, _TOKENS: self.tokens})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Importance:
        """Raises: ArtifactError if the file is missing, damaged, or not of importance."""
        directions, sums, metadata = cls.read(path, _TOKENS)
        importance = cls(directions, sums, sums.pop(_TOKENS), metadata)
        for site, rows in sums.items():
            what = f"damaged {cls.what}: {site}"
            importance.require_shape(rows, torch.float64, "neurons or heads", what=what, where=path)
        importance.require_shape(
            importance.tokens, torch.int64, what=f"damaged {cls.what}: tokens", where=path
        )
        return importance


class ImportanceMeter(TeacherForced):
    """A checkpoint in memory whose units' importance is measured, with any masks."""

    def __init__(self, *args: Any, dropped_neurons: str | None = None, **options: Any) -> None:
        """Load the checkpoint once, as `TeacherForced` does.

        Args:
            dropped_neurons: ``bias`` or ``zero``; None: as the checkpoint was trained.

        Raises:
            NeuronSpecError: as `TeacherForced`, or if the model's activation is not ReLU, or its dropped neurons compute.
        """
        super().__init__(*args, **options)
        self.model.require_relu()
        if dropped_neurons is not None:
            for fc1 in self.model.ffn_layers().values():
                fc1.dropped_neurons = dropped_neurons
        elif any(fc1.dropped_neurons not in SILENCED for fc1 in self.model.ffn_layers().values()):
            raise ModelError(
                "in this checkpoint dropped neurons compute like kept ones: no mask has an importance",
                where=args[0] if args else None,
                got="--dropped-neurons frozen in its training",
                mend=f"say what a dropped neuron would emit: --dropped-neurons {' or '.join(SILENCED)}",
            )

    def set_masks(self, masks: NeuronMasks) -> None:
        """Run through these masks from now on; sites that they do not name are dense."""
        self.model.set_masks(masks, self._task.langs)

    def mean_losses(self, text: Text, each_batch: Callable[[], Any] = lambda: None) -> list[float]:
        """As `TeacherForced`, by the very computation that importance goes through."""
        with tapped(self.model):
            return super().mean_losses(text, each_batch)

    def importance(
        self,
        text: Text,
        rows: Collection[int] | None = None,
        each_batch: Callable[[], Any] = lambda: None,
    ) -> dict[str, Tensor]:
        """Sums of |dL/dxi| over the text's sentences.

        Args:
            rows: of the directions that are measured; None: all. Of the others it is 0.

        Returns:
            Site -> float64 ``[N, F]``, on the CPU.
        """
        sums = {
            site: torch.zeros(len(self.directions), size, dtype=torch.float64, device=self.device)
            for site, size in self.model.sites().items()
        }
        taken: dict[str, Tensor] = {}  # site -> what the last forward pass gave to its `fc2` or `out_proj`
        taps = {site: partial(taken.__setitem__, site) for site in sums}
        fc1s = self.model.ffn_layers()
        with tapped(self.model, taps), torch.enable_grad():
            for row, batch in text.batches:
                if rows is not None and row not in rows:
                    continue
                loss = self._loss(batch)
                gradients = dict(zip(taken, torch.autograd.grad(loss, list(taken.values())), strict=True))
                for site, of_site in sums.items():
                    from_mask, fc1 = taken[site].detach(), fc1s.get(site)
                    if fc1 is not None and fc1.dropped_neurons != "zero":
                        # What the mask multiplies, where a gradient comes through.
                        from_mask = from_mask - torch.where(from_mask > 0, fc1.bias.detach(), 0.0)
                    product = gradients[site] * from_mask
                    per_unit = product.unflatten(-1, (of_site.size(1), -1)).sum(dim=(0, -1))  # [B, F]
                    of_site[row] += per_unit.abs().double().sum(0)
                taken.clear()
                each_batch()
        return {site: of_site.cpu() for site, of_site in sums.items()}
