r"""MMK12: 2,000 test questions of school maths, physics, chemistry and biology, 500 each.

Protocol: PAPO-Eval (papo_eval/eval_utils.py and papo_eval/run_infer.sh, read 2026-11) on the test
split of MMK12, Meng et al. 2025 (arXiv 2503.07365): avg@8 at temperature 1.0; the last
`\boxed{...}`, with blanks around `<`, `>` and `/` removed, is compared by a program. There is no
judge, and only text in a box is an answer.

Questions of the test split are multiple choice: options are in the question's text, and the ground
truth is a letter. Such a row is graded as multiple choice, so that an option's text counts as its
letter. Any other ground truth is compared in value.

Scores: accuracy by `category` and by `subject`, if the column exists.
"""

import re
from collections.abc import Sequence
from dataclasses import replace

from vapo_verl.evaluation.benchmarks import BenchmarkRow, Grade, Rule
from vapo_verl.evaluation.benchmarks.rules.extraction import choices_of
from vapo_verl.evaluation.benchmarks.rules.generic import (
    category_scores,
    grade_choice,
    grade_free_form,
    image_cluster,
    question_prompt,
    scores_by,
)
from vapo_verl.reward.accuracy import answer_of

NAME = "mmk12"
_LETTERS = re.compile(r"\(?[A-H]\)?\.?")
_SPACED_SIGN = re.compile(r"\s*([<>/])\s*")


def grade(row: BenchmarkRow, prediction: str) -> Grade:
    """Multiple choice where the ground truth is a letter, else equality in value.

    Raises:
        BadCell: the ground truth is blank, or a letter that is not an option.
    """
    choices = choices_of(row)
    if answer_of(prediction) is None:
        prediction = ""
    if _LETTERS.fullmatch(row.answer.strip()):
        return grade_choice(replace(row, choices=choices), prediction, NAME)
    plain_row = replace(row, answer=_SPACED_SIGN.sub(r"\1", row.answer))
    return grade_free_form(plain_row, prediction, NAME, boxed_only=True)


def scores(rows: Sequence[BenchmarkRow], grades: Sequence[Grade]) -> dict[str, float]:
    """Accuracy by subject and category."""
    subjects = scores_by("subject", [row.extra.get("subject", "") for row in rows], grades)
    return {**subjects, **category_scores(rows, grades)}


RULE = Rule(
    name=NAME,
    grade=grade,
    prompt=question_prompt,
    scores=scores,
    cluster=image_cluster,
)
