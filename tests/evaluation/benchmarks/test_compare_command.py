"""Comparisons of results by hand: rows, clusters, seeds, adjusted p-values, and what is shown."""

import csv
import html
import json
import re

import pytest
from scipy import stats

from tests.evaluation.benchmarks.chat_server import Reply, benchmark, chat_server, write_tsv
from vapo_verl.evaluation.__main__ import main
from vapo_verl.evaluation.benchmarks.compare_command import COMPARISON_FILE
from vapo_verl.evaluation.benchmarks.judging import PROMPT_VERSION
from vapo_verl.evaluation.probing.journal import PAGE_FILE, SETTINGS_FILE, SUMMARY_FILE

NUM_ROWS = 10


@pytest.fixture
def results(tmp_path):
    """`results("a", "quiz", "1101...")`: a folder with these rows of a benchmark correct.

    One model answers the benchmarks of a folder: `results("a", {"quiz": "11", "exam": "01"})`.
    """

    def write(name, benchmarks, correct="", **cells):
        if isinstance(benchmarks, str):
            benchmarks = {benchmarks: correct}
        files = [
            write_tsv(
                tmp_path / f"{benchmark_name}.tsv",
                [
                    {
                        "question": f"Question number {n}. {benchmark_name}",
                        "answer": str(n),
                        "category": "ab"[n % 2],
                        **cells,
                    }
                    for n in range(len(row_is_correct))
                ],
            )
            for benchmark_name, row_is_correct in benchmarks.items()
        ]

        def script(request):
            n = int(re.search(r"number (\d+)\.", request.text)[1])
            [correct] = [row for name, row in benchmarks.items() if name in request.text]
            return Reply(text=f"I see \\boxed{{{n if correct[n] == '1' else n + 100}}}")

        with chat_server(script) as server:
            assert benchmark(server.url, tmp_path / name, *files) == 0
        return tmp_path / name

    return write


def compare(out, *words):
    code = main(["compare", *map(str, words), "--out", str(out)])
    if code:
        return code
    with (out / COMPARISON_FILE).open() as file:
        return list(csv.DictReader(file))


def test_two_models_are_compared_by_their_rows(results, tmp_path):
    a = results("a", "quiz", "1100000000")
    b = results("b", "quiz", "0111111000")
    lines = compare(tmp_path / "out", a, b)
    whole, first, second = lines
    assert (whole["a"], whole["b"], whole["category"]) == ("a", "b", "")
    assert float(whole["mean_a"]) == 0.2
    assert float(whole["difference"]) == pytest.approx(0.4)
    # gained 2 3 4 5 6, lost 0: McNemar 2 (C(6, 0) + C(6, 1)) / 2^6
    assert whole["test"] == "mcnemar"
    assert float(whole["p"]) == pytest.approx(14 / 64)
    assert whole["p_adjusted"] == whole["p"]
    # even rows, a: 0 2 4 6 8: A has 0, B has 2 4 6; odd rows, b: A has 1, B has 1 3 5
    assert (first["category"], float(first["difference"])) == ("a", pytest.approx(0.4))
    assert (second["category"], float(second["difference"])) == ("b", pytest.approx(0.4))
    assert float(second["p"]) == pytest.approx(0.5)
    assert float(second["p_adjusted"]) >= float(second["p"])


def test_the_page_shows_the_rows_that_differ_with_their_image(results, tmp_path):
    a = results("a", "quiz", "1100000000")
    b = results("b", "quiz", "0111111000")
    compare(tmp_path / "out", a, b)
    page = (tmp_path / "out" / PAGE_FILE).read_text()
    assert "6 of 10 rows differ: 5 are better in B, 1 in A" in page
    assert page.count("<article>") == 6
    assert page.count('<img src="data:image/png;base64,') == 6
    assert "Question number 4." in page
    assert "Question number 9." not in page
    assert "<script" not in page
    assert "One model per arm" in page
    compare(tmp_path / "few", a, b, "--shown-rows", "2")
    assert (tmp_path / "few" / PAGE_FILE).read_text().count("<article>") == 2
    (tmp_path / "quiz.tsv").unlink()
    compare(tmp_path / "out", a, b)
    page = (tmp_path / "out" / PAGE_FILE).read_text()
    assert "not where it was" in page
    assert "<img" not in page


