"""Counting active neurons during a forward pass of fairseq's.

Axis letters: T tokens, B sentences, F ffn.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from neuron_spec.directions import Direction, direction_id
from neuron_spec.errors import ModelError
from neuron_spec.models.neuron_spec_transformer import NeuronSpecTransformer
from neuron_spec.modules.taps import tapped
from neuron_spec.neurons.choices import SIDES, WHOLE, Part
from neuron_spec.neurons.counting import ActivationCounter


class NeuronCounter(ActivationCounter):
    """Counts of a model of ours: the input of ``fc2`` is what is looked at, as in the official code, after ReLU.

    Padding is left out unless asked for.

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
        fc1s = model.ffn_layers()
        weight = next(model.parameters())
        super().__init__(directions, {key: fc1.out_features for key, fc1 in fc1s.items()}, weight.device)
        self.dtype = weight.dtype
        self.count_padding = count_padding
        self.part = part
        self.padding = model.encoder.padding_idx
        self._row_of = {direction_id(d, langs): row for row, d in enumerate(directions)}
        self._model = model
        self._taps = {key: partial(self.count, key) for key in fc1s}

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
        counted = {}
        for side, tokens in zip(SIDES, of_sides, strict=True):
            real = torch.ones_like(tokens).bool() if self.count_padding else tokens.ne(self.padding)
            if sentences is not None:
                real = real & self.part.holds(sentences)[:, None]
            counted[side] = real.t()  # fairseq's hidden vectors are [T, B, F]
        self.begin(row, counted)
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
