"""Strict YAML files whose keys are fairseq's flags.

``lr: 0.0005`` is ``--lr 0.0005``; ``share-all-embeddings: true`` is ``--share-all-embeddings``. One key is ours:
``tokens-per-update: 645120`` becomes the ``--update-freq`` that gives it on the GPUs at hand.
"""

from __future__ import annotations

import ast
import os
import re
from collections import Counter
from pathlib import Path
from typing import Any, Literal

import yaml

from neuron_spec.arguments import MOST
from neuron_spec.artifacts import require_file, write_text
from neuron_spec.errors import ArtifactError, in_file
from neuron_spec.forms import number, require_form

TOKENS_PER_UPDATE = "tokens-per-update"
MAX_TOKENS = "max-tokens"
UPDATE_FREQ = "update-freq"
KEPT_CONFIG = "config.yaml"  # beside the checkpoints
# What a file may not ask for, since it may be a stranger's: to run code, to end the parser, or to take what another
# machine sends for a process of this training.
_NOT_FROM_A_FILE = ("user-dir", "help", "h", "distributed-init-method")


def read_flags(
    path: str | os.PathLike[str],
    gpus: int | Literal["all"] | None = None,
    *,
    kept: str | os.PathLike[str] | None = None,
) -> list[str]:
    """The command-line flags of a config file.

    Args:
        gpus: how many train together, over all nodes, or all that torch sees here; a file with
            ``tokens-per-update`` needs it.
        kept: the folder of a training. What trained there already is not asked of fairseq again, which takes
            seconds.

    Raises:
        ArtifactError: if it is missing, not a flat YAML mapping, has a key that fairseq-train, with our
            task and models, does not know, or an update size that cannot be had.
    """
    config = config_file = _read(path)
    if TOKENS_PER_UPDATE in config:
        config = _with_update_freq(path, config, gpus)
    flags: list[str] = []
    for key, value in config.items():
        _require_plain(path, key, value)
        if value is not False:
            flags += [f"--{key}"] if value is True else [f"--{key}", str(value)]
    if kept is not None and _trained_with(kept) == config_file:
        return flags
    from neuron_spec.backends.fairseq.commands import unknown_training_flags  # loads fairseq

    with in_file(path):
        unknown = unknown_training_flags(flags)
    if unknown:
        raise ArtifactError(
            "config file has keys that fairseq-train does not know",
            where=path,
            got=", ".join(unknown),
            mend="a key is a flag of fairseq-train without its two hyphens",
        )
    return flags


def keep_config(path: str | os.PathLike[str], folder: str | os.PathLike[str]) -> None:
    """Copy a config file into the folder of the training that uses it.

    Raises:
        ArtifactError: if its checkpoints were made with other values; comments may differ.
    """
    kept = Path(folder) / KEPT_CONFIG
    before, now = _trained_with(folder), _read(path)
    if before is None:
        write_text(kept, Path(path).read_text(encoding="utf-8"))
        return
    if differing := [key for key in {**before, **now} if before.get(key) != now.get(key)]:
        raise ArtifactError(
            "these checkpoints were made with another config",
            where=kept,
            got=", ".join(f"{key}: {before.get(key, 'absent')}" for key in differing),
            expected=", ".join(f"{key}: {now.get(key, 'absent')}" for key in differing) + f", as in {path}",
            mend="go on with the config that is kept there, or train in another folder",
        )


def _trained_with(folder: str | os.PathLike[str]) -> dict[Any, Any] | None:
    """The config that the checkpoints in a folder were made with; None if there are none, or it was not kept."""
    kept = Path(folder) / KEPT_CONFIG
    return _read(kept) if kept.is_file() and any(Path(folder).glob("*.pt")) else None


