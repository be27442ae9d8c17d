"""LaSS before its joint training: fine-tune a copy of the dense model per direction, mask what stays small.

Of each direction only its masks stay, a bit per weight, in ``WORK/en-de/alpha-0.7.safetensors``, complete when it is
there; `fine_tuning` says how copies are made and resumed, and what else is in the folder.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from neuron_spec.artifacts import completed
from neuron_spec.backends.fairseq.checkpoints import read_checkpoint
from neuron_spec.backends.fairseq.fine_tuning import Copy, FineTuning
from neuron_spec.errors import ArtifactError
from neuron_spec.studies.lass.weight_masks import WeightMasks, require_alpha


@dataclass(frozen=True)
class Masking:
    """What becomes of a fine-tuned copy.

    Attributes:
        alpha: the fraction of each matrix' weights that is dropped, 0 to below 1.
        checkpoint: which of fairseq's checkpoints is masked: ``last``, or ``best`` on validation data.
        keep_checkpoints: leave the copy, so that another alpha needs no other training.
    """

    alpha: float
    checkpoint: str = "last"
    keep_checkpoints: bool = False

    def __post_init__(self) -> None:
        require_alpha(self.alpha)


def make_masks(training: FineTuning, masking: Masking, output: Path, work: Path) -> WeightMasks:
    """The masks of all directions, in ``output``; several processes may share ``work``, not a direction.

    Raises:
        ArtifactError: if ``output`` or ``work`` holds what was made from something else.
        NeuronSpecError: if a training fails, or another process is at work on a direction.
    """
    whole = training.signature("lass", training.directions)
    whole["parameters"] |= {"alpha": masking.alpha, "checkpoint": masking.checkpoint}
    if completed(output, whole, what="set of weight masks"):
        return WeightMasks.load(output)
    dictionary = training.dictionary_sha256  # before any training, as it reads the data-bin
    parts = []
    for number, direction in enumerate(training.directions, start=1):
        print(f"{direction} ({number} of {len(training.directions)})", file=sys.stderr)
        copy = Copy(training, direction, work / str(direction), keep=masking.keep_checkpoints)
        which = "" if masking.checkpoint == "last" else f"-{masking.checkpoint}"
        part = copy.folder / f"alpha-{masking.alpha:g}{which}.safetensors"
        signature = training.signature("lass", [direction])
        copy.make(part, partial(_mask, copy, masking, part, signature), signature)
        parts.append(WeightMasks.load(part))
    masks = WeightMasks.join(
        parts,
        {
            "method": "lass",
            "alpha": masking.alpha,
            "checkpoint_sha256": training.checkpoint_sha256,
            "dictionary_sha256": dictionary,
            "langs": training.langs,
            "fine_tuning_seconds": {
                of.names[0]: of.metadata["seconds"] for of in parts if "seconds" in of.metadata
            },
            "signature": whole,
        },
    )
    masks.save(output)
    return masks


def _mask(copy: Copy, masking: Masking, part: Path, signature: dict[str, Any]) -> None:
    path = copy.checkpoint(masking.checkpoint)
    if masking.checkpoint == "best" and not path.is_file():
        raise ArtifactError(
            "fine-tuning left no best checkpoint",
            where=path,
            mend="let it validate (no disable-validation in --config), or mask the last checkpoint",
        )
    state = read_checkpoint(path)
    masks = WeightMasks.by_magnitude(state["model"], copy.direction, masking.alpha)
    masks.metadata |= {"seconds": copy.training.seconds(state), "signature": signature}
    masks.save(part)
