"""A user's own parallel text, of any pairs: cleaned, split without leaking, to a data-bin, in bounded memory, resumable.

The text is read line by line, several times: checked, and held-out sentences drawn; sampled for the pieces; cleaned,
encoded and written. A pair is the unit of work: its record lies in ``work/parts`` once it is done, and a killed build
goes on with the pairs that have none.
"""

from __future__ import annotations

import heapq
import random
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import Any

import sentencepiece

from neuron_spec.artifacts import (
    SIGNATURE,
    atomic_path,
    completed,
    hash_file,
    read_json,
    signature,
    write_json,
)
from neuron_spec.corpora.build import (
    TEST,
    TRAIN,
    VALID,
    Description,
    Pairs,
    is_built,
    load_pieces,
    write_card,
    write_dictionaries,
    write_pieces,
    write_raw,
)
from neuron_spec.corpora.checks import check_disk, fault_of_pair, fault_of_text, normalize, some
from neuron_spec.corpora.ec30_plain import (
    PIECES_SAMPLE,
    PIECES_TEMPERATURE,
    fault_of_pieces,
    sentences_to_sample,
)
from neuron_spec.corpora.parallel_files import ParallelFiles
from neuron_spec.corpora.sharding import in_processes, report_progress
from neuron_spec.corpora.splitting import NEAR_DUPLICATE, HeldOutTexts
from neuron_spec.directions import Direction
from neuron_spec.errors import CorpusError
from neuron_spec.languages import is_english
from neuron_spec.scoring.language_id import LINES_PER_LANGUAGE

DEFAULT_HELD_OUT = 1000  # lines of a pair for each set, and no more than
_LARGEST_HELD_OUT_FRACTION = 0.05  # of its lines
# A sentence that is tested on has as many characters; shorter ones resemble too much.
LEAST_HELD_OUT_CHARACTERS = 10
_MOST_UNKNOWN_FRACTION = 0.05  # of a given model's pieces
_PAIRS_AT_ONCE = 5000
_INDEX_BYTES = 24  # of a pair
_BYTES_PER_CHARACTER = 2  # of the data-bin, at most: no piece is shorter than a character

HeldOut = dict[str, dict[Direction, Pairs]]  # split -> pair -> (source, target)


@dataclass(frozen=True)
class OwnText:
    """What a user names, checked: pairs and languages fit together.

    Attributes:
        train, valid, test: files; None: held out from training.
        pivot: the language that stands in most pairs, as English mostly does; None where none is to.
    """

    train: Sequence[ParallelFiles]
    valid: Sequence[ParallelFiles] | None = None
    test: Sequence[ParallelFiles] | None = None
    pivot: str | None = None

    def __post_init__(self) -> None:
        trained = {frozenset(files.codes): files.pair for files in self.train}
        spellings: dict[str, str] = {}
        for code in self.langs:
            if (other := spellings.setdefault(code.casefold(), code)) != code:
                raise CorpusError(
                    "two codes differ in capitals alone",
                    got=f"{other} and {code}",
                    mend="write one language the same way everywhere; another language needs another code",
                )
        if self.pivot is not None and self.pivot not in self.langs:
            raise CorpusError("no such language", got=f"--pivot {self.pivot}", expected=", ".join(self.langs))
        for name, of_set in self.given.items():
            held_out = {frozenset(files.codes): files.pair for files in of_set}
            if absent := [str(pair) for codes, pair in trained.items() if codes not in held_out]:
                raise CorpusError(
                    f"--{name} lacks a pair that is trained",
                    got=f"no {some(absent)}",
                    expected="every pair of --train, in either order",
                    mend=f"name its files too, or leave --{name} out: then it is held out from training",
                )
            if unknown := sorted({code for pair in held_out for code in pair} - {*self.langs}):
                raise CorpusError(f"--{name} has a language that is not trained", got=some(unknown))

    @property
    def given(self) -> dict[str, Sequence[ParallelFiles]]:
        """Split -> files, of the held-out sets that are not to be drawn."""
        return {name: files for name, files in ((TEST, self.test), (VALID, self.valid)) if files is not None}

    @property
    def pairs(self) -> list[Direction]:
        return [files.pair for files in self.train]

    @property
    def langs(self) -> list[str]:
        """The pivot or English first, then as the pairs name them."""
        codes = dict.fromkeys(code for files in self.train for code in files.codes)
        return sorted(codes, key=lambda code: not (code == self.pivot if self.pivot else is_english(code)))

    def key_side(self, pair: Direction) -> int:
        """The side by which pairs are drawn and compared: the pivot's, English, or the language of most pairs."""
        counts = Counter(code for files in self.train for code in files.codes)
        codes = (pair.source, pair.target)
        ranks = [(code == self.pivot, is_english(code), counts[code]) for code in codes]
        return int(ranks[1] > ranks[0])


