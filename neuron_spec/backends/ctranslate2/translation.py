"""Sentences through an export for CTranslate2, searched as ``fairseq-generate`` searches. Neither torch nor fairseq."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import ctranslate2
from tqdm import tqdm

from neuron_spec.errors import ArtifactError
from neuron_spec.export.folder import ExportFolder, Hypothesis, Search

# With no penalty CTranslate2 ends at the first hypothesis; with so little scores are sums of log-likelihoods.
_NEXT_TO_NONE = 1e-9


@dataclass(frozen=True)
class _Found:
    """A finished hypothesis: its text tokens, and their log-likelihood in nats, without the language token's."""

    tokens: list[str]
    nats: float

    def score(self, tag_nats: float, tags: int, lenpen: float) -> float:
        """As fairseq scores it, whose length counts the language token and the end of sentence."""
        return (self.nats + tag_nats) / (len(self.tokens) + tags + 1) ** lenpen


class CTranslate2Translator:
    """An export in memory.

    fairseq divides a hypothesis's log-likelihood by its length with language token and end of sentence, and counts the
    token's own; CTranslate2 does neither, and may choose another. So it is asked for all that it finds, and the choice is
    made here.
    """

    def __init__(
        self,
        folder: ExportFolder,
        search: Search,
        *,
        scores: bool = False,
        cpu: bool = False,
        threads: int | None = None,
    ) -> None:
        """Load the model.

        Args:
            scores: give them with the hypotheses.
            threads: batches that run at the same time on a CPU; None: as many as there are cores.

        Raises:
            ArtifactError: if the model is damaged.
        """
        self._folder, self._search, self._scores = folder, search, scores
        self._before = [folder.source_tag] if folder.source_tag else []
        self._tag = [folder.target_tag] if folder.target_tag else []
        device = "cpu" if cpu or not ctranslate2.get_cuda_device_count() else "cuda"
        self._threads = 1 if device == "cuda" else threads or os.cpu_count() or 1
        try:
            self._translator = ctranslate2.Translator(
                str(folder.path),
                device=device,
                inter_threads=self._threads,
                intra_threads=1,
            )
        except (RuntimeError, ValueError) as error:
            raise ArtifactError(
                "CTranslate2 cannot load the export",
                where=folder.path,
                got=str(error).splitlines()[0],
                mend="make it again with neuron-spec export",
            ) from error

    def translate_pieces(self, sentences: Sequence[Sequence[str]]) -> list[Hypothesis]:
        """The best hypothesis of each sentence, none of which is longer than `ExportFolder.max_source_tokens`.

        Args:
            sentences: pieces, without language token and end of sentence.
        """
        lengths = [len(self._before) + len(pieces) + 1 for pieces in sentences]
        started = []
        # Together, those that run at the same time hold no more than one batch may; and smaller ones share out better.
        for batch in _batches(lengths, max(1, self._search.max_tokens // self._threads)):
            sources = [[*self._before, *sentences[i]] for i in batch]
            most = self._search.max_len(max(lengths[i] for i in batch), self._folder.max_target_positions)
            started.append((batch, sources, most, self._start(sources, most)))
        best: dict[int, Hypothesis] = {}
        with tqdm(
            total=len(sentences), desc=f"translate {self._folder.direction}", unit="sent", file=sys.stderr
        ) as bar:
            for batch, sources, most, running in started:
                best |= zip(batch, self._best(sources, most, [one.result() for one in running]), strict=True)
                bar.update(len(batch))
        return [best[i] for i in range(len(sentences))]

    def _start(self, sources: Sequence[list[str]], most: int) -> list[Any]:
        """Begin a search, which waits for a free thread."""
        running: list[Any] = self._translator.translate_batch(
            sources,
            [self._tag] * len(sources) if self._tag else None,
            asynchronous=True,
            beam_size=self._search.beam,
            num_hypotheses=self._search.beam,
            length_penalty=_NEXT_TO_NONE,
            max_input_length=0,  # else it cuts
            max_decoding_length=most + 1,  # and an end of sentence
            return_scores=True,
        )
        return running

    def _best(self, sources: Sequence[list[str]], most: int, results: Sequence[Any]) -> Iterator[Hypothesis]:
        tags, lenpen = len(self._tag), self._search.lenpen
        found = [
            [_Found(tokens[tags:], nats) for tokens, nats in zip(of.hypotheses, of.scores, strict=True)]
            for of in results
        ]
        self._end(sources, found, most - tags)
        for hypotheses, nats in zip(found, self._tag_nats(sources, found), strict=True):
            scores = [one.score(nats, tags, lenpen) for one in hypotheses]
            at = scores.index(max(scores))
            text = [token for token in hypotheses[at].tokens if token not in self._tag]
            yield Hypothesis(text, scores[at] if self._scores else None)

    def _end(self, sources: Sequence[list[str]], found: Sequence[list[_Found]], most: int) -> None:
        """Let those that did not end within ``most`` text tokens end there, as fairseq does, and score them again."""
        cut = [(i, j) for i, of in enumerate(found) for j, one in enumerate(of) if len(one.tokens) > most]
        texts = [found[i][j].tokens[:most] for i, j in cut]
        scored = self._scored([(sources[i], text) for (i, _), text in zip(cut, texts, strict=True)])
        for (i, j), text, nats in zip(cut, texts, scored, strict=True):
            found[i][j] = _Found(text, sum(nats[len(self._tag) :]))

    def _tag_nats(self, sources: Sequence[list[str]], found: Sequence[Sequence[_Found]]) -> list[float]:
        """The log-likelihood of each sentence's language token; 0 where the choice does not depend on it."""
        nats, lenpen = [0.0] * len(sources), self._search.lenpen
        if not self._folder.scores_tag:
            return nats
        asked = [i for i, of in enumerate(found) if self._tag and (self._scores or _depends(of, lenpen))]
        for i, of in zip(asked, self._scored([(sources[i], []) for i in asked]), strict=True):
            nats[i] = of[0]
        return nats

    def _scored(self, pairs: Sequence[tuple[list[str], list[str]]]) -> list[list[float]]:
        """Of sources and texts, the log-likelihood of each token: language token, text, end of sentence."""
        if not pairs:
            return []
        sources, targets = zip(*((source, [*self._tag, *text]) for source, text in pairs), strict=True)
        scored = self._translator.score_batch([*sources], [*targets], max_input_length=0)
        return [list(of.log_probs) for of in scored]


def _depends(found: Sequence[_Found], lenpen: float) -> bool:
    """Whether a language token's log-likelihood, 0 or less, could decide which is the best.

    Scores are linear in it. Where it is far below 0 the longest wins, so one that is the best of the longest and the
    best at 0 is the best at any value.
    """
    at_zero = max(found, key=lambda one: one.score(0.0, 1, lenpen))
    return any(len(one.tokens) > len(at_zero.tokens) for one in found) and lenpen > 0


def _batches(lengths: Sequence[int], max_tokens: int) -> Iterator[list[int]]:
    """Indices in batches of at most so many tokens with padding, one sentence at least; the longest first."""
    batch: list[int] = []
    for i in sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True):
        if batch and lengths[batch[0]] * (len(batch) + 1) > max_tokens:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch
