"""EC30 from text: tens of millions of pairs to shards, in bounded memory, in several processes, resumable.

Every language is cut into parts of equally many lines, one per shard, in the order of the files, as EC40's
authors do. A part is the unit of work: when it is done its record lies in ``work/parts``, and a killed build
goes on with the parts that have none.
"""

from __future__ import annotations

import random
import shutil
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from hashlib import blake2b
from itertools import islice
from pathlib import Path

import sentencepiece

from neuron_spec.artifacts import (
    SIGNATURE,
    atomic_path,
    completed,
    hash_file,
    hash_text,
    read_json,
    read_lines,
    signature,
    write_json,
)
from neuron_spec.corpora import ec30, ec30_text
from neuron_spec.corpora.binarize import PieceIds, binarize, writer_of
from neuron_spec.corpora.build import (
    TEST,
    TRAIN,
    VALID,
    VOCABULARY,
    Pairs,
    count_pairs,
    is_built,
    learn_pieces,
    load_pieces,
    write_card,
    write_dictionaries,
    write_pieces,
    write_raw,
)
from neuron_spec.corpora.checks import check_disk
from neuron_spec.corpora.cleaning import normalize
from neuron_spec.corpora.ec30_text import PlainText, Sides, sides_of
from neuron_spec.corpora.sharding import in_processes, report_progress
from neuron_spec.directions import ENGLISH
from neuron_spec.errors import CorpusError
from neuron_spec.scoring.language_id import LINES_PER_LANGUAGE

# SentencePiece is learnt on a sample whose sentences are shared out between the languages, English as one of
# them, in proportion to (number of pairs) ** (1 / temperature), as training samples them.
PIECES_SAMPLE = 3_000_000
PIECES_TEMPERATURE = 5

MOST_PIECES = 256
PIECE_RATIO = 3

_PAIRS_AT_ONCE = 5000
# What a build takes, for the estimate. Cleaning, encoding and writing: CPU time of one process, measured on
# 270,000 pairs of 20 words a side. Learning pieces: a cautious guess; 6 s measured, with few distinct words.
_SECONDS_PER_MILLION_PAIRS = 65.0
_SECONDS_PER_MILLION_SAMPLED = 100.0
_INDEX_BYTES = 12  # per sentence
_BYTES_PER_TOKEN = 2  # below 65,500 pieces
_TEXT_BYTES_PER_PIECE = 3.0  # fewer than in any language, so that the estimate is on the safe side


@dataclass(frozen=True)
class Plan:
    """What a build will take. Pairs and time are estimates."""

    languages: int
    pairs: int
    text_bytes: int
    disk_bytes: int
    sampled_sentences: int
    workers: int
    seconds: float

    def __str__(self) -> str:
        return "\n".join(
            (
                f"languages         {self.languages}",
                f"training text     {self.text_bytes / 1e9:.2f} GB, about {self.pairs / 1e6:.2f} million pairs",
                f"disk needed       {self.disk_bytes / 1e9:.2f} GB at most",
                f"SentencePiece     learnt on at most {self.sampled_sentences:,} sentences",
                f"time              about {self.seconds / 3600:.1f} h with {self.workers} workers",
            )
        )


def plan(text: PlainText, *, langs: Sequence[str], workers: int, learns_pieces: bool) -> Plan:
    """What a build will take, from file sizes and the first lines alone.

    Raises:
        CorpusError: if a file is missing; all that are missing are named.
    """
    text.require_files(langs)
    text_bytes = sum(text.train_file(*side).stat().st_size for side in sides_of(langs))
    pairs = sum(ec30_text.lines_estimated(text.train_file(lang, ENGLISH)) for lang in langs)
    tokens = text_bytes / _TEXT_BYTES_PER_PIECE + 2 * pairs
    sampled = min(PIECES_SAMPLE, 2 * pairs) if learns_pieces else 0
    sample_bytes = sampled * text_bytes / max(1, 2 * pairs)
    return Plan(
        languages=len(langs),
        pairs=pairs,
        text_bytes=text_bytes,
        disk_bytes=int(_BYTES_PER_TOKEN * tokens + _INDEX_BYTES * 2 * pairs + 2 * sample_bytes),
        sampled_sentences=sampled,
        workers=workers,
        seconds=pairs / 1e6 * _SECONDS_PER_MILLION_PAIRS / workers
        + sampled / 1e6 * _SECONDS_PER_MILLION_SAMPLED,
    )


