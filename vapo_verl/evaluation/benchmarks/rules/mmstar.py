"""MMStar: 1,500 multiple-choice questions that need the image, 6 categories of 250.

Protocol: VLMEvalKit's `MMStar` (class `ImageMCQDataset`, vlmeval/dataset/image_mcq.py, read
2026-11), Chen et al. 2024 (arXiv 2403.20330). The prompt is the template of multiple choice; the
answer is a letter A .. D, inferred from the response by `can_infer`. There, a judge is asked if
inference fails, and a random option is taken if the judge fails. Here such a row is unparsed and
counted incorrect.

Scores: accuracy by `category` (`coarse perception`, `math`, ...) and by `l2_category`. The
benchmark's score is the accuracy over all rows. It equals the mean over the categories, which have
the same size.
"""

from vapo_verl.evaluation.benchmarks import BenchmarkRow, Grade, Rule
from vapo_verl.evaluation.benchmarks.rules.generic import (
    category_scores,
    grade_choice,
    image_cluster,
    mcq_prompt,
)

NAME = "mmstar"


def grade(row: BenchmarkRow, prediction: str) -> Grade:
    """The chosen letter is the letter of the answer.

    Raises:
        BadCell: the answer is not an option of the row.
    """
    return grade_choice(row, prediction, NAME)


RULE = Rule(
    name=NAME,
    grade=grade,
    prompt=mcq_prompt,
    scores=category_scores,
    cluster=image_cluster,
)
