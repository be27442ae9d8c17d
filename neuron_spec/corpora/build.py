"""From parallel text to everything a run needs: raw text, SentencePiece, data-bin, corpus card."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import sentencepiece

from neuron_spec.artifacts import (
    CORPUS_CARD,
    SIGNATURE,
    atomic_path,
    claim,
    completed,
    hash_text,
    read_json,
    read_lines,
    require_file,
    signature,
    write_json,
    write_text,
)
from neuron_spec.corpora.checks import check_disk
from neuron_spec.directions import Direction, are_directions
from neuron_spec.errors import ArtifactError, CorpusError
from neuron_spec.export.folder import PIECES
from neuron_spec.forms import number, require_form
from neuron_spec.languages import ENGLISH, PIVOT, family_of, is_code

SPLITS = TRAIN, VALID, TEST = "train", "valid", "test"
VOCABULARY = "SentencePiece BPE, joint over all languages"
Pairs = Sequence[tuple[str, str]]  # (text in the language, English text)


@dataclass(kw_only=True)
class Description:
    """What the card says of a corpus besides its text.

    Attributes:
        families: language -> family; None: those of the language table.
        cleaning: language -> reason -> pairs dropped.
        notes: what only this corpus has to say.
    """

    name: str
    sources: Sequence[Mapping[str, str]]
    families: Mapping[str, str] | None = None
    tiers: Mapping[str, str] = field(default_factory=dict)
    cleaning: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    leak: Mapping[str, Any] = field(default_factory=dict)
    notes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(kw_only=True)
class Corpus(Description):
    """Parallel text around English, before subword segmentation: split -> language -> pairs."""

    pairs: Mapping[str, Mapping[str, Pairs]]

    @property
    def langs(self) -> list[str]:
        return [ENGLISH, *self.pairs[TRAIN]]


def _is_language(code: Any) -> bool:
    """a language code"""
    return isinstance(code, str) and is_code(code)


def _is_family(name: Any) -> bool:
    """the name of a family"""
    return isinstance(name, str) and bool(name.strip())


def corpus_folder(data_bin: str | Path) -> Path:
    """The folder that holds a data-bin; of a sharded one (``shard0:shard1``), the folder above all shards."""
    first = Path(str(data_bin).split(":")[0])
    is_sharded = not (first.parent / CORPUS_CARD).is_file() and (first.parent.parent / CORPUS_CARD).is_file()
    return first.parent.parent if is_sharded else first.parent


def pieces_model(data_bin: str | Path) -> Path | None:
    """The SentencePiece model that a data-bin's text was segmented with, where it lies beside it or in it."""
    places = (corpus_folder(data_bin) / "spm", Path(data_bin))
    return next((file for of in places if (file := of / PIECES).is_file()), None)


def card_of(data_bin: str | Path, *needed: str) -> dict[str, Any] | None:
    """The corpus card beside a data-bin of ours; None for a data-bin made elsewhere.

    Raises:
        ArtifactError: as `read_card`.
    """
    path = corpus_folder(data_bin) / CORPUS_CARD
    return read_card(path, *needed) if path.is_file() else None


_COUNTS = {str: number(0, whole=True)}
_CARD = {
    "name": str,
    "langs": [_is_language],
    "lang_pairs": are_directions,
    "pairs": {TRAIN: _COUNTS, str: _COUNTS},
    "families": {str: str},
    "tiers": {str: str},
    "sources": [{"name": str, "licence": str}],
    "leak_report": {},
    "vocabulary": {},
    "raw_sha256": {str: str},
    "signature": {},
    PIVOT: (_is_language, None),
}


def read_card(path: Path, *needed: str) -> dict[str, Any]:
    """A corpus card.

    Args:
        needed: keys that it has to have.

    Raises:
        ArtifactError: if it is missing, lacks one, or is damaged.
    """
    card = read_json(path, "corpus card")
    form = {key if key in needed else f"{key}?": form for key, form in _CARD.items()}
    mend = "make it by neuron-spec data text, or neuron-spec data existing; or take it away: all but families and a "
    mend += "report's lines on the corpus goes without"
    require_form(card or None, form, "a corpus card", path, headline="not a corpus card", mend=mend)
    return dict(card)


def read_families(path: str | Path) -> dict[str, str]:
    """Language -> family, of a JSON file of these alone, or of a corpus card.

    Raises:
        ArtifactError: if it is missing, or another thing.
    """
    content = read_json(path, "families of the languages")
    families = content.get("families", content) if isinstance(content, dict) else content
    headline = 'not a file of families: JSON such as {"de": "Germanic"}, or a corpus card'
    require_form(families, {str: _is_family}, "a file of families", path, headline=headline)
    return dict(families)


