r"""The protocol of each benchmark, on rows whose grade is plain."""

import ast
import math
from pathlib import Path

import pytest

import vapo_verl.evaluation.benchmarks.rules
from vapo_verl.data.errors import BadCell, RowError
from vapo_verl.evaluation.benchmarks import BenchmarkRow, Grade
from vapo_verl.evaluation.benchmarks.rules import RULES, check_rows, find_rule
from vapo_verl.evaluation.benchmarks.rules.mathverse import same_meaning
from vapo_verl.evaluation.benchmarks.rules.wemath import four_kinds

OPTIONS = {"A": "3 cm", "B": "4 cm", "C": "5 cm", "D": "6 cm"}


def row(answer: str, question: str = "How long?", **more) -> BenchmarkRow:
    extra = {key: more.pop(key) for key in list(more) if key not in BenchmarkRow.__slots__}
    given = {"number": 0, "index": 0} | more
    return BenchmarkRow(question=question, answer=answer, extra=extra, **given)


def correct(rules: str, given: BenchmarkRow, text: str) -> bool | None:
    return find_rule(rules).grade(given, text).correct


@pytest.mark.parametrize("rules", RULES)
def test_every_rule_grades_nothing_as_unparsed(rules):
    rule = find_rule(rules)
    given = row("A", choices=OPTIONS, ID="1", key="2steps_1", index="VD_figure_1_0_0_0")
    if rules in ("hallusionbench", "yes-no"):
        given = row("yes", index="VD_figure_1_0_0_0")
    assert rule.name == rules
    assert rule.grade(given, "") == Grade(correct=None, extracted=None, rule=rules)
    assert rule.grade(given, "<think>I see").correct is None
    assert all(math.isnan(score) for score in rule.scores([], []).values())
    assert rule.prompt(given).text.count(given.question) == 1
    assert rule.cluster(given)


@pytest.mark.parametrize(
    "path",
    sorted(Path(vapo_verl.evaluation.benchmarks.rules.__file__).parent.glob("*.py")),
    ids=lambda path: path.stem,
)
def test_rules_evaluate_nothing_and_draw_nothing(path):
    tree = ast.parse(path.read_text())
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    modules = {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
    }
    assert not names & {"eval", "exec", "compile", "random"}
    assert not modules & {"random", "numpy", "pickle"}


def test_mathvista():
    def grade(kind: str, answer: str, text: str, **more) -> bool | None:
        more = {"question_type": "free_form", "answer_type": kind} | more
        return correct("mathvista", row(answer, **more), text)

    assert grade("integer", "14", r"\boxed{14}") is True
    assert grade("integer", "14", r"\boxed{14.0\text{ cm}}") is True
    assert grade("integer", "1200", r"\boxed{1,200}") is True
    assert grade("integer", "14", r"\boxed{14.5}") is False
    assert grade("integer", "14", "Fourteen or so, I count.\nMany.") is None
    assert grade("float", "0.6", r"\boxed{0.58}", precision="1.0") is True
    assert grade("float", "0.6", r"\boxed{0.58}") is False
    assert grade("float", "1.45", r"\boxed{\$1.45}", precision="2") is True
    assert grade("float", "1.2", "It is approximately 1.24.", precision="1.0") is True
    assert grade("float", "0.5", r"\boxed{50\%}", precision="1.0") is True
    assert grade("float", "2.5", r"\boxed{2.55}", precision="1.0") is True  # the float is 2.5499...
    assert grade("integer", "6", "The number of objects left is 6.") is True
    assert grade("integer", "4", "The sum is 12, so the mean is 4.") is True
    assert grade("integer", "12", "The sum is 12, so the mean is 4.") is False
    assert grade("list", "[2007, 2008]", "The answer is 2007 and 2008.") is True
    assert grade("list", "[2007, 2008]", r"\boxed{[2008, 2007]}") is False
    assert grade("list", "[2007, 2008]", r"\boxed{2007}") is False
    assert grade("text", "Yes", r"\boxed{\text{yes}}") is True
    options = {"A": "3/11", "B": "8/11", "C": "6/11"}
    choice = {"question_type": "multi_choice", "answer_type": "text", "choices": options}
    assert grade("", "8/11", r"\boxed{B}", **choice) is True
    assert grade("", "8/11", r"\boxed{\frac{8}{11}}", **choice) is True
    assert grade("", "8/11", r"\boxed{C}", **choice) is False
    assert grade("", "8/11", r"\boxed{B}", **choice, answer_option="B") is True


