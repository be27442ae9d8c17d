"""What evaluations are compared by, and what is known of each sentence beside its texts."""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass, fields
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from neuron_spec.artifacts import read_text, write_text
from neuron_spec.errors import ArtifactError
from neuron_spec.pages.tables import csv_text

SENTENCES = "sentences"  # folder of an evaluation, a CSV per direction

Floats = NDArray[np.float64]


class Endpoint(NamedTuple):
    """A figure by which systems are compared; ``key`` is the field of `DirectionScore` that holds it."""

    key: str
    title: str
    unit: str
    decimals: int
    lower_is_better: bool = False

    def is_better(self, difference: float) -> bool:
        """Whether a system that differs from a baseline by so much is better."""
        return difference < 0 if self.lower_is_better else difference > 0


BLEU = Endpoint("bleu", "BLEU", "0-100", 2)
CHRF = Endpoint("chrf", "chrF++", "0-100", 2)
NLL = Endpoint("nll", "NLL", "nats a target token, without the language token", 3, lower_is_better=True)
COMET = Endpoint("comet", "COMET", "as its model gives it", 4)
ENDPOINTS = {endpoint.key: endpoint for endpoint in (BLEU, CHRF, NLL, COMET)}
OF_TEXTS = (BLEU, CHRF)  # which every evaluation has


class Ratio(NamedTuple):
    """A corpus figure that is a ratio of sums over sentences; float64 ``[N]`` each, NaN where a sentence has none."""

    numerators: Floats
    denominators: Floats

    @property
    def known(self) -> NDArray[np.bool_]:
        """Which sentences have one, bool ``[N]``."""
        known: NDArray[np.bool_] = ~np.isnan(self.numerators + self.denominators)
        return known

    @property
    def value(self) -> float:
        """Over the sentences that have one; NaN if none has."""
        total = float(self.denominators[self.known].sum())
        return float(self.numerators[self.known].sum()) / total if total else math.nan


@dataclass(frozen=True)
class SentenceScores:
    """Figures of each test sentence, float64 ``[N]``, None where they are not known at all.

    Attributes:
        text_nll: teacher-forced negative log-likelihood of the reference, in nats, summed over its target tokens
            without the language token; NaN for a sentence that is longer than the model's positions.
        text_tokens: how many tokens that is, end of sentence among them.
        tag_nll: the language token's own, in nats; None where targets have none.
        comet: the hypothesis's COMET score.
    """

    text_nll: Floats | None = None
    text_tokens: Floats | None = None
    tag_nll: Floats | None = None
    comet: Floats | None = None

    def ratio(self, key: str) -> Ratio | None:
        """That of ``nll``, ``tag_nll`` or ``comet``; None where it is not known."""
        if key == NLL.key:
            known = self.text_nll is not None and self.text_tokens is not None
            return Ratio(self.text_nll, self.text_tokens) if known else None  # type: ignore[arg-type]
        values: Floats | None = getattr(self, key)
        return None if values is None else Ratio(values, np.where(np.isnan(values), np.nan, 1.0))

    def write(self, path: Path) -> None:
        """As a CSV, a line per sentence."""
        columns = {
            each.name: getattr(self, each.name)
            for each in fields(self)
            if getattr(self, each.name) is not None
        }
        rows = zip(*(column.tolist() for column in columns.values()), strict=True)
        write_text(path, csv_text(list(columns), [[None if x != x else x for x in row] for row in rows]))

    @classmethod
    def read(cls, path: Path, sentences: int) -> SentenceScores:
        """Raises: ArtifactError if the file is not one of so many sentences."""
        try:
            header, *rows = csv.reader(read_text(path).splitlines())
            columns = np.array([[float(x or "nan") for x in row] for row in rows]).reshape(len(rows), -1).T
            if any(x and not math.isfinite(float(x)) for row in rows for x in row):
                raise ValueError("a score that is no finite number")
            if len({*header}) < len(header):
                raise ValueError("a column twice")
            scores = cls(**dict(zip(header, columns, strict=True)))
            least = {"text_nll": 0, "tag_nll": 0, "text_tokens": 1}
            if low := [
                name
                for name, of in least.items()
                if ((x := getattr(scores, name)) is not None and (x < of).any())
            ]:
                raise ValueError(f"{low[0]} below {least[low[0]]}")
        except (ValueError, TypeError, csv.Error) as error:
            raise ArtifactError(
                "sentence scores are damaged", where=path, got=error, mend="evaluate again"
            ) from error
        if len(rows) != sentences:
            raise ArtifactError(
                "sentence scores are damaged",
                where=path,
                got=f"{len(rows)} sentences",
                expected=sentences,
                mend="evaluate again",
            )
        return scores
