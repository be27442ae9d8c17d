"""The specialized FFN: every sentence runs through its own direction's neurons.

One reference form defines truth: ``fc2(act(mask * (W1 x) + b1))``, the mask on the rows of W1 alone.
A dropped neuron thus still emits the constant act(b1), as in the official code
(``dropped_neurons="bias"``); ``"zero"`` silences it.

Two ways to compute it. *multiply* applies the mask to the hidden vector and serves any batch. *gather*
serves a batch of one direction: it computes only the kept rows of fc1 and columns of fc2, and adds what
the dropped neurons' constants amount to.

Axis letters: R mask rows (one per direction), T tokens, B sentences, D model, F ffn, K kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from neuron_spec.errors import ModelError

DROPPED_NEURONS = ("bias", "zero")
FFN_PATHS = ("auto", "gather", "multiply")
# Above this kept fraction, indexing the weights costs more than the smaller products save.
GATHER_BELOW = 0.75


class Route:
    """Which mask row each sentence of the running forward pass takes; shared by one side's layers."""

    def __init__(self) -> None:
        self.rows: Tensor | None = None  # int64 [B]
        self.distinct: list[int] = []  # the same on the host, each once

    @contextmanager
    def over(self, rows: Tensor | None) -> Iterator[None]:
        """Send the forward pass inside the block through ``rows``; None = no masks."""
        previous = self.rows, self.distinct
        # The only wait for the device in a pass: the layers decide on the host.
        self.rows, self.distinct = rows, [] if rows is None else rows.unique().tolist()
        try:
            yield
        finally:
            self.rows, self.distinct = previous


class SpecializedFC1(nn.Linear):
    """``fc1`` of an FFN, specialized once it has masks; a plain Linear before.

    Attributes:
        neuron_mask: buffer, bool ``[R, F]``, True = kept; None without masks. It travels in checkpoints.
    """

    neuron_mask: Tensor | None

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features)
        self.register_buffer("neuron_mask", None)
        self.route = Route()
        self.activation: Callable[[Tensor], Tensor] = F.relu
        self.dropped_neurons = "bias"
        self.ffn_path = "auto"
        self.activation_dropout = 0.0  # probability, of the dropout between fc1 and fc2
        self._row_index: dict[int, tuple[Tensor, Tensor]] = {}
        self._indexed: tuple[int, int, torch.device] | None = None
        self._indexed_mask: Tensor | None = None  # held, so that no later mask gets its id

    def set_mask(self, kept: Tensor) -> None:
        """Take bool ``[R, F]`` as the masks.

        Raises:
            ModelError: if F is not this layer's width.
        """
        if kept.size(1) != self.out_features:
            raise ModelError("masks of another width", got=kept.size(1), expected=self.out_features)
        self.neuron_mask = kept.to(self.weight.device)

    def kept_and_dropped(self, row: int) -> tuple[Tensor, Tensor]:
        """Indices of a row's kept and dropped neurons, int64 ``[K]`` and ``[F - K]``, found once per row."""
        mask = self.neuron_mask
        assert mask is not None
        # The buffer is replaced or overwritten when a checkpoint is loaded, or moves to a device.
        version = (id(mask), mask._version, mask.device)
        if self._indexed != version:
            self._row_index, self._indexed, self._indexed_mask = {}, version, mask
        if row not in self._row_index:
            kept = mask[row]
            self._row_index[row] = kept.nonzero().squeeze(1), (~kept).nonzero().squeeze(1)
        return self._row_index[row]

    def gathers(self) -> int | None:
        """The row to gather in the running forward pass; None where the mask is multiplied."""
        if self.neuron_mask is None or self.ffn_path == "multiply" or len(self.route.distinct) != 1:
            return None
        (row,) = self.route.distinct
        if self.training and self.activation_dropout > 0 and self.dropped_neurons == "bias":
            return None  # that dropout acts on the dropped neurons' constants too
        if row == self.neuron_mask.size(0):  # the dense row: nothing is dropped
            return row
        kept, _ = self.kept_and_dropped(row)
        if self.ffn_path == "auto" and GATHER_BELOW * self.out_features < len(kept) < self.out_features:
            return None
        return row

    def keeps_all(self, row: int) -> bool:
        assert self.neuron_mask is not None
        return row == self.neuron_mask.size(0) or len(self.kept_and_dropped(row)[1]) == 0

    def forward(self, x: Tensor) -> Tensor:
        """``[T, B, D]`` to ``[T, B, F]``, or to ``[T, B, K]`` where the kept rows are gathered."""
        if self.neuron_mask is None:
            return super().forward(x)
        if self.route.rows is None:
            raise ModelError(
                "a specialized model was run without direction ids",
                mend="use --task neuron_specialization, which gives every sentence its direction",
            )
        row = self.gathers()
        if row is not None:
            if self.keeps_all(row):  # bit for bit the plain layer
                return super().forward(x)
            kept, _ = self.kept_and_dropped(row)
            return F.linear(x, self.weight[kept], self.bias[kept])
        if all(self.keeps_all(r) for r in self.route.distinct):
            return super().forward(x)
        rows = self.neuron_mask
        if self.route.distinct[-1] == len(rows):  # the dense row that --missing-direction dense points to
            rows = torch.cat([rows, rows.new_ones(1, self.out_features)])
        mask = rows[self.route.rows].to(x.dtype)  # [B, F]
        if self.dropped_neurons == "bias":
            return torch.addcmul(self.bias, F.linear(x, self.weight), mask)
        return super().forward(x) * mask


class SpecializedFC2(nn.Linear):
    """``fc2`` of the same FFN: narrow where ``fc1`` was."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features)
        self._fc1: tuple[SpecializedFC1, ...] = ()  # in a tuple: not a submodule of ours

    def follow(self, fc1: SpecializedFC1) -> None:
        """Name the ``fc1`` whose output this layer takes."""
        self._fc1 = (fc1,)

    def forward(self, hidden: Tensor) -> Tensor:
        """``[T, B, F]`` or ``[T, B, K]`` to ``[T, B, D]``."""
        (fc1,) = self._fc1
        row = fc1.gathers()
        if row is None or fc1.keeps_all(row):
            return super().forward(hidden)
        kept, dropped = fc1.kept_and_dropped(row)
        bias: Tensor = self.bias
        if fc1.dropped_neurons == "bias":
            # What the dropped neurons emit does not depend on x.
            bias = bias + self.weight[:, dropped] @ fc1.activation(fc1.bias[dropped])
        return F.linear(hidden, self.weight[:, kept], bias)
