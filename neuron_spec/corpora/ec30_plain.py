"""EC30 from text: tens of millions of pairs to shards, in bounded memory, in several processes, resumable.

Every language is cut into parts of equally many lines, one per shard, in the order of the files, as EC40's
authors do. A part is the unit of work: when it is done its record lies in ``work/parts``, and a killed build
goes on with the parts that have none.
"""

from __future__ import annotations

import random
import shutil
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import Any

from neuron_spec.artifacts import (
    CORPUS_CARD,
    atomic_path,
    completed,
    hash_file,
    hash_text,
    read_json,
    signature,
    write_json,
    write_text,
)
from neuron_spec.corpora import ec30
from neuron_spec.corpora.build import PIVOT, is_built, learn_pieces, load_pieces, write_dictionaries
from neuron_spec.corpora.cleaning import normalize
from neuron_spec.corpora.ec30 import LANGUAGES, SOURCES, TEST, TRAIN, VALID
from neuron_spec.corpora.sharding import ScannedText, check_disk, in_processes, report_progress, scan
from neuron_spec.errors import CorpusError
from neuron_spec.scoring.language_id import LINES_PER_LANGUAGE

# EC40's authors hold out 842 pairs of the one language that NTREX-128 lacks; of a small file, a tenth.
SAMPLED_VALID = 842
_LARGEST_SAMPLED_FRACTION = 0.1

# SentencePiece is learnt on a sample whose sentences are shared out between the languages, English as one of
# them, in proportion to (number of pairs) ** (1 / temperature), as training samples them.
PIECES_SAMPLE = 3_000_000
PIECES_TEMPERATURE = 5

MOST_PIECES = 256
PIECE_RATIO = 3

_PAIRS_AT_ONCE = 5000
_NEWS_ENGLISH = "eng-US"  # NTREX-128's English, as EC40's authors take it
_FLORES_ENGLISH = "eng_Latn"
_FLORES_PARTS = ("dev", "devtest")

# What a build takes, for the estimate. Cleaning, encoding and writing: CPU time of one process, measured on
# 270,000 pairs of 20 words a side. Learning pieces: a cautious guess; 6 s measured, with few distinct words.
_SECONDS_PER_MILLION_PAIRS = 65.0
_SECONDS_PER_MILLION_SAMPLED = 100.0
_INDEX_BYTES = 12  # per sentence
_BYTES_PER_TOKEN = 2  # below 65,500 pieces
_TEXT_BYTES_PER_PIECE = 3.0  # fewer than in any language, so that the estimate is on the safe side


@dataclass(frozen=True)
class PlainText:
    """The user's folders: EC40's training text, NTREX-128, FLORES-200."""

    train: Path
    valid: Path
    test: Path

    def train_file(self, lang: str, side: str) -> Path:
        """``en-de.de``, in the folder itself or, as in EC40's repository, in ``EC40-train-set`` below it."""
        name = f"{PIVOT}-{lang}.{side}"
        below = self.train / "EC40-train-set" / name
        return below if below.is_file() else self.train / name

    def valid_file(self, lang: str) -> Path:
        code = _NEWS_ENGLISH if lang == PIVOT else LANGUAGES[lang].ntrex
        return self.valid / f"newstest2019-ref.{code}.txt"

    def test_file(self, lang: str, part: str) -> Path:
        """``dev/deu_Latn.dev``; Serbian, which FLORES-200 has in Cyrillic only, as ``srp_Cyrl``."""
        code = _FLORES_ENGLISH if lang == PIVOT else LANGUAGES[lang].flores
        file = self.test / part / f"{code}.{part}"
        cyrillic = self.test / part / f"{code.replace('_Latn', '_Cyrl')}.{part}"
        return cyrillic if lang == "sr" and not file.is_file() else file


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
    _check_files(text, langs)
    files = {lang: [text.train_file(lang, side) for side in (PIVOT, lang)] for lang in langs}
    text_bytes = sum(file.stat().st_size for pair in files.values() for file in pair)
    pairs = sum(_lines_estimated(english) for english, _ in files.values())
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