def build(
    text: OwnText,
    output: Path,
    *,
    families: Mapping[str, str],
    sizes: Mapping[str, int | None],
    vocab_size: int,
    workers: int,
    shards: int = 1,
    seed: int = 1,
    sentencepiece_model: Path | None = None,
    notes: Mapping[str, Any],
) -> None:
    """Write ``raw/``, ``spm/``, ``data-bin/`` (``data-bin/shardN/`` of several) and, last, ``corpus.json``.

    Args:
        families: language -> family, of all.
        sizes: lines of each set that is held out from training; None: 1,000, or 5 % of a smaller pair.
        notes: what else the card is to say.

    Raises:
        CorpusError: if files cannot be read, are not parallel, or leave a pair without text, or a given model does
            not know the text; before anything is written.
        ArtifactError: if ``output`` holds another corpus, or one begun with other settings.
    """
    files = {TRAIN: text.train, **text.given}
    parameters = {
        "corpus": "text",
        **{split: {str(of.pair): list(map(hash_file, of.paths)) for of in all_of} for split, all_of in files.items()},
        "sizes": {split: size for split, size in sizes.items() if split not in text.given},
        "seed": seed,
        "shards": shards,
        "vocab_size": vocab_size,
        "sentencepiece": hash_file(sentencepiece_model) if sentencepiece_model else None,
        "families": dict(families),
        **notes,
    }  # fmt: skip
    if is_built(output, parameters):
        return
    work = output / "work"
    wanted = signature("data", inputs={}, parameters=parameters)
    is_begun = completed(work / SIGNATURE, wanted, what="begun corpus", where=work, quiet=True)
    held_out, blank = _read_held_out(text)
    scans = _scan(text, sizes, seed, workers)
    _draw(text, scans, sizes, held_out)
    if sentencepiece_model:
        _require_known_text(load_pieces(sentencepiece_model), held_out, sentencepiece_model)
    characters, lines = (sum(of[name] for of in scans.values()) for name in ("characters", "lines"))
    with _leaves_nothing_if_refused(output):
        if not is_begun:
            check_disk(output, _BYTES_PER_CHARACTER * characters + _INDEX_BYTES * lines + 2**23)
            write_json(work / SIGNATURE, wanted)
        for left in output.rglob(".*.tmp"):  # of workers that were killed
            left.unlink()

        cleaner = _Cleaner(text, held_out)
        raw, data_bin = output / "raw", output / "data-bin"
        hashes: dict[str, str] = {}
        for split, of_pairs in held_out.items():
            for pair, of_pair in of_pairs.items():
                hashes |= write_raw({split: {pair.source: of_pair}}, raw, other=pair.target)
        for of in text.train:
            fit = list(islice((pair for *pair, fault in cleaner.of(of) if fault is None), LINES_PER_LANGUAGE))
            write_raw({TRAIN: {of.pair.source: [(s, t) for s, t in fit]}}, raw, other=of.pair.target)
        processor, vocabulary = write_pieces(
            output,
            _sample(text, cleaner, {pair: of["lines"] for pair, of in scans.items()}, seed, workers, work / "sample"),
            vocab_size,
            given=sentencepiece_model,
            learned_on=f"at most {PIECES_SAMPLE:,} training sentences at temperature {PIECES_TEMPERATURE}",
            keep=True,
        )  # fmt: skip
        folders = [data_bin / f"shard{shard}" for shard in range(shards)] if shards > 1 else [data_bin]
        for folder in folders:
            write_dictionaries(processor, text.langs, folder)
        from neuron_spec.corpora.binarize import binarize  # fairseq, which takes seconds, after all checks

        binarize(raw, hashes, processor, folders[0])
        # fairseq looks for validation sets in every shard.
        for file in folders[0].glob(f"{VALID}.*"):
            for folder in folders[1:]:
                shutil.copyfile(file, folder / file.name)

        largest_first = sorted(text.train, key=lambda of: -scans[of.pair]["lines"])
        records = {
            of.pair: record
            for of, record in in_processes(
                _PairBinarizer(cleaner, processor, folders, work / "parts"),
                largest_first,
                workers=workers,
                lines=lines,
                description="encode and binarize",
            )
        }
        corpus = Description(
            name="own text",
            sources=[
                {
                    "name": f"{split}, {of.pair}: {', '.join(path.name for path in of.paths)}",
                    "sha256": ", ".join(parameters[split][str(of.pair)]),
                    "licence": "that of the text, as its owner knows",
                }
                for split, all_of in files.items()
                for of in all_of
            ],
            families=families,
            cleaning={str(pair): dict(sorted(records[pair]["dropped"].items())) for pair in text.pairs},
            leak=cleaner.leak_report(records),
            notes={
                "shards": shards,
                "lines_read": {str(pair): scans[pair]["lines"] for pair in text.pairs},
                "blank_lines_dropped_of_given_sets": blank,
                "held_out": {split: "given" if split in text.given else "drawn from training" for split in held_out},
                "raw_train": f"up to {LINES_PER_LANGUAGE} training pairs of each pair, for language identification",
                **notes,
            },
        )  # fmt: skip
        write_card(
            output,
            corpus,
            langs=text.langs,
            lang_pairs=[str(direction) for pair in text.pairs for direction in both_ways(pair)],
            pairs={
                TRAIN: {str(pair): records[pair]["kept"] for pair in text.pairs},
                **{
                    split: {str(pair): len(of_pair) for pair, of_pair in held_out[split].items()}
                    for split in (VALID, TEST)
                },
            },
            vocabulary=vocabulary,
            hashes=hashes,
            parameters=parameters,
        )
        shutil.rmtree(work)


