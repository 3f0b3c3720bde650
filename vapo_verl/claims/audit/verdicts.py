"""Verdicts of people, as the page exports them."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from vapo_verl.data.errors import FileError, shown

QUESTIONS = {
    "visually_dependent": "visually dependent",
    "answerable": "answerable",
    "label_right": "label right",
}
ANSWERS = ("yes", "no", "unsure")
FORMAT, VERSION = "vapo-claims-audit", 1
_EXPORT_AGAIN = "export it again from the audit page"

ClaimKey = tuple[str, str, bool]
"""Image key, text and label: what two people must have seen alike to be compared."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdicts:
    """What one person said of claims; a question that was not answered is left out."""

    person: str
    answers: Mapping[str, Mapping[ClaimKey, str]]
    """By question, then by claim: one of ANSWERS."""


def read_verdicts(path: Path) -> Verdicts:
    """Raises FileError, naming the file and what is wrong, for anything but an export."""
    try:
        content = json.loads(path.read_bytes())
        if content["format"] != FORMAT or content["version"] != VERSION:
            raise ValueError(f"format {shown(content['format'])}, version {content['version']}")
        answers: dict[str, dict[ClaimKey, str]] = {question: {} for question in QUESTIONS}
        for verdict in content["verdicts"]:
            key = (str(verdict["image_key"]), str(verdict["claim"]), bool(verdict["label"]))
            for question in QUESTIONS.keys() & verdict.keys():
                answers[question][key] = _answer(verdict[question])
        person = str(content.get("auditor") or "").strip() or path.stem
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise FileError(f"--summary: {path} is no export ({reason}); {_EXPORT_AGAIN}") from error
    return Verdicts(person=person, answers=answers)


def _answer(value: object) -> str:
    if value not in ANSWERS:
        raise ValueError(f"an answer is {shown(value)}, want one of {ANSWERS}")
    return str(value)
