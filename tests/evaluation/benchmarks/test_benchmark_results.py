"""Votes and the benchmarks' own scores over samples, by hand."""

from pathlib import Path

import pytest

from vapo_verl.evaluation.benchmarks import BenchmarkRow
from vapo_verl.evaluation.benchmarks.answering import Sampling, Task
from vapo_verl.evaluation.benchmarks.benchmark_results import GradedAnswer, summarise
from vapo_verl.evaluation.benchmarks.rules import find_rule


def task(rules, categories, num_samples):
    """A task with a row for each category."""
    return Task(
        name="quiz",
        rows=[
            BenchmarkRow(number=n, index=n, question=f"Q{n}?", answer="2", category=category)
            for n, category in enumerate(categories)
        ],
        rule=find_rule(rules),
        folder=Path("unused"),
        sampling=Sampling(num_samples=num_samples, temperature=1.0, max_tokens=9, seed=0),
        image="own",
        suffix="",
        settings={},
    )


def answer(correct, extracted="2", *, index=0, sample=0, prediction="text", judged=False):
    return GradedAnswer(
        index=index,
        sample=sample,
        cluster=str(index),
        category="",
        answer="2",
        prediction=prediction,
        extracted=extracted,
        correct=correct,
        rule="free-form",
        judged=judged,
        truncated=False,
        num_tokens=1,
    )


def majority(*answers):
    found = summarise(task("free-form", ["x"], len(answers)), answers)["majority"]
    return found["mean"]


def test_an_unparsed_answer_is_no_vote():
    """Its text may stand in `extracted`, as that of an answer that names no option."""
    unparsed = answer(None, "some text")
    assert majority(unparsed, unparsed, answer(True)) == 1
    assert majority(unparsed, answer(False, "3"), answer(True)) == 1 / 2
    assert majority(unparsed, unparsed) == 0


def test_a_judged_answer_votes_by_its_text():
    """Rows of style judge: the rule extracts, the judge decides about the text."""
    cat = answer(True, "cat", prediction="A cat.", judged=True)
    dog = answer(False, "dog", prediction="A dog.", judged=True)
    assert majority(cat, cat, dog) == 1
    assert majority(cat, dog, dog) == 0
    assert majority(cat, answer(None, "dog"), answer(None, "dog")) == 1
    unread = answer(True, None, prediction="One of the cats.", judged=True)
    assert majority(unread, unread, dog) == 1


def test_a_capability_that_the_judge_left_open_in_a_sample():
    """The score is the mean over the samples in which some row of the capability is decided."""
    graded = [
        answer(correct, index=index, sample=sample, judged=correct is not None)
        for index, samples in enumerate([(True, False), (None, True), (None, None)])
        for sample, correct in enumerate(samples)
    ]
    scores = summarise(task("mmvet", ["ocr", "math", "rec"], 2), graded)["scores"]
    assert scores == {"ocr": pytest.approx(1 / 2), "math": 1}
