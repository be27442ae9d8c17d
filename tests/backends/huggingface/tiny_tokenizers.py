"""Tokenizers of M2M-100's and NLLB's kinds, trained here on a few lines: their files are made, and none is fetched."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import sentencepiece
from tiny_models import transformers

TEXT = {
    "en": [
        "The cat sees a dog.",
        "A dog and a cat sleep.",
        "The house is big and old.",
        "Where is the old dog?",
    ],
    "de": [
        "Die Katze sieht einen Hund.",
        "Ein Hund und eine Katze schlafen.",
        "Das Haus ist groß und alt.",
        "Wo?",
    ],
    "fr": [
        "Le chat voit un chien.",
        "Un chien et un chat dorment.",
        "La maison est grande et vieille.",
        "Où ?",
    ],
}
_SPECIAL = ["<s>", "<pad>", "</s>", "<unk>"]
_LINES = [line for lines in TEXT.values() for line in lines] * 5


def m2m_100(folder: Path) -> Any:
    """Codes ``en``, language tokens ``__en__`` behind the vocabulary."""
    prefix = folder / "sentencepiece.bpe"
    spm = _sentencepiece(prefix)
    pieces = [spm.id_to_piece(i) for i in range(3, spm.vocab_size())]
    vocabulary = {piece: i for i, piece in enumerate([*_SPECIAL, *pieces])}
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    return transformers.M2M100Tokenizer(str(folder / "vocab.json"), f"{prefix}.model")


def nllb() -> Any:
    """Codes and language tokens ``eng_Latn``."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    trained = Tokenizer(models.BPE(unk_token="<unk>"))
    trained.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always", split=True)
    trained.train_from_iterator(
        _LINES, trainers.BpeTrainer(vocab_size=120, special_tokens=_SPECIAL, show_progress=False)
    )
    model = json.loads(trained.to_str())["model"]
    return transformers.NllbTokenizer(
        vocab=model["vocab"], merges=[tuple(merge) for merge in model["merges"]]
    )


def nllb_with_pieces(folder: Path) -> Any:
    """As `nllb`, of a SentencePiece model, loaded from a folder as a hub has it: that model beside ``tokenizer.json``."""
    folder.mkdir(parents=True, exist_ok=True)
    spm = _sentencepiece(folder / "sentencepiece.bpe")
    pieces = [spm.id_to_piece(i) for i in range(3, spm.vocab_size())]
    vocabulary = {piece: i for i, piece in enumerate([*_SPECIAL, *pieces])}
    # As sentencepiece merges: the pair first that makes the piece of the highest score.
    splits = {piece: [(piece[:i], piece[i:]) for i in range(1, len(piece))] for piece in pieces}
    merges = [
        pair
        for piece in sorted(pieces, key=lambda piece: -spm.get_score(spm.piece_to_id(piece)))
        for pair in splits[piece]
        if {*pair} <= vocabulary.keys()
    ]
    transformers.NllbTokenizer(vocab=vocabulary, merges=merges).save_pretrained(folder)
    return transformers.AutoTokenizer.from_pretrained(folder)


def _sentencepiece(prefix: Path) -> Any:
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(_LINES),
        model_prefix=str(prefix),
        vocab_size=90,
        model_type="bpe",
        minloglevel=2,
    )
    return sentencepiece.SentencePieceProcessor(model_file=f"{prefix}.model")


def size(tokenizer: Any) -> int:
    """How many tokens a model of it has."""
    return max(len(tokenizer), getattr(tokenizer, "encoder_size", 0) + 108)