def test_model_text_is_no_markup(results, tmp_path, monkeypatch):
    rows = [{"question": "<b>bold</b>?", "answer": "1"}, {"question": "Plain?", "answer": "2"}]
    data = write_tsv(tmp_path / "quiz.tsv", rows)
    for name, text in (("a", "<script>alert(1)</script> \\boxed{1}"), ("b", "\\boxed{<i>}")):
        with chat_server(lambda _, text=text: Reply(text=text)) as server:
            assert benchmark(server.url, tmp_path / name, data) == 0
    compare(tmp_path / "out", tmp_path / "a", tmp_path / "b")
    page = (tmp_path / "out" / PAGE_FILE).read_text()
    assert "&lt;script&gt;" in page
    assert "&lt;b&gt;bold" in page
    for markup in ("<script", "<b>", "<i>"):
        assert markup not in page


def test_seeds_of_an_arm_are_its_evidence_and_not_the_rows(results, tmp_path):
    for name, correct in {
        "a0": "1000000000",
        "a1": "1100000000",
        "b0": "1111100000",
        "b1": "1111110000",
        "b2": "1111111000",
    }.items():
        results(name, "quiz", correct)
    arms = [f"grpo={tmp_path / 'a0'},{tmp_path / 'a1'}"]
    arms += ["vapo=" + ",".join(str(tmp_path / f"b{n}") for n in range(3))]
    whole, *_ = compare(tmp_path / "out", *arms)
    expected = stats.ttest_ind([0.5, 0.6, 0.7], [0.1, 0.2], equal_var=False)
    assert whole["test"] == "seeds"
    assert (whole["num_seeds_a"], whole["num_seeds_b"]) == ("2", "3")
    assert float(whole["difference"]) == pytest.approx(0.45)
    assert float(whole["p"]) == pytest.approx(float(expected.pvalue), rel=1e-5)
    page = (tmp_path / "out" / PAGE_FILE).read_text()
    assert "vapo (range of 3 seeds)" in page
    # one seed against several: no p, however many rows there are
    whole, *_ = compare(tmp_path / "one", f"grpo={tmp_path / 'a0'}", arms[1])
    assert (whole["test"], whole["p"], whole["low"]) == ("seeds", "", "")


def test_p_values_of_several_benchmarks_are_adjusted_together(results, tmp_path):
    pairs = {"quiz": ("0" * 10, "1" * 10), "exam": ("0" * 10, "1" * 5 + "0" * 5)}
    for name, place in (("a", 0), ("b", 1)):
        results(name, {benchmark: correct[place] for benchmark, correct in pairs.items()})
    exam, quiz, *categories = compare(tmp_path / "out", tmp_path / "a", tmp_path / "b")
    p_quiz, p_exam = 2 / 2**10, 2 / 2**5
    assert float(quiz["p"]) == pytest.approx(p_quiz, rel=1e-5)
    assert float(exam["p"]) == pytest.approx(p_exam)
    assert float(quiz["p_adjusted"]) == pytest.approx(2 * p_quiz, rel=1e-5)
    assert float(exam["p_adjusted"]) == pytest.approx(p_exam)
    assert len(categories) == 4


def test_several_arms_are_compared_with_the_first(results, tmp_path):
    folders = [
        results(name, "quiz", correct)
        for name, correct in (("a", "1000000000"), ("b", "1100000000"), ("c", "1110000000"))
    ]
    lines = [line for line in compare(tmp_path / "out", *folders) if not line["category"]]
    assert [(line["a"], line["b"]) for line in lines] == [("a", "b"), ("a", "c")]
    assert [float(line["difference"]) for line in lines] == pytest.approx([0.1, 0.2])


