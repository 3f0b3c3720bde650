"""Reads a benchmark: a TSV of VLMEvalKit, or a parquet file of our row format."""

from pathlib import Path

from vapo_verl.evaluation.benchmarks import BenchmarkError, BenchmarkRow


def read_benchmark(path: Path) -> list[BenchmarkRow]:
    """All rows of a benchmark, checked, in the file's order.

    Raises:
        BenchmarkError: a missing file or column, a missing or damaged image, a duplicate index;
            one line per problem, with row, column and fix.
    """
    raise BenchmarkError(f"{path}: no reader yet")
