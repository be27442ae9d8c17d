"""A user's own parallel files: how they are named on a command line, found, and read line by line.

A pair is two text files of equally many lines, or one TSV file of two columns; each may be gzip.
"""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import BinaryIO

from neuron_spec.corpora.checks import decoded_text
from neuron_spec.directions import Direction
from neuron_spec.errors import CorpusError, some
from neuron_spec.languages import is_code, require_fairseq_codes

_GZIP = b"\x1f\x8b"
_MEND_TEXT = "convert the file to UTF-8, such as with iconv, or unpack it; text and .gz are read as they are"
# en-de=FILE: a path such as ./a=b is none.
_NAMED = re.compile(r"([^=/\\]+-[^=/\\]+)=(.+)", re.DOTALL)
_BRACES = re.compile(r"(.*?)\{([^{},]*(?:,[^{},]*)+)\}(.*)", re.DOTALL)


@dataclass(frozen=True)
class ParallelFiles:
    """The files of one pair: one for each side, source first, or one TSV file of two columns."""

    pair: Direction
    paths: tuple[Path, ...]

    @property
    def codes(self) -> tuple[str, str]:
        return self.pair.source, self.pair.target

    def lines(self) -> Iterator[tuple[str, str]]:
        """Both sides of each pair without line ends, ``\\n`` or ``\\r\\n``, and without a byte-order mark.

        Raises:
            CorpusError: if a file cannot be opened, is empty, not UTF-8 text or cut short, the sides have
                different numbers of lines, or a line of a TSV file has not two columns.
            ArtifactError: if a file is a Git-LFS pointer.
        """
        with ExitStack() as files:
            sides = [_decoded(files.enter_context(_opened(path)), path) for path in self.paths]
            if len(sides) == 1:
                yield from self._columns(sides[0])
                return
            number = 0
            for number, (source, target) in enumerate(zip_longest(*sides), start=1):
                if source is None or target is None:
                    longer = number + sum(1 for side in sides for _ in side)
                    counts = (number - 1, longer) if source is None else (longer, number - 1)
                    raise CorpusError(
                        f"the two sides of {self.pair} are not parallel",
                        where=", ".join(map(str, self.paths)),
                        got=", ".join(
                            f"{code}: {n} lines" for code, n in zip(self.codes, counts, strict=True)
                        ),
                        expected="as many lines on both sides",
                        mend="one file is cut short, or of another version: get the pair again",
                    )
                yield source, target
            if not number:
                raise CorpusError("an empty file", where=", ".join(map(str, self.paths)))

    def _columns(self, lines: Iterator[str]) -> Iterator[tuple[str, str]]:
        path, is_swapped, number = self.paths[0], False, 0
        for number, line in enumerate(lines, start=1):
            columns = line.split("\t") if line.strip() else ["", ""]
            if len(columns) != 2:
                raise CorpusError(
                    "a TSV line that has not two columns",
                    where=f"{path}, line {number}",
                    got=f"{len(columns)} columns",
                    expected=f"{self.pair.source} and {self.pair.target}, with one tab between them",
                    mend="keep the two columns of text, such as with cut -f1,2",
                )
            first, second = columns
            if number == 1 and {first.strip(), second.strip()} == set(self.codes):
                is_swapped = first.strip() == self.pair.target  # a header, which knows better than the flag
                continue
            yield (second, first) if is_swapped else (first, second)
        if not number:
            raise CorpusError("an empty file", where=path)


def _opened(path: Path) -> BinaryIO:
    try:
        file = path.open("rb")
        magic = file.read(len(_GZIP))
        file.seek(0)
    except OSError as error:
        raise CorpusError("a text file cannot be read", where=path, got=error.strerror) from error
    return gzip.open(file) if magic == _GZIP else file  # type: ignore[return-value]


def _decoded(file: Iterable[bytes], path: Path) -> Iterator[str]:
    number = 0
    lines = iter(file)
    while True:
        try:
            line = next(lines, None)
        except (EOFError, OSError, zlib.error) as error:
            raise CorpusError(
                "a gzip file is damaged or cut short",
                where=f"{path}, after line {number}",
                got=str(error),
                mend="get it again",
            ) from error
        if line is None:
            return
        yield decoded_text(line, where=path, mend=_MEND_TEXT, lines_before=number).rstrip("\r\n")
        number += 1


