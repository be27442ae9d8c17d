"""A fairseq data-bin made by others: looked into, checked, and given a card, so that every stage works on it.

Nothing is copied and nothing is written into it: ``output/data-bin`` holds links, beside ``langs.txt`` and
``lang_pairs.txt``.
"""

from __future__ import annotations

import re
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neuron_spec.artifacts import (
    SIGNATURE,
    claim,
    completed,
    hash_file,
    hash_text,
    signature,
    write_link,
)
from neuron_spec.backends.fairseq.data_bin import check_complete, read_dictionary, shards_of
from neuron_spec.corpora.build import (
    SPLITS,
    TEST,
    TRAIN,
    VALID,
    Description,
    is_built,
    write_card,
    write_raw,
)
from neuron_spec.corpora.checks import require_distinct, require_equal
from neuron_spec.directions import Direction, parse_directions
from neuron_spec.errors import ArtifactError, CorpusError, some
from neuron_spec.languages import is_code, require_fairseq_codes
from neuron_spec.scoring.language_id import LINES_PER_LANGUAGE

if TYPE_CHECKING:
    from fairseq.data import Dictionary

_SET = re.compile(r"(?P<split>[^.]+)\.(?P<source>[^.-]+)-(?P<target>[^.-]+)\.(?P<side>[^.]+)\.(?:idx|bin)")
_DICTIONARY = re.compile(r"dict\.(?P<code>[^.]+)\.txt")
_MEND = "binarize the set again with fairseq-preprocess, or leave its pair out with --lang-pairs"
MANY_UNKNOWN = 0.05  # a fraction of a language's pieces
_UNKNOWN = 3  # of fairseq's dictionaries, after <s>, <pad> and </s>
_OURS = {"langs.txt", "lang_pairs.txt"}  # written anew


@dataclass(frozen=True)
class DataBin:
    """What a data-bin holds, checked.

    Attributes:
        folders: its shards, or itself.
        langs: with a dictionary, and in a pair.
        directions: those to be trained.
        pairs: split -> pair, as its files are named -> number of sentences.
        dictionary: sha256 of the one that all languages share.
        symbols: what it holds.
        unknown: language -> fraction of unknown pieces.
        data: split -> hash of its data files, in all shards.
    """

    path: Path
    folders: Sequence[Path]
    langs: Sequence[str]
    directions: Sequence[Direction]
    pairs: Mapping[str, Mapping[Direction, int]]
    dictionary: str
    symbols: Dictionary
    unknown: Mapping[str, float]
    data: Mapping[str, str]

    def dictionary_file(self, code: str) -> Path:
        return self.folders[0] / f"dict.{code}.txt"


