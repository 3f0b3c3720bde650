"""Grade a file's ground truths against themselves, and its predictions where it has a column.

A truth that is not correct against itself, in its own style, can earn no reward: no answer of a
model will equal it. The table counts, per style, such truths and those that are worth a look. Rows
of style `judge` are counted and not graded: a language model decides about them.
"""

import json
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from vapo_verl.config import ANSWER_STYLES, JUDGE_STYLE
from vapo_verl.console import progress_bar
from vapo_verl.data.cells import truths_of
from vapo_verl.data.errors import BadCell, FileError, require_other_file, require_output, shortened
from vapo_verl.data.parquet_stream import iter_rows, open_parquet
from vapo_verl.files import atomic_write
from vapo_verl.reward.accuracy import accuracy, answer_of, last_boxed
from vapo_verl.reward.answers import MAX_CHARS, choice, normalised
from vapo_verl.reward.mathematics import split_name
from vapo_verl.reward.quantities import quantity

TRUTH_COLUMNS = ("reward_model", "ground_truth", "answer")
PREDICTION_COLUMNS = ("prediction", "response", "output")
NUM_THREADS = 8
_ROWS_AT_ONCE = 512
KINDS = {
    "unmatched": "not correct against itself: rewrite it, or drop the row",
    "unusable": "no ground truth that can be compared",
    "unit": "has a unit: an answer without one is correct, one with another unit is not",
    "letters": "several option letters: compared as a set",
    "wide": "full-width or look-alike signs: compared as their plain forms",
    "several": "a list: any member is correct",
    "long": f"over {MAX_CHARS} characters: compared as text",
}
"""Kinds of rows that are worth a look, and their meaning; the first two are errors."""
ERRORS = ("unmatched", "unusable")


@dataclass(frozen=True, slots=True, kw_only=True)
class GradedRow:
    """A row's ground truth, graded against itself, and its prediction."""

    row: int
    """Number of the row in its file, from 0."""
    style: str
    truth: str
    """Several are joined by ` | `."""
    kinds: tuple[str, ...]
    """Keys of `KINDS`."""
    answer: str | None = None
    """The boxed answer of the prediction."""
    correct: bool | None = None
    """Null without a column of predictions, and in the style `judge`."""