def test_a_folders_name_may_hold_an_equals_sign(results, tmp_path):
    a, b = results("lr=1e-5", "quiz", "10"), results("b", "quiz", "11")
    whole, *_ = compare(tmp_path / "out", a, b)
    assert (whole["a"], whole["b"]) == ("lr=1e-5", "b")


def test_other_rows_are_refused(results, tmp_path, capsys):
    a = results("a", "quiz", "10")
    b = results("b", "quiz", "101")
    assert compare(tmp_path / "out", a, b) == 2
    assert "quiz: DATA is 'quiz.tsv " in capsys.readouterr().err


def test_other_swapped_images_are_refused(tmp_path, capsys):
    rows = [{"question": f"Question {n}?", "answer": "2"} for n in range(5)]
    data = write_tsv(tmp_path / "quiz.tsv", rows)
    with chat_server(lambda _: Reply(text="\\boxed{2}")) as server:
        for image, code in (("blurred", 0), ("swapped", 2)):
            folders = [tmp_path / f"{image}{seed}" for seed in (0, 1)]
            for seed, folder in enumerate(folders):
                words = ("--image", image, "--seed", str(seed))
                assert benchmark(server.url, folder, data, *words) == 0
            assert main(["compare", *map(str, folders), "--out", str(tmp_path / "out")]) == code
        assert "other images by --seed (swapped0: 0; swapped1: 1)" in capsys.readouterr().err
        other = tmp_path / "other0"
        assert benchmark(server.url, other, data, "--image", "swapped", "--seed", "0") == 0
        assert main(["compare", str(folders[0]), str(other), "--out", str(tmp_path / "out")]) == 0


@pytest.mark.parametrize(
    "key, value",
    [
        ("--min-pixels", 262144),
        ("--chat-template", "0a1b"),
        ("chat template", {"enable_thinking": False}),
    ],
)
def test_models_asked_otherwise_are_told_beside_the_result(key, value, results, tmp_path, capsys):
    a, b = results("a", "quiz", "1101"), results("b", "quiz", "1111")
    settings = b / "quiz" / SETTINGS_FILE
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {key: value}))
    assert compare(tmp_path / "out", a, b)
    found = f"{key} is None in {a / 'quiz'} and {value!r} in {b / 'quiz'}"
    assert f"WARNING: quiz: {found}" in capsys.readouterr().out
    assert html.escape(found) in (tmp_path / "out" / PAGE_FILE).read_text()


def test_other_rules_are_refused(tmp_path, capsys):
    data = write_tsv(tmp_path / "quiz.tsv", [{"question": "1 + 1?", "answer": "2"}])
    folders = {"free-form": tmp_path / "a", "mathvision": tmp_path / "b"}
    with chat_server(lambda _: Reply(text="\\boxed{2}")) as server:
        for rules, folder in folders.items():
            assert benchmark(server.url, folder, data, "--rules", rules) == 0
    assert compare(tmp_path / "out", *folders.values()) == 2
    error = capsys.readouterr().err
    folders = [folder / "quiz" for folder in folders.values()]
    assert f"quiz: the rule is free-form in {folders[0]} and mathvision in {folders[1]}" in error
    assert "run `benchmark` with the same --rules" in error
    assert not (tmp_path / "out").exists()


