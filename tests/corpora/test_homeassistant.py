"""On a small archive in the shape of the wheel, made here."""

from __future__ import annotations

import json
import random
import zipfile
from pathlib import Path
from typing import Any

import pytest

from neuron_spec.artifacts import hash_file
from neuron_spec.corpora import homeassistant
from neuron_spec.corpora.build import Corpus
from neuron_spec.errors import ArtifactError, CorpusError

WORDS = {
    lang: words.split()
    for lang, words in {
        "en": "lamp door window garden kitchen motor sensor water power heat light cold morning evening button",
        "de": "Leuchte Pforte Fenster Wiese Küche Antrieb Fühler Wasser Strom Hitze Licht Kälte Morgen Abend Taste",
        "nl": "schijn deur raam tuin keuken aandrijver voeler nat stroom hitte helder koude ochtend avond knop",
    }.items()
}
COMPONENTS = 120
SIZES = {"test": 20, "valid": 10}


def sentence(lang: str, numbers: list[int]) -> str:
    return " ".join(WORDS[lang][i] for i in numbers)


def tree_of(component: int) -> dict[str, dict[str, Any]]:
    """Messages of one component, per language: ordinary ones and, in component 0, special ones."""
    rng = random.Random(component)
    trees: dict[str, dict[str, Any]] = {lang: {"step": {}} for lang in WORDS}
    for message in range(3):
        numbers = [rng.randrange(15) for _ in range(8)]
        for lang in WORDS:
            trees[lang]["step"][f"m{message}"] = sentence(lang, numbers)
    # In every component: its groups must not let it into training and test at once.
    for lang in WORDS:
        trees[lang]["shared"] = sentence(lang, [0, 1, 2, 3, 4, 5, 6])
    if component == 0:
        for lang, texts in SPECIAL.items():
            trees[lang]["special"] = texts
    if component % 10 == 1:
        del trees["nl"]["step"]["m1"]
    return trees


SPECIAL: dict[str, dict[str, Any]] = {
    "en": {
        "placeholder": "Connect {host} over the {port} today",
        "lost": "The device {name} was removed",
        "plural": "{count, plural, one {one thing} other {many things}} were found",
        "lines": "First line\nSecond line of it",
        "copy": "Home Assistant Cloud Service",
        "short": "Two words",
        "link": "Read the **manual** [over here](https://example.com/x) first `please`",
        "address": "Visit www.example.com for more help",
        "again": "Press the big blue thing twice",
        "nested": {"again": "Press the big blue thing twice"},
        "number": 3,
    },
    "de": {
        "placeholder": "Heute {host} über {port} verbinden",
        "lost": "Das Gerät {geraet} wurde entfernt",
        "plural": "{count, plural, one {ein Ding} other {viele Dinge}} gefunden",
        "lines": "Erste Zeile\nZweite Zeile davon",
        "copy": "Home Assistant Cloud Service",
        "short": "Zwei Worte",
        "link": "Zuerst bitte [hier](https://example.com/y) das **Handbuch** lesen",
        "address": "Besuche www.example.com für mehr Hilfe",
        "again": "Das große blaue Ding zweimal drücken",
        "nested": {"again": "Drücke das große blaue Ding doppelt"},
        "number": 3,
    },
    "nl": {"placeholder": "Verbind {host} vandaag", "again": "Druk twee keer op het grote blauwe ding"},
}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("wheel") / homeassistant.WHEEL.file_name
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("homeassistant/__init__.py", "")
        archive.writestr("homeassistant/components/odd/strings.json", "{}")
        for component in range(COMPONENTS):
            for lang, tree in tree_of(component).items():
                name = f"homeassistant/components/c{component}/translations/{lang}.json"
                archive.writestr(name, json.dumps(tree))
        archive.writestr("homeassistant/components/c0/translations/fr.json", "not JSON, and not asked for")
    return path


