"""Reading fairseq checkpoints: with clear errors, and without unpickling more than tensors and flags."""

from __future__ import annotations

import argparse
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch

from neuron_spec.artifacts import hash_state, require_file
from neuron_spec.backends.fairseq import compat as compat
from neuron_spec.errors import ArtifactError, ModelError

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


def token_flags(args: argparse.Namespace) -> list[str]:
    """The command-line flags that make other commands use the same language tokens."""
    flags = ["--langs", ",".join(args.langs)]
    if getattr(args, "encoder_langtok", None):
        flags += ["--encoder-langtok", args.encoder_langtok]
    if getattr(args, "decoder_langtok", False):
        flags += ["--decoder-langtok"]
    if style := getattr(args, "lang_tok_style", None):
        flags += ["--lang-tok-style", style]
    for name in ("max_source_positions", "max_target_positions"):
        if value := getattr(args, name, None):
            flags += [f"--{name.replace('_', '-')}", str(value)]
    return flags


def differing_token_flags(trained: argparse.Namespace, now: argparse.Namespace) -> dict[str, tuple[Any, Any]]:
    """Flag -> (in training, now), where language tokens would differ."""
    differ = {}
    for name in _TOKEN_FLAGS:
        if name in trained and getattr(trained, name) and getattr(trained, name) != getattr(now, name, None):
            differ[f"--{name.replace('_', '-')}"] = (getattr(trained, name), getattr(now, name, None))
    return differ


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


def require_started_from(
    args: argparse.Namespace, checkpoint_sha256: str | None, *, where: object, what: str, mend: str
) -> None:
    """That a command starts from the checkpoint which masks were made for; None = unknown, any will do.

    Args:
        args: a fairseq command's; the file is in ``finetune_from_model``, ``restore_file`` or ``path``.
        where, what, mend: of the message.

    Raises:
        ModelError: if it starts from another.
    """
    if checkpoint_sha256 is None:
        return
    for flag in ("finetune_from_model", "restore_file", "path"):
        start = getattr(args, flag, None)
        if not start or not os.path.isfile(start):
            continue
        state = read_checkpoint(start)
        # A specialized checkpoint has moved on; that its masks are the same is checked on loading.
        if not is_specialized(state) and (found := weights_sha256(state)) != checkpoint_sha256:
            raise ModelError(
                what,
                where=where,
                got=f"weights {found[:12]} in --{flag.replace('_', '-')} {start}",
                expected=f"weights {checkpoint_sha256[:12]}",
                mend=mend,
            )
