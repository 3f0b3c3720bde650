"""What style `math` counts as equal: a table of pairs, each tried in both orders."""

import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vapo_verl.reward.accuracy import choice_match, exact_match, text_match
from vapo_verl.reward.mathematics import math_match

EQUAL = [
    ("A", "A. cat"),
    ("[B]", "B"),
    ("**B**", "B"),
    ("Answer: B", "B"),
    ("Ｂ", "B"),
    ("１２", "12"),
    ("A, C", "AC"),
    ("C, A", "AC"),
    ("A and C", "AC"),
    ("1e3", "1000"),
    (r"1\,000", "1000"),
    ("1 1/2", "1.5"),
    ("½", "0.5"),
    ("½", "1/2"),
    (r"50\%", "0.5"),
    ("0.5", "50%"),
    ("50%", "50"),
    ("5 cm", "5"),
    ("5", "5 cm"),
    ("x=5", "5"),
    ("5", "x=5"),
    ("18.8", r"Perimeter $=18.8 \mathrm{~cm}$"),
    ("18.8 cm", r"Perimeter $=18.8 \mathrm{~cm}$"),
    ("P=18.8 cm", r"Perimeter $=18.8 \mathrm{~cm}$"),
    (r"\frac15", r"Slope $=\frac{1}{5}$"),
    ("0.2", r"Slope $=\frac{1}{5}$"),
    ("56.55", "56.55 units $^{3}$"),
    ("56.55 cubic units", "56.55 units $^{3}$"),
    ("3.0", "3"),
    ("A\nC", "A, C"),
    ("(-∞, 4]", r"(-\infty, 4]"),
    ("{1,2}", "2,1"),
    (r"\{1,2\}", r"\{2,1\}"),
    ("x=1 or x=2", "1, 2"),
    (r"\pm 3", "3, -3"),
    (r"x=\pm3", "x=3 or x=-3"),
    ("(1, 2)", "(1,2.0)"),
    (r"\left(\frac12, 3\right)", "(0.5,3)"),
    ("x>3", "3<x"),
    ("x>3", r"(3,\infty)"),
    ("y=x-5", "x-y=5"),
    ("x-5", "y=x-5"),
    ("9=x^2+y^2", "x^2+y^2=9"),
    ("y^2+x^2=9", "x^2+y^2=9"),
    ("f(x)=|x-3|", "|x-3|"),
    ("-3", "−3"),
    ("(-3)", "-3"),
    ("- 3", "-3"),
    ("3:2", "3 : 2"),
    (r"\frac{1}{64}", "1:64"),
    ("H₂O", "H2O"),
    (r"\mathrm{H_2O}", "H2O"),
    ("IV", "Ⅳ"),
    ("the cat", "cat"),
    ("The Cat.", "cat"),
    ("红色。", "红色"),
    ("$5", "5"),
    ("5 dollars", "$5"),
    (r"\$5.00", "$5"),
    ("25℃", r"25^\circ C"),
    ("25 degrees Celsius", "25°C"),
    ("25", "25°C"),
    (r"1.5\times 10^{3}", "1500"),
    ("1.5e3", "1500"),
    ("1.5 x 10^3", "1500"),
    ("3.0×10⁸ m/s", r"3\times10^8 \mathrm{m/s}"),
    ("2 ± √3", r"2\pm\sqrt{3}"),
    ("2+√3, 2-√3", r"2\pm\sqrt{3}"),
    ("2√3", r"\sqrt{12}"),
    ("sqrt(12)", r"2\sqrt{3}"),
    ("2pi", r"2\pi"),
    ("60", "60°"),
    ("60 degrees", r"60^\circ"),
    ("3 p.m.", "3 pm"),
    ("3PM", "3 pm"),
    ("03:30", "3:30"),
    ("3 – 2", "3-2"),
    ("20 m", "20 metres"),
    ("20 square meters", r"20 \mathrm{m}^2"),
    ("20 m²", r"20 \mathrm{~m}^{2}"),
    ("The answer is 5", "5"),
    ("1,234.5", "1234.5"),
    ("1 234", "1234"),
    ("12,000 km", "12000 km"),
    ("5 million", "5,000,000"),
    ("5 apples", "5"),
    ("5 apple", "5 apples"),
    ("N 34° W", r"N 34^\circ W"),
    ("212°T", r"212^\circ T"),
    ("Center (20,10)", "Center (20,10)"),
    ("(20,10)", "Center $=(20,10)$"),
    (r"(90^\circ,5)", r"$(x, y)=\left(90^{\circ}, 5\right)$"),
    ("(270, 5)", r"\left(x,y\right)=\left(270^\circ ,5\right)"),
    ("1690 cm²", "$1690cm^2$"),
    ("A=9π cm^2", r"Area $=9 \pi \mathrm{cm}^{2}$"),
    ("28.2743339 cm^2", r"Area $=9 \pi \mathrm{cm}^{2}$"),
    ("4,0", "$(4,0)$"),
    (r"\frac{3}{4}", "0.75"),
    ("3/4", "6/8"),
    ("-1/2", r"Slope $=-\frac{1}{2}$"),
    ("Slope: -1/2", r"-\frac{1}{2}"),
    ("y=-x^2", "g(x)=-x^2"),
    ("-x^2", "g(x)=-x^2"),
    ("2+3=5", "5"),
    ("x=2+3=5", "5"),
    (r"A=\pi r^2=78.5", "78.5"),
    (r"90^{\circ}", "90"),
    (r"\angle ABC = 50^\circ", "50"),
    ("AB = 5", "5"),
    ("ABC", "ABC"),
    (r"x \le 5", "x <= 5"),
    (r"-\frac{3}{2}x+3", r"$-\frac{3}{2}x+3$"),
    ("3-1.5x", r"$-\frac{3}{2}x+3$"),
    ("y+3=0.75(x-2)", r"$y+3=\frac{3}{4}(x-2)$"),
    ("2", r"\boxed{2}"),
    ("Yes", "yes"),
    ("True.", "true"),
    ("0.30000000000000004", "0.3"),
    ("0.333333", "1/3"),
    ("٣", "3"),
    ("5²", "25"),
    ("x^{2}+1", "x²+1"),
    ("log_2 8", "3"),
    ("50 percent", "50%"),
    ("12 V", "12V"),
    ("3.", "3"),
    ("+7", "7"),
    ("12 km/h", "12 kilometers per hour"),
    ("12 kph", "12 km/h"),
    ("5 m s^{-1}", "5 m/s"),
    ("USD 5", "$5"),
    ("5元", "5"),
    ("五", "五"),
    ("[1, 2]", "[1,2]"),
    ("(2, 3]", "(2,3]"),
    (r"\langle 1,2\rangle", "(1,2)"),
    ("1;2", "1,2"),
    ("B - cat", "B"),
    ("Option B", "B"),
    ("选B", "B"),
    ("答案：B", "B"),
    ("(B) 12", "12"),
    ("x=1, y=2", "y=2, x=1"),
    ("3 x 4", "3×4"),
    ("2x+1", "1+2x"),
    ("(x+1)(x-1)", "x^2-1"),
    (r"\frac{\sqrt{2}}{2}", r"\frac{1}{\sqrt2}"),
    ("a+b", "b+a"),
    ("3 cm, 4 cm", "4 cm, 3 cm"),
    (r"\text{Tuesday}", "Tuesday"),
    ('"STOP"', "STOP"),
    ("New York", "new york"),
    ("1e-3", "0.001"),
    ("10^{-3}", "0.001"),
    ("10^3", "1000"),
    ("6.02×10^{23}", "6.02e23"),
    ("[-4,4] and [0,2]", "domain: [-4,4] and range: [0,2]"),
    ("1, 2", "x=1, y=2"),
    ("N34°W", "N 34° W"),
]
DIFFERENT = [
    ("[0,2] and [-4,4]", "domain: [-4,4] and range: [0,2]"),
    ("2, 1", "x=1, y=2"),
    ("34°", "N 34° W"),
    ("3-2", "2-1"),
    ("2023-01-02", "2023-02-01"),
    ("ABC-123", "CBA-123"),
    ("5 cm", "5 m"),
    ("3 pm", "3 am"),
    ("A) or B)", "A"),
    ("4=5", "5"),
    ("1 1/2", "1"),
    (r"2\sqrt{3}", "3.46"),
    ("3.46", r"2\sqrt{3}"),
    ("(1,2)", "(2,1)"),
    ("[1,2]", "(1,2)"),
    ("[1,2)", "(1,2]"),
    ("{1,2}", "(1,2)"),
    ("1", "1,2"),
    ("1 or 2", "1"),
    ("x>3", "x<3"),
    ("x>3", r"x\ge3"),
    ("2x=5", "5"),
    ("x=5", "y=5"),
    ("-3", "3"),
    ("2:3", "3:2"),
    ("6:4", "3:2"),
    ("H2O", "HO2"),
    ("CO", "Co"),
    ("CO2", "Co2"),
    ("IV", "VI"),
    ("on", "no"),
    ("$5", "€5"),
    ("5 dollars", "5 cents"),
    ("25°C", "25°F"),
    ("1.5e3", "1.5e4"),
    ("1e-9", "2e-9"),
    ("1e-9", "-1e-9"),
    ("5 cm", "5 cm^2"),
    ("cm", "m"),
    ("10:30", "10:03"),
    ("1/2/2023", "2/1/2023"),
    ("192.168.1.1", "192.168.1.11"),
    ("1.2.3", "3.2.1"),
    ("v1.2", "v2.1"),
    ("555-1234", "1234-555"),
    ("(555) 123-4567", "(555) 4567-123"),
    ("12 Main Street", "12 Main St"),
    ("12", "12 Main Street"),
    ("21st", "22nd"),
    ("3-5 cm", "5-3 cm"),
    ("5 mW", "5 MW"),
    ("3A", "3C"),
    ("3A", "3"),
    ("A", "B"),
    ("AB", "B"),
    ("Both", "B"),
    ("A, B", "B"),
    ("0.5%", "50%"),
    ("5%", "5 cm"),
    ("0.333", "1/3"),
    ("3.14", r"\pi"),
    ("x^2", "x2"),
    ("10^3", "103"),
    ("2^3", "23"),
    ("3×4", "4×3"),
    ("3×4", "12"),
    ("2 h 30 min", "2 h"),
    ("5 ft 3 in", "5 ft"),
    ("5'3\"", "5'4\""),
    ("Area = 5 cm", "Perimeter = 5 cm"),
    (r"\angle A=50", r"\angle B=50"),
    ("(1,200)", "1200"),
    ("1,2,3", "3"),
    ("red", "blue"),
    ("red and blue", "red"),
    ("7 ABC 123", "7 CBA 123"),
    ("A1", "B1"),
    ("A1", "1A"),
    ("B12", "B21"),
    ("5", "5x"),
    ("90", r"\frac{\pi}{2}"),
    ("-x^2", "x^2"),
    ("y=x-5", "y=x+5"),
    ("y=x-5", "y=5-x"),
    ("(3,∞)", "[3,∞)"),
    ("(-∞,1)∪(3,4)", "(-∞,1)"),
    ("room 5", "5"),
    ("No. 5", "5"),
    ("#5", "5"),
    ("5/3", "3/5"),
    ("0", "O"),
    ("", "5"),
    ("5", "-5"),
    ("+-5", "5"),
    ("3 4", "34"),
    ("1 12", "11 2"),
    ("2023", "2024"),
    ("a.m.", "A"),
    ("5 lb", "5 kg"),
    ("3 apples", "3 oranges"),
    ("3.1", "3.10.1"),
    ("A or B", "A"),
    ("A/B", "A"),
    ("not A", "A"),
    ("B", "A. cat"),
    ("dog", "A. cat"),
    ("A. dog", "A. cat"),
    ("10-5", "5"),
    ("12:00", "12"),
    ("35°20'", "35"),
    ("100 cm", "1 m"),
    ("£3", "3p"),
    ("5 million", "5"),
    ("5k", "5"),
    ("1/3", "0.3"),
    ("2√3", "√3"),
    ("3+4i", "3-4i"),
    ("sin x", "cos x"),
    (r"\sin x = 5", r"\cos x=5"),
    ("{1,2}", "{1,3}"),
    ("{1,1}", "{1}"),
    ("1-2-3", "3-2-1"),
    ("2-1", "1"),
    ("8/9", "9/8"),
    ("CAB", "ABC-1"),
    ("BED", "DEB"),
    ("2H2+O2->2H2O", "2H2O->2H2+O2"),
    ("EHG", "HEG"),
    ("(A,B)", "(A)"),
    ("5 m", "5 min"),
    ("5 s", "5 m"),
    ("1 000 000", "1000"),
    ("MCMXC", "MCMCX"),
    ("x≠3", "x=3"),
    ("1<x<2", "1<=x<=2"),
    ("1<x<2", "[1,2]"),
    ("domain: [-4,4] and range: [0,2]", "domain: [0,2] and range: [-4,4]"),
]


