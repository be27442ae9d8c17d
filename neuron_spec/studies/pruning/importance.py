"""How much each FFN neuron and attention head matters to each translation direction: by gradient, not by frequency.

Michel, Levy and Neubig (2019): I = E |dL/dxi| at xi = 1, of a sentence's loss L, where xi multiplies what a head
hands on. Here xi is the mask itself, for heads and neurons alike: I estimates what masking a unit changes.

Axis letters: N directions, F units of a site: neurons or heads.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from neuron_spec.directions import Direction
from neuron_spec.neurons.activations import layer_order
from neuron_spec.neurons.by_direction import ByDirection

_TOKENS = "tokens"


@dataclass
class Importance(ByDirection):
    """Sums of |dL/dxi| over sentences, L in nats summed over a sentence's target tokens.

    Attributes:
        directions: the N directions, naming the rows.
        sums: site (``encoder.layers.0``, ``encoder.layers.0.self_attn``) -> float64 ``[N, F]``.
        tokens: int64 ``[N]``, the target tokens of the sentences.
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
        return importance
