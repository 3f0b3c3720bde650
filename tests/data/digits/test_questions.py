import random
import re

import pytest

from vapo_verl.data.digits.questions import KINDS, sample_question
from vapo_verl.data.digits.scans import scan_pool
from vapo_verl.data.digits.scene import Cell, Scene, parse_grid, sample_scene

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


def sample_questions(scene, number, seed=0):
    rng = random.Random(seed)
    return [sample_question(rng, scene) for _ in range(number)]


def test_answers_by_hand():
    asked = {question.text: question.answer for question in sample_questions(SCENE, 1000)}
    for text, answer in ANSWERS.items():
        assert asked[text] == answer


def test_response_by_hand():
    responses = {question.text: question.response for question in sample_questions(SCENE, 500)}
    assert responses["What is the sum of the top row?"] == (
        "<think>top left is red 3. top right is blue 7. 3+7=10.</think>\\boxed{10}"
    )


@pytest.mark.parametrize("grid", ["2x2", "2x3", "3x3"])
def test_every_kind_is_asked_and_solved_from_true_reads(grid):
    rng = random.Random(1)
    kinds = set()
    for _ in range(300):
        scene = sample_scene(rng, scan_pool("train"), *parse_grid(grid))
        question = sample_question(rng, scene)
        kinds.add(question.kind)
        reads = re.findall(r"(\w+ \w+) is (red|green|blue|yellow) (\d)\.", " ".join(question.steps))
        assert reads
        for place, color, digit in reads:
            assert (scene.places[place].color, scene.places[place].digit) == (color, int(digit))
        assert all(step.endswith(".") for step in question.steps)
    assert kinds == set(KINDS)


def test_arithmetic_in_solutions_is_right():
    for question in sample_questions(SCENE, 200):
        for left, sign, right, result in re.findall(r"(\d+)([+-])(\d+)=(\d+)", question.response):
            assert int(left) + int(f"{sign}{right}") == int(result)


def test_colour_of_the_largest_is_not_asked_where_two_colours_tie():
    cells = tuple(Cell(digit=9, color=color, scan=0) for color in ("red", "blue", "red", "red"))
    tied = Scene(rows=2, cols=2, cells=cells)
    assert "largest_color_name" not in {question.kind for question in sample_questions(tied, 300)}
