"""Strict YAML files whose keys are fairseq's flags.

``lr: 0.0005`` is ``--lr 0.0005``; ``share-all-embeddings: true`` is ``--share-all-embeddings``.
"""

from __future__ import annotations

import os
from typing import Any

import yaml

from neuron_spec.artifacts import require_file
from neuron_spec.errors import ArtifactError


def read_flags(path: str | os.PathLike[str]) -> list[str]:
    """The command-line flags of a config file.

    Raises:
        ArtifactError: if it is missing, not a flat YAML mapping, or has a key that fairseq-train, with our
            task and models, does not know.
    """
    text = require_file(path, "config file").read_text(encoding="utf-8")
    try:
        config = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ArtifactError("config file is not YAML", where=path, got=str(error)) from error
    if not isinstance(config, dict):
        raise ArtifactError("config file is not a mapping of flags", where=path, got=type(config).__name__)
    flags: list[str] = []
    for key, value in config.items():
        flags += _flag(path, key, value)
    _require_known(path, flags)
    return flags


def _flag(path: object, key: Any, value: Any) -> list[str]:
    if isinstance(value, dict | list) or value is None or not isinstance(key, str):
        raise ArtifactError(
            "config value is not one number, word or switch", where=f"{path}: {key}", got=repr(value)
        )
    if value is True:
        return [f"--{key}"]
    return [] if value is False else [f"--{key}", str(value)]


def _require_known(path: object, flags: list[str]) -> None:
    from neuron_spec.fairseq_commands import unknown_training_flags

    if unknown := unknown_training_flags(flags):
        raise ArtifactError(
            "config file has keys that fairseq-train does not know",
            where=path,
            got=", ".join(unknown),
            mend="a key is a flag of fairseq-train without its two hyphens",
        )
