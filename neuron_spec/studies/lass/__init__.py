"""The LaSS baseline: a mask per weight, from fine-tuning per direction."""