def training_pairs(card: Mapping[str, Any], direction: Direction) -> int:
    """How many pairs a direction has in training, by a corpus card."""
    counts = card["pairs"][TRAIN]
    names = (str(direction), f"{direction.target}-{direction.source}", direction.source, direction.target)
    return int(next(counts[name] for name in names if name in counts))


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
    zero_shot: Sequence[tuple[str, str]] = (),
) -> None:
    """Write ``raw/``, ``spm/``, ``data-bin/`` and, last, ``corpus.json`` below ``output``.

    Args:
        sentencepiece_model: use this model instead of learning one of ``vocab_size``, so that a
            checkpoint trained elsewhere fits.
        zero_shot: pairs of languages other than English, to be translated without being trained on: their
            validation and test text is that of their pairs with English.

    Raises:
        ArtifactError: if another corpus was begun there, whose sets would stay.
        CorpusError: if a language has no text in a split, the English lines of a zero-shot pair differ, or
            the disk is too full.
    """
    from neuron_spec.corpora.binarize import binarize

    work = output / "work"
    wanted = signature("data", inputs={}, parameters=parameters)
    is_begun = completed(work / SIGNATURE, wanted, what="begun corpus", where=output, quiet=True)

    pairs = {split: corpus.pairs[split] for split in SPLITS}
    for split, by_lang in pairs.items():
        if empty := [lang for lang, of_lang in by_lang.items() if not of_lang]:
            raise CorpusError("a language without text", where=f"{corpus.name}, {split} split", got=empty[0])
    between = {pair: {split: _between(*pair, pairs[split]) for split in (VALID, TEST)} for pair in zero_shot}
    lines = (line for by_lang in pairs.values() for pair in chain(*by_lang.values()) for line in pair)
    # The text, as much again for the data-bin (measured: 0.8 to 0.9 of it), and the vocabulary.
    check_disk(output, 2 * sum(len(line.encode()) + 1 for line in lines) + 2**23)
    if not is_begun:
        claim(work / SIGNATURE, wanted, what="begun corpus", where=output)
    raw, data_bin = output / "raw", output / "data-bin"
    hashes = write_raw(pairs, raw)
    for (lang, other), of_pair in between.items():
        hashes |= write_raw({split: {lang: lines} for split, lines in of_pair.items()}, raw, other=other)
    training_pairs = list(chain(*pairs[TRAIN].values()))
    english = dict.fromkeys(text for _, text in training_pairs)  # each only once
    processor, vocabulary = write_pieces(
        output,
        chain(english, (text for text, _ in training_pairs)),
        vocab_size,
        given=sentencepiece_model,
        learned_on="this training text",
    )
    write_dictionaries(processor, corpus.langs, data_bin)
    binarize(raw, hashes, processor, data_bin)
    write_card(
        output, corpus, pairs=count_pairs(pairs), vocabulary=vocabulary, hashes=hashes, parameters=parameters
    )
    (work / SIGNATURE).unlink()
    with suppress(OSError):  # a folder with something of the user's
        work.rmdir()


def _between(lang: str, other: str, by_lang: Mapping[str, Pairs]) -> Pairs:
    """The lines of two languages side by side, which have the same English."""
    if [english for _, english in by_lang[lang]] != [english for _, english in by_lang[other]]:
        raise CorpusError(
            "no zero-shot text: the languages translate different English lines",
            got=f"{lang}-{other}",
            expected="languages whose validation and test sets are the same sentences",
            mend="leave it out of --zero-shot",
        )
    return [(text, its) for (text, _), (its, _) in zip(by_lang[lang], by_lang[other], strict=True)]


def write_raw(
    pairs: Mapping[str, Mapping[str, Pairs]], folder: Path, *, other: str = ENGLISH
) -> dict[str, str]:
    """Write ``train.de-en.de`` and ``train.de-en.en`` for every split and language, ``en`` being ``other``.

    Returns:
        File name -> hash of its text.
    """
    hashes = {}
    for split, by_lang in pairs.items():
        for lang, of_lang in by_lang.items():
            for side, code in enumerate((lang, other)):
                name = f"{split}.{lang}-{other}.{code}"
                text = "".join(f"{pair[side]}\n" for pair in of_lang)
                write_text(folder / name, text)
                hashes[name] = hash_text(text)
    return hashes


def count_pairs(pairs: Mapping[str, Mapping[str, Pairs]]) -> dict[str, dict[str, int]]:
    """Split -> language -> number of pairs."""
    return {
        split: {lang: len(of_lang) for lang, of_lang in by_lang.items()} for split, by_lang in pairs.items()
    }


