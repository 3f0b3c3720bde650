r"""What counts as an answer, and which option it names."""

import math
from fractions import Fraction

import pytest

from vapo_verl.evaluation.benchmarks.rules.extraction import (
    chosen_letters,
    free_answer,
    literal_list,
    parse_choices,
    rounded,
    value_of,
)

ANGLES = {"A": "40°", "B": "60°", "C": "120°", "D": "140°"}
NUMBERS = {"A": "1", "B": "2", "C": "3 m", "D": "x = 4"}
ANIMALS = {"A": "a cat", "B": "a dog", "C": "a black dog", "D": "None of the above"}
IN_THE_IMAGE: dict[str, str] = {}


@pytest.mark.parametrize(
    "text, letters",
    [
        (r"\boxed{B}", "B"),
        (r"\boxed{b}", "B"),
        (r"\boxed{(B)}", "B"),
        (r"\boxed{\text{B}}", "B"),
        (r"\boxed{\mathbf{B}.}", "B"),
        (r"\boxed{B. 60}", "B"),
        (r"\boxed{B: 60^\circ}", "B"),
        (r"\boxed{60^\circ}", "B"),
        (r"\boxed{60 degrees}", "B"),
        (r"\boxed{x = 60^\circ}", "B"),
        (r"\boxed{\angle B = 40^\circ}", "A"),
        (r"\boxed{A) or B)}", "AB"),
        (r"\boxed{A or B}", "AB"),
        (r"\boxed{E}", "E"),
        (r"\boxed{75^\circ}", None),
        (r"<think>\boxed{A}</think>\boxed{B}", "B"),
        (r"\boxed{B} no, \boxed{C}", "C"),
        ("The answer is (C).", "C"),
        ("The correct answer is C: 120°.", "C"),
        ("**Answer: C**", "C"),
        ("Answer:\nC", "C"),
        ("答案：C。", "C"),
        ("Ｂ", "B"),
        ("The correct choice is B because AB = CD.", "B"),
        ("The answer is (B), since option A is too small.", "B"),
        ("The answer is option B, not option C.", "B"),
        ("I think A is wrong. The answer is 140°. So done.", "D"),
        ("So I look.\nSo I choose B.", "B"),
        ("Option C is correct", "C"),
        ("B\n\nThe triangle is equilateral, so A is too small.", "B"),
        ("B. 60°\n\nAll of its sides are equal.", "B"),
        ("The correct answer is:\n\n**B. 60°**\n\nAll of its sides are equal.", "B"),
        ("The answer is \\(\\text{B}\\).", "B"),
        ("The angle is 60°", "B"),
        ("It is either 40° or 60°", None),
        ("The answer is not B but C", None),
        ("A triangle has 180 degrees.", None),
        ("I cannot tell.", None),
        ("", None),
        ("<think>The answer is B", None),
        ("<think>The answer is B</think>C", "C"),
        ("First the answer is A. But 60° is there twice, so the correct answer is B.", "B"),
        ("The answer is B? No, the answer is C.", "C"),
        ("The correct answer is 40°? Let me see. The correct answer is 60°.", "B"),
        ("The answer is B. This answer is consistent with the figure.", "B"),
        ("<think>A</think><answer>B</answer>", "B"),
        ("All sides are equal. <answer> (B) </answer>", "B"),
        ("<answer>B", "B"),
        ("由图可得。\n因此，答案是 B。", "B"),
        ("由图可得。\n故选：B。", "B"),
        ("因为A太小，所以选B。", "B"),
        ("由图可得。\n【答案】B", "B"),
        ("选项：A. 40° B. 60°\n所以选 B。", "B"),
        ("题目的选项：A. 40°\nB. 60°\n\n正确的是 B", "B"),
        ("The correct answer is B. The other answers: A, C, D are wrong.", "B"),
        ("The answer is B. If it were 40° the answer would be A.", "B"),
        ("The answer is B, not the answer: C", "B"),
    ],
)
def test_options_with_values(text, letters):
    assert chosen_letters(text, ANGLES) == letters


