"""EC30, the paper's large benchmark: its languages, and the check of a downloaded data-bin.

EC40 (Tan and Monz, 2023) without its 10 smallest languages: about 61 million pairs with English, from OPUS;
validation on NTREX-128, test on FLORES-200. `ec30_plain` builds the same from text.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from neuron_spec.artifacts import CORPUS_CARD, atomic_path, hash_file, signature, write_json, write_text
from neuron_spec.corpora.build import PIVOT, is_built
from neuron_spec.errors import CorpusError
from neuron_spec.scoring.language_id import LINES_PER_LANGUAGE

TRAIN, VALID, TEST = "train", "valid", "test"


@dataclass(frozen=True)
class EC30Language:
    """A language of EC30. ``ntrex`` is empty where NTREX-128 lacks it."""

    code: str
    flores: str
    ntrex: str
    family: str
    tier: str


def _tier(name: str, rows: str) -> list[EC30Language]:
    languages = []
    for row in rows.strip().splitlines():
        family, *words = row.split()
        for code, flores, ntrex in zip(words[::3], words[1::3], words[2::3], strict=True):
            languages.append(EC30Language(code, flores, ntrex.strip("-"), family, name))
    return languages


# The papers' five families by three tiers (5M, 1M and 100k pairs a language; Hausa 334k). They file Kannada
# under Indo-Aryan, though it is Dravidian. Each language: code, FLORES-200's file, NTREX-128's file.
LANGUAGES = {
    language.code: language
    for language in (
        *_tier(
            "high",
            """
            Germanic      de deu_Latn deu       nl nld_Latn nld
            Romance       fr fra_Latn fra       es spa_Latn spa
            Slavic        ru rus_Cyrl rus       cs ces_Latn ces
            Indo-Aryan    hi hin_Deva hin       bn ben_Beng ben
            Afro-Asiatic  ar arb_Arab arb       he heb_Hebr heb
            """,
        ),
        *_tier(
            "medium",
            """
            Germanic      sv swe_Latn swe       da dan_Latn dan
            Romance       it ita_Latn ita       pt por_Latn por
            Slavic        pl pol_Latn pol       bg bul_Cyrl bul
            Indo-Aryan    kn kan_Knda kan       mr mar_Deva mar
            Afro-Asiatic  mt mlt_Latn mlt       ha hau_Latn hau
            """,
        ),
        *_tier(
            "low",
            """
            Germanic      af afr_Latn afr       lb ltz_Latn ltz
            Romance       ro ron_Latn ron       oc oci_Latn -
            Slavic        uk ukr_Cyrl ukr       sr srp_Latn srp-Latn
            Indo-Aryan    sd snd_Arab snd-Arab  gu guj_Gujr guj
            Afro-Asiatic  ti tir_Ethi tir       am amh_Ethi amh
            """,
        ),
    )
}

SOURCES = {
    TRAIN: {
        "name": "EC40 (Tan and Monz, EMNLP 2023), sampled from OPUS (Tiedemann, 2012)",
        "licence": "those of OPUS' parts; EC40's authors call it open to use",
    },
    VALID: {"name": "NTREX-128 (Federmann et al., 2022)", "licence": "CC BY-SA 4.0"},
    TEST: {"name": "FLORES-200 dev + devtest (NLLB Team, 2022)", "licence": "CC BY-SA 4.0"},
}


def choose(langs: Sequence[str] | None) -> list[str]:
    """The languages asked for, or all 30.

    Raises:
        CorpusError: if one is not in EC30, or named twice.
    """
    if langs and len(set(langs)) < len(langs):
        raise CorpusError("languages named twice", got=", ".join(langs))
    if unknown := [lang for lang in langs or () if lang not in LANGUAGES]:
        raise CorpusError("EC30 has no such language", got=", ".join(unknown), expected=", ".join(LANGUAGES))
    return list(langs or LANGUAGES)


def card(
    langs: Sequence[str],
    *,
    sources: Sequence[Mapping[str, Any]],
    vocabulary: Mapping[str, Any],
    pairs: Mapping[str, Mapping[str, int]],
    dropped: Mapping[str, Mapping[str, int]],
    hashes: Mapping[str, str],
    made: Mapping[str, Any],
    notes: Mapping[str, Any],
) -> dict[str, Any]:
    """The corpus card, of the shape that every recipe writes."""
    return {
        "name": "ec30",
        "langs": [PIVOT, *langs],
        "lang_pairs": _lang_pairs(langs),
        "families": {lang: LANGUAGES[lang].family for lang in langs} | {PIVOT: "Germanic"},
        "tiers": {lang: LANGUAGES[lang].tier for lang in langs},
        "sources": [dict(source) for source in sources],
        "vocabulary": dict(vocabulary),
        "pairs": {split: dict(counts) for split, counts in pairs.items()},
        "dropped_in_cleaning": {lang: dict(counts) for lang, counts in dropped.items()},
        "leak_report": {},
        "raw_sha256": dict(hashes),
        **notes,
        "signature": dict(made),
    }


def write_names(langs: Sequence[str], data_bin: Path) -> None:
    """``langs.txt`` and ``lang_pairs.txt``, for fairseq's flags."""
    write_text(data_bin / "langs.txt", "\n".join([PIVOT, *langs]) + "\n")
    write_text(data_bin / "lang_pairs.txt", ",".join(_lang_pairs(langs)) + "\n")


