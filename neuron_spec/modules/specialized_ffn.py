"""The specialized FFN: every sentence runs through its own direction's neurons.

One reference form defines truth: ``fc2(act(mask * (W1 x) + b1))``, the mask on the rows of W1 alone.
A dropped neuron thus still emits the constant act(b1), as in the official code
(``dropped_neurons="bias"``); ``"zero"`` silences it. With ``"frozen"`` it computes as in the dense model, bit for
bit, and only does not learn: a direction updates the rows of fc1, their biases and the columns of fc2 of its own
neurons. Ours, after sparse updates of language models (arXiv 2403.11621, 2510.13580).

Two ways to compute it. *multiply* applies the mask to the hidden vector and serves any batch. *gather*
serves a batch of one direction: it copies the kept rows of fc1 and columns of fc2 into a smaller FFN,
and adds what the dropped neurons' constants amount to. `SpecializedFC1.gathers` chooses.

Axis letters: R mask rows (one per direction), T tokens, B sentences, D model, F ffn, W gathered width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from neuron_spec.errors import ModelError
from neuron_spec.neurons.choices import FROZEN_WEIGHTS

# Training gathers where the products saved outweigh copying the weights and spreading their gradient:
# where tokens x the fraction left out is at least this. Measured by benchmarks/ffn_step.py --break-even: on an H200
# gathering took 1.4 to 2.0 times as long at every size tried, the largest half of 4,096 neurons and 8,192 tokens.
BREAK_EVEN_TOKENS = {"cpu": 40, "cuda": math.inf}
# Gathered widths are rounded up to this many neurons: matrix products of odd width were up to a fifth
# slower on a CPU, and GPUs ask for multiples of 8 in half precision.
WIDTH_MULTIPLE = 16


@dataclass(frozen=True)
class Route:
    """Which mask rows the sentences of one forward pass take.

    Attributes:
        distinct: the rows, each once, on the host: choices are made without waiting for the device.
        rows: int64 ``[B]``, per sentence; None where all take the same.
    """

    distinct: tuple[int, ...]
    rows: Tensor | None = None


@dataclass
class Compact:
    """Which neurons a gathered FFN has, for one mask row.

    Attributes:
        order: int64 ``[F]``, the neurons' indices: the kept ones, then the dropped, each in ascending order.
        kept: how many are kept.
        width: W, ``kept`` rounded up; the few dropped neurons in between emit what dropped neurons emit.
    """

    order: Tensor
    kept: int
    width: int


@dataclass
class _MaskIndex:
    """What is derived from a mask: small, on the host, or of one row at a time."""

    mask: Tensor  # held, so that no later mask gets its id
    version: tuple[Any, ...]
    kept: list[int]  # per row
    last: tuple[int, Compact] | None = field(default=None)


def version(tensor: Tensor) -> tuple[Any, ...]:
    """Changes when the tensor is moved, converted or written to, other than through ``.data``."""
    return id(tensor), tensor.data_ptr(), tensor._version, tensor.dtype, tensor.device


class _GatherRows(torch.autograd.Function):
    """``weight[order[:width]]`` with zeros beyond the kept rows. The gradient of all others is exactly zero."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, order: Tensor, kept: int, width: int) -> Tensor:
        ctx.save_for_backward(order)
        ctx.kept, ctx.shape = kept, weight.shape
        rows = weight.index_select(0, order[:width])
        rows[kept:] = 0
        return rows

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (order,) = ctx.saved_tensors
        full = grad.new_zeros(ctx.shape)
        # Indices are distinct: adding to zeros copies, and is the faster of the two on CPUs.
        return full.index_add_(0, order[: ctx.kept], grad[: ctx.kept]), None, None, None


class _GatherColumns(torch.autograd.Function):
    """``weight[:, order[:width]]``, and the product of the other columns with their neurons' constants.

    One function for both, so that the gradient of the weight is written once.
    """

    @staticmethod
    def forward(
        ctx: Any, weight: Tensor, constants: Tensor, order: Tensor, width: int
    ) -> tuple[Tensor, Tensor]:
        left_out, emitted = _columns(weight, order[width:]), constants[order[width:]]
        ctx.save_for_backward(order, left_out, emitted)
        ctx.width = width
        return _columns(weight, order[:width]), torch.mv(left_out, emitted).to(weight.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor, grad_constant: Tensor) -> tuple[Tensor | None, ...]:
        order, left_out, emitted = ctx.saved_tensors
        gathered, rest = order[: ctx.width], order[ctx.width :]
        full = grad.new_empty(len(grad), len(order))
        full.scatter_(1, gathered.expand(len(grad), -1), grad)
        full.scatter_(1, rest.expand(len(grad), -1), torch.outer(grad_constant, emitted).to(grad.dtype))
        constants = emitted.new_zeros(len(order))
        constants[rest] = torch.mv(left_out.t(), grad_constant).to(constants.dtype)
        return full, constants, None, None