def updates_of(tokens_per_update: int, gpus: int, max_tokens: int) -> tuple[int, int] | None:
    """``(max_tokens, update_freq)`` whose product with ``gpus`` is ``tokens_per_update``. Ours.

    The smallest update_freq, and so the fullest batches, with max_tokens no larger than given and more
    than half of it; None if there is none.
    """
    each, left = divmod(tokens_per_update, gpus)
    fewest = -(-each // max_tokens)
    if left or not each:
        return None
    if fewest > max_tokens:  # whichever are fewer to try
        fitting = next((n for n in range(max_tokens, max_tokens // 2, -1) if each % n == 0), None)
        return (fitting, each // fitting) if fitting else None
    for update_freq in range(fewest, 2 * fewest + 1):
        if each % update_freq == 0:
            fitting = each // update_freq
            return (fitting, update_freq) if 2 * fitting > max_tokens else None
    return None


def _read(path: str | os.PathLike[str]) -> dict[Any, Any]:
    content = require_file(path, "config file").read_bytes()
    try:
        text = content.decode("utf-8")
        config, tree = yaml.safe_load(text), yaml.compose(text, yaml.SafeLoader)
    # A tag or date that its text does not fit is a bare ValueError, a number beyond measure an OverflowError.
    except (yaml.YAMLError, ValueError, RecursionError, OverflowError, TypeError, AttributeError) as error:
        raise ArtifactError("config file is not YAML", where=path, got=str(error)) from error
    if not isinstance(config, dict):
        raise ArtifactError("config file is not a mapping of flags", where=path, got=type(config).__name__)
    keys = (
        Counter(key.value for key, _ in tree.value if isinstance(key, yaml.ScalarNode)) if tree else Counter()
    )
    if twice := [key for key, times in keys.items() if times > 1]:
        raise ArtifactError(
            "config file names a flag twice",
            where=path,
            got=", ".join(twice),
            mend="keep the one that is meant",
        )
    form = {str: (bool, number(-(2**63), 2**63), str)}
    require_form(config, form, "a config", path, headline="config value is not one number, word or switch")
    return config


def _require_plain(path: object, key: str, value: object) -> None:
    """That a key is one flag, and one that a file may set, and its value no flag, nor several lines of them."""
    name = key.replace("_", "-").lower()
    if any(
        flag.startswith(name) for flag in _NOT_FROM_A_FILE
    ):  # an abbreviation is enough for fairseq's parser
        raise ArtifactError(
            "config file has a key that is not for files",
            where=path,
            got=key,
            mend="a config sets what is trained; give this on the command line, if it is meant",
        )
    if not re.fullmatch(r"\w[\w-]*", key, re.ASCII):
        raise ArtifactError(
            "config key is no flag's name", where=path, got=repr(key), expected="letters, digits, hyphens"
        )
    is_number = isinstance(value, int | float) or re.fullmatch(r"-[\d.]+(e-?\d+)?", str(value))
    is_flag = str(value).startswith("-") and not is_number
    if is_flag or not str(value).isprintable() or _calls(str(value)):
        raise ArtifactError(
            "config value is not one number or word",
            where=f"{path}: {key}",
            got=repr(value),
            expected="one line that begins with no hyphen, and calls nothing",
        )


def _calls(text: str) -> bool:
    """Whether fairseq, which without --user-dir runs some values as Python, would call something."""
    try:
        return any(isinstance(node, ast.Call) for node in ast.walk(ast.parse(text.strip(), mode="eval")))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False


def _with_update_freq(
    path: object, config: dict[Any, Any], gpus: int | Literal["all"] | None
) -> dict[Any, Any]:
    if UPDATE_FREQ in config:
        raise ArtifactError(
            f"config file has both {TOKENS_PER_UPDATE} and {UPDATE_FREQ}",
            where=path,
            mend=f"the first is {UPDATE_FREQ} x {MAX_TOKENS} x GPUs: keep one of the two",
        )
    sizes: dict[str, int] = {key: config.get(key, 0) for key in (TOKENS_PER_UPDATE, MAX_TOKENS)}
    for key, size in sizes.items():
        if type(size) is not int or not 1 <= size <= MOST:
            raise ArtifactError(
                f"{TOKENS_PER_UPDATE} needs two whole numbers above 0, up to {MOST}: itself and {MAX_TOKENS}",
                where=f"{path}: {key}",
                got=repr(size),
            )
    if gpus is None:
        raise ArtifactError(
            f"a config file with {TOKENS_PER_UPDATE} needs the number of GPUs",
            where=path,
            mend="give --gpus N, over all nodes",
        )
    if gpus == "all":
        import torch

        gpus = max(1, torch.cuda.device_count())  # as many as fairseq-train takes
    update = updates_of(sizes[TOKENS_PER_UPDATE], gpus, sizes[MAX_TOKENS])
    if update is None:
        raise ArtifactError(
            f"{TOKENS_PER_UPDATE} cannot be had exactly on this many GPUs",
            where=path,
            got=f"{gpus} GPUs",
            expected=f"GPUs x {MAX_TOKENS} x {UPDATE_FREQ} = {sizes[TOKENS_PER_UPDATE]}, with "
            f"{MAX_TOKENS} up to {sizes[MAX_TOKENS]} and more than half of it",
            mend=f"use another number of GPUs, or change {MAX_TOKENS} or {TOKENS_PER_UPDATE}",
        )
    rest = {key: value for key, value in config.items() if key not in sizes}
    return {**rest, MAX_TOKENS: update[0], UPDATE_FREQ: update[1]}
