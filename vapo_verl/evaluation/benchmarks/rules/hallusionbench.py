"""HallusionBench: 951 yes-or-no questions in sets about figures and their edited versions.

Protocol: VLMEvalKit's `HallusionBench` (vlmeval/dataset/image_yorn.py and `Hallusion_rating` in
vlmeval/dataset/utils/yorn.py, read 2026-11), Guan et al. 2023 (arXiv 2310.14566). It leaves out
rows without an image: 951 of 1,129 questions are asked. The word rule reads yes or no; both or none
is incorrect.

An index is `category_subcategory_visual_set_figure_question`; parts 3, 4 and 5, from 0, are set,
figure and question. Scores, in which a group is correct if all of its rows are:

    aAcc   correct rows / rows
    fAcc   correct figures / figures      group (l2-category, set, figure)
    qAcc   correct questions / questions  group (l2-category, set, question)
    mean   (aAcc + fAcc + qAcc) / 3       what papers report
"""

from collections.abc import Hashable, Sequence

from vapo_verl.data.errors import BadCell
from vapo_verl.evaluation.benchmarks import BenchmarkRow, Grade, Rule, rate
from vapo_verl.evaluation.benchmarks.rules.generic import (
    category_scores,
    grade_yes_no,
    question_prompt,
)

NAME = "hallusionbench"
_SET, _FIGURE, _QUESTION = 3, 4, 5


def grade(row: BenchmarkRow, prediction: str) -> Grade:
    """The word rule; the index must name set, figure and question.

    Raises:
        BadCell: an index without these parts, or an answer that is neither yes nor no.
    """
    ids_of(row)
    return grade_yes_no(row, prediction, NAME)


def ids_of(row: BenchmarkRow) -> tuple[str, str, str]:
    """Set, figure and question of a row.

    Raises:
        BadCell: the index has fewer than six parts.
    """
    parts = str(row.index).split("_")
    if len(parts) <= _QUESTION:
        found = f"{row.index!r} does not end in _SET_FIGURE_QUESTION"
        fix = "keep the index of the original file (VD_illusion_1_0_1_0)"
        raise BadCell("index", found, fix)
    return parts[_SET], parts[_FIGURE], parts[_QUESTION]


def scores(rows: Sequence[BenchmarkRow], grades: Sequence[Grade]) -> dict[str, float]:
    """aAcc, fAcc, qAcc and their mean, and accuracy by category."""
    figures: dict[Hashable, bool] = {}
    questions: dict[Hashable, bool] = {}
    for row, grade in zip(rows, grades, strict=True):
        set_id, figure, question = ids_of(row)
        correct = grade.correct is True
        for groups, key in ((figures, figure), (questions, question)):
            group = (_topic(row), set_id, key)
            groups[group] = groups.get(group, True) and correct
    accuracies = {
        "aAcc": rate([grade.correct is True for grade in grades]),
        "fAcc": rate(list(figures.values())),
        "qAcc": rate(list(questions.values())),
    }
    mean = sum(accuracies.values()) / len(accuracies)
    return {**accuracies, "mean": mean, **category_scores(rows, grades)}


def figure_cluster(row: BenchmarkRow) -> str:
    """Rows about one figure of one set share a key."""
    set_id, figure, _ = ids_of(row)
    return f"{_topic(row)} {set_id} {figure}"


def _topic(row: BenchmarkRow) -> str:
    """The subcategory, within which sets are numbered: from its column, else from the index."""
    return row.l2_category or "_".join(str(row.index).split("_")[:2])


RULE = Rule(
    name=NAME,
    grade=grade,
    prompt=question_prompt,
    scores=scores,
    cluster=figure_cluster,
    skip_without_image=True,
)