@contextmanager
def _leaves_nothing_if_refused(output: Path) -> Iterator[None]:
    """What turns out to be bad input only halfway, such as a vocabulary too large, leaves ``output`` as it was."""
    before = {*output.iterdir()} if output.is_dir() else None
    try:
        yield
    except CorpusError:
        for path in {*output.iterdir()} - (before or set()) if output.is_dir() else ():
            shutil.rmtree(path)
        if before is None and output.is_dir():
            output.rmdir()
        raise


def both_ways(pair: Direction) -> tuple[Direction, Direction]:
    return pair, Direction(pair.target, pair.source)


# ------------------------------------------------------------------ held-out sets


def _read_held_out(text: OwnText) -> tuple[HeldOut, dict[str, int]]:
    """The given sets, blank lines dropped pairwise; how many those were."""
    held_out: HeldOut = {}
    blank: Counter[str] = Counter()
    for split, files in text.given.items():
        held_out[split] = {}
        for of in files:
            lines = [(normalize(source), normalize(target)) for source, target in of.lines()]
            kept = [pair for pair in lines if all(pair)]
            if not kept:
                raise CorpusError(f"no line of {split} has text on both sides", where=of.paths[0])
            if len(kept) < len(lines):
                blank[f"{split} {of.pair}"] = len(lines) - len(kept)
            held_out[split][of.pair] = kept
    return held_out, dict(blank)


class _Smallest:
    """The lines with the smallest keys, at most ``size`` of different keys, in no more memory."""

    def __init__(self, size: int) -> None:
        self._size, self._heap = size, list[tuple[int, str, str]]()
        self._keys: set[int] = set()

    def wants(self, key: int) -> bool:
        return key not in self._keys and (len(self._heap) < self._size or key < -self._heap[0][0])

    def add(self, key: int, source: str, target: str) -> None:
        self._keys.add(key)
        heapq.heappush(self._heap, (-key, source, target))
        if len(self._heap) > self._size:
            self._keys.remove(-heapq.heappop(self._heap)[0])

    def in_order(self) -> list[tuple[str, str]]:
        return [(source, target) for _, source, target in sorted(self._heap, reverse=True)]