def test_mathvista_asks_with_hint_and_options():
    given = row("B", hint="Give a letter.", choices=OPTIONS, images=(b"1", b"2"))
    assert find_rule("mathvista").prompt(given).text == (
        "<image><image>Hint: Give a letter.\nQuestion: How long?\n"
        "Choices:\n(A) 3 cm\n(B) 4 cm\n(C) 5 cm\n(D) 6 cm"
    )
    whole = row("B", "Hint: Give a letter.\nHow long?\nChoices:\n(A) 3 cm (B) 4 cm")
    assert find_rule("mathvista").prompt(whole).text == whole.question


def test_mathvision():
    assert correct("mathvision", row("C", choices=OPTIONS), r"\boxed{5 cm}") is True
    assert correct("mathvision", row("C", choices=OPTIONS), "B") is False
    assert correct("mathvision", row("C", choices=OPTIONS), r"\boxed{B. 5 cm}") is False
    assert correct("mathvision", row(r"\frac{1}{2}"), r"\boxed{0.5}") is True
    assert correct("mathvision", row("12"), r"\boxed{3 \cdot 4}") is True
    assert correct("mathvision", row("12"), r"\boxed{__import__('os').getpid()}") is False


@pytest.mark.parametrize(
    "question, answer, text, expected",
    [
        ("Find x\nChoices:\nA:40°\nB:60°", "B", r"\boxed{B}", True),
        ("Find x\nChoices:\nA:40°\nB:60°", "B", r"\boxed{60^\circ}", True),
        ("Find x\nChoices:\nA:40°\nB:60°", "B", r"\boxed{40}", False),
        ("Find x\nChoices:\nA:40°\nB:60°", "60°", r"\boxed{B}", True),
        ("True?\nChoice:\nA. True\nB. False", "False", r"\boxed{B}", True),
        ("Rate?\nChoices:\nA.$y$ grows\nB.$y$ falls", "(B)", r"\boxed{B}", True),
        ("The options are hidden", "C", r"\boxed{C}", True),
        ("Some are\nChoices:\nA. 1\nB. 2\nin the image", "D", r"\boxed{D}", True),
        ("Perimeter?", r"Perimeter $=18.8 \mathrm{~cm}$", r"\boxed{18.8}", True),
        ("Perimeter?", r"Perimeter $=18.8 \mathrm{~cm}$", r"\boxed{18.9}", False),
        ("Slope?", r"Slope $=\frac{1}{5}$", r"\boxed{0.2}", True),
        ("Volume?", "56.55 units $^{3}$", r"\boxed{56.55}", True),
        ("Volume?", "Volume $=452.389$ cubic units", r"\boxed{452.389}", True),
        ("Area?", r"Area $=9 \pi \mathrm{cm}^{2}$", r"\boxed{9\pi}", True),
        ("Area?", "$1690cm^2$", r"\boxed{1690}", True),
        ("Length?", "0.5m", r"\boxed{50 \text{ cm}}", True),
        ("Weight?", r"Weight $=18.63 \mathrm{~kg}$", r"\boxed{18630 \text{ g}}", True),
        ("Bearing?", r"217 ^\circ T", r"\boxed{217^\circ}", True),
        ("Bearing?", r"217 ^\circ T", r"\boxed{37^\circ}", False),
        ("Ratio?", "1:64", r"\boxed{1 \text{ to } 64}", True),
        ("Angle?", "35掳", r"\boxed{35^\circ}", True),
        ("Function?", "f(x)=|x-3|", r"\boxed{y = |x - 3|}", True),
        ("Function?", "f(x)=|x-3|", r"\boxed{y = |x + 3|}", False),
        ("Length?", "12", "It is long.\nI cannot say.", None),
    ],
)
def test_mathverse(question, answer, text, expected):
    assert correct("mathverse", row(answer, question), text) is expected


def test_mathverse_takes_any_ground_truth():
    """A row of the file that is damaged does not end the grading of all others."""
    lost = row("9", "x?\nChoices:\nA:7\nB:8", question_type="multi-choice")
    assert correct("mathverse", lost, r"\boxed{9}") is True
    assert correct("mathverse", lost, r"\boxed{A}") is False
    both = row("A\nC", "x?", question_type="multi-choice")
    assert correct("mathverse", both, r"\boxed{A, C}") is True
    text = row(
        "B. it rises", "x?\nChoices:\nA. it falls\nB. it rises", question_type="multi-choice"
    )
    assert correct("mathverse", text, r"\boxed{B}") is True
    assert correct("mathverse", row("7", "x?\nChoices:\nA:7\nB:8"), r"\boxed{A}") is True
    assert correct("mathverse", row("7", "x?", question_type="free-form"), r"\boxed{7}") is True


@pytest.mark.parametrize(
    "answer, expected",
    [
        (r"[-4, 4] \text{ and } [0, 2]", True),
        (r"[-4, 4], [0, 2]", True),
        ("Range: [0, 2], domain: [-4, 4]", True),
        ("[0, 2] and [-4, 4]", False),
        ("[-4, 4]", False),
    ],
)
def test_parts_with_labels(answer, expected):
    assert same_meaning(answer, "domain: [-4,4] and range: [0,2]") is expected


