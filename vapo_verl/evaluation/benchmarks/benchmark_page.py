"""Results of benchmarks as HTML files that open without a network and run no script."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from vapo_verl.analysis.statistics import PairedScores, compare_paired
from vapo_verl.evaluation.benchmarks import BenchmarkRow
from vapo_verl.evaluation.benchmarks.benchmark_results import (
    GradedAnswer,
    Result,
    fraction_correct,
)
from vapo_verl.files import atomic_write
from vapo_verl.plots.html import NONE, Table, content_policy, resource_text, table_html
from vapo_verl.plots.panel import COLORS

_LABEL_WIDTH, _PLOT_WIDTH, _LINE_HEIGHT = 320, 520, 18


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A fraction with its interval, on the line of a benchmark."""

    series: str
    mean: float
    low: float | None
    high: float | None


def write_page(path: Path, title: str, note: str, body: str) -> None:
    """Write one page atomically; `body` is HTML."""
    template = (files("vapo_verl.evaluation.benchmarks") / "page.html").read_text(encoding="utf-8")
    page = Template(template).substitute(
        policy=content_policy(),
        title=escape(title),
        style=resource_text("page.css"),
        note=escape(note),
        body=body,
    )
    with atomic_write(path) as temporary:
        temporary.write_text(page, encoding="utf-8", errors="replace")


def benchmark_body(results: Sequence[Result]) -> str:
    """Figure and tables of the benchmarks of one model."""
    lines = {result.name: [_point("accuracy", result.summary)] for result in results}
    parts = [
        section("Accuracy", interval_plot(lines) + table_html(_accuracy_table(results))),
        section("What could not be graded", table_html(_grading_table(results))),
    ]
    if own := [result for result in results if result.summary["scores"]]:
        parts.append(section("Scores of the benchmarks", table_html(_own_table(own))))
    if dependence := _dependence_rows(results):
        parts.append(section("Visual dependence", table_html(_dependence_table(dependence))))
    parts += [
        section(f"{result.name} by category", table_html(_category_table(result)))
        for result in results
        if result.summary["categories"]
    ]
    return "".join(parts)


def section(title: str, body: str) -> str:
    """One part of a page; `body` is HTML."""
    return f"<section><h2>{escape(title)}</h2>{body}</section>"


def interval_plot(lines: Mapping[str, Sequence[Point]], bars: str = "95 % intervals") -> str:
    """An SVG of fractions 0 .. 1: a group of lines per name, and a dot and interval per point;
    `bars` says what the intervals are."""
    series = list(dict.fromkeys(point.series for points in lines.values() for point in points))
    marks, y = [], 24.0
    for name, points in lines.items():
        middle = y + _LINE_HEIGHT * (len(points) - 1) / 2
        marks.append(
            f'<text x="{_LABEL_WIDTH - 10}" y="{middle + 4:g}" text-anchor="end">'
            f"{escape(name)}</text>"
        )
        for point in points:
            marks.append(_mark(point, y, COLORS[series.index(point.series) % len(COLORS)]))
            y += _LINE_HEIGHT
        y += _LINE_HEIGHT / 2
    axis = "".join(
        f'<line x1="{_x(tick):g}" x2="{_x(tick):g}" y1="14" y2="{y:g}" stroke="currentColor"'
        f' opacity="0.15"/><text x="{_x(tick):g}" y="10" text-anchor="middle">{tick:g}</text>'
        for tick in (0, 0.25, 0.5, 0.75, 1)
    )
    width = _LABEL_WIDTH + _PLOT_WIDTH + 30
    svg = (
        f'<svg role="img" aria-label="accuracy with {escape(bars)}" width="{width}" '
        f'height="{y:g}" font-size="12" fill="currentColor">{axis}{"".join(marks)}</svg>'
    )
    legend = "".join(
        f'<span style="color:{COLORS[place % len(COLORS)]}">● {escape(name)}</span> '
        for place, name in enumerate(series)
    )
    shown = f"<p>{legend}</p>" if len(series) > 1 else ""
    return (
        f"<figure>{shown}<div class=scroll tabindex=0>{svg}</div>"
        f"<figcaption>Lines are {escape(bars)}.</figcaption></figure>"
    )