def _scan(
    text: OwnText, sizes: Mapping[str, int | None], seed: int, workers: int
) -> dict[Direction, dict[str, Any]]:
    """Read all training text once: its ``lines``, its ``characters``, and more lines than are to be held out.

    Those come in a shuffled order that depends on the seed and the sentence on the key side alone, and so does whether
    it may be tested or validated on: pairs that share sentences hold out the same ones.
    """

    def of_pair(files: ParallelFiles) -> dict[str, Any]:
        asked = {split: sizes[split] or DEFAULT_HELD_OUT for split in (TEST, VALID)}
        found = {split: _Smallest(2 * size + 100) for split, size in asked.items() if split not in text.given}
        side, lines, characters = text.key_side(files.pair), 0, 0
        for lines, pair in enumerate(files.lines(), start=1):
            characters += len(pair[0]) + len(pair[1])
            if found and len(pair[side]) >= LEAST_HELD_OUT_CHARACTERS:
                key = _shuffle_number(seed, normalize(pair[side]))
                drawn = found.get(TEST if key % 2 else VALID)
                if drawn and drawn.wants(key):
                    source, target = map(normalize, pair)
                    shortest = min(len(source), len(target))
                    if shortest >= LEAST_HELD_OUT_CHARACTERS and not _fault_of(source, target):
                        drawn.add(key, source, target)
            if lines % _PAIRS_AT_ONCE == 0:
                report_progress(_PAIRS_AT_ONCE)
        report_progress(lines % _PAIRS_AT_ONCE)
        return {
            "lines": lines,
            "characters": characters,
            **{split: of_split.in_order() for split, of_split in found.items()},
        }

    results = in_processes(of_pair, text.train, workers=workers, lines=0, description="check text")
    scans = {files.pair: scan for files, scan in results}
    return {pair: scans[pair] for pair in text.pairs}


def _shuffle_number(seed: int, text: str) -> int:
    return int.from_bytes(blake2b(f"{seed}\0{text}".encode(), digest_size=8).digest(), "big")


def _draw(
    text: OwnText,
    scans: Mapping[Direction, Mapping[str, Any]],
    sizes: Mapping[str, int | None],
    held_out: HeldOut,
) -> None:
    """Add the sets that are held out from training to ``held_out``; none resembles what is in it already.

    Raises:
        CorpusError: if a pair has too few sentences for them.
    """
    for split in (TEST, VALID):
        if split in text.given:
            continue
        known = _HeldOutSentences(text, held_out)
        chosen: dict[Direction, Pairs] = {}
        for pair in text.pairs:
            size = sizes[split]
            wanted = size or max(
                1, min(DEFAULT_HELD_OUT, int(_LARGEST_HELD_OUT_FRACTION * scans[pair]["lines"]))
            )
            candidates = (of for of in scans[pair][split] if known.fault_of(pair, *of) is None)
            chosen[pair] = list(islice(candidates, wanted))
            if len(chosen[pair]) < (size or 1):
                raise CorpusError(
                    f"too few sentences to hold out for {split}",
                    where=str(pair),
                    got=f"{len(chosen[pair])} that are clean, of {LEAST_HELD_OUT_CHARACTERS} characters or more on "
                    f"both sides, and unlike the other held-out ones; of {scans[pair]['lines']} lines",
                    expected=size or 1,
                    mend=f"ask for a smaller --{split}-size, or give files: --{split}",
                )
        held_out[split] = chosen


def _fault_of(source: str, target: str) -> str | None:
    return fault_of_text(source) or fault_of_text(target) or fault_of_pair(source, target)


class _HeldOutSentences:
    """Why a pair may not be trained on, or held out too: a side of it is held out, or it resembles one that is."""

    def __init__(self, text: OwnText, held_out: HeldOut) -> None:
        self._key_side = {pair: text.key_side(pair) for of in held_out.values() for pair in of}
        self._key_side |= {pair: text.key_side(pair) for pair in text.pairs}
        by_lang: dict[str, dict[str, str]] = defaultdict(dict)  # language -> sentence -> its first set
        key_texts: dict[str, dict[str, str]] = defaultdict(dict)  # the same of key sides
        for split, of_pairs in held_out.items():
            for pair, lines in of_pairs.items():
                for side, code in enumerate((pair.source, pair.target)):
                    for line in lines:
                        by_lang[code].setdefault(line[side].casefold(), split)
                        if side == self._key_side[pair]:
                            key_texts[code].setdefault(line[side].casefold(), split)
        self._splits = dict(by_lang)
        self.key_texts = dict(key_texts)
        self._resembling = {
            code: HeldOutTexts(by_lang[code])
            for code in {(pair.source, pair.target)[side] for pair, side in self._key_side.items()}
            if code in by_lang
        }
        self._texts = {code: list(by_lang[code]) for code in self._resembling}

    def fault_of(
        self, pair: Direction, source: str, target: str, found: Mapping[str, Counter[str]] | None = None
    ) -> str | None:
        """Args: found: counts the held-out sentences on the key side that are ``identical`` or ``near``."""
        sides = source.casefold(), target.casefold()
        key_side = self._key_side[pair]
        fault = None
        for side, code in enumerate((pair.source, pair.target)):
            if split := self._splits.get(code, {}).get(sides[side]):
                fault = fault or f"{('source', 'target')[side]} of a {split} sentence"
                if side == key_side and found is not None:
                    found["identical"][sides[side]] += 1
        code = (pair.source, pair.target)[key_side]
        if fault or code not in self._resembling:
            return fault
        if resembled := self._resembling[code].resembled_by(sides[key_side]):
            if found is not None:
                found["near"].update(self._texts[code][number] for number in resembled)
            return "near duplicate of a held-out sentence"
        return None