@pytest.mark.parametrize(
    "first, second, expected",
    [
        ("0.5 m", "50 cm", True),
        ("500 mL", "500 cm^3", True),
        ("90 km/h", "25 m/s", True),
        ("2 kg", "2000 g", True),
        ("1 h", "60 s", False),
        ("5 cm^2", "5 cm", False),
    ],
)
def test_converted_units(first, second, expected):
    assert same_meaning(first, second) is same_meaning(second, first) is expected


def test_logicvista_compares_sets():
    assert correct("logicvista", row("A, C"), r"\boxed{C, A}") is True
    assert correct("logicvista", row("A, C"), r"\boxed{A}") is False
    assert correct("logicvista", row("D"), r"\boxed{C, D}") is False


def test_mmmu_open_questions():
    assert correct("mmmu", row("['2.5', 'two and a half']"), r"\boxed{2.499}") is True
    assert correct("mmmu", row("['2.5', 'two and a half']"), r"\boxed{2.4}") is False
    assert correct("mmmu", row("Zinc"), "The answer is zinc oxide.") is True
    assert correct("mmmu", row("Zinc"), r"\boxed{Zincite}") is False
    assert correct("mmmu", row("8.5"), r"\boxed{\frac{17}{2}}") is True


def test_yes_and_no():
    given = row("No", index="VS_map_2_1_0_1")
    for text, expected in [
        (r"<think>yes?</think>\boxed{No}", True),
        ("No, it isn't.", True),
        ("Yes.", False),
        ("Not sure.", None),
        ("Yes and no.", None),
    ]:
        assert correct("hallusionbench", given, text) is expected
        assert correct("yes-no", given, text) is expected
    with pytest.raises(BadCell, match="neither yes nor no"):
        correct("yes-no", row("maybe"), "yes")


def test_sets_of_hallusionbench_are_numbered_within_a_topic():
    """Both figures are 0_0, of two topics: one correct, one not."""
    rows = [row("Yes", index=f"VD_{topic}_1_0_0_{q}") for topic in ("math", "map") for q in (0, 1)]
    rule = find_rule("hallusionbench")
    grades = [rule.grade(*pair) for pair in zip(rows, ("yes", "yes", "yes", "no"), strict=True)]
    scores = rule.scores(rows, grades)
    assert (scores["aAcc"], scores["fAcc"], scores["qAcc"]) == (0.75, 0.5, 0.75)
    assert len({rule.cluster(each) for each in rows}) == 2


def test_the_four_kinds_of_we_math():
    """N = 10: IK 2, IG 2, CM 3, RM 3 strict; of those one has no correct step."""
    chains = [
        *[([True, False], False)] * 2,
        *[([True, True], False)] * 2,
        *[([True, True, True], True)] * 3,
        *[([True, False], True)] * 2,
        ([False, False, False], True),
    ]
    assert four_kinds(chains) == pytest.approx(
        {
            **{"strict": (10 - 1 - 3 - 2) / 10, "loose": (10 - 1 - 1 - 2) / 10},
            **{"IK": 0.2, "IG": 0.2, "CM strict": 0.3, "RM strict": 3 / 6},
            **{"CM loose": 0.5, "RM loose": 1 / 6},
        }
    )


def test_mmvet_needs_a_judge():
    rule = find_rule("mmvet")
    rows = [row("a<AND>b", category="ocr,math"), row("c", category="rec")]
    assert rule.judge_only
    assert rule.grade(rows[0], r"\boxed{a and b}") == Grade(
        correct=None, extracted="a and b", rule="mmvet"
    )
    judged = [Grade(correct=c, extracted=None, rule="mmvet") for c in (True, None)]
    assert rule.scores(rows, judged) == {"ocr": 1.0, "math": 1.0}


def test_geo3k_and_mmk12():
    assert correct("geo3k", row(r"12 \sqrt{3}"), r"\boxed{12\sqrt{3}}") is True
    assert correct("geo3k", row(r"2\sqrt{3}"), r"\boxed{3.46}") is False
    assert correct("geo3k", row("37^\\circ"), r"\boxed{37}") is True
    question = "Pick.\nA. 3 V\nB. 4 V"
    assert correct("mmk12", row("B", question, subject="physics"), r"\boxed{4 V}") is True
    assert correct("mmk12", row("x > 2"), r"\boxed{x>2}") is True
    assert correct("mmk12", row("B", question), r"\boxed{A}") is False


def test_any_of_several_ground_truths():
    given = row("7", alternatives=("seven",), style="exact")
    assert correct("free-form", given, r"\boxed{Seven}") is True
    assert correct("free-form", given, r"\boxed{8}") is False


