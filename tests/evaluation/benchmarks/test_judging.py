"""The judge decides only what no rule can read, never twice, and its failures are counted."""

import json

import pytest

from tests.evaluation.benchmarks.chat_server import Reply, benchmark, chat_server, write_tsv
from vapo_verl.evaluation.benchmarks import BenchmarkRow
from vapo_verl.evaluation.benchmarks.benchmark_results import ANSWERS_FILE
from vapo_verl.evaluation.benchmarks.judging import CACHE_FILE, Case, case_of, read_decision
from vapo_verl.evaluation.probing.journal import PAGE_FILE, SUMMARY_FILE

PREDICTIONS = {
    "Colour?": "\\boxed{B}",
    "Shape?": "As one would say of a ball.",
    "Size?": "Like an elephant, perhaps.",
    "Place?": "Hard to tell.",
}
DECISIONS = {"Shape?": "Correct.", "Size?": "incorrect", "Place?": "It depends."}


@pytest.mark.parametrize(
    ("text", "decision"),
    [
        ("correct", True),
        ("Correct.", True),
        ("**Incorrect**", False),
        ("<think>is it incorrect? no.</think> correct", True),
        ("<think>correct, I think", None),
        ("not correct", None),
        ("correct or incorrect?", None),
        ("yes", None),
        ("", None),
    ],
)
def test_a_decision_is_one_of_two_words(text, decision):
    assert read_decision(text) is decision


def test_a_decision_belongs_to_question_answer_prediction_and_judge():
    case = Case(question="Q", answer="A", prediction="P")
    others = [
        Case(question="Q2", answer="A", prediction="P"),
        Case(question="Q", answer="B", prediction="P"),
        Case(question="Q", answer="A", prediction="P2"),
        Case(question="QA", answer="", prediction="P"),
    ]
    assert len({each.key("judge") for each in (case, *others)}) == 5
    assert case.key("judge") != case.key("another")


def test_a_judge_is_shown_every_ground_truth():
    row = BenchmarkRow(number=0, index=0, question="Q?", answer="cat", alternatives=("feline",))
    assert "Ground truth: cat or feline\n" in case_of(row, "Q?", "A lynx.").prompt()


def test_a_judge_is_shown_options_that_the_question_does_not_list():
    question = "How many of 1 and 2 are odd?"
    row = BenchmarkRow(
        number=0, index=0, question=question, answer="A", choices={"A": "1", "B": "2"}
    )
    assert f"{question}\nOptions:\nA. 1\nB. 2\n" in case_of(row, question, "One.").prompt()
    listed = f"{question}\n(A) 1 (B) 2"
    assert "Options:" not in case_of(row, listed, "One.").prompt()


@pytest.fixture
def quiz(tmp_path):
    rows = [
        {"question": question, "A": "round", "B": "blue", "C": "grey", "answer": answer}
        for question, answer in zip(PREDICTIONS, "BABC", strict=True)
    ]
    return write_tsv(tmp_path / "quiz.tsv", rows)


def answering(request):
    return Reply(
        text=next(text for question, text in PREDICTIONS.items() if question in request.text)
    )


def deciding(request):
    """Also the judge is shown ground truth and prediction, and no image."""
    assert not request.images
    assert request.body["model"] == "the-judge"
    question = next(each for each in PREDICTIONS if each in request.text)
    assert PREDICTIONS[question] in request.text
    if question == "Shape?":
        assert "Ground truth: A. round" in request.text
    return Reply(text=DECISIONS[question])