def _require_known_text(
    processor: sentencepiece.SentencePieceProcessor, held_out: HeldOut, model: Path
) -> None:
    """Raises: CorpusError if a given model does not know a language's characters."""
    texts: dict[str, list[str]] = defaultdict(list)
    for of_pairs in held_out.values():
        for pair, lines in of_pairs.items():
            texts[pair.source] += [source for source, _ in lines]
            texts[pair.target] += [target for _, target in lines]
    fractions = {}
    for code, of_code in texts.items():
        pieces = [piece for ids in processor.encode(of_code) for piece in ids]
        strange = sum(processor.is_unknown(piece) or processor.is_byte(piece) for piece in pieces)
        fractions[code] = strange / max(1, len(pieces))
    if unknown := {code: of for code, of in fractions.items() if of > _MOST_UNKNOWN_FRACTION}:
        raise CorpusError(
            "the SentencePiece model is of other text: it lacks characters",
            where=model,
            got=", ".join(f"{100 * of:.0f} % of the pieces of {code}" for code, of in unknown.items())
            + " are unknown or single bytes",
            expected=f"{100 * _MOST_UNKNOWN_FRACTION:.0f} % at most",
            mend="name the model of these languages, or leave --sentencepiece out to learn one",
        )


# ------------------------------------------------------------------ training text


class _Cleaner:
    """The training pairs of a file, normalised, with the reason why one is unfit."""

    def __init__(self, text: OwnText, held_out: HeldOut) -> None:
        self._text, self._held_out = text, held_out
        self._sentences = _HeldOutSentences(text, held_out)

    def of(
        self, files: ParallelFiles, found: Mapping[str, Counter[str]] | None = None
    ) -> Iterator[tuple[str, str, str | None]]:
        """Source, target and fault of each line.

        Args:
            found: as `_HeldOutSentences.fault_of` takes it.
        """
        for source, target in files.lines():
            source, target = normalize(source), normalize(target)
            fault = _fault_of(source, target) or self._sentences.fault_of(files.pair, source, target, found)
            yield source, target, fault

    def leak_report(self, records: Mapping[Direction, Mapping[str, Any]]) -> dict[str, Any]:
        """What of the held-out sentences the training text had again, before it was dropped there."""
        report: dict[str, Any] = {
            "similarity": "character-4-gram Jaccard on the side of the pivot, English, or the language of most "
            "pairs; every training pair was compared"
        }
        found: dict[str, Counter[tuple[str, str]]] = {"identical": Counter(), "near": Counter()}
        for pair, record in records.items():
            code = (pair.source, pair.target)[self._text.key_side(pair)]
            for kind, counts in found.items():
                counts.update({(code, line): count for line, count in record[kind].items()})
        for split, of_pairs in self._held_out.items():
            own = Counter[tuple[str, str]]()
            for pair, lines in of_pairs.items():
                side = self._text.key_side(pair)
                own.update(((pair.source, pair.target)[side], line[side].casefold()) for line in lines)
            # A line that was drawn stands in the training text itself.
            drawn = Counter[tuple[str, str]]() if split in self._text.given else own
            identical = sum(found["identical"][key] > drawn[key] for key in own)
            alike = sum(found["near"][key] > 0 or found["identical"][key] > drawn[key] for key in own)
            report[f"{split}, before it was dropped"] = {
                "percent_identical": _percent(identical, len(own)),
                f"percent_with_near_duplicate_at_{NEAR_DUPLICATE}": _percent(alike, len(own)),
            }
        measures = ("percent_identical", f"percent_with_near_duplicate_at_{NEAR_DUPLICATE}")
        report["as built"] = dict.fromkeys(measures, 0.0)  # all that was found is dropped
        return report


def _percent(part: int, whole: int) -> float:
    return round(100 * part / max(1, whole), 2)


