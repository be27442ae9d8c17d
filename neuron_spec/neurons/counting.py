"""Counting active neurons while a model runs, whichever library runs it.

Axis letters: N directions, F ffn.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from neuron_spec.arguments import MISSING_DIRECTION
from neuron_spec.artifacts import signature
from neuron_spec.directions import Direction
from neuron_spec.errors import ModelError
from neuron_spec.neurons.activations import ActivationCounts, layer_order, side_of
from neuron_spec.neurons.choices import Part

REAL_TOKENS = "real tokens"  # what a profile counts, by its signature, unless padding is counted too
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

# So many hidden vectors are compared and added up at a time: few enough for a CPU's cache, and on a GPU
# 16 MiB at F = 4096 instead of half a gigabyte for 30,000 tokens.
_ROWS_AT_A_TIME = 1024


def profile_signature(
    *,
    checkpoint: str,
    data: str,
    subset: str,
    directions: Sequence[Direction],
    count_padding: bool,
    dtype: torch.dtype,
    part: Part,
    missing_direction: str = MISSING_DIRECTION[0],
    **others: Any,
) -> dict[str, Any]:
    """The metadata of a profile: what its counts follow from. ``dtype`` is the model's; ``others`` are parameters too.

    A profile of the whole subset has no ``part``, and one of directions that have their masks, or of a dense checkpoint, no
    ``missing_direction``.
    """
    of_part = {} if part.is_whole else {"part": str(part)}
    parameters = {
        "subset": subset,
        "directions": [str(direction) for direction in directions],
        "counted": "every position, padding too" if count_padding else REAL_TOKENS,
        "dtype": str(dtype).removeprefix("torch."),
        **of_part,
        **({} if missing_direction == MISSING_DIRECTION[0] else {"missing_direction": missing_direction}),
        **others,
    }
    signed = signature("profile", inputs={"checkpoint": checkpoint, "data": data}, parameters=parameters)
    return {"checkpoint_sha256": checkpoint, "signature": signed, **of_part}


class ActivationCounter:
    """Counts, on the model's device, the tokens on which each neuron is > 0.

    Counts do not depend on batch size or order. Nothing here waits for the device before `result`.
    """

    def __init__(
        self, directions: Sequence[Direction], widths: Mapping[str, int], device: torch.device
    ) -> None:
        """Args: widths: layer key (``encoder.layers.0``) -> F."""
        self.directions = list(directions)
        self._seen = ActivationCounts.zeros(directions, widths, device)
        # One buffer for all layers: fresh memory for each costs a CPU more than the counting.
        self._buffer = torch.empty(_ROWS_AT_A_TIME, max(widths.values()), device=device)
        # Sums of what neurons hand on, by layer: of NaN and inf alike no finite number.
        self._sums = {key: torch.zeros(len(self.directions), device=device) for key in widths}
        self._row = -1  # of the batch that is counted
        self._counted: dict[str, Tensor] = {}  # side -> fp32, 1 for its tokens that count

    def begin(self, row: int, counted: Mapping[str, Tensor]) -> None:
        """Count what comes next for a direction.

        Args:
            row: its place among the directions.
            counted: side -> which of its tokens count, bool, of the shape of the hidden vectors but for the last axis.
        """
        self._row = row
        for side, tokens in counted.items():
            self._counted[side] = tokens.flatten().float()
            self._seen.tokens[side][row] += tokens.sum()

    def count(self, key: str, hidden: Tensor) -> None:
        """``hidden``: ``[..., F]``, what the neurons of a layer hand on, in any precision."""
        counted = self._counted[side_of(key)].split(_ROWS_AT_A_TIME)
        # Sums of products of 0/1 with 0/1 are exact in fp32 below 2**24 tokens a batch.
        sums = counted[0].new_zeros(hidden.size(-1))
        for rows, is_counted in zip(
            hidden.detach().flatten(0, 1).split(_ROWS_AT_A_TIME), counted, strict=True
        ):
            active = self._buffer[: len(rows), : len(sums)]
            torch.gt(rows, 0, out=active)
            sums.addmv_(active.t(), is_counted)
            self._sums[key][self._row] += rows.sum(dtype=torch.float32)
        self._seen.counts[key][self._row] += sums.long()

    def result(
        self, add_over_processes: Callable[[Tensor], Tensor] = lambda counts: counts
    ) -> ActivationCounts:
        """The counts so far, on the CPU.

        Raises:
            ModelError: if a hidden vector held NaN or inf.
        """
        for key in sorted(self._sums, key=layer_order):
            if bad := add_over_processes((~self._sums[key].isfinite()).long()).nonzero().flatten().tolist():
                raise ModelError(
                    "not a number: NaN or inf among what the neurons of a layer hand on",
                    where=key,
                    got=f"in batches of {', '.join(str(self.directions[row]) for row in bad)}",
                    expected="finite numbers: NaN is above nothing, and would count as a neuron that is off",
                    mend="half precision overflows at 65504: profile without --fp16; else the checkpoint is damaged",
                )
        seen = self._seen.counts, self._seen.tokens
        counts, tokens = ({key: add_over_processes(n).cpu() for key, n in of.items()} for of in seen)
        return ActivationCounts(self.directions, counts, tokens)
