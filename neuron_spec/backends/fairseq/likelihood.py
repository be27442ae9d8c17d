"""The likelihood that a checkpoint gives to the references of a test set, sentence by sentence."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from neuron_spec.backends.fairseq.asked import Asked
from neuron_spec.backends.fairseq.generation import Translator
from neuron_spec.backends.fairseq.loading import TeacherForced
from neuron_spec.directions import Direction
from neuron_spec.scoring.endpoints import SENTENCES, SentenceScores


class Likelihoods:
    """A translator's model, to be run teacher-forced over the set that it translates."""

    def __init__(
        self, asked: Asked, translator: Translator, *, flags: Sequence[str], max_tokens: int
    ) -> None:
        """Read the text.

        Args:
            flags: the translator's.

        Raises:
            ArtifactError, ModelError: as `TeacherForced.read`.
        """
        (model,) = translator.models
        self._model = asked.load(TeacherForced, model=model, flags=flags, max_tokens=max_tokens)
        self._text = self._model.read(translator.subset)

    def measure(
        self, known: Mapping[Direction, SentenceScores], folder: Path
    ) -> dict[Direction, SentenceScores]:
        """With the likelihoods of all directions; each is written to the evaluation's folder as soon as it is there.

        Args:
            known: what is known already, likelihoods too, which are not measured again.
        """
        sentences = dict(known)
        with tqdm(total=len(self._text.batches), unit="batch", file=sys.stderr) as bar:
            for row, direction in enumerate(self._model.directions):
                of_direction = sentences.get(direction, SentenceScores())
                if of_direction.text_nll is not None:
                    bar.update(len(self._text.of(row)))
                    continue
                bar.set_description(f"likelihood {direction}")
                found = self._model.sentence_likelihoods(self._text, row, bar.update)
                sentences[direction] = replace(
                    of_direction,
                    text_nll=found.text_nats,
                    text_tokens=found.text_tokens,
                    tag_nll=None if np.isnan(found.tag_nats).all() else found.tag_nats,
                )
                sentences[direction].write(folder / SENTENCES / f"{direction}.csv")
        return sentences
