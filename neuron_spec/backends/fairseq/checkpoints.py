"""Reading fairseq checkpoints: with clear errors, and without unpickling more than tensors and flags."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from fairseq import checkpoint_utils, utils
from omegaconf import OmegaConf

from neuron_spec.artifacts import differences, hash_state, hash_text, load_saved
from neuron_spec.backends.fairseq import compat as compat
from neuron_spec.backends.fairseq.language_tokens import LanguageTokens, file_of_flag, languages_of
from neuron_spec.directions import Direction, direction_id, direction_of, parse_directions
from neuron_spec.errors import ArtifactError, ModelError, in_file
from neuron_spec.forms import number, require_form
from neuron_spec.modules.finite import not_finite
from neuron_spec.neurons.activations import layer_order
from neuron_spec.neurons.by_direction import Masks
from neuron_spec.neurons.choices import SIDES
from neuron_spec.neurons.masks import NeuronMasks

_MASK_KEYS = ("fc1.neuron_mask", ".head_mask", ".weight_mask", "mask_rows")
# Flags that name a file, for languages whose own are not to be taken from the data-bin.
DICTIONARIES = ("fixed_dictionary", "source_dict", "target_dict")
_LAST = "checkpoint_last.pt"  # from which fairseq resumes, unless --restore-file names another


def _are_tokens(value: Any) -> bool:
    """the encoder's language token and the decoder's, each src, tgt or null"""
    return (
        isinstance(value, Sequence)
        and not isinstance(value, str)
        and len(value) == 2
        and {*map(str, value)} <= {"src", "tgt", "None"}
    )


def _are_names(value: Any) -> bool:
    """names, as text or a list, each once"""
    names = value.split(",") if isinstance(value, str) else value
    is_list = isinstance(names, list | tuple) and all(isinstance(name, str) for name in names)
    return is_list and len({*names}) == len(names)


def _is_style(value: Any) -> bool:
    """multilingual or mbart"""
    return value in ("multilingual", "mbart")


def _is_token(value: Any) -> bool:
    """src or tgt"""
    return value in ("src", "tgt")


_POSITIONS = (number(1, whole=True), None)
_TASK = {
    "lang_pairs?": (_are_names, None),
    "langs?": (_are_names, None),
    "langtoks?": ({str: _are_tokens}, None),
    "langtoks_specs?": (_are_names, None),
    "lang_tok_style?": (_is_style, None),
    "encoder_langtok?": (_is_token, None),
    "decoder_langtok?": (bool, None),
    "max_source_positions?": _POSITIONS,
    "max_target_positions?": _POSITIONS,
    **{f"{name}?": (str, None) for name in ("data", "lang_dict", *DICTIONARIES)},
}


def _is_activation(value: Any) -> bool:
    """an activation that fairseq has, such as relu"""
    return isinstance(value, str) and value in utils.get_available_activation_fns()


_SHAPE = number(1, 10**7, whole=True)
_MODEL = {
    "arch?": (str, None),
    "activation_fn?": (_is_activation, None),
    **{f"{side}_layers?": number(1, 10**4, whole=True) for side in SIDES},
    **{f"{side}_{of}?": _SHAPE for side in SIDES for of in ("embed_dim", "ffn_embed_dim", "attention_heads")},
    **{f"{of}dropout?": (number(0, 1), None) for of in ("", "attention_", "activation_")},
}
_STATE: dict[str, Any] = {"optimizer_history?": [{}], "extra_state?": {}, "task_state?": {}}


def _require_form(state: Any, path: object) -> None:
    """Raises: ArtifactError if what was unpickled is not what fairseq saves."""
    if not isinstance(state, dict) or "model" not in state or not (state.get("cfg") or state.get("args")):
        raise ArtifactError(
            "not a fairseq checkpoint", where=path, expected="weights and configuration of fairseq-train"
        )
    how = {
        "headline": "a checkpoint is not of the form that fairseq-train writes",
        "mend": "it is damaged or was changed: copy or train it again",
    }
    plain: dict[str, Any] = {
        key: state[key] for key in ("optimizer_history", "extra_state", "task_state") if key in state
    }
    if state.get("cfg"):
        cfg = state["cfg"]
        plain["cfg"] = {of: _plain(each) for of, each in cfg.items()} if isinstance(cfg, Mapping) else cfg
        form: dict[str, Any] = {**_STATE, "cfg": {"task": _TASK, "model": _MODEL}}
    else:
        plain["args"], form = _plain(state["args"]), {**_STATE, "args": {**_TASK, **_MODEL}}
    require_form(plain, form, "a checkpoint", path, **how)
    weights = state["model"]
    is_whole = isinstance(weights, Mapping) and bool(weights)
    bad = [name for name, value in weights.items() if not _is_weight(name, value)] if is_whole else ["model"]
    if bad:
        got = weights[bad[0]] if is_whole else weights
        raise ArtifactError(
            how["headline"],
            where=path,
            got=f"{bad[0]}: {_said_of(got)}",
            expected="weights by name, each a tensor that holds its numbers; those of an FFN matrices",
            mend=how["mend"],
        )

    if found := not_finite(weights):
        raise ModelError(
            "the checkpoint has weights that are no numbers",
            where=path,
            got=": ".join(found),
            mend="its training diverged: take an earlier checkpoint, or train with a lower --lr",
        )


def _plain(flags: Any) -> Any:
    """A namespace, or a configuration, as the mapping that it is."""
    if OmegaConf.is_config(flags):
        return OmegaConf.to_container(flags)
    return vars(flags) if isinstance(flags, argparse.Namespace) else flags


def _is_weight(name: object, value: object) -> bool:
    if not isinstance(name, str) or not isinstance(value, torch.Tensor):
        return False
    is_matrix = not name.endswith((".fc1.weight", ".fc2.weight")) or (value.dim() == 2 and value.numel() > 0)
    is_real = not name.endswith((".weight", ".bias")) or value.is_floating_point()
    return value.layout == torch.strided and not value.is_meta and is_matrix and is_real


def _said_of(value: object) -> str:
    if not isinstance(value, torch.Tensor):
        return type(value).__name__
    return f"{value.dtype} {list(value.shape)}, {value.layout}, on {value.device.type}"


def load_model(path: Path, task: Any, overrides: Mapping[str, Any] | None = None) -> tuple[Any, Any]:
    """A checkpoint's model in memory, and its configuration.

    Raises:
        NeuronSpecError: naming the file, if its weights or flags make no model of the task.
    """
    with in_file(path):
        (model,), cfg = checkpoint_utils.load_model_ensemble([str(path)], dict(overrides or {}), task)
    return model, cfg


def no_model(error: Exception) -> ModelError:
    """What is raised where fairseq cannot build the model that a checkpoint's flags describe."""
    return ModelError(
        "the checkpoint's flags describe no model that can be built",
        got=(str(error) or repr(error)).splitlines()[0][:200],
        mend="it is damaged or was changed: copy or train it again",
    )


