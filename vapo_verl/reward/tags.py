"""The tags of a response: reasoning inside <think> </think>, then the answer in a box."""

THINK_START = "<think>"
THINK_END = "</think>"
BOX = "\\boxed"
"""Begins the answer."""
