"""How an answer is forced."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class EarlyOptions:
    """How an answer is forced."""

    num_cuts: int = 21
    """From 0 to 100 %, evenly."""
    time_up: str = "\nTime is up. I have to answer now.\n"
    """Put behind the cut."""
    end_of_thinking: str = "</think>"
    answer_start: str = "\n\\boxed{"
    """Begins the answer, so that few tokens are enough for it."""
    answer_tokens: int = 32

    @property
    def suffix(self) -> str:
        return self.time_up + self.end_of_thinking + self.answer_start

    def settings(self) -> dict[str, Any]:
        """By the names of their options."""
        return {f"--{name.replace('_', '-')}": value for name, value in asdict(self).items()}
