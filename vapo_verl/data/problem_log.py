"""Collects the problems of a file while it streams by, to report them together in one error."""

from collections import Counter

from vapo_verl.data.errors import RowError, RowProblem


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

    def _describe(self, kind: tuple[str, str]) -> list[str]:
        lines = self._lines_by_kind[kind]
        num_hidden = self._count_by_kind[kind] - len(lines)
        if not num_hidden:
            return lines
        return [*lines, f"  ... and {num_hidden} more like these (column '{kind[0]}': {kind[1]})"]
