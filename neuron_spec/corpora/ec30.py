"""EC30, the paper's large benchmark: its languages, and the check of a downloaded data-bin.

EC40 (Tan and Monz, 2023) without its 10 smallest languages: about 61 million pairs with English, from OPUS;
validation on NTREX-128, test on FLORES-200. `ec30_plain` builds the same from text.
"""

from __future__ import annotations

import csv
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from itertools import islice
from pathlib import Path

from neuron_spec.artifacts import hash_file, write_link
from neuron_spec.backends.fairseq.data_bin import check_complete, read_dictionary
from neuron_spec.corpora.build import (
    TEST,
    TRAIN,
    VALID,
    VOCABULARY,
    Description,
    is_built,
    write_card,
    write_raw,
)
from neuron_spec.corpora.checks import require_equal, require_known
from neuron_spec.corpora.existing import data_sha256
from neuron_spec.errors import CorpusError, some
from neuron_spec.languages import ENGLISH, language
from neuron_spec.scoring.language_id import LINES_PER_LANGUAGE


@dataclass(frozen=True)
class EC30Language:
    """A language of EC30: the codes of its files in FLORES-200 and in NTREX-128, and its tier.

    ``ntrex`` is empty where NTREX-128 lacks it. The tiers are 5M, 1M and 100k pairs a language; Hausa 334k.
    """

    code: str
    flores: str
    ntrex: str
    tier: str

    @property
    def family(self) -> str:
        """One of the papers' five, which file Kannada under Indo-Aryan, though it is Dravidian."""
        return language(self.code).family


_TABLE = files("neuron_spec.corpora").joinpath("ec30.csv").read_text(encoding="utf-8")
LANGUAGES = {row["code"]: EC30Language(**row) for row in csv.DictReader(_TABLE.splitlines())}

# What both ways to get EC30 say on the card.
SOURCES = {
    TRAIN: {
        "name": "EC40 (Tan and Monz, EMNLP 2023), sampled from OPUS (Tiedemann, 2012)",
        "licence": "those of OPUS' parts; EC40's authors call it open to use",
    },
    VALID: {"name": "NTREX-128 (Federmann et al., 2022)", "licence": "CC BY-SA 4.0"},
    TEST: {"name": "FLORES-200 dev + devtest (NLLB Team, 2022)", "licence": "CC BY-SA 4.0"},
}
RAW_TRAIN = (
    f"a sample: up to {LINES_PER_LANGUAGE} training pairs a language, to learn language identification from"
)

_MEND = "download and extract EC30's data-bin again, and name the folder that holds shard0"


def choose(langs: Sequence[str] | None) -> list[str]:
    """The languages asked for, or all 30.

    Raises:
        CorpusError: if one is not in EC30, or named twice.
    """
    if langs and len(set(langs)) < len(langs):
        raise CorpusError("languages named twice", got=", ".join(langs))
    require_known(langs or (), LANGUAGES, "EC30 has no such language")
    return list(langs or LANGUAGES)


