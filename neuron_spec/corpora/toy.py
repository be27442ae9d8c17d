"""A synthetic corpus: meanings rendered in English and in invented languages of three known families.

Languages of one family share word order, affixes and roots up to regular sound changes; between
families nothing is shared. What a method finds out about relatedness can so be held against the truth.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from itertools import chain
from typing import NamedTuple

from neuron_spec.corpora.build import Corpus
from neuron_spec.corpora.checks import require_known
from neuron_spec.errors import CorpusError
from neuron_spec.languages import ENGLISH

_GRAMMAR = json.loads(files("neuron_spec.corpora").joinpath("toy.json").read_text(encoding="utf-8"))
_WORDS: dict[str, list[str]] = _GRAMMAR["content"] | _GRAMMAR["function"]  # kind -> English words
_CONTENT, _FUNCTION = (list(chain(*_GRAMMAR[use].values())) for use in ("content", "function"))
_TENSES = ("past", "present", "future")
_LENGTHS = range(3, 10)  # words of the English sentence

# Each language has replaced this fraction of its inherited content words by words of its own.
_REPLACED_FRACTION = 0.1


class _Phrase(NamedTuple):
    noun: str
    adjective: str | None
    determiner: str
    is_plural: bool


class _Meaning(NamedTuple):
    verb: str
    tense: str
    subject: _Phrase
    object: _Phrase | None
    adposition: str | None
    place: _Phrase | None


@dataclass(frozen=True, eq=False)
class _Family:
    """A proto-language. An affix is a (prefix, suffix) pair, so ``root.join(affix)`` has it."""

    name: str
    onsets: Sequence[str]
    vowels: Sequence[str]
    codas: Sequence[str]
    order: str  # of Subject, Verb, Object and Place phrase
    adjective_first: bool
    determiner_first: bool
    adposition_first: bool
    plural: tuple[str, str]
    accusative: tuple[str, str]
    tenses: Mapping[str, tuple[str, str]]
    # Language -> replacements, applied in order.
    sound_changes: Mapping[str, Sequence[tuple[str, str]]]


_FAMILY_OF = {
    lang: family
    for family in (_Family(**entry) for entry in _GRAMMAR["families"])
    for lang in family.sound_changes
}

FAMILIES: dict[str, str] = {lang: family.name for lang, family in _FAMILY_OF.items()} | {ENGLISH: "Germanic"}
DEFAULT_LANGS = ("qa", "qb", "qm", "qn", "qx", "qy")


def generate(
    *, sentences: Mapping[str, int], langs: Sequence[str], seed: int
) -> dict[str, dict[str, list[str]]]:
    """Draw distinct meanings and say each in English and in every language.

    The languages do not depend on ``seed``, only the sentences do. Splits share no meaning, and the
    held-out ones do not depend on how much training text is asked for.

    Args:
        sentences: how many sentences each split gets, such as ``{"train": 3000, "valid": 200}``.
        langs: codes out of `FAMILIES`; English comes with them in any case.

    Returns:
        Split -> language -> lines, parallel over all languages of a split.

    Raises:
        CorpusError: if a language is not one of the invented ones, or a split's size is not positive.
    """
    invented = [lang for lang in dict.fromkeys(langs) if lang != ENGLISH]
    require_known(invented, _FAMILY_OF, "the toy corpus has no such language")
    for split, size in sentences.items():
        if size < 1:
            raise CorpusError(
                f"the toy corpus cannot have an empty {split} split", got=size, expected="1 or more sentences"
            )

    meanings = _distinct_meanings(random.Random(seed))
    train_last = sorted(sentences, key=lambda split: (split == "train", split))
    drawn = {split: [next(meanings) for _ in range(sentences[split])] for split in train_last}
    lines = {}
    for split in sentences:
        lines[split] = {ENGLISH: [_english(meaning) for meaning in drawn[split]]}
        lines[split] |= {lang: [_invented(lang, meaning) for meaning in drawn[split]] for lang in invented}
    return lines


def read(*, langs: Sequence[str], sizes: Mapping[str, int], seed: int) -> Corpus:
    """The generated text as a corpus: every language paired with English.

    Raises:
        CorpusError: an unknown language, or more sentences than the grammar can say.
    """
    lines = generate(sentences=sizes, langs=langs, seed=seed)
    return Corpus(
        name="toy",
        pairs={
            split: {lang: list(zip(texts[lang], texts[ENGLISH], strict=True)) for lang in langs}
            for split, texts in lines.items()
        },
        families=FAMILIES,
        sources=[
            {"name": f"neuron_spec's toy grammar, seed {seed}", "licence": "none needed: made on the spot"}
        ],
    )


def _distinct_meanings(rng: random.Random) -> Iterator[_Meaning]:
    seen = set()
    while True:
        has_object = rng.random() < 0.6
        has_place = rng.random() < 0.4
        meaning = _Meaning(
            verb=rng.choice(_WORDS["transitive" if has_object else "intransitive"]),
            tense=rng.choice(_TENSES),
            subject=_draw_phrase(rng, _WORDS["beings"]),
            object=_draw_phrase(rng, _WORDS["beings"] + _WORDS["things"]) if has_object else None,
            adposition=rng.choice(_WORDS["adpositions"]) if has_place else None,
            place=_draw_phrase(rng, _WORDS["places"]) if has_place else None,
        )
        if meaning not in seen and len(_english(meaning).split()) in _LENGTHS:
            seen.add(meaning)
            yield meaning


def _draw_phrase(rng: random.Random, nouns: Sequence[str]) -> _Phrase:
    noun = rng.choice(nouns)
    adjective = rng.choice(_WORDS["adjectives"]) if rng.random() < 0.4 else None
    determiner = rng.choice(_WORDS["numerals" if rng.random() < 0.2 else "articles"])
    is_plural = determiner in _WORDS["numerals"] or rng.random() < 0.4
    return _Phrase(noun, adjective, determiner, is_plural)


def _english(meaning: _Meaning) -> str:
    def phrase(of: _Phrase | None) -> list[str]:
        if of is None:
            return []
        determiner = {"a": "", "this": "these"}.get(of.determiner, of.determiner)
        noun = of.noun + "s" * of.is_plural
        return [determiner if of.is_plural else of.determiner, of.adjective or "", noun]

    verb = {
        "past": meaning.verb + "ed",
        "present": meaning.verb + "s" * (not meaning.subject.is_plural),
        "future": "will " + meaning.verb,
    }[meaning.tense]
    words = [*phrase(meaning.subject), verb, *phrase(meaning.object)]
    words += [meaning.adposition or "", *phrase(meaning.place)]
    return " ".join(word for word in words if word)


def _invented(lang: str, meaning: _Meaning) -> str:
    """The sentence in the proto-language of the family, brought up to date by the sound changes."""
    family = _FAMILY_OF[lang]
    roots = _roots(family)[lang]

    def phrase(of: _Phrase | None, case: tuple[str, str] = ("", "")) -> list[str]:
        if of is None:
            return []
        noun = roots[of.noun].join(family.plural if of.is_plural else ("", ""))
        core = [noun.join(case)]
        if of.adjective:
            core.insert(0 if family.adjective_first else 1, roots[of.adjective])
        if not (of.determiner == "a" and of.is_plural):
            core.insert(0 if family.determiner_first else len(core), roots[of.determiner])
        return core

    place = phrase(meaning.place)
    if meaning.adposition:
        place.insert(0 if family.adposition_first else len(place), roots[meaning.adposition])
    constituents = {
        "S": phrase(meaning.subject),
        "V": [roots[meaning.verb].join(family.tenses[meaning.tense])],
        "O": phrase(meaning.object, family.accusative),
        "P": place,
    }
    proto = " ".join(word for slot in family.order for word in constituents[slot])
    return _changed(proto, family.sound_changes[lang])


def _changed(text: str, changes: Sequence[tuple[str, str]]) -> str:
    for old, new in changes:
        text = text.replace(old, new)
    return text


@cache
def _roots(family: _Family) -> dict[str, dict[str, str]]:
    """Language -> concept -> root before the sound changes; no two concepts sound alike in a language."""
    rng = random.Random(family.name)
    heard: set[str] = set()

    def coin(syllables: int) -> str:
        while True:
            root = "".join(rng.choice(family.onsets) + rng.choice(family.vowels) for _ in range(syllables))
            root += rng.choice(family.codas)
            forms = {_changed(root, changes) for changes in family.sound_changes.values()}
            if not forms & heard:
                heard.update(forms)
                return root

    shared = {concept: coin(2) for concept in _CONTENT} | {concept: coin(1) for concept in _FUNCTION}
    return {
        lang: shared | {concept: coin(2) for concept in _CONTENT if rng.random() < _REPLACED_FRACTION}
        for lang in family.sound_changes
    }
