"""`compare`: results of `benchmark` side by side, with paired tests and the rows that differ.

`python -m vapo_verl.evaluation compare A B ... --out OUT` writes `OUT/page.html` and
`OUT/comparison.csv`. Each arm is a folder that `benchmark` wrote, or `NAME=DIR,DIR,...` for the
seeds of one training arm. All arms are compared with the first one, on every benchmark that all
arms have. An arm of several seeds is compared by seed, never by rows.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vapo_verl.analysis.statistics import (
    arm_score,
    benjamini_hochberg,
    compare_arms,
    compare_paired,
)
from vapo_verl.cli_options import OptionError, add_options, check_bounds, cli, options_from
from vapo_verl.evaluation.benchmarks.benchmark_page import (
    ComparedRow,
    Point,
    differing_rows,
    interval_plot,
    section,
    shown_interval,
    write_page,
)
from vapo_verl.evaluation.benchmarks.benchmark_results import (
    Result,
    fraction_correct,
    read_results,
)
from vapo_verl.evaluation.probing.journal import PAGE_FILE, SETTINGS_FILE
from vapo_verl.evaluation.probing.probe_options import data_fingerprint
from vapo_verl.files import atomic_write_text
from vapo_verl.plots.html import Table, shown, table_html

if TYPE_CHECKING:
    from vapo_verl.evaluation.benchmarks import BenchmarkRow

COMPARISON_FILE = "comparison.csv"
COLUMNS = (
    *("benchmark", "category", "a", "b", "num_rows", "num_seeds_a", "num_seeds_b"),
    *("mean_a", "mean_b", "difference", "low", "high", "p", "p_adjusted", "test"),
)
SAME_ROWS = ("DATA", "--limit", "--image")
"""Settings that must be equal: they define which rows were asked, with which images."""
SAME_PROTOCOL = (
    *("--protocol", "--suffix", "--max-tokens", "--min-pixels", "--max-pixels"),
    *("--plain-think-tokens", "--chat-template", "chat template"),
)
"""Settings whose difference is noted on the page."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CompareOptions:
    """Folders, and the number of rows shown."""

    arms: tuple[str, ...] = field(metadata=cli(positional="ARM"))
    """Folder that `benchmark` wrote, or NAME=DIR,DIR,... for several seeds; the first is A."""
    out: Path = field(metadata=cli(metavar="DIR"))
    """Folder for page and CSV."""
    shown_rows: int = field(default=50, metadata=cli(low=0))
    """Rows shown per benchmark and pair of arms, those that differ most."""

    def __post_init__(self) -> None:
        check_bounds(self)
        if len(self.arms) < 2:
            raise OptionError(f"ARM: {self.arms[0]} alone; give two or more to compare")


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One training arm: the results of each of its seeds."""

    name: str
    seeds: tuple[Mapping[str, Result], ...]
    """Benchmark -> result, of each seed."""

    def benchmarks(self) -> set[str]:
        """Benchmarks that all seeds have."""
        return set.intersection(*[set(seed) for seed in self.seeds])

    def accuracies(self, benchmark: str, category: str = "") -> list[float]:
        """Accuracy of each seed."""
        summaries = [seed[benchmark].summary for seed in self.seeds]
        if category:
            summaries = [summary["categories"][category] for summary in summaries]
        return [summary["accuracy"]["mean"] for summary in summaries]

    def row_score(self, benchmark: str, index: int | str) -> float:
        """Fraction of correct answers to a row, over seeds and samples."""
        each = [fraction_correct(seed[benchmark].answers[index]) for seed in self.seeds]
        return sum(each) / len(each)


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Arm B against arm A on a benchmark, or on one of its categories; a line of the CSV."""

    benchmark: str
    category: str
    a: str
    b: str
    num_rows: int
    num_seeds_a: int
    num_seeds_b: int
    mean_a: float
    mean_b: float
    difference: float
    low: float
    high: float
    p: float
    """nan if unknown, for example one seed against several."""
    p_adjusted: float
    """By Benjamini and Hochberg over all lines with the same kind of category."""
    test: str
    """`mcnemar`, `sign_flips` (rows of two single models) or `seeds` (Welch's t-test)."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The fields of :class:`CompareOptions`."""
    add_options(parser, CompareOptions)


