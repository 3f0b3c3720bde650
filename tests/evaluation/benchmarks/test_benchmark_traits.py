"""Ten rows for each trait of a VLMEvalKit file, with the score computed by hand."""

import pytest

from tests.evaluation.benchmarks.benchmark_tables import (
    base64_png,
    grades_of,
    png,
    scores_of,
    write_tsv,
)
from vapo_verl.data.images import StoredImage
from vapo_verl.evaluation.benchmarks.benchmark_file import read_benchmark
from vapo_verl.evaluation.benchmarks.rules import find_rule

LETTERS = "ABCDABCDAB"
"""Ground truths of ten rows."""
ANSWERS = [rf"<think>so</think>\boxed{{{letter}}}" for letter in "ABCDDCBA"] + ["B", "no idea"]
"""Correct in the first four, incorrect in five, and unparsed in the last."""
OPTIONS = {"A": "one", "B": "two", "C": "three", "D": "four"}


def ten_rows(**columns: object) -> list[dict[str, object]]:
    """Rows 0 .. 9; a list in `columns` has a value for each of them."""
    rows = []
    for number, letter in enumerate(LETTERS):
        row = {"index": number, "question": f"Which? {number}", **OPTIONS, "answer": letter}
        row["image"] = base64_png(number)
        row |= {k: v[number] if isinstance(v, list) else v for k, v in columns.items()}
        rows.append(row)
    return rows


def test_image_as_base64(tmp_path):
    path = write_tsv(tmp_path / "b.tsv", ten_rows())
    assert scores_of(path, "mcq", ANSWERS) == {"accuracy": 0.4, "unparsed": 0.1}
    rows = read_benchmark(path)
    assert [row.index for row in rows] == list(range(10))
    assert rows[3].images == (png(3),)
    assert StoredImage(rows[3].images[0]).getpixel((0, 0)) == (3, 3, 3)


def test_image_as_the_index_of_another_row(tmp_path):
    """Rows 0, 2, 4, .. hold an image; each odd row shows that of the row before, 9 of row 0."""
    images = [base64_png(number) if number % 2 == 0 else number - 1 for number in range(9)] + [0]
    path = write_tsv(tmp_path / "b.tsv", ten_rows(image=images))
    assert scores_of(path, "mcq", ANSWERS) == {"accuracy": 0.4, "unparsed": 0.1}
    rows = read_benchmark(path)
    assert [row.images for row in rows[:3]] == [(png(0),), (png(0),), (png(2),)]
    assert rows[9].images[0] is rows[0].images[0]
    cluster = find_rule("mcq").cluster
    assert len({cluster(row) for row in rows}) == 5


def test_images_as_a_list(tmp_path):
    images = [str([base64_png(number), base64_png(number + 100)]) for number in range(10)]
    path = write_tsv(tmp_path / "b.tsv", ten_rows(image=images))
    assert scores_of(path, "mcq", ANSWERS) == {"accuracy": 0.4, "unparsed": 0.1}
    assert read_benchmark(path)[4].images == (png(4), png(104))


def test_image_paths(tmp_path):
    (tmp_path / "images" / "b").mkdir(parents=True)
    for number in range(10):
        place = tmp_path if number < 5 else tmp_path / "images" / "b"
        (place / f"{number}.png").write_bytes(png(number))
    paths = [f"{number}.png" if number else "['0.png', '1.png']" for number in range(10)]
    rows = [row | {"image_path": p} for row, p in zip(ten_rows(image=""), paths, strict=True)]
    path = write_tsv(tmp_path / "b_local.tsv", rows)
    assert scores_of(path, "mcq", ANSWERS) == {"accuracy": 0.4, "unparsed": 0.1}
    assert read_benchmark(path)[0].images == (str(tmp_path / "0.png"), str(tmp_path / "1.png"))


def test_string_index(tmp_path):
    names = [f"q_{number}" for number in range(9)] + ["7"]
    path = write_tsv(tmp_path / "b.tsv", ten_rows(index=names))
    assert scores_of(path, "mcq", ANSWERS) == {"accuracy": 0.4, "unparsed": 0.1}
    assert [row.index for row in read_benchmark(path)] == names


