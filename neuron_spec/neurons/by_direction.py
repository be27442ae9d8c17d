"""What the files of masks, counts and importance have in common: a row per direction, and who made them.

Axis letters: N directions, F units of a site. True = kept.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from neuron_spec.artifacts import differences, load_tensors, save_tensors, without_who_made_it
from neuron_spec.directions import Direction, are_directions, as_directions, parse_directions
from neuron_spec.errors import ArtifactError, DirectionError, ModelError
from neuron_spec.forms import require_form

_TEXT = (str, None)
# What headers say of who made a file; which of it is there, the kinds differ in.
_METADATA = {
    "directions": are_directions,
    "signature?": {
        "stage?": str,
        "inputs?": {str: str},
        "parameters?": {},
        "versions?": {},
        "command?": _TEXT,
    },
    "checkpoint_sha256?": _TEXT,
    "dictionary_sha256?": _TEXT,
    "langs?": ([str], None),
}


def pack(kept: Tensor) -> Tensor:
    """bool ``[..., F]`` to uint8 ``[..., ceil(F / 8)]``; the bits beyond F are 0."""
    return torch.from_numpy(np.packbits(kept.cpu().numpy(), axis=-1))


def unpack(packed: Tensor, width: int) -> Tensor:
    """uint8 ``[..., ceil(F / 8)]`` to bool ``[..., F]``, where the tensor is: no wait for a device."""
    bits = 128 >> torch.arange(8, dtype=torch.uint8, device=packed.device)  # as np.packbits fills a byte
    return packed.unsqueeze(-1).bitwise_and(bits).ne(0).flatten(-2)[..., :width].contiguous()


def require_packed(
    packed: Mapping[str, Tensor], rows: int, sizes: Mapping[str, Sequence[int]], *, where: object, what: str
) -> None:
    """Raises: ArtifactError if the bits are not those of ``rows`` masks of these sizes."""
    shapes = {key: (*bits.shape, bits.dtype) for key, bits in packed.items()}
    wanted = {key: (rows, *size[:-1], -(-size[-1] // 8), torch.uint8) for key, size in sizes.items()}
    if shapes != wanted:
        raise ArtifactError(f"damaged {what}", where=where, **differences(shapes, wanted, at_most=4))
    for key, bits in packed.items():
        if (beyond := -sizes[key][-1] % 8) and bits[..., -1].bitwise_and(2**beyond - 1).any():
            raise ArtifactError(f"damaged {what}: bits beyond the last unit", where=where, got=key)


class ByDirection:
    """Tensors with a row per direction, in a file of one kind.

    Attributes:
        directions: the N directions, naming the rows.
        metadata: how they were made.
        what, command: the kind of file, and what of ``neuron-spec`` makes it, in messages.
        format: in the file's header, if it has one.
        form: what the header says besides, as `forms.require_form` takes it.
    """

    directions: list[Direction]
    metadata: dict[str, Any]
    what: ClassVar[str]
    command: ClassVar[str]
    format: ClassVar[int | str | None] = None
    form: ClassVar[Mapping[str, Any]] = {}

    @property
    def names(self) -> list[str]:
        return [str(direction) for direction in self.directions]

    def __repr__(self) -> str:
        named = self.names if len(self.names) <= 4 else [*self.names[:3], "..."]
        return f"<{type(self).__name__} of {len(self.names)} directions: {', '.join(named)}>"

    @classmethod
    def require(cls, value: object) -> Self:
        """The value itself.

        Raises:
            ArtifactError: if it is of another kind, such as masks where a profile is wanted.
        """
        if not isinstance(value, cls):
            raise ArtifactError(
                f"not a {cls.what}",
                got=f"a {value.what}" if isinstance(value, ByDirection) else repr(value)[:80],
                expected=f"{cls.__name__}, such as {cls.__name__}.load(path) gives",
            )
        return value

    def missing(self, directions: Iterable[Direction | str]) -> list[str]:
        """The names of those that have no row."""
        return [str(direction) for direction in as_directions(directions) if direction not in self.directions]

    def rows(self, directions: Iterable[Direction | str]) -> list[int]:
        """The row of each of these directions, in their order.

        Raises:
            DirectionError: if one of them has none.
        """
        directions = as_directions(directions)
        if missing := self.missing(directions):
            raise DirectionError(
                f"not in the {self.what}", got=", ".join(missing), expected=f"some of {', '.join(self.names)}"
            )
        return [self.directions.index(direction) for direction in directions]

    def require_shape(
        self, tensor: Tensor, dtype: torch.dtype, *sizes: int | str, what: str, where: object = None
    ) -> None:
        """Raises: ArtifactError unless the tensor is ``[N, *sizes]``, of which a word is any size."""
        wanted = [len(self.directions), *sizes]
        named = [w if isinstance(w, str) else n for n, w in zip(tensor.shape, wanted, strict=False)]
        if tensor.dtype != dtype or tensor.dim() != len(wanted) or named != wanted:
            raise ArtifactError(
                what,
                where=where,
                got=f"{tensor.dtype} {list(tensor.shape)}",
                expected=f"{dtype} [{', '.join(map(str, wanted))}]",
            )

    def write(self, path: str | os.PathLike[str], tensors: Mapping[str, Tensor], **header: Any) -> None:
        """Save tensors; with the metadata, ``header`` goes into the file's own, as JSON."""
        if self.format is not None:
            header["format"] = self.format
        save_tensors(path, tensors, {**self.metadata, **header, "directions": self.names})

    @classmethod
    def read(
        cls, path: str | os.PathLike[str], *needed: str
    ) -> tuple[list[Direction], dict[str, Tensor], dict[str, Any]]:
        """Directions, tensors and metadata of a file.

        Raises:
            ArtifactError: if it is missing, damaged, or of another kind, without the ``needed`` tensors.
        """
        tensors, metadata = load_tensors(path, cls.what)
        is_of_format = metadata.pop("format", None) == cls.format
        if not is_of_format or "directions" not in metadata or not tensors.keys() >= {*needed}:
            raise ArtifactError(
                f"not a {cls.what}", where=path, mend=f"make one with neuron-spec {cls.command}"
            )
        mend = f"make it again with neuron-spec {cls.command}"
        require_form(metadata, {**_METADATA, **cls.form}, f"a {cls.what}", path, mend=mend)
        return parse_directions(metadata.pop("directions")), tensors, metadata


class Masks(ByDirection):
    """Masks of neurons, heads or weights; ``kind``, ``how`` to make them and their ``origin`` stand in messages."""

    kind: ClassVar[str]
    how: ClassVar[str]
    origin: ClassVar[str]

    def write(self, path: str | os.PathLike[str], tensors: Mapping[str, Tensor], **header: Any) -> None:
        """As the parent. Who made them stands in the summary beside alone, so that the same masks have the same bytes."""
        if "signature" in self.metadata:
            header["signature"] = without_who_made_it(self.metadata["signature"])
        super().write(path, tensors, **header)

    def require_directions(
        self, wanted: Iterable[Direction], where: object = None, mend: str | None = None
    ) -> None:
        """Raises: ModelError if one of these directions has no masks."""
        if missing := self.missing(wanted):
            raise ModelError(
                "directions without masks",
                where=where,
                got=f"masks for {', '.join(self.names)}",
                expected=f"also {', '.join(missing)}",
                mend=mend or f"{self.how}, or pass --missing-direction compose or dense",
            )
