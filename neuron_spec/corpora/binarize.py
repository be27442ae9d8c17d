"""Raw text to a fairseq data-bin, in one process (`fairseq-preprocess` starts anew per language)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import sentencepiece
from fairseq.binarizer import FileBinarizer, VocabularyDatasetBinarizer
from fairseq.data import Dictionary
from tqdm import tqdm


def binarize(
    raw: Path, names: Sequence[str], processor: sentencepiece.SentencePieceProcessor, data_bin: Path
) -> None:
    """Write ``data_bin/<name>.{bin,idx}`` for every text file ``raw/<name>``, named ``split.xx-yy.lang``."""
    dictionaries: dict[str, Dictionary] = {}
    for name in tqdm(names, desc="binarize", mininterval=1):
        lang = name.rsplit(".", 1)[1]
        if lang not in dictionaries:
            dictionaries[lang] = Dictionary.load(str(data_bin / f"dict.{lang}.txt"))
        FileBinarizer.multiprocess_dataset(
            str(raw / name),
            "mmap",
            VocabularyDatasetBinarizer(
                dictionaries[lang], tokenize=lambda line: processor.encode(line.strip(), out_type=str)
            ),
            str(data_bin / name),
            vocab_size=len(dictionaries[lang]),
        )
