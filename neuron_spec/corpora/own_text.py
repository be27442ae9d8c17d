"""A user's own parallel text, of any pairs: cleaned, split without leaking, to a data-bin, in bounded memory, resumable.

The text is read line by line, several times: checked, and held-out sentences drawn; sampled for the pieces; cleaned,
encoded and written. A pair is the unit of work: its record lies in ``work/parts`` once it is done, and a killed build
goes on with the pairs that have none.
"""

from __future__ import annotations

import random
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import sentencepiece

from neuron_spec.artifacts import (
    SIGNATURE,
    atomic_path,
    claim,
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
from neuron_spec.corpora.checks import check_disk, normalize
from neuron_spec.corpora.ec30_plain import (
    PIECES_SAMPLE,
    PIECES_TEMPERATURE,
    fault_of_pieces,
    sentences_to_sample,
)
from neuron_spec.corpora.held_out import (
    PAIRS_AT_ONCE,
    HeldOut,
    HeldOutSentences,
    OwnText,
    draw,
    fault_of,
    read_held_out,
    require_known_text,
    scan,
)
from neuron_spec.corpora.parallel_files import ParallelFiles
from neuron_spec.corpora.sharding import in_processes, report_progress
from neuron_spec.corpora.splitting import NEAR_DUPLICATE
from neuron_spec.directions import Direction
from neuron_spec.errors import CorpusError
from neuron_spec.scoring.language_id import LINES_PER_LANGUAGE

_INDEX_BYTES = 24  # of a pair
_BYTES_PER_CHARACTER = 2  # of the data-bin, at most: no piece is shorter than a character


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
    pieces = load_pieces(sentencepiece_model) if sentencepiece_model else None
    held_out, blank = read_held_out(text)
    scans = scan(text, sizes, seed, workers)
    draw(text, scans, sizes, held_out)
    if sentencepiece_model and pieces:
        require_known_text(pieces, held_out, sentencepiece_model)
    characters, lines = (sum(of[name] for of in scans.values()) for name in ("characters", "lines"))
    with _leaves_nothing_if_refused(output):
        if not is_begun:
            check_disk(output, _BYTES_PER_CHARACTER * characters + _INDEX_BYTES * lines + 2**23)
            claim(work / SIGNATURE, wanted, what="begun corpus", where=work)
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
            name=text.train[0].paths[0].resolve().parent.name,  # the folder of the text
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


# ------------------------------------------------------------------ training text


class _Cleaner:
    """The training pairs of a file, normalised, with the reason why one is unfit."""

    def __init__(self, text: OwnText, held_out: HeldOut) -> None:
        self._text, self._held_out = text, held_out
        self._sentences = HeldOutSentences(text, held_out)

    def of(
        self, files: ParallelFiles, found: Mapping[str, Counter[str]] | None = None
    ) -> Iterator[tuple[str, str, str | None]]:
        """Source, target and fault of each line.

        Args:
            found: as `HeldOutSentences.fault_of` takes it.
        """
        for source, target in files.lines():
            source, target = normalize(source), normalize(target)
            fault = fault_of(source, target) or self._sentences.fault_of(files.pair, source, target, found)
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
                got=f"{record['kept']} fit; dropped: "
                + (", ".join(f"{number} {fault}" for fault, number in sorted(record["dropped"].items())) or "none"),
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
            while batch := list(islice(lines, PAIRS_AT_ONCE)):
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
