"""The length penalty of beam search, chosen by validation text: one for all directions, and for all systems compared.

fairseq divides the log-likelihood of a finished hypothesis by its length to the power of ``--lenpen``: more than 1
favours longer ones. A system whose hypotheses are too short for the default loses BLEU to its brevity penalty, which
says nothing of its translations; so the baseline's value, chosen on text that no test score sees, is every system's.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from neuron_spec.arguments import STRONGEST
from neuron_spec.artifacts import hash_text, read_json, write_json
from neuron_spec.errors import ArtifactError, NeuronSpecError
from neuron_spec.forms import number, require_form
from neuron_spec.scoring.metrics import DirectionScore

LENPEN_JSON = "lenpen.json"
GRID = tuple(number / 5 for number in range(1, 11))  # 0.2 to 2.0
_NEUTRAL = 1.0  # fairseq's default


class Tried(NamedTuple):
    """A value of the grid: unweighted means over directions of BLEU (0-100) and of the length ratio in words."""

    lenpen: float
    bleu: float
    length_ratio: float


_PENALTY = number(-STRONGEST, STRONGEST)
_FORM = {
    "lenpen": _PENALTY,
    "grid": [{"lenpen": _PENALTY, "bleu": float, "length_ratio": float}],
    "signature": {"inputs": {}, "parameters": {"subset": str, "directions": [str]}},
}


@dataclass(frozen=True)
class LengthPenalty:
    """The chosen value, and what it was chosen from."""

    value: float
    tried: list[Tried]
    signature: Mapping[str, Any]

    @classmethod
    def choose(
        cls, scores: Mapping[float, Sequence[DirectionScore]], signature: Mapping[str, Any]
    ) -> LengthPenalty:
        """The value with the highest mean BLEU on validation text; of equal ones, that nearest to fairseq's 1.

        Args:
            scores: of each value, every direction's.
        """
        tried = [
            Tried(
                value,
                bleu=fmean(of.bleu for of in of_value),
                # 0 words written for 0 in the references: a ratio that says nothing, and is left out.
                length_ratio=fmean(
                    [of.length_ratio for of in of_value if of.length_ratio is not None] or [math.nan]
                ),
            )
            for value, of_value in sorted(scores.items())
        ]
        best = max(tried, key=lambda one: (one.bleu, -abs(one.lenpen - _NEUTRAL)))
        return cls(best.lenpen, tried, signature)

    @property
    def sha256(self) -> str:
        """Of what it was chosen from, and of the choice."""
        made_from = {key: self.signature[key] for key in ("inputs", "parameters")}
        return hash_text(
            str(self.value), repr(sorted(made_from["inputs"].items())), repr(made_from["parameters"])
        )

    def say(self) -> None:
        by_value = {one.lenpen: one for one in self.tried}
        best, neutral = by_value[self.value], by_value[_NEUTRAL]
        print(
            f"length penalty {self.value:g}: BLEU {best.bleu:.2f}, length ratio {best.length_ratio:.3f} on validation "
            f"text; {neutral.bleu:.2f} and {neutral.length_ratio:.3f} with {_NEUTRAL:g}",
            file=sys.stderr,
        )
        if self.value in (min(by_value), max(by_value)):
            print(
                f"warning: {self.value:g} is at the end of the grid: lengths are far off whatever the penalty",
                file=sys.stderr,
            )

    def write(self, path: Path) -> None:
        tried = [one._asdict() for one in self.tried]
        write_json(path, {"signature": self.signature, "lenpen": self.value, "grid": tried})

    @classmethod
    def read(cls, path: Path) -> LengthPenalty:
        """Of a file, or of the folder of the evaluation that chose it.

        Raises:
            ArtifactError: if it is not there, or damaged.
        """
        path = path / LENPEN_JSON if path.is_dir() else path
        mend = "name a folder that neuron-spec evaluate --tune-lenpen wrote, or its lenpen.json"
        if not path.is_file():
            raise ArtifactError("no chosen length penalty", where=path, mend=mend)
        content, what = read_json(path, "length penalty"), "not a chosen length penalty"
        require_form(content, _FORM, "a length penalty", path, headline=what, mend=mend)
        tried = [Tried(**one) for one in content["grid"]]
        if content["lenpen"] not in [one.lenpen for one in tried]:
            raise ArtifactError(
                what, where=path, got=f"{content['lenpen']}, which is not in its grid", mend=mend
            )
        return cls(float(content["lenpen"]), tried, dict(content["signature"]))

    def require_same(self, beam: int, data_sha256: str, *, where: object) -> None:
        """That it was chosen with this beam, on validation text of this data-bin.

        Raises:
            NeuronSpecError: if it was not.
        """
        tuned = self.signature["parameters"].get("beam"), self.signature["inputs"].get("data")
        for what, got, expected in (("beam", tuned[0], beam), ("data-bin", tuned[1], data_sha256)):
            if got != expected:
                raise NeuronSpecError(
                    f"the length penalty was chosen with another {what}",
                    where=where,
                    got=got if what == "beam" else f"validation text {str(got)[:12]}",
                    expected=expected if what == "beam" else f"validation text {data_sha256[:12]}",
                    mend="name one that was chosen with the same, or choose anew with --tune-lenpen",
                )