def _lines_estimated(file: Path) -> int:
    with file.open("rb") as opened:
        start = opened.read(1 << 20)
    return round(file.stat().st_size * start.count(b"\n") / max(1, len(start)))


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
            lang: [text.train_file(lang, side).stat().st_size for side in (PIVOT, lang)] for lang in langs
        },
        "held_out": hash_text(*(hash_file(file) for file in _held_out_files(text, langs))),
    }
    if is_built(output, parameters):
        return
    work = output / "work"
    _begin(work, parameters)
    check_disk(output, max(0, needed.disk_bytes - _bytes_below(output)))

    scanned = _scan_all(text, langs, shards, workers, work / "scanned")
    is_tokenized = _is_tokenized(scanned[langs[0], PIVOT])
    sampled = {
        lang: _sampled_lines(scanned[lang, PIVOT].lines, seed) for lang in langs if not LANGUAGES[lang].ntrex
    }
    held_out = _read_held_out(text, langs, scanned, sampled, is_tokenized)
    hashes = _write_raw(held_out, output / "raw")
    seen = {split: _keys(pairs) for split, pairs in held_out.items()}

    training = _TrainingText(scanned, sampled, seen)
    _write_raw(
        {TRAIN: {lang: training.first_fit(lang, LINES_PER_LANGUAGE) for lang in langs}}, output / "raw"
    )

    model = output / "spm" / "sentencepiece.model"
    if not model.is_file():
        if sentencepiece_model:
            pieces = sentencepiece_model.read_bytes()
        else:
            pieces = _learn_from_sample(training, langs, vocab_size, seed, workers, work / "sample")
        with atomic_path(model) as temporary:
            temporary.write_bytes(pieces)
    processor = load_pieces(model)
    data_bin = output / "data-bin"
    for shard in range(shards):
        write_dictionaries(processor, [PIVOT, *langs], data_bin / f"shard{shard}")
    _binarize_held_out(held_out, output / "raw", processor, data_bin, shards)

    worker = _PartBinarizer(training, model, data_bin, work / "parts")
    jobs = [(lang, shard) for lang in langs for shard in range(shards)]
    dropped: dict[str, Counter[str]] = {lang: Counter() for lang in langs}
    kept: Counter[str] = Counter()
    for (lang, _), counts in in_processes(
        worker, jobs, workers=workers, lines=training.lines(PIVOT), description="encode and binarize"
    ):
        kept[lang] += counts.pop("kept")
        dropped[lang].update(counts)

    ec30.write_names(langs, data_bin)
    sources = [dict(SOURCES[split]) for split in (TRAIN, VALID, TEST)]
    sources[0]["sha256"] = hash_text(
        *(scanned[lang, side].sha256 for lang in langs for side in (PIVOT, lang))
    )
    write_json(
        output / CORPUS_CARD,
        ec30.card(
            langs,
            sources=sources,
            vocabulary={
                "model": "SentencePiece BPE, joint over all languages, character coverage 1.0",
                "size": processor.vocab_size(),
                "learned_on": f"given: {sentencepiece_model.name}"
                if sentencepiece_model
                else f"a sample of at most {PIECES_SAMPLE:,} sentences at temperature {PIECES_TEMPERATURE}",
            },
            pairs={
                TRAIN: {lang: kept[lang] for lang in langs},
                **{split: {lang: len(held_out[split][lang]) for lang in langs} for split in (VALID, TEST)},
            },
            dropped={lang: dict(sorted(counts.items())) for lang, counts in dropped.items()},
            hashes=hashes,
            made=signature("data", inputs={}, parameters=parameters),
            notes=_notes(shards, scanned, sampled, is_tokenized, langs),
        ),
    )
    shutil.rmtree(work)


def _notes(
    shards: int,
    scanned: Mapping[tuple[str, str], ScannedText],
    sampled: Mapping[str, Collection[int]],
    is_tokenized: bool,
    langs: Sequence[str],
) -> dict[str, Any]:
    return {
        "shards": shards,
        "lines_read": {lang: scanned[lang, PIVOT].lines for lang in langs},
        "train_sha256": {
            f"{PIVOT}-{lang}.{side}": scanned[lang, side].sha256 for lang in langs for side in (PIVOT, lang)
        },
        "validation_sampled_from_training": {lang: len(numbers) for lang, numbers in sampled.items()},
        "held_out_text": "NFC, plain spaces"
        + (
            "; punctuation normalised and tokenised by Moses, as the training text is: score with "
            "--official-scoring, which detokenises"
            if is_tokenized
            else ""
        ),
        "raw_train": f"a sample: up to {LINES_PER_LANGUAGE} training pairs a language, to learn language "
        "identification from",
    }


