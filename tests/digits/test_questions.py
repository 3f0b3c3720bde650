import random
import re
from collections import Counter

import pytest

from vapo_verl.digits.questions import QUESTION_SETS, sample_question
from vapo_verl.digits.scene import Cell, Scene, parse_grid, sample_scene, scan_pool

# top row: red 3, blue 7; bottom row: red 5, green 0
SCENE = Scene(
    rows=2,
    cols=2,
    cells=tuple(
        Cell(digit=digit, color=color, scan=0)
        for digit, color in ((3, "red"), (7, "blue"), (5, "red"), (0, "green"))
    ),
)
ANSWERS = {
    "What is the sum of the top row?": "10",
    "What is the sum of the bottom row?": "5",
    "What is the sum of the left column?": "8",
    "What is the sum of the right column?": "7",
    "What is the sum of the red digits?": "8",
    "What is the sum of the blue digits?": "7",
    "What is the largest digit in the bottom row?": "5",
    "What is the largest red digit?": "5",
    "How many digits are odd?": "3",
    "How many digits are even?": "1",
    "What is the difference between the top left digit and the top right digit?": "4",
    "What is the difference between the bottom left digit and the bottom right digit?": "5",
    "What color is the largest digit?": "blue",
}


# red 3, blue 7, red 9 / red 5, green 0, blue 2 / yellow 8, blue 6, red 1
BIG = Scene(
    rows=3,
    cols=3,
    cells=tuple(
        Cell(digit=digit, color=color, scan=0)
        for digit, color in (
            *((3, "red"), (7, "blue"), (9, "red")),
            *((5, "red"), (0, "green"), (2, "blue")),
            *((8, "yellow"), (6, "blue"), (1, "red")),
        )
    ),
)
LONG_ANSWERS = {
    "What are all digits and the largest digit in the top row and the largest digit in the right "
    "column?": "37950286199",
    "What are the digits in the bottom row and the left column and the largest digit in the middle "
    "row?": "8613585",
    "What are the digits in the center column and the largest blue digit?": "7067",
    "What is the largest digit in the left column and the largest red digit?": "89",
    "How many digits are larger than the middle left digit?": "4",
    "How many digits are larger than the top right digit?": "0",
}


def sample_questions(scene, number, seed=0, question_set="standard"):
    rng = random.Random(seed)
    return [sample_question(rng, scene, question_set) for _ in range(number)]


def test_answers_by_hand():
    asked = {question.text: question.answer for question in sample_questions(SCENE, 1000)}
    for text, answer in ANSWERS.items():
        assert asked[text] == answer


def test_response_by_hand():
    responses = {question.text: question.response for question in sample_questions(SCENE, 500)}
    assert responses["What is the sum of the top row?"] == (
        "<think>top left is red 3. top right is blue 7. 3+7=10.</think>\\boxed{10}"
    )


def test_long_answers_by_hand():
    questions = sample_questions(BIG, 3000, question_set="long")
    asked = {question.text: question.answer for question in questions}
    for text, answer in LONG_ANSWERS.items():
        assert asked[text] == answer


def asked_in_parts(question_set):
    """A question whose solution looks at cells a second time."""
    text = (
        "What are the digits in the top row and the left column and the largest digit in the "
        "right column?"
    )
    questions = sample_questions(BIG, 3000, question_set=question_set)
    return next(question for question in questions if question.text == text)


def test_a_long_response_by_hand_looks_twice():
    assert asked_in_parts("long").response == (
        "<think>top left is red 3. top center is blue 7. top right is red 9. top left is red 3. "
        "middle left is red 5. bottom left is yellow 8. top right is red 9. "
        "middle right is blue 2. bottom right is red 1. the largest is 9.</think>\\boxed{3793589}"
    )


def test_a_hasty_response_by_hand_says_what_is_largest_at_a_glance():
    assert asked_in_parts("parts").hasty_response == (
        "<think>top left is red 3. top center is blue 7. top right is red 9. top left is red 3. "
        "middle left is red 5. bottom left is yellow 8. the largest is 9.</think>\\boxed{3793589}"
    )
    questions = sample_questions(BIG, 3000, question_set="parts")
    assert {question.kind for question in questions} == set(QUESTION_SETS["parts"])


def test_without_anything_to_skip_a_hasty_response_is_the_response():
    for question in sample_questions(SCENE, 100):
        assert question.hasty_response == question.response


@pytest.mark.parametrize("question_set", QUESTION_SETS)
@pytest.mark.parametrize("grid", ["2x2", "2x3", "3x3"])
def test_every_kind_is_asked_and_solved_from_true_reads(grid, question_set):
    rng = random.Random(1)
    kinds = set()
    for _ in range(300):
        scene = sample_scene(rng, scan_pool("train"), *parse_grid(grid))
        question = sample_question(rng, scene, question_set)
        kinds.add(question.kind)
        reads = re.findall(r"(\w+ \w+) is (red|green|blue|yellow) (\d)\.", " ".join(question.steps))
        assert reads
        for place, color, digit in reads:
            cell = scene.positions[place]
            assert (cell.color, cell.digit) == (color, int(digit))
        assert all(step.endswith(".") for step in question.steps)
    assert kinds == set(QUESTION_SETS[question_set])


def test_arithmetic_in_solutions_is_right():
    for question in sample_questions(SCENE, 200):
        for left, sign, right, result in re.findall(r"(\d+)([+-])(\d+)=(\d+)", question.response):
            assert int(left) + int(f"{sign}{right}") == int(result)


def test_colour_of_the_largest_is_not_asked_where_two_colours_tie():
    cells = tuple(Cell(digit=9, color=color, scan=0) for color in ("red", "blue", "red", "red"))
    tied = Scene(rows=2, cols=2, cells=cells)
    assert "largest_color_name" not in {question.kind for question in sample_questions(tied, 300)}


def test_text_alone_says_little_about_a_long_answer():
    rng = random.Random(2)
    answers = {kind: Counter() for kind in QUESTION_SETS["long"]}
    for _ in range(1500):
        scene = sample_scene(rng, scan_pool("train"), 3, 3)
        question = sample_question(rng, scene, "long")
        answers[question.kind][question.answer] += 1
    assert sum(max(counts.values()) for counts in answers.values()) / 1500 < 0.15


def test_unknown_set_is_refused():
    with pytest.raises(ValueError, match="questions='short'"):
        sample_question(random.Random(0), SCENE, "short")
