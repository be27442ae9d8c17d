"""The files of the official code (Smu-Tan/Neuron-Specialization): masks of a weight's shape, and pickled counts.

Masks are a file per direction, ``en-de.pt``: a dictionary from ``encoder.layers.0.fc1.weight`` to bool ``[F, D]``, whose
rows are neurons, all kept or all dropped. Its checkpoints hold the same below ``language_mask``. Counts are a pickle per
direction, ``en-de/activations.pkl``: from ``encoder_layer_0`` to int64 ``[F]``.

Axis letters: N directions, F ffn, D model. True = kept.
"""

from __future__ import annotations

import io
import os
import pickle
import re
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from neuron_spec.artifacts import differences, load_saved, require_file
from neuron_spec.directions import Direction
from neuron_spec.errors import ArtifactError, DirectionError, ModelError
from neuron_spec.neurons.activations import (
    MOST_TOKENS,
    TOKENS_AT_LEAST,
    ActivationCounts,
    layer_order,
    side_of,
)
from neuron_spec.neurons.choices import SIDES
from neuron_spec.neurons.masks import NeuronMasks

MASKS, COUNTS = "*.pt", "*/activations.pkl"  # in a folder, the direction for the star
_WEIGHT = ".fc1.weight"
_COUNTED = re.compile(r"(encoder|decoder)_layer_(\d+)")
_IN_CHECKPOINT = "language_mask."

Shapes = Mapping[str, tuple[int, ...]]


# Masks ----------------------------------------------------------------------------------------


def write_masks(masks: NeuronMasks, folder: Path, dims: Mapping[str, int]) -> None:
    """Write a file per direction into a folder; the same masks give the same bytes.

    Args:
        dims: layer -> D, the columns of its ``fc1.weight``.

    Raises:
        ArtifactError: if there are masks of attention heads.
    """
    require_neurons_alone(masks)
    for row, name in enumerate(masks.names):
        # Not expanded, which would share memory between columns: the official code loads into these tensors.
        weights = {
            layer + _WEIGHT: masks.kept[layer][row].unsqueeze(1).repeat(1, dims[layer])
            for layer in masks.layers
        }
        with open(folder / f"{name}.pt", "wb") as file:  # a path's name would be in the bytes
            torch.save(weights, file)


def require_neurons_alone(masks: NeuronMasks) -> None:
    """Raises: ArtifactError if there are masks of attention heads, which the official code has none of."""
    if masks.head_sites:
        raise ArtifactError(
            "the official format has masks of neurons alone",
            got=", ".join(masks.head_sites),
            expected="layers' FFNs, such as encoder.layers.0",
        )


def read_masks(
    folder: Path, directions: Sequence[Direction] | None = None, shapes: Shapes | None = None
) -> NeuronMasks:
    """The masks in a folder of the official code's.

    Args:
        directions: which, and in which order; None: all that are there, by name.
        shapes: layer -> ``[F, D]`` of the model that they are for.

    Raises:
        ArtifactError: if a file is missing, damaged, a Git-LFS pointer or of another kind, or files disagree.
        ModelError: if they are for another model.
        DirectionError: if a file's name is no direction.
    """
    files = files_of(folder, MASKS, directions)
    return _joined(((of, _read_mask_file(path), path) for of, path in files.items()), shapes)


def masks_in(
    weights: Mapping[str, Any], where: object = None, shapes: Shapes | None = None
) -> NeuronMasks | None:
    """The masks that an official checkpoint carries; None if it has none (``--no-save-static-mask``).

    Args:
        weights: of the checkpoint.
        shapes: as for `read_masks`.

    Raises:
        ArtifactError: if they are not those of neurons, or directions disagree.
        ModelError: if they are for another model.
    """
    of_direction: dict[Direction, dict[str, Any]] = {}
    for key, value in weights.items():
        if key.startswith(_IN_CHECKPOINT):
            _, name, weight = key.split(".", 2)
            # Their modules may have no dots in their names.
            of_direction.setdefault(Direction.parse(name), {})[weight.replace("|", ".")] = value
    if not of_direction:
        return None
    return _joined(
        ((of, masks, f"{where}: {_IN_CHECKPOINT}{of}") for of, masks in of_direction.items()), shapes
    )


def _read_mask_file(path: Path) -> Any:
    return load_saved(
        path,
        "official mask file",
        holds="tensors",
        expected="a dictionary of bool tensors saved by torch, and nothing else",
        mend="the file is damaged, cut short, or of another kind: copy or make it again",
    )


