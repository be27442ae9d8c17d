"""Translation directions, their ids, and what is known about each language."""

from __future__ import annotations

import csv
import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from itertools import takewhile
from typing import NamedTuple

from neuron_spec.errors import DirectionError

UNKNOWN = "unknown"
ENGLISH = "en"
LINEAGE_LEVELS = 3  # family, branch, group


class Group(NamedTuple):
    """Directions by where English stands, in the spelling of each place that names them.

    Attributes:
        key: of command lines and ``analysis.json``.
        code: of ``scores.csv`` and what is read from it.
        text: of Markdown, and of the JSON beside it.
        arrow: of figures and reports.
    """

    key: str
    code: str
    text: str
    arrow: str


FROM_ENGLISH = Group("en-x", "O2M", "en->x", "en→x")
INTO_ENGLISH = Group("x-en", "M2O", "x->en", "x→en")
WITHOUT_ENGLISH = Group("x-y", "X2Y", "without English", "x→y")
GROUPS = (FROM_ENGLISH, INTO_ENGLISH, WITHOUT_ENGLISH)


@dataclass(frozen=True, order=True)
class Direction:
    """One translation direction, written ``de-en``: the unit that neurons are specialized for."""

    source: str
    target: str

    def __str__(self) -> str:
        return f"{self.source}-{self.target}"

    @property
    def arrow(self) -> str:
        """``de→en``, as figures and reports write it."""
        return f"{self.source}→{self.target}"

    @property
    def group(self) -> Group:
        """Out of English, into it, or between two other languages."""
        if self.source == ENGLISH:
            return FROM_ENGLISH
        return INTO_ENGLISH if self.target == ENGLISH else WITHOUT_ENGLISH

    @property
    def foreign(self) -> str | None:
        """The language that is not English; None where neither is."""
        return {FROM_ENGLISH: self.target, INTO_ENGLISH: self.source}.get(self.group)

    def placed_by(self, side: str) -> str:
        """The language by which figures place it: `foreign`, else its ``source`` or ``target``, as ``side`` says."""
        return self.foreign or str(getattr(self, side))

    def family(self, families: Mapping[str, str] | None = None) -> str:
        """That of the language that is not English; ``unknown`` where neither is, as it has two."""
        return UNKNOWN if self.foreign is None else family_of(self.foreign, families)

    @classmethod
    def parse(cls, text: str) -> Direction:
        """Read ``de-en``.

        Raises:
            DirectionError: if ``text`` is not two language codes joined by one hyphen.
        """
        source, hyphen, target = text.strip().partition("-")
        if not (source and hyphen and target) or "-" in target:
            raise DirectionError(
                "malformed direction",
                got=repr(text),
                expected="two language codes joined by one hyphen, such as 'de-en'",
                mend="codes themselves hold no hyphen: write 'zh', not 'zh-Hans'",
            )
        return cls(source, target)


def parse_directions(text: str | Iterable[str]) -> list[Direction]:
    """Read ``"de-en,en-de"`` (or its parts), in the order given.

    Raises:
        DirectionError: if the list is empty, a part is malformed, or one is named twice.
    """
    parts = text.split(",") if isinstance(text, str) else list(text)
    directions = [Direction.parse(part) for part in parts if part.strip()]
    if not directions:
        raise DirectionError("no directions", got=repr(text), expected="such as 'de-en,en-de'")
    if len(set(directions)) < len(directions):
        twice = sorted({str(d) for d in directions if directions.count(d) > 1})
        raise DirectionError("directions named twice", got=", ".join(twice))
    return directions


def direction_id(direction: Direction, langs: Sequence[str]) -> int:
    """The id that travels with a sentence: ``index(source) * len(langs) + index(target)``.

    It depends on ``--langs`` alone, whose order also fixes the rows of the language tokens, and
    never on ``--lang-pairs``, which commands may give in part and in another order.

    Raises:
        DirectionError: if a language is not in ``langs``.
    """
    for lang in (direction.source, direction.target):
        if lang not in langs:
            raise DirectionError(
                "unknown language in a direction",
                where=str(direction),
                got=lang,
                expected=f"one of --langs {','.join(langs)}",
            )
    return langs.index(direction.source) * len(langs) + langs.index(direction.target)


def direction_of(number: int, langs: Sequence[str]) -> Direction:
    """The direction of an id: `direction_id` undone."""
    source, target = divmod(number, len(langs))
    return Direction(langs[source], langs[target])


def matching(pattern: str, directions: Sequence[Direction]) -> list[Direction]:
    """The directions that a shell pattern such as ``en-*`` names.

    Raises:
        DirectionError: if it names none.
    """
    named = [direction for direction in directions if fnmatch.fnmatchcase(str(direction), pattern)]
    if not named:
        some = f"some of {', '.join(map(str, directions))}"
        raise DirectionError("a pattern names no direction", got=pattern, expected=some)
    return named


@dataclass(frozen=True)
class Language:
    """What the language table says of one code; ``unknown`` where it says nothing.

    ``family`` is what the multilingual literature groups languages by (Germanic, Slavic, Uralic);
    ``lineage`` the path in the family tree, from the root: ``Indo-European/Germanic/West``.
    """

    code: str
    name: str
    family: str
    script: str
    lineage: str


@cache
def _language_table() -> dict[str, Language]:
    text = files("neuron_spec").joinpath("languages.csv").read_text(encoding="utf-8")
    return {row["code"]: Language(**row) for row in csv.DictReader(text.splitlines(), restval=UNKNOWN)}


def language(code: str) -> Language:
    """The table's row for ``code``."""
    return _language_table().get(code, Language(code, code, UNKNOWN, UNKNOWN, UNKNOWN))


def family_of(code: str, families: Mapping[str, str] | None = None) -> str:
    """A language's family; ``unknown`` where that is so.

    Args:
        families: language -> family, such as a corpus card's; None: those of the language table.
    """
    return language(code).family if families is None else families.get(code, UNKNOWN)


def tree_distance(first: str, second: str) -> int | None:
    """Edges between two languages in the family tree of the language table; None where one is not in it.

    Ours, and coarse: every language hangs below a family, a branch and a group, and a lineage that names
    fewer stands alone at the levels it does not name. So two languages are 2 apart in one group, 4 in one
    branch, 6 in one family, 8 otherwise, and a language is 0 from itself.
    """
    if first == second:
        return 0
    lineages = [language(code).lineage for code in (first, second)]
    if UNKNOWN in lineages:
        return None
    levels = zip(*(lineage.split("/") for lineage in lineages), strict=False)
    shared = list(takewhile(lambda names: names[0] == names[1], levels))
    return 2 * (1 + LINEAGE_LEVELS - len(shared))


def by_family(codes: Iterable[str]) -> list[str]:
    """Language codes ordered by family, then code: the order of the axes in every figure."""
    return sorted(codes, key=lambda code: (language(code).family, code))
