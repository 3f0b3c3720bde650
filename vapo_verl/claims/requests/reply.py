"""What came back for one request."""

from dataclasses import dataclass

from vapo_verl.claims.shards.record import Usage


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """One answer of the model."""

    text: str
    cut_off: bool
    """The token limit ended it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """The answers to one request, and their cost."""

    choices: tuple[Choice, ...]
    """At least one; servers that do not know `n` send one where more were asked for."""
    usage: Usage