@pytest.mark.parametrize(("answer", "truth"), EQUAL)
def test_equal_in_value(answer, truth):
    assert math_match(answer, truth)
    assert math_match(truth, answer)


@pytest.mark.parametrize(("answer", "truth"), DIFFERENT)
def test_different(answer, truth):
    assert not math_match(answer, truth)
    assert not math_match(truth, answer)


@pytest.mark.parametrize(
    "truth", sorted({side for pair in EQUAL + DIFFERENT for side in pair} - {""})
)
def test_every_truth_is_itself_in_every_style(truth):
    for match in (math_match, exact_match, text_match, choice_match):
        assert match(truth, truth)


def test_words_that_are_formulas_too_keep_no_case():
    assert math_match("NO", "No")
    assert math_match("HCl", "hcl")


CODES = st.from_regex(r"[A-Z]{2,3}-[0-9]{2,4}|[0-9]{2}-[A-Z]{2}[0-9]?", fullmatch=True)
DATES = st.dates().map(str)
TIMES = st.from_regex(r"(1[0-2]|[1-9]):[0-5][0-9] [ap]m", fullmatch=True)
PHONES = st.from_regex(r"\([0-9]{3}\) [0-9]{3}-[0-9]{4}", fullmatch=True)
VERSIONS = st.from_regex(r"v?(0|[1-9][0-9]?)(\.(0|[1-9][0-9]?)){2,3}", fullmatch=True)
SCORES = st.from_regex(r"[1-9]?[0-9][-:][1-9]?[0-9]", fullmatch=True)
WORDS = st.text(string.ascii_lowercase, min_size=4, max_size=8)
NUMBERS = st.decimals(-999, 999, places=2).map(str)
UNITS = st.sampled_from(
    ["cm", "m", "km", "mm", "cm^2", "m^3", "kg", "g", "s", "min", "h", "V", "°C", "°F"]
)
QUANTITIES = st.builds("{} {}".format, NUMBERS, UNITS)
OF_TEXT = st.one_of(CODES, DATES, TIMES, PHONES, VERSIONS, SCORES)