def _mark(point: Point, y: float, color: str) -> str:
    line = ""
    if point.low is not None and point.high is not None:
        line = (
            f'<line x1="{_x(point.low):.1f}" x2="{_x(point.high):.1f}" y1="{y:g}" y2="{y:g}"'
            f' stroke="{color}" stroke-width="2"/>'
        )
    title = f"{point.series}: {shown_interval(point.mean, point.low, point.high)}"
    return (
        f'<g>{line}<circle cx="{_x(point.mean):.1f}" cy="{y:g}" r="4" fill="{color}"/>'
        f"<title>{escape(title)}</title></g>"
    )


def _x(fraction: float) -> float:
    return _LABEL_WIDTH + _PLOT_WIDTH * fraction


def _point(series: str, summary: Mapping[str, Any]) -> Point:
    accuracy = summary["accuracy"]
    return Point(series=series, mean=accuracy["mean"], low=accuracy["low"], high=accuracy["high"])


def shown_interval(mean: float | None, low: float | None, high: float | None) -> str:
    """A fraction in percent, with its interval where one is known."""
    if mean is None:
        return NONE
    if low is None or high is None:
        return f"{100 * mean:.1f} %"
    return f"{100 * mean:.1f} % ({100 * low:.1f} to {100 * high:.1f})"


def _shown(interval: Mapping[str, Any]) -> str:
    return shown_interval(interval["mean"], interval["low"], interval["high"])


def _shown_fraction(fraction: Mapping[str, Any]) -> str:
    if fraction["share"] is None:
        return NONE
    return f"{100 * fraction['share']:.1f} % ({fraction['num']} of {fraction['of']})"


def _accuracy_table(results: Sequence[Result]) -> Table:
    samples = max(result.summary["num_samples"] for result in results)
    header = ["benchmark", "rule", "protocol", "rows", "accuracy"]
    if samples > 1:
        header += [f"pass@{samples}", f"maj@{samples}"]
    header += ["clustered interval", "clusters", "mean tokens"]
    rows = []
    for result in results:
        summary = result.summary
        row = [result.name, summary["rule"], summary["protocol"], str(summary["num_rows"])]
        row += [_shown(summary["accuracy"])]
        if samples > 1:
            best = summary.get("pass", {}).get(str(samples))
            row += [_shown(best) if best else NONE]
            row += [_shown(summary["majority"]) if "majority" in summary else NONE]
        is_clustered = summary["num_clusters"] < summary["num_rows"]
        row += [_shown(summary["clustered"]) if is_clustered else NONE]
        row += [str(summary["num_clusters"])]
        rows.append([*row, f"{summary['mean_tokens']:.0f}"])
    return Table(
        title="Accuracy with 95 % intervals",
        header=header,
        rows=rows,
        note="Greedy answers: Wilson's interval, which takes rows as independent, and the bootstrap"
        " interval over clusters (rows with the same image, figure or chain). Several samples:"
        " the bootstrap over clusters. All correct or none: Wilson's interval over clusters.",
    )


def _grading_table(results: Sequence[Result]) -> Table:
    rows = [
        [
            result.name,
            *[_shown_fraction(result.summary[name]) for name in _FRACTIONS],
            str(result.summary["judge"]["failed"]) if result.summary["judge"] else NONE,
        ]
        for result in results
    ]
    return Table(
        title="Fractions of all answers",
        header=["benchmark", *_FRACTIONS, "failed to be judged"],
        rows=rows,
        note="Unparsed: no answer could be read; counted incorrect. Truncated: the token limit"
        " ended the answer. Judged: the judge decided, because the rule could not. MMVet and rows"
        " of style judge have no rule: without a judge all of their answers are unparsed.",
    )


_FRACTIONS = ("unparsed", "truncated", "judged")


def _own_table(results: Sequence[Result]) -> Table:
    rows = [
        [result.name, name, shown_interval(value, None, None)]
        for result in results
        for name, value in result.summary["scores"].items()
    ]
    return Table(title="The benchmark's scores", header=["benchmark", "score", "value"], rows=rows)


def _category_table(result: Result) -> Table:
    rows = [
        [name, str(scores["num_rows"]), _shown(scores["accuracy"])]
        for name, scores in result.summary["categories"].items()
    ]
    return Table(title="Accuracy", header=["category", "rows", "accuracy"], rows=rows)


def _dependence_rows(results: Sequence[Result]) -> list[tuple[Result, Result]]:
    """Pairs of a benchmark with its own images and with others."""
    own = {r.summary["benchmark"]: r for r in results if r.summary["image"] == "own"}
    return [
        (own[result.summary["benchmark"]], result)
        for result in results
        if result.summary["image"] != "own" and result.summary["benchmark"] in own
    ]