def find_files(names: Sequence[str], flag: str) -> list[ParallelFiles]:
    """The pairs that the words after a flag name (``neuron-spec data --help`` has the forms), in their order.

    Braces may be expanded here or by the shell, which makes two words of one: files named for the same pair belong
    together. Which side a file is, its last ending says where it is a code of the pair, else the order.

    Raises:
        CorpusError: if a name leads to nothing, a pair lacks a side, or is there twice (``de-en`` is ``en-de``).
        DirectionError: if a code is none, or has a hyphen.
    """
    named: dict[Direction, list[Path]] = {}
    for name in names:
        if match := _NAMED.fullmatch(name):
            pair = Direction.parse(match[1])
            named.setdefault(pair, []).extend(map(Path, _expanded(match[2])))
        else:
            for pair, path in _searched(Path(name), flag):
                named.setdefault(pair, []).append(path)
    found = [ParallelFiles(pair, _sides(pair, paths, flag)) for pair, paths in named.items()]
    require_fairseq_codes(dict.fromkeys(code for files in found for code in files.codes))
    seen: dict[frozenset[str], Direction] = {}
    for files in found:
        if (other := seen.setdefault(frozenset(files.codes), files.pair)) != files.pair:
            raise CorpusError(
                f"{flag} names a pair twice",
                got=f"{other} and {files.pair}",
                expected="each pair once; both directions are trained on it",
                mend="join its files into one",
            )
    return found


def _expanded(text: str) -> list[str]:
    """``a.{en,de}`` and ``a.en,a.de`` as a list."""
    if match := _BRACES.fullmatch(text):
        before, inner, after = match.groups()
        return [path for choice in inner.split(",") for path in _expanded(f"{before}{choice}{after}")]
    return text.split(",")


def _sides(pair: Direction, paths: Sequence[Path], flag: str) -> tuple[Path, ...]:
    """The files of a pair, source first; one if that is TSV."""
    codes = (pair.source, pair.target)
    if pair.source == pair.target:
        raise CorpusError(f"{flag} names a pair of one language", got=pair, mend="name two codes")
    if missing := [str(path) for path in paths if not path.is_file()]:
        raise CorpusError(f"a file of {pair} not found", where=", ".join(missing))
    if len(paths) == 1 and _is_tsv(paths[0]):
        return (paths[0],)
    ends = [_last_ending(path) for path in paths]
    if len(paths) == 1:
        lacking = [code for code in codes if code != ends[0]]
        raise CorpusError(
            f"one side of {pair} is missing",
            got=paths[0],
            expected=f"a file of {' or '.join(lacking)} beside it, or one .tsv of both",
        )
    if len(paths) > 2 or len(set(paths)) < len(paths) or (ends[0] == ends[1] and ends[0] in codes):
        raise CorpusError(
            f"{flag} names more than one file for a side of {pair}",
            got=some(list(map(str, paths))),
            expected="one file a side",
            mend="join them into one, or name some of a folder by their prefix, such as FOLDER/train",
        )
    is_turned = ends[0] == pair.target or ends[1] == pair.source
    return (paths[1], paths[0]) if is_turned else (paths[0], paths[1])


def _without_gz(path: Path) -> str:
    return path.name.removesuffix(".gz")


def _is_tsv(path: Path) -> bool:
    return _without_gz(path).endswith(".tsv")


def _last_ending(path: Path) -> str:
    return _without_gz(path).rpartition(".")[2]


def _searched(place: Path, flag: str) -> Iterator[tuple[Direction, Path]]:
    """The files of a folder, or those whose names begin with a prefix, that are named ``...en-de.en`` or ``...en-de.tsv``.

    Raises:
        CorpusError: if there are none.
    """
    folder, prefix = (place, None) if place.is_dir() else (place.parent, place.name)
    found = []
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.is_file() and (named := _pair_in_name(_without_gz(path))):
            stem, pair = named
            is_meant = prefix in (None, stem, f"{stem}.{pair}") or (stem == "" and prefix == str(pair))
            if is_meant or (path == place and _is_tsv(path)):
                found.append((pair, path))
    if not found:
        raise CorpusError(
            f"{flag} names a file without saying of which languages"
            if place.is_file()
            else f"{flag} leads to no parallel files",
            where=place,
            expected="PREFIX.en-de.en and PREFIX.en-de.de, PREFIX.en-de.tsv, or en-de=FILE,FILE",
        )
    yield from found


def _pair_in_name(name: str) -> tuple[str, Direction] | None:
    """``train`` and ``en-de`` of ``train.en-de.en``; None if a name is of another form."""
    *stem, pair, code = name.split(".") if name.count(".") else ("", name)
    if code == "tsv":
        sides = pair.partition("-")[::2] if pair.count("-") == 1 else ("", "")
    elif pair.startswith(f"{code}-"):
        sides = (code, pair.removeprefix(f"{code}-"))
    else:
        sides = (pair.removesuffix(f"-{code}"), code) if pair.endswith(f"-{code}") else ("", "")
    return (".".join(stem), Direction(*sides)) if all(map(is_code, sides)) else None
