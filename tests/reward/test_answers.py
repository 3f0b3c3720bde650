"""The normal form of answers, and what is read from it."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vapo_verl.reward.answers import choice, normalised, text_key
from vapo_verl.reward.quantities import decimal_key, number, quantity


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("１２ ｃｍ", "12 cm"),
        ("−3", "-3"),
        ("3–5", "3-5"),
        ("٣٫٥", "3.5"),
        ("x²", "x^2"),
        ("x^{10}", "x^{10}"),
        ("x^10", "x^{10}"),
        ("H₂O", "H_2O"),
        ("1½", r"1 \frac{1}{2}"),
        (r"\dfrac12", r"\frac{1}{2}"),
        (r"1\,000", "1000"),
        ("1,000.5", "1000.5"),
        ("1 000 000", "1000000"),
        ("1{,}000", "1000"),
        ("(1,200)", "(1,200)"),
        ("(1,000)", "(1000)"),
        ("1,2", "1,2"),
        (r"$\frac{\sqrt{30}}{2}$", r"\frac{\sqrt{30}}{2}"),
        (r"\left( 1, \infty \right)", "( 1, ∞ )"),
        (r"\left. x \right|", "x |"),
        (r"\text{red}", "red"),
        (r"5\text{cm}", "5 cm"),
        (r"\{1,2\}", r"\{1,2\}"),
        ("{1,2}", r"\{1,2\}"),
        (r"132 ^\circT", "132°T"),
        (r"50\%", "50%"),
        ("$5", "USD 5"),
        ("$5$", "5"),
        (r"$\$5$", "USD 5"),
        ("$5 and $10", "USD 5 and USD 10"),
        (r"Area $=9 \pi \mathrm{~cm}^{2}$", "Area =9 π cm^2"),
        ("**B**", "B"),
        ("`B`", "B"),
        ("The answer is: **B**.", "B"),
        ("答案：B", "B"),
        ('"STOP"', "STOP"),
        ("\u200bB\ufeff", "B"),
        ("0.333...", "0.333..."),
        ("√12", r"\sqrt{12}"),
        (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix}1\\2\end{pmatrix}"),
        ("$", ""),
        (r"\text{}", ""),
    ],
)
def test_one_normal_form(text, normal):
    assert normalised(text) == normal


@given(st.text(max_size=60))
def test_normalising_again_changes_nothing(text):
    assert normalised(normalised(text)) == normalised(text)


SIGNS = "\\{}$^_,.;:()[]*`'-+=/%°²½ \n10x2B~\""
WORDS = [r"\frac", r"\text{", r"\mathrm{", r"\left", r"\right", r"\pi", r"\circ", r"\$", r"\,"]
WORDS += ["Answer:", "cm", "and", r"\sqrt", r"\boxed{", r"\!", r"\\", r"\{", "pi", "inf", "000"]
PIECES = st.sampled_from([*SIGNS, *WORDS])


@given(st.lists(PIECES, max_size=14).map("".join))
def test_normalising_latex_again_changes_nothing(text):
    assert normalised(normalised(text)) == normalised(text)
    assert text_key(normalised(text)) == text_key(text)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1 1/2", Fraction(3, 2)),
        (r"-1\frac{1}{2}", Fraction(-3, 2)),
        ("1½", Fraction(3, 2)),
        ("½", Fraction(1, 2)),
        (r"\frac{3}{-4}", Fraction(-3, 4)),
        ("1,000", 1000),
        ("1e3", 1000),
        ("1.5E-3", Fraction(3, 2000)),
        (r"1.5 \times 10^{3}", 1500),
        ("10^3", 1000),
        ("5 million", 5_000_000),
        (".5", Fraction(1, 2)),
        ("(7)", 7),
        ("2 3/2", None),
        ("1/0", None),
        ("3-2", None),
        ("50%", None),
        ("1e999999999", None),
        ("9" * 5000, None),
        ("nan", None),
    ],
)
def test_numbers_are_exact(text, value):
    assert number(text) == value


@given(st.decimals(allow_nan=False, allow_infinity=False))
def test_every_float_a_column_may_hold_is_its_number(value):
    assert decimal_key(str(value)) == decimal_key(f"{value:e}")
    if number(str(value)) is not None:
        assert number(str(value)) == Fraction(value)


@pytest.mark.parametrize(
    ("text", "value", "unit"),
    [
        ("5 cm", "5", "cm"),
        ("5m", "5", "m"),
        (r"9 \pi \mathrm{~cm}^{2}", "9 π", "cm^2"),
        ("12 square metres", "12", "m^2"),
        ("12 sq. m", "12", "m^2"),
        ("12 cubic centimeters", "12", "cm^3"),
        ("12 cc", "12", "cm^3"),
        ("56.55 units $^{3}$", "56.55", "unit^3"),
        ("3 km/h", "3", "h^-1 km"),
        ("3 kilometers per hour", "3", "h^-1 km"),
        ("3 m s^{-2}", "3", "m s^-2"),
        ("3 KG", "3", "kg"),
        ("5 mW", "5", "mW"),
        ("5 MW", "5", "MW"),
        ("60 degrees", "60", "°"),
        (r"25^\circ C", "25", "°C"),
        ("-$5.00", "-5.00", "USD"),
        ("5 dollars", "5", "USD"),
        ("5厘米", "5", "cm"),
        ("5 apples", "5", "apple"),
        (r"50\%", "50", "%"),
    ],
)
def test_quantities_have_one_name_for_a_unit(text, value, unit):
    found = quantity(text)
    assert found is not None
    assert (found.value, found.unit) == (value, unit)


@pytest.mark.parametrize(
    "text",
    ["5", "cm", "3 pm", "5 ft 3 in", "5x", "12 Main Street", "21st", "2 and", "x m", "sin 5"],
)
def test_what_has_no_unit(text):
    assert quantity(text) is None


def test_a_capital_letter_close_to_a_number_may_be_a_code():
    assert not quantity("3A").is_sure
    assert quantity("3 A").is_sure


@pytest.mark.parametrize(
    ("text", "letters", "behind"),
    [
        ("B", "B", ""),
        ("(b)", "B", ""),
        ("[B]", "B", ""),
        ("Ｂ", "B", ""),
        ("B.", "B", ""),
        ("Option B", "B", ""),
        ("B. cat", "B", "cat"),
        ("(B) -3", "B", "-3"),
        ("B) 12 or 13", "B", "12 or 13"),
        ("A, C", "AC", ""),
        ("A and C", "AC", ""),
        ("(A), (C)", "AC", ""),
        ("A\nC", "AC", ""),
        ("AC", "AC", ""),
    ],
)
def test_letters_of_options(text, letters, behind):
    picked = choice(text)
    assert picked is not None
    assert picked.letters == set(letters)
    assert picked.text == behind


@pytest.mark.parametrize(
    "text",
    ["A) or B)", "A or B", "A. cat B. dog", "a/b", "A cat", "Both", "(a, b)", "(x)+2", "a.m."],
)
def test_no_letter_stands_alone(text):
    assert choice(text) is None


def test_long_texts_take_linear_time():
    for text in (
        "\\text{" * 40_000,
        "{" * 200_000,
        "1,000" * 40_000,
        '"' * 200_000,
        "$x$ " * 50_000,
    ):
        normalised(text)
        choice(text)
        number(text)
        quantity(text)
