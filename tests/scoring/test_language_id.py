"""The language identifier: it learns its corpus' languages, says when it knows nothing, and is exact."""

import random

import numpy as np
import pytest

from neuron_spec.errors import CorpusError
from neuron_spec.scoring.language_id import LINES_PER_LANGUAGE, LanguageIdentifier, _code_points, _ngrams

SYLLABLES = {"xa": "ka lo mi tu", "xb": "ke lu ma ti", "xc": "щу фы жа ло"}


def text(language, lines, seed):
    draw = random.Random(f"{language} {seed}")
    syllables = SYLLABLES[language].split()
    words = lambda: "".join(draw.choices(syllables, k=draw.randint(1, 3)))  # noqa: E731
    return [" ".join(words() for _ in range(draw.randint(3, 6))) for _ in range(lines)]


@pytest.fixture(scope="module")
def identifier():
    return LanguageIdentifier().fit({language: text(language, 300, "train") for language in SYLLABLES})


def test_invented_languages_are_told_apart(identifier):
    accuracy = identifier.accuracy({language: text(language, 700, "test") for language in SYLLABLES})
    assert min(accuracy.values()) > 0.98
    # The same words under the wrong name are not accepted.
    assert identifier.accuracy({"xa": text("xb", 100, "test")})["xa"] < 0.02


def test_answers_do_not_depend_on_neighbours_case_or_spaces(identifier):
    # More texts than are identified at once.
    texts = [line for language in SYLLABLES for line in text(language, 400, "test")]
    together = identifier.identify(texts)
    order = random.Random(0).sample(range(len(texts)), len(texts))
    shuffled = identifier.identify([texts[i] for i in order])
    assert shuffled == [together[i] for i in order]
    assert together[:20] == [identifier.identify([line])[0] for line in texts[:20]]
    assert identifier.identify([f"  {line.upper()}\n" for line in texts]) == together


def test_text_without_known_characters_is_unknown(identifier):
    # A space at either end is known to every language, but no evidence for any.
    assert identifier.identify(["", "  ", "漢字", "kalo"]) == ["unknown", "unknown", "unknown", "xa"]
    assert identifier.identify([]) == []


def test_fitting_again_gives_the_same(identifier):
    again = LanguageIdentifier().fit({language: iter(text(language, 300, "train")) for language in SYLLABLES})
    assert np.array_equal(again._known, identifier._known)
    assert np.array_equal(again._log_probability, identifier._log_probability)


def test_only_the_first_lines_are_read():
    read = []

    def lines():
        for i in range(LINES_PER_LANGUAGE + 100):
            read.append(i)
            yield "ka lo"

    LanguageIdentifier().fit({"xa": lines(), "xb": ["ke lu"]})
    assert len(read) == LINES_PER_LANGUAGE


def test_ngrams_are_all_those_within_a_text():
    texts = ["Ab  ba", "", "c\U0001f600b"]
    characters = sorted(set(" abc\U0001f600"))
    ids = np.zeros(0x110000, np.uint64)
    ids[[ord(c) for c in characters]] = range(1, len(characters) + 1)

    def spelled(key):
        spelling = ""
        while key:
            spelling = characters[(key & 0xFFFF) - 1] + spelling
            key >>= 16
        return spelling

    keys, owners = _ngrams(_code_points(texts), ids)
    found = sorted((int(owner), spelled(int(key))) for key, owner in zip(keys, owners, strict=True))
    padded = [" ab ba ", "  ", " c\U0001f600b "]
    expected = [
        (i, line[start : start + n])
        for i, line in enumerate(padded)
        for n in (1, 2, 3, 4)
        for start in range(len(line) - n + 1)
    ]
    assert found == sorted(expected)


@pytest.mark.parametrize(
    ("training", "message"),
    [({"xa": ["ka"]}, "two or more"), ({"xa": ["ka"], "xb": [" ", ""]}, "got: +xb")],
)
def test_training_text_that_cannot_do(training, message):
    with pytest.raises(CorpusError, match=message):
        LanguageIdentifier().fit(training)


def test_asking_too_early_or_about_a_stranger(identifier):
    with pytest.raises(CorpusError, match="call fit"):
        LanguageIdentifier().identify(["ka"])
    with pytest.raises(CorpusError, match=r"got: +fr"):
        identifier.accuracy({"fr": ["oui"]})
    with pytest.raises(CorpusError, match="no text to measure"):
        identifier.accuracy({"xa": []})
