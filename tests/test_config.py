"""Config files: strict, and the shipped ones known to fairseq's parser."""

from __future__ import annotations

from pathlib import Path

import pytest

from neuron_spec.config import read_flags
from neuron_spec.errors import ArtifactError

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    "path", sorted((ROOT / "configs").rglob("*.yaml")), ids=lambda p: f"{p.parent.name}-{p.stem}"
)
def test_fairseq_knows_every_flag_of_the_shipped_configs(path: Path) -> None:
    flags = read_flags(path)
    assert "--max-tokens" in flags


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    return path


def test_switches_numbers_and_words(tmp_path: Path) -> None:
    path = write(
        tmp_path, "lr: 0.0005\nshare-all-embeddings: true\nencoder-learned-pos: false\noptimizer: adam\n"
    )
    assert read_flags(path) == ["--lr", "0.0005", "--share-all-embeddings", "--optimizer", "adam"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lerning-rate: 0.1\n", "lerning-rate"),
        ("- lr\n", "not a mapping"),
        ("lr: [1, 2]\n", "one number, word or switch"),
        ("lr: {", "not YAML"),
    ],
)
def test_bad_configs_are_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ArtifactError, match=message):
        read_flags(write(tmp_path, text))