def run(arguments: argparse.Namespace) -> int:
    """The command.

    Raises:
        OptionError, BenchmarkError: no such results, or arms with different rows or grading.
    """
    options = options_from(CompareOptions, arguments)

    arms = [read_arm(text) for text in options.arms]
    if len({arm.name for arm in arms}) < len(arms):
        raise OptionError(f"ARM: {[arm.name for arm in arms]}: name them apart, as A=DIR B=DIR")
    benchmarks = common_benchmarks(arms)
    notes = [note for benchmark in benchmarks for note in check_settings(arms, benchmark)]
    comparisons = compare_all(arms, benchmarks)
    options.out.mkdir(parents=True, exist_ok=True)
    atomic_write_text(options.out / COMPARISON_FILE, comparison_csv(comparisons))
    page = options.out / PAGE_FILE
    title = " and ".join(arm.name for arm in arms)
    body = _body(arms, benchmarks, comparisons, options.shown_rows)
    write_page(page, title, " ".join([_seeds_note(arms), *notes]), body)
    for each in comparisons:
        if not each.category:
            print(
                f"{each.benchmark}: {each.b} minus {each.a} {100 * each.difference:+.1f} points, "
                f"p {each.p:.2g}, adjusted {each.p_adjusted:.2g} ({each.test})"
            )
    for note in notes:
        print(f"WARNING: {note}")
    print(page)
    return 0


def read_arm(text: str) -> Arm:
    """The results of `DIR` or `NAME=DIR,DIR,...`.

    Raises:
        BenchmarkError: a folder has no results.
        OptionError: a folder is given twice and would count as two seeds.
    """
    name, separator, listed = text.partition("=")
    if not separator or Path(text).is_dir():  # a folder's own name may hold an equals sign
        name, listed = Path(text).resolve().name, text
    folders = [Path(text)] if listed == text else [Path(each) for each in listed.split(",")]
    places = [folder.resolve() for folder in folders]
    if twice := [
        str(f) for f, place in zip(folders, places, strict=True) if places.count(place) > 1
    ]:
        raise OptionError(
            f"ARM {name}: {' and '.join(twice)} are one folder; give each seed a folder of its own"
        )
    return Arm(
        name=name,
        seeds=tuple({each.name: each for each in read_results(folder)} for folder in folders),
    )


def common_benchmarks(arms: Sequence[Arm]) -> list[str]:
    """Benchmarks that every arm has, by name.

    Raises:
        OptionError: there is none.
    """
    common = sorted(set.intersection(*[arm.benchmarks() for arm in arms]))
    if not common:
        held = "; ".join(f"{arm.name}: {', '.join(sorted(arm.benchmarks()))}" for arm in arms)
        raise OptionError(f"ARM: no benchmark is in all of them ({held}); run `benchmark` on it")
    return common


def check_settings(arms: Sequence[Arm], benchmark: str) -> list[str]:
    """Notes on settings of a benchmark that differ between the arms.

    Raises:
        OptionError: the arms were asked different rows, or graded by different rules or judges, so
            that a difference could come from grading. A result whose answers the rule could all
            read depends on no judge, and can be compared with any other result.
    """
    results = [seed[benchmark] for arm in arms for seed in arm.seeds]
    _check_grading(results, benchmark)
    settings = {
        result.folder: json.loads((result.folder / SETTINGS_FILE).read_text()) for result in results
    }
    first, notes = settings[results[0].folder], []
    for result in results:
        other = settings[result.folder]
        for key in (*SAME_ROWS, *SAME_PROTOCOL):
            if (other.get(key) or None) == (first.get(key) or None):  # {} in older results: none
                continue
            found = (
                f"{benchmark}: {key} is {first.get(key)!r} in {results[0].folder} and "
                f"{other.get(key)!r} in {result.folder}"
            )
            if key in SAME_ROWS:
                raise OptionError(f"{found}; give the same to both, and run `benchmark` again")
            notes.append(f"{found}.")
    if first.get("--image") == "swapped":
        _check_swapped_images(arms, benchmark, settings)
    return notes


def _check_swapped_images(
    arms: Sequence[Arm], benchmark: str, settings: Mapping[Path, Mapping[str, Any]]
) -> None:
    """Runs of an arm may have a seed each, by which the images of their rows are drawn."""
    drawn_by = {
        arm.name: sorted(str(settings[seed[benchmark].folder].get("--seed")) for seed in arm.seeds)
        for arm in arms
    }
    if len({*map(tuple, drawn_by.values())}) > 1:
        found = "; ".join(f"{name}: {', '.join(of)}" for name, of in drawn_by.items())
        raise OptionError(
            f"{benchmark}: --image swapped has other images by --seed ({found}); run `benchmark` "
            "again with the same --seed for both"
        )