@pytest.mark.parametrize(
    "text",
    [
        r"\boxed{A. 2}",
        r"\boxed{(a) 2}",
        r"\boxed{A (2)}",
        r"\boxed{\textbf{(A)}\ 2}",
        r"\boxed{A: x = 2}",
        r"\boxed{A; x = 2}",
        r"\boxed{A.\ 3\text{ m}}",
        r"\boxed{A. x = 4}",
        r"\boxed{\text{Option A} = 2}",
        r"\boxed{\text{Option A} \approx 2}",
        "A. 2",
        "The answer is (A) 2.",
        "The answer is A. x = 2.",
        "The answer is A, since x = 2.",
        "The answer is A, so x = 2.",
        "The answer is A because BC = 2.",
        "I choose (A), x = 2",
        "I choose A since BC = 2.",
    ],
)
def test_a_letter_decides_whatever_value_is_behind_it(text):
    assert chosen_letters(text, NUMBERS) == "A"


@pytest.mark.parametrize(
    "text",
    [
        "2",
        r"\boxed{A = 2}",
        r"\boxed{a = 2}",
        r"\boxed{P (A) = 2}",
        r"\boxed{\sin (A) = 2}",
        r"\boxed{A (t) = 2}",
        r"\boxed{A/C = 2}",
        r"\boxed{E. 2}",
        r"\boxed{A + C = 2}",
        "The distance between A and C = 2",
        "A, C and D are collinear, so AC = 2.",
        "A is the midpoint of CD, so AC = 2.",
        "The answer is x = 2, since y = 1.",
        "As AD = CD, x = 2",
        "The answer is not A but x = 2",
    ],
)
def test_a_letter_that_names_a_value_is_no_option(text):
    assert chosen_letters(text, NUMBERS) == "B"


@pytest.mark.parametrize(
    "text, choices, letters",
    [
        (r"\boxed{(A, B) = (2, 3)}", {"A": "(1, 2)", "B": "(2, 3)"}, "B"),
        (r"\boxed{B. (1, 2)}", {"A": "(1, 2)", "B": "(2, 3)"}, "B"),
        (r"\boxed{A - 3}", {"A": "3", "B": "A - 3"}, "B"),
        (r"\boxed{A. 2}", {"A": "2", "B": "A. 2"}, "B"),
        (r"\boxed{\text{A. C}}", {"A": "C", "B": "A"}, "A"),
        (r"\boxed{A}", {"A": "C", "B": "A"}, "A"),
        (r"\boxed{5\text{ C}}", {"B": "5 C", "C": "3 A"}, "B"),
        (r"\boxed{B (5\text{ C})}", {"B": "5 C", "C": "3 A"}, "B"),
        (r"\boxed{(A) x = 1 \text{ or } (B) x = 2}", NUMBERS, "AB"),
        (r"\boxed{A. x = 1 \text{ or } B. x = 2}", NUMBERS, "AB"),
    ],
)
def test_letters_and_values_in_one_answer(text, choices, letters):
    assert chosen_letters(text, choices) == letters


@pytest.mark.parametrize(
    "text, letters",
    [
        ("The options are:\nA. 40°\nB. 60°\nC. 120°\nD. 140°", None),
        ("- A. 40°: no\n- B. 60°: yes\n- C. 120°: no\n- D. 140°: no", None),
        ("I look at each option:\nA. 40°: too small.\nB. 60°: fits.\nC. 120°: too", None),
        ("I look at each option:\nA. 40°: too", None),
        ("The options are:\nA. 40°\nB. 60°\nC. 120°\nD. 140°\nB. 60°", "B"),
        ("A. 40°\nB. 60°\nC. 120°\nSo B is correct.", "B"),
        ("B\n\nA. 40° is too small.\nB. 60° fits.", "B"),
        ("From the options, I pick:\nA. 40°", "A"),
        ("A. 40°\n\nB. 60°, C. 120° and D. 140° are too large.", "A"),
        ("The options are:\nA. 40°\nB. 60°\nC. 120°\n\nSo the angle is 60°.", "B"),
    ],
)
def test_a_list_of_the_options_chooses_none(text, letters):
    assert chosen_letters(text, ANGLES) == letters


@pytest.mark.parametrize(
    "text, letters",
    [
        (r"\boxed{\text{a dog}}", "B"),
        (r"\boxed{A dog}", "B"),
        ("It is a black dog.", "C"),
        ("A cat", "A"),
        ("D. None of the above", "D"),
        (r"\boxed{A}", "A"),
        ("The answer is a cat", "A"),
        ('The answer is "a dog".', "B"),
        (r"\boxed{\text{None of the above}}", "D"),
        (r"\boxed{a bird}", None),
    ],
)
def test_options_with_words(text, letters):
    assert chosen_letters(text, ANIMALS) == letters


