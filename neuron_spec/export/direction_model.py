"""One direction's model, cut out of a specialized one: a plain transformer that computes the same.

Dropped neurons are gone: their rows of fc1, their columns of fc2. What they emit whatever the input, ReLU(bias), goes
through fc2 into its bias, so that layers become of different widths and nothing else changes. Heads that are dropped
have zeros in out_proj, weights that LaSS drops are zeros where they are.

Axis letters: N directions, F ffn, D model, H heads, P positions. Keys are those of fairseq's plain transformer.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from neuron_spec.artifacts import atomic_folder, save_tensors, write_json
from neuron_spec.directions import Direction
from neuron_spec.export.folder import MODEL_JSON, PIECES, WEIGHTS, write_export_json
from neuron_spec.neurons.activations import layer_order, side_of
from neuron_spec.neurons.by_direction import unpack

# Buffers that only a specialized model has, by the last part of their keys.
NEURON_MASK, HEAD_MASK, WEIGHT_MASK = "neuron_mask", "head_mask", "weight_mask"
_ROUTING = ("mask_rows",)
_NO_WEIGHTS = ("version", "_float_tensor")  # fairseq's own buffers


def cut(
    weights: Mapping[str, Tensor],
    rows: Mapping[str, int],
    *,
    dropped_neurons: str = "bias",
    activation: Callable[[Tensor], Tensor] = torch.relu,
) -> dict[str, Tensor]:
    """The weights that a direction's sentences run through, float32, under the plain transformer's keys.

    A dense model's are returned as they are. Folding is in float64.

    Args:
        weights: of a model, its masks among them.
        rows: side -> the direction's row of that side's masks; one past the last keeps all.
        dropped_neurons: what they emit: ``bias``, ``zero``, or ``frozen``, what they compute, so that none is cut.
    """
    buffers = {NEURON_MASK, HEAD_MASK, WEIGHT_MASK, *_ROUTING}
    plain = {key: value.detach() for key, value in weights.items() if key.rpartition(".")[2] not in buffers}
    for key, masks in weights.items():
        module, _, buffer = key.rpartition(".")
        if buffer not in (NEURON_MASK, HEAD_MASK, WEIGHT_MASK) or rows[side_of(key)] == len(masks):
            continue
        mask = masks[rows[side_of(key)]]
        if buffer == WEIGHT_MASK:
            weight = plain[f"{module}.weight"]
            plain[f"{module}.weight"] = torch.where(unpack(mask, weight.size(1)), weight, 0.0)
        elif buffer == HEAD_MASK:
            weight = plain[f"{module}.out_proj.weight"]
            plain[f"{module}.out_proj.weight"] = weight * mask.repeat_interleave(weight.size(1) // len(mask))
        elif dropped_neurons != "frozen" and not mask.all():
            fc1, fc2 = module, f"{module.removesuffix('fc1')}fc2"
            if dropped_neurons == "bias":
                emitted = activation(plain[f"{fc1}.bias"][~mask].double())
                constant = plain[f"{fc2}.weight"][:, ~mask].double() @ emitted
                plain[f"{fc2}.bias"] = (plain[f"{fc2}.bias"].double() + constant).float()
            for name in (f"{fc1}.weight", f"{fc1}.bias"):
                plain[name] = plain[name][mask]
            plain[f"{fc2}.weight"] = plain[f"{fc2}.weight"][:, mask].contiguous()
    return plain


@dataclass(frozen=True, kw_only=True)
class Side:
    """What the weights of an encoder or decoder do not say.

    Attributes:
        heads: H.
        pre_norm: a layer normalizes what it takes, not what it gives.
        embed_scale: what embeddings are multiplied by.
        positions: float32 ``[P, D]``, from the first token's on.
        symbols: what the rows of its embedding stand for, language tokens among them.
        tag: the language token that its text begins with; None if it has none.
    """

    heads: int
    pre_norm: bool
    embed_scale: float
    positions: Tensor
    symbols: list[str]
    tag: str | None


@dataclass(frozen=True, kw_only=True)
class DirectionModel:
    """A direction's plain transformer.

    Attributes:
        weights: as `cut` gives them.
        widths: layer key (``encoder.layers.0``) -> how many neurons it had before.
        sides: ``encoder`` and ``decoder``.
        activation: fairseq's name of it.
    """

    direction: Direction
    weights: dict[str, Tensor]
    widths: dict[str, int]
    sides: dict[str, Side]
    activation: str

    def kept(self) -> dict[str, int]:
        """Layer key -> how many neurons it has."""
        layers = sorted(self.widths, key=layer_order)
        return {layer: len(self.weights[f"{layer}.fc1.bias"]) for layer in layers}

    def parameters(self) -> Iterator[tuple[str, Tensor]]:
        """Key -> weight, buffers of fairseq's own left out."""
        return ((key, value) for key, value in self.weights.items() if not key.endswith(_NO_WEIGHTS))

    def tied(self) -> dict[str, str]:
        """Key -> the first key whose weights it shares, in memory."""
        first: dict[int, str] = {}
        shared = {}
        for key, value in self.parameters():
            if (of := first.setdefault(value.data_ptr(), key)) != key:
                shared[key] = of
        return shared

    def size(self) -> int:
        """How many parameters it has, shared ones once."""
        tied = self.tied()
        return sum(value.numel() for key, value in self.parameters() if key not in tied)

    def described(self) -> dict[str, Any]:
        """What whoever runs it has to know, for JSON."""
        encoder, decoder = self.sides["encoder"], self.sides["decoder"]
        return {
            "direction": str(self.direction),
            "source_tag": encoder.tag,
            "target_tag": decoder.tag,
            "max_source_positions": len(encoder.positions),
            "max_target_positions": len(decoder.positions),
            "parameters": self.size(),
            "neurons": {
                layer: {"kept": kept, "of": self.widths[layer]} for layer, kept in self.kept().items()
            },
        }


