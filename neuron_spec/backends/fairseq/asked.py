"""What a command is asked: a checkpoint, directions and text, resolved and checked before anything is loaded."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self, TypeVar

from neuron_spec.artifacts import hash_state, hash_text
from neuron_spec.backends.fairseq import checkpoints
from neuron_spec.backends.fairseq.data_bin import check_data_bin, data_sha256, directions_in
from neuron_spec.backends.fairseq.loading import TeacherForced
from neuron_spec.corpora.build import card_of
from neuron_spec.directions import Direction, direction_id, parse_directions
from neuron_spec.errors import ArtifactError, ModelError
from neuron_spec.languages import set_pivot
from neuron_spec.neurons.choices import SIDES
from neuron_spec.neurons.masks import NeuronMasks
from neuron_spec.neurons.pairs import Compared, overlap_of
from neuron_spec.statistics import NothingToCompare

Loaded = TypeVar("Loaded")
# Of a model whose FFNs are copies for so many directions, told apart by masks.
UNSHARED = "unshared_directions"


@dataclass(frozen=True)
class Asked:
    """A checkpoint and what it is asked about.

    Attributes:
        subsets: the sets of text, the first of which is measured on.
        directions: those asked for, or those that the checkpoint was trained on.
        state: the checkpoint, memory-mapped.
        trained: the task's flags that it was trained with.
    """

    path: Path
    data_bin: Path
    subsets: Sequence[str]
    directions: list[Direction]
    state: dict[str, Any] = field(repr=False)
    trained: argparse.Namespace = field(repr=False)

    @classmethod
    def read(
        cls,
        path: Path,
        data_bin: Path | None,
        *subsets: str,
        lang_pairs: str | Iterable[Direction] | None = None,
        compared: str | None = None,
        fixed_dictionary: str | None = None,
        through_masks: bool = False,
    ) -> Self:
        """Check a checkpoint, its directions and their text.

        Args:
            data_bin: None: the one that the checkpoint was trained on.
            lang_pairs: which directions; None: all of the checkpoint's.
            compared: what compares directions, for the message where there is only one.
            fixed_dictionary: a file to take instead of the dictionary that the checkpoint names.
            through_masks: it is to run through masks that are given.

        Raises:
            ArtifactError: if the checkpoint or a data file is missing or damaged.
            DirectionError: if the checkpoint does not know a language.
            ModelError: if it runs through masks alone, and there are none.
            NothingToCompare: if directions are compared, and there is only one.
        """
        state = checkpoints.read_checkpoint(path)
        if not through_masks:
            _require_shared(state, path)
        trained = checkpoints.task_args(state, path, fixed_dictionary=fixed_dictionary)
        data_bin = checkpoints.data_bin_of(trained, path, data_bin)
        set_pivot(card_of(data_bin))
        directions = parse_directions(
            lang_pairs if isinstance(lang_pairs, str) else map(str, lang_pairs or trained.lang_pairs)
        )
        for direction in directions:
            direction_id(direction, trained.langs)
        if compared and len(directions) < 2:
            raise NothingToCompare(
                f"{compared} directions: there is nothing to compare",
                got=str(directions[0]),
                expected="two directions or more",
            )
        asked = cls(path, data_bin, (), directions, state, trained)
        if lang_pairs is None:
            asked._require_no_more_than_text(*subsets)
        return asked.of_text(*subsets)

    def _require_no_more_than_text(self, *subsets: str) -> None:
        """Raises: ArtifactError if the checkpoint has directions that the data-bin has not, and none were named."""
        for subset in subsets if self.data_bin.is_dir() else ():
            found = directions_in(self.data_bin, subset)
            both = [direction for direction in self.directions if direction in found]
            if both and (lacking := len(self.directions) - len(both)):
                raise ArtifactError(
                    f"the data-bin has no {subset} set for {lacking} of the checkpoint's directions",
                    where=self.data_bin,
                    got=", ".join(map(str, both)),
                    expected=f"{len(self.directions)} directions, or those that are meant, by name",
                    mend=f"for those that are there: --lang-pairs {','.join(map(str, both))}",
                )

    def of_text(self, *subsets: str) -> Self:
        """The same about these sets of text, the first of which is measured on.

        Raises:
            ArtifactError: if one is missing or damaged.
        """
        for subset in subsets:
            check_data_bin(self.data_bin, self.langs, subset, self.directions, self.trained.fixed_dictionary)
        return replace(self, subsets=subsets)

    @property
    def names(self) -> list[str]:
        return [str(direction) for direction in self.directions]

    @property
    def langs(self) -> list[str]:
        return list(self.trained.langs)

    @property
    def is_specialized(self) -> bool:
        return checkpoints.is_specialized(self.state)

    @cached_property
    def checkpoint_sha256(self) -> str:
        """Of the weights, masks apart."""
        return checkpoints.weights_sha256(self.state)

    @cached_property
    def masks_sha256(self) -> str:
        """Of the masks that the checkpoint carries; of adapters and the like too, which decide who runs through what."""
        return hash_state(checkpoints.masks_of(self.state))

    def data_sha256(self, subset: str | None = None) -> str:
        """Of the files of a subset; None: of the one that is measured on."""
        return data_sha256(self.data_bin, subset or self.subsets[0], self.directions)

    @property
    def inputs(self) -> dict[str, str]:
        """Of a measurement, for its signature."""
        return {
            "checkpoint": self.checkpoint_sha256,
            "checkpoint's masks": self.masks_sha256,
            "data": self.data_sha256(),
        }

    @property
    def parameters(self) -> dict[str, Any]:
        """Of a measurement, for its signature."""
        return {"subset": self.subsets[0], "directions": self.names}

    @property
    def families(self) -> dict[str, str] | None:
        """Language -> family, by the corpus card; None: those of the language table."""
        return (card_of(self.data_bin) or {}).get("families")

    def require_masks(self, masks: NeuronMasks, file: Path, *, allow_other_checkpoint: bool) -> None:
        """That masks are of all directions, of such a model, and of this dense checkpoint.

        A specialized checkpoint has moved on from the one that was profiled.

        Raises:
            ModelError: if they are not.
        """
        end = ".fc1.weight"
        weights = {key: value for key, value in self.state["model"].items() if key.endswith(end)}
        masks.require_fit({key.removesuffix(end): len(fc1) for key, fc1 in weights.items()}, where=file)
        mend = "name fewer --lang-pairs, or profile and select these too"
        masks.require_directions(self.directions, file, mend)
        if not allow_other_checkpoint:
            checkpoints.require_profiled(masks, self.state, self.path, file)

    def require_dictionary(
        self, source: Sequence[str], target: Sequence[str], masks: NeuronMasks | None = None
    ) -> None:
        """That the checkpoint has an embedding for each symbol, and that masks were made with the same symbols.

        Args:
            source, target: the symbols of a task's dictionaries, language tokens among them.

        Raises:
            ModelError: if not.
        """
        for side, symbols in zip(SIDES, (source, target), strict=True):
            weight = self.state["model"].get(f"{side}.embed_tokens.weight")
            if weight is not None and len(weight) != len(symbols):
                raise ModelError(
                    "the checkpoint was trained with another dictionary than the data-bin's",
                    where=self.data_bin,
                    got=f"{len(symbols)} entries with the language tokens",
                    expected=f"{len(weight)}, as in the {side} of {self.path}",
                    mend="use the data-bin made with the checkpoint's vocabulary, or that as --fixed-dictionary",
                )
        known = masks.metadata.get("dictionary_sha256") if masks else None
        if known not in (None, dictionary := hash_text(*source)):
            raise ModelError(
                "the masks are for another dictionary",
                where=self.data_bin,
                got=f"sha256 {dictionary[:12]}",
                expected=f"sha256 {str(known)[:12]}",
                mend="use the data-bin that was profiled",
            )

    def load(
        self,
        kind: Callable[..., Loaded],
        *,
        path: Path | None = None,
        directions: Sequence[Direction] = (),
        **options: Any,
    ) -> Loaded:
        """The checkpoint in memory, as a `TeacherForced` or a kind of it.

        Args:
            path: of another checkpoint of the same task, such as a copy that was trained on.
            directions: fewer than all.
            options: as ``kind`` takes them.
        """
        return kind(
            path or self.path,
            self.data_bin,
            directions or self.directions,
            token_flags=checkpoints.token_flags(self.trained),
            **options,
        )


def _require_shared(state: dict[str, Any], path: Path) -> None:
    """Raises: ModelError if it is an unshared model without its masks, which would add up all directions' FFNs."""
    copies = checkpoints.flags_of(state, "model").get(UNSHARED)
    if copies and not checkpoints.is_specialized(state):
        raise ModelError(
            "an unshared model runs through its masks alone",
            where=path,
            got=f"FFNs of {copies} directions side by side, and no masks",
            mend="train it with the masks beside it, and name what that leaves; or name the dense checkpoint",
        )


