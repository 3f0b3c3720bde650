"""Rewards of one response: accuracy, format, perception, their sum (arXiv 2509.25848)."""

THINK_START = "<think>"
THINK_END = "</think>"
BOX = "\\boxed"
"""Begins the answer, after the reasoning."""
