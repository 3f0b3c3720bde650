"""Texts of the warm-up around questions and claims, and where a response may be cut."""

from __future__ import annotations

from vapo_verl.anchors.placement import logical_boundaries
from vapo_verl.config import AnchorConfig

READ_PROMPT = "Read all digits."
"""Asks for every cell in any order; an exercise that is no question of the data set."""

ANCHOR_TEXT = AnchorConfig().question
"""Put after a cut of the response, as in training."""

VERDICTS = {True: AnchorConfig().yes_words[0], False: AnchorConfig().no_words[0]}
"""The answer token by the claim's truth, with the space that natural text has after a colon."""


def cut_positions(pieces: list[str]) -> list[int]:
    """Return where a response may be cut: 0, and its logical boundaries.

    Args:
        pieces: the decoded text of every response token.
    """
    return [0, *logical_boundaries(pieces)]
