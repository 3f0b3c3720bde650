r"""Geometry3K: 901 problems of validation and test, with an expression as the answer.

Protocol: `hiyouga/geometry3k` as graded by VAPO's training and by PAPO-Eval
(papo_eval/eval_utils.py, read 2026-11); Lu et al. 2021 (arXiv 2105.04165). The last `\boxed{...}`
is compared with the ground truth (`12 \sqrt{3}`, `37^\circ`, `4.5`) by a program: mathruler there,
`vapo_verl.reward.accuracy` here. Decimals are compared as written: `2\sqrt{3}` is not 3.46. There
is no judge, and only text in a box is an answer. The four options of the original data set are not
shown, so a letter is not an answer.

Scores: accuracy by `split` where a file holds both.
"""

from vapo_verl.evaluation.benchmarks import BenchmarkRow, Grade, Rule
from vapo_verl.evaluation.benchmarks.rules.generic import (
    category_scores,
    grade_free_form,
    image_cluster,
    question_prompt,
)

NAME = "geo3k"


def grade(row: BenchmarkRow, prediction: str) -> Grade:
    """The boxed expression equals the ground truth in value.

    Raises:
        BadCell: the ground truth is blank.
    """
    return grade_free_form(row, prediction, NAME, boxed_only=True)


RULE = Rule(
    name=NAME,
    grade=grade,
    prompt=question_prompt,
    scores=category_scores,
    cluster=image_cluster,
)