def _begin(work: Path, parameters: Mapping[str, Any]) -> None:
    """Raises: ArtifactError if a build with other settings was begun here."""
    begun = work / "signature.json"
    made = signature("data", inputs={}, parameters=parameters)
    for left in work.parent.rglob(".*.tmp"):  # of workers that were killed
        left.unlink()
    if not completed(begun, made, what="begun corpus", where=work, quiet=True):
        write_json(begun, made)


def _bytes_below(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


# ------------------------------------------------------------------ the user's text


def _held_out_files(text: PlainText, langs: Sequence[str]) -> list[Path]:
    in_ntrex = [PIVOT, *(lang for lang in langs if LANGUAGES[lang].ntrex)]
    return [text.valid_file(lang) for lang in in_ntrex] + [
        text.test_file(lang, part) for lang in (PIVOT, *langs) for part in _FLORES_PARTS
    ]


def _check_files(text: PlainText, langs: Sequence[str]) -> None:
    wanted = [text.train_file(lang, side) for lang in langs for side in (PIVOT, lang)]
    wanted += _held_out_files(text, langs)
    if missing := [str(file) for file in wanted if not file.is_file()]:
        raise CorpusError(
            f"{len(missing)} of EC30's text files not found",
            got="no " + ", ".join(missing[:4]) + (", ..." if len(missing) > 4 else ""),
            expected="EC40's en-de.de and en-de.en, NTREX-128's newstest2019-ref.deu.txt, "
            "FLORES-200's dev/deu_Latn.dev and devtest/deu_Latn.devtest",
            mend="name the folders with --plain, --valid and --test, or fewer languages with --langs",
        )


def _scan_all(
    text: PlainText, langs: Sequence[str], shards: int, workers: int, folder: Path
) -> dict[tuple[str, str], ScannedText]:
    """Scan every training file; those scanned before a kill, and not touched since, are not read again.

    Raises:
        CorpusError: if a file is not UTF-8 text, or the two sides of a language differ in lines.
    """
    scanned: dict[tuple[str, str], ScannedText] = {}
    waiting = []
    for lang in langs:
        for side in (PIVOT, lang):
            record = folder / f"{lang}.{side}.json"
            if record.is_file():
                found = ScannedText(**read_json(record, "record of a scanned file"))
                if found.path == str(text.train_file(lang, side)) and found.is_current():
                    scanned[lang, side] = found
                    continue
            waiting.append((lang, side))

    def task(job: tuple[str, str]) -> ScannedText:
        found = scan(text.train_file(*job), shards)
        write_json(folder / f"{job[0]}.{job[1]}.json", asdict(found))
        report_progress(found.lines)
        return found

    total = sum(_lines_estimated(text.train_file(*job)) for job in waiting)
    scanned |= dict(in_processes(task, waiting, workers=workers, lines=total, description="check text"))
    for lang in langs:
        lines = {side: scanned[lang, side].lines for side in (PIVOT, lang)}
        if len(set(lines.values())) > 1:
            raise CorpusError(
                f"the two sides of {PIVOT}-{lang} are not parallel",
                where=text.train_file(lang, lang),
                got=", ".join(f"{side}: {count} lines" for side, count in lines.items()),
                mend="get the pair again: one of its files is cut short or of another version",
            )
    return scanned


def _is_tokenized(english: ScannedText) -> bool:
    """Whether most final punctuation of the training text stands apart, as Moses' tokenizer leaves it."""
    ends = [
        line.rstrip()[-2:]
        for line in islice(english.part(0), 2000)
        if line.rstrip().endswith((".", "?", "!"))
    ]
    return sum(end[0] == " " for end in ends if len(end) == 2) > len(ends) / 2


def _sampled_lines(lines: int, seed: int) -> frozenset[int]:
    """Numbers of the lines held out for the validation of a language that NTREX-128 lacks."""
    size = min(SAMPLED_VALID, int(_LARGEST_SAMPLED_FRACTION * lines))
    return frozenset(random.Random(f"validation {seed}").sample(range(lines), size))


Pairs = list[tuple[str, str]]  # (text in the language, English text)


def _read_held_out(
    text: PlainText,
    langs: Sequence[str],
    scanned: Mapping[tuple[str, str], ScannedText],
    sampled: Mapping[str, Collection[int]],
    is_tokenized: bool,
) -> dict[str, dict[str, Pairs]]:
    """Validation and test pairs by split and language.

    Raises:
        CorpusError: if a set is not parallel, or holds an empty line.
    """

    def prepared(lang: str, files: Iterable[Path]) -> list[str]:
        prepare = _moses(lang) if is_tokenized else normalize
        to_latin = lang == "sr" and any("_Cyrl" in file.name for file in files)
        lines = [line for file in files for line in _read_lines(file)]
        return [prepare(latin(line) if to_latin else line) for line in lines]

    def parallel(lang: str, foreign: list[str], english: list[str], where: Path) -> Pairs:
        if len(foreign) != len(english):
            raise CorpusError(
                "a held-out set is not parallel",
                where=where,
                got=f"{len(foreign)} lines of {lang}, {len(english)} of English",
                mend="get the set again",
            )
        pairs = list(zip(foreign, english, strict=True))
        for number, pair in enumerate(pairs, start=1):
            if not all(pair):
                raise CorpusError("an empty line in a held-out set", where=f"{where}, line {number}")
        return pairs

    held_out: dict[str, dict[str, Pairs]] = {VALID: {}, TEST: {}}
    valid_english = prepared(PIVOT, [text.valid_file(PIVOT)])
    test_english = prepared(PIVOT, [text.test_file(PIVOT, part) for part in _FLORES_PARTS])
    for lang in langs:
        files = [text.test_file(lang, part) for part in _FLORES_PARTS]
        held_out[TEST][lang] = parallel(lang, prepared(lang, files), test_english, files[0])
        if lang in sampled:
            sides = [_lines_at(scanned[lang, side], sampled[lang]) for side in (lang, PIVOT)]
            pairs = zip(*sides, strict=True)
            held_out[VALID][lang] = [pair for pair in pairs if all(pair)]
        else:
            file = text.valid_file(lang)
            held_out[VALID][lang] = parallel(lang, prepared(lang, [file]), valid_english, file)
    return held_out


def _read_lines(file: Path) -> list[str]:
    try:
        return file.read_bytes().decode("utf-8").rstrip("\n").split("\n")
    except UnicodeDecodeError as error:
        raise CorpusError("not UTF-8 text", where=file, got=str(error)) from error


def _lines_at(text: ScannedText, numbers: Collection[int]) -> list[str]:
    return [normalize(line) for number, line in enumerate(_all_lines(text)) if number in numbers]


def _all_lines(text: ScannedText) -> Iterator[str]:
    for part in range(len(text.offsets)):
        yield from text.part(part)


def _moses(lang: str) -> Callable[[str], str]:
    """Punctuation normalised, then split off, as EC40's text was: hyphens apart, nothing escaped.

    Raises:
        CorpusError: if sacremoses is not installed.
    """
    try:
        from sacremoses import MosesPunctNormalizer, MosesTokenizer
    except ImportError as error:
        raise CorpusError(
            "the training text is tokenised, so the held-out text must be too",
            got="no package sacremoses",
            mend="pip install sacremoses",
        ) from error
    normalizer, tokenizer = MosesPunctNormalizer(lang=lang), MosesTokenizer(lang=lang)

    def prepare(line: str) -> str:
        return tokenizer.tokenize(
            normalizer.normalize(normalize(line)), aggressive_dash_splits=True, escape=False, return_str=True
        )

    return prepare


# Serbian is written in both scripts, letter for letter.
_LATIN_LETTERS = "a b v g d đ e ž z i j k l lj m n nj o p r s t ć u f h c č dž š"
_LATIN = dict(
    zip(
        "абвгдђежзијклљмнњопрстћуфхцчџш",
        _LATIN_LETTERS.split(),
        strict=True,
    )
)
_LATIN |= {cyrillic.upper(): text.capitalize() for cyrillic, text in _LATIN.items()}


def latin(text: str) -> str:
    """Serbian text in Latin script, as EC40 has it."""
    return "".join(_LATIN.get(char, char) for char in text)


def _write_raw(held_out: Mapping[str, Mapping[str, Pairs]], folder: Path) -> dict[str, str]:
    hashes = {}
    for split, by_lang in held_out.items():
        for lang, pairs in by_lang.items():
            for side, code in enumerate((lang, PIVOT)):
                name = f"{split}.{lang}-{PIVOT}.{code}"
                content = "".join(f"{pair[side]}\n" for pair in pairs)
                write_text(folder / name, content)
                hashes[name] = hash_text(content)
    return hashes


# ------------------------------------------------------------------ training text

Keys = dict[str, frozenset[bytes]]  # language -> keys of its held-out sentences


def _key(text: str) -> bytes:
    """Equal for equal sentences, whether tokenised or not."""
    return blake2b("".join(text.replace("@-@", "-").split()).encode(), digest_size=8).digest()


def _keys(held_out: Mapping[str, Pairs]) -> Keys:
    keys = {lang: frozenset(_key(text) for text, _ in pairs) for lang, pairs in held_out.items()}
    keys[PIVOT] = frozenset(_key(english) for pairs in held_out.values() for _, english in pairs)
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
        scanned: Mapping[tuple[str, str], ScannedText],
        sampled: Mapping[str, Collection[int]],
        seen: Mapping[str, Keys],
    ) -> None:
        self.scanned, self.sampled, self.seen = scanned, sampled, seen
        self.parts = len(next(iter(scanned.values())).offsets)

    def lines(self, lang: str, part: int | None = None) -> int:
        """How many lines a language has, in all or in a part; for English, the sum over languages."""
        if lang == PIVOT:
            return sum(self.scanned[code].lines for code in self.scanned if code[1] == PIVOT)
        text = self.scanned[lang, PIVOT]
        return text.lines if part is None else text.lines_in(part)

    def part(
        self, lang: str, number: int, only: Collection[int] | None = None
    ) -> Iterator[tuple[int, str, str, str | None]]:
        """(line number, text in the language, English text, fault) of each line of a part, or of ``only`` some."""
        held_out = self.sampled.get(lang, ())
        sides = [self.scanned[lang, side] for side in (lang, PIVOT)]
        lines = zip(*(side.part(number) for side in sides), strict=True)
        for line, pair in enumerate(lines, start=sides[0].first_lines[number]):
            if only is None or line in only:
                text, english = map(normalize, pair)
                fault = "sampled for validation" if line in held_out else self._fault(lang, text, english)
                yield line, text, english, fault

    def _fault(self, lang: str, text: str, english: str) -> str | None:
        if not (text and english):
            return "empty"
        keys = {PIVOT: _key(english), lang: _key(text)}
        for split, name in ((TEST, "test"), (VALID, "validation")):
            for code, key in keys.items():
                if key in self.seen[split][code]:
                    return f"{'English' if code == PIVOT else 'other side'} of a {name} pair"
        return None

    def first_fit(self, lang: str, count: int) -> Pairs:
        """The first pairs of a language that are fit."""
        lines = (line for part in range(self.parts) for line in self.part(lang, part))
        return list(islice(((text, english) for _, text, english, fault in lines if fault is None), count))