def _check_grading(results: Sequence[Result], benchmark: str) -> None:
    rule_fix = "run `benchmark` with the same --rules for both, with an --out of its own"
    judge_fix = (
        "run `benchmark` on both again with the same --judge and --judge-model, or without; stored "
        "answers are not asked for again"
    )
    judged = [result for result in results if _num_for_judge(result)]
    for what, compared, name_of, fix in (
        ("the rule", results, _rule_name, rule_fix),
        ("the judge of answers that no rule reads", judged, _judge_name, judge_fix),
    ):
        for result in compared[1:]:
            first, other = name_of(compared[0]), name_of(result)
            if first != other:
                raise OptionError(
                    f"{benchmark}: {what} is {first} in {compared[0].folder} and {other} in "
                    f"{result.folder}; {fix}"
                )


def _num_for_judge(result: Result) -> int:
    """Answers that no rule could read, judged or not."""
    judge = result.summary["judge"]
    return int(judge["asked"] if judge else result.summary["unparsed"]["num"])


def _rule_name(result: Result) -> str:
    return str(result.summary["rule"])


def _judge_name(result: Result) -> str:
    judge = result.summary["judge"]
    return f"{judge['model']} (prompt version {judge['prompt_version']})" if judge else "none"


def compare_all(arms: Sequence[Arm], benchmarks: Sequence[str]) -> list[Comparison]:
    """Every arm against the first one, on every benchmark and category.

    The p-values of benchmarks are adjusted together, and those of categories together.
    """
    return [
        adjusted
        for categories in ([("",)] * len(benchmarks), [_categories(arms, b) for b in benchmarks])
        for adjusted in _adjusted(
            [
                _compare(arms[0], arm, benchmark, category)
                for benchmark, some in zip(benchmarks, categories, strict=True)
                for category in some
                for arm in arms[1:]
            ]
        )
    ]


def _categories(arms: Sequence[Arm], benchmark: str) -> tuple[str, ...]:
    return tuple(arms[0].seeds[0][benchmark].summary["categories"])


def _compare(a: Arm, b: Arm, benchmark: str, category: str) -> Comparison:
    first = a.seeds[0][benchmark].answers
    indices = [i for i, samples in first.items() if category in ("", samples[0].category)]
    by_seed_a, by_seed_b = a.accuracies(benchmark, category), b.accuracies(benchmark, category)
    if len(a.seeds) == len(b.seeds) == 1:
        found = compare_paired(
            [a.row_score(benchmark, index) for index in indices],
            [b.row_score(benchmark, index) for index in indices],
            [first[index][0].cluster for index in indices],
        )
        difference, p, test = found.difference, found.p, found.test
    else:
        difference, p = compare_arms(by_seed_a, by_seed_b)
        test = "seeds"
    return Comparison(
        benchmark=benchmark,
        category=category,
        a=a.name,
        b=b.name,
        num_rows=len(indices),
        num_seeds_a=len(a.seeds),
        num_seeds_b=len(b.seeds),
        mean_a=sum(by_seed_a) / len(by_seed_a),
        mean_b=sum(by_seed_b) / len(by_seed_b),
        difference=difference.mean,
        low=difference.low,
        high=difference.high,
        p=p,
        p_adjusted=math.nan,
        test=test,
    )


def _adjusted(comparisons: Sequence[Comparison]) -> list[Comparison]:
    adjusted = benjamini_hochberg([each.p for each in comparisons])
    return [
        replace(each, p_adjusted=value) for each, value in zip(comparisons, adjusted, strict=True)
    ]


