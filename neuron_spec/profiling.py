"""Counting active neurons during a forward pass.

Axis letters: T tokens, B sentences, F ffn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from neuron_spec.artifacts import signature
from neuron_spec.directions import Direction, direction_id
from neuron_spec.models.neuron_spec_transformer import NeuronSpecTransformer
from neuron_spec.neurons.activations import SIDES, ActivationCounts, side_of


def profile_signature(
    *, checkpoint: str, data: str, subset: str, directions: Sequence[Direction], count_padding: bool
) -> dict[str, Any]:
    """The metadata of a profile: what its counts follow from."""
    parameters = {
        "subset": subset,
        "directions": [str(direction) for direction in directions],
        "counted": "every position, padding too" if count_padding else "real tokens",
    }
    made = signature("profile", inputs={"checkpoint": checkpoint, "data": data}, parameters=parameters)
    return {"checkpoint_sha256": checkpoint, "signature": made}


class NeuronCounter:
    """Counts, on the model's device, the tokens on which each neuron is > 0 after ReLU.

    The input of ``fc2`` is what is looked at, as in the official code; padding is left out unless asked
    for. Counts do not depend on batch size or order.
    """

    def __init__(
        self,
        model: NeuronSpecTransformer,
        directions: Sequence[Direction],
        langs: Sequence[str],
        *,
        count_padding: bool = False,
    ) -> None:
        """Raises: ModelError if the model's activation is not ReLU."""
        model.require_relu()
        self.directions = list(directions)
        self.count_padding = count_padding
        self.padding = model.encoder.padding_idx
        self._row_of = {direction_id(d, langs): row for row, d in enumerate(directions)}
        fc1s = model.ffn_layers()
        device = next(model.parameters()).device
        self._counts = {
            key: torch.zeros(len(directions), fc1.out_features, dtype=torch.int64, device=device)
            for key, fc1 in fc1s.items()
        }
        self._tokens = {
            side: torch.zeros(len(directions), dtype=torch.int64, device=device) for side in SIDES
        }
        self._row: int | None = None
        self._counted: dict[str, Tensor] = {}
        for fc1 in fc1s.values():
            fc1.ffn_path = "multiply"  # the gathered hidden vector lacks the dropped neurons
        modules = dict(model.named_modules())
        for key in fc1s:
            modules[f"{key}.fc2"].register_forward_pre_hook(self._hook(key))

    def _hook(self, key: str) -> Callable[[Any, tuple[Tensor, ...]], None]:
        side = side_of(key)

        def count(module: Any, inputs: tuple[Tensor, ...]) -> None:
            if self._row is None:
                return
            active = (inputs[0] > 0).flatten(0, 1).float()  # [T * B, F]
            # A product of 0/1 with 0/1 in fp32 is exact below 2**24 tokens a batch.
            self._counts[key][self._row] += (self._counted[side] @ active).long()

        return count

    @contextmanager
    def counting(self, net_input: Mapping[str, Any]) -> Iterator[None]:
        """Count the forward pass inside the block, which must run on this one-direction batch."""
        (direction,) = net_input["distinct_ids"]
        self._row = self._row_of[int(direction)]
        for side, tokens in zip(
            SIDES, (net_input["src_tokens"], net_input["prev_output_tokens"]), strict=True
        ):
            real = tokens.new_ones(tokens.shape) if self.count_padding else tokens.ne(self.padding)
            self._counted[side] = real.t().flatten().float()  # fairseq's hidden vectors are [T, B, F]
            self._tokens[side][self._row] += real.sum()
        try:
            yield
        finally:
            self._row = None

    def result(
        self, add_over_processes: Callable[[Tensor], Tensor] = lambda counts: counts
    ) -> ActivationCounts:
        """The counts so far, on the CPU."""
        return ActivationCounts(
            self.directions,
            {key: add_over_processes(counts).cpu() for key, counts in self._counts.items()},
            {side: add_over_processes(tokens).cpu() for side, tokens in self._tokens.items()},
        )
