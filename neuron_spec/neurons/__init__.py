"""The method itself: neurons counted, selected and compared; torch only, no fairseq."""
