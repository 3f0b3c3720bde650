r"""MATH-Vision: 3,040 competition problems (304 in MINI), multiple choice or free form.

Protocol: VLMEvalKit's `MathVision` (vlmeval/dataset/utils/mathv.py, read 2026-11), Wang et al. 2024
(arXiv 2402.14804). Column `choices` holds a list literal: with options, the letter or the option's
text decides; with an empty list the answer must equal the ground truth, as text or in value (there:
`latex2sympy`, within 1e-6; here: math-verify, in a separate process). There, lists and answers go
through `eval`; here nothing is evaluated. There a judge extracts the answer, after the letter rule;
here the box or the statement is the answer.

The prompt is the `question` column, which holds the options in VLMEvalKit's file.

Scores: accuracy by `category` (subject), and by `level` (1 .. 5) if that column exists.
"""

from collections.abc import Sequence

from vapo_verl.evaluation.benchmarks import BenchmarkRow, Grade, Rule
from vapo_verl.evaluation.benchmarks.rules.generic import (
    category_scores,
    grade_choice,
    grade_free_form,
    image_cluster,
    scores_by,
)
from vapo_verl.evaluation.benchmarks.rules.mathvista import prompt

NAME = "mathvision"


def grade(row: BenchmarkRow, prediction: str) -> Grade:
    """Multiple choice for a row with options, else equality in value.

    Raises:
        BadCell: the answer is blank or not an option of the row.
    """
    if row.choices:
        return grade_choice(row, prediction, NAME)
    return grade_free_form(row, prediction, NAME)


def scores(rows: Sequence[BenchmarkRow], grades: Sequence[Grade]) -> dict[str, float]:
    """Accuracy by subject and level."""
    levels = scores_by("level", [row.extra.get("level", "") for row in rows], grades)
    return {**category_scores(rows, grades), **levels}


RULE = Rule(
    name=NAME,
    grade=grade,
    prompt=prompt,
    scores=scores,
    cluster=image_cluster,
)
