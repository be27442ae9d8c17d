"""Counting active neurons during a forward pass.

Axis letters: N directions, T tokens, B sentences, F ffn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from neuron_spec.arguments import MISSING_DIRECTION
from neuron_spec.artifacts import signature
from neuron_spec.directions import Direction, direction_id
from neuron_spec.errors import ModelError
from neuron_spec.models.neuron_spec_transformer import NeuronSpecTransformer
from neuron_spec.modules.taps import tapped
from neuron_spec.neurons.activations import ActivationCounts, side_of
from neuron_spec.neurons.choices import SIDES, WHOLE, Part

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
) -> dict[str, Any]:
    """The metadata of a profile: what its counts follow from. ``dtype`` is the model's.

    A profile of the whole subset has no ``part``, and one of directions that have their masks, or of a dense checkpoint, no
    ``missing_direction``.
    """
    of_part = {} if part.is_whole else {"part": str(part)}
    parameters = {
        "subset": subset,
        "directions": [str(direction) for direction in directions],
        "counted": "every position, padding too" if count_padding else "real tokens",
        "dtype": str(dtype).removeprefix("torch."),
        **of_part,
        **({} if missing_direction == MISSING_DIRECTION[0] else {"missing_direction": missing_direction}),
    }
    signed = signature("profile", inputs={"checkpoint": checkpoint, "data": data}, parameters=parameters)
    return {"checkpoint_sha256": checkpoint, "signature": signed, **of_part}


class NeuronCounter:
    """Counts, on the model's device, the tokens on which each neuron is > 0 after ReLU.

    The input of ``fc2`` is what is looked at, as in the official code; padding is left out unless asked
    for. Counts do not depend on batch size or order. Nothing here waits for the device before `result`.

    Of a part, the other sentences run through the model too, and are not counted: in the same batches, so
    that the counts of all parts add up to those of the whole in any precision, padding included.
    """

    def __init__(
        self,
        model: NeuronSpecTransformer,
        directions: Sequence[Direction],
        langs: Sequence[str],
        *,
        count_padding: bool = False,
        part: Part = WHOLE,
    ) -> None:
        """Raises: ModelError if the model's activation is not ReLU."""
        model.require_relu()
        self.directions = list(directions)
        self.count_padding = count_padding
        self.part = part
        self.padding = model.encoder.padding_idx
        self._row_of = {direction_id(d, langs): row for row, d in enumerate(directions)}
        fc1s = model.ffn_layers()
        widths = {key: fc1.out_features for key, fc1 in fc1s.items()}
        weight = next(model.parameters())
        self.dtype, device = weight.dtype, weight.device
        self._seen = ActivationCounts.zeros(directions, widths, device)
        # One buffer for all layers: fresh memory for each costs a CPU more than the counting.
        self._buffer = torch.empty(_ROWS_AT_A_TIME, max(widths.values()), device=device)
        self._row = -1  # of the batch that is counted
        self._counted: dict[str, Tensor] = {}  # side -> fp32 [T * B], 1 for its tokens that count
        self._model = model
        self._taps = {key: partial(self._count, key) for key in fc1s}

    def _count(self, key: str, hidden: Tensor) -> None:
        """``hidden``: ``[T, B, F]``, what the neurons of a layer hand on, in any precision."""
        counted = self._counted[side_of(key)].split(_ROWS_AT_A_TIME)
        # Sums of products of 0/1 with 0/1 are exact in fp32 below 2**24 tokens a batch.
        sums = counted[0].new_zeros(hidden.size(-1))
        for rows, is_counted in zip(
            hidden.detach().flatten(0, 1).split(_ROWS_AT_A_TIME), counted, strict=True
        ):
            active = self._buffer[: len(rows), : len(sums)]
            torch.gt(rows, 0, out=active)
            sums.addmv_(active.t(), is_counted)
        self._seen.counts[key][self._row] += sums.long()

    @contextmanager
    def counting(self, net_input: Mapping[str, Any], sentences: Tensor | None = None) -> Iterator[None]:
        """Count the forward pass inside the block, which must run on this one-direction batch.

        Args:
            sentences: each sentence's index in its direction's data set, int64 ``[B]``, fairseq's
                ``batch["id"]``; needed where a part is counted.

        Raises:
            ModelError: if the batch is of several directions, of one that is not profiled, or of none; or
                if a part is counted and ``sentences`` are missing.
        """
        row = self._row_of_batch(net_input)
        if sentences is None and not self.part.is_whole:
            raise ModelError(
                "which sentences are of the part?", got="no indices", expected='the batch\'s "id"'
            )
        of_sides = net_input["src_tokens"], net_input["prev_output_tokens"]
        for side, tokens in zip(SIDES, of_sides, strict=True):
            real = torch.ones_like(tokens).bool() if self.count_padding else tokens.ne(self.padding)
            if sentences is not None:
                real = real & self.part.holds(sentences)[:, None]
            self._counted[side] = real.t().flatten().float()  # fairseq's hidden vectors are [T, B, F]
            self._seen.tokens[side][row] += real.sum()
        self._row = row
        with tapped(self._model, self._taps):
            yield

    def _row_of_batch(self, net_input: Mapping[str, Any]) -> int:
        distinct = net_input.get("distinct_ids")
        if distinct is None and net_input.get("direction_ids") is not None:
            distinct = net_input["direction_ids"].unique().tolist()  # waits for the device
        if distinct is None or len(distinct) != 1:
            raise ModelError(
                "profiling counts per direction",
                got="a batch without direction ids"
                if distinct is None
                else f"a batch of {len(distinct)} directions, ids {list(distinct)}",
                expected="batches of one direction",
                mend="use --task neuron_profiling, or neuron-spec profile",
            )
        if (number := int(distinct[0])) not in self._row_of:
            raise ModelError(
                "a batch of a direction that is not profiled",
                got=f"direction id {number}",
                expected=f"one of {', '.join(map(str, self.directions))}",
                mend="profile the batches' directions, with the --langs that they were made with",
            )
        return self._row_of[number]

    def result(
        self, add_over_processes: Callable[[Tensor], Tensor] = lambda counts: counts
    ) -> ActivationCounts:
        """The counts so far, on the CPU."""
        seen = self._seen.counts, self._seen.tokens
        counts, tokens = ({key: add_over_processes(n).cpu() for key, n in of.items()} for of in seen)
        return ActivationCounts(self.directions, counts, tokens)
