r"""MathVerse: 788 problems in six versions, from all in the text to all in the image (Vision Only).

Protocol: VLMEvalKit's `MathVerse_MINI*` (vlmeval/dataset/utils/mathverse.py, read 2026-11), Zhang
et al. 2024 (arXiv 2403.14624). There a judge works in two stages. It extracts the answer from the
response, and says whether the answer is consistent with the ground truth: the same option for
multiple choice, otherwise the same meaning, "for example, 0.5m and 50cm". Here:

- Multiple choice (the ground truth is an option, and `question_type` is blank or multiple choice):
  the letter, or the text of an option. Options are in the question after "Choices:".
- Free form: equal as training compares (`vapo_verl.reward.accuracy`), which knows units and named
  values such as `Perimeter $=18.8 \mathrm{~cm}$`. Beyond that, lengths, areas, volumes, masses and
  times are converted; `y = ...` and `f(x) = ...` define the same function; and parts with labels
  (`domain: [0, 1] and range: [2, 3]`) equal the same parts without, in this order, or with the same
  labels in any order.

There the judge reads the whole response. So a response that is cut off in its reasoning, without a
box, counts with its last equation. `--max-tokens` has to be large enough.

The prompt is column `question`; in Vision Only it does not state the problem, which is in the
image.

Scores: accuracy by `problem_version`, `subject` and `question_type`, if these columns exist.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction

from vapo_verl.evaluation.benchmarks import BenchmarkRow, Grade, Rule
from vapo_verl.evaluation.benchmarks.rules.extraction import (
    choices_of,
    free_answer,
    last_equation,
    option_equal_to,
    visible,
)
from vapo_verl.evaluation.benchmarks.rules.generic import (
    category_scores,
    check_answer,
    grade_choice,
    image_cluster,
    question_prompt,
    scores_by,
)
from vapo_verl.reward.accuracy import answer_of, math_match
from vapo_verl.reward.answers import choice, normalised
from vapo_verl.reward.quantities import number, quantity, same_number

NAME = "mathverse"
MULTIPLE_CHOICE = "multi-choice"
_FUNCTION = re.compile(r"\s*\$?\s*(?:y(?:_\d)?|[a-zA-Z]\s*\(\s*[a-z]\s*\))\s*=(?P<rule>[^=]*)")
_BASE_UNITS = {
    **{"nm": ("m", Fraction(1, 10**9), 1), "mm": ("m", Fraction(1, 1000), 1)},
    **{"cm": ("m", Fraction(1, 100), 1), "dm": ("m", Fraction(1, 10), 1)},
    **{"m": ("m", Fraction(1), 1), "km": ("m", Fraction(1000), 1)},
    **{"in": ("m", Fraction(254, 10**4), 1), "ft": ("m", Fraction(3048, 10**4), 1)},
    **{"yd": ("m", Fraction(9144, 10**4), 1), "mi": ("m", Fraction(1609344, 1000), 1)},
    **{"ha": ("m", Fraction(10**4), 2), "L": ("m", Fraction(1, 1000), 3)},
    **{"mL": ("m", Fraction(1, 10**6), 3), "cL": ("m", Fraction(1, 10**5), 3)},
    **{"dL": ("m", Fraction(1, 10**4), 3), "mg": ("g", Fraction(1, 1000), 1)},
    **{"g": ("g", Fraction(1), 1), "kg": ("g", Fraction(1000), 1), "t": ("g", Fraction(10**6), 1)},
    **{
        "ms": ("s", Fraction(1, 1000), 1),
        "s": ("s", Fraction(1), 1),
        "min": ("s", Fraction(60), 1),
    },
    **{"h": ("s", Fraction(3600), 1), "day": ("s", Fraction(86400), 1)},
}
"""Unit -> base unit, size in it, and the power of the base unit."""
_LABEL = re.compile(r"(?:^|[,;]|\band\b)\s*([A-Za-z][A-Za-z ]*?)\s*:\s*", re.I)
_AND = re.compile(r"\s*(?:[,;]\s*and\b|[,;]|\band\b)\s*(?=[\[(]|\\\{)")


def grade(row: BenchmarkRow, prediction: str) -> Grade:
    """Multiple choice or free form, as the row says.

    Raises:
        BadCell: the ground truth is blank.
    """
    check_answer(row)
    choices = choices_of(row)
    prediction = _with_last_equation(prediction)
    if is_choice(row):
        return grade_choice(replace(row, choices=choices), prediction, NAME)
    answer = free_answer(prediction)
    if answer is None:
        return Grade(correct=None, extracted=None, rule=NAME)
    return Grade(correct=same_meaning(answer, row.answer), extracted=answer, rule=NAME)


def _with_last_equation(prediction: str) -> str:
    """Replace a response that is cut off in its reasoning by the value of its last equation."""
    if answer_of(prediction) is not None or visible(prediction):
        return prediction
    value = last_equation(prediction)
    return f"The answer is {value}" if value else prediction


def is_choice(row: BenchmarkRow) -> bool:
    """Whether the ground truth is an option, and `question_type`, if given, is multiple choice.

    A multiple-choice row whose ground truth is not an option is compared by meaning.
    """
    kind = row.extra.get("question_type", "")
    if kind not in ("", MULTIPLE_CHOICE):
        return False
    choices = choices_of(row)
    picked = choice(row.answer)
    if picked is not None and not picked.text:
        return (
            picked.letters <= choices.keys() if choices else len(picked.letters) == 1 or bool(kind)
        )
    return option_equal_to(row.answer, choices) is not None


def same_meaning(answer: str, truth: str) -> bool:
    r"""Whether a free-form answer means the same as the ground truth.

    >>> same_meaning("y = |x - 3|", "f(x)=|x-3|")
    True
    >>> same_meaning(r"[-4, 4] \text{ and } [0, 2]", "domain: [-4,4] and range: [0,2]")
    True
    """
    answer, truth = _tidied(answer), _tidied(truth)
    if math_match(answer, truth):
        return True
    functions = _FUNCTION.fullmatch(answer), _FUNCTION.fullmatch(truth)
    if functions[1]:
        ours = functions[0]["rule"] if functions[0] else answer
        return math_match(ours, functions[1]["rule"])
    return _same_quantity(answer, truth) or _same_parts(answer, truth)


def _tidied(text: str) -> str:
    """Normal form, a true bearing without its T, `1 to 64` as a ratio, degree signs repaired."""
    text = normalised(text.replace("掳", "°"))  # a degree sign decoded as GBK
    text = re.sub(r"°\s*T\b", "°", text)
    return re.sub(r"(\d)\s+to\s+(\d)", r"\1:\2", text)


def _same_quantity(answer: str, truth: str) -> bool:
    """Whether two quantities with units are equal once converted: 0.5 m is 50 cm."""
    found, wanted = _in_base_units(answer), _in_base_units(truth)
    if found is None or wanted is None:
        return False
    return found[1] == wanted[1] and same_number(found[0], wanted[0])


def _in_base_units(text: str) -> tuple[Fraction, Counter[str]] | None:
    """Value in metres, grams and seconds, and the power of each; None for any other unit."""
    measured = quantity(text.rpartition("=")[2])
    value = number(measured.value) if measured else None
    if measured is None or value is None:
        return None
    powers: Counter[str] = Counter()
    for factor in measured.unit.split():
        name, _, power = factor.partition("^")
        if name not in _BASE_UNITS:
            return None
        base, size, own = _BASE_UNITS[name]
        value *= size ** int(power or 1)
        powers[base] += own * int(power or 1)
    return value, powers


def _same_parts(answer: str, truth: str) -> bool:
    wanted = _labelled(truth)
    if len(wanted) < 2:
        return False
    found = _labelled(answer)
    if not found:
        values = _AND.split(answer)
        found = dict(zip(wanted, values, strict=True)) if len(values) == len(wanted) else {}
    return found.keys() == wanted.keys() and all(
        math_match(found[label], wanted[label]) for label in wanted
    )


def _labelled(text: str) -> dict[str, str]:
    """Label -> value of `domain: [0, 1] and range: [2, 3]`; none where nothing has a label."""
    marks = list(_LABEL.finditer(text))
    ends = [mark.start() for mark in marks[1:]] + [len(text)] * bool(marks)
    return {
        mark[1].casefold(): text[mark.end() : end].strip().rstrip(",;.")
        for mark, end in zip(marks, ends, strict=True)
    }


def scores(rows: Sequence[BenchmarkRow], grades: Sequence[Grade]) -> dict[str, float]:
    """Accuracy by version, subject, question type and category."""
    found: dict[str, float] = {}
    for column in ("problem_version", "subject", "question_type"):
        found |= scores_by(column, [row.extra.get(column, "") for row in rows], grades)
    return {**found, **category_scores(rows, grades)}


RULE = Rule(
    name=NAME,
    grade=grade,
    prompt=question_prompt,
    scores=scores,
    cluster=image_cluster,
)