def look_into(
    data_bin: Path, *, langs: Sequence[str] | None = None, lang_pairs: str | None = None
) -> DataBin:
    """Find a data-bin's dictionaries, pairs and sets, and check them.

    Args:
        langs: all languages in their order; None: as their codes are sorted.
        lang_pairs: the directions that matter; None: all trained pairs, both ways.

    Raises:
        CorpusError: if it is none, dictionaries are missing or differ, a side of a set is missing, cut short or of
            another number of sentences, a pair is there in both orders, or one that is asked for in neither.
        ArtifactError: if a file is damaged, or a Git-LFS pointer.
        DirectionError: if ``lang_pairs`` is malformed.
    """
    shards = shards_of(data_bin)
    if beyond := [path.name for path in data_bin.glob("shard[0-9]*") if path.is_dir() and path not in shards]:
        raise ArtifactError(
            "a data-bin that lacks a shard",
            where=data_bin,
            got=", ".join(sorted(beyond)),
            expected=f"shard{len(shards)} before it: fairseq counts from shard0",
        )
    folders = shards or [data_bin]
    found = {folder: _sets_in(folder) for folder in folders}
    if not any(TRAIN in sets for sets in found.values()):
        raise CorpusError(
            "no data-bin with training text",
            where=data_bin,
            got=some(sorted(path.name for path in data_bin.iterdir())) if data_bin.is_dir() else "no such folder",
            expected="train.en-de.en.idx, train.en-de.en.bin, ... and dict.en.txt, or shard0 with these",
            mend="name the folder that fairseq-preprocess wrote, with mmap files (its default)",
        )  # fmt: skip
    asked = parse_directions(lang_pairs) if lang_pairs is not None else None
    trained = list(dict.fromkeys(pair for sets in found.values() for pair in sets.get(TRAIN, {})))
    codes_of = {frozenset((pair.source, pair.target)): pair for pair in trained}
    if asked and (absent := [str(d) for d in asked if frozenset((d.source, d.target)) not in codes_of]):
        raise CorpusError(
            "the data-bin has a pair in neither direction",
            where=data_bin,
            got=f"no train set of {some(absent)}",
            expected=f"some of {some([str(pair) for pair in trained], at_most=40)}",
        )
    directions = asked or [of for pair in trained for of in (pair, Direction(pair.target, pair.source))]
    wanted = {frozenset((d.source, d.target)) for d in directions}
    pairs: dict[str, dict[Direction, int]] = {}
    for split in SPLITS:
        pairs[split] = {}
        for folder, sets in found.items():
            for pair, sides in sets.get(split, {}).items():
                if frozenset((pair.source, pair.target)) in wanted:
                    number = _sentences(folder, split, pair, sides)
                    is_part = split == TRAIN and pair in pairs[split]
                    pairs[split][pair] = number + (pairs[split][pair] if is_part else 0)
        # A test set is read from the first shard that has one.
        read = found if split != TEST else {of: sets for of, sets in found.items() if split in sets}
        for pair in pairs[split]:
            _require_from_shard0(read, split, pair)
        if turned := [p for p in pairs[split] if Direction(p.target, p.source) in pairs[split]]:
            raise CorpusError(
                f"the {split} set of a pair is there twice",
                where=data_bin,
                got=f"{split}.{turned[0]} and {split}.{turned[0].target}-{turned[0].source}",
                expected="one, which serves both directions",
                mend="take one of the two away",
            )
    for split in (VALID, TEST):
        if split == TEST and not pairs[TEST]:
            continue  # translations may be of the validation set
        its = {frozenset((pair.source, pair.target)) for pair in pairs[split]}
        if absent := [str(d) for d in directions if frozenset((d.source, d.target)) not in its]:
            raise CorpusError(
                f"the data-bin lacks a {split} set",
                where=data_bin,
                got=f"none of {some(absent)}, in either order",
                expected=f"{split}.{absent[0]}.{absent[0].partition('-')[0]}.idx, for each trained pair",
                mend=f"binarize one with fairseq-preprocess --srcdict, as {split}; or name other --lang-pairs",
            )
    used = sorted({code for of in pairs.values() for pair in of for code in (pair.source, pair.target)})
    require_fairseq_codes(used)
    require_distinct(used)
    if langs and {*langs} != {*used}:
        raise CorpusError("bad --langs", got=", ".join(langs), expected=f"in some order: {', '.join(used)}")
    dictionary = _shared_dictionary(folders, used)
    symbols = read_dictionary(folders[0] / f"dict.{used[0]}.txt")
    indices = {split: list(_indices(found, split, of)) for split, of in pairs.items()}
    unknown = _unknown_fractions([of for of_split in indices.values() for of in of_split], len(symbols))
    data = {split: data_sha256(data_bin, [file for _, file in of]) for split, of in indices.items()}
    return DataBin(data_bin, folders, langs or used, directions, pairs, dictionary, symbols, unknown, data)


def _sets_in(folder: Path) -> dict[str, dict[Direction, set[str]]]:
    """Split -> pair -> the sides that are there."""
    sets: dict[str, dict[Direction, set[str]]] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if (match := _SET.fullmatch(path.name)) and all(map(is_code, match.group("source", "target"))):
            pair = Direction(match["source"], match["target"])
            if match["side"] in (pair.source, pair.target):
                sets.setdefault(match["split"], {}).setdefault(pair, set()).add(match["side"])
    return sets


def _require_from_shard0(found: Mapping[Path, Mapping[str, Any]], split: str, pair: Direction) -> None:
    """Of shards whose first is read: fairseq counts those that have a pair, and looks for it in the first so many."""
    having = [pair in sets.get(split, {}) for sets in found.values()]
    if not all(having[: sum(having)]):
        lacking = list(found)[having.index(False)]
        raise CorpusError(
            f"a shard lacks the {split} set of a pair that later ones have",
            where=lacking,
            got=f"no {split}.{pair}",
            expected=f"a pair from {next(iter(found)).name} on, without a gap, where it is looked for",
            mend=f"copy its {split} files there, or leave the pair out with --lang-pairs",
        )