def test_other_judges_are_refused_where_one_is_needed(tmp_path, capsys):
    rows = [{"question": f"{n}?", "A": "red", "B": "blue", "answer": "A"} for n in (1, 2)]
    data = write_tsv(tmp_path / "quiz.tsv", rows)
    replies = {"1?": "\\boxed{A}", "2?": "Hard to tell."}

    def reading(request):
        return Reply(text=next(text for name, text in replies.items() if name in request.text))

    def run(name, *words):
        assert benchmark(server.url, tmp_path / name, data, *words) == 0
        return tmp_path / name

    with chat_server(reading) as server, chat_server(lambda _: Reply(text="correct")) as judge:
        by = ("--judge", judge.url, "--judge-model")
        plain, judged, again = run("plain"), run("judged", *by, "one"), run("again", *by, "one")
        other = run("other", *by, "two")
        replies["2?"] = "\\boxed{B}"
        read = run("read")
    version = f"(prompt version {PROMPT_VERSION})"
    for pair, names in (
        ((plain, judged), ("none", f"one {version}")),
        ((judged, other), (f"one {version}", f"two {version}")),
        ((read, judged, plain), (f"one {version}", "none")),
    ):
        capsys.readouterr()
        assert compare(tmp_path / "out", *pair) == 2
        error = capsys.readouterr().err
        first, second = pair[-2] / "quiz", pair[-1] / "quiz"
        assert f"is {names[0]} in {first} and {names[1]} in {second}; run" in error
        assert "the same --judge and --judge-model" in error
    assert compare(tmp_path / "out", judged, again)[0]["benchmark"] == "quiz"
    # no judge had anything to decide about the answers of `read`
    assert compare(tmp_path / "out", read, judged)[0]["benchmark"] == "quiz"
    assert compare(tmp_path / "out", plain, read)[0]["benchmark"] == "quiz"
    summary = again / "quiz" / SUMMARY_FILE
    summary.write_text(re.sub('(?<="prompt_version": ).*,', "0,", summary.read_text()))
    assert compare(tmp_path / "out", judged, again) == 2
    assert "one (prompt version 0)" in capsys.readouterr().err


def test_rows_without_an_image_are_left_out_where_the_rule_does(tmp_path):
    rows = [
        {"index": f"VD_map_1_0_{n}_0", "question": f"Is it {n}?", "answer": "Yes", "category": "VD"}
        for n in range(3)
    ]
    rows[1]["image"] = ""
    data = write_tsv(tmp_path / "HallusionBench.tsv", rows)
    for name, text in (("a", "Yes."), ("b", "No.")):
        with chat_server(lambda _, text=text: Reply(text=text)) as server:
            assert benchmark(server.url, tmp_path / name, data) == 0
    whole, *_ = compare(tmp_path / "out", tmp_path / "a", tmp_path / "b")
    assert (whole["num_rows"], float(whole["difference"])) == ("2", -1)
    page = (tmp_path / "out" / PAGE_FILE).read_text()
    assert page.count('<img src="data:image/png;base64,') == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["A"], "give two or more to compare"),
        (["A", "A"], "name them apart"),
        (["A", "b=A,A/../a"], "/a/../a are one folder; give each seed a folder of its own"),
        (["A", "none"], "no such folder"),
        (["A", "EMPTY"], "holds no finished benchmark"),
        (["A", "OTHER"], "no benchmark is in all of them (a: quiz; other: exam)"),
    ],
)
def test_refusals_name_the_fix(words, message, results, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    folders = {"A": results("a", "quiz", "10"), "EMPTY": tmp_path / "empty"}
    if "OTHER" in words:
        folders["OTHER"] = results("other", "exam", "10")
    capsys.readouterr()
    words = [
        word.replace("A", str(folders["A"])) if "=" in word else folders.get(word, tmp_path / word)
        for word in words
    ]
    assert compare(tmp_path / "out", *words) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_damaged_result_is_named(results, tmp_path, capsys):
    a, b = results("a", "quiz", "10"), results("b", "quiz", "11")
    path = b / "quiz" / "answers.jsonl"
    path.write_text(path.read_text().replace('"sample"', '"simple"'))
    assert compare(tmp_path / "out", a, b) == 2
    error = capsys.readouterr().err
    assert str(b / "quiz") in error
    assert "give the `benchmark` command again" in error