def _columns(weight: Tensor, index: Tensor) -> Tensor:
    # For columns, gather with an expanded index is more than twice as fast as index_select on CPUs.
    return weight.gather(1, index.expand(len(weight), -1))


class GatheringLinear(nn.Linear):
    """A Linear that can run with some of its weights.

    They are gathered anew in each training step; in evaluation once per direction, and reused over all
    steps of the beam search.
    """

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features)
        self._reused: tuple[tuple[Any, ...], tuple[Tensor, ...]] | None = None

    def train(self, mode: bool = True) -> Self:
        if mode:
            # fairseq's optimizers write through .data, which leaves a tensor's version as it was.
            self._reused = None
        return super().train(mode)

    def _gathered(self, key: tuple[Any, ...], gather: Callable[[], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        if self.training or torch.is_grad_enabled():
            return gather()
        key = (*key, version(self.weight), version(self.bias))
        if self._reused is None or self._reused[0] != key:
            self._reused = key, gather()
        return self._reused[1]


class SpecializedFC1(GatheringLinear):
    """``fc1`` of an FFN, specialized once it has masks; a plain Linear before.

    Attributes:
        neuron_mask: buffer, bool ``[R, F]``, True = kept; None without masks. It travels in checkpoints.
        route: which rows the running forward pass takes; the layer sets it.
    """

    neuron_mask: Tensor | None

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features)
        self.register_buffer("neuron_mask", None)
        self.route: Route | None = None
        # Called with the pre-activations of all neurons, ``[T, B, F]``, dropped ones too; for that it multiplies.
        self.watch: Callable[[Tensor], None] | None = None
        self.batch_first = False  # hidden vectors are [B, T, F], as outside fairseq
        self.activation: Callable[[Tensor], Tensor] = F.relu
        self.dropped_neurons = "bias"
        self.frozen_weights: Sequence[str] = FROZEN_WEIGHTS  # of dropped neurons, with "frozen"
        self.ffn_path = "auto"
        self.activation_dropout = 0.0  # probability, of the dropout between fc1 and fc2
        self._index: _MaskIndex | None = None

    def set_mask(self, kept: Tensor) -> None:
        """Take bool ``[R, F]`` as the masks.

        Raises:
            ModelError: if F is not this layer's width.
        """
        if kept.size(1) != self.out_features:
            raise ModelError("masks of another width", got=kept.size(1), expected=self.out_features)
        self.neuron_mask = kept.to(self.weight.device)

    def _mask_index(self) -> _MaskIndex:
        mask = self.neuron_mask
        assert mask is not None
        # The buffer is replaced or overwritten when a checkpoint is loaded, or moves to a device.
        if self._index is None or self._index.version != version(mask):
            self._index = _MaskIndex(mask, version(mask), mask.sum(1).tolist())
        return self._index

    def keeps_all(self, row: int) -> bool:
        """Whether a row drops nothing; row R, one past the last, never does."""
        kept = self._mask_index().kept
        return row == len(kept) or kept[row] == self.out_features

    def compact(self, row: int) -> Compact:
        """A row's gathered FFN. Never waits for the device, and remembers one row only."""
        index = self._mask_index()
        if index.last is None or index.last[0] != row:
            kept, count = index.mask[row], index.kept[row]
            place = torch.where(kept, kept.cumsum(0), count + (~kept).cumsum(0)) - 1
            order = torch.empty_like(place).scatter_(0, place, torch.arange(len(place), device=place.device))
            width = min(-(-count // WIDTH_MULTIPLE) * WIDTH_MULTIPLE, self.out_features)
            index.last = row, Compact(order, count, width)
        return index.last[1]

    def gathers(self, tokens: int) -> Compact | None:
        """The smaller FFN that the running forward pass of so many tokens takes; None = multiply."""
        assert self.route is not None
        if self.watch is not None or self.ffn_path == "multiply" or len(self.route.distinct) != 1:
            return None
        if self.training and self.activation_dropout > 0 and self.dropped_neurons == "bias":
            return None  # that dropout acts on the dropped neurons' constants too
        compact = self.compact(*self.route.distinct)
        if (left_out := self.out_features - compact.width) == 0:
            return None
        if self.ffn_path == "auto" and (self.training or torch.is_grad_enabled()):
            break_even = BREAK_EVEN_TOKENS.get(self.weight.device.type, BREAK_EVEN_TOKENS["cuda"])
            if tokens * left_out < break_even * self.out_features:
                return None
        return compact

    def forward(self, x: Tensor) -> Tensor:
        """``[T, B, D]`` to ``[T, B, F]``, or to ``[T, B, W]`` where the kept rows are gathered."""
        if self.neuron_mask is None:
            return super().forward(x)
        if self.route is None:
            raise ModelError(
                "a specialized model was run without direction ids",
                mend="use --task neuron_specialization, which gives every sentence its direction",
            )
        if all(self.keeps_all(row) for row in self.route.distinct):
            plain = super().forward(x)  # bit for bit the plain layer
            if self.watch is not None:
                self.watch(plain.detach())
            return plain
        if self.dropped_neurons == "frozen":
            hidden = self._frozen(x)
            if self.watch is not None:
                self.watch(hidden.detach())
            return hidden
        compact = self.gathers(x.numel() // self.in_features)
        if compact is not None:
            return F.linear(x, *self._gathered(self._key(), lambda: self._rows(compact)))
        hidden = F.linear(x, self.weight)
        if self.watch is not None:
            self.watch(hidden.detach() + self.bias.detach())
        mask = self._mask_of(self.route).to(hidden.dtype)
        if self.dropped_neurons == "bias":
            return torch.addcmul(self.bias, hidden, mask)
        return (hidden + self.bias) * mask

    def updated_neurons(self) -> Tensor | None:
        """With ``frozen``, the neurons that this pass may update, bool ``[F]`` or ``[B, F]``; None = all, or none learns."""
        if self.neuron_mask is None or self.dropped_neurons != "frozen" or not torch.is_grad_enabled():
            return None
        if self.route is None or all(self.keeps_all(row) for row in self.route.distinct):
            return None
        return self._mask_of(self.route)

    def _frozen(self, x: Tensor) -> Tensor:
        own = self.updated_neurons()
        if own is None:
            return super().forward(x)
        weight, bias = (
            parameter.detach() if f"fc1.{name}" in self.frozen_weights else parameter
            for name, parameter in (("weight", self.weight), ("bias", self.bias))
        )
        # where hands on the gradient of what it takes, and its value untouched.
        if own.dim() == 1:
            rows = torch.where(own.unsqueeze(1), self.weight, weight)
            return F.linear(x, rows, torch.where(own, self.bias, bias))
        return torch.where(own, super().forward(x), F.linear(x, weight, bias))

    def _key(self) -> tuple[Any, ...]:
        assert self.route is not None
        return (self.route.distinct, self._mask_index().version, self.dropped_neurons)

    def _rows(self, compact: Compact) -> tuple[Tensor, Tensor]:
        weight = _GatherRows.apply(self.weight, compact.order, compact.kept, compact.width)
        bias = self.bias.index_select(0, compact.order[: compact.width])
        if self.dropped_neurons == "zero":
            bias = bias * (torch.arange(compact.width, device=bias.device) < compact.kept)
        return weight, bias

    def _mask_of(self, route: Route) -> Tensor:
        """bool ``[F]`` if all sentences take the same row, else ``[B, F]``, or ``[B, 1, F]`` where B comes first."""
        assert self.neuron_mask is not None
        if route.rows is None:
            return self.neuron_mask[route.distinct[0]]
        last = len(self.neuron_mask) - 1  # row R, one past it, keeps all
        kept = self.neuron_mask[route.rows.clamp(max=last)] | (route.rows > last).unsqueeze(1)
        return kept.unsqueeze(1) if self.batch_first else kept


class SpecializedFC2(GatheringLinear):
    """``fc2`` of the same FFN: narrow where ``fc1`` was."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features)
        self._fc1: tuple[SpecializedFC1, ...] = ()  # in a tuple: not a submodule of ours

    def follow(self, fc1: SpecializedFC1) -> None:
        """Name the ``fc1`` whose output this layer takes."""
        self._fc1 = (fc1,)

    def forward(self, hidden: Tensor) -> Tensor:
        """``[T, B, F]`` or ``[T, B, W]`` to ``[T, B, D]``."""
        (fc1,) = self._fc1
        if hidden.size(-1) == self.in_features:
            own = fc1.updated_neurons() if "fc2.weight" in fc1.frozen_weights else None
            return super().forward(hidden) if own is None else self._frozen(hidden, own)
        assert fc1.route is not None
        compact = fc1.compact(*fc1.route.distinct)
        # The constants depend on the other layer's bias.
        key = (*fc1._key(), version(fc1.bias))
        return F.linear(hidden, *self._gathered(key, lambda: self._columns(fc1, compact)))

    def _frozen(self, hidden: Tensor, own: Tensor) -> Tensor:
        if own.dim() == 1:
            return F.linear(hidden, torch.where(own, self.weight, self.weight.detach()), self.bias)
        learning = F.linear(hidden.detach() * own, self.weight)
        # The difference is 0, and has the gradient of the columns.
        return F.linear(hidden, self.weight.detach(), self.bias) + (learning - learning.detach())

    def _columns(self, fc1: SpecializedFC1, compact: Compact) -> tuple[Tensor, Tensor]:
        constants = fc1.activation(fc1.bias)
        if fc1.dropped_neurons == "zero":
            constants = torch.zeros_like(constants)
        weight, constant = _GatherColumns.apply(self.weight, constants, compact.order, compact.width)
        return weight, self.bias + constant
