"""Where a model's FFNs are, and whether "active" means anything for them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from neuron_spec.errors import ModelError
from neuron_spec.neurons.choices import ACTIVE_RULES, SIDES

# The names of an FFN's Linears: into the neurons, their gate, out of the neurons.
_NAMES = (("fc1", None, "fc2"), ("wi", None, "wo"), ("wi_1", "wi_0", "wo"))
_RELU = (nn.ReLU, F.relu, torch.relu)


@dataclass(frozen=True)
class FFN:
    """A layer's FFN.

    Attributes:
        layer: the layer that it is in.
        holder: the module whose attributes its Linears are, often the layer itself.
        up, gate, down: the names of these attributes; ``gate`` is None where nothing is gated.
        activation: a module or a function.
    """

    layer: Any
    holder: Any
    up: str
    gate: str | None
    down: str
    activation: Any

    @property
    def width(self) -> int:
        """F, how many neurons it has."""
        width: int = getattr(self.holder, self.up).out_features
        return width

    @property
    def is_relu(self) -> bool:
        return any(self.activation is relu or type(self.activation) is relu for relu in _RELU)


def ffns(model: Any) -> dict[str, FFN]:
    """Layer key (``encoder.layers.0``) -> its FFN.

    Raises:
        ModelError: if the model is no encoder-decoder, or a layer has no FFN of two Linears.
    """
    if not getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        raise ModelError(
            "not an encoder-decoder",
            got=type(model).__name__,
            expected="a translation model of transformers, such as M2M100ForConditionalGeneration",
        )
    found: dict[str, FFN] = {}
    for side, stack in zip(SIDES, (model.get_encoder(), model.get_decoder()), strict=True):
        layers = getattr(stack, "layers", getattr(stack, "block", ()))
        found |= {f"{side}.layers.{i}": _ffn(layer, f"{side}.layers.{i}") for i, layer in enumerate(layers)}
    if not found:
        raise ModelError("a model without layers", got=type(model).__name__)
    return found


def _ffn(layer: Any, key: str) -> FFN:
    holder = layer
    if not hasattr(layer, "fc1") and hasattr(layer, "layer"):  # T5
        holder = getattr(layer.layer[-1], "DenseReluDense", layer)
    for up, gate, down in _NAMES:
        if isinstance(getattr(holder, up, None), nn.Linear) and isinstance(
            getattr(holder, down, None), nn.Linear
        ):
            activation = getattr(holder, "activation_fn", getattr(holder, "act", None))
            return FFN(layer, holder, up, gate, down, activation)
    wrapped = [
        type(getattr(holder, name)).__name__ for name in ("fc1", "wi", "wi_1") if hasattr(holder, name)
    ]
    raise ModelError(
        "a layer without an FFN of two Linears",
        where=key,
        got=wrapped[0] if wrapped else type(layer).__name__,
        expected="fc1 and fc2, each a torch.nn.Linear",
        mend="merge adapters into the model, or load it without quantization" if wrapped else None,
    )


def require_rule(found: dict[str, FFN], rule: str | None) -> str:
    """The rule by which these neurons are active: the one asked for, or ``relu`` where that means something.

    Raises:
        ModelError: if the rule says nothing about such neurons.
    """
    if rule is not None and rule not in ACTIVE_RULES:
        raise ModelError("no such rule", got=repr(rule), expected=" or ".join(ACTIVE_RULES))
    gated = any(ffn.gate for ffn in found.values())
    if rule == "gate" and not gated:
        raise ModelError("these neurons have no gate", got="active_rule gate", expected="active_rule relu")
    if gated and rule != "gate":
        raise ModelError(
            "gated neurons (GLU): nearly every one is other than zero on every token, so that active (> 0) means nothing",
            got=f"{_name(next(iter(found.values())).activation)}, gated",
            expected="FFNs with a ReLU",
            mend="give active_rule gate (--active-rule gate): a neuron is active where its gate is > 0, which is "
            "LAPE's rule and not the paper's",
        )
    if not gated:
        require_relu(found)
    return rule or "relu"


def require_relu(found: dict[str, FFN]) -> None:
    """Raises: ModelError if active (> 0) means nothing for a layer's activation."""
    for key, ffn in found.items():
        if not ffn.is_relu:
            raise ModelError(
                "neurons are active where ReLU lets them through; this model has another activation",
                where=key,
                got=_name(ffn.activation),
                expected="relu",
            )


def _name(activation: Any) -> str:
    return getattr(activation, "__name__", type(activation).__name__)


class Sites:
    """A model's FFNs as `taps.tapped` takes them: what is tapped is the input of ``fc2``, or of the gate's activation."""

    def __init__(self, found: dict[str, FFN], rule: str = "relu") -> None:
        self._found, self._rule = found, rule

    def ffn_layers(self) -> dict[str, Any]:
        return {key: getattr(ffn.holder, ffn.up) for key, ffn in self._found.items()}

    def attentions(self) -> dict[str, Any]:
        return {}

    def get_submodule(self, target: str) -> nn.Module:
        ffn = self._found[target.removesuffix(".fc2")]
        module: nn.Module = ffn.activation if self._rule == "gate" else getattr(ffn.holder, ffn.down)
        return module
