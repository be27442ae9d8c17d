"""Corpora: from a source to raw text, SentencePiece model, data-bin and corpus card."""