@pytest.mark.parametrize(
    "text, letters",
    [
        (r"\boxed{A, C}", "AC"),
        (r"\boxed{CA}", "AC"),
        (r"\boxed{A\text{ and }C}", "AC"),
        (r"\boxed{\{A,C\}}", "AC"),
        (r"\boxed{(A), (C)}", "AC"),
        ("The answer is A, C and D.", "ACD"),
        ("Figures A and C", "AC"),
        ("The sequence of the boxes is A, B, C, D, E.", "ABCDE"),
        ('The figure on the right, labeled "D," is a rotation of the object.', "D"),
        (r"\boxed{5}", None),
        ("NO", None),
    ],
)
def test_options_that_are_in_the_image(text, letters):
    assert chosen_letters(text, IN_THE_IMAGE) == letters


@pytest.mark.parametrize(
    "text, answer",
    [
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        ("The answer is 3.5. So it is small.", "3.5"),
        ("Final answer: $\\sqrt{2}$", "\\sqrt{2}"),
        ("The final answer is \\(14\\).", "14"),
        ("The answer is:\n\\[\n14\n\\]", "14"),
        ("The answer is $5 and not $6.", "5 and not $6"),
        ("12 cm", "12 cm"),
        ("The length of AB is 12 cm.", "12 cm"),
        ("**Answer:** The age gap between the two is 8 years.", "8 years"),
        ("The value is $\\frac{3}{4}$.", "\\frac{3}{4}"),
        ("Therefore, AB = 7.", "AB = 7"),
        ("x = 3 or x = 5", "x = 3 or x = 5"),
        ("AB is 3 and BC is 4", "AB is 3 and BC is 4"),
        ("The area is 12 if the side is 3.", "12"),
        ("The answer is 5, so the area is 25", "5"),
        ("AC is equal to 5", "5"),
        ("Hydrogen is the element with number 1", "Hydrogen is the element with number 1"),
        ("The area is $2\\sqrt{3}$.", "2\\sqrt{3}"),
        ("The answer is 5. Both answers are the same.", "5"),
        ("The answer is 5. If doubled, the answer would be 10.", "5"),
        ("If x = 2, the answer is 5.", "5"),
        ("The answer is 5\n<answer></answer>", "5"),
        ("It is red.", "It is red"),
        ("<think>12</think>It is long. <answer>14</answer>", "14"),
        ("The answer is 12. Twice that is 24, so the answer is correct.", "12"),
        ("<think>12</think>\n\n14.", "14"),
        ("First, 12.\nThen, 13.", None),
        ("<think>12", None),
        (" ", None),
    ],
)
def test_free_answers(text, answer):
    assert free_answer(text) == answer


@pytest.mark.parametrize(
    "text, answer",
    [
        ("The sum is 12, so the mean is 4.", "4"),
        ("The sum is 12. Hence, the mean is 4.", "4"),
        ("The sum is 12 and therefore the mean is 4 cm.", "4 cm"),
        ("The sum is 12, which means the mean is 4.", "4"),
        ("The sum is 12, so the mean is 4 as there are 3.", "4"),
        ("The radius is 3, so the area is 9\\pi.", "9\\pi"),
        ("$r = 3$, so $A = 9\\pi$.", "A = 9\\pi"),
        ("Answer: The sum is 12, so the mean is 4.", "4"),
        ("The sum is 12, so it is large.", "12"),
        ("The answer is 4, which is the mean.", "4"),
        ("The mean is 4, which is half of 8.", "4"),
        ("The answer is x = 4, so the sum is 12", "x = 4"),
        ("The answer is 4; the sum is 12.", "4"),
        ("The roots are 3 and 5.", "3 and 5"),
        ("The answer is 3; 5", "3; 5"),
        ("x = 3; x = 5", "x = 3; x = 5"),
        ("There are 12, so each gets 4.", "There are 12, so each gets 4"),
        ("The sum is 12; the mean is 4.", "The sum is 12; the mean is 4"),
        ("The sum is 12, but the mean is 4.", "The sum is 12, but the mean is 4"),
        ("The height is 3 so that the area is 9.", "The height is 3 so that the area is 9"),
        ("First we look.\nThe area is 9\\pi because the radius is 3.", "9\\pi"),
        ("First we look.\nAB is 5 because CD is 25, and the sum is 30.", "30"),
    ],
)
def test_an_intermediate_value_is_no_answer(text, answer):
    assert free_answer(text) == answer


