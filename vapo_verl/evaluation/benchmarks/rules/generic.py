r"""Rules for any benchmark (multiple choice, yes or no, free form), and shared functions.

`mcq`: the letter that the response chooses equals the letter of the ground truth. Options are
those of the columns A .. Z, of a list in `choices`, or of the question's text; without any, every
letter may be one. The ground truth is a letter or an option's text. The prompt is the template of
VLMEvalKit (vlmeval/dataset/image_mcq.py, read 2026-11): hint, question, options, and a request to
select. VLMEvalKit takes a random option if it can read none; here such a row is incorrect.

`yes-no`: the word rule of VLMEvalKit (`YOrN_Extraction` in vlmeval/dataset/utils/yorn.py): the
words of the answer hold `yes` and not `no`, or the other way around; both or none is no answer.

`free-form`: the answer equals the ground truth by `vapo_verl.reward.accuracy`, in the style of the
row (`exact`, `math`, `choice`, `text`), else as mathematics; in the style `judge` no rule decides.
Unlike in training, an answer outside of a box counts too. A row with options is asked and graded as
in `mcq`.
"""

import hashlib
import re
from collections.abc import Sequence

from vapo_verl.config import JUDGE_STYLE
from vapo_verl.data.cells import IMAGE_PLACEHOLDER
from vapo_verl.data.errors import BadCell, shown
from vapo_verl.data.images import image_source
from vapo_verl.evaluation.benchmarks import (
    BenchmarkRow,
    Grade,
    Prompt,
    Rule,
    rate,
)
from vapo_verl.evaluation.benchmarks.rules.extraction import (
    choices_of,
    chosen_letters,
    free_answer,
    stated_answer,
    true_letters,
    visible,
)
from vapo_verl.reward.accuracy import MATCHERS, answer_of, truths_of

SELECT = "Please select the correct answer from the options above. \n"
_YES_NO = {"yes": "Yes", "no": "No", "1": "Yes", "0": "No", "true": "Yes", "false": "No"}
_WORD = re.compile(r"[^\W_]+")


def grade_choice(row: BenchmarkRow, prediction: str, rule: str) -> Grade:
    """Compare letters as sets; `extracted` is the letters, else the text that names no option.

    Raises:
        BadCell: the ground truth is not an option.
    """
    choices = choices_of(row)
    truth = true_letters(row, choices)
    chosen = chosen_letters(prediction, choices)
    if chosen is None:
        return Grade(correct=None, extracted=stated_answer(prediction), rule=rule)
    return Grade(correct=chosen == truth, extracted=chosen, rule=rule)


def grade_yes_no(row: BenchmarkRow, prediction: str, rule: str) -> Grade:
    """Compare the word of the answer with that of the ground truth (`Yes`, `no`, `1`, `0`).

    Raises:
        BadCell: the ground truth is neither.
    """
    truth = _YES_NO.get(row.answer.strip().rstrip(".").casefold())
    if truth is None:
        found = f"{shown(row.answer)} of index {row.index!r} is neither yes nor no"
        raise BadCell("answer", found, "write Yes or No")
    words = set(_WORD.findall((answer_of(prediction) or visible(prediction)).casefold()))
    said = words & {"yes", "no"}
    if len(said) != 1:
        return Grade(correct=None, extracted=None, rule=rule)
    extracted = _YES_NO[said.pop()]
    return Grade(correct=extracted == truth, extracted=extracted, rule=rule)


def grade_free_form(
    row: BenchmarkRow, prediction: str, rule: str, *, boxed_only: bool = False
) -> Grade:
    """Compare answer and ground truth as training does; a row of style `judge` is left to a judge.

    Args:
        boxed_only: only text in a box is an answer.

    Raises:
        BadCell: the ground truth is blank.
    """
    check_answer(row)
    answer = answer_of(prediction) if boxed_only else free_answer(prediction)
    if answer is None:
        return Grade(correct=None, extracted=None, rule=rule)
    if row.style == JUDGE_STYLE:
        return Grade(correct=None, extracted=answer, rule=rule)
    match = MATCHERS.get(row.style, MATCHERS["math"])
    correct = any(match(answer, truth) for truth in truths_of([row.answer, *row.alternatives]))
    return Grade(correct=correct, extracted=answer, rule=rule)


def _grade_free_form_or_choice(row: BenchmarkRow, prediction: str) -> Grade:
    if row.choices:
        return grade_choice(row, prediction, "free-form")
    return grade_free_form(row, prediction, "free-form")


