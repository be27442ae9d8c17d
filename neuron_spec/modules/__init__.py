"""Torch modules; only `specialized_attention` needs fairseq."""