def build(
    text: PlainText,
    output: Path,
    *,
    langs: Sequence[str],
    vocab_size: int,
    workers: int,
    shards: int,
    seed: int = 1,
    sentencepiece_model: Path | None = None,
) -> None:
    """Write ``raw/``, ``spm/``, ``data-bin/shardN/`` and, last, ``corpus.json`` below ``output``.

    Raises:
        CorpusError: if text is missing, not UTF-8 or not parallel, or the disk is too small; before any
            of the long work begins.
        ArtifactError: if ``output`` holds another corpus, or one begun with other settings.
    """
    needed = plan(text, langs=langs, workers=workers, learns_pieces=sentencepiece_model is None)
    parameters = {
        "corpus": "ec30",
        "from": "text",
        "langs": list(langs),
        "shards": shards,
        "seed": seed,
        "vocab_size": vocab_size,
        "sentencepiece": hash_file(sentencepiece_model) if sentencepiece_model else None,
        "bytes": {
            lang: [text.train_file(lang, side).stat().st_size for side in (ENGLISH, lang)] for lang in langs
        },
        "held_out": hash_text(*map(hash_file, text.held_out_files(langs))),
    }
    if is_built(output, parameters):
        return
    work = output / "work"
    for left in output.rglob(".*.tmp"):  # of workers that were killed
        left.unlink()
    wanted = signature("data", inputs={}, parameters=parameters)
    if not completed(work / SIGNATURE, wanted, what="begun corpus", where=work, quiet=True):
        write_json(work / SIGNATURE, wanted)
    bytes_here = sum(file.stat().st_size for file in output.rglob("*") if file.is_file())
    check_disk(output, max(0, needed.disk_bytes - bytes_here))

    scanned = ec30_text.scan_all(text, langs, shards=shards, workers=workers, records=work / "scanned")
    tokenized = ec30_text.is_tokenized(scanned[langs[0], ENGLISH])
    without_ntrex = [lang for lang in langs if not ec30.LANGUAGES[lang].ntrex]
    sampled = {lang: ec30_text.sampled_lines(scanned[lang, ENGLISH].lines, seed) for lang in without_ntrex}
    held_out = ec30_text.read_held_out(text, langs, scanned=scanned, sampled=sampled, tokenize=tokenized)
    training = _TrainingText(
        scanned, sampled, seen={split: _keys(pairs) for split, pairs in held_out.items()}
    )
    raw, data_bin = output / "raw", output / "data-bin"
    hashes = write_raw(held_out, raw)
    write_raw({TRAIN: {lang: training.first_fit(lang, LINES_PER_LANGUAGE) for lang in langs}}, raw)

    model = output / "spm" / "sentencepiece.model"
    processor, vocabulary = write_pieces(
        output,
        sentencepiece_model,
        learn=lambda: (
            model.read_bytes()  # by a build that was killed
            if model.is_file()
            else _learn_from_sample(training, langs, vocab_size, seed, workers, work / "sample")
        ),
        learned_on=f"a sample of at most {PIECES_SAMPLE:,} sentences at temperature {PIECES_TEMPERATURE}",
    )
    for shard in range(shards):
        write_dictionaries(processor, [ENGLISH, *langs], data_bin / f"shard{shard}")
    _binarize_held_out(hashes, raw, processor, data_bin, shards)

    kept: Counter[str] = Counter()
    dropped: dict[str, Counter[str]] = {lang: Counter() for lang in langs}
    for (lang, _), counts in in_processes(
        _PartBinarizer(training, model, data_bin, work / "parts"),
        [(lang, shard) for lang in langs for shard in range(shards)],
        workers=workers,
        lines=sum(training.lines.values()),
        description="encode and binarize",
    ):
        kept[lang] += counts.pop("kept")
        dropped[lang].update(counts)

    hashes_of_train = {
        f"{ENGLISH}-{lang}.{side}": scanned[lang, side].sha256 for lang, side in sides_of(langs)
    }
    train, *others = ec30.SOURCES.values()
    tokenization = (
        "; punctuation normalised and tokenised by Moses, as the training text is: score with "
        "--official-scoring, which detokenises"
    )
    write_card(
        output,
        ec30.description(
            langs,
            sources=[{**train, "sha256": hash_text(*hashes_of_train.values())}, *others],
            cleaning={lang: dict(sorted(counts.items())) for lang, counts in dropped.items()},
            notes={
                "shards": shards,
                "lines_read": training.lines,
                "train_sha256": hashes_of_train,
                "validation_sampled_from_training": {lang: len(lines) for lang, lines in sampled.items()},
                "held_out_text": "NFC, plain spaces" + (tokenization if tokenized else ""),
            },
        ),
        pairs={TRAIN: {lang: kept[lang] for lang in langs}, **count_pairs(held_out)},
        vocabulary=vocabulary | {"model": f"{VOCABULARY}, character coverage 1.0"},
        hashes=hashes,
        parameters=parameters,
    )
    shutil.rmtree(work)


