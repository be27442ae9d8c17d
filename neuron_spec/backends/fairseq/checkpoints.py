"""Reading fairseq checkpoints: with clear errors, and without unpickling more than tensors and flags."""

from __future__ import annotations

import argparse
import os
import pickle
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from neuron_spec.artifacts import hash_state, hash_text, require_file
from neuron_spec.backends.fairseq import compat as compat
from neuron_spec.directions import Direction
from neuron_spec.errors import ArtifactError, ModelError
from neuron_spec.neurons.by_direction import Masks

_MASK_KEYS = ("fc1.neuron_mask", ".head_mask", ".weight_mask", "mask_rows")
# Flags that must be the same wherever a model is used, or it reads and writes other language tokens.
_TOKEN_FLAGS = ("langs", "encoder_langtok", "decoder_langtok", "lang_tok_style")


def read_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """A fairseq checkpoint on the CPU, memory-mapped.

    Raises:
        ArtifactError: if it is missing, truncated, or not a fairseq checkpoint.
    """
    require_file(path, "checkpoint")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # foreign bytes make the unpickler fail in any way
        raise ArtifactError(
            "checkpoint cannot be read",
            where=path,
            # torch's own text for these would have the reader turn weights_only off.
            got="no tensors and flags saved by torch"
            if isinstance(error, (pickle.UnpicklingError, LookupError, EOFError))
            else (str(error) or repr(error)).splitlines()[0],
            expected="a complete checkpoint written by fairseq-train",
            mend="the file is damaged, cut short, or of another kind: copy or train it again",
        ) from error
    if not isinstance(state, dict) or not {"model", "cfg"} <= state.keys():
        raise ArtifactError(
            "not a fairseq checkpoint", where=path, expected="weights and configuration of fairseq-train"
        )
    return state


def task_args(state: dict[str, Any], where: object = None) -> argparse.Namespace:
    """The task's flags that a checkpoint was trained with.

    Raises:
        ArtifactError: if it was not trained by a multilingual translation task.
    """
    args = state["cfg"]["task"]
    values = dict(args) if isinstance(args, dict) else vars(args)
    if not values.get("lang_pairs"):
        raise ArtifactError(
            "not a multilingual checkpoint",
            where=where,
            got=f"task {values.get('_name') or values.get('task')}",
            expected="one trained with translation_multi_simple_epoch or neuron_specialization",
        )
    pairs = values["lang_pairs"]
    values["lang_pairs"] = pairs.split(",") if isinstance(pairs, str) else list(pairs)
    if not values.get("langs") and values.get("lang_dict"):
        text = require_file(values["lang_dict"], "the checkpoint's --lang-dict").read_text(encoding="utf-8")
        values["langs"] = text.split()
    if not values.get("langs"):
        # What fairseq does without --langs.
        values["langs"] = sorted({lang for pair in values["lang_pairs"] for lang in pair.split("-")})
    return argparse.Namespace(**values)


def flag_name(name: str) -> str:
    """``--lr-scheduler``, of the attribute ``lr_scheduler``."""
    return f"--{name.replace('_', '-')}"


def token_flags(args: argparse.Namespace) -> list[str]:
    """The command-line flags that make other commands use the same language tokens."""
    flags = ["--langs", ",".join(args.langs)]
    for name in (*_TOKEN_FLAGS[1:], "max_source_positions", "max_target_positions"):
        if value := getattr(args, name, None):
            flags += [flag_name(name)] if value is True else [flag_name(name), str(value)]
    return flags


def differing_token_flags(trained: argparse.Namespace, now: argparse.Namespace) -> dict[str, tuple[Any, Any]]:
    """Flag -> (in training, now), where language tokens would differ."""
    values = {name: (getattr(trained, name, None), getattr(now, name, None)) for name in _TOKEN_FLAGS}
    return {flag_name(name): both for name, both in values.items() if both[0] and both[0] != both[1]}


def is_specialized(state: dict[str, Any]) -> bool:
    """Whether a checkpoint carries masks."""
    return bool(masks_of(state))


def masks_of(state: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The mask buffers that a checkpoint carries; empty for a dense one."""
    return {key: value for key, value in state["model"].items() if key.endswith(_MASK_KEYS)}


def weights_sha256(state: dict[str, Any]) -> str:
    """Hash of a checkpoint's weights, masks apart: the name by which a profile knows its checkpoint."""
    return hash_state({key: value for key, value in state["model"].items() if not key.endswith(_MASK_KEYS)})


def checkpoint_sha256(path: str | Path) -> str:
    """`weights_sha256` of a file."""
    return weights_sha256(read_checkpoint(path))


def require_trainable(
    masks: Masks,
    args: argparse.Namespace,
    *,
    directions: Sequence[Direction],
    langs: Sequence[str],
    symbols: Sequence[str],
    where: object,
) -> None:
    """That a training can run through masks: of its dictionary and directions, and made for where it starts from.

    What the masks do not say of themselves, or ``--allow-other-checkpoint`` allows, will do.

    Args:
        args: the training's; its start is in ``finetune_from_model``, ``restore_file`` or ``path``.
        symbols: of the data-bin's dictionary, language tokens among them.
        where: the masks' file, for messages.

    Raises:
        ModelError: if it cannot.
    """
    dictionary = hash_text(*symbols)
    if (of_masks := masks.metadata.get("dictionary_sha256", dictionary)) != dictionary:
        raise ModelError(
            f"the {masks.kind} are for another dictionary",
            where=where,
            got=f"{masks.kind} for languages {masks.metadata.get('langs')} and sha256 {of_masks[:12]}",
            expected=f"languages {list(langs)} and sha256 {dictionary[:12]}",
            mend="use the data-bin and --langs that they were made with",
        )
    if args.missing_direction == "error":
        masks.require_directions(directions, where=where)
    made_for = masks.metadata.get("checkpoint_sha256")
    if made_for is None or args.allow_other_checkpoint:
        return
    for flag in ("finetune_from_model", "restore_file", "path"):
        start = getattr(args, flag, None)
        if not start or not os.path.isfile(start):
            continue
        state = read_checkpoint(start)
        # A specialized checkpoint has moved on; that its masks are the same is checked on loading.
        if not is_specialized(state) and (weights := weights_sha256(state)) != made_for:
            raise ModelError(
                f"the {masks.kind} {masks.origin} another checkpoint",
                where=where,
                got=f"weights {weights[:12]} in {flag_name(flag)} {start}",
                expected=f"weights {made_for[:12]}",
                mend="start from the checkpoint that they were made from, or pass --allow-other-checkpoint",
            )