def _rows_of_neurons(masks: object, where: object) -> dict[str, Tensor]:
    """Layer -> bool ``[F, D]``, of a file's or checkpoint's masks of a direction, checked."""
    expected = "encoder.layers.0.fc1.weight and so on, each bool [ffn, d]"
    if not (isinstance(masks, Mapping) and masks and all(isinstance(key, str) for key in masks)):
        raise ArtifactError(
            "not an official mask file", where=where, got=type(masks).__name__, expected=expected
        )
    kept = {}
    for key, mask in masks.items():
        is_tensor = isinstance(mask, Tensor) and mask.layout == torch.strided  # no sparse one
        is_mask = is_tensor and mask.dtype == torch.bool and mask.dim() == 2
        layer = key.removesuffix(_WEIGHT)
        with suppress(ArtifactError):
            layer_order(layer)
            if layer != key and is_mask and len(layer.split(".")) == 3:
                kept[layer] = mask
                continue
        layout = f", {mask.layout}" if isinstance(mask, Tensor) and not is_tensor else ""
        shown = (
            f"{mask.dtype!s} {list(mask.shape)}{layout}" if isinstance(mask, Tensor) else type(mask).__name__
        )
        raise ArtifactError(
            "not a mask of neurons",
            where=where,
            got=f"{key}: {shown}",
            expected=expected,
            mend="a mask for each weight is LaSS's: see neuron-spec lass",
        )
    for layer, mask in kept.items():
        mixed = (mask.any(dim=1) != mask.all(dim=1)).nonzero().flatten().tolist()
        if not mask.numel():
            raise ArtifactError("an empty mask", where=where, got=f"{layer}{_WEIGHT}, {list(mask.shape)}")
        if mixed:
            more = f" and {len(mixed) - 1} more" if len(mixed) > 1 else ""
            raise ArtifactError(
                "a row of a mask is neither kept nor dropped: it is no neuron's",
                where=where,
                got=f"{layer}{_WEIGHT}, row {mixed[0]}{more}",
                expected="rows that are all True or all False",
                mend="a mask for each weight is LaSS's: see neuron-spec lass",
            )
    return kept


def _joined(read: Iterable[tuple[Direction, object, object]], shapes: Shapes | None) -> NeuronMasks:
    """Directions, their masks and where these stand, read one after the other: a direction's are large."""
    rows: dict[Direction, dict[str, Tensor]] = {}
    for direction, content, where in read:
        masks = _rows_of_neurons(content, where)
        theirs = {layer: tuple(mask.shape) for layer, mask in masks.items()}
        if shapes is not None and theirs != shapes:
            raise ModelError(
                "masks of another model: other layers or sizes of fc1.weight",
                where=where,
                **differences(theirs, shapes, layer_order, at_most=4),
                mend=f"put the files of one model into a folder; expected is as in {next(iter(rows))}"
                if rows
                else "name the checkpoint that the masks were made for",
            )
        shapes = theirs
        rows[direction] = {layer: mask[:, 0].clone() for layer, mask in masks.items()}
    assert shapes is not None
    kept = {
        layer: torch.stack([of[layer] for of in rows.values()]) for layer in sorted(shapes, key=layer_order)
    }
    return NeuronMasks([*rows], kept, {"method": "official"})


# Counts ---------------------------------------------------------------------------------------


def read_counts(folder: Path, directions: Sequence[Direction] | None = None) -> ActivationCounts:
    """The counts in a folder of the official code's. They are of every position, padding too.

    How many positions there were, they do not say: ``tokens`` are the most that a neuron was active on.

    Args:
        directions: as for `read_masks`.

    Raises:
        ArtifactError: if a file is missing, damaged, or holds anything but counts, such as code.
        DirectionError: if a folder's name is no direction.
    """
    files = files_of(folder, COUNTS, directions)
    read = {direction: _read_count_file(path) for direction, path in files.items()}
    _require_alike(read, folder)
    layers = sorted(next(iter(read.values())), key=layer_order)
    counts = {layer: torch.stack([of[layer] for of in read.values()]) for layer in layers}
    tokens = {
        side: torch.stack([counts[layer].amax(dim=1) for layer in layers if side_of(layer) == side]).amax(0)
        for side in SIDES
    }
    return ActivationCounts([*read], counts, tokens, dict(TOKENS_AT_LEAST))


class _Forbidden(pickle.UnpicklingError):
    pass


