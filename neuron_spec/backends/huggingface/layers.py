"""The layers of a specialized model of transformers: what tells them a batch's directions, and their two Linears.

Axis letters: K a direction's own neurons of a layer, B sentences, T tokens, D model, F ffn.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from neuron_spec.errors import ModelError
from neuron_spec.modules.specialized_ffn import (
    GatheringLinear,
    Route,
    SpecializedFC1,
    SpecializedFC2,
    version,
)


@dataclass
class Running:
    """What the layers of a model share: the directions of the running forward pass.

    Attributes:
        is_routed: the model has masks or deltas, so that a pass without directions would be wrong.
        asked: which rows of the masks, and for how many sentences; None: nobody said.
    """

    is_routed: bool = False
    asked: tuple[Route, int | None] | None = None
    _expanded: dict[tuple[int, torch.device], Route] = field(default_factory=dict)

    def ask(self, asked: tuple[Route, int | None] | None) -> None:
        self.asked, self._expanded = asked, {}

    def route(self, hidden: Tensor, side: str) -> Route | None:
        """The route of a layer's batch: in beam search the decoder's is each sentence's as many times as it has beams.

        Raises:
            ModelError: if no direction was given, or not one for each sentence.
        """
        if not self.is_routed:
            return None
        if self.asked is None:
            raise ModelError(
                "a specialized model was run without a direction",
                got="a batch without a direction",
                mend='run it inside `with direction(model, "en-de"):`, or give a direction for each sentence',
            )
        (route, sentences), batch = self.asked, len(hidden)
        if sentences is None or batch == sentences == len(route.distinct) == 1:
            return route
        if batch % sentences or (side == "encoder" and batch != sentences):
            raise ModelError(
                "directions of another batch",
                where=f"the {side}",
                got=f"{batch} sentences, {sentences} directions",
                expected="a direction for each sentence; in the decoder, for each sentence's beams",
            )
        if route.rows is None:
            return route
        key = batch, hidden.device
        if key not in self._expanded:
            rows = route.rows.to(hidden.device).repeat_interleave(batch // sentences)
            self._expanded[key] = Route(route.distinct, rows)
        return self._expanded[key]


class RoutedLayer:
    """Mixin for a layer of transformers: its FFN takes the route of the running pass.

    The route is an argument, so that gradient checkpointing keeps it for the second forward, when another direction may
    be running.
    """

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        hidden = args[0] if args else kwargs["hidden_states"]
        route = self.neuron_running.route(hidden, self.neuron_side)  # type: ignore[attr-defined]
        return super().__call__(*args, neuron_route=route, **kwargs)  # type: ignore[misc]

    def forward(self, *args: Any, neuron_route: Route | None = None, **kwargs: Any) -> Any:
        self.fc1.route = neuron_route  # type: ignore[attr-defined]
        try:
            return super().forward(*args, **kwargs)  # type: ignore[misc]
        finally:
            self.fc1.route = None  # type: ignore[attr-defined]


class LinearDelta(nn.Module):
    """What a direction adds to a Linear: to the rows of its own neurons and their biases, or to their columns.

    Attributes:
        neurons: int64 ``[K]``, ascending.
        weight: ``[K, D]`` of ``fc1``, ``[D, K]`` of ``fc2``.
        bias: ``[K]`` of ``fc1``; None of ``fc2``.
    """

    neurons: Tensor

    def __init__(self, neurons: Tensor, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.register_buffer("neurons", neurons, persistent=False)
        self.weight = nn.Parameter(weight)
        self.bias = None if bias is None else nn.Parameter(bias)

    def added(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Weight and bias of a Linear with the delta: new tensors, those of other neurons as they were, bit for bit."""
        if self.bias is None:
            return weight.index_add(1, self.neurons, self.weight.to(weight.dtype)), bias
        return (
            weight.index_add(0, self.neurons, self.weight.to(weight.dtype)),
            bias.index_add(0, self.neurons, self.bias.to(bias.dtype)),
        )


class _Deltas(GatheringLinear):
    """Mixin for our Linears: a sentence runs through the weights with its direction's delta; others through the base's.

    Attributes:
        deltas: direction -> its delta.
    """

    deltas: nn.ModuleDict

    def reset_deltas(self) -> None:
        """After one has come or gone: forget what was added up."""
        self._reused = None

    def _with_deltas(self, x: Tensor, route: Route) -> Tensor:
        """``[B, T, ...]`` to the same; row numbers are places among the deltas, and one past the last is the base."""
        if route.rows is None:
            return self._of(route.distinct[0], x)
        out = nn.Linear.forward(self, x)  # bit for bit what the base's sentences get without deltas
        for number in route.distinct:
            if number < len(self.deltas):
                here = (route.rows == number).nonzero().flatten()
                out = out.index_copy(0, here, self._of(number, x.index_select(0, here)))
        return out

    def _of(self, number: int, x: Tensor) -> Tensor:
        if number == len(self.deltas):
            return nn.Linear.forward(self, x)
        delta = list(self.deltas.values())[number]
        key = (number, *(version(parameter) for parameter in delta.parameters()))
        return F.linear(x, *self._gathered(key, lambda: delta.added(self.weight, self.bias)))  # type: ignore[operator]


class RoutedFC1(_Deltas, SpecializedFC1):
    """Ours for transformers. `torch.compile` leaves it as it is: which neurons a batch takes is decided on the host."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features)
        self.register_buffer("neuron_mask", None, persistent=False)  # what is saved is the plain model
        self.batch_first = True
        self.deltas = nn.ModuleDict()

    @torch.compiler.disable
    def forward(self, x: Tensor) -> Tensor:
        """``[B, T, D]`` to ``[B, T, F]``, or less where the kept rows are gathered."""
        if not self.deltas:
            return super().forward(x)
        assert self.route is not None
        return self._with_deltas(x, self.route)


class RoutedFC2(_Deltas, SpecializedFC2):
    """The same of ``fc2``."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features)
        self.deltas = nn.ModuleDict()

    @torch.compiler.disable
    def forward(self, hidden: Tensor) -> Tensor:
        """``[B, T, F]``, or less, to ``[B, T, D]``."""
        if not self.deltas:
            return super().forward(hidden)
        (fc1,) = self._fc1
        assert fc1.route is not None
        return self._with_deltas(hidden, fc1.route)


@cache
def routed(layer: Any) -> type:
    """Of the same name, by which libraries that wrap layers know them."""
    return type(layer.__name__, (RoutedLayer, layer), {})
