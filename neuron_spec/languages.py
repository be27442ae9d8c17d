"""What is known about a language, by whatever code it comes under: ``zh``, ``zho_Hans``, ``zh_CN``, ``zh-Hans``, ``cmn``.

A direction keeps the codes it was given; family, script, tokenizer and whether it is English go by the language.
"""

from __future__ import annotations

import csv
import re
import sys
from collections.abc import Iterable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from itertools import takewhile
from typing import TYPE_CHECKING, Any

from neuron_spec.errors import DirectionError

if TYPE_CHECKING:
    import langcodes

UNKNOWN = "unknown"
ENGLISH = "en"
PIVOT = "pivot"  # of a corpus card: a code or null, where English is not in that place
LINEAGE_LEVELS = 3  # family, branch, group

# Codes of models and data sets that CLDR, by which langcodes goes, leaves apart from the table's.
_ALSO = {"fil": "tl", "fuv": "ff", "ns": "nso", "pbt": "ps", "quy": "qu"}
# No language, though a valid tag: uncoded, several, none, and what is reserved for local use.
_OF_A_LANGUAGE = re.compile(r"(?!mis|mul|zxx|q[a-t][a-z])[a-z]{2,3}")
_PLAIN = re.compile(r"[A-Za-z0-9_]+")
# Capitals tell territories from languages, so that at most one hyphen of zh-Hans-pt-BR can part two codes.
_HYPHENATED = re.compile(r"[a-z]{2,3}(-[A-Za-z]{4})?(-([A-Z]{2}|[0-9]{3}))?")
# ISO 15924 -> the table's names.
_SCRIPTS = {
    "Arab": "Arabic",
    "Armn": "Armenian",
    "Beng": "Bengali",
    "Cyrl": "Cyrillic",
    "Deva": "Devanagari",
    "Ethi": "Ethiopic",
    "Geor": "Georgian",
    "Grek": "Greek",
    "Gujr": "Gujarati",
    "Guru": "Gurmukhi",
    "Hang": "Hangul",
    "Hani": "Han",
    "Hans": "Han",
    "Hant": "Han",
    "Hebr": "Hebrew",
    "Hira": "Japanese",
    "Jpan": "Japanese",
    "Kana": "Japanese",
    "Khmr": "Khmer",
    "Knda": "Kannada",
    "Kore": "Hangul",
    "Laoo": "Lao",
    "Latn": "Latin",
    "Mlym": "Malayalam",
    "Mymr": "Myanmar",
    "Olck": "Ol Chiki",
    "Orya": "Odia",
    "Sinh": "Sinhala",
    "Taml": "Tamil",
    "Telu": "Telugu",
    "Tfng": "Tifinagh",
    "Thai": "Thai",
    "Tibt": "Tibetan",
}


@dataclass(frozen=True)
class Language:
    """What the language table says of a language; ``unknown`` where it says nothing.

    Attributes:
        code: the table's, ISO 639-1 where there is one; of a code that no one knows, itself.
        family: what the multilingual literature groups languages by (Germanic, Slavic, Uralic).
        script: that of the code where it names one (``sr_Cyrl``), else the usual one.
        lineage: the path in the family tree, from the root: ``Indo-European/Germanic/West``.
    """

    code: str
    name: str
    family: str
    script: str
    lineage: str


@cache
def _language_table() -> dict[str, Language]:
    """Code -> row of ``languages.csv``; families and groups coarsely as in Glottolog."""
    text = files("neuron_spec").joinpath("languages.csv").read_text(encoding="utf-8")
    return {row["code"]: Language(**row) for row in csv.DictReader(text.splitlines(), restval=UNKNOWN)}


@cache
def language(code: str) -> Language:
    """What is known under a code of ISO 639, FLORES or mBART (``en_XX``), or a BCP 47 tag with ``-`` or ``_``.

    A language that the table lacks has its macrolanguage's row (``arb``: Arabic), if that is there.

    Examples:
        >>> from neuron_spec import language
        >>> language("deu_Latn").name, language("de").lineage
        ('German', 'Indo-European/Germanic/West')
    """
    table = _language_table()
    if code in table:  # most are, and need no library
        return table[code]
    if (tag := _tag(code)) is None:
        return Language(code, code, UNKNOWN, UNKNOWN, UNKNOWN)
    names = [str(of.language) for of in (tag, tag.prefer_macrolanguage())]
    names = [_ALSO.get(name, name) for name in names]
    row = next(
        (table[name] for name in names if name in table), Language(names[0], code, UNKNOWN, UNKNOWN, UNKNOWN)
    )
    return replace(row, script=_SCRIPTS.get(tag.script, tag.script)) if tag.script else row