@given(OF_TEXT, OF_TEXT)
def test_no_two_texts_read_off_an_image_are_equal(a, b):
    assert math_match(a, b) == (a == b)


@given(
    st.lists(st.sampled_from("0123456789ABC-"), min_size=1).flatmap(
        lambda s: st.tuples(
            st.just("AB-1" + "".join(s)), st.permutations(s).map(lambda p: "AB-1" + "".join(p))
        )
    )
)
def test_permuted_codes_are_different(pair):
    assert math_match(*pair) == (pair[0] == pair[1])


@given(NUMBERS, UNITS, NUMBERS, UNITS)
def test_quantities_are_equal_in_value_and_unit_only(x, unit, y, other):
    assert math_match(f"{x} {unit}", f"{y} {other}") == (float(x) == float(y) and unit == other)


ANSWERS = st.one_of(
    OF_TEXT,
    QUANTITIES,
    NUMBERS,
    WORDS,
    st.sampled_from([side for pair in EQUAL + DIFFERENT for side in pair if side]),
)


@settings(max_examples=200, deadline=None)
@given(ANSWERS, ANSWERS)
def test_styles_are_symmetric_and_reflexive(a, b):
    for match in (math_match, exact_match, text_match, choice_match):
        assert match(a, b) == match(b, a)
        assert match(a, a)