def _sentences(folder: Path, split: str, pair: Direction, sides: set[str]) -> int:
    from neuron_spec.corpora.binarize import sentences_in  # fairseq, which takes seconds

    if missing := [code for code in (pair.source, pair.target) if code not in sides]:
        raise CorpusError(
            "one side of a set is missing",
            where=folder,
            got=f"no {split}.{pair}.{missing[0]}.idx",
            mend=_MEND,
        )
    indices = {code: folder / f"{split}.{pair}.{code}.idx" for code in (pair.source, pair.target)}
    counts = {code: sentences_in(index) for code, index in indices.items()}
    for index in indices.values():
        check_complete(index)
    what = "the two sides of a set are not parallel"
    return require_equal(counts, what, where=folder / f"{split}.{pair}", mend=_MEND)


def _shared_dictionary(folders: Sequence[Path], langs: Sequence[str]) -> str:
    hashes: dict[str, str] = {}
    for folder in folders:
        for file in (folder / f"dict.{code}.txt" for code in langs):
            if not file.is_file():
                there = sorted(path.name for path in folder.glob("dict*.txt"))
                raise CorpusError(
                    "the data-bin has no dictionary of a language",
                    where=folder,
                    got=f"no {file.name}, but {some(there)}",
                    mend="copy the one that all languages share to that name",
                )
            name = file.name if len(folders) == 1 else f"{folder.name}/{file.name}"
            hashes[name] = hash_file(file)
    (usual, _), *others = Counter(hashes.values()).most_common()
    if others:
        differing = [name for name, digest in hashes.items() if digest != usual]
        raise CorpusError(
            "dictionaries differ: the same number would be another piece",
            where=folders[0] if len(folders) == 1 else folders[0].parent,
            got=f"{some(differing)} beside {next(name for name, digest in hashes.items() if digest == usual)}",
            expected="one dictionary for all languages, as a model with shared embeddings has",
            mend="binarize all languages with one: fairseq-preprocess --joined-dictionary, then --srcdict and --tgtdict",
        )
    return usual


def _indices(
    found: Mapping[Path, Mapping[str, Mapping[Direction, Any]]], split: str, pairs: Iterable[Direction]
) -> Iterator[tuple[str, Path]]:
    """Language and index of every data file of a split, in all shards."""
    for folder, sets in found.items():
        for pair in pairs:
            for code in (pair.source, pair.target) if pair in sets.get(split, {}) else ():
                yield code, folder / f"{split}.{pair}.{code}.idx"


def data_sha256(data_bin: Path, indices: Iterable[Path]) -> str:
    """Hash of the data files of these indices, and of where they lie below the data-bin."""
    files = sorted(file for index in indices for file in (index, index.with_suffix(".bin")))
    return hash_text(*(f"{file.relative_to(data_bin)} {hash_file(file)}" for file in files))


def _unknown_fractions(indices: Iterable[tuple[str, Path]], symbols: int) -> dict[str, float]:
    """Of every language's pieces, in all sets.

    Args:
        indices: as of `_indices`.

    Raises:
        CorpusError: if there is a piece that the dictionary does not have.
    """
    from neuron_spec.corpora.binarize import ids_in

    totals, unknown = Counter[str](), Counter[str]()
    for code, file in indices:
        for ids in ids_in(file):
            if (largest := int(ids.max())) >= symbols:
                raise CorpusError(
                    "a data file has pieces that its dictionary does not have",
                    where=file,
                    got=f"number {largest}",
                    expected=f"less than {symbols}",
                    mend="put the dictionary there that it was binarized with, or binarize it again",
                )
            totals[code] += len(ids)
            unknown[code] += int((ids == _UNKNOWN).sum())
    return {code: unknown[code] / max(1, total) for code, total in totals.items()}


