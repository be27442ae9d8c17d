"""One direction's model, out of fairseq."""
