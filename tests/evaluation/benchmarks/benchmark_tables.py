"""Writes benchmark files as VLMEvalKit does, and scores answers to them."""

import base64
import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from vapo_verl.evaluation.benchmarks import Grade
from vapo_verl.evaluation.benchmarks.benchmark_file import read_benchmark
from vapo_verl.evaluation.benchmarks.rules import check_rows, find_rule


def png(shade: int = 0, side: int = 8) -> bytes:
    """A PNG file; of noise, and so about 3 bytes a pixel, for a negative shade."""
    pixels = np.full((side, side, 3), max(shade, 0), dtype=np.uint8)
    if shade < 0:
        pixels = np.random.default_rng(-shade).integers(0, 256, pixels.shape, dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def base64_png(shade: int = 0, side: int = 8) -> str:
    return base64.b64encode(png(shade, side)).decode()


def write_tsv(
    path: Path, rows: Sequence[Mapping[str, object]], *, end: str = "\n", bom: bool = False
) -> Path:
    """All rows with the columns of all of them, quoted where needed."""
    header = list(dict.fromkeys(name for row in rows for name in row))
    encoding = "utf-8-sig" if bom else "utf-8"
    with path.open("w", encoding=encoding, newline="") as file:
        writer = csv.DictWriter(file, header, delimiter="\t", lineterminator=end)
        writer.writeheader()
        writer.writerows(rows)
    return path


def grades_of(path: Path, rules: str, predictions: Iterable[str]) -> list[Grade]:
    """Read, check and grade, as the commands do."""
    rule = find_rule(rules)
    rows = read_benchmark(path, skip_without_image=rule.skip_without_image)
    check_rows(rule, rows, path)
    return [rule.grade(row, text) for row, text in zip(rows, predictions, strict=True)]


def scores_of(path: Path, rules: str, predictions: Sequence[str]) -> dict[str, float]:
    """`accuracy`, `unparsed`, and the rule's own scores."""
    rule = find_rule(rules)
    grades = grades_of(path, rules, predictions)
    rows = read_benchmark(path, skip_without_image=rule.skip_without_image)
    return {
        "accuracy": sum(grade.correct is True for grade in grades) / len(grades),
        "unparsed": sum(grade.correct is None for grade in grades) / len(grades),
        **rule.scores(rows, grades),
    }
