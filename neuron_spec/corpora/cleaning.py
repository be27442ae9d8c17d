"""Normalisation and sentence-pair filters shared by all corpora."""

from __future__ import annotations

import re
import unicodedata

_INVISIBLE = dict.fromkeys(map(ord, "\u00ad\u200b\u2060\ufeff\u200e\u200f"))
_URL = re.compile(r"https?:|www\.|\b[\w-]+\.(?:com|org|io|net)\b", re.IGNORECASE)
_HTML = re.compile(r"<[^>]*>|&[a-z]+;")

# Combining marks are no letters to Python: those of Latin, Hebrew and Arabic script, and joiners.
_LETTER = (
    r"[\w\u0300-\u036f\u0591-\u05bd\u05bf\u05c1\u05c2\u05c4\u05c5\u05c7"
    r"\u0610-\u061a\u064b-\u065f\u0670\u06d6-\u06ed\u200c\u200d]"
)
_TOKEN = re.compile(rf"'?{_LETTER}+(?:[-.,]{_LETTER}+)*|\.{{2,}}|\S")

LENGTH_RATIO = 3.0
LETTER_FRACTION = 0.6


def normalize(text: str) -> str:
    """NFC, no invisible characters, every run of white space one plain space."""
    return " ".join(unicodedata.normalize("NFC", text.translate(_INVISIBLE)).split())


def is_mostly_letters(text: str) -> bool:
    """Whether at least 60 % of the characters other than spaces are letters or their marks."""
    visible = [char for char in text if not char.isspace()]
    letters = sum(unicodedata.category(char)[0] in "LM" for char in visible)
    return bool(visible) and letters >= LETTER_FRACTION * len(visible)


def fault_of_text(text: str) -> str | None:
    """Why one side of a pair is unfit, as a short reason; None if it is fit."""
    if not text:
        return "empty"
    if _URL.search(text):
        return "web address"
    if _HTML.search(text):
        return "HTML"
    if not is_mostly_letters(text):
        return "mostly not letters"
    return None


def fault_of_pair(source: str, target: str) -> str | None:
    """Why a pair of fit sides is unfit, as a short reason; None if it is fit."""
    if source.casefold() == target.casefold():
        return "untranslated copy"
    if not 1 / LENGTH_RATIO <= len(target) / len(source) <= LENGTH_RATIO:
        return "length ratio"
    return None


def count_tokens(text: str) -> int:
    """Words and punctuation marks (ours): close to the number of Moses' tokens, for scripts with spaces."""
    return len(_TOKEN.findall(text))


def fault_of_lengths(source: str, target: str, *, most_tokens: int, ratio: float) -> str | None:
    """Why the lengths of a pair, in tokens of `count_tokens`, are unfit; None if they are fit."""
    shorter, longer = sorted((count_tokens(source), count_tokens(target)))
    if not shorter:
        return "empty"
    if longer > most_tokens:
        return f"more than {most_tokens} tokens"
    if longer > ratio * shorter:
        return f"length ratio above {ratio}"
    return None
