"""Grades and summarises stored answers; reads the results for other commands.

A benchmark's folder holds, besides the files of :mod:`vapo_verl.evaluation.benchmarks.answering`:

- `answers.jsonl`, a line for each answer: the fields of :class:`GradedAnswer`.
- `summary.json`: see :func:`summarise`.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vapo_verl.analysis.statistics import (
    Interval,
    clustered_interval,
    majority_score,
    pass_at_k,
    rate_of,
    wilson_interval,
)
from vapo_verl.evaluation.benchmarks import BenchmarkError, BenchmarkRow, Grade
from vapo_verl.evaluation.probing.journal import SUMMARY_FILE, write_summary
from vapo_verl.files import atomic_write

if TYPE_CHECKING:
    from vapo_verl.evaluation.benchmarks.answering import Answer, Task

ANSWERS_FILE = "answers.jsonl"
SCORES_FILE = "scores.csv"
SCORE_COLUMNS = ("benchmark", "image", "category", "score", "value", "low", "high", "num_rows")


@dataclass(frozen=True, slots=True, kw_only=True)
class GradedAnswer:
    """One answer, graded."""

    index: int | str
    sample: int
    cluster: str
    """Answers of the same cluster depend on each other."""
    category: str
    answer: str
    """The ground truth."""
    prediction: str
    extracted: str | None
    """The answer that the rule compared."""
    correct: bool | None
    """None: unparsed, which counts as incorrect."""
    rule: str
    judged: bool
    """The judge decided, because the rule could not."""
    truncated: bool
    num_tokens: int


def grade_answers(task: Task, answers: Sequence[Answer]) -> list[GradedAnswer]:
    """Grade stored answers by the task's rule, in their order."""
    rows = {row.index: row for row in task.rows}
    return [_grade(task, rows[answer.index], answer) for answer in answers]


def _grade(task: Task, row: BenchmarkRow, answer: Answer) -> GradedAnswer:
    grade = task.rule.grade(row, answer.prediction)
    return GradedAnswer(
        index=row.index,
        sample=answer.sample,
        cluster=task.rule.cluster(row),
        category=row.category,
        answer=row.answer,
        prediction=answer.prediction,
        extracted=grade.extracted,
        correct=grade.correct,
        rule=grade.rule,
        judged=False,
        truncated=answer.truncated,
        num_tokens=answer.num_tokens,
    )


def summarise(task: Task, graded: Sequence[GradedAnswer]) -> dict[str, Any]:
    """The content of `summary.json`.

    `accuracy` is the mean over rows of the fraction of correct samples, with Wilson's interval for
    one greedy sample; `clustered` has the bootstrap interval, which resamples clusters. With
    several samples there are `pass` (k -> unbiased pass@k) and `majority` (of all samples). A score
    that is 0 or 1 in every row has Wilson's interval with its clusters as trials.
    `scores` are the benchmark's own, each the mean over the samples that have it. The fractions
    `unparsed`, `truncated` and `judged` are over answers.
    """
    k = task.sampling.num_samples
    by_row = _by_row(graded, k)
    categories = sorted({answer.category for answer in graded if answer.category})
    return {
        "benchmark": task.name,
        "image": task.image,
        "rule": task.rule.name,
        **_scores(by_row, k),
        "scores": _own_scores(task, by_row, k),
        "unparsed": rate_of([answer.correct is None for answer in graded]),
        "truncated": rate_of([answer.truncated for answer in graded]),
        "judged": rate_of([answer.judged for answer in graded]),
        "mean_tokens": sum(answer.num_tokens for answer in graded) / len(graded),
        "categories": {
            name: _scores([row for row in by_row if row[0].category == name], k)
            for name in categories
        },
    }


def _by_row(graded: Sequence[GradedAnswer], k: int) -> list[Sequence[GradedAnswer]]:
    return [graded[first : first + k] for first in range(0, len(graded), k)]


def _scores(by_row: Sequence[Sequence[GradedAnswer]], k: int) -> dict[str, Any]:
    means = [fraction_correct(answers) for answers in by_row]
    clusters = [answers[0].cluster for answers in by_row]
    clustered, name = _clustered(means, clusters)
    accuracy = {**_numbers(clustered), "interval": name}
    if k == 1:
        low, high = wilson_interval(round(sum(means)), len(means))
        accuracy = {"mean": clustered.mean, "low": low, "high": high, "interval": "wilson"}
    found: dict[str, Any] = {
        "num_rows": len(by_row),
        "num_samples": k,
        "num_clusters": len(set(clusters)),
        "accuracy": accuracy,
        "clustered": _numbers(clustered),
    }
    if k > 1:
        found["pass"] = {
            str(n): _numbers(_clustered([_pass(answers, n) for answers in by_row], clusters)[0])
            for n in (1, 2, 4, 8, 16, 32)
            if n <= k
        }
        votes = [
            majority_score([_vote(a) for a in answers], [bool(a.correct) for a in answers])
            for answers in by_row
        ]
        found["majority"] = _numbers(_clustered(votes, clusters)[0])
    return found


def _clustered(scores: Sequence[float], clusters: Sequence[Hashable]) -> tuple[Interval, str]:
    """Mean with its interval over clusters, and the interval's name."""
    if set(scores) in ({0.0}, {1.0}):
        num = len(set(clusters))
        low, high = wilson_interval(round(scores[0] * num), num)
        return Interval(mean=scores[0], low=low, high=high), "wilson"
    return clustered_interval(scores, clusters), "bootstrap"