def _lang_pairs(langs: Sequence[str]) -> list[str]:
    return [pair for lang in langs for pair in (f"{PIVOT}-{lang}", f"{lang}-{PIVOT}")]


# ------------------------------------------------------------------ a downloaded data-bin


def adopt_data_bin(data_bin: Path, output: Path, *, langs: Sequence[str], shards: int) -> None:
    """Check a downloaded data-bin and write the card; ``output/data-bin/shardN`` are links, nothing is copied.

    ``output/raw`` gets the first training lines of each language, decoded, from which `neuron-spec evaluate`
    learns to tell languages apart.

    Args:
        data_bin: the folder that holds ``shard0`` ..., or one above it.

    Raises:
        CorpusError: if a shard, language, dictionary or set is missing, dictionaries differ, or a file is
            cut short or holds another number of sentences than its other side.
        ArtifactError: if ``output`` holds another corpus.
    """
    tree = _find_tree(data_bin)
    folders = [tree / f"shard{number}" for number in range(shards)]
    if missing := [folder.name for folder in folders if not folder.is_dir()]:
        raise CorpusError("shards are missing", where=tree, got=f"no {', '.join(missing)}", mend=_MEND)
    dictionary = _check_dictionaries(folders, [PIVOT, *langs])
    pairs = _count_pairs(folders, langs)
    parameters = {
        "corpus": "ec30",
        "from": "data-bin",
        "langs": list(langs),
        "shards": shards,
        "dictionary": dictionary,
        "pairs": pairs,
    }
    for folder in folders:
        _link(output / "data-bin" / folder.name, folder.resolve())
    if is_built(output, parameters):
        return
    write_names(langs, output / "data-bin")
    _write_sample(folders[0], langs, output / "raw")
    size = sum(1 for line in (folders[0] / f"dict.{PIVOT}.txt").open(encoding="utf-8") if line.strip())
    write_json(
        output / CORPUS_CARD,
        card(
            langs,
            sources=[{**source, "form": "binarized by EC30's authors"} for source in SOURCES.values()],
            vocabulary={"model": "SentencePiece BPE, joint over all languages", "size": size}
            | {"learned_on": "by EC30's authors"},
            pairs=pairs,
            dropped={},
            hashes={},
            made=signature("data", inputs={}, parameters=parameters),
            notes={"shards": shards, "dictionary_sha256": dictionary, "raw_train": _RAW_TRAIN},
        ),
    )


_MEND = "download and extract EC30's data-bin again, and name the folder that holds shard0"
_RAW_TRAIN = (
    f"a sample: up to {LINES_PER_LANGUAGE} training pairs a language, to learn language identification from"
)


def _find_tree(folder: Path) -> Path:
    for tree in (folder, folder / "fairseq-data-bin-sharded", folder / "ec30" / "fairseq-data-bin-sharded"):
        if (tree / "shard0").is_dir():
            return tree
    raise CorpusError("no sharded data-bin", where=folder, expected="a folder with shard0", mend=_MEND)


