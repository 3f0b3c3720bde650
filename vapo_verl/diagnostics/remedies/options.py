"""What is put into a response, and how often."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

COMMAND = "remedies"
PLAIN = "plain"
REMEDIES = ("replay", "focus")


@dataclass(frozen=True, slots=True, kw_only=True)
class RemedyOptions:
    """Options of the command."""

    num_insertions: int = 4
    replay_scale: float = 0.5
    """Of both sides of the replayed image. The model's image processor has its own lower limit."""
    replay_text: str = "Here is the image again. Go on."
    """Of the user turn, behind the image."""
    focus_text: str = " Let me look at the image again."

    def settings(self) -> dict[str, Any]:
        """By the names of their options."""
        return {f"--{name.replace('_', '-')}": value for name, value in asdict(self).items()}
