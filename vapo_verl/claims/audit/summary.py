"""What exported answers say of the claims, and how far people agree."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from vapo_verl.analysis.statistics import cohens_kappa, wilson_interval
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


def summarise(paths: Sequence[Path]) -> str:
    """Lines for a person: rates of each one, of all together, and the agreement of each two.

    Raises:
        FileError: a file that is no export.
    """
    everyone = [read_answers(path) for path in paths]
    lines = [line for person in everyone for line in _rates(person)]
    if len(everyone) > 1:
        lines += _rates(together(everyone))
    lines += [line for first, second in combinations(everyone, 2) for line in _pair(first, second)]
    return "\n".join(lines)


@dataclass(frozen=True, slots=True, kw_only=True)
class PersonAnswers:
    """What one person said of claims; a question that was not answered is left out."""

    person: str
    answers: Mapping[str, Mapping[ClaimKey, str]]
    """By question, then by claim: one of ANSWERS."""


def together(everyone: Sequence[PersonAnswers]) -> PersonAnswers:
    """One answer a claim and question: what most said; "unsure" where no answer has most.

    Pooling all answers instead would count a claim twice, and make the intervals too narrow.
    """
    answers = {question: _majority(everyone, question) for question in QUESTIONS}
    return PersonAnswers(person=f"majority of {len(everyone)} people", answers=answers)


def _majority(everyone: Sequence[PersonAnswers], question: str) -> dict[ClaimKey, str]:
    votes: dict[ClaimKey, Counter[str]] = {}
    for person in everyone:
        for claim, answer in person.answers[question].items():
            votes.setdefault(claim, Counter())[answer] += 1
    return {claim: _winner(count) for claim, count in votes.items()}


def _winner(count: Counter[str]) -> str:
    (answer, most), *others = count.most_common(2)
    return "unsure" if others and others[0][1] == most else answer


def _rates(person: PersonAnswers) -> Iterator[str]:
    yield f"{person.person}:"
    for question, title in QUESTIONS.items():
        yield f"  {title:<19} {rate_line(person.answers[question])}"


def rate_line(answers: Mapping[ClaimKey, str]) -> str:
    """The rate of "yes" among all answers: "unsure" counts as not yes, and is counted."""
    count = Counter(answers.values())
    if not answers:
        return "no answers"
    low, high = wilson_interval(count["yes"], len(answers))
    unsure = f", {count['unsure']} unsure" if count["unsure"] else ""
    return (
        f"{count['yes'] / len(answers):6.1%}  (95 % interval {low:.1%} to {high:.1%};"
        f" {count['yes']} of {len(answers)}{unsure})"
    )


def _pair(first: PersonAnswers, second: PersonAnswers) -> Iterator[str]:
    yield f"{first.person} and {second.person}:"
    for question, title in QUESTIONS.items():
        mine, yours = first.answers[question], second.answers[question]
        pairs = [(mine[claim], yours[claim]) for claim in mine if claim in yours]
        yield f"  {title:<19} {_agreement_line(pairs)}"


def _agreement_line(pairs: Sequence[tuple[str, str]]) -> str:
    if not pairs:
        return "no claim that both judged"
    same = sum(a == b for a, b in pairs)
    kappa = cohens_kappa(pairs)
    shown = "undefined: both gave one answer throughout" if kappa is None else f"{kappa:.2f}"
    return f"{same / len(pairs):6.1%}  the same ({same} of {len(pairs)}), Cohen's kappa {shown}"


def read_answers(path: Path) -> PersonAnswers:
    """Raises FileError, naming the file and what is wrong, for anything but an export."""
    try:
        content = json.loads(path.read_bytes())
        if content["format"] != FORMAT or content["version"] != VERSION:
            raise ValueError(f"format {shown(content['format'])}, version {content['version']}")
        answers: dict[str, dict[ClaimKey, str]] = {question: {} for question in QUESTIONS}
        for given in content["verdicts"]:
            key = (str(given["image_key"]), str(given["claim"]), bool(given["label"]))
            for question in QUESTIONS.keys() & given.keys():
                answers[question][key] = _answer(given[question])
        person = str(content.get("auditor") or "").strip() or path.stem
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise FileError(f"--summary: {path} is no export ({reason}); {_EXPORT_AGAIN}") from error
    return PersonAnswers(person=person, answers=answers)


def _answer(value: object) -> str:
    if value not in ANSWERS:
        raise ValueError(f"an answer is {shown(value)}, want one of {ANSWERS}")
    return str(value)