@dataclass(slots=True, kw_only=True)
class GradeReport:
    """Counts per style and rows to look at; `str()` is the table and the rows."""

    path: str
    has_predictions: bool
    shown_per_kind: int
    rows: Counter[str] = field(default_factory=Counter)
    """Rows by style, like the next two."""
    correct: Counter[str] = field(default_factory=Counter)
    unanswered: Counter[str] = field(default_factory=Counter)
    """Predictions without a box."""
    kinds: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Rows by (style, kind)."""
    shown: dict[str, list[GradedRow]] = field(default_factory=lambda: defaultdict(list))

    @property
    def num_errors(self) -> int:
        """Rows whose truth cannot be matched by any answer."""
        return sum(count for (_, kind), count in self.kinds.items() if kind in ERRORS)

    def add(self, graded: GradedRow) -> None:
        self.rows[graded.style] += 1
        self.correct[graded.style] += bool(graded.correct)
        self.unanswered[graded.style] += graded.correct is not None and graded.answer is None
        for kind in graded.kinds:
            self.kinds[graded.style, kind] += 1
            if len(self.shown[kind]) < self.shown_per_kind:
                self.shown[kind].append(graded)

    def __str__(self) -> str:
        return "\n".join([f"{self.path}: {self.rows.total()} rows", *self._table(), *self._looks()])

    def _table(self) -> Iterator[str]:
        predictions = ("correct", "no box") if self.has_predictions else ()
        yield "".join(f"{name:>11}" for name in ("style", "rows", *KINDS, *predictions))
        for style in sorted(self.rows):
            counts: list[int | str] = [self.rows[style]]
            counts += [self.kinds[style, kind] for kind in KINDS]
            if self.has_predictions:
                graded = [self.correct[style], self.unanswered[style]]
                counts += ["-", "-"] if style == JUDGE_STYLE else graded
            yield f"{style:>11}" + "".join(f"{count:>11}" for count in counts)

    def _looks(self) -> Iterator[str]:
        for kind, meaning in KINDS.items():
            if not self.shown[kind]:
                continue
            yield f"{kind}: {meaning}"
            for graded in self.shown[kind]:
                yield f"  row {graded.row} ({graded.style}): {shortened(graded.truth)}"
            num_rows = sum(self.kinds[style, kind] for style in self.rows)
            if hidden := num_rows - len(self.shown[kind]):
                yield f"  ... and {hidden} more"
        if self.rows[JUDGE_STYLE]:
            yield f"{self.rows[JUDGE_STYLE]} rows of style {JUDGE_STYLE} are not graded"


def grade_file(
    path: Path,
    *,
    style: str = "math",
    prediction_column: str | None = None,
    out: Path | None = None,
    shown_per_kind: int = 5,
    show_progress: bool = False,
) -> GradeReport:
    """Grade every row of a parquet file; memory is bounded by one of its row groups.

    Args:
        path: its truths are in `reward_model.ground_truth`, `ground_truth` or `answer`.
        style: for rows whose `reward_model.style` names none.
        prediction_column: full responses; by default the first of `PREDICTION_COLUMNS` present.
        out: write one JSON line per row, a `GradedRow`.

    Raises:
        FileError: no such file, not parquet, or without a column of truths or predictions; or `out`
            is `path` or cannot be written.
    """
    if out is not None:
        require_output(out)
        require_other_file(out, path)
    with open_parquet(path, key="FILE") as parquet:
        present = parquet.schema_arrow.names
        truths = next((name for name in TRUTH_COLUMNS if name in present), None)
        wanted = (prediction_column,) if prediction_column else PREDICTION_COLUMNS
        predictions = next((name for name in wanted if name in present), None)
        if truths is None or (prediction_column and predictions is None):
            missing, fix = f"any of {TRUTH_COLUMNS}", "rename the column of truths"
            if truths:
                missing, fix = f"column {prediction_column!r}", "name one with --predictions"
            raise FileError(f"{path}: no {missing}, has {present}; {fix}")
        columns = [truths, *([predictions] if predictions else [])]
        report = GradeReport(
            path=str(path), has_predictions=predictions is not None, shown_per_kind=shown_per_kind
        )
        rows = iter_rows(parquet, columns, path=path, key="FILE")
        bar = progress_bar(parquet.metadata.num_rows, unit="row") if show_progress else None
        with bar or nullcontext(), _lines_to(out) as write, ThreadPoolExecutor(NUM_THREADS) as pool:
            while some := list(islice(rows, _ROWS_AT_ONCE)):
                for graded in pool.map(partial(_grade, truths, predictions, style), some):
                    report.add(graded)
                    write(graded)
                if bar is not None:
                    bar.update(len(some))
    return report


def _grade(
    truth_column: str,
    prediction_column: str | None,
    default_style: str,
    numbered: tuple[int, Mapping[str, Any]],
) -> GradedRow:
    number, row = numbered
    cell = row[truth_column]
    reward_model = cell if truth_column == "reward_model" else {"ground_truth": cell}
    named = reward_model.get("style") if isinstance(reward_model, Mapping) else None
    style = named if named in (*ANSWER_STYLES, JUDGE_STYLE) else default_style
    text = None if prediction_column is None else row[prediction_column]
    answer = answer_of(text) if isinstance(text, str) else None
    try:
        truths = truths_of(reward_model)
    except BadCell as problem:
        return GradedRow(
            row=number,
            style=style,
            truth=problem.found,
            kinds=("unusable",),
            answer=answer,
            correct=None if prediction_column is None else False,
        )
    if style == JUDGE_STYLE:
        return GradedRow(row=number, style=style, truth=" | ".join(truths), kinds=(), answer=answer)
    correct = accuracy(text, truths, style) == 1.0 if isinstance(text, str) else False
    return GradedRow(
        row=number,
        style=style,
        truth=" | ".join(truths),
        kinds=tuple(_kinds(truths, style)),
        answer=answer,
        correct=None if prediction_column is None else correct,
    )


def _kinds(truths: Sequence[str], style: str) -> Iterator[str]:
    """What makes the truths of a row worth a look."""
    bare = [last_boxed(truth) or truth for truth in truths]
    if any(accuracy(f"\\boxed{{{truth}}}", truth, style) != 1.0 for truth in bare):
        yield "unmatched"
    if style == "math" and any(map(_has_unit, bare)):
        yield "unit"
    if style in ("math", "choice") and any(_has_letters(truth) for truth in bare):
        yield "letters"
    if any(map(_has_lookalikes, bare)):
        yield "wide"
    if len(truths) > 1:
        yield "several"
    if max(map(len, bare)) > MAX_CHARS:
        yield "long"


def _has_unit(truth: str) -> bool:
    named = split_name(normalised(truth))
    return quantity(named.value if named else truth) is not None


def _has_letters(truth: str) -> bool:
    picked = choice(truth)
    return picked is not None and len(picked.letters) > 1


def _has_lookalikes(truth: str) -> bool:
    """Full-width signs, and the minus and dash signs that read as a hyphen."""
    return any(unicodedata.east_asian_width(sign) == "F" or sign in "\u2212–—" for sign in truth)


@contextmanager
def _lines_to(out: Path | None) -> Iterator[Callable[[GradedRow], object]]:
    """A function that writes a row as a JSON line; the file is complete or is not there."""
    if out is None:
        yield lambda graded: None
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(out) as temporary, temporary.open("w", encoding="utf-8") as file:
        yield lambda graded: file.write(json.dumps(asdict(graded), ensure_ascii=False) + "\n")
