"""fairseq: reading its checkpoints and data, running its commands and models."""