class _CountsOnly(pickle.Unpickler):
    """Reads dictionaries of tensors as torch pickles them; every other name in the file is refused."""

    def find_class(self, module: str, name: str) -> Any:
        known: dict[str, Callable[..., Any]] = {
            "torch._utils._rebuild_tensor_v2": _tensor,
            "torch.storage._load_from_bytes": _storage,
            "collections.OrderedDict": OrderedDict,
        }
        if f"{module}.{name}" not in known:
            raise _Forbidden(f"it names {module}.{name}")
        return known[f"{module}.{name}"]


def _storage(content: bytes) -> torch.storage.TypedStorage:
    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)


def _tensor(storage: Any, offset: int, size: Sequence[int], stride: Sequence[int], *_: object) -> Tensor:
    return torch.as_strided(torch.tensor([], dtype=storage.dtype).set_(storage), size, stride, offset)


def _read_count_file(path: Path) -> dict[str, Tensor]:
    what = "official activation counts"
    expected = "a pickle of encoder_layer_0 and so on, each an int64 [ffn] tensor, and nothing else"
    with open(require_file(path, what), "rb") as file:
        try:
            counts = _CountsOnly(file).load()
        except Exception as error:  # foreign bytes make the unpickler fail in any way
            raise ArtifactError(
                f"{what} are refused: the file names more than tensors, which could run code"
                if isinstance(error, _Forbidden)
                else f"{what} cannot be read",
                where=path,
                got=str(error) or repr(error),
                expected=expected,
                mend="count again with neuron-spec profile --count-padding"
                if isinstance(error, _Forbidden)
                else "the file is damaged, cut short, or of another kind: copy or make it again",
            ) from error
    names = {
        key: _COUNTED.fullmatch(key) if isinstance(key, str) else None
        for key in (counts if isinstance(counts, dict) else ())
    }
    layers = {key: f"{match[1]}.layers.{match[2]}" for key, match in names.items() if match}
    are_counts = isinstance(counts, dict) and len(layers) == len(counts) > 0
    if not (
        are_counts
        and {*map(side_of, layers.values())} == {*SIDES}
        and all(isinstance(c, Tensor) and c.dtype == torch.int64 and c.dim() == 1 for c in counts.values())
        and all(c.numel() and c.min() >= 0 and c.max() <= MOST_TOKENS for c in counts.values())
    ):
        shown = ", ".join(map(str, counts)) if isinstance(counts, dict) else type(counts).__name__
        raise ArtifactError(f"not {what}", where=path, got=shown[:200], expected=expected)
    return {layers[key]: of_layer for key, of_layer in counts.items()}


# Both -----------------------------------------------------------------------------------------


def files_of(
    folder: Path, pattern: str, directions: Sequence[Direction] | None = None
) -> dict[Direction, Path]:
    """Direction -> its file, of `MASKS` or `COUNTS`.

    Raises:
        ArtifactError: if there are none, or one is missing.
        DirectionError: if none are asked for, and a file's or folder's name is no direction.
    """
    if directions is not None:
        files = {direction: folder / pattern.replace("*", str(direction)) for direction in directions}
        if missing := [str(path) for path in files.values() if not path.is_file()]:
            there = sorted(str(path.relative_to(folder)) for path in folder.glob(pattern))
            raise ArtifactError(
                "a direction has no file",
                where=folder,
                got=", ".join(there) or "no such files",
                expected=", ".join(os.path.relpath(path, folder) for path in missing),
                mend="name fewer --lang-pairs, or make these too",
            )
        return files
    found = sorted(folder.glob(pattern))
    if not found:
        raise ArtifactError(
            "no files of the official code here", where=folder, expected=pattern.replace("*", "en-de")
        )
    files = {}
    for path in found:
        name = path.parent.name if "/" in pattern else path.stem
        try:
            files[Direction.parse(name)] = path
        except DirectionError as error:
            raise DirectionError(
                "a file is not named by a direction",
                where=path,
                got=repr(name),
                expected="two language codes joined by a hyphen, such as en-de",
                mend="name the directions by --lang-pairs, or move the file away",
            ) from error
    return files


def _require_alike(read: Mapping[Direction, Mapping[str, Tensor]], where: Path) -> None:
    """Raises: ArtifactError if the directions have other layers or widths."""
    (first, of_first), *others = read.items()
    widths = {layer: len(of_layer) for layer, of_layer in of_first.items()}
    for direction, of in others:
        if (theirs := {layer: len(of_layer) for layer, of_layer in of.items()}) != widths:
            raise ArtifactError(
                "counts of different models: directions have other layers or widths",
                where=where / str(direction),
                **differences(theirs, widths, layer_order, at_most=4),
                mend=f"put the files of one model into a folder; expected is as in {first}",
            )