# ------------------------------------------------------------------ training text

Keys = dict[str, frozenset[bytes]]  # language -> keys of its held-out sentences


def _key(text: str) -> bytes:
    """Equal for equal sentences, whether tokenised or not."""
    return blake2b("".join(text.replace("@-@", "-").split()).encode(), digest_size=8).digest()


def _keys(held_out: Mapping[str, Pairs]) -> Keys:
    keys = {lang: frozenset(_key(text) for text, _ in pairs) for lang, pairs in held_out.items()}
    keys[ENGLISH] = frozenset(_key(english) for pairs in held_out.values() for _, english in pairs)
    return keys


def fault_of_pieces(source: int, target: int) -> str | None:
    """Why a pair of so many pieces is unfit (EC40's rules); None if it is fit."""
    shorter, longer = sorted((source, target))
    if shorter < 1 or longer > MOST_PIECES:
        return f"not 1 to {MOST_PIECES} pieces"
    if longer > PIECE_RATIO * shorter:
        return f"piece ratio above {PIECE_RATIO}"
    return None


class _TrainingText:
    """The training pairs of every language, normalised, with the reason why one is unfit."""

    def __init__(
        self,
        scanned: Sides,
        sampled: Mapping[str, Collection[int]],
        seen: Mapping[str, Keys],
    ) -> None:
        self.scanned, self.sampled, self.seen = scanned, sampled, seen
        self.parts = len(next(iter(scanned.values())).offsets)
        self.lines = {lang: text.lines for (lang, side), text in scanned.items() if side == ENGLISH}

    def part(
        self, lang: str, number: int, only: Collection[int] | None = None
    ) -> Iterator[tuple[int, str, str, str | None]]:
        """(line number, text in the language, English text, fault) of each line of a part, or of ``only`` some."""
        held_out = self.sampled.get(lang, ())
        sides = [self.scanned[lang, side] for side in (lang, ENGLISH)]
        lines = zip(*(side.part(number) for side in sides), strict=True)
        for line, pair in enumerate(lines, start=sides[0].first_lines[number]):
            if only is None or line in only:
                text, english = map(normalize, pair)
                fault = "sampled for validation" if line in held_out else self._fault(lang, text, english)
                yield line, text, english, fault

    def _fault(self, lang: str, text: str, english: str) -> str | None:
        if not (text and english):
            return "empty"
        keys = {ENGLISH: _key(english), lang: _key(text)}
        for split, name in ((TEST, "test"), (VALID, "validation")):
            for code, key in keys.items():
                if key in self.seen[split][code]:
                    return f"{'English' if code == ENGLISH else 'other side'} of a {name} pair"
        return None

    def first_fit(self, lang: str, count: int) -> Pairs:
        """The first pairs of a language that are fit."""
        lines = (line for part in range(self.parts) for line in self.part(lang, part))
        return list(islice(((text, english) for _, text, english, fault in lines if fault is None), count))


def sample_sizes(lines: Mapping[str, int], total: int = PIECES_SAMPLE) -> dict[str, int]:
    """How many sentences of each language, and of English, the pieces are learnt on: ``total`` at most.

    English counts as a language with all pairs; a language with fewer sentences than its share gives all.
    """
    sizes = {**lines, ENGLISH: sum(lines.values())}
    weights = {lang: size ** (1 / PIECES_TEMPERATURE) for lang, size in sizes.items()}
    return {
        lang: min(size, int(total * weights[lang] / sum(weights.values()))) for lang, size in sizes.items()
    }