def adopt_data_bin(data_bin: Path, output: Path, *, langs: Sequence[str], shards: int) -> None:
    """Check a downloaded data-bin and write the card; ``output/data-bin/shardN`` are links, nothing is copied.

    ``output/raw`` gets the first training lines of each language, decoded, from which `neuron-spec evaluate`
    learns to tell languages apart.

    Args:
        data_bin: the folder that holds ``shard0`` ..., or one above it.

    Raises:
        CorpusError: if a shard, language, dictionary or set is missing, dictionaries differ, or a file is
            cut short or holds another number of sentences than its other side.
        ArtifactError: if ``output`` holds another corpus, or a data file is damaged or has pieces that the dictionary
            does not have.
    """
    places = ("", "fairseq-data-bin-sharded", "ec30/fairseq-data-bin-sharded")
    trees = [data_bin / place for place in places if (data_bin / place / "shard0").is_dir()]
    if not trees:
        raise CorpusError("no sharded data-bin", where=data_bin, expected="a folder with shard0", mend=_MEND)
    folders = [trees[0] / f"shard{number}" for number in range(shards)]
    if missing := [folder.name for folder in folders if not folder.is_dir()]:
        raise CorpusError("shards are missing", where=trees[0], got=f"no {', '.join(missing)}", mend=_MEND)
    dictionary = _check_dictionaries(folders, [ENGLISH, *langs])
    pairs: dict[str, dict[str, int]] = {TRAIN: {}, VALID: {}, TEST: {}}
    for lang in langs:
        pairs[TRAIN][lang] = sum(_pairs_in(folder, TRAIN, lang) for folder in folders)
        pairs[VALID][lang] = require_equal(
            {folder.name: _pairs_in(folder, VALID, lang) for folder in folders},
            f"validation sets of {lang} differ between shards",
            where=trees[0],
            mend=_MEND,
        )
        pairs[TEST][lang] = _pairs_in(folders[0], TEST, lang)
    parameters = {
        "corpus": "ec30",
        "from": "data-bin",
        "langs": list(langs),
        "shards": shards,
        "dictionary": dictionary,
        "pairs": pairs,
        "data": {split: data_sha256(trees[0], _files(folders, split, langs)) for split in pairs},
    }
    is_complete = is_built(output, parameters)
    if not is_complete:
        symbols = len(read_dictionary(folders[0] / f"dict.{ENGLISH}.txt"))
        for split in pairs:
            for index in _files(folders, split, langs):
                check_complete(index, symbols)
    for folder in folders:
        link = output / "data-bin" / folder.name
        if link.is_symlink() or not link.exists():
            write_link(link, folder)
        elif not os.path.samefile(link, folder):
            raise CorpusError("a built shard is in the way", where=link, mend="name another --output")
    if is_complete:
        return
    size = sum(1 for line in (folders[0] / f"dict.{ENGLISH}.txt").open(encoding="utf-8") if line.strip())
    write_raw({TRAIN: {lang: _first_pairs(folders[0], lang) for lang in langs}}, output / "raw")
    corpus = Description(
        name="ec30",
        sources=[{**source, "form": "binarized by EC30's authors"} for source in SOURCES.values()],
        tiers={lang: LANGUAGES[lang].tier for lang in langs},
        notes={"shards": shards, "dictionary_sha256": dictionary, "raw_train": RAW_TRAIN},
    )
    vocabulary = {"model": VOCABULARY, "size": size, "learned_on": "by EC30's authors"}
    write_card(output, corpus, pairs=pairs, vocabulary=vocabulary, hashes={}, parameters=parameters)


def _check_dictionaries(folders: Sequence[Path], langs: Sequence[str]) -> str:
    """The sha256 that all dictionaries share."""
    hashes: dict[str, str] = {}
    for file in (folder / f"dict.{lang}.txt" for folder in folders for lang in langs):
        if not file.is_file():
            what = "a shard lacks a language's dictionary"
            raise CorpusError(what, where=file.parent, got=f"no {file.name}", mend=_MEND)
        hashes[f"{file.parent.name}/{file.name}"] = hash_file(file)
    (usual, _), *others = Counter(hashes.values()).most_common()
    if others:
        differing = [name for name, digest in hashes.items() if digest != usual]
        raise CorpusError(
            "dictionaries differ: the same number would be another piece",
            where=folders[0].parent,
            got=some(differing),
            expected=f"sha256 {usual[:16]}..., as the other {len(hashes) - len(differing)}",
            mend=_MEND,
        )
    return usual


def _prefix(folder: Path, split: str, lang: str) -> str:
    """``train.en-de`` or ``train.de-en``, whichever is there: fairseq takes either."""
    names = [f"{split}.{ENGLISH}-{lang}", f"{split}.{lang}-{ENGLISH}"]
    for name in names:
        if any((folder / f"{name}.{code}.idx").is_file() for code in (lang, ENGLISH)):
            return name
    raise CorpusError(
        f"a shard lacks the {split} set of a language",
        where=folder,
        got=f"no {names[0]}.{lang}.idx",
        mend=_MEND if split == TRAIN else f"put the {split} sets of EC30 into the shard, or {_MEND}",
    )


def _pairs_in(folder: Path, split: str, lang: str) -> int:
    from neuron_spec.corpora.binarize import sentences_in  # fairseq, which takes seconds

    name = _prefix(folder, split, lang)
    sentences = {code: sentences_in(folder / f"{name}.{code}.idx") for code in (lang, ENGLISH)}
    what = "the two sides of a set are not parallel"
    return require_equal(sentences, what, where=folder / name, mend=_MEND)


def _files(folders: Sequence[Path], split: str, langs: Sequence[str]) -> list[Path]:
    """The indices of a split: of training and validation in all shards, of test in the first."""
    return [
        folder / f"{_prefix(folder, split, lang)}.{code}.idx"
        for folder in (folders[:1] if split == TEST else folders)
        for lang in langs
        for code in (lang, ENGLISH)
    ]


def _first_pairs(folder: Path, lang: str) -> list[tuple[str, str]]:
    """Training pairs of a shard, decoded."""
    from neuron_spec.corpora.binarize import decoded

    name = _prefix(folder, TRAIN, lang)
    sides = (decoded(folder / f"{name}.{code}", folder / f"dict.{code}.txt") for code in (lang, ENGLISH))
    return list(islice(zip(*sides, strict=True), LINES_PER_LANGUAGE))
