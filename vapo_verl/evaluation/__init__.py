"""Evaluation of a checkpoint on held-out rows: probing commands and their results."""