def _sample(
    text: OwnText,
    cleaner: _Cleaner,
    lines: Mapping[Direction, int],
    seed: int,
    workers: int,
    folder: Path,
) -> Iterator[str]:
    """The sentences that the pieces are learnt on; a file in ``folder`` keeps those of each pair."""
    totals: Counter[str] = Counter()
    for pair, count in lines.items():
        totals.update({pair.source: count, pair.target: count})
    shares = sentences_to_sample(totals)

    def write_sample(files: ParallelFiles) -> None:
        rng = random.Random(f"pieces {seed} {files.pair}")
        chances = [shares[code] / totals[code] for code in files.codes]
        with (
            atomic_path(folder / f"{files.pair}.txt") as temporary,
            temporary.open("w", encoding="utf-8") as file,
        ):
            for *sides, fault in cleaner.of(files):
                drawn = [rng.random() < chance for chance in chances]
                if fault is None:
                    file.writelines(
                        f"{side}\n" for side, is_drawn in zip(sides, drawn, strict=True) if is_drawn
                    )
        report_progress(lines[files.pair])

    waiting = [files for files in text.train if not (folder / f"{files.pair}.txt").is_file()]
    total = sum(lines[files.pair] for files in waiting)
    list(in_processes(write_sample, waiting, workers=workers, lines=total, description="sample sentences"))
    for files in text.train:
        with (folder / f"{files.pair}.txt").open(encoding="utf-8") as file:
            yield from (line.rstrip("\n") for line in file)


class _PairBinarizer:
    """Cleans, encodes and writes one pair, a batch to each shard in turn; called in the worker processes."""

    def __init__(
        self,
        cleaner: _Cleaner,
        processor: sentencepiece.SentencePieceProcessor,
        folders: Sequence[Path],
        records: Path,
    ) -> None:
        from neuron_spec.corpora.binarize import piece_ids

        self.cleaner, self.processor, self.folders, self.records = cleaner, processor, folders, records
        self.ids = piece_ids(processor, next(folders[0].glob("dict.*.txt")))

    def __call__(self, files: ParallelFiles) -> dict[str, Any]:
        """``kept``, how many each rule ``dropped``, and the held-out sentences found ``identical`` or ``near``."""
        path = self.records / f"{files.pair}.json"
        if path.is_file():
            record: dict[str, Any] = read_json(path, "record of a pair")
            report_progress(record["kept"] + sum(record["dropped"].values()))
            return record
        record = self._write(files)
        if record["kept"] < len(self.folders):
            raise CorpusError(
                "a pair without a fit line for every shard" if len(self.folders) > 1 else "a pair without a fit line",
                where=str(files.pair),
                got=record["dropped"],
                mend="look at its lines, or leave it out",
            )  # fmt: skip
        write_json(path, record)
        return record

    def _write(self, files: ParallelFiles) -> dict[str, Any]:
        from neuron_spec.corpora.binarize import writer_of

        dropped: Counter[str] = Counter()
        found: dict[str, Counter[str]] = {"identical": Counter(), "near": Counter()}
        kept = 0
        with ExitStack() as stack:
            writers = [
                [
                    stack.enter_context(writer_of(folder / f"{TRAIN}.{files.pair}.{code}", self.ids))
                    for code in files.codes
                ]
                for folder in self.folders
            ]
            lines = self.cleaner.of(files, found)
            while batch := list(islice(lines, _PAIRS_AT_ONCE)):
                dropped.update(fault for *_, fault in batch if fault)
                fit = self._encoded(
                    [(source, target) for source, target, fault in batch if fault is None], dropped
                )
                # Neighbours come into different shards, so that all are alike.
                for shard, of_shard in enumerate(writers):
                    mine = fit[(shard - kept) % len(writers) :: len(writers)]
                    for side, writer in enumerate(of_shard):
                        writer.add_sentences([pair[side] for pair in mine])
                kept += len(fit)
                report_progress(len(batch))  # fmt: skip
        return {"kept": kept, "dropped": dropped, **found}

    def _encoded(self, pairs: Pairs, dropped: Counter[str]) -> list[tuple[list[int], list[int]]]:
        sides: Iterable[tuple[list[int], list[int]]] = zip(
            *(self.processor.encode([pair[side] for pair in pairs]) for side in (0, 1)), strict=True
        )
        fit = []
        for source, target in sides:
            if fault := fault_of_pieces(len(source), len(target)):
                dropped[fault] += 1
            else:
                fit.append((source, target))
        return fit