def _learn_from_sample(
    text: _TrainingText, langs: Sequence[str], vocab_size: int, seed: int, workers: int, folder: Path
) -> bytes:
    shares = sample_sizes(text.lines)
    total = sum(text.lines.values())

    def write_sample(lang: str) -> None:
        """Write sentences of one language, and its part of the English ones."""
        lines = text.lines[lang]
        rng = random.Random(f"pieces {seed} {lang}")
        chosen = frozenset(rng.sample(range(lines), shares[lang]))
        chosen_english = frozenset(rng.sample(range(lines), shares[ENGLISH] * lines // total))
        with (
            atomic_path(folder / f"{lang}.txt") as target,
            target.open("w", encoding="utf-8", newline="\n") as file,
        ):
            for part in range(text.parts):
                for number, foreign, english, fault in text.part(lang, part, only=chosen | chosen_english):
                    if fault is None and number in chosen:
                        file.write(f"{foreign}\n")
                    if fault is None and number in chosen_english:
                        file.write(f"{english}\n")
                report_progress(text.scanned[lang, ENGLISH].lines_in(part))

    waiting = [lang for lang in langs if not (folder / f"{lang}.txt").is_file()]
    lines = sum(text.lines[lang] for lang in waiting)
    for _ in in_processes(
        write_sample, waiting, workers=workers, lines=lines, description="sample sentences"
    ):
        pass
    sentences = (sentence for lang in langs for sentence in read_lines(folder / f"{lang}.txt"))
    return learn_pieces(sentences, vocab_size)


def _binarize_held_out(
    names: Collection[str],
    raw: Path,
    processor: sentencepiece.SentencePieceProcessor,
    data_bin: Path,
    shards: int,
) -> None:
    """Both sets into shard 0; fairseq looks for validation sets in every shard, so they are copied."""
    first = data_bin / "shard0"
    binarize(raw, names, processor, first)
    for name in names:
        if name.startswith(VALID):
            for file in (f"{name}.bin", f"{name}.idx"):
                for shard in range(1, shards):
                    shutil.copyfile(first / file, data_bin / f"shard{shard}" / file)


class _PartBinarizer:
    """Cleans, encodes and writes one part; called in the worker processes."""

    def __init__(self, text: _TrainingText, model: Path, data_bin: Path, records: Path) -> None:
        self.text = text
        self.processor = load_pieces(model)
        self.ids = PieceIds(self.processor, data_bin / "shard0" / f"dict.{ENGLISH}.txt")
        self.data_bin, self.records = data_bin, records

    def __call__(self, job: tuple[str, int]) -> dict[str, int]:
        """Counts: "kept", and how many each rule dropped."""
        lang, shard = job
        record = self.records / f"{lang}.shard{shard}.json"
        if record.is_file():
            counts: dict[str, int] = read_json(record, "record of a part")
            report_progress(sum(counts.values()))
            return counts
        counts = self._write(lang, shard)
        if not counts["kept"]:
            raise CorpusError(
                "a part without a fit pair", where=f"{lang}, shard {shard}", got=counts, mend="fewer --shards"
            )
        write_json(record, counts)
        return counts

    def _write(self, lang: str, shard: int) -> dict[str, int]:
        folder, name = self.data_bin / f"shard{shard}", f"{TRAIN}.{lang}-{ENGLISH}"
        counts: Counter[str] = Counter(kept=0)
        lines = self.text.part(lang, shard)
        with ExitStack() as files:
            prefixes = [folder / f"{name}.{code}" for code in (lang, ENGLISH)]
            writers = [files.enter_context(writer_of(prefix, self.ids)) for prefix in prefixes]
            while batch := list(islice(lines, _PAIRS_AT_ONCE)):
                faults = Counter(fault for *_, fault in batch if fault)
                fit = [(text, english) for _, text, english, fault in batch if fault is None]
                encoded = [self.processor.encode([pair[side] for pair in fit]) for side in (0, 1)]
                kept = []
                for sides in zip(*encoded, strict=True):
                    if fault := fault_of_pieces(*map(len, sides)):
                        faults[fault] += 1
                    else:
                        kept.append(sides)
                for side, writer in enumerate(writers):
                    writer.add_sentences([sides[side] for sides in kept])
                counts.update(faults, kept=len(kept))
                report_progress(len(batch))
        return dict(counts)
