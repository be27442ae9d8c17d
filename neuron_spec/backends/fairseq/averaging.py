"""The mean of several checkpoints' weights, masks kept.

The arithmetic, and which checkpoints of a folder are the last, are those of fairseq's ``scripts/average_checkpoints.py``,
which cannot divide masks. The best of a folder are ours.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from fairseq.models import ARCH_MODEL_REGISTRY

from neuron_spec import models as models  # registers
from neuron_spec.artifacts import atomic_path, completed_beside, hash_state, signature, write_json
from neuron_spec.backends.fairseq.checkpoints import (
    flags_of,
    masks_of,
    read_checkpoint,
    task_args,
    weights_sha256,
)
from neuron_spec.backends.fairseq.language_tokens import LanguageTokens
from neuron_spec.errors import ArtifactError, ModelError, NeuronSpecError

# Kind -> the names that fairseq gives such checkpoints, and the flag that keeps them.
_KINDS = {
    "epoch": (r"checkpoint(\d+)\.pt", "--keep-last-epochs"),
    "update": (r"checkpoint_\d+_(\d+)\.pt", "--save-interval-updates and --keep-interval-updates"),
    "best": (r"checkpoint\.best_.+_(\d+\.\d+)\.pt", "--keep-best-checkpoints"),
}
_DYNAMICS = "dynamics."  # what moves masks in training: of one moment, so of no average
# Flags that change no translation.
_OF_TRAINING = ("dropout", "layerdrop", "quant_noise", "activations", "ffn_path")


def chosen_checkpoints(folder: Path, number: int, kind: str, upper_bound: int | None = None) -> list[Path]:
    """A folder's last checkpoints of epochs (``checkpoint12.pt``) or updates (``checkpoint_3_4500.pt``), or its best.

    Args:
        kind: ``epoch``, ``update``, or ``best``, by the metric that training chose by.
        upper_bound: no epoch, or update, after this one.

    Raises:
        ArtifactError: if there are fewer.
    """
    name, flag = _KINDS[kind]
    pattern = re.compile(name)
    found = {float(match[1]): path for path in folder.glob("*.pt") if (match := pattern.fullmatch(path.name))}
    is_largest_first = True
    if kind == "best" and found:
        of_training = (read_checkpoint(next(iter(found.values()))).get("cfg") or {}).get("checkpoint") or {}
        is_largest_first = bool(of_training.get("maximize_best_checkpoint_metric"))
    kept = sorted((at for at in found if upper_bound is None or at <= upper_bound), reverse=is_largest_first)
    if len(kept) < number:
        raise ArtifactError(
            "fewer checkpoints than are to be averaged",
            where=folder,
            got=f"{len(kept)} of the kind {kind}" + ("" if upper_bound is None else f" up to {upper_bound}"),
            expected=str(number),
            mend=f"average fewer, or train with {flag} {number} or more",
        )
    return [found[at] for at in kept[:number]]


def average(paths: Sequence[Path], output: Path) -> None:
    """Write the mean of the checkpoints' weights, with a signature beside it, unless it is there.

    Sums are in single precision, the mean is of the weights' own. All else is the first's, but for the optimizer's
    state: training can start from an average (``--finetune-from-model``), and not be resumed.

    Raises:
        ArtifactError: if a checkpoint is missing or damaged, or another file is at ``output``.
        ModelError: if they are not of one model, languages or masks.
        NeuronSpecError: if there are not two.
    """
    if len({path.resolve() for path in paths}) < max(2, len(paths)):
        raise NeuronSpecError(
            "an average is of two checkpoints or more, each once", got=", ".join(map(str, paths))
        )
    states = [read_checkpoint(path) for path in paths]
    _require_alike(paths, states)
    inputs = {f"checkpoint {n}": weights_sha256(state) for n, state in enumerate(states, start=1)}
    inputs["masks"] = hash_state(masks_of(states[0]))
    made = signature("average", inputs=inputs, parameters={"checkpoints": len(paths)})
    if completed_beside(output, made, what="average"):
        return
    first = states[0]
    extra = {
        key: value for key, value in (first.get("extra_state") or {}).items() if "ema" not in key.split("_")
    }
    averaged = {**first, "model": _mean([*map(_averaged, states)]), "extra_state": extra}
    averaged.pop("last_optimizer_state", None)
    write_json(
        output.with_suffix(".json"), {"signature": made, "checkpoints": [path.name for path in paths]}
    )  # from here on ours
    with atomic_path(output) as temporary:
        torch.save(averaged, temporary)


def _mean(of: Sequence[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    means: dict[str, torch.Tensor] = {}
    tied: dict[tuple[Any, ...], str] = {}  # shared embeddings are stored once
    for key, value in of[0].items():
        other = tied.setdefault((value.data_ptr(), value.shape), key)
        if value.numel() and other != key:
            means[key] = means[other]
        elif value.is_floating_point():
            total = value.to(torch.promote_types(value.dtype, torch.float32), copy=True)
            for model in of[1:]:
                total += model[key].to(total.dtype)
            means[key] = total.div_(len(of)).to(value.dtype)
        else:
            means[key] = value.clone()
    return means


def _require_alike(paths: Sequence[Path], states: Sequence[dict[str, Any]]) -> None:
    tokens = [LanguageTokens.of(task_args(state, path)) for state, path in zip(states, paths, strict=True)]
    flags = [_flags_of(state) for state in states]
    first = _averaged(states[0])
    for path, state, of_tokens, of_flags in zip(paths[1:], states[1:], tokens[1:], flags[1:], strict=True):
        where = f"{paths[0]} and {path}"
        if differ := tokens[0].differences(of_tokens):
            raise _unlike("languages or language tokens", where, differ)
        apart = [name for name in {**flags[0], **of_flags} if flags[0].get(name) != of_flags.get(name)]
        if apart:
            raise _unlike("architectures", where, {n: (flags[0].get(n), of_flags.get(n)) for n in apart})
        other = _averaged(state)
        shapes = [
            {key: (*value.shape, value.dtype) for key, value in model.items()} for model in (first, other)
        ]
        if apart := [key for key in {**shapes[0], **shapes[1]} if shapes[0].get(key) != shapes[1].get(key)]:
            raise _unlike("weights", where, {k: (shapes[0].get(k), shapes[1].get(k)) for k in apart})
        kept = [key for key, value in first.items() if not value.is_floating_point()]
        if apart := [key for key in kept if not torch.equal(first[key], other[key])]:
            raise ModelError(
                "checkpoints with different masks cannot be averaged",
                where=where,
                got=f"{', '.join(apart[:3])}{' ...' if len(apart) > 3 else ''} differ",
                mend="average checkpoints of one training whose masks do not move",
            )


def _unlike(what: str, where: str, differ: Mapping[str, tuple[object, object]]) -> ModelError:
    shown = [f"{name}: {one} and {other}" for name, (one, other) in list(differ.items())[:3]]
    return ModelError(
        f"checkpoints of different {what} cannot be averaged",
        where=where,
        got="; ".join(shown) + ("; ..." if len(differ) > 3 else ""),
        mend="average checkpoints of one training",
    )


def _averaged(state: dict[str, Any]) -> dict[str, torch.Tensor]:
    return {key: value for key, value in state["model"].items() if not key.startswith(_DYNAMICS)}


def _flags_of(state: dict[str, Any]) -> dict[str, Any]:
    """The model's flags that decide what it computes."""
    values = flags_of(state, "model")
    parser = argparse.ArgumentParser(argument_default=argparse.SUPPRESS)
    if (kind := ARCH_MODEL_REGISTRY.get(values.get("arch"))) is not None:
        kind.add_args(parser)
    names = ["arch", *(action.dest for action in parser._actions)]
    return {n: values[n] for n in names if n in values and not any(part in n for part in _OF_TRAINING)}
