"""MM-Vet: 218 open questions, scored by a judge only.

Protocol: VLMEvalKit's `MMVet` (vlmeval/dataset/utils/mmvet.py, read 2026-11), Yu et al. 2023 (arXiv
2308.02490). A judge (GPT-4) reads question, ground truth and response with seven examples and
writes a score of 0.0 .. 1.0 in tenths. Ground truths hold `<AND>` between required parts and `<OR>`
between alternatives. A correct description can be worded in many ways, so no rule can decide: every
row is unparsed until a judge decides, and no accuracy is printed.

Scores: with a judge, the mean over the rows of each capability in `category` (rec, ocr, know, gen,
spat, math; a row may have several, separated by commas). Without a judge there are no scores.
"""

import math
from collections.abc import Sequence

from vapo_verl.evaluation.benchmarks import BenchmarkRow, Grade, Rule, rate
from vapo_verl.evaluation.benchmarks.rules.extraction import free_answer
from vapo_verl.evaluation.benchmarks.rules.generic import (
    check_answer,
    image_cluster,
    question_prompt,
)

NAME = "mmvet"
CAPABILITIES = ("rec", "ocr", "know", "gen", "spat", "math")


def grade(row: BenchmarkRow, prediction: str) -> Grade:
    """Decides nothing; `extracted` is the boxed or stated answer, for the judge and for readers.

    Raises:
        BadCell: the ground truth is blank.
    """
    check_answer(row)
    return Grade(correct=None, extracted=free_answer(prediction), rule=NAME)


def scores(rows: Sequence[BenchmarkRow], grades: Sequence[Grade]) -> dict[str, float]:
    """Accuracy by capability, of rows that a judge has decided; none without such rows."""
    found = {}
    for capability in CAPABILITIES:
        flags = [
            grade.correct
            for row, grade in zip(rows, grades, strict=True)
            if grade.correct is not None and capability in row.category.split(",")
        ]
        found[capability] = rate(flags)
    return {name: value for name, value in found.items() if not math.isnan(value)}


RULE = Rule(
    name=NAME,
    grade=grade,
    prompt=question_prompt,
    scores=scores,
    cluster=image_cluster,
    judge_only=True,
)
