import unicodedata

import pytest

from neuron_spec.corpora.checks import (
    LETTER_FRACTION,
    fault_of_pair,
    fault_of_text,
    is_mostly_letters,
    normalize,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("  two\t words\u00a0here \n", "two words here"),
        ("soft\u00adhyphen zero\u200bwidth \ufeffmark", "softhyphen zerowidth mark"),
        ("e\u0301te\u0301", "été"),
        ("\u200e \u200f", ""),
    ],
)
def test_normalize(text, expected):
    assert normalize(text) == expected


def test_normalize_is_idempotent_and_keeps_letters_and_their_marks():
    text = "हिन्दी ትግርኛ  Ünïcode\u00ad\u2009Ещё עִבְרִית"
    once = normalize(text)
    assert normalize(once) == once
    letters = [c for c in unicodedata.normalize("NFC", text) if unicodedata.category(c)[0] in "LM"]
    assert [c for c in once if unicodedata.category(c)[0] in "LM"] == letters


def test_combining_marks_count_as_letters():
    assert is_mostly_letters("हिन्दी में")
    assert is_mostly_letters("abc 12")  # three of five
    assert not is_mostly_letters("ab 12")
    assert not is_mostly_letters("")


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "empty"),
        ("See https://x.y for more", "web address"),
        ("Go to example.com now", "web address"),
        ("a <b>bold</b> word", "HTML"),
        ("fish &amp; chips", "HTML"),
        ("12:30 - 14:00", "mostly not letters"),
        ("A sentence of words.", None),
        ("AT&T is not markup", None),
    ],
)
def test_faults_of_one_side(text, fault):
    assert fault_of_text(text) == fault


@pytest.mark.parametrize(
    ("source", "target", "fault"),
    [
        ("Home Assistant", "home assistant", "untranslated copy"),
        ("abc", "abcdefghij", "length ratio"),
        ("abcdefghij", "abc", "length ratio"),
        ("abc", "defghijkl", None),
    ],
)
def test_faults_of_a_pair(source, target, fault):
    assert fault_of_pair(source, target) == fault


@pytest.mark.parametrize(
    ("text", "is_text"),
    [
        ("", False),
        ("   ", False),
        ("Guten Tag, 12 !", True),
        ("abc 123", False),
        ("abc 12", True),
        ("क्षेत्र में", True),  # letters and their marks, which are none to Python
        ("1234 ab", False),
        ("你好，世界", True),
    ],
)
def test_mostly_letters(text, is_text):
    assert is_mostly_letters(text) == is_text
    visible = [char for char in text if not char.isspace()]
    letters = sum(unicodedata.category(char)[0] in "LM" for char in visible)
    assert is_text == (bool(visible) and letters >= LETTER_FRACTION * len(visible))
