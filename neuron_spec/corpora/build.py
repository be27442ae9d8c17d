"""From parallel text to everything a run needs: raw text, SentencePiece, data-bin, corpus card."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import sentencepiece

from neuron_spec.artifacts import (
    CORPUS_CARD,
    atomic_path,
    completed,
    hash_text,
    read_json,
    read_lines,
    signature,
    write_json,
    write_text,
)
from neuron_spec.corpora.sharding import check_disk
from neuron_spec.directions import Direction
from neuron_spec.errors import ArtifactError, CorpusError

PIVOT = "en"
SPLITS = ("train", "valid", "test")


@dataclass
class Corpus:
    """Parallel text around English, before subword segmentation.

    ``pairs[split][lang]`` lists (text in ``lang``, English text).
    """

    name: str
    pairs: dict[str, dict[str, list[tuple[str, str]]]]
    families: dict[str, str]
    tiers: dict[str, str]
    sources: list[dict[str, str]]
    cleaning: dict[str, dict[str, int]] = field(default_factory=dict)
    leak: dict[str, Any] = field(default_factory=dict)

    @property
    def langs(self) -> list[str]:
        return [PIVOT, *self.pairs["train"]]

    @property
    def lang_pairs(self) -> list[str]:
        return [pair for lang in self.pairs["train"] for pair in (f"{PIVOT}-{lang}", f"{lang}-{PIVOT}")]


def corpus_folder(data_bin: str | Path) -> Path:
    """The folder that holds a data-bin; of a sharded one (``shard0:shard1``), the folder above all shards."""
    first = Path(str(data_bin).split(":")[0])
    is_sharded = not (first.parent / CORPUS_CARD).is_file() and (first.parent.parent / CORPUS_CARD).is_file()
    return first.parent.parent if is_sharded else first.parent


def card_of(data_bin: str | Path) -> dict[str, Any] | None:
    """The corpus card beside a data-bin of ours; None for a data-bin made elsewhere."""
    path = corpus_folder(data_bin) / CORPUS_CARD
    return read_json(path, "corpus card") if path.is_file() else None


def is_built(output: Path, parameters: Mapping[str, Any]) -> bool:
    """Whether ``output`` already holds this corpus, made with these parameters.

    Raises:
        ArtifactError: if it holds another corpus, which must not be overwritten.
    """
    wanted = signature("data", inputs={}, parameters=parameters)
    return completed(output / CORPUS_CARD, wanted, what="corpus", where=output)


def build(
    corpus: Corpus,
    output: Path,
    *,
    vocab_size: int,
    parameters: Mapping[str, Any],
    sentencepiece_model: Path | None = None,
) -> None:
    """Write ``raw/``, ``spm/``, ``data-bin/`` and, last, ``corpus.json`` below ``output``.

    Args:
        sentencepiece_model: use this model instead of learning one of ``vocab_size``, so that a
            checkpoint trained elsewhere fits.

    Raises:
        CorpusError: if a language has no text in a split, or the disk is too full.
    """
    for split in SPLITS:
        for lang, pairs in corpus.pairs[split].items():
            if not pairs:
                raise CorpusError("a language without text", where=f"{corpus.name}, {split} split", got=lang)
    check_disk(output, _bytes_needed(corpus))
    hashes = _write_raw(corpus, output / "raw")
    model = output / "spm" / "sentencepiece.model"
    with atomic_path(model) as temporary:
        temporary.write_bytes(
            sentencepiece_model.read_bytes()
            if sentencepiece_model
            else learn_pieces(_training_text(corpus), vocab_size)
        )
    processor = load_pieces(model)
    _binarize(corpus, output / "raw", processor, output / "data-bin")
    write_text(output / "data-bin" / "langs.txt", "\n".join(corpus.langs) + "\n")
    write_text(output / "data-bin" / "lang_pairs.txt", ",".join(corpus.lang_pairs) + "\n")
    vocabulary = {"model": "SentencePiece BPE, joint over all languages", "size": processor.vocab_size()}
    vocabulary["learned_on"] = (
        f"given: {sentencepiece_model.name}" if sentencepiece_model else "this training text"
    )
    write_json(output / CORPUS_CARD, _card(corpus, vocabulary, hashes, parameters))


def _bytes_needed(corpus: Corpus) -> int:
    """The text, as much again for the data-bin (measured: 0.8 to 0.9 of it), and the vocabulary."""
    text = sum(
        len(line.encode()) + 1
        for langs in corpus.pairs.values()
        for pairs in langs.values()
        for pair in pairs
        for line in pair
    )
    return 2 * text + 2**23


def _write_raw(corpus: Corpus, folder: Path) -> dict[str, str]:
    hashes = {}
    for split in SPLITS:
        for lang, pairs in corpus.pairs[split].items():
            for side, code in enumerate((lang, PIVOT)):
                name = f"{split}.{lang}-{PIVOT}.{code}"
                text = "".join(f"{pair[side]}\n" for pair in pairs)
                write_text(folder / name, text)
                hashes[name] = hash_text(text)
    return hashes


def _training_text(corpus: Corpus) -> list[str]:
    """Every text of the training split; an English one only once."""
    english = dict.fromkeys(en for pairs in corpus.pairs["train"].values() for _, en in pairs)
    foreign = (text for pairs in corpus.pairs["train"].values() for text, _ in pairs)
    return [*english, *foreign]


def learn_pieces(sentences: Iterable[str], vocab_size: int) -> bytes:
    """Joint BPE over all languages. No normalisation: the text is clean, and decoding must give it back.

    Raises:
        CorpusError: if the text does not give a vocabulary of that size.
    """
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sentences),
            model_writer=model,
            model_type="bpe",
            vocab_size=vocab_size,
            character_coverage=1.0,
            normalization_rule_name="identity",
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise CorpusError(
            "SentencePiece cannot learn this vocabulary", got=str(error), mend="change --vocab-size"
        ) from error
    return model.getvalue()


def load_pieces(model: Path) -> sentencepiece.SentencePieceProcessor:
    """Raises: CorpusError if the file is no SentencePiece model."""
    try:
        return sentencepiece.SentencePieceProcessor(model_file=str(model))
    except RuntimeError as error:
        raise CorpusError("not a SentencePiece model", where=model, got=str(error)) from error


def _binarize(
    corpus: Corpus, raw: Path, processor: sentencepiece.SentencePieceProcessor, data_bin: Path
) -> None:
    from neuron_spec.corpora.binarize import binarize

    write_dictionaries(processor, corpus.langs, data_bin)
    names = [
        f"{split}.{lang}-{PIVOT}.{code}"
        for split in SPLITS
        for lang in corpus.pairs[split]
        for code in (lang, PIVOT)
    ]
    binarize(raw, names, processor, data_bin)


def write_dictionaries(
    processor: sentencepiece.SentencePieceProcessor, langs: Iterable[str], data_bin: Path
) -> None:
    """The same ``dict.LANG.txt`` for every language: the pieces, in the model's order."""
    pieces = [processor.id_to_piece(i) for i in range(processor.vocab_size())]
    specials = {"<unk>", "<s>", "</s>"}  # fairseq adds its own
    dictionary = "".join(f"{piece} 1\n" for piece in pieces if piece not in specials)
    for lang in langs:
        write_text(data_bin / f"dict.{lang}.txt", dictionary)