@dataclass(frozen=True)
class AskedThroughMasks(Asked):
    """A checkpoint whose directions are compared, a dense one perhaps through masks.

    Attributes:
        masks: what a dense checkpoint runs through.
        overlap: the masks whose overlap is compared.
    """

    masks: NeuronMasks | None = None
    overlap: NeuronMasks | None = None

    @classmethod
    def of(cls, args: argparse.Namespace, path: Path, *subsets: str) -> AskedThroughMasks:
        """Of the flags that `arguments.add_masks_run_through` adds.

        Raises:
            NeuronSpecError: as `read` and `require_masks`, or if a specialized checkpoint is given masks.
        """
        asked = cls.read(
            path,
            args.data_bin,
            *subsets,
            lang_pairs=args.lang_pairs,
            compared="interference is between",
            through_masks=bool(args.masks),
        )
        if args.masks and asked.is_specialized:
            raise ModelError(
                "a specialized checkpoint runs through its own masks",
                where=path,
                got=f"--masks {args.masks}",
                mend="drop --masks, or name the file as --overlap",
            )
        loaded = {file: NeuronMasks.load(file) for file in (args.masks, args.overlap) if file}
        for file, masks in loaded.items():
            asked.require_masks(masks, file, allow_other_checkpoint=args.allow_other_checkpoint)
        return replace(asked, masks=loaded.get(args.masks), overlap=loaded.get(args.overlap or args.masks))

    @property
    def inputs(self) -> dict[str, str]:
        return {**super().inputs, "masks": self.masks.fingerprint if self.masks else "none"}

    def reported(self, seed: int) -> dict[str, Any]:
        """What a report depends on besides, for its signature."""
        return {
            "seed": seed,
            "overlap": self.overlap.fingerprint if self.overlap else "none",
            "families": self.families or "language table",
        }

    @property
    def pairs(self) -> Compared:
        overlap = overlap_of(self.overlap, self.directions) if self.overlap else None
        return Compared(self.directions, self.families, overlap)

    def load_through_masks(self, args: argparse.Namespace, *, with_tag: bool) -> TeacherForced:
        """The checkpoint in memory, with its masks."""
        return self.load(
            TeacherForced,
            dictionary_sha256=self.masks.metadata.get("dictionary_sha256") if self.masks else None,
            masks=self.masks,
            with_tag=with_tag,
            max_tokens=args.max_tokens,
            cpu=args.cpu,
        )
