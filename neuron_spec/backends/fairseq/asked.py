"""What ``conflict`` and ``transfer`` share: which checkpoint, directions and sets."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from neuron_spec.backends.fairseq.loading import TeacherForced
    from neuron_spec.directions import Direction
    from neuron_spec.neurons.masks import NeuronMasks
    from neuron_spec.neurons.pairs import Compared


def add_shared_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    parser.add_argument("--gen-subset", default="valid", metavar="NAME", help="the subset to measure on")
    parser.add_argument(
        "--lang-pairs", metavar="de-en,...", help="which directions (default: those of the checkpoint)"
    )
    parser.add_argument(
        "--masks",
        type=Path,
        metavar="FILE",
        help="run a dense checkpoint through these masks; a specialized one runs through its own",
    )
    parser.add_argument(
        "--overlap",
        type=Path,
        metavar="FILE",
        help="compare with the overlap of these masks, whatever the model runs through (default: --masks)",
    )
    parser.add_argument(
        "--allow-other-checkpoint",
        action="store_true",
        help="accept masks that were profiled on another dense checkpoint",
    )
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="of tests by random relabelling")
    parser.add_argument("--max-tokens", type=int, default=4000, metavar="N", help="tokens per batch")
    parser.add_argument("--cpu", action="store_true", help="do not use a GPU")


def positive(text: str) -> int:
    """The type of a flag: 1 or more."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not 1 or more")
    return int(text)


@dataclass(frozen=True)
class Asked:
    """A checkpoint and what it is asked about, checked before anything is loaded on a device.

    Attributes:
        trained: the task's flags that the checkpoint was trained with.
        inputs: hashes of the checkpoint and its sets, for signatures.
        overlap: the masks whose overlap is compared.
        families: of the corpus card; None: those of the language table.
    """

    args: argparse.Namespace
    path: Path
    trained: argparse.Namespace
    directions: list[Direction]
    inputs: dict[str, str]
    masks: NeuronMasks | None
    overlap: NeuronMasks | None
    families: dict[str, str] | None

    @classmethod
    def read(cls, args: argparse.Namespace, path: Path, subsets: Sequence[str]) -> Asked:
        """Check one checkpoint against the flags.

        Raises:
            NeuronSpecError: if directions, masks or text do not fit the checkpoint.
        """
        from neuron_spec.artifacts import hash_state
        from neuron_spec.backends.fairseq.checkpoints import (
            is_specialized,
            masks_of,
            read_checkpoint,
            task_args,
            weights_sha256,
        )
        from neuron_spec.backends.fairseq.data_bin import check_data_bin
        from neuron_spec.corpora.build import card_of
        from neuron_spec.directions import direction_id, parse_directions
        from neuron_spec.errors import ModelError
        from neuron_spec.neurons.masks import NeuronMasks
        from neuron_spec.neurons.overlap import NothingToCompare

        state = read_checkpoint(path)
        trained = task_args(state, path)
        directions = parse_directions(args.lang_pairs or trained.lang_pairs)
        for direction in directions:
            direction_id(direction, trained.langs)
        if len(directions) < 2:
            raise NothingToCompare(
                "interference is between directions: there is nothing to compare",
                got=str(directions[0]),
                expected="two directions or more",
            )
        if args.masks and is_specialized(state):
            raise ModelError(
                "a specialized checkpoint runs through its own masks",
                where=path,
                got=f"--masks {args.masks}",
                mend="drop --masks, or name the file as --overlap",
            )
        masks, overlap = (
            None if file is None else NeuronMasks.load(file)
            for file in (args.masks, args.overlap or args.masks)
        )
        for file, found in ((args.masks, masks), (args.overlap, overlap if args.overlap else None)):
            if found is not None:
                _require_fit(found, file, path, state, directions, args.allow_other_checkpoint)
        for subset in subsets:
            check_data_bin(args.data_bin, trained.langs, subset, directions)
        inputs = {
            "checkpoint": weights_sha256(state),
            # Of adapters and the like too, which decide who runs through what.
            "checkpoint's masks": hash_state(masks_of(state)),
            "masks": masks.fingerprint if masks else "none",
        }
        families = (card_of(args.data_bin) or {}).get("families")
        return cls(args, path, trained, directions, inputs, masks, overlap, families)

    def load(self) -> TeacherForced:
        from neuron_spec.backends.fairseq.checkpoints import token_flags
        from neuron_spec.backends.fairseq.loading import TeacherForced

        return TeacherForced(
            self.path,
            self.args.data_bin,
            self.directions,
            token_flags=token_flags(self.trained),
            dictionary_sha256=self.masks.metadata.get("dictionary_sha256") if self.masks else None,
            masks=self.masks,
            max_tokens=self.args.max_tokens,
            cpu=self.args.cpu,
        )

    def parameters(self) -> dict[str, Any]:
        """Those of a measurement, for its signature."""
        return {
            "subset": self.args.gen_subset,
            "directions": [str(direction) for direction in self.directions],
        }

    def reported(self) -> dict[str, Any]:
        """Those of a report besides, for its signature."""
        return {
            "seed": self.args.seed,
            "overlap": self.overlap.fingerprint if self.overlap else "none",
            "families": self.families or "language table",
        }

    def compared(self) -> Compared:
        from neuron_spec.neurons.pairs import Compared, overlap_of

        overlap = None if self.overlap is None else overlap_of(self.overlap, self.directions)
        return Compared(self.directions, self.families, overlap)


def _require_fit(
    masks: NeuronMasks,
    file: Path,
    path: Path,
    state: dict[str, Any],
    directions: Sequence[Direction],
    allow_other_checkpoint: bool,
) -> None:
    """Raises: ModelError if the masks lack a direction, or are of another model or dense checkpoint."""
    from neuron_spec.backends.fairseq.checkpoints import is_specialized, weights_sha256
    from neuron_spec.errors import ModelError

    end = ".fc1.weight"
    masks.require_fit(
        {key.removesuffix(end): len(value) for key, value in state["model"].items() if key.endswith(end)},
        where=file,
    )
    if missing := [str(direction) for direction in directions if direction not in masks.directions]:
        raise ModelError(
            "directions without masks",
            where=file,
            got=", ".join(missing),
            expected=f"some of {', '.join(map(str, masks.directions))}",
            mend="name fewer --lang-pairs, or profile and select these too",
        )
    profiled = masks.metadata.get("checkpoint_sha256")
    if profiled is None or allow_other_checkpoint or is_specialized(state):
        return  # a specialized checkpoint has moved on from the one that was profiled
    if (found := weights_sha256(state)) != profiled:
        raise ModelError(
            "the masks are from the profile of another checkpoint",
            where=file,
            got=f"weights {found[:12]} in --path {path}",
            expected=f"weights {profiled[:12]}",
            mend="name the checkpoint that was profiled, or pass --allow-other-checkpoint",
        )