def _sample_language(
    text: _TrainingText, shares: Mapping[str, int], seed: int, folder: Path, lang: str
) -> None:
    """Write the sentences of one language, and its part of the English ones, from which pieces are learnt."""
    target = folder / f"{lang}.txt"
    lines = text.lines(lang)
    if target.is_file():
        report_progress(lines)
        return
    rng = random.Random(f"pieces {seed} {lang}")
    chosen = frozenset(rng.sample(range(lines), shares[lang]))
    chosen_english = frozenset(rng.sample(range(lines), shares[PIVOT] * lines // text.lines(PIVOT)))
    with atomic_path(target) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as file:
        for part in range(text.parts):
            for number, foreign, english, fault in text.part(lang, part, only=chosen | chosen_english):
                if fault is None and number in chosen:
                    file.write(f"{foreign}\n")
                if fault is None and number in chosen_english:
                    file.write(f"{english}\n")
            report_progress(text.lines(lang, part))


def sample_sizes(lines: Mapping[str, int], total: int = PIECES_SAMPLE) -> dict[str, int]:
    """How many sentences of each language, and of English, the pieces are learnt on: ``total`` at most.

    English counts as a language with all pairs; a language with fewer sentences than its share gives all.
    """
    sizes = {**lines, PIVOT: sum(lines.values())}
    weights = {lang: size ** (1 / PIECES_TEMPERATURE) for lang, size in sizes.items()}
    return {
        lang: min(size, int(total * weights[lang] / sum(weights.values()))) for lang, size in sizes.items()
    }


def _learn_from_sample(
    text: _TrainingText, langs: Sequence[str], vocab_size: int, seed: int, workers: int, folder: Path
) -> bytes:
    shares = sample_sizes({lang: text.lines(lang) for lang in langs})
    sample = partial(_sample_language, text, shares, seed, folder)
    for _ in in_processes(
        sample, langs, workers=workers, lines=text.lines(PIVOT), description="sample sentences"
    ):
        pass
    return learn_pieces(_sentences(folder, langs), vocab_size)


def _sentences(folder: Path, langs: Sequence[str]) -> Iterator[str]:
    for lang in langs:
        with (folder / f"{lang}.txt").open(encoding="utf-8", newline="\n") as file:
            yield from (line.rstrip("\n") for line in file)


def _binarize_held_out(
    held_out: Mapping[str, Mapping[str, Pairs]], raw: Path, processor: Any, data_bin: Path, shards: int
) -> None:
    """Both sets into shard 0; fairseq looks for validation sets in every shard, so they are copied."""
    from neuron_spec.corpora.binarize import binarize

    first = data_bin / "shard0"
    names = [
        f"{split}.{lang}-{PIVOT}.{code}"
        for split, by_lang in held_out.items()
        for lang in by_lang
        for code in (lang, PIVOT)
    ]
    binarize(raw, names, processor, first)
    for shard in range(1, shards):
        for name in names:
            if name.startswith(VALID):
                for ending in ("bin", "idx"):
                    shutil.copyfile(
                        first / f"{name}.{ending}", data_bin / f"shard{shard}" / f"{name}.{ending}"
                    )


class _PartBinarizer:
    """Cleans, encodes and writes one part; called in the worker processes."""

    def __init__(self, text: _TrainingText, model: Path, data_bin: Path, records: Path) -> None:
        from neuron_spec.corpora.binarize import PieceIds

        self.text = text
        self.processor = load_pieces(model)
        self.ids = PieceIds(self.processor, data_bin / "shard0" / f"dict.{PIVOT}.txt")
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
        from neuron_spec.corpora.binarize import PartWriter

        folder = self.data_bin / f"shard{shard}"
        name = f"{TRAIN}.{lang}-{PIVOT}"
        counts: Counter[str] = Counter(kept=0)
        pairs = self.text.part(lang, shard)
        with ExitStack() as files:
            writers = []
            for code in (lang, PIVOT):
                data, index = (
                    files.enter_context(atomic_path(folder / f"{name}.{code}.{ending}"))
                    for ending in ("bin", "idx")
                )
                writers.append((PartWriter(data, self.ids.vocab_size), index))
            while batch := list(islice(pairs, _PAIRS_AT_ONCE)):
                faults = Counter(fault for *_, fault in batch if fault)
                fit = [(text, english) for _, text, english, fault in batch if fault is None]
                encoded = [
                    self.processor.encode([pair[side] for pair in fit], out_type=int) for side in (0, 1)
                ]
                kept = []
                for sides in zip(*encoded, strict=True):
                    if fault := fault_of_pieces(*map(len, sides)):
                        faults[fault] += 1
                    else:
                        kept.append(sides)
                for side, (writer, _) in enumerate(writers):
                    writer.add_sentences([sides[side] for sides in kept], self.ids)
                counts.update(faults, kept=len(kept))
                report_progress(len(batch))
            for writer, index in writers:
                writer.finalize(str(index))
        return dict(counts)
