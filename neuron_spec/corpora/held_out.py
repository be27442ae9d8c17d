"""A user's own parallel text and what of it is held out: given, or drawn by a hash of the sentence, so that pairs which
share sentences hold out the same ones."""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import Any

import sentencepiece

from neuron_spec.corpora.build import TEST, TRAIN, VALID, Pairs
from neuron_spec.corpora.checks import fault_of_pair, fault_of_text, normalize, require_distinct
from neuron_spec.corpora.parallel_files import ParallelFiles
from neuron_spec.corpora.sharding import in_processes, report_progress
from neuron_spec.corpora.splitting import HeldOutTexts
from neuron_spec.directions import Direction
from neuron_spec.errors import CorpusError, some
from neuron_spec.languages import is_english

DEFAULT_HELD_OUT = 1000  # lines of a pair for each set, and no more than
_LARGEST_HELD_OUT_FRACTION = 0.05  # of its lines
# A sentence that is tested on has as many characters; shorter ones resemble too much.
LEAST_HELD_OUT_CHARACTERS = 10
_MOST_UNKNOWN_FRACTION = 0.05  # of a given model's pieces
PAIRS_AT_ONCE = 5000

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
        require_distinct(self.langs)
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
        named: dict[Path, str] = {}
        for name, of_set in {TRAIN: self.train, **self.given}.items():
            for path in {path.resolve() for files in of_set for path in files.paths}:
                if path in named:
                    raise CorpusError(
                        "a file of two sets: text that is tested on is neither trained nor chosen by",
                        where=path,
                        got=f"--{named[path]} and --{name}",
                        mend=f"name other files, or leave --{name} out: then it is held out from training",
                    )
                named[path] = name

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


def read_held_out(text: OwnText) -> tuple[HeldOut, dict[str, int]]:
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


def scan(
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
                    if shortest >= LEAST_HELD_OUT_CHARACTERS and not fault_of(source, target):
                        drawn.add(key, source, target)
            if lines % PAIRS_AT_ONCE == 0:
                report_progress(PAIRS_AT_ONCE)
        report_progress(lines % PAIRS_AT_ONCE)
        return {
            "lines": lines,
            "characters": characters,
            **{split: of_split.in_order() for split, of_split in found.items()},
        }

    results = in_processes(of_pair, text.train, workers=workers, lines=0, description="check text")
    scans = {files.pair: found for files, found in results}
    return {pair: scans[pair] for pair in text.pairs}


def _shuffle_number(seed: int, text: str) -> int:
    return int.from_bytes(blake2b(f"{seed}\0{text}".encode(), digest_size=8).digest(), "big")


def draw(
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
        known = HeldOutSentences(text, held_out)
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


def fault_of(source: str, target: str) -> str | None:
    return fault_of_text(source) or fault_of_text(target) or fault_of_pair(source, target)


class HeldOutSentences:
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


def require_known_text(
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
