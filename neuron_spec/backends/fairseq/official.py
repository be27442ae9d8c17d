"""Specialized checkpoints of the official code (Smu-Tan/Neuron-Specialization), read into our form.

Their Linears keep the weight as ``global_weight``, beside the masked one that a pass runs with; tensors of one storage
are saved under the first of their names alone; masks stand below ``language_mask``, unless they were left out.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from neuron_spec.artifacts import atomic_path, completed_beside, signature, write_json
from neuron_spec.backends.fairseq.checkpoints import (
    as_start,
    flags_of,
    is_specialized,
    read_checkpoint,
    task_args,
    weights_sha256,
)
from neuron_spec.errors import ArtifactError, ModelError
from neuron_spec.models.neuron_spec_transformer import mask_state
from neuron_spec.neurons import official
from neuron_spec.neurons.masks import NeuronMasks

_GLOBAL, _WEIGHT = ".global_weight", ".weight"
_FC1 = ".fc1.weight"
_FLAGS = ("mask_path", "no_save_static_mask", "mask_embedding", "no_mask_output_project")
_TASK, _ARCH = "neuron_specialization", "neuron_spec_transformer"


def weights_in(state: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """The weights of a checkpoint by fairseq's own names, without masks; those of a dense one as they are."""
    weights = {
        key.removesuffix(_GLOBAL) + _WEIGHT if key.endswith(_GLOBAL) else key: value
        for key, value in sorted(state["model"].items(), key=lambda item: item[0].endswith(_GLOBAL))
        if not key.startswith("language_mask.")
    }
    flags = flags_of(state, "model")
    tied = {"decoder.output_projection.weight": "share_decoder_input_output_embed"}
    tied |= {"encoder.embed_tokens.weight": "share_all_embeddings"}
    for name, flag in tied.items():
        is_tied = flags.get(flag) or flags.get("share_all_embeddings")
        if (
            name not in weights
            and is_tied
            and (shared := weights.get("decoder.embed_tokens.weight")) is not None
        ):
            weights[name] = shared
    return weights


def shapes_in(state: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Layer -> ``[ffn, d]`` of its ``fc1.weight``, of an official checkpoint, ours or fairseq's own."""
    weights = weights_in(state).items()
    return {key.removesuffix(_FC1): tuple(value.shape) for key, value in weights if key.endswith(_FC1)}


def masks_of_official(state: Mapping[str, Any], path: Path) -> NeuronMasks:
    """The masks that an official checkpoint carries.

    Raises:
        ArtifactError: if it carries none, or others than of neurons.
        ModelError: if they are for another model than its weights.
    """
    masks = official.masks_in(state["model"], path, shapes_in(state))
    if masks is None:
        raise ArtifactError(
            "the checkpoint carries no masks of the official code",
            where=path,
            expected="language_mask.en-de.encoder|layers|0|fc1|weight and so on",
            mend="import the folder of its mask files, en-de.pt and so on",
        )
    return masks


def import_checkpoint(path: Path, output: Path, given: NeuronMasks | None = None) -> None:
    """Write an official specialized checkpoint in our form, with a signature beside it, unless it is there.

    Training can start from it (``--finetune-from-model``), and not be resumed.

    Args:
        given: masks, for a checkpoint that was saved without (``--no-save-static-mask``).

    Raises:
        ArtifactError: if it is damaged, none of the official code's, or another file is at ``output``.
        ModelError: if masks are missing, for another model or languages, or given ones differ from its own.
    """
    state = read_checkpoint(path)
    if is_specialized(dict(state)):
        raise ArtifactError("a checkpoint of neuron_spec: there is nothing to import", where=path)
    carried = official.masks_in(state["model"], path, shapes_in(state))
    if carried is None and not any(key.endswith(_GLOBAL) for key in state["model"]):
        raise ArtifactError(
            "not a specialized checkpoint of the official code",
            where=path,
            expected="weights named global_weight, or masks below language_mask",
            mend="a dense checkpoint needs no import: profile it as it is",
        )
    masks = carried or given
    if masks is None:
        raise ModelError(
            "the checkpoint was saved without its masks",
            where=path,
            got="weights named global_weight, and no language_mask",
            mend="import the folder of its mask files by neuron-spec masks import-official, and pass --masks FILE",
        )
    if carried and given:
        there, here = (_by_direction(of) for of in (carried, given))
        if there != here:
            raise ModelError(
                "--masks are others than the checkpoint's own",
                where=path,
                got=", ".join(str(of) for of in {**there, **here} if there.get(of) != here.get(of)),
                mend="leave out --masks",
            )
    masks.require_fit({layer: shape[0] for layer, shape in shapes_in(state).items()}, where=path)
    weights = weights_in(state)
    langs = task_args(dict(state), path).langs
    inputs = {"checkpoint": weights_sha256({"model": weights}), "masks": masks.fingerprint}
    made = signature("checkpoint import-official", inputs=inputs, parameters={})
    if completed_beside(output, made, what="import"):
        return
    ours = as_start(state, _flags(state.get("cfg")), weights | mask_state(masks, langs))
    write_json(output.with_suffix(".json"), {"signature": made})  # from here on ours
    with atomic_path(output) as temporary:
        torch.save({**ours, "args": _flags(state.get("args"))}, temporary)


def _by_direction(masks: NeuronMasks) -> dict[str, list[list[bool]]]:
    return {
        name: [masks.kept[layer][row].tolist() for layer in masks.layers]
        for row, name in enumerate(masks.names)
    }


def _flags(flags: Any) -> Any:
    """A configuration, or 2020's one namespace of flags, with our task and model for the official ones."""
    if isinstance(flags, argparse.Namespace):
        return argparse.Namespace(**_flags(vars(flags)))
    if not isinstance(flags, Mapping):
        return flags
    known = {key: _flags(value) for key, value in flags.items() if key not in _FLAGS}
    for section, name in (("task", _TASK), ("model", _ARCH)):  # of a configuration
        if isinstance(of := known.get(section), argparse.Namespace):
            of._name = name
        elif isinstance(of, dict):
            of["_name"] = name
    named = {"task": _TASK, "arch": _ARCH, "user_dir": None}
    return known | {key: value for key, value in named.items() if isinstance(known.get(key), str)}
