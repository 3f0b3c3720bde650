"""Benchmarks: their rows, and rules that say whether an answer to a row is correct.

A rule is a set of pure functions of a row and of a model's answer. Rules need no engine, judge or
network, so answers of any model, stored by any tool, are graded alike.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from vapo_verl.data.errors import DataError

if TYPE_CHECKING:
    from vapo_verl.data.images import ImageEntry

IMAGES = ("own", "blank", "blurred", "swapped")
"""Images shown with a row: its own; their mean colour; blurred ones; those of another row."""


class BenchmarkError(DataError):
    """A name, an option or a result folder that a user has to correct; the message says how."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchmarkRow:
    """One question of a benchmark, with its images still encoded."""

    number: int
    """Row of its file, from 0, not counting headers."""
    index: int | str
    """The file's own name of the row, unique in it; int if all of the file's are integers."""
    question: str
    answer: str
    """Ground truth as in the file: a letter, a list, a number, LaTeX."""
    alternatives: tuple[str, ...] = ()
    """Other ground truths of a row of our parquet format; any of them is correct."""
    images: "tuple[ImageEntry, ...]" = ()
    """Encoded images or their paths, as :class:`vapo_verl.data.images.StoredImage` takes."""
    choices: Mapping[str, str] = field(default_factory=dict)
    """Letter -> option text, in order; of columns `A` .. `Z`, or of a `choices` list."""
    hint: str = ""
    category: str = ""
    l2_category: str = ""
    split: str = ""
    messages: tuple[Mapping[str, str], ...] = ()
    """The chat of a row of our parquet format, asked unchanged; empty for a TSV row."""
    style: str = ""
    """`reward_model.style` of a row of our parquet format."""
    extra: Mapping[str, str] = field(default_factory=dict)
    """All other columns that are not blank, as text: `ID`, `key`, `question_type`, ..."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Grade:
    """A rule's result for one answer."""

    correct: bool | None
    """None: no answer can be read from the text; counted incorrect in every score."""
    extracted: str | None
    """The answer that was compared; None where there is none."""
    rule: str
    """Name of the rule."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """A user turn: text with one `<image>` per image, in the order in which they are shown."""

    text: str
    images: "tuple[ImageEntry, ...]"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """A benchmark's protocol. All functions are pure and need no engine."""

    name: str
    grade: Callable[[BenchmarkRow, str], Grade]
    """(row, the model's answer) -> grade. Raises BadCell for a row that the user has to fix."""
    prompt: Callable[[BenchmarkRow], Prompt]
    """The question as VLMEvalKit asks it, without suffix."""
    scores: Callable[[Sequence[BenchmarkRow], Sequence[Grade]], dict[str, float]]
    """The benchmark's own scores beside accuracy, name -> fraction (0 .. 1); nan without rows."""
    cluster: Callable[[BenchmarkRow], str]
    """Rows of equal keys depend on each other (image, figure, chain): resample them together."""
    needs: tuple[str, ...] = ()
    """Columns that the rule reads in addition to index, question, answer and prediction."""
    judge_only: bool = False
    """No rule can decide: every grade is None until a judge decides."""
    skip_without_image: bool = False
    """The protocol leaves out rows without an image; elsewhere such a row is an error."""


def rate(flags: Sequence[bool]) -> float:
    """Fraction of true flags; nan without flags."""
    return sum(flags) / len(flags) if flags else math.nan
