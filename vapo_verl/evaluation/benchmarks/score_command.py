"""`score`: stored predictions of any model, graded by the rules of a benchmark.

`python -m vapo_verl.evaluation score FILE --rules NAME --out OUT.jsonl` writes a line for each row:

    index      as in the file
    correct    true, false, or null where no answer can be read, which counts as incorrect
    extracted  the answer that was compared, or null
    rule       NAME

and prints accuracy with its 95 % interval, the fraction of unparsed rows, and the benchmark's own
scores. No engine, judge or network is used.
"""

import argparse
import json
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from vapo_verl.cli_options import add_options, cli, options_from
from vapo_verl.data.errors import require_other_file, require_output
from vapo_verl.evaluation.benchmarks import BenchmarkRow, Grade, Rule
from vapo_verl.evaluation.benchmarks.rules import RULES


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreOptions:
    """Predictions, rule and output."""

    file: Path = field(metadata=cli(positional="FILE"))
    """Predictions: .parquet, .jsonl or .tsv with columns index, question, answer, prediction."""
    rules: str = field(metadata=cli(choices=tuple(RULES), metavar="NAME"))
    """A benchmark's name, or mcq, yes-no or free-form."""
    out: Path = field(metadata=cli(metavar="OUT.jsonl"))
    """A line with the grade of each row."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """FILE, --rules and --out."""
    add_options(parser, ScoreOptions)


def run(arguments: argparse.Namespace) -> int:
    """The command.

    Raises:
        DataError: a file, column or row that the user has to fix; or --out is FILE or a folder.
    """
    options = options_from(ScoreOptions, arguments)
    require_output(options.out)
    require_other_file(options.out, options.file)
    rows, grades, rule = score(options)
    write_grades(options.out, rows, grades)
    print("\n".join(report(rule, rows, grades)))
    print(options.out)
    return 0


def score(options: ScoreOptions) -> tuple[list[BenchmarkRow], list[Grade], Rule]:
    """Read and grade all rows of a file of predictions.

    Raises:
        DataError: a file, column or row that the user has to fix.
    """
    from vapo_verl.evaluation.benchmarks.benchmark_file import read_predictions
    from vapo_verl.evaluation.benchmarks.rules import check_rows, find_rule
    from vapo_verl.reward.math_verifier import MAX_WORKERS

    rule = find_rule(options.rules)
    rows, predictions = read_predictions(options.file, rule.needs)
    check_rows(rule, rows, options.file)
    with ThreadPoolExecutor(MAX_WORKERS) as pool:  # grading waits for the math verifier's pool
        return rows, list(pool.map(rule.grade, rows, predictions)), rule


def write_grades(path: Path, rows: Sequence[BenchmarkRow], grades: Sequence[Grade]) -> None:
    """Write the grades as JSON lines, in the rows' order; the file is complete or unchanged."""
    from vapo_verl.files import atomic_write

    path.parent.mkdir(parents=True, exist_ok=True)
    with (
        atomic_write(path) as temporary,
        # a lone surrogate is escaped as in JSON
        temporary.open("w", encoding="utf-8", errors="backslashreplace") as file,
    ):
        for row, grade in zip(rows, grades, strict=True):
            line = {
                "index": row.index,
                "correct": grade.correct,
                "extracted": grade.extracted,
                "rule": grade.rule,
            }
            file.write(json.dumps(line, ensure_ascii=False) + "\n")


def report(rule: Rule, rows: Sequence[BenchmarkRow], grades: Sequence[Grade]) -> list[str]:
    """Lines for a terminal: accuracy, unparsed rate, and the benchmark's own scores."""
    from vapo_verl.analysis.statistics import wilson_interval

    num = len(grades)
    if rule.judge_only:
        return [f"{rule.name}: {num} rows need a judge: no rule can grade them"]
    correct = sum(grade.correct is True for grade in grades)
    unparsed = sum(grade.correct is None for grade in grades)
    low, high = wilson_interval(correct, num)
    lines = [
        f"{rule.name}: accuracy {correct / num:.4f} ({low:.4f} to {high:.4f}), "
        f"{correct} of {num} rows",
        f"unparsed, counted incorrect: {unparsed / num:.4f}, {unparsed} of {num} rows",
    ]
    for name, value in rule.scores(rows, grades).items():
        lines.append(f"{name}: {'-' if math.isnan(value) else f'{value:.4f}'}")
    return lines
