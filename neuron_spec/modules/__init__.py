"""Torch modules; no fairseq."""
