"""What flags choose from, and which part of a data set. Light, so that ``--help`` needs no torch."""

from __future__ import annotations

import argparse
import re
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

from neuron_spec.errors import SelectionError

if TYPE_CHECKING:
    from torch import Tensor

SUMMARY_MARK = "dropped_percent"  # of the summary beside a file of masks
SIDES = ("encoder", "decoder")
DEFAULT_K, DEFAULT_CORE = Fraction(95), Fraction(50)  # percent of activations, of tokens
METHODS = {
    "cumulative": "the fewest most-active neurons that together cover k percent of the activations",
    "shared-core": "the always active neurons for all, and of the others what cumulative keeps",
    "matched-random": "as many neurons as cumulative keeps there, drawn at random",
    "top-fraction": "the most active neurons, the same number for every direction",
    "intersection-of-all": "the neurons that cumulative keeps for every direction",
    "other-direction": "the neurons that cumulative keeps for another direction",
}
NEURON_SETS = ("direction", "language")
SITE_KINDS = ("heads", "neurons", "both")
SILENCED = ("bias", "zero")  # what a dropped neuron emits instead of what it computes
DROPPED_NEURONS = (*SILENCED, "frozen")
FROZEN_WEIGHTS = ("fc1.weight", "fc1.bias", "fc2.weight")
ACTIVE_RULES = ("relu", "gate")  # a neuron is active where what it hands on is > 0, or its gate is
FFN_PATHS = ("auto", "gather", "multiply")
# Which directions are compared.
GROUPS = {
    "own": "encoder layers over x->en, by source; decoder layers over en->x, by target",
    "en-x": "all layers over en->x, by target",
    "x-en": "all layers over x->en, by source",
    "all": "all directions: encoder layers by source, decoder layers by target",
}


@dataclass(frozen=True)
class Part:
    """Every ``of``-th sentence of each direction's data set, from the ``number``-th on.

    Written ``1/2``: that and ``2/2`` are split halves; ``1/1`` is the whole. Neighbours in a data set are
    often alike, and come into different parts.
    """

    number: int = 1
    of: int = 1

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"

    @classmethod
    def parse(cls, text: str) -> Part:
        """Read ``1/2``.

        Raises:
            SelectionError: if it is no such fraction, of 1/n to n/n.
        """
        part = re.fullmatch(r"([0-9]+)/([0-9]+)", text)
        if part is None or not 1 <= int(part[1]) <= int(part[2]):
            raise SelectionError("bad part", got=repr(text), expected="i/n with 1 <= i <= n, such as 1/2")
        return cls(int(part[1]), int(part[2]))

    @property
    def is_whole(self) -> bool:
        return self.of == 1

    def holds(self, sentences: Tensor) -> Tensor:
        """Which sentences belong to it, bool ``[B]``.

        Args:
            sentences: the index of each in its direction's data set, int64 ``[B]``, from 0.
        """
        return sentences % self.of == self.number - 1


WHOLE = Part()


def part_flag(text: str) -> str:
    """`Part.parse` as the type of a flag.

    Raises:
        argparse.ArgumentTypeError: where that raises.
    """
    try:
        return str(Part.parse(text))
    except SelectionError as error:
        raise argparse.ArgumentTypeError(" ".join(str(error).split())) from error
