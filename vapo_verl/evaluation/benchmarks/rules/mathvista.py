r"""MathVista: 1,000 questions of testmini, multiple choice or free form with type and precision.

Protocol: VLMEvalKit's `MathVista_MINI` (vlmeval/dataset/utils/mathvista.py, read 2026-11), Lu et
al. 2023 (arXiv 2310.02255). There a judge extracts the answer; here the box or the statement is the
answer, and a judge decides only unparsed answers. Columns beside the usual: `question_type`
(`multi_choice`, `free_form`), `answer_type` (`integer`, `float`, `text`, `list`), `choices` (a list
literal), `answer_option` (the letter; without it, the option whose text is the answer) and
`precision` (decimals of a float).

- Multiple choice: the letter, or the text of an option.
- integer: the number in the answer, without units; 3.0 is 3 and 3.5 is not.
- float: both sides rounded to `precision` decimals, as the authors do; without it, exactly equal.
- Either may also be equal as mathematics, as in training: `50\%` is 0.5.
- list: the numbers in their order: `[2007, 2008]` is `2007 and 2008`.
- text: compared as words, as in training.

Scores: accuracy by `task`, `skills`, `category`; a row counts in each of its skills.
"""

import re
from collections.abc import Sequence
from dataclasses import replace

from vapo_verl.evaluation.benchmarks import BenchmarkRow, Grade, Prompt, Rule, rate
from vapo_verl.evaluation.benchmarks.rules.extraction import (
    LETTERS,
    free_answer,
    lists_options,
    literal_list,
    rounded,
    value_of,
)
from vapo_verl.evaluation.benchmarks.rules.generic import (
    category_scores,
    check_answer,
    grade_choice,
    image_cluster,
    scores_by,
    with_images,
)
from vapo_verl.reward.accuracy import math_match
from vapo_verl.reward.answers import normalised

NAME = "mathvista"
MULTIPLE_CHOICE = "multi_choice"
_BETWEEN = re.compile(r"\s*(?:,|;|\band\b)\s*")


def grade(row: BenchmarkRow, prediction: str) -> Grade:
    """Multiple choice where `question_type` or the options say so, else by `answer_type`.

    Raises:
        BadCell: a blank answer, or one that is not an option.
    """
    check_answer(row)
    if row.extra.get("question_type", MULTIPLE_CHOICE if row.choices else "") == MULTIPLE_CHOICE:
        option = row.extra.get("answer_option", "").strip()
        is_letter = len(option) == 1 and option in LETTERS
        return grade_choice(replace(row, answer=option) if is_letter else row, prediction, NAME)
    answer = free_answer(prediction)
    if answer is None:
        return Grade(correct=None, extracted=None, rule=NAME)
    return Grade(correct=_equal(answer, row), extracted=answer, rule=NAME)


def _equal(answer: str, row: BenchmarkRow) -> bool:
    kind = row.extra.get("answer_type", "text")
    if kind == "list" and (truths := literal_list(row.answer)) is not None:
        parts = _BETWEEN.split(normalised(answer).strip("[](){} "))
        return len(parts) == len(truths) and all(map(math_match, parts, truths))
    found, truth = value_of(answer), value_of(row.answer)
    if kind in ("integer", "float") and found is not None and truth is not None:
        decimals = value_of(row.extra.get("precision", "")) if kind == "float" else None
        if found == truth:
            return True
        if decimals is not None and rounded(found, int(decimals)) == rounded(truth, int(decimals)):
            return True
    return math_match(answer, row.answer)


def prompt(row: BenchmarkRow) -> Prompt:
    """All images and the `question` column, which holds hint and options in VLMEvalKit's file.

    The `hint` column is added if the question does not contain it, and options are added if the
    question does not list them with their letters.
    """
    text = row.question
    if row.hint and row.hint not in text:
        text = f"Hint: {row.hint}\nQuestion: {text}"
    if not lists_options(text, row.choices):
        options = "\n".join(f"({letter}) {option}" for letter, option in row.choices.items())
        text = f"{text}\nChoices:\n{options}"
    return with_images(text, row)


def scores(rows: Sequence[BenchmarkRow], grades: Sequence[Grade]) -> dict[str, float]:
    """Accuracy by task, by skill and by category."""
    by_skill: dict[str, list[bool]] = {}
    for row, grade in zip(rows, grades, strict=True):
        cell = row.extra.get("skills", "")
        for skill in literal_list(cell) or ([cell] if cell else []):
            by_skill.setdefault(skill, []).append(grade.correct is True)
    tasks = scores_by("task", [row.extra.get("task", "") for row in rows], grades)
    skills = {f"skill: {skill}": rate(flags) for skill, flags in sorted(by_skill.items())}
    return {**tasks, **skills, **category_scores(rows, grades)}


RULE = Rule(
    name=NAME,
    grade=grade,
    prompt=prompt,
    scores=scores,
    cluster=image_cluster,
)
