"""EC30 from text: tens of millions of pairs to shards, in bounded memory, in several processes, resumable.

Every language is cut into parts of equally many lines, one per shard, in the order of the files, as EC40's
authors do. A part is the unit of work: when it is done its record lies in ``work/parts``, and a killed build
goes on with the parts that have none.
"""

from __future__ import annotations

import random
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import sentencepiece

from neuron_spec.artifacts import (
    SIGNATURE,
    claim,
    completed,
    hash_file,
    hash_text,
    read_json,
    read_lines,
    require_file,
    signature,
    write_json,
    write_text,
)
from neuron_spec.corpora import ec30
from neuron_spec.corpora.build import (
    TRAIN,
    VALID,
    VOCABULARY,
    Description,
    count_pairs,
    is_built,
    write_card,
    write_dictionaries,
    write_pieces,
    write_raw,
)
from neuron_spec.corpora.checks import check_disk
from neuron_spec.corpora.ec30_text import PlainText, TrainingText, lines_estimated, read_held_out, sides_of
from neuron_spec.corpora.sharding import in_processes, report_progress
from neuron_spec.errors import CorpusError, some
from neuron_spec.languages import ENGLISH
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


class Plan(NamedTuple):
    """What a build will take. Pairs and time are estimates."""

    pairs: int
    disk_bytes: int
    text: str  # for people


def plan(text: PlainText, *, langs: Sequence[str], workers: int, learns_pieces: bool) -> Plan:
    """What a build will take, from file sizes and the first lines alone.

    Raises:
        CorpusError: if a file is missing; all that are missing are named.
    """
    train_files = [text.train_file(*side) for side in sides_of(langs)]
    files = [*train_files, *text.held_out_files(langs)]
    if missing := [str(file) for file in files if not file.is_file()]:
        raise CorpusError(
            f"{len(missing)} of EC30's text files not found",
            got=f"no {some(missing, at_most=4)}",
            expected="EC40's en-de.de and en-de.en, NTREX-128's newstest2019-ref.deu.txt, "
            "FLORES-200's dev/deu_Latn.dev and devtest/deu_Latn.devtest",
            mend="name the folders with --plain, --valid and --test, or fewer languages with --langs",
        )
    for file in files:
        require_file(file, "text")
    text_bytes = sum(file.stat().st_size for file in train_files)
    pairs = sum(lines_estimated(text.train_file(lang, ENGLISH)) for lang in langs)
    tokens = text_bytes / _TEXT_BYTES_PER_PIECE + 2 * pairs
    sampled = min(PIECES_SAMPLE, 2 * pairs) if learns_pieces else 0
    sample_bytes = sampled * text_bytes / max(1, 2 * pairs)
    disk_bytes = int(_BYTES_PER_TOKEN * tokens + _INDEX_BYTES * 2 * pairs + 2 * sample_bytes)
    seconds = pairs * _SECONDS_PER_MILLION_PAIRS / workers + sampled * _SECONDS_PER_MILLION_SAMPLED
    report = (
        f"languages         {len(langs)}",
        f"training text     {text_bytes / 1e9:.2f} GB, about {pairs / 1e6:.2f} million pairs",
        f"disk needed       {disk_bytes / 1e9:.2f} GB at most",
        f"SentencePiece     learnt on at most {sampled:,} sentences",
        f"time              about {seconds / 1e6 / 3600:.1f} h with {workers} workers",
    )
    return Plan(pairs, disk_bytes, "\n".join(report))


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
        claim(work / SIGNATURE, wanted, what="begun corpus", where=work)
    bytes_here = sum(file.stat().st_size for file in output.rglob("*") if file.is_file())
    check_disk(output, max(0, needed.disk_bytes - bytes_here))

    training = TrainingText(text, langs, shards=shards, seed=seed, workers=workers, records=work / "scanned")
    held_out = read_held_out(text, langs, training)
    training.hold_out(held_out)
    raw, data_bin = output / "raw", output / "data-bin"
    hashes = write_raw(held_out, raw)
    first_pairs = {}
    for lang in langs:
        lines = training.pairs(lang, training.parts)
        fit = ((foreign, english) for _, foreign, english, fault in lines if fault is None)
        first_pairs[lang] = list(islice(fit, LINES_PER_LANGUAGE))
    write_raw({TRAIN: first_pairs}, raw)

    processor, vocabulary = write_pieces(
        output,
        _sample(training, langs, seed, workers, work / "sample"),
        vocab_size,
        given=sentencepiece_model,
        learned_on=f"a sample of at most {PIECES_SAMPLE:,} sentences at temperature {PIECES_TEMPERATURE}",
        keep=True,
    )
    for shard in range(shards):
        write_dictionaries(processor, [ENGLISH, *langs], data_bin / f"shard{shard}")
    from neuron_spec.corpora.binarize import binarize  # fairseq, which takes seconds, after all checks

    binarize(raw, hashes, processor, data_bin / "shard0")
    # fairseq looks for validation sets in every shard.
    for file in (data_bin / "shard0").glob(f"{VALID}.*"):
        for shard in range(1, shards):
            shutil.copyfile(file, data_bin / f"shard{shard}" / file.name)

    kept: Counter[str] = Counter()
    dropped: dict[str, Counter[str]] = {lang: Counter() for lang in langs}
    for (lang, _), counts in in_processes(
        _PartBinarizer(training, processor, data_bin, work / "parts"),
        [(lang, shard) for lang in langs for shard in range(shards)],
        workers=workers,
        lines=sum(training.lines.values()),
        description="encode and binarize",
    ):
        kept[lang] += counts.pop("kept")
        dropped[lang].update(counts)

    hashes_of_train = {f"{ENGLISH}-{x}.{side}": scan.sha256 for (x, side), scan in training.scanned.items()}
    train, *others = ec30.SOURCES.values()
    tokenization = (
        "; punctuation normalised and tokenised by Moses, as the training text is: score with "
        "--official-scoring, which detokenises"
    )
    corpus = Description(
        name="ec30",
        sources=[{**train, "sha256": hash_text(*hashes_of_train.values())}, *others],
        tiers={lang: ec30.LANGUAGES[lang].tier for lang in langs},
        cleaning={lang: dict(sorted(counts.items())) for lang, counts in dropped.items()},
        notes={
            "shards": shards,
            "lines_read": training.lines,
            "train_sha256": hashes_of_train,
            "validation_sampled_from_training": {x: len(lines) for x, lines in training.sampled.items()},
            "held_out_text": "NFC, plain spaces" + (tokenization if training.is_tokenized else ""),
            "raw_train": ec30.RAW_TRAIN,
        },
    )
    write_card(
        output,
        corpus,
        pairs={TRAIN: {lang: kept[lang] for lang in langs}, **count_pairs(held_out)},
        vocabulary=vocabulary | {"model": f"{VOCABULARY}, character coverage 1.0"},
        hashes=hashes,
        parameters=parameters,
    )
    shutil.rmtree(work)


