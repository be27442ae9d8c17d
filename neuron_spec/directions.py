"""Translation directions and their ids."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from neuron_spec.errors import DirectionError
from neuron_spec.languages import ENGLISH, UNKNOWN, family_of, is_code, is_pivot, pivot

T = TypeVar("T")


@dataclass(frozen=True)
class Group:
    """Directions by where English stands, or the pivot in its place (`languages.set_pivot`).

    Attributes:
        key: of command lines and ``analysis.json``, with ``en`` whatever the pivot.
        code: of ``scores.csv`` and what is read from it.
    """

    key: str
    code: str

    @property
    def text(self) -> str:
        """Of Markdown, and of the JSON beside it: ``en->x``, ``without English``."""
        if self.key == "x-y":
            name = "English" if pivot() == ENGLISH else pivot()
            return f"without {name}" if name else "x->y"
        return self.arrow.replace("→", "->")

    @property
    def arrow(self) -> str:
        """Of figures and reports: ``en→x``."""
        return self.key.replace("en", pivot() or ENGLISH).replace("-", "→")


FROM_ENGLISH = Group("en-x", "O2M")
INTO_ENGLISH = Group("x-en", "M2O")
WITHOUT_ENGLISH = Group("x-y", "X2Y")
GROUPS = (FROM_ENGLISH, INTO_ENGLISH, WITHOUT_ENGLISH)


@dataclass(frozen=True, order=True)
class Direction:
    """One translation direction, written ``de-en``: the unit that neurons are specialized for.

    The codes stay as they are given. fairseq parts directions at every hyphen, so codes that hold one come
    from logs and folders alone.

    Raises:
        DirectionError: if one is no code (see `languages.is_code`).

    Examples:
        >>> from neuron_spec import Direction
        >>> direction = Direction.parse("en-deu_Latn")
        >>> direction.foreign, direction.group.text, direction.family()
        ('deu_Latn', 'en->x', 'Germanic')
    """

    source: str
    target: str

    def __post_init__(self) -> None:
        for code in (self.source, self.target):
            if not isinstance(code, str) or not is_code(code):
                raise DirectionError(
                    "not a language code",
                    where=f"direction {str(self)!r}",
                    got=repr(code),
                    expected="letters, digits and underscores, or a known language such as zh-Hans or pt-BR",
                    mend="write an underscore for the hyphen" if "-" in str(code) else None,
                )

    def __str__(self) -> str:
        return f"{self.source}-{self.target}"

    @property
    def arrow(self) -> str:
        """``de→en``, as figures and reports write it."""
        return f"{self.source}→{self.target}"

    @property
    def group(self) -> Group:
        """Out of English (or the pivot), into it, or between two other languages."""
        if is_pivot(self.source):
            return FROM_ENGLISH
        return INTO_ENGLISH if is_pivot(self.target) else WITHOUT_ENGLISH

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
        """Read ``de-en``, or ``zh-Hans-pt-BR``: at most one hyphen has a code on either side of it.

        Raises:
            DirectionError: if ``text`` is not two language codes joined by a hyphen.
        """
        parts = text.strip().split("-") if isinstance(text, str) else []
        splits = [("-".join(parts[:i]), "-".join(parts[i:])) for i in range(1, len(parts))]
        codes = [split for split in splits if all(map(is_code, split))]
        if len(codes) != 1:
            raise DirectionError(
                "malformed direction",
                got=repr(text),
                expected="two language codes joined by a hyphen, such as 'de-en' or 'zh-Hans-pt-BR'",
                mend="territories in capitals, and no other hyphens in codes: 'pt_br-en', not 'pt-br-en'",
            )
        return cls(*codes[0])


def parse_directions(text: str | Iterable[str]) -> list[Direction]:
    """Read ``"de-en,en-de"`` (or its parts), in the order given.

    Raises:
        DirectionError: if the list is empty, a part is malformed, or one is named twice.

    Examples:
        >>> from neuron_spec import parse_directions
        >>> [direction.arrow for direction in parse_directions("de-en,en-de")]
        ['de→en', 'en→de']
    """
    parts = text.split(",") if isinstance(text, str) else _listed(text)
    directions = [Direction.parse(part) for part in parts if part != "" and not str(part).isspace()]
    if not directions:
        raise DirectionError("no directions", got=repr(text), expected="such as 'de-en,en-de'")
    if len(set(directions)) < len(directions):
        twice = sorted({str(d) for d in directions if directions.count(d) > 1})
        raise DirectionError("directions named twice", got=", ".join(twice))
    return directions


def is_direction(value: object) -> bool:
    """a direction such as de-en"""  # a form, which `forms.require_form` quotes
    return isinstance(value, str) and bool(Direction.parse(value))


def are_directions(value: object) -> bool:
    """a list of directions, each once"""  # as `is_direction`
    return (
        isinstance(value, list)
        and all(isinstance(name, str) for name in value)
        and bool(parse_directions(value))
    )


def as_directions(directions: Iterable[Direction | str]) -> list[Direction]:
    """Directions, or what names them, as directions.

    Raises:
        DirectionError: if a name is malformed.
    """
    return [one if isinstance(one, Direction) else Direction.parse(one) for one in _listed(directions)]


def _listed(directions: Iterable[T]) -> list[T]:
    if isinstance(directions, str | Direction) or not isinstance(directions, Iterable):
        raise DirectionError("not a list of directions", got=repr(directions), expected="['de-en', ...]")
    return list(directions)


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
                mend=did_you_mean(lang, langs),
            )
    return langs.index(direction.source) * len(langs) + langs.index(direction.target)


def did_you_mean(word: object, known: Iterable[object]) -> str | None:
    """A question for a message, where a language or direction that is known looks much like what was given."""
    alike = difflib.get_close_matches(str(word), map(str, known), n=1)
    return f"did you mean {alike[0]}?" if alike else None


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