@pytest.mark.parametrize(
    "question, choices",
    [
        ("Q\nChoices:\nA:40°\nB:60°", {"A": "40°", "B": "60°"}),
        ("Q\nChoices:\nA.(x, y)\nB.  \n z\n", {"A": "(x, y)", "B": "z"}),
        ("Q\nChoice:\nA. 1\nB. 2\nChoice:\nA. 3\nB. 4", {"A": "3", "B": "4"}),
        ("Choices: (A) 3/11 (B) 8/11 (C) 3/5", {"A": "3/11", "B": "8/11", "C": "3/5"}),
        ("Which? (A) 3 cm, (B) 4 cm", {"A": "3 cm", "B": "4 cm"}),
        ("Q A. 3 B. 4", {"A": "3", "B": "4"}),
        ("Choices:\nA:26°\nB:74°\n102", {"A": "26°", "B": "74°"}),
        ("Angle A. It is (A) big. Choices are none.", {}),
        ("Q\nB. 1\nC. 2", {}),
    ],
)
def test_options_in_the_text_of_a_question(question, choices):
    assert parse_choices(question) == choices


def test_lists_are_parsed_and_never_evaluated():
    assert literal_list("['a', 2]") == ["a", "2"]
    assert literal_list("a") is None
    assert literal_list("[__import__('os').getcwd()]") is None
    assert literal_list("[" * 10_000 + "]" * 10_000) is None


def test_values_without_name_and_unit():
    assert value_of("x = 1 1/2 cm") == Fraction(3, 2)
    assert value_of(r"1,200\text{ m}^2") == 1200
    assert value_of("between 3 and 4") is None
    assert value_of("x = 3 or x = 5") is None
    assert value_of("The sum of 3 and 4 = 7") == 7


@pytest.mark.parametrize(
    "text", [r"\approx 1.24", r"x \approx 1.24", r"\text{about } 1.24", "~1.24 cm", "1.24..."]
)
def test_an_approximation_is_its_number(text):
    assert value_of(text) == Fraction(31, 25)


def test_values_are_rounded_as_floats():
    assert rounded(Fraction("2.55"), 1) == 2.5  # the float is 2.5499...; exact halves go to even
    assert math.isnan(rounded(Fraction(10) ** 399, 1))


@pytest.mark.parametrize(
    "text, value",
    [
        ("So AB = 17.6.\nTherefore, the distance is approximately 22.3 metres.", "22.3 metres"),
        ("Rounded, it is:\n\n\\((-2, 1)\\)", "(-2, 1)"),
        ("We have:\n\nSo \\(f(x) = x\\).\n\nThe function is\n\\[f(x) = -x^2 + 1\\]", "-x^2 + 1"),
        ("First we look.\nSo the area equals \\(9\\pi\\).", "9\\pi"),
        ("We look.\nI cannot say what it is.", None),
        ("We look.\nThe figure is a nice one.", None),
    ],
)
def test_what_the_end_of_a_response_comes_to(text, value):
    assert free_answer(text) == value


@pytest.mark.parametrize(
    "text", ["It is -5", "5, 7", "5 or 7", "so 1/5", "It is 2√5", "It is 5.5", "x is 5cm^2"]
)
def test_an_option_within_another_number_is_not_named(text):
    assert chosen_letters(text, {"A": "5", "B": "7"}) is None


def test_an_option_that_names_others_is_one_option():
    assert chosen_letters("C. Both A and B", {"A": "x", "B": "y", "C": "Both A and B"}) == "C"


def test_an_option_that_begins_an_answer():
    options = {"A": "Yes", "B": "No"}
    assert chosen_letters("No, the red line is much longer than the blue one.", options) == "B"
    assert chosen_letters("Nothing, the red line is as long as the blue one.", options) is None


def test_a_value_that_repeats_without_end_is_read_in_linear_time():
    assert free_answer("The answer is that x is 0." + "3" * 100_000)
