"""Data sets whose samples carry a direction id, and batches of one direction."""