def _dependence_table(pairs: Sequence[tuple[Result, Result]]) -> Table:
    rows = []
    for own, changed in pairs:
        found = compare_results(changed, own)
        difference = found.difference
        rows.append(
            [
                own.name,
                changed.summary["image"],
                _shown(changed.summary["accuracy"]),
                _shown(own.summary["accuracy"]),
                shown_interval(difference.mean, difference.low, difference.high),
                f"{found.p:.2g} ({found.test})",
            ]
        )
    return Table(
        title="The same rows without their images",
        header=["benchmark", "image", "accuracy with it", "with the own image", "lost", "p"],
        rows=rows,
        note="Accuracy that remains without the image is not perception.",
    )


def compare_results(a: Result, b: Result) -> PairedScores:
    """Model B against model A over the rows that both have."""
    common = [index for index in a.answers if index in b.answers]
    return compare_paired(
        [fraction_correct(a.answers[index]) for index in common],
        [fraction_correct(b.answers[index]) for index in common],
        [cluster_of(a.answers[index]) for index in common],
    )


def cluster_of(answers: Sequence[GradedAnswer]) -> str:
    """The cluster of a row, read from its answers."""
    return answers[0].cluster


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparedRow:
    """A row of a benchmark with the answers of two models."""

    index: int | str
    scores: tuple[float, float]
    """Fraction of correct answers of A and of B."""
    answers: tuple[GradedAnswer, GradedAnswer]
    row: BenchmarkRow | None
    """None where the benchmark's file is gone."""


def differing_rows(names: tuple[str, str], rows: Sequence[ComparedRow], limit: int) -> str:
    """The rows on which two models differ most, with images, question and both answers.

    Args:
        names: names of A and B.
        limit: most rows shown; all are counted.
    """
    differing = [each for each in rows if each.scores[0] != each.scores[1]]
    differing.sort(key=lambda each: -abs(each.scores[1] - each.scores[0]))
    gained = sum(each.scores[1] > each.scores[0] for each in differing)
    drawn = differing[:limit]
    gone = any(each.row is None for each in drawn)
    counts = (
        f"<p class=note>{len(differing)} of {len(rows)} rows differ: {gained} are better in B, "
        f"{len(differing) - gained} in A. {len(drawn)} are shown, the largest differences first."
        f"{' The benchmark file is not where it was, so images are missing.' if gone else ''}</p>"
    )
    return counts + "".join(_row_html(names, each) for each in drawn)


def _row_html(names: tuple[str, str], each: ComparedRow) -> str:
    shown = "".join(
        _answer_html(*one) for one in zip(names, each.scores, each.answers, strict=True)
    )
    question = ""
    if each.row is not None:
        question = f"<p class=text>{escape(_question(each.row))}</p>{_images(each.row)}"
    truth = f"<p>Ground truth: {escape(each.answers[0].answer)}</p>"
    category = f", {escape(each.answers[0].category)}" if each.answers[0].category else ""
    title = f"<h3>{escape(str(each.index))}{category}</h3>"
    return f"<article>{title}{question}{truth}{shown}</article>"


def _answer_html(name: str, score: float, answer: GradedAnswer) -> str:
    extracted = "unparsed" if answer.extracted is None else answer.extracted
    return (
        f"<details><summary>{escape(name)}: {100 * score:.0f} % correct, answers "
        f"{escape(extracted)}</summary><p class=text>{escape(answer.prediction)}</p></details>"
    )


def _question(row: BenchmarkRow) -> str:
    text = "\n".join(turn["content"] for turn in row.messages) or row.question
    return text + "".join(f"\n{letter}. {option}" for letter, option in row.choices.items())


def _images(row: BenchmarkRow) -> str:
    from vapo_verl.data.images import IMAGE_ERRORS, load_image  # not for --help
    from vapo_verl.run_folder.rollouts import image_uri, small_image

    found = []
    for source in row.images:
        try:
            uri = image_uri(small_image(load_image(source)))
            found.append(f'<img src="{uri}" alt="image of the row">')
        except IMAGE_ERRORS as error:
            found.append(f"<p class=problem>an image cannot be shown: {type(error).__name__}</p>")
    return "".join(found)
