"""Errors in a data file or in its rows; the messages name the place and the fix."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from vapo_verl.files import obstacle

_SHOWN_CHARACTERS = 60
_REASON_CHARACTERS = 200


class DataError(ValueError):
    """A data file that a user has to fix; the message names the file and the fix."""


class FileError(DataError):
    """A file that is missing, is not parquet, is empty, or lacks columns."""


def require_other_file(out: Path, source: Path, option: str = "--out") -> None:
    """Refuse an output that would replace its input.

    Raises:
        FileError: both are one file, also by another name or through a link.
    """
    is_same = out.resolve() == source.resolve()
    if is_same or (out.exists() and source.exists() and out.samefile(source)):
        raise FileError(f"{option}: {out} is the input {source}; give another path")


def require_output(out: Path, option: str = "--out", *, suffix: str = "") -> None:
    """Refuse a path at which no file can be written; for a check before the work.

    Raises:
        FileError: a name without the suffix, a folder, or a place where no folder can be made.
    """
    if suffix and out.suffix != suffix:
        raise FileError(f"{option}: {out} does not end in {suffix}; veRL goes by that")
    if out.is_dir():
        raise FileError(f"{option}: {out} is a folder; give the path of a file in it")
    if reason := obstacle(out.parent):
        raise FileError(f"{option}: {out} cannot be written, {reason}; give another path")


class RowError(DataError):
    """Rows that cannot be trained on; the message holds one line per shown problem."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RowProblem:
    """One thing wrong with one row."""

    row: int
    """Number of the row in its file, from 0; lines count from 1."""
    column: str
    """Empty if the problem concerns the whole row."""
    found: str
    """What was found, with the value shortened."""
    fix: str
    """What to do. The same for all rows of a kind: problems are grouped by (column, fix)."""
    unit: str = "row"
    """`line` in a text file."""

    def describe(self, path: str) -> str:
        where = ", ".join(filter(None, (f"{self.unit} {self.row}", _named(self.column))))
        return f"{path} {where}: {self.found}; {self.fix}"


class BadCell(ValueError):
    """Raised inside a check of one cell; the caller, who knows the row, makes it a RowProblem."""

    def __init__(self, column: str, found: str, fix: str):
        super().__init__(": ".join(filter(None, (_named(column), f"{found}; {fix}"))))
        self.column, self.found, self.fix = column, found, fix

    def at(self, row: int, unit: str = "row") -> RowProblem:
        return RowProblem(row=row, column=self.column, found=self.found, fix=self.fix, unit=unit)


def _named(column: str) -> str:
    return f"column '{column}'" if column else ""


def shown(value: object) -> str:
    """`value` and its type for a message, cut to one short line: `'WRONG' (str)`.

    Bytes are shown as their length only.
    """
    if value is None:
        return "null"
    if isinstance(value, bytes):
        return f"{len(value)} bytes"
    if isinstance(value, str):  # it may be very long
        value = value[: _SHOWN_CHARACTERS + 1]
    text = repr(value)
    if len(text) > _SHOWN_CHARACTERS:
        text = text[:_SHOWN_CHARACTERS] + "..."
    return f"{text} ({type(value).__name__})"


def number_of(count: int, noun: str) -> str:
    """`1 row`, `2 rows`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def shortened(text: str) -> str:
    """A message of another library as one line of bounded length."""
    line = " ".join(text.split())
    return line if len(line) <= _REASON_CHARACTERS else line[:_REASON_CHARACTERS] + "..."


class ProblemLog:
    """Keeps the first few problems of each kind and counts the rest, in constant memory.

    A kind is a (column, fix) pair, so one broken export shows as a few lines and a count, not as
    thirty thousand lines, and does not hide a different problem further down the file.
    """

    def __init__(self, shown_per_kind: int = 5):
        self._shown_per_kind = shown_per_kind
        self._count_by_kind: Counter[tuple[str, str]] = Counter()
        self._lines_by_kind: dict[tuple[str, str], list[str]] = {}

    def add(self, problem: RowProblem, path: str) -> None:
        kind = (problem.column, problem.fix)
        self._count_by_kind[kind] += 1
        lines = self._lines_by_kind.setdefault(kind, [])
        if len(lines) < self._shown_per_kind:
            lines.append(problem.describe(path))

    def raise_if_any(self) -> None:
        """Raise RowError with the lines of every kind, in the order the kinds were met."""
        lines = [line for kind in self._lines_by_kind for line in self._describe(kind)]
        if lines:
            raise RowError("\n".join(lines))

    def reasons(self) -> dict[str, int]:
        """Reason -> problems of that kind."""
        counts = self._count_by_kind.items()
        return {_kind(column, fix): count for (column, fix), count in counts}

    def _describe(self, kind: tuple[str, str]) -> list[str]:
        lines = self._lines_by_kind[kind]
        num_hidden = self._count_by_kind[kind] - len(lines)
        if not num_hidden:
            return lines
        return [*lines, f"  ... and {num_hidden} more like these ({_kind(*kind)})"]


def _kind(column: str, fix: str) -> str:
    return ": ".join(filter(None, (_named(column), fix)))
