"""Texts of the warm-up around questions and claims, and where a response may be cut."""

from __future__ import annotations

READ_PROMPT = "Read all digits."
"""Asks for every cell in any order; an exercise that is no question of the data set."""

ANCHOR_TEXT = "\n<anchor>{claim} Is this claim correct? Answer (Yes/No):"
"""Put after a cut of the response; ends without a space."""

VERDICTS = {True: " Yes", False: " No"}
"""The answer token by the claim's truth, with the space that natural text has after a colon."""

BOUNDARIES = frozenset(".,!?;:\n")
"""Characters that end a logical unit of the reasoning."""


def cut_positions(pieces: list[str]) -> list[int]:
    """Return where a response may be cut: 0, and after every token that ends at a logical boundary.

    Args:
        pieces: the decoded text of every response token.
    """
    ends = (index + 1 for index, piece in enumerate(pieces) if piece[-1:] in BOUNDARIES)
    return [0, *ends]
