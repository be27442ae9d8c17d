"""Which of a corpus' own languages a sentence is in: the judge of off-target translations.

Trained on the corpus itself, so it knows invented languages too and has no others to confuse them
with. Axis letters: N n-grams in one text, V n-grams known, L languages.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from neuron_spec.errors import CorpusError
from neuron_spec.languages import UNKNOWN

LINES_PER_LANGUAGE = 4000
LONGEST_NGRAM = 4
# Four characters of 16 bits fill one 64-bit key, so keys are exact: no two n-grams share one.
_CHARACTER_BITS = 16
_SMOOTHING = 0.5
_TEXTS_AT_ONCE = 500
_SEPARATOR = "\n"


class LanguageIdentifier:
    """Multinomial naive Bayes over character n-grams of length 1 to 4, all languages equally likely.

    Case and runs of spaces are ignored. The same training text gives the same answers.
    """

    def __init__(self) -> None:
        self.languages: list[str] = []
        self._character_ids = np.zeros(0, np.uint64)  # [code points]; 0 = not in training text
        self._known = np.zeros(0, np.uint64)  # [V], sorted keys
        self._log_probability = np.zeros((0, 0), np.float32)  # [V, L]

    def fit(self, text: Mapping[str, Iterable[str]]) -> LanguageIdentifier:
        """Learn from training text by language; only the first 4000 non-blank lines of each are read.

        Raises:
            CorpusError: if there are fewer than two languages, or one has no text.
        """
        if len(text) < 2:
            raise CorpusError(
                "a language identifier needs languages to tell apart", got=list(text), expected="two or more"
            )
        self.languages = list(text)
        samples = []
        for language, lines in text.items():
            sample = list(islice((line for line in lines if line.strip()), LINES_PER_LANGUAGE))
            if not sample:
                raise CorpusError("no training text for a language", got=language)
            samples.append(_code_points(sample))

        characters = np.unique(np.concatenate(samples))
        characters = characters[characters != ord(_SEPARATOR)][: 2**_CHARACTER_BITS - 1]
        self._character_ids = np.zeros(0x110000, np.uint64)
        self._character_ids[characters] = np.arange(1, len(characters) + 1, dtype=np.uint64)

        counted = [
            np.unique(_ngrams(sample, self._character_ids)[0], return_counts=True) for sample in samples
        ]
        self._known = np.unique(np.concatenate([keys for keys, _ in counted]))
        counts = np.full((len(self._known), len(self.languages)), _SMOOTHING, np.float32)
        for column, (keys, count) in enumerate(counted):
            counts[np.searchsorted(self._known, keys), column] += count
        self._log_probability = np.log(counts / counts.sum(axis=0, dtype=np.float64)).astype(np.float32)
        return self

    def identify(self, texts: Sequence[str]) -> list[str]:
        """The language of each text; ``unknown`` where no character of it was seen in training.

        Raises:
            CorpusError: if `fit` was not called.
        """
        if not self.languages:
            raise CorpusError("this language identifier has learned nothing", mend="call fit first")
        batches = (texts[start : start + _TEXTS_AT_ONCE] for start in range(0, len(texts), _TEXTS_AT_ONCE))
        return [language for batch in batches for language in self._identify_batch(batch)]

    def _identify_batch(self, texts: Sequence[str]) -> list[str]:
        code_points = _code_points(texts)
        keys, owners = _ngrams(code_points, self._character_ids)
        rows = np.searchsorted(self._known, keys).clip(max=len(self._known) - 1)
        seen = self._known[rows] == keys
        rows, owners = rows[seen], owners[seen]

        scores = np.zeros((len(texts), len(self.languages)))
        for column in range(len(self.languages)):
            evidence = self._log_probability[rows, column]
            scores[:, column] = np.bincount(owners, weights=evidence, minlength=len(texts))
        # The spaces at both ends are known to every language and no evidence for any.
        letters = (self._character_ids[code_points] > 0) & (code_points != ord(" "))
        has_evidence = np.bincount(_owners(code_points)[letters], minlength=len(texts)) > 0
        best = scores.argmax(axis=1)
        return [self.languages[i] if known else UNKNOWN for i, known in zip(best, has_evidence, strict=True)]

    def accuracy(self, text: Mapping[str, Sequence[str]]) -> dict[str, float]:
        """Fraction (0-1) of each language's texts that are identified as that language.

        Raises:
            CorpusError: if a language was not learned or has no texts.
        """
        result = {}
        for language, texts in text.items():
            if language not in self.languages:
                raise CorpusError(
                    "the language identifier does not know a language",
                    got=language,
                    expected=f"one of {', '.join(self.languages)}",
                    mend="fit it on text of every target language",
                )
            if not texts:
                raise CorpusError("no text to measure a language identifier on", got=language)
            result[language] = self.identify(texts).count(language) / len(texts)
        return result


def _code_points(texts: Sequence[str]) -> NDArray[np.uint32]:
    """All texts in one array: each lower-cased, with a space at both ends, then a separator."""
    joined = "".join(f" {' '.join(text.lower().split())} {_SEPARATOR}" for text in texts)
    # A lone surrogate, which damaged text may hold, is a character like any other here.
    return np.frombuffer(joined.encode("utf-32-le", "surrogatepass"), np.uint32)


def _owners(code_points: NDArray[np.uint32]) -> NDArray[np.intp]:
    """The number of the text that each character is from; separators do not matter."""
    return np.cumsum(code_points == ord(_SEPARATOR))


def _ngrams(
    code_points: NDArray[np.uint32], character_ids: NDArray[np.uint64]
) -> tuple[NDArray[np.uint64], NDArray[np.intp]]:
    """Keys ``[N]`` of all n-grams within a text, and the number ``[N]`` of the text each is from.

    Separators have id 0, as unseen characters do: no n-gram holds either.
    """
    owners = _owners(code_points)
    ids = character_ids[code_points]
    keys, whole = ids, ids > 0
    all_keys, all_owners = [keys[whole]], [owners[whole]]
    for length in range(2, LONGEST_NGRAM + 1):
        ending = ids[length - 1 :]
        keys = (keys[: len(ending)] << np.uint64(_CHARACTER_BITS)) | ending
        whole = whole[: len(ending)] & (ending > 0)
        all_keys.append(keys[whole])
        all_owners.append(owners[: len(ending)][whole])
    return np.concatenate(all_keys), np.concatenate(all_owners)