def _check_dictionaries(folders: Sequence[Path], langs: Sequence[str]) -> str:
    """The sha256 that all dictionaries share."""
    hashes: dict[str, str] = {}
    for folder in folders:
        for lang in langs:
            file = folder / f"dict.{lang}.txt"
            if not file.is_file():
                raise CorpusError(
                    "a shard lacks a language's dictionary", where=folder, got=f"no {file.name}", mend=_MEND
                )
            hashes[f"{folder.name}/{file.name}"] = hash_file(file)
    (usual, _), *others = Counter(hashes.values()).most_common()
    if others:
        differing = [name for name, found in hashes.items() if found != usual]
        raise CorpusError(
            "dictionaries differ: the same number would be another piece",
            where=folders[0].parent,
            got=", ".join(differing[:6]) + (f" and {len(differing) - 6} more" if len(differing) > 6 else ""),
            expected=f"sha256 {usual[:16]}..., as the other {len(hashes) - len(differing)}",
            mend=_MEND,
        )
    return usual


def _count_pairs(folders: Sequence[Path], langs: Sequence[str]) -> dict[str, dict[str, int]]:
    """Pairs per split and language: training summed over shards, validation equal in all, test in the first."""
    pairs: dict[str, dict[str, int]] = {TRAIN: {}, VALID: {}, TEST: {}}
    for lang in langs:
        pairs[TRAIN][lang] = sum(_pairs_in(folder, TRAIN, lang) for folder in folders)
        valid = {folder.name: _pairs_in(folder, VALID, lang) for folder in folders}
        if len(set(valid.values())) > 1:
            raise CorpusError(
                f"validation sets of {lang} differ between shards",
                where=folders[0].parent,
                got=", ".join(f"{name}: {count}" for name, count in valid.items()),
                mend=_MEND,
            )
        pairs[VALID][lang] = next(iter(valid.values()))
        pairs[TEST][lang] = _pairs_in(folders[0], TEST, lang)
    return pairs


def _prefix(folder: Path, split: str, lang: str) -> str:
    """``train.en-de`` or ``train.de-en``, whichever is there: fairseq takes either."""
    names = [f"{split}.{PIVOT}-{lang}", f"{split}.{lang}-{PIVOT}"]
    for name in names:
        if any((folder / f"{name}.{code}.idx").is_file() for code in (lang, PIVOT)):
            return name
    raise CorpusError(
        f"a shard lacks the {split} set of a language",
        where=folder,
        got=f"no {names[0]}.{lang}.idx",
        mend=_MEND if split == TRAIN else f"put the {split} sets of EC30 into the shard, or {_MEND}",
    )


def _pairs_in(folder: Path, split: str, lang: str) -> int:
    from neuron_spec.corpora.binarize import sentences_in

    name = _prefix(folder, split, lang)
    counts = {code: sentences_in(folder / f"{name}.{code}.idx") for code in (lang, PIVOT)}
    if len(set(counts.values())) > 1:
        raise CorpusError(
            "the two sides of a set are not parallel",
            where=folder / name,
            got=", ".join(f"{code}: {count} sentences" for code, count in counts.items()),
            mend=_MEND,
        )
    return counts[lang]


def _link(link: Path, target: Path) -> None:
    if link.is_symlink() or not link.exists():
        with atomic_path(link) as temporary:
            temporary.symlink_to(target, target_is_directory=True)
    elif not os.path.samefile(link, target):
        raise CorpusError("a built shard is in the way", where=link, mend="name another --output")


def _write_sample(folder: Path, langs: Sequence[str], raw: Path) -> None:
    from neuron_spec.corpora.binarize import decoded

    for lang in langs:
        name = _prefix(folder, TRAIN, lang)
        for code in (lang, PIVOT):
            lines = islice(
                decoded(folder / f"{name}.{code}", folder / f"dict.{code}.txt"), LINES_PER_LANGUAGE
            )
            write_text(raw / f"{TRAIN}.{lang}-{PIVOT}.{code}", "".join(f"{line}\n" for line in lines))
