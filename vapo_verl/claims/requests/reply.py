"""A request's message, its reply, and its faults by how they are handled.

:func:`read_reply` is strict: any body that is not a chat completion counts as one unreadable reply,
and the same request is sent again.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from urllib.parse import quote

from vapo_verl.claims.shards import Usage

Message = dict[str, object]
UNREADABLE = "unreadable reply"
"""Counted reason of every reply that is not a completion."""
_MAX_TOKENS = 10**12
_SHOWN_CHARACTERS = 300
_WHY_EMPTY = ("refusal", "finish_reason")
"""Fields of a choice or of its message that say why there is no text."""


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


class _NoCompletion(Exception):
    """A body that is no completion; the message may quote any part of it, in full."""


def read_reply(body: bytes, hide: Callable[[str], str] = str) -> Reply:
    """The completion in a response's body: JSON in UTF-8 with ``choices[i].message.content``.

    `content` must be a string, not a list of parts or null. Null counts as empty if the token limit
    ended the answer, as when a model was still thinking. Token counts may be absent or null.

    Args:
        hide: takes secrets out of what a fault quotes of the body; completions stay as they are.

    Raises:
        TransientFault: anything else, with the reason ``UNREADABLE``. The detail has the message of
            an error body, and a refusal.
    """
    try:
        return _completion(body)
    except _NoCompletion as bad:
        raise TransientFault(UNREADABLE, detail=printable(hide(str(bad)))) from None


def _completion(body: bytes) -> Reply:
    try:
        fields = _mapping(json.loads(body.decode("utf-8-sig")), "the reply")
    except UnicodeDecodeError as error:
        raise _NoCompletion("the reply is not UTF-8") from error
    except RecursionError as error:
        raise _NoCompletion("the reply is nested too deeply") from error
    except ValueError as error:
        text = body.decode("utf-8", "replace")
        raise _NoCompletion(f"the reply is no JSON: {text}") from error
    choices = fields.get("choices")
    if not isinstance(choices, list) or not choices:
        said, code = stated_error(fields)
        if said:
            raise _NoCompletion(f"an error: {said}" + (f" (code {code})" if code else ""))
        raise _NoCompletion(f"choices is {_shown(choices)}")
    return Reply(
        choices=tuple(_choice(_mapping(choice, "a choice")) for choice in choices),
        usage=_usage(fields.get("usage")),
    )


def stated_error(fields: object) -> tuple[str, object]:
    """Message and code of the decoded body of an error; an empty message without one."""
    error = fields.get("error") if isinstance(fields, dict) else None
    if isinstance(error, dict):
        return str(error.get("message") or ""), error.get("code")
    return (error, None) if isinstance(error, str) else ("", None)


def _choice(choice: Mapping[str, object]) -> Choice:
    message = _mapping(choice.get("message"), "message")
    content, cut_off = message.get("content"), choice.get("finish_reason") == "length"
    if content is None and cut_off:
        content = ""
    if not isinstance(content, str):
        stated = [f"{name} is {_shown(value)}" for name, value in _why_empty(choice, message)]
        raise _NoCompletion(", ".join((f"content is {_shown(content)}", *stated)))
    if any("\ud800" <= character <= "\udfff" for character in content):
        raise _NoCompletion("content holds half of a surrogate pair")
    return Choice(text=content, cut_off=cut_off)


def _why_empty(*parts: Mapping[str, object]) -> Iterator[tuple[str, object]]:
    return ((name, part[name]) for part in parts for name in _WHY_EMPTY if part.get(name))


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
        raise _NoCompletion(f"usage.{name} is {_shown(count)}")
    return count


def _mapping(value: object, name: str) -> Mapping[str, object]:
    if not isinstance(value, dict):
        raise _NoCompletion(f"{name} is {_shown(value)}")
    return value


def _shown(value: object) -> str:
    if isinstance(value, int) and value.bit_length() > 256:
        return "a number of absurd size"  # Python refuses to write those of over 4,300 digits
    return "null" if value is None else repr(value)


def printable(text: str) -> str:
    """One line of `text`, cut short, that any terminal and any file can take."""
    line = "".join(c if c.isprintable() else " " for c in text[: 4 * _SHOWN_CHARACTERS])
    line = " ".join(line.split())
    return line if len(line) <= _SHOWN_CHARACTERS else f"{line[:_SHOWN_CHARACTERS]}..."


def without_key(text: str, key: str) -> str:
    """`text` without the key, which some servers echo, as it is or as JSON or an address has it."""
    as_json = json.dumps(key)[1:-1]
    spellings = {key, as_json, as_json.replace("/", r"\/"), quote(key), quote(key, safe="")}
    for spelling in sorted(filter(None, spellings), key=len, reverse=True):
        text = text.replace(spelling, "***")
    return text
