"""A request's message, its reply, and its faults, by what is to be done about them."""

from dataclasses import dataclass

from vapo_verl.claims.shards.record import Usage

Message = dict[str, object]


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


class TransientFault(Exception):
    """Worth another try: a timeout, a lost connection, 429, 5xx, an answer that is none."""

    def __init__(self, reason: str, retry_after_s: float | None = None):
        super().__init__(reason)
        self.reason = reason
        """Short, without figures that differ by request: reasons are counted."""
        self.retry_after_s = retry_after_s
        """The wait that the server asks for."""


class ImageFailed(Exception):
    """This image gets no record in this run; the others go on."""

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        """Short and countable; `str()` has the details."""


class FatalFault(Exception):
    """Would befall every image: the run stops. The message says what to fix."""