def test_options_a_to_h(tmp_path):
    options = {letter: f"{place} cm" for place, letter in enumerate("ABCDEFGH", start=10)}
    path = write_tsv(
        tmp_path / "b.tsv",
        [
            row | options | {"answer": letter}
            for row, letter in zip(ten_rows(), "ABCDEFGHAB", strict=True)
        ],
    )
    answers = ["A", "(B)", "C. 12 cm", r"\boxed{13}", "The answer is E.", r"\boxed{\text{15 cm}}"]
    answers += [r"\boxed{H}", r"\boxed{F}", r"\boxed{I}", "10 cm or 11 cm"]
    # rows 0 .. 5 correct, 6 .. 8 incorrect, the last names two options
    grades = grades_of(path, "mcq", answers)
    assert [grade.correct for grade in grades] == [True] * 6 + [False] * 3 + [None]
    assert [grade.extracted for grade in grades[:9]] == list("ABCDEFHFI")


def test_answers_of_several_letters(tmp_path):
    truths = ["A, C", "A, C", "A, C", "A, C", "B", "B", "A, B, D", "A, B, D", "C", "C"]
    answers = [r"\boxed{A, C}", r"\boxed{CA}", "The answer is A and C.", r"\boxed{A}"]
    answers += ["B", r"\boxed{B, C}", r"\boxed{D, A, B}", r"\boxed{A, B}", "(C)", "the sun"]
    skills = ["inductive", "deductive"] * 4 + ["numerical,spatial"] * 2
    rows = [
        {"index": n, "question": f"{n}: A, B, C or D?", "answer": truth, "image": base64_png(n)}
        | {"skill": skill}
        for n, (truth, skill) in enumerate(zip(truths, skills, strict=True))
    ]
    scores = scores_of(write_tsv(tmp_path / "LogicVista.tsv", rows), "logicvista", answers)
    # correct: 0, 1, 2, 4, 6, 8; inductive are 0, 2, 4, 6, deductive 1, 3, 5, 7, the others 8, 9
    assert scores == {
        **{"accuracy": 0.6, "unparsed": 0.1, "inductive": 1.0, "deductive": 0.25},
        **{"numerical": 0.5, "spatial": 0.5},
    }


def test_open_questions_of_mmmu(tmp_path):
    truths = ["24.32", "['Dog', 'hound']", "['1/2', '0.5']", "Zinc", "A", "B", "C", "D", "A", "B"]
    answers = [r"\boxed{24.324}", r"\boxed{a hound}", r"\boxed{\frac{1}{2}}", r"\boxed{Tin}"]
    answers += [rf"\boxed{{{letter}}}" for letter in "ABDDB"] + [""]
    rows = ten_rows(answer=truths, split=["validation"] * 8 + ["dev"] * 2)
    for row in rows[:4]:
        row |= dict.fromkeys(OPTIONS, "")
    rows[4] |= {
        "question": "Compare <image 2> with <image 1>, not <image 2>.",
        "image": str([base64_png(1), base64_png(2)]),
    }
    path = write_tsv(tmp_path / "MMMU_DEV_VAL.tsv", rows)
    # correct: 0, 1, 2 of the open ones; 4, 5, 7 of the others; validation is 0 .. 7
    scores = {"accuracy": 0.6, "unparsed": 0.1, "split: dev": 0.0, "split: validation": 0.75}
    assert scores_of(path, "mmmu", answers) == scores
    prompt = find_rule("mmmu").prompt(read_benchmark(path)[4])
    assert prompt.text.startswith("Question: Compare <image> with <image>, not <image>.\nOptions:")
    assert prompt.images == (png(2), png(1), png(2))


