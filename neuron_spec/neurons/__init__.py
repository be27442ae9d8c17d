"""The method itself: neurons counted, selected and compared; without fairseq."""
