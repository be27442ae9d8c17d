"""What every corpus checks of what it is given: languages, files and disk, then each text and pair."""

from __future__ import annotations

import re
import shutil
import unicodedata
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from neuron_spec.artifacts import refuse_pointer
from neuron_spec.errors import CorpusError

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


def require_known(langs: Iterable[str], available: Collection[str], what: str) -> None:
    """Raises: CorpusError, saying ``what``, if a language is not among those of a corpus."""
    if unknown := [lang for lang in langs if lang not in available]:
        raise CorpusError(what, got=", ".join(unknown), expected=f"some of {', '.join(available)}")


def require_distinct(codes: Iterable[str]) -> None:
    """Raises: CorpusError if two codes differ in capitals alone: their files are the same on some disks."""
    spellings: dict[str, str] = {}
    for code in codes:
        if (other := spellings.setdefault(code.casefold(), code)) != code:
            raise CorpusError(
                "two codes differ in capitals alone",
                got=f"{other} and {code}",
                mend="write one language the same way everywhere; another language needs another code",
            )


def require_equal(counts: Mapping[str, int], what: str, *, where: object, mend: str) -> int:
    """The count that all have, such as the lines of two sides.

    Raises:
        CorpusError: saying ``what``, if they differ.
    """
    if len(set(counts.values())) > 1:
        got = ", ".join(f"{name}: {count}" for name, count in counts.items())
        raise CorpusError(what, where=where, got=got, mend=mend)
    return next(iter(counts.values()))


def decoded_text(content: bytes, *, where: object, mend: str, lines_before: int = 0) -> str:
    """The text of a file, or of a part that ``lines_before`` precede, without a byte order mark.

    Raises:
        CorpusError: if it is not UTF-8, or has a zero byte; names the line.
        ArtifactError: if it is a Git-LFS pointer.
    """
    if not lines_before:
        refuse_pointer(content, where)
    fault: UnicodeDecodeError | None = None
    try:
        text = content.decode("utf-8").removeprefix("\ufeff")
        start, got = content.find(b"\0"), "a zero byte, as of a binary file or UTF-16"
    except UnicodeDecodeError as error:
        fault, start, got = error, error.start, f"byte {content[error.start]:#04x}"
    if start < 0:
        return text
    line = lines_before + content.count(b"\n", 0, start) + 1
    raise CorpusError("not UTF-8 text", where=f"{where}, line {line}", got=got, mend=mend) from fault


def check_disk(folder: Path, needed_bytes: int) -> None:
    """Raises: CorpusError if the disk of ``folder`` has not that much free."""
    there = folder.absolute()
    while not there.exists():
        there = there.parent
    free = shutil.disk_usage(there).free
    if free < needed_bytes:
        raise CorpusError(
            "too little disk space",
            where=folder,
            got=f"{free / 1e9:.2f} GB free",
            expected=f"{needed_bytes / 1e9:.2f} GB",
            mend="free some, name an --output on another disk, or fewer --langs",
        )


def normalize(text: str) -> str:
    """NFC, no invisible characters, every run of white space one plain space."""
    return " ".join(unicodedata.normalize("NFC", text.translate(_INVISIBLE)).split())


def is_mostly_letters(text: str) -> bool:
    """Whether at least 60 % of the characters other than spaces are letters or their marks."""
    visible = "".join(text.split())
    if visible and sum(map(str.isalpha, visible)) >= LETTER_FRACTION * len(visible):
        return True  # nearly all text, and fast
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