def fault_of_pieces(source: int, target: int) -> str | None:
    """Why a pair of so many pieces is unfit (EC40's rules); None if it is fit."""
    shorter, longer = sorted((source, target))
    if shorter < 1 or longer > MOST_PIECES:
        return f"not 1 to {MOST_PIECES} pieces"
    if longer > PIECE_RATIO * shorter:
        return f"piece ratio above {PIECE_RATIO}"
    return None


def sample_sizes(lines: Mapping[str, int], total: int = PIECES_SAMPLE) -> dict[str, int]:
    """How many sentences of each language, and of English, the pieces are learnt on: ``total`` at most.

    English counts as a language with all pairs; a language with fewer sentences than its share gives all.
    """
    return sentences_to_sample({**lines, ENGLISH: sum(lines.values())}, total)


def sentences_to_sample(sizes: Mapping[str, int], total: int = PIECES_SAMPLE) -> dict[str, int]:
    """The same of any languages, each with its number of sentences."""
    weights = {lang: size ** (1 / PIECES_TEMPERATURE) for lang, size in sizes.items()}
    return {
        lang: min(size, int(total * weights[lang] / sum(weights.values()))) for lang, size in sizes.items()
    }


def _sample(text: TrainingText, langs: Sequence[str], seed: int, workers: int, folder: Path) -> Iterator[str]:
    """The sentences that the pieces are learnt on; a file in ``folder`` keeps those of each language."""
    shares = sample_sizes(text.lines)
    total = sum(text.lines.values())

    def write_sample(lang: str) -> None:
        """Write sentences of one language, and its part of the English ones."""
        lines = text.lines[lang]
        rng = random.Random(f"pieces {seed} {lang}")
        chosen = frozenset(rng.sample(range(lines), shares[lang]))
        chosen_english = frozenset(rng.sample(range(lines), shares[ENGLISH] * lines // total))
        sentences = []
        for part in text.parts:
            for number, foreign, english, fault in text.pairs(lang, [part], only=chosen | chosen_english):
                if fault is None and number in chosen:
                    sentences.append(f"{foreign}\n")
                if fault is None and number in chosen_english:
                    sentences.append(f"{english}\n")
            report_progress(text.scanned[lang, ENGLISH].lines_in(part))
        write_text(folder / f"{lang}.txt", "".join(sentences))

    waiting = [lang for lang in langs if not (folder / f"{lang}.txt").is_file()]
    lines = sum(text.lines[lang] for lang in waiting)
    list(in_processes(write_sample, waiting, workers=workers, lines=lines, description="sample sentences"))
    for lang in langs:
        yield from read_lines(folder / f"{lang}.txt")


class _PartBinarizer:
    """Cleans, encodes and writes one part; called in the worker processes."""

    def __init__(
        self,
        text: TrainingText,
        processor: sentencepiece.SentencePieceProcessor,
        data_bin: Path,
        records: Path,
    ) -> None:
        from neuron_spec.corpora.binarize import piece_ids

        self.text, self.processor, self.data_bin, self.records = text, processor, data_bin, records
        self.ids = piece_ids(processor, data_bin / "shard0" / f"dict.{ENGLISH}.txt")

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
        from neuron_spec.corpora.binarize import writer_of

        folder = self.data_bin / f"shard{shard}"
        prefixes = [folder / f"{TRAIN}.{lang}-{ENGLISH}.{code}" for code in (lang, ENGLISH)]
        counts: Counter[str] = Counter(kept=0)
        lines = self.text.pairs(lang, [shard])
        with ExitStack() as files:
            writers = [files.enter_context(writer_of(prefix, self.ids)) for prefix in prefixes]
            while batch := list(islice(lines, _PAIRS_AT_ONCE)):
                counts.update(fault for *_, fault in batch if fault)
                fit = [(text, english) for _, text, english, fault in batch if fault is None]
                encoded = [self.processor.encode([pair[side] for pair in fit]) for side in (0, 1)]
                kept = []
                for sides in zip(*encoded, strict=True):
                    if fault := fault_of_pieces(*map(len, sides)):
                        counts[fault] += 1
                    else:
                        kept.append(sides)
                counts["kept"] += len(kept)
                for side, writer in enumerate(writers):
                    writer.add_sentences([sides[side] for sides in kept])
                report_progress(len(batch))
        return dict(counts)