def fraction_correct(answers: Sequence[GradedAnswer]) -> float:
    """Fraction of correct samples of one row; an unparsed one is incorrect."""
    return sum(bool(answer.correct) for answer in answers) / len(answers)


def _pass(answers: Sequence[GradedAnswer], k: int) -> float:
    return pass_at_k(sum(bool(answer.correct) for answer in answers), len(answers), k)


def _vote(answer: GradedAnswer) -> str | None:
    """An answer's vote: for a judged one the full text, which the judge saw. None if unparsed."""
    if answer.correct is None:
        return None
    return answer.prediction if answer.judged else answer.extracted


def _own_scores(
    task: Task, by_row: Sequence[Sequence[GradedAnswer]], k: int
) -> dict[str, float | None]:
    each: list[dict[str, float]] = []
    for sample in range(k):
        grades = [
            Grade(correct=a[sample].correct, extracted=a[sample].extracted, rule=a[sample].rule)
            for a in by_row
        ]
        each.append(task.rule.scores(task.rows, grades))
    shown = {f"category: {row.category}" for row in task.rows}  # `categories` has them
    names = dict.fromkeys(name for scores in each for name in scores if name not in shown)
    return {name: _finite(_mean([s[name] for s in each if name in s])) for name in names}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _numbers(interval: Interval) -> dict[str, float | None]:
    return {name: _finite(value) for name, value in asdict(interval).items()}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def write_results(task: Task, graded: Sequence[GradedAnswer], summary: Mapping[str, Any]) -> None:
    """Write `answers.jsonl` and `summary.json` of a benchmark's folder, each atomically."""
    with atomic_write(task.folder / ANSWERS_FILE) as temporary:
        lines = (json.dumps(asdict(answer), ensure_ascii=False) + "\n" for answer in graded)
        temporary.write_text("".join(lines), encoding="utf-8", newline="\n")
    write_summary(task.folder, summary)


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """Stored results of one benchmark, one model and one kind of image."""

    folder: Path
    summary: Mapping[str, Any]
    answers: Mapping[int | str, Sequence[GradedAnswer]]
    """Index -> the samples of the row."""

    @property
    def name(self) -> str:
        """The benchmark, and the kind of image if not its own."""
        image = self.summary["image"]
        return self.summary["benchmark"] + ("" if image == "own" else f", image {image}")


def read_results(out: Path) -> list[Result]:
    """All finished benchmarks of a folder that `benchmark` wrote, by name.

    Raises:
        BenchmarkError: there is none, or a file is damaged.
    """
    if not out.is_dir():
        raise BenchmarkError(f"{out}: no such folder; give one that `benchmark --out` wrote")
    found = [_read_result(path.parent) for path in sorted(out.glob(f"*/{SUMMARY_FILE}"))]
    if not found:
        raise BenchmarkError(
            f"{out} holds no finished benchmark; run `python -m vapo_verl.evaluation benchmark` "
            f"with --out {out}"
        )
    return sorted(found, key=lambda result: result.name)


def _read_result(folder: Path) -> Result:
    path = folder / ANSWERS_FILE
    answers: dict[int | str, list[GradedAnswer]] = {}
    try:
        summary = json.loads((folder / SUMMARY_FILE).read_text(encoding="utf-8"))
        for line in path.read_text(encoding="utf-8").split("\n")[:-1]:
            answer = GradedAnswer(**json.loads(line))
            answers.setdefault(answer.index, []).append(answer)
        return Result(folder=folder, summary=summary, answers=answers)
    except (OSError, ValueError, TypeError) as error:
        raise BenchmarkError(
            f"{folder}: {error}; give the `benchmark` command again, which writes these files"
        ) from error


def scores_csv(results: Sequence[Result]) -> str:
    """A line for each score of each benchmark and category, with the columns `SCORE_COLUMNS`."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, SCORE_COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    for result in results:
        summary = result.summary
        where = {"benchmark": summary["benchmark"], "image": summary["image"]}
        for category, scores in [("", summary), *summary["categories"].items()]:
            for score, values in _score_rows(scores):
                writer.writerow(
                    {
                        **where,
                        "category": category,
                        "score": score,
                        "num_rows": scores["num_rows"],
                        **{name: _cell(value) for name, value in values.items()},
                    }
                )
    return buffer.getvalue()


def _score_rows(scores: Mapping[str, Any]) -> list[tuple[str, dict[str, float | None]]]:
    rows = [("accuracy", _with_bounds(scores["accuracy"]))]
    if scores["num_clusters"] < scores["num_rows"]:
        rows.append(("accuracy, clustered interval", _with_bounds(scores["clustered"])))
    rows += [(f"pass@{k}", _with_bounds(each)) for k, each in scores.get("pass", {}).items()]
    if "majority" in scores:
        rows.append((f"maj@{scores['num_samples']}", _with_bounds(scores["majority"])))
    rows += [(name, {"value": value}) for name, value in scores.get("scores", {}).items()]
    for name in ("unparsed", "truncated", "judged"):
        if name in scores:
            fraction = scores[name]
            low, high = fraction["low"], fraction["high"]
            rows.append((name, {"value": fraction["share"], "low": low, "high": high}))
    if "mean_tokens" in scores:
        rows.append(("mean_tokens", {"value": scores["mean_tokens"]}))
    return rows


def _with_bounds(interval: Mapping[str, Any]) -> dict[str, float | None]:
    return {"value": interval["mean"], "low": interval["low"], "high": interval["high"]}


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"
