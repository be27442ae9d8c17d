"""Our writer of data files writes what fairseq's writes."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from fairseq.data.indexed_dataset import MMapIndexedDataset, MMapIndexedDatasetBuilder

from neuron_spec.corpora import binarize

IDS = 300


@pytest.mark.parametrize("dtype", [np.uint16, np.int32])
@pytest.mark.parametrize("at_once", [1, 7, 2**22])
def test_the_same_bytes_as_fairseq(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype, at_once) -> None:
    monkeypatch.setattr(binarize, "_IDS_AT_ONCE", at_once)
    rng = random.Random(1)
    sentences = [[rng.randrange(IDS) for _ in range(rng.randrange(12))] for _ in range(50)]
    ids = np.array([*range(4, IDS + 4), 2], dtype)
    with binarize.writer_of(tmp_path / "ours", ids) as writer:
        writer.add_sentences(sentences[:20])
        writer.add_sentences(sentences[20:])
    theirs = MMapIndexedDatasetBuilder(str(tmp_path / "theirs.bin"), dtype=dtype)
    for sentence in sentences:
        theirs.add_item(torch.tensor([*(number + 4 for number in sentence), 2]))
    theirs.finalize(str(tmp_path / "theirs.idx"))
    for ending in ("bin", "idx"):
        assert (tmp_path / f"ours.{ending}").read_bytes() == (tmp_path / f"theirs.{ending}").read_bytes()
    read = MMapIndexedDataset(str(tmp_path / "ours"))
    assert read[7].tolist() == [*(number + 4 for number in sentences[7]), 2]
    assert binarize.sentences_in(tmp_path / "ours.idx") == len(sentences)
    flat = np.concatenate(list(binarize.ids_in(tmp_path / "ours.idx")))
    assert flat.tolist() == np.fromfile(tmp_path / "ours.bin", dtype).tolist()