def test_judged_failed_and_cached(quiz, tmp_path, capsys):
    out = tmp_path / "out"
    with chat_server(answering) as model, chat_server(deciding) as judge:
        words = (quiz, "--judge", judge.url, "--judge-model", "the-judge")
        assert benchmark(model.url, out, *words) == 0
        # Colour is read by the rule; Place gets no decision and is asked again
        assert len(judge.requests) == 3
        assert "the judge decided nothing about 1 answers" in capsys.readouterr().out
        summary = json.loads((out / "quiz" / SUMMARY_FILE).read_text())
        assert summary["accuracy"]["mean"] == 2 / 4
        assert summary["judged"]["num"] == 2
        assert summary["unparsed"]["num"] == 1
        assert summary["judge"]["asked"] == 3
        assert summary["judge"]["failed"] == 1
        lines = [json.loads(line) for line in (out / "quiz" / ANSWERS_FILE).open()]
        assert [line["correct"] for line in lines] == [True, True, False, None]
        assert [line["judged"] for line in lines] == [False, True, True, False]
        assert "failed to be judged" in (out / PAGE_FILE).read_text()
        del judge.requests[:]
        assert benchmark(model.url, out, *words) == 0
        assert ["Place?" in request.text for request in judge.requests] == [True]
        # another judge has no decisions yet
        judge.script = lambda request: Reply(text="correct")
        other = (quiz, "--judge", judge.url, "--judge-model", "another")
        assert benchmark(model.url, out, *other) == 0
        assert len(judge.requests) == 1 + 3
        assert len(model.requests) == 4
    summary = json.loads((out / "quiz" / SUMMARY_FILE).read_text())
    assert summary["accuracy"]["mean"] == 1
    assert summary["unparsed"]["num"] == 0


def test_a_judge_that_refuses_requests_leaves_answers_unparsed(quiz, tmp_path, capsys):
    refusing = lambda request: Reply(status=400)  # noqa: E731
    with chat_server(answering) as model, chat_server(refusing) as judge:
        words = (quiz, "--judge", judge.url, "--judge-model", "the-judge")
        assert benchmark(model.url, tmp_path / "out", *words) == 0
    assert "3 x refused with status 400" in capsys.readouterr().out
    summary = json.loads((tmp_path / "out" / "quiz" / SUMMARY_FILE).read_text())
    assert summary["judged"]["num"] == 0
    assert summary["judge"]["failed"] == 3
    assert summary["accuracy"]["mean"] == 1 / 4


def test_a_judge_without_a_key_ends_the_command(quiz, tmp_path, capsys):
    with chat_server(answering) as model, chat_server(lambda _: Reply(status=401)) as judge:
        words = (quiz, "--judge", judge.url, "--judge-model", "the-judge")
        assert benchmark(model.url, tmp_path / "out", *words) == 2
    assert "correct OPENAI_API_KEY" in capsys.readouterr().err
    assert not (tmp_path / "out" / "quiz" / SUMMARY_FILE).exists()


@pytest.mark.parametrize("line", ["no json", '{"key": 1, "correct": true}', '{"key": "k"}'])
def test_a_damaged_cache_names_its_line(line, quiz, tmp_path, capsys):
    out = tmp_path / "out"
    with chat_server(answering) as model, chat_server(deciding) as judge:
        words = (quiz, "--judge", judge.url, "--judge-model", "the-judge")
        assert benchmark(model.url, out, *words) == 0
        cache = out / CACHE_FILE
        whole = cache.read_text()
        cache.write_text(whole + '{"key": "cut o')  # by a kill: it is removed
        assert benchmark(model.url, out, *words) == 0
        assert cache.read_text() == whole
        cache.write_text(whole + line + "\n")
        assert benchmark(model.url, out, *words) == 2
    assert f"{CACHE_FILE}:{len(whole.splitlines()) + 1}" in capsys.readouterr().err


def test_mmvet_is_decided_by_a_judge_alone(tmp_path):
    rows = [{"question": "Who?", "answer": "Anna"}, {"question": "Where?", "answer": "Rome"}]
    data = write_tsv(tmp_path / "MMVet.tsv", rows)
    saying = lambda request: Reply(text="\\boxed{Anna}")  # noqa: E731
    voting = lambda request: Reply(  # noqa: E731
        text="correct" if "Ground truth: Anna" in request.text else "incorrect"
    )
    with chat_server(saying) as model, chat_server(voting) as judge:
        assert benchmark(model.url, tmp_path / "plain", data) == 0
        words = (data, "--judge", judge.url, "--judge-model", "the-judge")
        assert benchmark(model.url, tmp_path / "judged", *words) == 0
    plain, judged = (
        json.loads((tmp_path / name / "MMVet" / SUMMARY_FILE).read_text())
        for name in ("plain", "judged")
    )
    assert plain["unparsed"]["num"] == 2
    assert plain["accuracy"]["mean"] == 0
    assert judged["judged"]["num"] == 2
    assert judged["accuracy"]["mean"] == 1 / 2
