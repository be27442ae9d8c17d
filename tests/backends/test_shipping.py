"""Small checkpoints that travel with the project."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest
import torch

from neuron_spec.artifacts import CORPUS_CARD, write_json
from neuron_spec.backends.fairseq import shipping
from neuron_spec.backends.fairseq.checkpoints import read_checkpoint
from neuron_spec.errors import ArtifactError

CARD = {
    "name": "toy",
    "langs": ["en", "qa"],
    "sources": [],
    "pairs": {"train": {}},
    "vocabulary": {},
    "raw_sha256": {"train.qa-en.en": "1", "test.qa-en.en": "2"},
}


@pytest.fixture
def shipped(tmp_path: Path) -> Path:
    tied = torch.randn(5, 3)
    state = {
        "cfg": {
            "task": argparse.Namespace(data="/home/somebody/data", lr=[0.1]),
            "model": {},
            "common": {"user_dir": "x"},
        },
        "model": {"encoder.embed": tied, "decoder.embed": tied, "mask_rows": torch.tensor([1, -1])},
        "optimizer_history": [{"num_updates": 7}],
        "last_optimizer_state": {"big": torch.zeros(1000)},
    }
    torch.save(state, tmp_path / "big.pt")
    write_json(tmp_path / CORPUS_CARD, CARD)
    shipping.shrink(tmp_path / "big.pt", tmp_path, tmp_path / "small.pt")
    return tmp_path / "small.json"


def test_small_half_precision_and_without_paths(shipped: Path) -> None:
    state = read_checkpoint(shipped.with_suffix(".pt"))
    assert state["model"]["encoder.embed"].dtype == torch.float16
    assert state["model"]["mask_rows"].tolist() == [1, -1]
    assert state["model"]["encoder.embed"].data_ptr() == state["model"]["decoder.embed"].data_ptr()
    assert "last_optimizer_state" not in state
    assert state["cfg"]["task"].data == "data"
    assert b"somebody" not in shipped.with_suffix(".pt").read_bytes()
    assert json.loads(shipped.read_text())["updates"] == 7


def test_a_damaged_checkpoint_or_another_split_is_refused(shipped: Path) -> None:
    shipping.check(shipped, shipped.parent)
    write_json(
        shipped.parent / CORPUS_CARD,
        {**CARD, "raw_sha256": {"train.qa-en.en": "other", "test.qa-en.en": "2"}},
    )
    shipping.check(shipped, shipped.parent)  # training text may differ
    write_json(shipped.parent / CORPUS_CARD, {**CARD, "raw_sha256": {"test.qa-en.en": "other"}})
    with pytest.raises(ArtifactError, match="other held-out sets"):
        shipping.check(shipped, shipped.parent)
    with shipped.with_suffix(".pt").open("ab") as file:
        file.write(b"x")
    with pytest.raises(ArtifactError, match="damaged"):
        shipping.check(shipped, shipped.parent)


def test_no_other_file_is_replaced(shipped: Path) -> None:
    folder = shipped.parent
    torch.save({"mine": 1}, folder / "other.pt")
    (folder / "link.pt").symlink_to("big.pt")
    before = {path: path.read_bytes() for path in folder.iterdir()}
    for name in ("big.pt", "link.pt", "other.pt"):
        with pytest.raises(ArtifactError, match="already here"):
            shipping.shrink(folder / "big.pt", folder, folder / name)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    shipping.shrink(folder / "big.pt", folder, folder / "small.pt")  # over its own
    assert {path: path.read_bytes() for path in folder.iterdir() if path.suffix == ".pt"} == {
        path: content for path, content in before.items() if path.suffix == ".pt"
    }
