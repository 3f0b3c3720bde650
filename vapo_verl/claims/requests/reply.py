"""A request's message, its reply, and its faults by how they are handled.

:func:`read_reply` is strict: any body that is not a chat completion counts as one unreadable reply,
and the same request is sent again.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass

from vapo_verl.claims.shards import Usage

Message = dict[str, object]
UNREADABLE = "unreadable reply"
"""Counted reason of every reply that is not a completion."""
_MAX_TOKENS = 10**12
_SHOWN_CHARACTERS = 80


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
    """At least one; servers that do not know `n` send one even if more were requested."""
    usage: Usage


class TransientFault(Exception):
    """A fault worth a retry: a timeout, a lost connection, 429, 5xx, an unreadable reply."""

    def __init__(self, reason: str, retry_after_s: float | None = None, detail: str = ""):
        super().__init__(reason)
        self.reason = reason
        """Short, without figures that differ by request: reasons are counted."""
        self.retry_after_s = retry_after_s
        """The wait that the server asks for; may be infinite."""
        self.detail = detail
        """Details for the message of an image that fails because of it."""


class ImageFailed(Exception):
    """This image gets no record in this run; the others go on."""

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        """Short and countable; `str()` has the details."""


class FatalFault(Exception):
    """Every image would fail: the run stops. The message says what to fix."""


def read_reply(body: bytes) -> Reply:
    """The completion in a response's body: JSON in UTF-8 with ``choices[i].message.content``.

    `content` must be a string, not a list of parts or null. Null counts as empty if the token limit
    ended the answer, as when a model was still thinking. Token counts may be absent or null.

    Raises:
        TransientFault: anything else, with the reason ``UNREADABLE``.
    """
    try:
        fields = _mapping(json.loads(body.decode("utf-8-sig")), "the reply")
    except UnicodeDecodeError as error:
        raise _unreadable("the reply is not UTF-8") from error
    except RecursionError as error:
        raise _unreadable("the reply is nested too deeply") from error
    except ValueError as error:
        raise _unreadable(f"the reply is no JSON: {printable(body[:200])}") from error
    choices = fields.get("choices")
    if not isinstance(choices, list) or not choices:
        raise _unreadable(f"choices is {_shown(choices)}")
    return Reply(
        choices=tuple(_choice(_mapping(choice, "a choice")) for choice in choices),
        usage=_usage(fields.get("usage")),
    )


def _choice(choice: Mapping[str, object]) -> Choice:
    message = _mapping(choice.get("message"), "message")
    content, cut_off = message.get("content"), choice.get("finish_reason") == "length"
    if content is None and cut_off:
        content = ""
    if not isinstance(content, str):
        raise _unreadable(f"content is {_shown(content)}")
    if any("\ud800" <= character <= "\udfff" for character in content):
        raise _unreadable("content holds half of a surrogate pair")
    return Choice(text=content, cut_off=cut_off)


def _usage(given: object) -> Usage:
    fields = {} if given is None else _mapping(given, "usage")
    return Usage(
        num_requests=1,
        prompt_tokens=_token_count(fields, "prompt_tokens"),
        completion_tokens=_token_count(fields, "completion_tokens"),
    )


def _token_count(usage: Mapping[str, object], name: str) -> int:
    count = usage.get(name)
    if count is None:
        return 0
    if type(count) is not int or not 0 <= count <= _MAX_TOKENS:
        raise _unreadable(f"usage.{name} is {_shown(count)}")
    return count


def _mapping(value: object, name: str) -> Mapping[str, object]:
    if not isinstance(value, dict):
        raise _unreadable(f"{name} is {_shown(value)}")
    return value


def _unreadable(detail: str) -> TransientFault:
    return TransientFault(UNREADABLE, detail=detail)


def _shown(value: object) -> str:
    if isinstance(value, int) and value.bit_length() > 256:
        return "a number of absurd size"  # Python refuses to write those of over 4,300 digits
    return printable(repr(value))


def printable(text: str | bytes) -> str:
    """One short line of `text` that any terminal and any file can take."""
    if isinstance(text, bytes):
        text = text.decode("utf-8", "replace")
    line = "".join(c if c.isprintable() else " " for c in text[: 4 * _SHOWN_CHARACTERS])
    line = " ".join(line.split())
    return line if len(line) <= _SHOWN_CHARACTERS else f"{line[:_SHOWN_CHARACTERS]}..."
