"""Deltas: a model of transformers stays as it is, and a direction adds to its own neurons alone.

All neurons compute, and the base's weights are never written to. A sentence of a direction with a delta runs through the
base's weights plus the delta, in every layer on the rows of ``fc1``, the biases and the columns of ``fc2`` of that
direction's neurons; one of any other direction through the base, bit for bit what it was. Several deltas are there at
once. Ours, after sparse updates of language models (arXiv 2403.11621, 2510.13580) and as ``--dropped-neurons frozen`` trains.

A file holds one direction's: of each layer (``encoder.layers.0``) ``.neurons``, a bit for each of F neurons; ``.fc1.weight``
``[K, D]``, ``.fc1.bias`` ``[K]``, ``.fc2.weight`` ``[D, K]``; in its header direction, widths, and which weights it is of.

Axis letters: K a direction's own neurons of a layer, D model, F ffn.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from neuron_spec.artifacts import differences, hash_state, load_tensors, save_tensors, signature
from neuron_spec.backends.huggingface.ffns import ffns
from neuron_spec.backends.huggingface.layers import LinearDelta, RoutedFC1, RoutedFC2
from neuron_spec.backends.huggingface.specialization import (
    DELTAS,
    Specialization,
    require_finite,
    require_masks,
    require_specialization,
    specialization_of,
    specialize,
    unspecialize,
    weights_sha256,
)
from neuron_spec.directions import Direction, as_directions, is_direction
from neuron_spec.errors import ArtifactError, DirectionError, ModelError, some
from neuron_spec.forms import number, require_form
from neuron_spec.neurons.by_direction import pack, require_packed, unpack
from neuron_spec.neurons.masks import NeuronMasks

_FORMAT = "neuron delta 1"
_PARTS = ("fc1.weight", "fc1.bias", "fc2.weight")
_TEXT = (str, None)
_HEADER = {
    "direction": is_direction,
    "widths": {str: number(1, 2**31, whole=True)},
    "base": {"weights_sha256": str, "name?": _TEXT, "model_type?": _TEXT},
}


def add_delta(
    model: Any, asked: Direction | str, masks: NeuronMasks, *, allow_other_checkpoint: bool = False
) -> Any:
    """Give a direction a delta of zeros on its neurons, in place, and return the model.

    Args:
        masks: whose row of the direction says which neurons are its own.

    Raises:
        DirectionError: if it has one already, or no masks.
        ModelError: if the model has masks, or these are for another one; as `specialize`.
    """
    (one,) = as_directions([asked])
    (row,) = NeuronMasks.require(masks).rows([one])
    require_masks(model, masks, allow_other_checkpoint)
    if specialization_of(model) is not None:
        _require_room(model, one)
    specialize(model)
    for key, (fc1, fc2) in _linears(model).items():
        neurons = masks.kept[key][row].nonzero().flatten()
        shapes = (len(neurons), fc1.in_features), (len(neurons),), (fc2.out_features, len(neurons))
        _put(fc1, fc2, one, neurons, *map(fc1.weight.new_zeros, shapes))
    _changed(model)
    return model


def delta_parameters(model: Any, asked: Direction | str | None = None) -> dict[str, nn.Parameter]:
    """Key in the model -> parameter, of a direction's delta or of all: what is to be trained.

    Raises:
        DirectionError: if the direction has no delta.
    """
    state = require_specialization(model)
    parts = [DELTAS] if asked is None else [f"{DELTAS}{_require_delta(state, asked)}."]
    return {key: value for key, value in model.named_parameters() if any(part in key for part in parts)}


def delta_sha256(model: Any, asked: Direction | str) -> str:
    """The hash of a direction's delta: its neurons and weights, in full precision.

    Raises:
        DirectionError: if it has none.
    """
    one = _require_delta(require_specialization(model), asked)
    held = (*model.named_parameters(), *model.named_buffers())
    return hash_state({key: value for key, value in held if f"{DELTAS}{one}." in key})


def remove_delta(model: Any, asked: Direction | str) -> Any:
    """Take a direction's delta away, in place, and return the model, which is bit for bit what it was before.

    Raises:
        DirectionError: if it has none.
    """
    one = _require_delta(require_specialization(model), asked)
    for linears in _linears(model).values():
        for linear in linears:
            del linear.deltas[str(one)]
    _changed(model)
    return model


def merge_delta(model: Any, asked: Direction | str) -> Any:
    """A plain copy of the model, whose weights are the base's with a direction's delta: what it computes is the same.

    Raises:
        DirectionError: if it has none.
    """
    one = _require_delta(require_specialization(model), asked)
    merged = copy.deepcopy(model)
    for linears in _linears(merged).values():
        for linear in linears:
            added = delta_of(linear, one).added(linear.weight.detach(), linear.bias.detach())
            for parameter, value in zip((linear.weight, linear.bias), added, strict=True):
                parameter.data = value
    return unspecialize(merged)


def save_delta(
    model: Any, asked: Direction | str, path: str | os.PathLike[str], *, dtype: torch.dtype | None = None
) -> None:
    """Write a direction's delta to a safetensors file.

    Args:
        dtype: of its weights, such as ``torch.bfloat16`` for half the size; None: as they are.

    Raises:
        DirectionError: if it has none.
    """
    one = _require_delta(require_specialization(model), asked)
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise ModelError("no dtype of weights", got=repr(dtype), expected="such as torch.bfloat16")
    tensors: dict[str, Tensor] = {}
    widths: dict[str, int] = {}
    for key, (fc1, fc2) in _linears(model).items():
        into, out = delta_of(fc1, one), delta_of(fc2, one)
        widths[key] = fc1.out_features
        own = torch.zeros(widths[key], dtype=torch.bool)
        own[into.neurons.cpu()] = True
        tensors[f"{key}.neurons"] = pack(own)
        for part, value in zip(_PARTS, (*into.parameters(), out.weight), strict=True):
            tensors[f"{key}.{part}"] = value.detach().cpu().to(dtype or value.dtype)
    base = weights_sha256(model)
    of_model = {
        "weights_sha256": base,
        "model_type": model.config.model_type,
        "name": model.config._name_or_path,
    }
    signed = signature("delta", inputs={"weights": base}, parameters={"direction": str(one)})
    header = {
        "format": _FORMAT,
        "direction": str(one),
        "widths": widths,
        "base": of_model,
        "signature": signed,
    }
    save_tensors(path, tensors, header)


def load_delta(
    model: Any, path: str | os.PathLike[str], *, allow_other_checkpoint: bool = False
) -> Direction:
    """Give the model the delta of a file, in place, and return its direction.

    Raises:
        ArtifactError: if the file is missing, damaged, or no delta.
        DirectionError: if its direction has one already.
        ModelError: if it is of another model: other layers, widths or, unless ``allow_other_checkpoint``, weights; or if
            the model has masks.
    """
    tensors, header = _read(path)
    one, widths = Direction.parse(header["direction"]), header["widths"]
    ours = {key: ffn.width for key, ffn in ffns(model).items()}
    if widths != ours:
        raise ModelError("the delta is of another model", where=path, **differences(widths, ours, at_most=4))
    kept = {key: unpack(tensors[f"{key}.neurons"], width) for key, width in widths.items()}
    if specialization_of(model) is not None:
        _require_room(model, one)
    shapes = {key: list(value.shape) for key, value in tensors.items() if not key.endswith(".neurons")}
    wanted: dict[str, list[int]] = {}
    for key, ffn in ffns(model).items():
        size, k = getattr(ffn.holder, ffn.up).in_features, int(kept[key].sum())
        wanted |= zip((f"{key}.{part}" for part in _PARTS), ([k, size], [k], [size, k]), strict=True)
    if shapes != wanted:
        raise ModelError(
            "the delta is of another model", where=path, **differences(shapes, wanted, at_most=4)
        )
    if not allow_other_checkpoint:
        _require_base(model, header, path)
    for key, (fc1, fc2) in _linears(specialize(model)).items():
        values = (tensors[f"{key}.{part}"].to(fc1.weight) for part in _PARTS)
        _put(fc1, fc2, one, kept[key].nonzero().flatten(), *values)
    _changed(model)
    return one


def load_deltas(
    model: Any, paths: Sequence[Path], asked: Iterable[Direction] | None = None
) -> list[Direction]:
    """Give the model the deltas of files, and return their directions: what commands that name files do.

    Args:
        asked: what is to run through them. In Python a direction without a delta runs through the base; who names files
            and a direction that none of them is of has named the wrong ones.

    Raises:
        DirectionError: if a direction that is asked has no delta among them; or as `load_delta`.
    """
    found = [load_delta(model, path) for path in paths]
    for one in asked or () if paths else ():
        if one not in found:
            raise DirectionError(
                "no delta of the direction",
                where=some([str(path) for path in paths]),
                got=str(one),
                expected=f"one of {', '.join(map(str, found))}",
                mend="name its delta, or leave --delta out: the model as it is gives the same, bit for bit",
            )
    return found


def restore_delta(model: Any, path: str | os.PathLike[str]) -> None:
    """Set the delta that a direction has to the values of its file, in its own parameters.

    Raises:
        ArtifactError: if the file is missing, damaged, or no delta.
        DirectionError: if its direction has none.
        ModelError: if it is of other neurons or weights.
    """
    tensors, header = _read(path)
    one = _require_delta(require_specialization(model), header["direction"])
    _require_base(model, header, path)
    for key, (fc1, fc2) in _linears(model).items():
        into, out = delta_of(fc1, one), delta_of(fc2, one)
        theirs = unpack(tensors[f"{key}.neurons"], fc1.out_features).nonzero().flatten()
        if not torch.equal(theirs, into.neurons.cpu()):
            raise ModelError(
                "the delta is of other neurons", where=path, got=key, mend="make it with the same masks"
            )
        with torch.no_grad():
            for part, parameter in zip(_PARTS, (*into.parameters(), out.weight), strict=True):
                parameter.copy_(tensors[f"{key}.{part}"])


def _read(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    tensors, header = load_tensors(path, "delta")
    if header.get("format") != _FORMAT:
        raise ArtifactError("not a delta", where=path, mend="make one with save_delta")
    mend = "make it again: neuron-spec tune, or save_delta"
    require_form(header, _HEADER, "a delta", path, headline="a damaged delta", mend=mend)
    bits = {key: value[None] for key, value in tensors.items() if key.endswith(".neurons")}
    sizes = {f"{key}.neurons": [width] for key, width in header["widths"].items()}
    require_packed(bits, 1, sizes, where=path, what="delta")
    if odd := [key for key, value in tensors.items() if key not in bits and not value.is_floating_point()]:
        raise ArtifactError(
            "a damaged delta", where=path, got=f"{odd[0]}: {tensors[odd[0]].dtype}", mend=mend
        )
    require_finite(tensors, path)
    return tensors, header


def _require_base(model: Any, header: dict[str, Any], path: str | os.PathLike[str]) -> None:
    of = header["base"]
    if (ours := weights_sha256(model)) != (theirs := of["weights_sha256"]):
        raise ModelError(
            "the delta is of other weights",
            where=path,
            got=f"weights {ours[:12]}",
            expected=f"weights {theirs[:12]}, of {of.get('name') or of.get('model_type')}",
            mend="load the model that it was trained on, in float32 or bfloat16, or pass allow_other_checkpoint=True",
        )


def delta_of(linear: RoutedFC1 | RoutedFC2, one: Direction) -> LinearDelta:
    """A direction's delta of one of our Linears, which has it."""
    delta = linear.deltas[str(one)]
    assert isinstance(delta, LinearDelta)
    return delta


