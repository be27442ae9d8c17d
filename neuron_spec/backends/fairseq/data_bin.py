"""Checks of a fairseq data-bin before anything is loaded from it.

A data-bin may be sharded: a folder of shard0, shard1 and so on, each a data-bin. Training takes them in turn;
validation and test sets are whole in the first shard that has them. Light until data is read: no fairseq.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neuron_spec.artifacts import hash_file, hash_text, require_file
from neuron_spec.directions import Direction, did_you_mean
from neuron_spec.errors import ArtifactError
from neuron_spec.languages import is_code

if TYPE_CHECKING:
    from fairseq.data import Dictionary

_AT_ONCE = 2**22  # sentences, or numbers
# What an index of --dataset-impl mmap begins with: its kind, version, code of the numbers, and sentences.
_MAGIC, _HEADER = b"MMIDIDX\x00\x00", struct.Struct("<9sQBQ")
_NUMBERS = {1: "u1", 2: "i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2", 9: "<u4", 10: "<u8"}
_OF_OTHERS = b"TNTIDX\x00\x00"  # the first bytes of an index of --dataset-impl cached, lazy or raw


def shards_of(data_bin: Path) -> list[Path]:
    """The shards of a sharded data-bin, in order; none if it is not sharded."""
    shards: list[Path] = []
    while (shard := data_bin / f"shard{len(shards)}").is_dir():
        shards.append(shard)
    return shards


def folder_with(data_bin: Path, split: str) -> Path:
    """The folder whose files are ``split``: the data-bin itself, or the first shard with such a file.

    Raises:
        ArtifactError: if it is sharded, and no shard has any.
    """
    shards = shards_of(data_bin)
    for folder in shards:
        if any(folder.glob(f"{split}.*.idx")):
            return folder
    if not shards:
        return data_bin
    raise ArtifactError(
        f"no shard of the data-bin has a {split} set",
        where=data_bin,
        got=f"{len(shards)} shards",
        mend="name a subset that a shard has, or binarize it into shard0",
    )


def split_prefix(data_bin: Path, split: str, direction: Direction) -> Path:
    """``split.de-en`` of either order, as fairseq looks for it.

    Raises:
        ArtifactError: if neither is there.
    """
    data_bin = folder_with(data_bin, split)
    prefixes = [f"{split}.{pair}" for pair in (direction, Direction(direction.target, direction.source))]
    indices = [f"{prefix}.{direction.source}.idx" for prefix in prefixes]
    for prefix, index in zip(prefixes, indices, strict=True):
        if (data_bin / index).is_file():
            return data_bin / prefix
    raise ArtifactError(
        f"the data-bin has no {split} set for {direction}",
        where=data_bin,
        expected=", or ".join(indices),
        mend=did_you_mean(direction, directions_in(data_bin, split))
        or "name a subset and directions that it has, or binarize them",
    )


def files_of(data_bin: Path, split: str, directions: Iterable[Direction]) -> list[Path]:
    """The data files of a split, each once."""
    files = {
        Path(f"{split_prefix(data_bin, split, direction)}.{lang}{extension}")
        for direction in directions
        for lang in (direction.source, direction.target)
        for extension in (".idx", ".bin")
    }
    return sorted(files)


def directions_in(data_bin: Path, split: str) -> list[Direction]:
    """The directions, either way, whose data files for a split are there."""
    found = set()
    for index in folder_with(data_bin, split).glob(f"{split}.*-*.*.idx"):
        source, _, target = index.name.removeprefix(f"{split}.").split(".")[0].partition("-")
        if is_code(source) and is_code(target):
            found |= {Direction(source, target), Direction(target, source)}
    return sorted(found)


def check_data_bin(
    data_bin: Path,
    langs: Sequence[str],
    split: str,
    directions: Sequence[Direction],
    dictionary: str | None = None,
) -> None:
    """That a set of text and its dictionaries are there, and complete.

    Args:
        dictionary: that of ``--fixed-dictionary``, of all languages.

    Raises:
        ArtifactError: if the folder, a dictionary or a data file is missing, or one is cut short.
    """
    if not data_bin.is_dir():
        raise ArtifactError(
            "data-bin not found", where=data_bin, mend="name a folder made by fairseq-preprocess"
        )
    data_bin = folder_with(data_bin, split)
    require_dictionaries(data_bin, directions, dictionary)
    counts: dict[str, dict[str, int | None]] = {}
    for file in files_of(data_bin, split, directions):
        require_file(file, "data file", "binarize the corpus again")
        if file.suffix == ".idx":
            pair, lang = file.stem.rsplit(".", 1)
            symbols = read_dictionary(Path(dictionary) if dictionary else data_bin / f"dict.{lang}.txt")
            counts.setdefault(pair, {})[lang] = check_complete(file, len(symbols))
    for pair, of in counts.items():
        if len({*of.values()}) > 1:
            raise ArtifactError(
                "the two sides of a set are not parallel",
                where=", ".join(str(data_bin / f"{pair}.{lang}.idx") for lang in of),
                got=", ".join(f"{lang}: {count} sentences" for lang, count in of.items()),
                mend="binarize both again from files of as many lines",
            )


def require_dictionaries(
    data_bin: Path, directions: Iterable[Direction], dictionary: str | None = None
) -> None:
    """That the dictionaries of directions are there.

    Args:
        data_bin: or a shard of one.
        dictionary: that of ``--fixed-dictionary``, of all languages.

    Raises:
        ArtifactError: if one is missing or damaged, or those of the sources differ, or of the targets.
    """
    if dictionary is not None:
        read_dictionary(Path(dictionary))
        return
    directions = list(directions)
    digests: dict[str, str] = {}
    for lang in sorted({code for d in directions for code in (d.source, d.target)}):
        if not (file := data_bin / f"dict.{lang}.txt").is_file():
            raise ArtifactError(
                f"the data-bin has no dictionary of {lang}", where=data_bin, expected=file.name
            )
        digests[lang] = hash_file(file)
    one_of_each = {digest: data_bin / f"dict.{lang}.txt" for lang, digest in digests.items()}
    symbols = {digest: hash_text(*read_dictionary(file).symbols) for digest, file in one_of_each.items()}
    # A side of a model has one embedding, of all its languages.
    for side in ({d.source for d in directions}, {d.target for d in directions}):
        first, *others = sorted(side)
        for other in others:
            if symbols[digests[first]] != symbols[digests[other]]:
                raise ArtifactError(
                    "dictionaries of one side differ: the same number would be another piece",
                    where=data_bin,
                    got=f"dict.{other}.txt beside dict.{first}.txt",
                    expected="the same pieces in the same order",
                    mend="binarize all languages with one dictionary: fairseq-preprocess --srcdict and --tgtdict",
                )


def read_dictionary(file: Path) -> Dictionary:
    """A fairseq dictionary.

    Raises:
        ArtifactError: if it is missing, a Git-LFS pointer, no text or not in fairseq's form.
    """
    from fairseq.data import Dictionary

    try:
        dictionary = Dictionary.load(str(require_file(file, "dictionary")))
        if len(dictionary) == dictionary.nspecial:
            raise ValueError("no pieces")
        return dictionary
    except ArtifactError:
        raise
    except Exception as error:  # fairseq raises bare ones of text that is not UTF-8
        raise ArtifactError(
            "a dictionary cannot be read",
            where=file,
            got=str(error).splitlines()[0].partition(". ")[0],
            expected="UTF-8, a piece and its count a line",
            mend="copy it again, or take the one that the corpus was binarized with",
        ) from error


def check_complete(index_file: Path, symbols: int | None = None) -> int | None:
    """That an index can be read, each of its sentences has a token or more, and its data file holds what it says.

    Args:
        symbols: of the dictionary, which no number in the data file reaches; None: they are not looked at.

    Returns:
        How many sentences there are; None of another of fairseq's formats, which it reads itself.

    Raises:
        ArtifactError: if not.
    """
    import numpy as np

    data_file, got = index_file.with_suffix(".bin"), index_file.stat().st_size
    with open(index_file, "rb") as file:
        header = file.read(_HEADER.size)
    if header.startswith(_OF_OTHERS):
        return None
    magic, version, code, count = _HEADER.unpack(header.ljust(_HEADER.size, b"\0"))
    is_known = (magic, version) == (_MAGIC, 1) and code in _NUMBERS
    bytes_of_one = np.dtype(np.int32).itemsize + np.dtype(np.int64).itemsize
    if not is_known or got != _HEADER.size + count * bytes_of_one:
        raise ArtifactError(
            "index of a data file cannot be read"
            if not is_known
            else "index of a data file is cut short or damaged",
            where=index_file,
            got=f"{got} bytes" + (f", of {count} sentences" if is_known else ", which begin otherwise"),
            expected=f"{_HEADER.size + count * bytes_of_one} bytes"
            if is_known
            else "an index by fairseq-preprocess",
            mend="binarize the corpus again",
        )
    if not count:
        sizes, pointers = np.empty(0, np.int32), np.empty(0, np.int64)
    else:
        content = np.memmap(index_file, np.uint8, "r")
        end = _HEADER.size + count * np.dtype(np.int32).itemsize
        sizes, pointers = content[_HEADER.size : end].view("<i4"), content[end:].view("<i8")
    item = np.dtype(_NUMBERS[code])
    if count and (least := int(sizes.min())) < 1:
        raise ArtifactError(
            "index of a data file is damaged: a sentence without a token",
            where=index_file,
            got=f"sentence {int(sizes.argmin()) + 1} has {least}",
            expected="1 or more, its end among them",
            mend="copy it again, or binarize the corpus again",
        )
    if (number := _misplaced(sizes, pointers, item.itemsize)) is not None:
        raise ArtifactError(
            "index of a data file is damaged: a sentence that does not begin where the one before it ends",
            where=index_file,
            got=f"sentence {number + 1}, from byte {int(pointers[number])}",
            mend="copy it again, or binarize the corpus again",
        )
    expected = int(pointers[-1]) + int(sizes[-1]) * item.itemsize if count else 0
    got = os.path.getsize(data_file) if data_file.is_file() else 0
    if got != expected:
        raise ArtifactError(
            "data file is cut short, or belongs to another index",
            where=data_file,
            got=f"{got} bytes",
            expected=f"{expected} bytes",
            mend="copy it again, or binarize the corpus again",
        )
    if symbols is not None and count:
        least, most = _bounds(str(data_file), item.str, data_file.stat().st_mtime_ns)
        if least < 0 or most >= symbols:
            raise ArtifactError(
                "a data file has numbers that the dictionary has no pieces for",
                where=data_file,
                got=f"numbers from {least} to {most}",
                expected=f"from 0 to {symbols - 1}, as the dictionary has {symbols} pieces",
                mend="take the dictionary that it was binarized with, or binarize it again",
            )
    return int(count)


@cache  # a training and its validation ask again
def _bounds(data_file: str, item: str, changed: int) -> tuple[int, int]:
    """The least and the largest number in a data file."""
    import numpy as np

    content = np.memmap(data_file, np.dtype(item), "r")
    parts = [content[start : start + _AT_ONCE] for start in range(0, len(content), _AT_ONCE)]
    return min(int(part.min()) for part in parts), max(int(part.max()) for part in parts)


def _misplaced(sizes: Any, pointers: Any, item_bytes: int) -> int | None:
    """The number of the first sentence, from 0, that does not begin where the one before it ends; None if all do."""
    import numpy as np

    address = 0
    for start in range(0, len(sizes), _AT_ONCE):
        lengths = np.asarray(sizes[start : start + _AT_ONCE], np.int64) * item_bytes
        ends = address + np.cumsum(lengths)
        if (is_wrong := pointers[start : start + _AT_ONCE] != ends - lengths).any():
            return start + int(is_wrong.argmax())
        address = int(ends[-1])
    return None


def joining_of(symbols: Sequence[str], where: object) -> str:
    """How a dictionary's pieces are joined to words, by fairseq's name: ``sentencepiece`` or ``subword_nmt``.

    SentencePiece marks the pieces that begin a word, subword-nmt those that do not end one. Ours: of one kind at least a
    hundredth of the symbols are marked, and more than of the other; single marks are text.

    Raises:
        ArtifactError: if neither is so.
    """
    marked = {
        "sentencepiece": sum(symbol.startswith("\u2581") for symbol in symbols),
        "subword_nmt": sum(symbol.endswith("@@") for symbol in symbols),
    }
    (kind, most), (_, least) = sorted(marked.items(), key=lambda item: -item[1])
    if most == least or most < len(symbols) / 100:
        raise ArtifactError(
            "the dictionary does not tell how its pieces are joined to words",
            where=where,
            got=f"of {len(symbols)} symbols {marked['sentencepiece']} begin with \u2581 and "
            f"{marked['subword_nmt']} end with @@",
            expected="pieces of SentencePiece or subword-nmt",
            mend="if its symbols are words, say so: -- --post-process none; else name fairseq's --post-process",
        )
    return kind


def data_sha256(data_bin: Path, split: str, directions: Sequence[Direction]) -> str:
    """Hash of the data files of a split."""
    return hash_text(*(f"{file.name} {hash_file(file)}" for file in files_of(data_bin, split, directions)))