def write_pieces(
    output: Path,
    sentences: Iterable[str],
    vocab_size: int,
    *,
    given: Path | None,
    learned_on: str,
    keep: bool = False,
) -> tuple[sentencepiece.SentencePieceProcessor, dict[str, Any]]:
    """Write ``spm/sentencepiece.model``: a copy of the ``given`` one, or joint BPE learnt on the sentences.

    Args:
        sentences: read only if there is something to learn.
        keep: leave a model that is already there, as by a build that was killed.

    Returns:
        The model, and what the card says of the vocabulary.

    Raises:
        CorpusError: if the given file is no SentencePiece model, or the text does not give a vocabulary of
            that size.
    """
    model = output / "spm" / PIECES
    if not (keep and model.is_file()):
        learned = io.BytesIO()
        if not given:
            try:
                # No normalisation: the text is clean, and decoding must give it back.
                sentencepiece.SentencePieceTrainer.train(
                    sentence_iterator=iter(sentences),
                    model_writer=learned,
                    model_type="bpe",
                    vocab_size=vocab_size,
                    character_coverage=1.0,
                    normalization_rule_name="identity",
                    num_threads=1,
                    minloglevel=2,
                )
            except RuntimeError as error:
                what = "SentencePiece cannot learn this vocabulary"
                raise CorpusError(what, got=str(error), mend="change --vocab-size") from error
        with atomic_path(model) as temporary:
            temporary.write_bytes(
                require_file(given, "SentencePiece model").read_bytes() if given else learned.getvalue()
            )
    processor = load_pieces(model)
    return processor, {
        "model": VOCABULARY,
        "size": processor.vocab_size(),
        "learned_on": f"given: {given.name}" if given else learned_on,
    }


def load_pieces(model: Path) -> sentencepiece.SentencePieceProcessor:
    """Raises: CorpusError if the file is no SentencePiece model."""
    try:
        return sentencepiece.SentencePieceProcessor(model_file=str(model))
    except RuntimeError as error:
        raise CorpusError("not a SentencePiece model", where=model, got=str(error)) from error


def write_dictionaries(
    processor: sentencepiece.SentencePieceProcessor, langs: Iterable[str], data_bin: Path
) -> None:
    """The same ``dict.LANG.txt`` for every language: the pieces, in the model's order."""
    pieces = [processor.id_to_piece(i) for i in range(processor.vocab_size())]
    specials = {"<unk>", "<s>", "</s>"}  # fairseq adds its own
    dictionary = "".join(f"{piece} 1\n" for piece in pieces if piece not in specials)
    for lang in langs:
        write_text(data_bin / f"dict.{lang}.txt", dictionary)


def write_card(
    output: Path,
    corpus: Description,
    *,
    pairs: Mapping[str, Mapping[str, int]],
    vocabulary: Mapping[str, Any],
    hashes: Mapping[str, str],
    parameters: Mapping[str, Any],
    langs: Sequence[str] | None = None,
    lang_pairs: Sequence[str] | None = None,
) -> None:
    """Write the data-bin's ``langs.txt`` and ``lang_pairs.txt``, for fairseq's flags, and, last, ``corpus.json``.

    Args:
        pairs: split -> language, whose pair with English it is, or pair such as ``de-fr`` -> number of pairs.
        hashes: of raw files, as `write_raw` returns them.
        parameters: of the signature.
        langs, lang_pairs: None: English and the languages of ``pairs``, each with English both ways.
    """
    langs = langs or [ENGLISH, *pairs[TRAIN]]
    lang_pairs = lang_pairs or [
        pair for lang in pairs[TRAIN] for pair in (f"{ENGLISH}-{lang}", f"{lang}-{ENGLISH}")
    ]
    write_text(output / "data-bin" / "langs.txt", "\n".join(langs) + "\n")
    write_text(output / "data-bin" / "lang_pairs.txt", ",".join(lang_pairs) + "\n")
    card = {
        "name": corpus.name,
        "langs": list(langs),
        "lang_pairs": list(lang_pairs),
        "families": {lang: family_of(lang, corpus.families) for lang in (*langs[1:], langs[0])},
        "tiers": corpus.tiers,
        "sources": corpus.sources,
        "vocabulary": vocabulary,
        "pairs": pairs,
        "dropped_in_cleaning": corpus.cleaning,
        "leak_report": corpus.leak,
        "raw_sha256": hashes,
        **corpus.notes,
        "signature": signature("data", inputs={}, parameters=parameters),
    }
    write_json(output / CORPUS_CARD, card)


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

    def lines(d: Direction, side: str) -> list[str]:
        return read_lines(raw_file(data_bin, split, d.source, d.target, side))

    return {d: (lines(d, d.source), lines(d, d.target)) for d in directions}
