"""A dense model whose directions each have a copy of every FFN: it starts as the dense one, and nothing is shared there.

What training this gains over dense continuation is what sharing no FFN is worth: the ceiling, though no strict bound, as
neurons that the right directions share could gain more. Ours. The copies stand side by side in one wide FFN of which each direction keeps its own
block, so that masks do the rest; the biases of ``fc2``, attention, norms and embeddings stay shared.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from neuron_spec.artifacts import SIGNATURE, atomic_path, claim, completed, signature, write_text
from neuron_spec.backends.fairseq.asked import UNSHARED, Asked
from neuron_spec.backends.fairseq.checkpoints import as_start, is_specialized, weights_sha256
from neuron_spec.directions import Direction
from neuron_spec.errors import ArtifactError, ModelError
from neuron_spec.neurons.choices import SIDES
from neuron_spec.neurons.masks import NeuronMasks

DENSE, MASKS, FLAGS = "dense.pt", "masks.safetensors", "flags.yaml"
_DROPPED_NEURONS = "zero"  # what other blocks emit would else be added


def unshared(state: dict[str, Any], directions: Sequence[Direction]) -> tuple[dict[str, Any], NeuronMasks]:
    """A dense checkpoint with a copy of every FFN for each of N directions, and the masks that tell them apart.

    Args:
        state: as `read_checkpoint` returns it.

    Returns:
        A checkpoint without optimizer, and masks, bool ``[N, N * ffn]`` of each layer.

    Raises:
        ModelError: if the checkpoint has masks.
    """
    if is_specialized(state):
        raise ModelError(
            "directions of a specialized checkpoint no longer share their FFNs",
            got="a checkpoint with masks",
            mend="start from the dense checkpoint",
        )
    copies, weights, kept = len(directions), {}, {}
    for key, value in state["model"].items():
        if key.endswith((".fc1.weight", ".fc1.bias")):
            weights[key] = value.repeat(copies, *[1] * (value.dim() - 1))
            kept[key.partition(".fc1.")[0]] = torch.eye(copies).repeat_interleave(len(value), dim=1).bool()
        else:
            weights[key] = value.repeat(1, copies) if key.endswith(".fc2.weight") else value
    cfg = copy.deepcopy(state["cfg"])
    model = vars(cfg["model"]) if isinstance(cfg["model"], argparse.Namespace) else cfg["model"]
    model |= {f"{side}_ffn_embed_dim": copies * model[f"{side}_ffn_embed_dim"] for side in SIDES}
    model |= {"dropped_neurons": _DROPPED_NEURONS, UNSHARED: copies}
    wide = as_start(state, cfg, weights)
    metadata = {
        "method": "unshared",
        "checkpoint_sha256": weights_sha256(wide),
        "dropped_neurons": _DROPPED_NEURONS,
    }
    return wide, NeuronMasks(list(directions), kept, metadata)


def is_written(asked: Asked, output: Path) -> bool:
    """Whether a folder has it already.

    Raises:
        ArtifactError: if the folder holds another, or files of these names that are of something else.
    """
    what, wanted, files = "unshared model", signed(asked), (DENSE, FLAGS, MASKS)
    found = [name for name in files if (output / name).exists()]
    is_whole = len(found) == len(files)
    is_begun = completed(output / SIGNATURE, wanted, what=what, where=output, quiet=True)
    has_masks = completed(output / MASKS, wanted, what=what, where=output, quiet=not is_whole)
    if found and not (is_begun or has_masks):
        raise ArtifactError(
            "files of others are already here",
            where=output,
            got=", ".join(found),
            mend="name another --output",
        )
    return is_whole


def write_unshared(asked: Asked, output: Path) -> None:
    """Write `DENSE`, the `FLAGS` that a training from it needs and, last, `MASKS` into a folder that is claimed first."""
    wide, masks = unshared(asked.state, asked.directions)
    claim(output / SIGNATURE, signed(asked), what="unshared model", where=output)
    with atomic_path(output / DENSE) as temporary:
        torch.save(wide, temporary)
    widths = {side: next(iter(masks.side(side).values())).size(1) for side in SIDES}
    flags: dict[str, int | str] = {f"{side}-ffn-embed-dim": width for side, width in widths.items()}
    flags["dropped-neurons"] = _DROPPED_NEURONS
    write_text(output / FLAGS, "".join(f"{flag}: {value}\n" for flag, value in flags.items()))
    masks.metadata["signature"] = signed(asked)
    masks.save(output / MASKS)


def signed(asked: Asked) -> dict[str, Any]:
    """What an unshared model is made from."""
    return signature(
        "unshare", inputs={"checkpoint": asked.checkpoint_sha256}, parameters={"directions": asked.names}
    )