def adopt(found: DataBin, output: Path, *, families: Mapping[str, str], notes: Mapping[str, Any]) -> None:
    """Write ``data-bin/`` of links, ``raw/`` and, last, ``corpus.json`` below ``output``.

    ``raw/`` gets the first training lines of each pair, decoded, from which languages are told apart in translations.

    Raises:
        CorpusError: if something that is no link is in the way.
        ArtifactError: if ``output`` holds another corpus, or one begun of another data-bin.
    """
    pairs = {split: {str(pair): number for pair, number in of.items()} for split, of in found.pairs.items()}
    parameters = {
        "corpus": "existing",
        "langs": list(found.langs),
        "lang_pairs": list(map(str, found.directions)),
        "shards": len(found.folders),
        "dictionary": found.dictionary,
        "pairs": pairs,
        "data": dict(found.data),
        "families": dict(families),
        **notes,
    }
    data_bin = output / "data-bin"
    if is_built(output, parameters):
        _link({link: place for link, place in _links(found, data_bin) if not link.exists()})  # it was moved
        return
    if data_bin.resolve() == found.path.resolve():
        raise CorpusError(
            "the data-bin cannot be adopted where it is",
            where=found.path,
            mend="name an --output that does not hold it; it will have links, and takes no room",
        )
    work = output / "work"
    wanted = signature("data", inputs={}, parameters=parameters)
    is_begun = completed(work / SIGNATURE, wanted, what="begun corpus", where=work, quiet=True)
    links = dict(_links(found, data_bin))
    for link in links:
        if not link.is_symlink() and link.exists():
            raise CorpusError("a file is in the way of a link", where=link, mend="name another --output")
    if not is_begun:
        claim(work / SIGNATURE, wanted, what="begun corpus", where=work)
    _link(links)
    symbols, joining = _joining(found)
    corpus = Description(
        name=found.path.resolve().name,
        sources=[{"name": f"a data-bin made elsewhere: {found.path.resolve().name}", "licence": "not known here"}],
        families=families,
        notes={
            "shards": len(found.folders),
            "dictionary_sha256": found.dictionary,
            "unknown_percent": {code: round(100 * of, 2) for code, of in found.unknown.items()},
            "held_out": "as the data-bin has it; whether training text has it too is not known here",
            "raw_train": f"up to {LINES_PER_LANGUAGE} training pairs of each pair, decoded, for language identification"
            if joining
            else "none: how the dictionary's pieces are joined to words is not known",
            **notes,
        },
    )  # fmt: skip
    if joining:
        for pair in found.pairs[TRAIN]:
            first = {TRAIN: {pair.source: list(_first_pairs(found, pair, joining))}}
            write_raw(first, output / "raw", other=pair.target)
    write_card(
        output,
        corpus,
        langs=found.langs,
        lang_pairs=list(map(str, found.directions)),
        pairs=pairs,
        vocabulary={"model": joining or "not known", "size": symbols, "learned_on": "not known here"},
        hashes={},
        parameters=parameters,
    )
    shutil.rmtree(work)


def _link(links: Mapping[Path, Path]) -> None:
    for link, place in links.items():
        write_link(link, place)


def _links(found: DataBin, data_bin: Path) -> Iterator[tuple[Path, Path]]:
    """Link and place of every shard, or of every file."""
    if found.folders != [found.path]:
        yield from ((data_bin / folder.name, folder) for folder in found.folders)
        return
    for path in sorted(found.path.iterdir()):
        if path.is_file() and path.name not in _OURS:
            yield data_bin / path.name, path


def _joining(found: DataBin) -> tuple[int, str | None]:
    """How many symbols the dictionary has, and how they are joined to words, by fairseq's name."""
    from neuron_spec.backends.fairseq.data_bin import joining_of

    symbols = found.symbols.symbols[found.symbols.nspecial :]
    try:
        return len(symbols), joining_of(symbols, found.dictionary_file(found.langs[0]))
    except ArtifactError:
        return len(symbols), None


def _first_pairs(found: DataBin, pair: Direction, joining: str) -> Iterator[tuple[str, str]]:
    """Training pairs, decoded."""
    from neuron_spec.corpora.binarize import decoded

    folder = next(of for of in found.folders if (of / f"{TRAIN}.{pair}.{pair.source}.idx").is_file())
    sides = (
        decoded(folder / f"{TRAIN}.{pair}.{code}", found.dictionary_file(code), joining)
        for code in (pair.source, pair.target)
    )
    yield from islice(zip(*sides, strict=True), LINES_PER_LANGUAGE)
