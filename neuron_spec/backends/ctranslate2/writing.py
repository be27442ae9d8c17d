"""A direction's model for CTranslate2, by its own specification, each layer's FFN as wide as it is."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from neuron_spec.errors import ModelError
from neuron_spec.export.direction_model import DirectionModel, padded, write_tensors
from neuron_spec.export.folder import QUANTIZATIONS

# fairseq's name of an activation -> CTranslate2's.
_ACTIVATIONS = {
    "relu": "RELU",
    "gelu": "GELU",
    "gelu_accurate": "GELUTanh",
    "gelu_fast": "GELUTanh",
    "swish": "SWISH",
}
_PAD, _ITS_PAD = "<pad>", "<blank>"


def write(model: DirectionModel, folder: Path, quantization: str) -> None:
    """Write ``model.bin``, ``config.json`` and the vocabulary into a folder.

    Args:
        quantization: of weights: ``float32``, ``float16`` or ``int8``.

    Raises:
        ModelError: if the model has a part that CTranslate2 has not.
    """
    from ctranslate2.specs import common_spec, transformer_spec

    if model.activation not in _ACTIVATIONS:
        raise ModelError(
            "CTranslate2 does not have this activation",
            got=model.activation,
            expected=", ".join(_ACTIVATIONS),
        )
    shapes = {}
    for name, side in model.sides.items():
        shapes[name] = {
            "num_layers": sum(layer.startswith(f"{name}.") for layer in model.widths),
            "num_heads": side.heads,
            "pre_norm": side.pre_norm,
            "no_final_norm": f"{name}.layer_norm.weight" not in model.weights,
            "activation": common_spec.Activation[_ACTIVATIONS[model.activation]],
            "layernorm_embedding": f"{name}.layernorm_embedding.weight" in model.weights,
        }
    spec = transformer_spec.TransformerSpec(
        transformer_spec.TransformerEncoderSpec(**shapes["encoder"]),
        transformer_spec.TransformerDecoderSpec(**shapes["decoder"]),
    )
    widths = {layer: max(1, kept) for layer, kept in model.kept().items()}  # it takes no empty matrices
    weights = _Weights(padded(dict(model.parameters()), widths))
    (spec.encoder.embeddings[0].weight,) = weights.take("encoder.embed_tokens", "weight")
    (spec.decoder.embeddings.weight,) = weights.take("decoder.embed_tokens", "weight")
    weights.linear(spec.decoder.projection, "decoder.output_projection")
    for name, side in model.sides.items():
        of_side = getattr(spec, name)
        of_side.scale_embeddings = side.embed_scale
        of_side.position_encodings.encodings = np.array(side.positions)
        weights.left.pop(f"{name}.embed_positions.weight", None)  # learned ones, which these are
        for norm in ("layer_norm", "layernorm_embedding"):
            if hasattr(of_side, norm):
                weights.norm(getattr(of_side, norm), f"{name}.{norm}")
        for number, layer in enumerate(of_side.layer):
            key = f"{name}.layers.{number}"
            weights.attention(layer.self_attention, f"{key}.self_attn", ("qkv",))
            if name == "decoder":
                weights.attention(layer.attention, f"{key}.encoder_attn", ("q", "kv"))
            weights.norm(layer.ffn.layer_norm, f"{key}.final_layer_norm")
            weights.linear(layer.ffn.linear_0, f"{key}.fc1")
            weights.linear(layer.ffn.linear_1, f"{key}.fc2")
    if weights.left:
        raise ModelError(
            "the model has parts that CTranslate2's transformer has not",
            got=", ".join(sorted(weights.left)[:4]) + (" ..." if len(weights.left) > 4 else ""),
            mend="export it with --format fairseq or safetensors",
        )
    encoder, decoder = model.sides["encoder"], model.sides["decoder"]
    spec.register_source_vocabulary(_vocabulary(encoder.symbols))
    spec.register_target_vocabulary(_vocabulary(decoder.symbols))
    # As fairseq runs: a source ends with </s>, and a target begins after one.
    spec.config.decoder_start_token = spec.config.eos_token
    spec.config.add_source_eos = True
    spec.validate()
    spec.optimize(quantization)
    spec.save(str(folder))


def writer(model: DirectionModel, format: str, quantization: str | None) -> Callable[[Path], None]:
    """What writes a model into a folder, for CTranslate2 or as ``safetensors``; float32 where nothing else is asked for."""
    if format == "ctranslate2":
        return partial(write, model, quantization=quantization or QUANTIZATIONS[0])
    return partial(write_tensors, model)


def _vocabulary(symbols: list[str]) -> list[str]:
    return [_ITS_PAD if symbol == _PAD else symbol for symbol in symbols]


class _Weights:
    """Weights by fairseq's keys, each of which goes to one place.

    Attributes:
        left: those that no place has taken.
    """

    def __init__(self, weights: Any) -> None:
        self.left: dict[str, Tensor] = dict(weights)

    def take(self, module: str, *names: str) -> list[Any]:
        """Arrays of a module, copied, since CTranslate2 quantizes in place; None where it has none of a name."""
        taken = [self.left.pop(f"{module}.{name}", None) for name in names]
        return [None if value is None else np.array(value) for value in taken]

    def linear(self, spec: Any, *modules: str) -> None:
        """A Linear, or several below each other."""
        weights, biases = zip(*(self.take(module, "weight", "bias") for module in modules), strict=True)
        spec.weight = np.concatenate(weights)
        if any(bias is not None for bias in biases):
            spec.bias = np.concatenate(biases)

    def norm(self, spec: Any, module: str) -> None:
        spec.gamma, spec.beta = self.take(module, "weight", "bias")

    def attention(self, spec: Any, module: str, fused: tuple[str, ...]) -> None:
        """Args: fused: the projections of each of its Linears, before ``out_proj``, by their letters."""
        for linear, letters in zip(spec.linear, fused, strict=False):
            self.linear(linear, *(f"{module}.{letter}_proj" for letter in letters))
        self.linear(spec.linear[-1], f"{module}.out_proj")
        self.norm(spec.layer_norm, f"{module}_layer_norm")
