import asyncio
import threading

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from vapo_verl.reward.accuracy import (
    accuracy,
    answer_of,
    choice_match,
    exact_match,
    text_match,
    truths_of,
)
from vapo_verl.reward.answers import normalised


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"so \boxed{42}", "42"),
        (r"\boxed{\frac{1}{\sqrt{2}}} cm", r"\frac{1}{\sqrt{2}}"),
        (r"\boxed{1} or rather \boxed{2}", "2"),
        (r"\boxed{1} or \boxed{2", "1"),
        (r"\boxed{\boxed{3}}", "3"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{\left\{ x \right.}", r"\left\{ x \right."),
        (r"} \boxed {7}", "7"),
        ("no box: 42", None),
        (r"\boxed{42", None),
        (r"\boxed{  }", None),
        ("", None),
    ],
)
def test_answer_is_the_last_balanced_box(text, answer):
    assert answer_of(text) == answer


def test_a_ground_truth_with_several_boxes_is_all_of_them():
    truth = r"$x=\boxed{3}$ or $x=\boxed{-3}$"
    assert accuracy(r"\boxed{x=3 or x=-3}", truth, "math") == 1.0
    assert accuracy(r"\boxed{-3}", truth, "math") == 0.0
    assert accuracy(r"\boxed{1, 2}", r"\boxed{1}, \boxed{2}", "math") == 1.0
    assert accuracy(r"\boxed{2}", r"The answer is \boxed{2}.", "math") == 1.0


def test_only_what_follows_the_reasoning_counts():
    draft = r"<think>first guess \boxed{1}</think>"
    assert answer_of(draft + r" so \boxed{2}") == "2"
    assert answer_of(draft + " so 2") is None
    assert answer_of(r"<think>cut off, \boxed{1}") == "1"
    assert answer_of(r"plain \boxed{3}") == "3"


@pytest.mark.parametrize(
    ("answer", "truth", "expected"),
    [
        ("7", "7", 1.0),
        ("007", "7", 1.0),
        ("+7", "7", 1.0),
        ("-0", "0", 1.0),
        ("-7", "7", 0.0),
        ("70", "7", 0.0),
        ("7.0", "7", 1.0),  # a float column writes 7.0 for 7
        ("1" * 5000, "1" * 5000, 1.0),
        (r"\text{Red} ", "red", 1.0),
        ("$3,  1$", "3, 1", 1.0),
        ("red", "blue", 0.0),
        ("7", r"\boxed{7}", 1.0),
    ],
)
def test_exact_compares_text_and_integers(answer, truth, expected):
    assert accuracy(rf"<think>I count.</think> \boxed{{{answer}}}", truth, "exact") == expected


@pytest.mark.parametrize(
    ("answer", "truth", "expected"),
    [
        (r"\frac{1}{2}", "0.5", 1.0),
        ("1/2", r"\dfrac12", 1.0),
        ("0.333", r"\frac{1}{3}", 0.0),
        (r"2\sqrt{3}", r"\sqrt{12}", 1.0),
        ("2√3", r"\sqrt{12}", 1.0),
        (r"60^\circ", "60", 1.0),
        (r"12\text{ cm}", "12", 1.0),
        (r"50\%", "50", 1.0),
        ("1,000", "1000", 1.0),
        ("x = 3", "3", 1.0),
        ("2x+1", "1+2x", 1.0),
        ("-3", "3", 0.0),
        ("17", r"\boxed{17^\circ}", 1.0),
    ],
)
def test_math_compares_values(answer, truth, expected):
    assert accuracy(rf"\boxed{{{answer}}}", truth, "math") == expected


@pytest.mark.parametrize("answer", ["B", "b", "(B)", "B.", "B. 12", "(B) a cat", r"\text{B}", "B:"])
def test_choice_letter_in_the_forms_models_write_it(answer):
    assert accuracy(rf"\boxed{{{answer}}}", "B", "math") == 1.0
    assert accuracy(rf"\boxed{{{answer}}}", "(B)", "math") == 1.0
    assert accuracy(rf"\boxed{{{answer}}}", "C", "math") == 0.0


@pytest.mark.parametrize("answer", ["A, B", "AB", "12", "Both", "A and B"])
def test_what_is_not_one_choice_is_wrong(answer):
    assert accuracy(rf"\boxed{{{answer}}}", "B", "math") == 0.0


def test_words_are_not_products_of_variables():
    # math-verify reads both as n*o and finds them equal
    assert accuracy(r"\boxed{on}", "no", "math") == 0.0
    assert accuracy(r"\boxed{\text{No}.}", "no", "math") == 1.0


@pytest.mark.parametrize("box", ["\\", "{", r"\frac{1}{", "^_^", "\x00", "9" * 6000, "(" * 200])
def test_unreadable_answers_are_wrong_and_do_not_raise(box):
    assert accuracy(rf"\boxed{{{box}}}", r"\frac{1}{2}", "math") == 0.0


@given(st.text(alphabet=r"\boxed{}<think>/12 ", max_size=80))
def test_no_text_raises(text):
    assert accuracy(text, "1", "exact") in (0.0, 1.0)


def test_math_works_outside_the_main_thread():
    # math-verify's own time limit is a signal, which raises in any other thread
    verdicts = []
    thread = threading.Thread(
        target=lambda: verdicts.append(accuracy(r"\boxed{\frac{2}{4}}", "0.5", "math"))
    )
    thread.start()
    thread.join()
    assert verdicts == [1.0]


async def test_concurrent_questions_get_their_own_verdicts():
    answers = [rf"\boxed{{\frac{{{i}}}{{8}}}}" for i in range(8)]
    verdicts = await asyncio.gather(
        *(asyncio.to_thread(accuracy, answer, "0.375", "math") for answer in answers)
    )
    assert verdicts == [0, 0, 0, 1, 0, 0, 0, 0]


def test_what_the_caller_got_wrong_is_refused():
    with pytest.raises(ValueError, match="style='fuzzy'"):
        accuracy(r"\boxed{1}", "1", "fuzzy")
    with pytest.raises(ValueError, match="ground_truth"):
        accuracy(r"\boxed{1}", " ", "exact")


@pytest.mark.parametrize("style", ["exact", "text", "choice", "math"])
def test_a_list_means_any_of_its_members(style):
    for truth in (["red", "A"], ("A", "red"), np.array(["red", "A"])):
        assert accuracy(r"\boxed{red}", truth, style) == 1.0
        assert accuracy(r"\boxed{A}", truth, style) == 1.0
        assert accuracy(r"\boxed{blue}", truth, style) == 0.0


@pytest.mark.parametrize(
    ("truth", "texts"),
    [
        ("7", ("7",)),
        (7, ("7",)),
        (3.0, ("3",)),
        (np.float32(0.5), ("0.5",)),
        (r"\boxed{7}", ("7",)),
        (["7", 8], ("7", "8")),
        (np.array([1, 2]), ("1", "2")),
    ],
)
def test_truths_are_texts_and_numbers(truth, texts):
    assert truths_of(truth) == texts


@pytest.mark.parametrize(
    "truth",
    [
        *(
            "",
            " ",
            "$",
            "$$",
            r"\boxed{}",
            r"\text{ }",
            "\u200b",
            None,
            [],
            [[]],
            [["7"]],
            ["7", ""],
        ),
        *(b"7", {"answer": "7"}, float("nan"), float("inf"), True, ["7", None]),
    ],
)
def test_truths_that_nothing_can_match_are_refused(truth):
    with pytest.raises(ValueError, match="ground_truth"):
        accuracy(r"\boxed{7}", truth, "math")


@pytest.mark.parametrize(
    ("answer", "truth", "expected"),
    [
        ("3.0", "3", True),
        ("1,000", "1e3", True),
        ("The cat", "the  cat.", True),
        ("the cat", "cat", False),
        ("1/2", "0.5", False),
        ("5 cm", "5", False),
        ("3-2", "2-1", False),
    ],
)
def test_exact_is_text_and_decimals(answer, truth, expected):
    assert exact_match(answer, truth) is exact_match(truth, answer) is expected


@pytest.mark.parametrize(
    ("answer", "truth", "expected"),
    [
        ("The Cat", "cat", True),
        ("３ p.m.", "3 pm", True),
        ("红 色。", "红色", True),
        ("007", "7", False),
        ("ABC-123", "CBA-123", False),
        ("3.0", "3", False),
    ],
)
def test_text_is_words(answer, truth, expected):
    assert text_match(answer, truth) is text_match(truth, answer) is expected


@pytest.mark.parametrize(
    ("answer", "truth", "expected"),
    [
        ("(b) 12", "B", True),
        ("B. dog", "B. cat", True),
        ("cat", "B. cat", True),
        ("CA", "A, C", True),
        ("A, C", "AC", True),
        ("b", "B", True),
        ("A) or B)", "A", False),
        ("A, B", "B", False),
        ("A. cat", "B. cat", False),
        ("True", "true", True),
    ],
)
def test_choice_is_a_set_of_letters(answer, truth, expected):
    assert choice_match(answer, truth) is choice_match(truth, answer) is expected


def test_hard_texts_are_bounded_in_every_style():
    texts = ["9" * 200_000, "(" * 5_000 + "1" + ")" * 5_000, "{" * 200_000, r"\frac{" * 50_000]
    texts += ["9^{9^{9^9}}", "1" + "0" * 4_000 + "!", "1e999999999", "a b " * 50_000, "±" * 900]
    for style in ("exact", "text", "choice", "math"):
        for text in texts:
            assert accuracy(rf"\boxed{{{text}}}", "7", style) == 0.0
    for text in ("9" * 200_000, "(" * 5_000 + "1" + ")" * 5_000, "a b " * 50_000):
        assert accuracy(rf"\boxed{{{text}}}", text, "math") == 1.0


@given(st.text(st.characters(exclude_characters="\\{}"), max_size=40))
def test_every_truth_is_correct_against_itself(truth):
    assume(normalised(truth))
    for style in ("exact", "text", "choice", "math"):
        assert accuracy(rf"<think>so</think> \boxed{{{truth}}}", truth, style) == 1.0