def _tag(code: str) -> langcodes.Language | None:
    """None where no language has this code."""
    import langcodes  # 20 ms, which the table's own codes do not need
    from langcodes.tag_parser import LanguageTagError

    try:
        tag = langcodes.Language.get(code)
    except LanguageTagError:
        return None
    is_more = tag.extlangs or tag.extensions or tag.private
    if is_more or not _OF_A_LANGUAGE.fullmatch(tag.language or ""):
        return None
    return tag if tag.language in _ALSO or tag.is_valid() else None


def is_code(text: str) -> bool:
    """Whether this may name a language: an invented one too, if it has no hyphen; with hyphens, a known one.

    Hyphenated are a language, perhaps a script, and perhaps a territory in capitals: ``zh-Hans``, ``pt-BR``.
    """
    return bool(_PLAIN.fullmatch(text) or (_HYPHENATED.fullmatch(text) and _tag(text)))


def require_fairseq_codes(codes: Iterable[str]) -> None:
    """Raises: DirectionError for a code with a hyphen, at every one of which fairseq parts directions."""
    if hyphenated := [code for code in codes if "-" in code]:
        raise DirectionError(
            "fairseq parts directions at every hyphen, so a code can hold none",
            got=", ".join(hyphenated),
            mend=f"name the files of the data-bin, --langs and --lang-pairs with an underscore, such as "
            f"{hyphenated[0].replace('-', '_')}",
        )


def is_english(code: str) -> bool:
    """Of whatever script or country."""
    return language(code).code == ENGLISH


_pivot: ContextVar[str | None] = ContextVar(PIVOT, default=ENGLISH)


def set_pivot(made: Mapping[str, Any] | None) -> None:
    """From here on (in this context) the language that a corpus card, or an evaluation, names stands in English's place.

    Directions are grouped around it, or around none. Where nothing is named, it is English.
    """
    _pivot.set((made or {}).get(PIVOT, ENGLISH))


def pivot() -> str | None:
    """The language around which directions are grouped; None: none."""
    return _pivot.get()


def is_pivot(code: str) -> bool:
    """English of whatever script or country, or the one language that was set in its place."""
    return is_english(code) if pivot() == ENGLISH else code == pivot()


def family_of(code: str, families: Mapping[str, str] | None = None) -> str:
    """A language's family; ``unknown`` where that is so.

    Args:
        families: language -> family, such as a corpus card's; None: those of the language table.

    Examples:
        >>> from neuron_spec import family_of
        >>> family_of("pt_BR"), family_of("tlh"), family_of("tlh", {"tlh": "Klingonic"})
        ('Romance', 'unknown', 'Klingonic')
    """
    return language(code).family if families is None else families.get(code, UNKNOWN)


def say_unknown_families(families: Mapping[str, str], mend: str = "name them in the corpus card") -> None:
    """Name on stderr the languages (language -> family) whose family is unknown, if there are any."""
    if unknown := sorted(code for code, family in families.items() if family == UNKNOWN):
        print(
            f"languages with unknown family: {', '.join(unknown)}; {mend}",
            file=sys.stderr,
        )


def tree_distance(first: str, second: str) -> int | None:
    """Edges between two languages in the family tree of the language table; None where one is not in it.

    Ours, and coarse: every language hangs below a family, a branch and a group, and a lineage that names
    fewer stands alone at the levels it does not name. So two languages are 2 apart in one group, 4 in one
    branch, 6 in one family, 8 otherwise, and a language is 0 from itself, under another code too.

    Examples:
        >>> from neuron_spec import tree_distance
        >>> tree_distance("de", "nl"), tree_distance("de", "sv"), tree_distance("de", "ru"), tree_distance("de", "fi")
        (2, 4, 6, 8)
    """
    one, other = language(first), language(second)
    if one.code == other.code:
        return 0
    if UNKNOWN in (one.lineage, other.lineage):
        return None
    levels = zip(one.lineage.split("/"), other.lineage.split("/"), strict=False)
    shared = list(takewhile(lambda names: names[0] == names[1], levels))
    return 2 * (1 + LINEAGE_LEVELS - len(shared))


def by_family(codes: Iterable[str]) -> list[str]:
    """Language codes ordered by family, then code: the order of the axes in every figure."""
    return sorted(codes, key=lambda code: (language(code).family, code))
