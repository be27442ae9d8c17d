"""Work on mask files. vote: the units that at least half of several files keep, such as of several seeds. add: sets of new
directions, from a profile of them, beside those that are there and stay as they are.

The official code's files, from a folder or into one: masks, a file per direction en-de.pt of bool [ffn, d]; activation
counts, en-de/activations.pkl, which are read without running what else a pickle may hold; masks that a specialized
checkpoint of its carries. The checkpoint itself: neuron-spec checkpoint import-official.

examples:
  neuron-spec masks vote seed1.safetensors seed2.safetensors seed3.safetensors --output voted.safetensors
  neuron-spec masks add masks.safetensors new.safetensors --output wider.safetensors
  neuron-spec masks add masks.safetensors new.safetensors --path specialized.pt --output wider.safetensors
  neuron-spec masks import-official MASK_DIR --path dense.pt --output masks.safetensors
  neuron-spec masks export-official masks.safetensors --path dense.pt --output MASK_DIR
  neuron-spec masks import-activations NEURON_DIR --path dense.pt --output profile.safetensors
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neuron_spec.arguments import (
    add_allow_other_checkpoint,
    add_lang_pairs,
    add_output_with_summary,
    input_file,
    input_folder,
    output_file,
    output_folder,
    output_with_summary,
)
from neuron_spec.errors import ArtifactError, ModelError, NeuronSpecError, in_file
from neuron_spec.neurons.choices import SUMMARY_MARK

if TYPE_CHECKING:
    from neuron_spec.directions import Direction


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    vote = actions.add_parser("vote", help="the units that at least half of the files keep")
    vote.add_argument("masks", type=Path, nargs="+", metavar="FILE", help="two mask files or more")
    add_output_with_summary(vote, "masks.safetensors", SUMMARY_MARK)
    add = actions.add_parser("add", help="new directions' sets, without touching the others")
    add.add_argument("masks", type=input_file("mask file"), metavar="MASKS", help="masks.safetensors")
    add.add_argument(
        "profile",
        type=input_file("profile"),
        metavar="PROFILE",
        help="profile.safetensors of the new directions",
    )
    add_output_with_summary(add, "a new mask file", SUMMARY_MARK)
    add.add_argument(
        "--k", metavar="PERCENT", help="coverage (default: the masks' own, from which it may not differ)"
    )
    add_lang_pairs(add, "which of the profile's directions (default: all)")
    add.add_argument(
        "--path",
        type=input_file("checkpoint"),
        metavar="FILE",
        help="the checkpoint that was profiled, if it is not the dense one that the masks are of: one that carries these "
        "masks, or has languages added",
    )
    add.add_argument(
        "--data-bin",
        type=input_folder("data-bin"),
        metavar="DIR",
        help="with --path, for its dictionaries (default: the one that it was trained on)",
    )
    masks = actions.add_parser("import-official", help="masks of the official code, as masks.safetensors")
    masks.add_argument("source", type=Path, help="folder of en-de.pt and so on, or a specialized checkpoint")
    counts = actions.add_parser("import-activations", help="its activation counts, as profile.safetensors")
    counts.add_argument(
        "source",
        type=input_folder("folder of activation counts"),
        help="folder of en-de/activations.pkl and so on",
    )
    for action, output in ((masks, "masks.safetensors"), (counts, "profile.safetensors")):
        kind = output_with_summary(SUMMARY_MARK) if action is masks else output_file
        action.add_argument("--output", type=kind, required=True, metavar="FILE", help=output)
        action.add_argument(
            "--path",
            type=input_file("checkpoint"),
            metavar="FILE",
            help="the dense checkpoint that they were made from, to check them against and to remember",
        )
        action.add_argument(
            "--lang-pairs",
            metavar="de-en,...",
            help="which directions, in this order (default: the checkpoint's, or all that are there)",
        )
    export = actions.add_parser("export-official", help="masks.safetensors, as the official code reads them")
    export.add_argument("masks", type=input_file("mask file"), metavar="FILE", help="masks.safetensors")
    export.add_argument("--output", type=output_folder, required=True, metavar="DIR", help="a new folder")
    export.add_argument(
        "--path",
        type=input_file("checkpoint"),
        required=True,
        metavar="FILE",
        help="the dense checkpoint that they were made from, or a specialized one of it",
    )
    add_allow_other_checkpoint(export)


def run(args: argparse.Namespace) -> None:
    {"vote": _vote, "add": _add, "export-official": _export}.get(args.action, _import)(args)
    print(args.output)


def _vote(args: argparse.Namespace) -> None:
    from neuron_spec.artifacts import completed, signature
    from neuron_spec.neurons.masks import NeuronMasks
    from neuron_spec.studies.pruning.sets import vote

    files = [NeuronMasks.load(path) for path in args.masks]
    voted = vote(files)
    voters = ",".join(sorted(file.fingerprint for file in files))  # their order does not matter
    voted.metadata["signature"] = signature("masks vote", inputs={"masks": voters}, parameters={})
    if not completed(args.output, voted.metadata["signature"], what="mask file"):
        voted.save(args.output)


def _add(args: argparse.Namespace) -> None:
    from neuron_spec.artifacts import completed, hash_file, signature
    from neuron_spec.directions import parse_directions
    from neuron_spec.neurons.activations import ActivationCounts
    from neuron_spec.neurons.adding import add_directions
    from neuron_spec.neurons.masks import NeuronMasks

    if args.output.resolve() == args.masks.resolve():
        raise ArtifactError(
            "masks are not added in place", where=args.output, mend="name another --output, and keep these"
        )
    if args.data_bin and not args.path:
        raise NeuronSpecError(
            "a data-bin is only looked at for the checkpoint that was profiled",
            got="--data-bin without --path",
            mend="leave it out, or give --path too",
        )
    masks, profile = NeuronMasks.load(args.masks), ActivationCounts.load(args.profile)
    directions = parse_directions(args.lang_pairs) if args.lang_pairs else profile.directions
    with in_file(args.masks):
        wider = add_directions(masks, profile, directions, k=args.k)
    made_for, profiled = (of.metadata.get("checkpoint_sha256") for of in (masks, profile))
    if args.path:
        from neuron_spec.backends.fairseq.checkpoints import is_specialized, read_checkpoint
        from neuron_spec.backends.fairseq.growing import require_descent

        require_descent(masks, profile, args.path, args.data_bin)
        # A training of a specialized checkpoint does not ask for it; one of a dense one with added languages does.
        if made_for and not is_specialized(read_checkpoint(args.path)):
            wider.metadata["checkpoint_sha256"] = profiled
    else:
        _require_same_model(masks, profile, args.profile)
    wider.metadata |= {
        key: profile.metadata[key] for key in ("dictionary_sha256", "langs") if key in profile.metadata
    }
    names = [str(direction) for direction in directions]
    ks = wider.metadata["k_percent"]
    wider.metadata["signature"] = signature(
        "masks add",
        inputs={
            "masks": masks.fingerprint,
            "profile": hash_file(args.profile),
            **({"checkpoint of the masks": made_for} if made_for else {}),
            **({"checkpoint profiled": profiled} if profiled else {}),
        },
        parameters={"added": names, "k_percent": ks},
    )
    if not completed(args.output, wider.metadata["signature"], what="mask file"):
        wider.save(args.output)


def _require_same_model(masks: Any, profile: Any, where: Path) -> None:
    """Raises: ModelError if what the two say of their checkpoint, dictionary or languages differs."""
    for key in ("checkpoint_sha256", "dictionary_sha256", "langs"):
        ours, theirs = masks.metadata.get(key), profile.metadata.get(key)
        if ours is not None and theirs is not None and ours != theirs:
            raise ModelError(
                "the profile is of another checkpoint than the masks",
                where=where,
                got=f"{key} {theirs[:12] if isinstance(theirs, str) else ','.join(theirs)}",
                expected=f"{ours[:12] if isinstance(ours, str) else ','.join(ours)}",
                mend="profile the checkpoint that the masks are of; one that was specialized with them, or has languages "
                "added, has to be named: --path FILE",
            )


def _import(args: argparse.Namespace) -> None:
    from neuron_spec.artifacts import completed, hash_state, signature
    from neuron_spec.directions import parse_directions
    from neuron_spec.neurons import official
    from neuron_spec.neurons.activations import ActivationCounts

    shapes: Mapping[str, tuple[int, ...]] | None = None
    directions: list[Direction] | None = None
    checkpoint: dict[str, str] = {}
    if args.path:
        from neuron_spec.backends.fairseq.checkpoints import (
            is_specialized,
            read_checkpoint,
            task_args,
            weights_sha256,
        )
        from neuron_spec.backends.fairseq.official import shapes_in

        state = read_checkpoint(args.path)
        if is_specialized(state):
            raise ModelError(
                "a specialized checkpoint has moved on from the one that was profiled",
                got=f"--path {args.path}",
                expected="the dense checkpoint",
            )
        shapes, checkpoint = shapes_in(state), {"checkpoint_sha256": weights_sha256(state)}
        directions = parse_directions(task_args(state, args.path).lang_pairs)
    if args.lang_pairs:
        directions = parse_directions(args.lang_pairs)
    if args.action == "import-activations":
        what = "profile"
        read: Any = official.read_counts(args.source, directions)
        widths = {layer: shape[0] for layer, shape in (shapes or {}).items()}
        if shapes is not None and read.widths != widths:
            from neuron_spec.artifacts import differences

            raise ModelError(
                "counts of another model: other layers or widths",
                where=args.source,
                **differences(read.widths, widths, at_most=4),
                mend="name the checkpoint whose neurons were counted",
            )
    else:
        what = "mask file"
        read = _masks_from(args.source, directions, shapes)
    content = read.counts if isinstance(read, ActivationCounts) else read.kept
    parameters = {"directions": read.names}
    inputs = {
        what: hash_state(content),
        **({"checkpoint": checkpoint["checkpoint_sha256"]} if checkpoint else {}),
    }
    signed = signature(f"masks {args.action}", inputs=inputs, parameters=parameters)
    read.metadata |= {**checkpoint, "signature": signed}
    if not completed(args.output, signed, what=what):
        read.save(args.output)


def _masks_from(
    source: Path, directions: list[Direction] | None, shapes: Mapping[str, tuple[int, ...]] | None
) -> Any:
    """Of a folder, or of a checkpoint that carries them."""
    from neuron_spec.neurons import official

    if source.is_dir():
        return official.read_masks(source, directions, shapes)
    if not source.exists():
        raise ArtifactError("masks of the official code not found", where=source)
    from neuron_spec.backends.fairseq.checkpoints import read_checkpoint
    from neuron_spec.backends.fairseq.official import masks_of_official

    masks = masks_of_official(read_checkpoint(source), source)
    if directions is not None:
        masks.require_directions(directions, source, "name fewer --lang-pairs")
        masks = masks.of(directions)
    if shapes is not None:
        masks.require_fit({layer: shape[0] for layer, shape in shapes.items()}, source)
    return masks


def _export(args: argparse.Namespace) -> None:
    from neuron_spec.artifacts import SIGNATURE, atomic_folder, completed, signature, write_json
    from neuron_spec.backends.fairseq.checkpoints import read_checkpoint, require_profiled
    from neuron_spec.backends.fairseq.official import shapes_in
    from neuron_spec.corpora.checks import check_disk
    from neuron_spec.neurons import official
    from neuron_spec.neurons.masks import NeuronMasks

    masks = NeuronMasks.load(args.masks)
    masks.require_neurons(args.masks)
    state = read_checkpoint(args.path)
    shapes = shapes_in(state)
    masks.require_fit({layer: shape[0] for layer, shape in shapes.items()}, args.masks)
    if not args.allow_other_checkpoint:
        require_profiled(masks, state, args.path, args.masks)
    dims = {layer: shape[1] for layer, shape in shapes.items()}
    signed = signature(
        "masks export-official", inputs={"masks": masks.fingerprint}, parameters={"dims": dims}
    )
    if completed(args.output / SIGNATURE, signed, what="folder of masks", where=args.output):
        return
    official.require_neurons_alone(masks)
    check_disk(args.output, len(masks.names) * sum(rows * columns for rows, columns in shapes.values()))
    with atomic_folder(args.output) as folder:
        official.write_masks(masks, folder, dims)
        write_json(folder / SIGNATURE, signed)
