"""Small checkpoints that travel with the project."""

from __future__ import annotations

import argparse
import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neuron_spec.artifacts import (
    CORPUS_CARD,
    atomic_path,
    hash_file,
    read_json,
    require_file,
    require_writable,
    versions,
    write_json,
)
from neuron_spec.corpora.build import read_card
from neuron_spec.errors import ArtifactError
from neuron_spec.forms import require_form

if TYPE_CHECKING:  # a check is of files alone
    import torch

_HELD_OUT = ("valid.", "test.")
_OF_CORPUS = ("name", "langs", "sources", "pairs", "vocabulary")


def shrink(path: Path, corpus: Path, output: Path) -> None:
    """Write a checkpoint with half-precision weights and no optimizer, and its signature beside it.

    fairseq loads it like any other, but training can only start from it (``--finetune-from-model``).

    Raises:
        ArtifactError: if the checkpoint or the corpus cannot be read, or another file is at ``output``.
    """
    import torch

    from neuron_spec.backends.fairseq.checkpoints import as_start, read_checkpoint, weights_sha256

    # What it replaces has to be such a checkpoint, and not, say, the one that it is made from.
    if output.exists() and (output.samefile(path) or not output.with_suffix(".json").is_file()):
        raise ArtifactError("another file is already here", where=output, mend="name another --output")
    require_writable(output)
    state = read_checkpoint(path)
    card = read_card(corpus / CORPUS_CARD, *_OF_CORPUS, "raw_sha256")
    halves: dict[int, torch.Tensor] = {}  # by address, so that tied embeddings are stored once
    for value in state["model"].values():
        halves.setdefault(value.data_ptr(), value.half() if value.is_floating_point() else value.clone())
    weights = {key: halves[value.data_ptr()] for key, value in state["model"].items()}
    small = as_start(state, _without_paths(state["cfg"]), weights)
    with atomic_path(output) as temporary:
        torch.save(small, temporary)
    write_json(
        output.with_suffix(".json"),
        {
            "file_sha256": hash_file(output),
            "weights_sha256": weights_sha256(small),
            "updates": small["optimizer_history"][-1].get("num_updates"),
            "corpus": {key: card[key] for key in _OF_CORPUS},
            "raw_sha256": card["raw_sha256"],
            "versions": versions(),
        },
    )


def _without_paths(cfg: Any) -> Any:
    """A configuration without the paths of the machine it was used on."""
    if isinstance(cfg, argparse.Namespace):
        return argparse.Namespace(**_without_paths(vars(cfg)))
    if isinstance(cfg, dict):
        return {key: None if key == "user_dir" else _without_paths(value) for key, value in cfg.items()}
    if isinstance(cfg, str) and cfg.startswith("/"):
        return Path(cfg).name
    return copy.deepcopy(cfg)


def check(signature: Path, corpus: Path) -> None:
    """Raises: ArtifactError if the checkpoint is damaged, or was trained with another split of the corpus."""
    known = read_json(signature, "signature of the checkpoint")
    form = {"file_sha256": str, "raw_sha256": {str: str}}
    require_form(known, form, "the signature of a checkpoint", signature)
    checkpoint = require_file(signature.with_suffix(".pt"), "shipped checkpoint")
    if (digest := hash_file(checkpoint)) != known["file_sha256"]:
        raise ArtifactError(
            "shipped checkpoint is damaged", where=checkpoint, got=digest, expected=known["file_sha256"]
        )
    card = read_card(corpus / CORPUS_CARD, "raw_sha256")
    other = [
        name
        for name, digest in known["raw_sha256"].items()
        if name.startswith(_HELD_OUT) and card["raw_sha256"].get(name) != digest
    ]
    if other:
        raise ArtifactError(
            "the corpus has other held-out sets than the checkpoint's: it may have been trained on them",
            where=corpus,
            got=f"other text in {', '.join(other[:4])}" + (" ..." if len(other) > 4 else ""),
            mend="prepare the corpus with the default --langs, --seed and sizes, or train from scratch",
        )