def test_rows_for_a_judge_are_left_to_it():
    given = row("a cat, or any feline", style="judge")
    assert find_rule("free-form").grade(given, r"\boxed{lynx}") == Grade(
        correct=None, extracted="lynx", rule="free-form"
    )
    assert correct("free-form", given, r"\boxed{a cat, or any feline}") is None
    assert correct("geo3k", given, r"\boxed{lynx}") is None


def test_the_prompt_of_multiple_choice():
    given = row("A", choices={"A": "x", "B": "y"}, hint="Look.", images=(b"1",))
    assert find_rule("mcq").prompt(given).text == (
        "<image>Hint: Look.\nQuestion: How long?\nOptions:\nA. x\nB. y\n"
        "Please select the correct answer from the options above. \n"
    )
    placed = row("A", "Is <image> like <image>?", images=(b"1", b"2"))
    assert find_rule("free-form").prompt(placed).text == placed.question
    with pytest.raises(BadCell, match="1 <image> of index 0, which has 2 images"):
        find_rule("free-form").prompt(row("A", "Is <image> it?", images=(b"1", b"2")))


def test_scores_by_category():
    rows = [row("A", choices=OPTIONS, category=c, l2_category="all") for c in "xxy"]
    grades = [find_rule("mmstar").grade(each, text) for each, text in zip(rows, "ABA", strict=True)]
    assert find_rule("mmstar").scores(rows, grades) == {
        **{"l2_category: all": pytest.approx(2 / 3), "category: x": 0.5, "category: y": 1.0},
    }


def test_a_response_cut_off_in_its_reasoning():
    """The judge of MathVerse reads all of a response; elsewhere open reasoning is no answer."""
    text = "<think>\n\\[ x = \\frac{4320}{30} = 144\\]\nVerified, verified, verified"
    given = row("B", "x?\nChoices:\nA.120\nB.144")
    assert correct("mathverse", given, text) is True
    assert correct("mathverse", row("144", "x?"), text) is True
    assert correct("mathverse", given, text + "</think>\\boxed{A}") is False
    assert correct("mcq", given, text) is None
    assert correct("mathvision", row("144", "x?"), text) is None


def test_only_boxes_count_where_the_protocol_says_so():
    for rules in ("geo3k", "mmk12"):
        assert correct(rules, row("12"), "The answer is 12.") is None
        assert correct(rules, row("12"), r"\boxed{12}") is True
    assert correct("mmk12", row("B", "Pick.\nA. 3 V\nB. 4 V"), "The answer is B.") is None
    assert correct("free-form", row("12"), "The answer is 12.") is True


def test_free_form_asks_and_grades_the_options_of_a_row_that_has_some():
    given = row("B", choices=OPTIONS)
    assert "Options:\nA. 3 cm\nB. 4 cm" in find_rule("free-form").prompt(given).text
    assert correct("free-form", given, r"\boxed{4 cm}") is True
    assert correct("free-form", given, r"\boxed{B}") is True
    assert correct("free-form", given, r"\boxed{5 cm}") is False
    assert find_rule("free-form").prompt(row("4 cm")).text == "How long?"


@pytest.mark.parametrize("answer", ["$", "$$", r"\boxed{}", " "])
@pytest.mark.parametrize("rules", ["free-form", "geo3k", "mmk12", "mathverse", "mathvista", "mmmu"])
def test_a_blank_ground_truth_is_refused_before_a_model_is_asked(rules, answer, tmp_path):
    with pytest.raises(RowError, match="row 3, column 'answer': the ground truth of index 7 is"):
        check_rows(find_rule(rules), [row("4"), row(answer, number=3, index=7)], tmp_path)


@pytest.mark.parametrize("rules", ["mathvista", "mathvision"])
def test_options_are_left_out_only_where_the_question_lists_them(rules):
    def text(question, **choices):
        return find_rule(rules).prompt(row("A", question, choices=choices)).text

    numbers = {"A": "1", "B": "2", "C": "3"}
    asked = text("How many of 1, 2 and 3 are odd?", **numbers)
    assert asked.endswith("odd?\nChoices:\n(A) 1\n(B) 2\n(C) 3")
    assert text("Is it so, yes or no?", A="yes", B="no").endswith("\nChoices:\n(A) yes\n(B) no")
    for listed in ("Choices:\n(A) 1\n(B) 2\n(C) $3$", "(A) 1 (B) 2 (C) 3", "A. 1\nB. 2\nC. 3."):
        question = f"How many?\n{listed}"
        assert text(question, **numbers) == question
    question = "Which?\nChoices:\n(A) a long\noption\n(B) another"
    assert text(question, A="a long\noption", B="another") == question
