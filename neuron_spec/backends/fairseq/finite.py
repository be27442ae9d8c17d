"""Which part of a model makes NaN or inf in training: fairseq runs such an update again, and logs it; here it is the message."""

from __future__ import annotations

import importlib
from typing import Any

import torch
from fairseq.nan_detector import NanDetector

from neuron_spec.errors import ModelError


class NotFinite(ModelError):
    """A training's update holds NaN or inf.

    Attributes:
        place: the module, or what is not one.
    """

    def __init__(self, place: str, found: str, directions: str | None = None) -> None:
        self.place, self.found = place, found
        super().__init__(
            "not a number: NaN or inf in training",
            where=place,
            got=found + (f", in a batch of {directions}" if directions else ""),
            mend="lower --lr, raise --warmup-updates or --clip-norm, train in fp32 or bf16 and not fp16; weights as they were "
            "then are in crash.pt of the --save-dir",
        )


def name_what_is_not_finite() -> None:
    """Let fairseq's trainer look with `Detector`."""
    trainer: Any = importlib.import_module("fairseq.trainer")
    trainer.NanDetector = Detector


class Detector(NanDetector):
    """Ends the training where the first is found."""

    def _detect(self, tensor: torch.Tensor, name: str, backward: bool) -> None:
        if found := super()._detect(tensor, name, backward):
            raise NotFinite(
                name or "the model", f"{found.split()[0]} in its {'gradient' if backward else 'output'}"
            )

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> None:
        self.close()
        if kind is None:
            raise NotFinite("the gradients", "no finite norm; none when the update was made again")