def _card(
    corpus: Corpus, vocabulary: Mapping[str, Any], hashes: Mapping[str, str], parameters: Mapping[str, Any]
) -> dict[str, Any]:
    return {
        "name": corpus.name,
        "langs": corpus.langs,
        "lang_pairs": corpus.lang_pairs,
        "families": corpus.families,
        "tiers": corpus.tiers,
        "sources": corpus.sources,
        "vocabulary": dict(vocabulary),
        "pairs": {
            split: {lang: len(pairs) for lang, pairs in corpus.pairs[split].items()} for split in SPLITS
        },
        "dropped_in_cleaning": corpus.cleaning,
        "leak_report": corpus.leak,
        "raw_sha256": dict(hashes),
        "signature": signature("data", inputs={}, parameters=parameters),
    }


def raw_file(data_bin: str | Path, split: str, source: str, target: str, side: str) -> Path:
    """The raw text of one side of a split, beside a data-bin of ours.

    Raises:
        ArtifactError: if it is not there, as with a data-bin made elsewhere.
    """
    folder = corpus_folder(data_bin) / "raw"
    for pair in (f"{source}-{target}", f"{target}-{source}"):
        if (path := folder / f"{split}.{pair}.{side}").is_file():
            return path
    raise ArtifactError(
        "raw text not found",
        where=folder / f"{split}.{source}-{target}.{side}",
        mend="raw references are scored by default; where only a data-bin exists, score its "
        "detokenised targets with --references data-bin",
    )


def raw_texts(
    data_bin: str | Path, split: str, directions: Sequence[Direction]
) -> dict[Direction, tuple[list[str], list[str]]]:
    """Source and target lines of every direction, beside a data-bin of ours.

    Raises:
        ArtifactError: as `raw_file`.
    """
    texts = {}
    for d in directions:
        source, target = (
            read_lines(raw_file(data_bin, split, d.source, d.target, side)) for side in (d.source, d.target)
        )
        texts[d] = source, target
    return texts
