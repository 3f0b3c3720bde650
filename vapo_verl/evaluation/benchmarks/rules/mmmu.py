"""MMMU: 900 questions of the validation split (and 150 of dev), 30 subjects, up to 7 images each.

Protocol: VLMEvalKit's `MMMU_DEV_VAL` (vlmeval/dataset/image_mcq.py and `MMMU_preproc` in
vlmeval/dataset/utils/multiple_choice.py, read 2026-11), Yue et al. 2023 (arXiv 2311.16502). The
prompt is the template of multiple choice, with each image at its `<image N>`. The letter is
inferred as for all multiple choice.

Open questions have no options. There they become two options, A the ground truth and B "Other
Answers", which only a judge can tell apart. Here they follow the authors' own rule (`eval_open` of
MMMU's eval_utils.py): numbers are equal when they agree to two decimals, and words are equal when
a ground truth occurs in the answer. The ground truth may be a list literal of alternatives.

Scores: accuracy by `split` (papers report `validation`), `l2_category` and `category`.
"""

import re

from vapo_verl.evaluation.benchmarks import BenchmarkRow, Grade, Prompt, Rule
from vapo_verl.evaluation.benchmarks.rules.extraction import (
    free_answer,
    literal_list,
    rounded,
    value_of,
)
from vapo_verl.evaluation.benchmarks.rules.generic import (
    category_scores,
    check_answer,
    grade_choice,
    image_cluster,
    interleaved,
    mcq_prompt,
)
from vapo_verl.reward.accuracy import math_match
from vapo_verl.reward.answers import normalised

NAME = "mmmu"
_DECIMALS = 2


def grade(row: BenchmarkRow, prediction: str) -> Grade:
    """Multiple choice for a row with options, else the rule of open questions.

    Raises:
        BadCell: the answer is blank or not an option.
    """
    if row.choices:
        return grade_choice(row, prediction, NAME)
    check_answer(row)
    answer = free_answer(prediction)
    if answer is None:
        return Grade(correct=None, extracted=None, rule=NAME)
    truths = literal_list(row.answer) or [row.answer]
    correct = any(same_open_answer(answer, truth) for truth in truths)
    return Grade(correct=correct, extracted=answer, rule=NAME)


def same_open_answer(answer: str, truth: str) -> bool:
    """Whether an open answer equals one ground truth: in value, to two decimals, or as words."""
    if math_match(answer, truth):
        return True
    wanted = value_of(truth)
    if wanted is not None:
        found = value_of(answer)
        return found is not None and rounded(found, _DECIMALS) == rounded(wanted, _DECIMALS)
    words = re.escape(normalised(truth).casefold())
    said = normalised(answer).casefold()
    return bool(words) and re.search(rf"(?<!\w){words}(?!\w)", said) is not None


def prompt(row: BenchmarkRow) -> Prompt:
    """The template of multiple choice with the images at their `<image N>`."""
    return interleaved(mcq_prompt(row), row)


RULE = Rule(
    name=NAME,
    grade=grade,
    prompt=prompt,
    scores=category_scores,
    cluster=image_cluster,
)
