"""Reads a model's answer: JSON objects {"claim": string, "label": true | false}, one a line.

Also accepted, since models write so: a code fence around the lines, thinking in <think> tags
before them, a comma at the end of a line, and one JSON list of such objects (alone, or as the only
value of an object). Nothing else is: a line that is no such object is rejected, the others count.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from vapo_verl.data.claims_column import Claim, control_character, normalized_text

MALFORMED = "malformed"
"""Not a JSON object with a text under `claim`."""
BAD_LABEL = "bad_label"
"""`label` is absent or not true/false; the string "true" is no label."""
CONTROL = "control_character"
"""The text holds a character that :func:`~vapo_verl.data.claims_column.control_character` names."""
CUT_OFF = "cut_off"
"""The unfinished last line of an answer that ran into its token limit."""
EMPTY = "empty"
"""The answer holds no text at all."""

_THINKING = re.compile(r"^\s*<think>.*?</think>", re.DOTALL)
_FENCE = re.compile(r"^\s*```\w*\s*$")
_BRACKETS = ("[", "]", "[]")


@dataclass(frozen=True, slots=True, kw_only=True)
class ParsedAnswer:
    """What was read of one answer."""

    claims: tuple[Claim, ...]
    """In the answer's order, each text normalised."""
    rejected: Counter[str] = field(default_factory=Counter)
    """Lines or entries that were not read, by reason."""


def without_thinking(text: str) -> str:
    """The answer behind a <think> block; nothing when the block was never closed."""
    text = _THINKING.sub("", text)
    return "" if text.lstrip().startswith("<think>") else text


def parse_answer(text: str, *, cut_off: bool = False) -> ParsedAnswer:
    """Read an answer; never raises.

    Args:
        cut_off: the token limit ended the answer, so its last line may be half a claim.
    """
    lines = [line for line in without_thinking(text).splitlines() if line.strip()]
    lines = [line for line in lines if not _FENCE.match(line)]
    if not lines:
        return ParsedAnswer(claims=(), rejected=Counter([CUT_OFF if cut_off else EMPTY]))
    read = [_read_entry(entry) for entry in _entries(lines)]
    claims = tuple(item for item in read if isinstance(item, Claim))
    reasons = [item for item in read if isinstance(item, str)]
    if cut_off and reasons and reasons[-1] == read[-1] == MALFORMED:
        reasons[-1] = CUT_OFF
    return ParsedAnswer(claims=claims, rejected=Counter(reasons))


def _entries(lines: list[str]) -> Iterator[object]:
    """The decoded entries; a line that is no JSON comes back as its own text."""
    decoded = _decode("\n".join(lines))
    if isinstance(decoded, dict) and len(decoded) == 1:
        decoded = next(iter(decoded.values()))
    if isinstance(decoded, list):
        yield from decoded
        return
    for line in lines:
        line = line.strip().rstrip(",")
        if line not in _BRACKETS:
            yield _decode(line)


def _decode(text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _read_entry(entry: object) -> Claim | str:
    """The claim, or the reason why there is none."""
    if not isinstance(entry, dict) or not isinstance(entry.get("claim"), str):
        return MALFORMED
    if control_character(entry["claim"]):
        return CONTROL
    text = normalized_text(entry["claim"])
    if not text:
        return MALFORMED
    return Claim(text, entry["label"]) if isinstance(entry.get("label"), bool) else BAD_LABEL
