"""Raw text to a fairseq data-bin and back, in one process (`fairseq-preprocess` starts anew per language)."""

from __future__ import annotations

import os
import struct
from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path

import numpy as np
import sentencepiece
from fairseq.data import Dictionary
from fairseq.data.indexed_dataset import (
    MMapIndexedDataset,
    MMapIndexedDatasetBuilder,
    _code_to_dtype,
    _dtype_header_code,
    best_fitting_int_dtype,
)
from numpy.typing import NDArray
from tqdm import tqdm

from neuron_spec.artifacts import atomic_path, read_lines, require_file
from neuron_spec.errors import CorpusError


def binarize(
    raw: Path, names: Iterable[str], processor: sentencepiece.SentencePieceProcessor, data_bin: Path
) -> None:
    """Write ``data_bin/<name>.{bin,idx}`` for every text file ``raw/<name>``, named ``split.xx-yy.lang``."""
    for name in tqdm(names, desc="binarize", mininterval=1):
        ids = piece_ids(processor, data_bin / f"dict.{name.rsplit('.', 1)[1]}.txt")
        with writer_of(data_bin / name, ids) as writer:
            writer.add_sentences(processor.encode([line.strip() for line in read_lines(raw / name)]))


def piece_ids(processor: sentencepiece.SentencePieceProcessor, dictionary_file: Path) -> NDArray:
    """The dictionary's id of every SentencePiece id, and last its end of a sentence."""
    dictionary = Dictionary.load(str(dictionary_file))
    pieces = map(processor.id_to_piece, range(processor.vocab_size()))
    dtype = best_fitting_int_dtype(len(dictionary))
    return np.array([*map(dictionary.index, pieces), dictionary.eos()], dtype)


class PartWriter(MMapIndexedDatasetBuilder):
    """fairseq's writer of ``.bin`` and ``.idx``, fed many sentences at a time.

    What it keeps in memory is 4 bytes a sentence.
    """

    def __init__(self, data_file: Path, ids: NDArray) -> None:
        """Args: ids: as of `piece_ids`."""
        super().__init__(str(data_file), dtype=ids.dtype.type)
        self._ids = ids
        self._sizes = array("i")

    def add_sentences(self, sentences: Sequence[Sequence[int]]) -> None:
        """Append sentences of SentencePiece ids."""
        end = len(self._ids) - 1
        positions = np.fromiter(chain.from_iterable((*pieces, end) for pieces in sentences), np.int64)
        self._data_file.write(self._ids[positions].tobytes())
        self._sizes.extend(len(pieces) + 1 for pieces in sentences)

    def finalize(self, index_file: str) -> None:
        """fairseq's own keeps a Python integer per sentence for this: gigabytes, of tens of millions."""
        self._data_file.close()
        item_bytes = np.dtype(self._dtype).itemsize
        with open(index_file, "wb") as index:
            magic, code = MMapIndexedDataset.Index._HDR_MAGIC, _dtype_header_code(self._dtype)
            index.write(_INDEX_HEADER.pack(magic, 1, code, len(self._sizes)))
            index.write(self._sizes.tobytes())
            address = 0
            for start in range(0, len(self._sizes), _IDS_AT_ONCE):
                sizes = np.array(self._sizes[start : start + _IDS_AT_ONCE], np.int64) * item_bytes
                index.write(
                    (address + np.cumsum(sizes) - sizes).tobytes()
                )  # tofile does not say that a disk is full
                address += int(sizes.sum())


@contextmanager
def writer_of(prefix: Path, ids: NDArray) -> Iterator[PartWriter]:
    """Yield a writer of ``prefix.bin`` and ``prefix.idx``, which are there only if the block succeeds."""
    with atomic_path(f"{prefix}.bin") as data, atomic_path(f"{prefix}.idx") as index:
        writer = PartWriter(data, ids)
        yield writer
        writer.finalize(str(index))


_INDEX_HEADER = struct.Struct("<9sQBQ")  # magic, version, type of a token, sentences
_SIZE, _POINTER = struct.Struct("<i"), struct.Struct("<q")  # of every sentence: all sizes, then all pointers
_IDS_AT_ONCE = 2**22
_INCOMPLETE = "the download or the extraction is incomplete: get it again"


def sentences_in(index_file: Path) -> int:
    """How many sentences a ``.idx`` names; reads its ends only, so that large ones take no time.

    Raises:
        CorpusError: if it, or the ``.bin`` beside it, is missing, of another format or cut short.
        ArtifactError: if one is a Git-LFS pointer.
    """
    data_file = index_file.with_suffix(".bin")
    for file in (index_file, data_file):
        if not file.is_file():
            raise CorpusError("data file not found", where=file, mend="download or extract it again")
        require_file(file, "data file")
    with index_file.open("rb") as index:
        header = index.read(_INDEX_HEADER.size)
        is_whole = len(header) == _INDEX_HEADER.size
        magic, version, code, sentences = _INDEX_HEADER.unpack(header) if is_whole else (b"", 0, 0, 0)
        if (magic, version) != (MMapIndexedDataset.Index._HDR_MAGIC, 1) or code not in _code_to_dtype:
            raise CorpusError(
                "index of a data file cannot be read",
                where=index_file,
                got=f"header {header.hex()}",
                expected="fairseq's mmap format",
                mend=_INCOMPLETE,
            )
        pointers = _INDEX_HEADER.size + sentences * _SIZE.size
        _require_bytes(index_file, pointers + sentences * _POINTER.size, "index of a data file is cut short")
        if not sentences:
            raise CorpusError("data file without a sentence", where=index_file, mend=_INCOMPLETE)
        index.seek(pointers - _SIZE.size)
        (size,) = _SIZE.unpack(index.read(_SIZE.size))
        index.seek(-_POINTER.size, os.SEEK_END)
        (pointer,) = _POINTER.unpack(index.read())
    needed = pointer + size * np.dtype(_code_to_dtype[code]).itemsize
    _require_bytes(data_file, needed, "data file is cut short, or belongs to another index")
    return int(sentences)


def ids_in(index_file: Path) -> Iterator[NDArray]:
    """The ids of a data file as they lie there, some millions at a time."""
    dtype = MMapIndexedDataset.Index(str(index_file)).dtype
    ids = np.memmap(index_file.with_suffix(".bin"), dtype, "r")
    for start in range(0, len(ids), _IDS_AT_ONCE):
        yield ids[start : start + _IDS_AT_ONCE]


def _require_bytes(file: Path, expected: int, what: str) -> None:
    if (size := file.stat().st_size) != expected:
        raise CorpusError(
            what, where=file, got=f"{size} bytes", expected=f"{expected} bytes", mend=_INCOMPLETE
        )


def decoded(prefix: Path, dictionary_file: Path, joining: str = "sentencepiece") -> Iterator[str]:
    """The sentences of ``prefix.bin`` as text, without their subword marks.

    Args:
        joining: how pieces are joined to words, by fairseq's name.
    """
    dictionary = Dictionary.load(str(dictionary_file))
    for tokens in MMapIndexedDataset(str(prefix)):
        yield dictionary.string(tokens, bpe_symbol=joining)
