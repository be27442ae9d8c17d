"""Measuring importance: one teacher-forced pass with its backward pass, sentence by sentence in one go.

A sentence's loss depends on its own activations alone, so one backward pass of a batch's summed loss holds every
sentence's gradient; absolute values are taken per sentence, as Michel et al. (2019) do, whatever the batches.

What stands behind dL/dxi, where xi multiplies as the mask does, at 1 where a unit is kept:
- a head: its product with the gradient of what it hands to ``out_proj``, summed over tokens;
- a neuron that would emit its constant act(b1) if dropped: the gradient times W1 x, where the neuron is active;
- a neuron that would emit zero: the gradient times its activation.
All three are read where ``fc2`` and ``out_proj`` take their input. Of a unit that is dropped it is 0.

Axis letters: N directions, T tokens, B sentences, D model, F units of a site.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial
from typing import Any

import torch
from torch import Tensor

from neuron_spec.backends.fairseq.loading import TeacherForced, Text
from neuron_spec.modules.specialized_ffn import SpecializedFC1
from neuron_spec.modules.taps import tapped
from neuron_spec.neurons.masks import NeuronMasks


class ImportanceMeter(TeacherForced):
    """A checkpoint in memory whose units' importance is measured, with any masks."""

    def __init__(self, *args: Any, dropped_neurons: str | None = None, **options: Any) -> None:
        """Load the checkpoint once, as `TeacherForced` does.

        Args:
            dropped_neurons: ``bias`` or ``zero``; None: as the checkpoint was trained.

        Raises:
            NeuronSpecError: as `TeacherForced`, or if the model's activation is not ReLU.
        """
        super().__init__(*args, **options)
        self.model.require_relu()
        if dropped_neurons is not None:
            for fc1 in self.model.ffn_layers().values():
                fc1.dropped_neurons = dropped_neurons

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
        taps = {site: partial(_take, taken, site) for site in sums}
        with tapped(self.model, taps), torch.enable_grad():
            for row, batch in text.batches:
                if rows is not None and row not in rows:
                    continue
                loss = self._loss(batch)
                inputs = list(taken.values())
                gradients = dict(zip(taken, torch.autograd.grad(loss, inputs), strict=True))
                for site, of_site in sums.items():
                    product = gradients[site] * self._from_mask(site, taken[site].detach())
                    per_unit = product.unflatten(-1, (of_site.size(1), -1)).sum(dim=(0, -1))  # [B, F]
                    of_site[row] += per_unit.abs().double().sum(0)
                taken.clear()
                each_batch()
        return {site: of_site.cpu() for site, of_site in sums.items()}

    def _from_mask(self, site: str, taken: Tensor) -> Tensor:
        """What of a site's output ``[T, B, D or F]`` the mask multiplies, where a gradient comes through."""
        fc1: SpecializedFC1 | None = self.model.ffn_layers().get(site)
        if fc1 is None or fc1.dropped_neurons == "zero":
            return taken
        return taken - torch.where(taken > 0, fc1.bias.detach(), 0.0)


def _take(taken: dict[str, Tensor], site: str, handed_on: Tensor) -> None:
    taken[site] = handed_on