def write_folder(
    model: DirectionModel,
    folder: Path,
    write: Callable[[Path], None],
    *,
    format: str,
    spm: Path | None,
    signed: Mapping[str, Any],
    **said: Any,
) -> None:
    """An export's folder, complete or not there.

    Args:
        write: writes the model into the folder that it is given.
        spm: the SentencePiece model, which is copied.
        said: more for ``export.json``.

    Raises:
        ArtifactError: if something is there already.
    """
    with atomic_folder(folder) as temporary:
        write(temporary)
        if spm:
            shutil.copyfile(spm, temporary / PIECES)
        write_export_json(
            {"format": format, **model.described(), **said, "signature": dict(signed)}, temporary
        )


def write_tensors(model: DirectionModel, folder: Path) -> None:
    """Write the weights and a JSON of all else: shapes, vocabulary, and what of a model its weights do not say."""
    tied = model.tied()
    weights = {key: value for key, value in model.parameters() if key not in tied}
    weights |= {f"{name}.positions": side.positions for name, side in model.sides.items()}
    save_tensors(folder / WEIGHTS, weights, {})
    sides = {
        name: {"heads": side.heads, "pre_norm": side.pre_norm, "embed_scale": side.embed_scale}
        for name, side in model.sides.items()
    }
    encoder, decoder = model.sides["encoder"], model.sides["decoder"]
    write_json(
        folder / MODEL_JSON,
        {
            "activation": model.activation,
            **sides,
            "tied": tied,
            "shapes": {key: list(value.shape) for key, value in weights.items()},
            "source_vocabulary": encoder.symbols,
            "target_vocabulary": "source_vocabulary"
            if decoder.symbols == encoder.symbols
            else decoder.symbols,
        },
    )


def widest(widths: Mapping[str, int]) -> dict[str, int]:
    """Layer key -> the width of the widest layer of its side."""
    return {
        layer: max(widths[other] for other in widths if side_of(other) == side_of(layer)) for layer in widths
    }


def padded(weights: Mapping[str, Tensor], widths: Mapping[str, int]) -> dict[str, Tensor]:
    """The same with FFNs of other widths, by neurons that emit zero: what is computed stays.

    Args:
        widths: layer key -> how many neurons it is to have, as many as it has or more.
    """
    wide = dict(weights)
    for layer, width in widths.items():
        fc1, fc2 = f"{layer}.fc1", f"{layer}.fc2.weight"
        if more := width - len(weights[f"{fc1}.bias"]):
            for name in (f"{fc1}.weight", f"{fc1}.bias"):
                wide[name] = torch.cat([wide[name], wide[name].new_zeros(more, *wide[name].shape[1:])])
            wide[fc2] = torch.cat([wide[fc2], wide[fc2].new_zeros(len(wide[fc2]), more)], dim=1)
    return wide