def comparison_csv(comparisons: Sequence[Comparison]) -> str:
    """A line for each comparison, with the columns `COLUMNS`; empty cells where unknown."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(COLUMNS)
    for each in comparisons:
        writer.writerow([_cell(getattr(each, name)) for name in COLUMNS])
    return buffer.getvalue()


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.6g}" if math.isfinite(value) else ""
    return str(value)


def _seeds_note(arms: Sequence[Arm]) -> str:
    counts = ", ".join(f"{arm.name} {len(arm.seeds)}" for arm in arms)
    if all(len(arm.seeds) == 1 for arm in arms):
        return (
            "One model per arm: the tests show whether these checkpoints differ on such rows, not "
            "whether another training seed would give the same result."
        )
    return f"Arms are compared by seed ({counts}); one seed in an arm gives no p."


def _body(
    arms: Sequence[Arm],
    benchmarks: Sequence[str],
    comparisons: Sequence[Comparison],
    shown_rows: int,
) -> str:
    lines = {name: [_point(arm, name) for arm in arms] for name in benchmarks}
    overall = [each for each in comparisons if not each.category]
    by_category = [each for each in comparisons if each.category]
    parts = [
        section("Accuracy", interval_plot(lines, _bars(arms))),
        section("Comparison", table_html(_table("Benchmarks", overall))),
    ]
    if by_category:
        parts.append(section("By category", table_html(_table("Categories", by_category))))
    for benchmark in benchmarks:
        rows = _read_rows(arms, benchmark)
        for arm in arms[1:]:
            title = f"{benchmark}: rows on which {arms[0].name} and {arm.name} differ"
            parts.append(section(title, _differing(arms[0], arm, benchmark, rows, shown_rows)))
    return "".join(parts)


def _bars(arms: Sequence[Arm]) -> str:
    """What the lines of the plot are."""
    numbers = {len(arm.seeds) > 1 for arm in arms}
    if numbers == {True}:
        return "ranges over seeds, from the lowest to the highest, and no 95 % intervals"
    if numbers == {False}:
        return "95 % intervals"
    return "95 % intervals; for arms of several seeds their range, from the lowest to the highest"


def _point(arm: Arm, benchmark: str) -> Any:
    """Accuracy with its interval; for several seeds their mean and range."""
    if len(arm.seeds) > 1:
        score = arm_score(arm.accuracies(benchmark))
        name = f"{arm.name} (range of {score.num_seeds} seeds)"
        return Point(series=name, mean=score.mean, low=score.lowest, high=score.highest)
    accuracy = arm.seeds[0][benchmark].summary["accuracy"]
    return Point(series=arm.name, mean=accuracy["mean"], low=accuracy["low"], high=accuracy["high"])


def _table(title: str, comparisons: Sequence[Comparison]) -> Any:
    rows = [
        [
            f"{each.benchmark} {each.category}".strip(),
            str(each.num_rows),
            f"{each.a} {100 * each.mean_a:.1f} %",
            f"{each.b} {100 * each.mean_b:.1f} %",
            shown_interval(
                each.difference,
                each.low if math.isfinite(each.low) else None,
                each.high if math.isfinite(each.high) else None,
            ),
            shown(each.p, 2),
            shown(each.p_adjusted, 2),
            each.test,
        ]
        for each in comparisons
    ]
    return Table(
        title=title,
        header=["", "rows", "A", "B", "B − A, 95 % interval", "p", "p adjusted", "test"],
        rows=rows,
        note="McNemar: exact, on rows that one of two models solves. Sign flips: of the differences"
        " of clusters of rows. Seeds: Welch's t-test on one accuracy per seed. Adjusted by"
        " Benjamini and Hochberg over the lines of this table.",
    )


def _read_rows(arms: Sequence[Arm], benchmark: str) -> dict[int | str, BenchmarkRow]:
    """The benchmark's rows by index, read from its file; empty if it is gone or has changed."""
    from vapo_verl.evaluation.benchmarks.benchmark_file import read_benchmark
    from vapo_verl.evaluation.benchmarks.rules import find_rule

    result = arms[0].seeds[0][benchmark]
    settings = json.loads((result.folder / SETTINGS_FILE).read_text())
    path = Path(result.summary["data"])
    if not path.is_file() or data_fingerprint(path) != settings["DATA"]:
        return {}
    skip = find_rule(result.summary["rule"]).skip_without_image
    return {row.index: row for row in read_benchmark(path, skip_without_image=skip)}


def _differing(
    a: Arm, b: Arm, benchmark: str, rows: Mapping[int | str, BenchmarkRow], limit: int
) -> str:
    both = [
        ComparedRow(
            index=index,
            scores=(a.row_score(benchmark, index), b.row_score(benchmark, index)),
            answers=(samples[0], b.seeds[0][benchmark].answers[index][0]),
            row=rows.get(index),
        )
        for index, samples in a.seeds[0][benchmark].answers.items()
    ]
    return differing_rows((a.name, b.name), both, limit)