def read_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """A fairseq checkpoint on the CPU, memory-mapped.

    Raises:
        ArtifactError: if it is missing, truncated, or not a fairseq checkpoint.
    """
    state = load_saved(
        path,
        "checkpoint",
        holds="tensors and flags",
        expected="a complete checkpoint written by fairseq-train",
        mend="the file is damaged, cut short, or of another kind: copy or train it again",
    )
    _require_form(state, path)
    return dict(state)


def flags_of(state: Mapping[str, Any], of: str) -> dict[str, Any]:
    """The flags of a checkpoint's ``task`` or ``model``; of 2020's checkpoints all flags, which were one namespace."""
    args = state["cfg"][of] if state.get("cfg") else state["args"]
    return dict(args if isinstance(args, dict) else vars(args))


def as_start(state: Mapping[str, Any], cfg: Any, weights: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """A checkpoint of these weights without the optimizer: training can start from it, and not be resumed.

    Args:
        state: of which it is made.
    """
    return {
        "args": None,
        "cfg": cfg,
        "model": weights,
        "optimizer_history": (state.get("optimizer_history") or [{}])[-1:],
        "task_state": {},
        "extra_state": {"train_iterator": {"epoch": 1}, "val_loss": None},
    }


def task_args(
    state: dict[str, Any], where: object = None, *, fixed_dictionary: str | None = None
) -> argparse.Namespace:
    """The task's flags that a checkpoint was trained with.

    Args:
        fixed_dictionary: a file to take instead of the dictionary that it was trained with.

    Raises:
        ArtifactError: if it was not trained by a multilingual translation task, or a file that it names is gone.
    """
    values = flags_of(state, "task")
    if not values.get("lang_pairs"):
        raise ArtifactError(
            "not a multilingual checkpoint",
            where=where,
            got=f"task {values.get('_name') or values.get('task')}",
            expected="one trained with translation_multi_simple_epoch or neuron_specialization",
        )
    pairs = values["lang_pairs"]
    values["lang_pairs"] = pairs.split(",") if isinstance(pairs, str) else list(pairs)
    near = where if isinstance(where, str | os.PathLike) else None
    with in_file(where):
        values["langs"] = languages_of(values, near)
        for direction in parse_directions(values["lang_pairs"]):
            direction_id(direction, values["langs"])
    # They are read: whoever goes on with these flags needs no file.
    values["lang_dict"] = None
    values["fixed_dictionary"] = fixed_dictionary or values.get("fixed_dictionary")
    for name in DICTIONARIES:
        if file := values.get(name):
            holds = "the symbols", "the dictionary that the model was trained with"
            values[name] = str(file_of_flag(flag_name(name), file, near, *holds).absolute())
    return argparse.Namespace(**values)


def data_bin_of(trained: argparse.Namespace, path: Path, given: Path | None = None) -> Path:
    """The data-bin that is named, or the one that a checkpoint was trained on; of a sharded one, its first shard.

    Args:
        trained: the flags, as `task_args` returns them.
        path: the checkpoint. A relative path of the data-bin may be from any folder above it.

    Raises:
        ArtifactError: if it is no longer there.
    """
    if given is not None:
        return given
    first = str(getattr(trained, "data", None) or "").split(os.pathsep)[0]
    places = [folder / first for folder in (Path(), *path.absolute().parents)] if first else []
    for place in places:
        if place.is_dir():
            return place
    raise ArtifactError(
        "the data-bin that the checkpoint was trained on is not here, and its dictionaries are needed",
        where=path,
        got=first or "no data-bin in the checkpoint",
        mend="name one of the same dictionaries: --data-bin DIR",
    )


def flag_name(name: str) -> str:
    """``--lr-scheduler``, of the attribute ``lr_scheduler``."""
    return f"--{name.replace('_', '-')}"


def token_flags(args: argparse.Namespace) -> list[str]:
    """The command-line flags that make other commands use the same language tokens, dictionaries and longest text."""
    flags = [word for name, value in LanguageTokens.of(args).flags.items() for word in (name, *value)]
    for name in (*DICTIONARIES, "max_source_positions", "max_target_positions"):
        if value := getattr(args, name, None):
            flags += [flag_name(name), str(value)]
    return flags


def begin_of(args: argparse.Namespace) -> str | None:
    """The checkpoint that a training begins from, unless it is resumed."""
    return getattr(args, "continue_once", None) or args.finetune_from_model


def starts_of(args: argparse.Namespace) -> list[Path]:
    """The checkpoints whose weights a run loads, as fairseq finds them; empty where a training starts from random ones.

    Args:
        args: of a task; ``path`` is a command's that loads a model, the others are of training.
    """
    if path := getattr(args, "path", None):
        starts = utils.split_paths(path)
    elif args.restore_file != _LAST:
        starts = [args.restore_file]
    else:
        last = Path(args.save_dir, _LAST)
        starts = [last] if last.is_file() else [begin] if (begin := begin_of(args)) else []
    return [Path(start) for start in starts if os.path.isfile(start)]


def require_own_folder(args: argparse.Namespace) -> None:
    """That ``--save-dir`` holds no checkpoint of another task, such as the dense model's training.

    fairseq would resume that one, deaf to ``--finetune-from-model``, and write over it.

    Args:
        args: of a task.

    Raises:
        ArtifactError: if the checkpoint is damaged.
        ModelError: if it is of another task.
    """
    begin, last = begin_of(args), Path(args.save_dir, _LAST)
    if not begin or starts_of(args) != [last]:
        return
    if (trained := flags_of(read_checkpoint(last), "task").get("_name", args.task)) != args.task:
        raise ModelError(
            "another training is in --save-dir, which would go on instead, and be written over",
            where=last,
            got=f"a checkpoint of --task {trained}",
            expected=f"none, to start from {begin}, or one of --task {args.task}, to resume",
            mend="name another --save-dir",
        )


def require_same_tokens(args: argparse.Namespace) -> None:
    """That a run has the languages and language tokens of every checkpoint that it loads.

    A checkpoint of another task than multilingual translation does not say what its tokens are, and is let pass.

    Args:
        args: of a task.

    Raises:
        ArtifactError: if a checkpoint is damaged, or its ``--lang-dict`` is missing.
        ModelError: if they differ.
    """
    now = LanguageTokens.of(args)
    for path in starts_of(args):
        if (trained := _tokens_of(path, path.stat().st_mtime_ns)) is not None:
            now.require(trained, where=path)


def require_same_sizes(path: Path, ffns: Mapping[str, torch.Tensor]) -> None:
    """That a training has the layers and sizes of the checkpoint that it starts from.

    Args:
        ffns: layer key (``encoder.layers.0``) -> the model's ``fc1.weight``, ``[ffn, d]``.

    Raises:
        ModelError: if they differ.
    """
    of_checkpoint = {
        match.group(1): weight
        for key, weight in read_checkpoint(path)["model"].items()
        if (match := re.fullmatch(r"((?:en|de)coder\.layers\.\d+)\.fc1\.weight", key))
    }
    ours, theirs = (
        {layer: "{} neurons of {} dimensions".format(*fc1.shape) for layer, fc1 in of.items()}
        for of in (ffns, of_checkpoint)
    )
    if ours != theirs:
        raise ModelError(
            "the flags give a model of other layers or sizes than the checkpoint that training starts from",
            where=path,
            **differences(ours, theirs, layer_order, at_most=4),
            mend="give the --arch and sizes of the checkpoint, as neuron-spec specialize does",
        )


@cache  # a task is set up for every direction
def _tokens_of(path: Path, changed: int) -> LanguageTokens | None:
    values = flags_of(read_checkpoint(path), "task")
    return LanguageTokens.of(values, path) if values.get("lang_pairs") else None


def is_specialized(state: dict[str, Any]) -> bool:
    """Whether a checkpoint carries masks."""
    return bool(masks_of(state))


def masks_of(state: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The mask buffers that a checkpoint carries; empty for a dense one."""
    return {key: value for key, value in state["model"].items() if key.endswith(_MASK_KEYS)}


def masked_directions(state: dict[str, Any], langs: Sequence[str]) -> list[Direction] | None:
    """The directions that a checkpoint has masks for, in the order of their ids; None if it is dense."""
    rows = state["model"].get("encoder.mask_rows")
    if rows is None:
        return None
    return [direction_of(number, langs) for number in (rows >= 0).nonzero().flatten().tolist()]


def carried_masks(state: dict[str, Any], langs: Sequence[str]) -> NeuronMasks | None:
    """The masks of neurons and heads that a checkpoint carries, directions in the order of their ids; None if it has none."""
    model = state["model"]
    if (directions := masked_directions(state, langs)) is None:
        return None
    rows = model["encoder.mask_rows"]
    order = rows[rows >= 0]
    ends = (".fc1.neuron_mask", ".head_mask")
    kept = {key.removesuffix(end): model[key][order] for end in ends for key in model if key.endswith(end)}
    return NeuronMasks(directions, kept)


def weights_sha256(state: dict[str, Any]) -> str:
    """Hash of a checkpoint's weights, masks apart: the name by which a profile knows its checkpoint."""
    return hash_state({key: value for key, value in state["model"].items() if not key.endswith(_MASK_KEYS)})


def require_profiled(masks: Masks, state: dict[str, Any], path: object, where: object) -> None:
    """That masks were made from this dense checkpoint; a specialized one has moved on, and is let pass.

    Args:
        path: of the checkpoint, for the message.
        where: the masks' file.

    Raises:
        ModelError: if they say otherwise.
    """
    profiled = masks.metadata.get("checkpoint_sha256")
    if profiled is None or is_specialized(state):
        return
    if (weights := weights_sha256(state)) != profiled:
        raise ModelError(
            "the masks are from the profile of another checkpoint",
            where=where,
            got=f"weights {weights[:12]} in --path {path}",
            expected=f"weights {profiled[:12]}",
            mend="name the checkpoint that was profiled, or pass --allow-other-checkpoint",
        )


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
    is_loading: bool = False,
) -> None:
    """That a run can go through masks: of its dictionary and directions, and made for where it starts from.

    What the masks do not say of themselves, or ``--allow-other-checkpoint`` allows, will do. Weights that were not
    trained are no start, for masks that do not say what they were made from either, unless
    ``--masks-on-random-weights`` asks for it.

    Args:
        args: the task's.
        symbols: of the data-bin's dictionary, language tokens among them.
        where: the masks' file, for messages.
        is_loading: the model is built for a checkpoint that is being loaded.

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
    starts = starts_of(args)
    if not (starts or is_loading or args.masks_on_random_weights):
        raise ModelError(
            f"the {masks.kind} would go onto random weights: training starts from no checkpoint",
            where=where,
            got=f"--restore-file {args.restore_file} in --save-dir {args.save_dir} is not there, "
            f"--finetune-from-model is {args.finetune_from_model}",
            expected="the checkpoint that they were made from",
            mend="give --finetune-from-model FILE, or, if random weights are meant, --masks-on-random-weights",
        )
    is_frozen = getattr(args, "dropped_neurons", None) == "frozen"
    if is_frozen and not is_loading and (decay := getattr(args, "weight_decay", 0)):
        raise ModelError(
            "weight decay moves neurons that are frozen",
            got=f"--weight-decay {decay} with --dropped-neurons frozen",
            expected="--weight-decay 0",
        )
    made_for = masks.metadata.get("checkpoint_sha256")
    if made_for is None or args.allow_other_checkpoint:
        return
    if (dense := getattr(args, "finetune_from_model", None)) and os.path.isfile(dense):
        starts.append(Path(dense))  # from where a training that is resumed began
    for start in dict.fromkeys(starts):
        state = read_checkpoint(start)
        # A specialized checkpoint has moved on; that its masks are the same is checked on loading.
        if not is_specialized(state) and (weights := weights_sha256(state)) != made_for:
            raise ModelError(
                f"the {masks.kind} {masks.origin} another checkpoint",
                where=where,
                got=f"weights {weights[:12]} in {start}",
                expected=f"weights {made_for[:12]}",
                mend="start from the checkpoint that they were made from, or pass --allow-other-checkpoint",
            )