def test_yes_and_no_in_sets(tmp_path):
    """Set 0 has figures 0 and 1, each with questions 0 and 1; set 1 has 0 and 1 with three each."""
    places = [f"0_{f}_{q}" for f in (0, 1) for q in (0, 1)]
    places += [f"1_{f}_{q}" for f in (0, 1) for q in (0, 1, 2)]
    rows = [
        {"index": f"VD_illusion_1_{place}", "question": "Equal?", "image": base64_png(1)}
        | {"answer": "Yes" if number % 2 else "No", "category": "VD", "l2-category": "illusion"}
        for number, place in enumerate(places)
    ]
    answers = ["No.", r"\boxed{Yes}", "no, they are not", "It is both: yes and no"]
    answers += ["No", "YES", "no", "Yes!", "Yes", "Yes"]
    text_only = {**rows[0], "index": "VS_chart_0_0_0_0", "image": ""}
    path = write_tsv(tmp_path / "HallusionBench.tsv", [text_only, *rows])
    # incorrect: row 3 (figure 0_1, question 0_1), unparsed; row 8 (figure 1_1, question 1_1)
    assert scores_of(path, "hallusionbench", answers) == pytest.approx(
        {
            **{"accuracy": 0.8, "unparsed": 0.1},
            "aAcc": 8 / 10,
            "fAcc": 2 / 4,
            "qAcc": 3 / 5,
            "mean": (0.8 + 0.5 + 0.6) / 3,
            **{"l2_category: illusion": 0.8, "category: VD": 0.8},
        }
    )


def test_chains_of_we_math(tmp_path):
    """Two chains of two steps and one of three: ten rows."""
    chains = [(2, "1"), (2, "2"), (3, "1")]
    places = [(n, i, p) for n, i in chains for p in [*map(str, range(1, n + 1)), "multi"]]
    rows = ten_rows(
        ID=[chain for _, chain, _ in places],
        key=[f"{steps}steps_{place}" for steps, _, place in places],
    )
    correct = [True, False, True, True, True, False, False, False, False, True]
    answers = [
        rf"\boxed{{{letter if right else 'E'}}}"
        for letter, right in zip(LETTERS, correct, strict=True)
    ]
    # chain 1: a step incorrect, multi correct: rote (strict), mastered (loose)
    # chain 2: steps correct, multi incorrect: inadequate generalization
    # chain 3: all steps incorrect, multi correct: rote, strict and loose
    path = write_tsv(tmp_path / "WeMath.tsv", rows)
    assert scores_of(path, "wemath", answers) == pytest.approx(
        {
            **{"accuracy": 0.5, "unparsed": 0.0},
            "strict": (3 - 0.5 - 2) / 3,
            "loose": (3 - 0.5 - 1) / 3,
            **{"IK": 0, "IG": 1 / 3, "CM strict": 0, "RM strict": 1, "CM loose": 1 / 3},
            **{"RM loose": 1 / 2, "S1": 3 / 7, "S2": 1 / 2, "S3": 1, "chains": 1},
        }
    )
    assert scores_of(
        write_tsv(tmp_path / "less.tsv", rows[:9]), "wemath", answers[:9]
    ) == pytest.approx(
        {
            **{"accuracy": 4 / 9, "unparsed": 0.0, "strict": 0.25, "loose": 0.75, "IK": 0},
            **{"IG": 1 / 2, "CM strict": 0, "RM strict": 1, "CM loose": 1 / 2, "RM loose": 0},
            **{"S1": 3 / 4, "S2": 1 / 2, "S3": float("nan"), "chains": 2 / 3},
        },
        nan_ok=True,
    )
    prompt = find_rule("wemath").prompt(read_benchmark(path)[0])
    assert prompt.text.endswith("Options:\nA. one\nB. two\nC. three\nD. four\n")


def test_a_cell_of_5_mb(tmp_path):
    rows = ten_rows()
    rows[0]["image"] = base64_png(-1, side=1130)
    assert len(str(rows[0]["image"])) > 5_000_000
    path = write_tsv(tmp_path / "b.tsv", rows)
    assert scores_of(path, "mcq", ANSWERS) == {"accuracy": 0.4, "unparsed": 0.1}
    assert StoredImage(read_benchmark(path)[0].images[0]).size == (1130, 1130)


@pytest.mark.parametrize("end, bom", [("\r\n", False), ("\n", True), ("\r\n", True)])
def test_line_ends_and_byte_order_mark(tmp_path, end, bom):
    questions = [f'Say "{number}"{end}in two lines,\tand a tab' for number in range(10)]
    path = write_tsv(tmp_path / "b.tsv", ten_rows(question=questions), end=end, bom=bom)
    assert scores_of(path, "mcq", ANSWERS) == {"accuracy": 0.4, "unparsed": 0.1}
    assert [row.question for row in read_benchmark(path)] == questions