def _linears(model: Any) -> dict[str, tuple[RoutedFC1, RoutedFC2]]:
    return {key: (ffn.layer.fc1, ffn.layer.fc2) for key, ffn in ffns(model).items()}


def _put(
    fc1: RoutedFC1, fc2: RoutedFC2, one: Direction, neurons: Tensor, into: Tensor, bias: Tensor, out: Tensor
) -> None:
    neurons = neurons.to(fc1.weight.device)
    fc1.deltas[str(one)] = LinearDelta(neurons, into, bias)
    fc2.deltas[str(one)] = LinearDelta(neurons, out, None)


def _changed(model: Any) -> None:
    """After a delta has come or gone: routes, and what ``save_pretrained`` leaves out, which is of the base."""
    state, linears = require_specialization(model), _linears(model)
    for of_layer in linears.values():
        for linear in of_layer:
            linear.reset_deltas()
    state.deltas = as_directions(next(iter(linears.values()))[0].deltas)
    state.running.is_routed = bool(state.deltas)
    others = {key for key in getattr(model, "_keys_to_ignore_on_save", None) or () if DELTAS not in key}
    model._keys_to_ignore_on_save = others | {key for key in model.state_dict() if DELTAS in key}


def _require_room(model: Any, one: Direction) -> None:
    state = require_specialization(model)
    if state.masks is not None:
        raise ModelError(
            "a model with masks takes no deltas: with those, all neurons compute",
            mend="load the plain model, or call unspecialize(model)",
        )
    if one in state.deltas:
        raise DirectionError(
            "the direction has a delta", got=str(one), mend=f'remove_delta(model, "{one}") first'
        )


def _require_delta(state: Specialization, asked: Direction | str) -> Direction:
    (one,) = as_directions([asked])
    if one not in state.deltas:
        raise DirectionError(
            "a direction without a delta",
            got=str(one),
            expected=f"one of {', '.join(map(str, state.deltas)) or 'none'}",
        )
    return one
