"""LogicVista: 448 questions of logic, whose answer is a letter or a set of letters.

Protocol: VLMEvalKit's `LogicVista` (vlmeval/dataset/utils/logicvista.py, read 2026-11), Xiao et al.
2024 (arXiv 2407.04973). The prompt is the `question` column, which lists the options or says which
letters the image shows. A judge extracts the letters there; here the rule of multiple choice reads
them (`A, C`, `AC`, `A and C`). Letters of response and ground truth must be the same set: one
letter too many, or too few, is incorrect.

Scores: accuracy by `skill` (inductive, deductive, numerical, spatial, mechanical). A row may have
several skills, separated by commas or as a list, and counts in each of them.
"""

import re
from collections.abc import Sequence

from vapo_verl.evaluation.benchmarks import BenchmarkRow, Grade, Rule, rate
from vapo_verl.evaluation.benchmarks.rules.generic import (
    category_scores,
    grade_choice,
    image_cluster,
    question_prompt,
)

NAME = "logicvista"
SKILLS = ("inductive", "deductive", "numerical", "spatial", "mechanical")


def grade(row: BenchmarkRow, prediction: str) -> Grade:
    """The set of letters equals that of the answer.

    Raises:
        BadCell: the answer is neither letters nor the text of an option.
    """
    return grade_choice(row, prediction, NAME)


def scores(rows: Sequence[BenchmarkRow], grades: Sequence[Grade]) -> dict[str, float]:
    """Accuracy by skill, for rows with column `skill`, and by category."""
    found: dict[str, list[bool]] = {skill: [] for skill in SKILLS}
    for row, grade in zip(rows, grades, strict=True):
        for skill in re.findall(r"[a-z]+", row.extra.get("skill", "").casefold()):
            if skill in found:
                found[skill].append(grade.correct is True)
    by_skill = {skill: rate(flags) for skill, flags in found.items() if flags}
    return {**by_skill, **category_scores(rows, grades)}


RULE = Rule(
    name=NAME,
    grade=grade,
    prompt=question_prompt,
    scores=scores,
    cluster=image_cluster,
)