def _free_form_prompt(row: BenchmarkRow) -> Prompt:
    return mcq_prompt(row) if row.choices else question_prompt(row)


def check_answer(row: BenchmarkRow) -> None:
    """Raises BadCell for a ground truth that no answer equals: blank, also in LaTeX (`$$`)."""
    try:
        truths_of([row.answer, *row.alternatives])
    except ValueError as error:
        found = f"the ground truth of index {row.index!r} is {shown(row.answer)}, which is blank"
        raise BadCell("answer", found, "write the answer, or drop the row") from error


def question_prompt(row: BenchmarkRow) -> Prompt:
    """All images, then the `question` column unchanged."""
    return with_images(row.question, row)


def mcq_prompt(row: BenchmarkRow, *, select: str = SELECT) -> Prompt:
    """All images, then hint, question and options; `select` ends the prompt of a row with options.

    Args:
        select: empty for We-Math, whose prompt ends with the options.
    """
    hint = f"Hint: {row.hint}\n" if row.hint else ""
    options = "".join(f"{letter}. {text}\n" for letter, text in row.choices.items())
    text = f"{hint}Question: {row.question}\n"
    if row.choices:
        text += f"Options:\n{options}{select}"
    return with_images(text, row)


def with_images(text: str, row: BenchmarkRow) -> Prompt:
    """Put all images in front, unless the text has one `<image>` for each.

    Raises:
        BadCell: the text has fewer or more `<image>` than the row has images.
    """
    num_places = text.count(IMAGE_PLACEHOLDER)
    if num_places not in (0, len(row.images)):
        found = f"{num_places} <image> of index {row.index!r}, which has {len(row.images)} images"
        raise BadCell("question", found, "write one <image> per image, or none")
    front = "" if num_places else IMAGE_PLACEHOLDER * len(row.images)
    return Prompt(text=front + text, images=row.images)


def interleaved(prompt: Prompt, row: BenchmarkRow) -> Prompt:
    """Put images where the text has `<image N>` instead of in front; drop images without a place.

    Raises:
        BadCell: the text names an image that the row does not have.
    """
    numbers = [int(number) for number in re.findall(r"<image (\d+)>", prompt.text)]
    if not numbers:
        return prompt
    if missing := [number for number in numbers if not 1 <= number <= len(row.images)]:
        found = f"<image {missing[0]}> of index {row.index!r}, which has {len(row.images)} images"
        raise BadCell("question", found, "add the image, or correct its number")
    images = tuple(row.images[number - 1] for number in numbers)
    text = prompt.text.removeprefix(IMAGE_PLACEHOLDER * len(prompt.images))
    return Prompt(text=re.sub(r"<image \d+>", IMAGE_PLACEHOLDER, text), images=images)


def category_scores(rows: Sequence[BenchmarkRow], grades: Sequence[Grade]) -> dict[str, float]:
    """Accuracy for each value of `split`, `l2-category` and `category`."""
    found: dict[str, float] = {}
    for column in ("split", "l2_category", "category"):
        found |= scores_by(column, [getattr(row, column) for row in rows], grades)
    return found


def scores_by(name: str, values: Sequence[str], grades: Sequence[Grade]) -> dict[str, float]:
    """`name: value` -> accuracy of the rows with that value; blank values are left out."""
    by_value: dict[str, list[bool]] = {}
    for value, grade in zip(values, grades, strict=True):
        by_value.setdefault(value, []).append(grade.correct is True)
    return {f"{name}: {value}": rate(flags) for value, flags in sorted(by_value.items()) if value}


def image_cluster(row: BenchmarkRow) -> str:
    """Rows about the same images share a key; a row without images has its own."""
    digest = hashlib.sha256()
    for image in map(image_source, row.images):
        digest.update(image if isinstance(image, bytes) else image.encode())
    return digest.hexdigest()[:16] if row.images else f"row {row.number}"


MCQ = Rule(
    name="mcq",
    grade=lambda row, prediction: grade_choice(row, prediction, "mcq"),
    prompt=mcq_prompt,
    scores=category_scores,
    cluster=image_cluster,
)
YES_NO = Rule(
    name="yes-no",
    grade=lambda row, prediction: grade_yes_no(row, prediction, "yes-no"),
    prompt=question_prompt,
    scores=category_scores,
    cluster=image_cluster,
)
FREE_FORM = Rule(
    name="free-form",
    grade=_grade_free_form_or_choice,
    prompt=_free_form_prompt,
    scores=category_scores,
    cluster=image_cluster,
)