def read(wheel: Path, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> Corpus:
    monkeypatch.setattr(homeassistant, "WHEEL", homeassistant.WHEEL._replace(sha256=hash_file(wheel)))
    settings = {"langs": ["de", "nl"], "sizes": SIZES, "seed": 1}
    return homeassistant.read(wheel, **(settings | changes))


@pytest.fixture
def corpus(wheel, monkeypatch) -> Corpus:
    return read(wheel, monkeypatch)


def pairs_of(corpus: Corpus, lang: str) -> dict[str, str]:
    """English -> translation, over all splits."""
    return {en: text for split in corpus.pairs.values() for text, en in split[lang]}


def test_no_english_message_is_in_two_splits_whatever_the_language(corpus):
    english = {
        split: {en for pairs in langs.values() for _, en in pairs} for split, langs in corpus.pairs.items()
    }
    assert all(english.values())
    assert not english["train"] & (english["test"] | english["valid"])
    assert not english["test"] & english["valid"]


def test_no_translation_of_a_held_out_message_is_trained_on(corpus):
    for lang in ("de", "nl"):
        trained = {text.casefold() for text, _ in corpus.pairs["train"][lang]}
        assert not trained & {
            text.casefold() for split in ("test", "valid") for text, _ in corpus.pairs[split][lang]
        }


def test_held_out_messages_exist_in_every_language_in_the_same_order(corpus):
    assert len(corpus.pairs["test"]["de"]) == 20
    for split in ("test", "valid"):
        assert [en for _, en in corpus.pairs[split]["de"]] == [en for _, en in corpus.pairs[split]["nl"]]
        assert all(len(en.split()) >= 5 and "{" not in en for _, en in corpus.pairs[split]["de"])


def test_a_message_of_many_components_stays_in_training(corpus):
    assert sentence("en", [0, 1, 2, 3, 4, 5, 6]) not in {en for _, en in corpus.pairs["test"]["de"]}


def test_translations_stand_by_their_english(corpus):
    translate = {en: i for i, en in enumerate(WORDS["en"])}
    checked = 0
    for en, text in pairs_of(corpus, "nl").items():
        if all(word in translate for word in en.split()):
            assert text == sentence("nl", [translate[word] for word in en.split()])
            checked += 1
    assert checked > 100


def test_special_messages(corpus):
    de, nl = pairs_of(corpus, "de"), pairs_of(corpus, "nl")
    assert de["Connect {1} over the {2} today"] == "Heute {1} über {2} verbinden"
    assert "Connect {1} over the {2} today" not in nl  # it lost a placeholder
    assert de["Read the manual over here first please"] == "Zuerst bitte hier das Handbuch lesen"
    assert de["Press the big blue thing twice"] == "Das große blaue Ding zweimal drücken"
    everything = " ".join([*de, *de.values(), *nl, *nl.values()])
    for unwanted in ("device", "plural", "First line", "Cloud", "Two words", "example.com", "doppelt"):
        assert unwanted not in everything


def test_what_was_dropped_is_counted(corpus):
    assert corpus.cleaning["de"]["another translation of the same English"] == 1
    assert corpus.cleaning["de"]["untranslated copy"] == 1
    assert corpus.cleaning["en"]["web address"] == 1
    assert corpus.cleaning["en"]["empty, several lines or plural"] == 2


def test_same_seed_same_corpus(wheel, monkeypatch, corpus):
    assert read(wheel, monkeypatch) == corpus
    assert read(wheel, monkeypatch, seed=2).pairs["test"] != corpus.pairs["test"]


def test_the_leak_report_compares(corpus):
    as_built = corpus.leak["as_built"]["percent_with_near_duplicate_at_0.6"]
    assert as_built == 0 <= corpus.leak["random_split_for_comparison"]["percent_with_near_duplicate_at_0.6"]


def test_another_file_is_refused(wheel):
    with pytest.raises(CorpusError, match="not the pinned homeassistant wheel") as caught:
        homeassistant.read(wheel, langs=["de"], sizes=SIZES, seed=1)
    assert hash_file(wheel) in str(caught.value)


def test_a_missing_file(tmp_path):
    with pytest.raises(ArtifactError, match="wheel not found"):
        homeassistant.read(tmp_path / "absent.whl", langs=["de"], sizes=SIZES, seed=1)


def test_an_unknown_language(wheel, monkeypatch):
    with pytest.raises(CorpusError, match="languages that Home Assistant does not have") as caught:
        read(wheel, monkeypatch, langs=["de", "tlh"])
    assert "tlh" in str(caught.value) and "de," not in str(caught.value)


def test_more_held_out_messages_than_there_are(wheel, monkeypatch):
    with pytest.raises(CorpusError, match="too few messages"):
        read(wheel, monkeypatch, sizes=SIZES | {"test": 5000})


def test_a_git_lfs_pointer_is_no_wheel(tmp_path):
    wheel = tmp_path / homeassistant.WHEEL.file_name
    wheel.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n")
    with pytest.raises(ArtifactError, match="git lfs pull"):
        homeassistant.read(wheel, langs=["de"], sizes=SIZES, seed=1)
