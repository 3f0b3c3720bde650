"""The row format, and the check of a parquet file against it.

A row is veRL's (`RLHFDataset`) plus `claims`:

    prompt        list of {role, content}; one `<image>` in the content per image
    images        list of {bytes, path} structs, or of paths / addresses; may be absent (text only)
    data_source   name of the data set
    reward_model  {style, ground_truth}
    extra_info    struct or null
    claims        list of {text: string, label: bool}; absent, null or empty: the plain reward
"""

from collections import Counter
from contextlib import nullcontext
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from vapo_verl.data.cells import check_answer, check_images_match, check_prompt, check_source
from vapo_verl.data.claims_column import (
    CLAIMS_PER_IMAGE,
    Claim,
    has_contradiction,
    has_duplicates,
    is_balanced,
    read_claims,
)
from vapo_verl.data.errors import BadCell, ProblemLog
from vapo_verl.data.images import check_image, is_remote
from vapo_verl.data.parquet_stream import iter_rows, open_parquet, require_columns
from vapo_verl.progress import progress_bar

__all__ = ["OPTIONAL_COLUMNS", "REQUIRED_COLUMNS", "CheckReport", "Claim", "check_parquet"]

REQUIRED_COLUMNS = ("prompt", "data_source", "reward_model")
OPTIONAL_COLUMNS = ("images", "extra_info", "claims")
_IMPORT_FIRST = "run `python -m vapo_verl.data import-vapo-thinker` or `import-plain` on it"


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckReport:
    """Counts over the rows of one file that can be trained on; `str()` is one line."""

    path: str
    min_claims: int
    """Rows with claims, but fewer than this, count as short of claims."""
    num_rows: int
    num_images: int
    num_images_opened: int
    """Images opened and found readable; remote ones, and those over the limit, are not opened."""
    images_turned: int
    """Opened images that their EXIF orientation turns; so are the next two: opened ones."""
    images_transparent: int
    """Shown on white."""
    images_deep: int
    """With more than 8 bits a channel, scaled to 8."""
    num_claims: int
    num_true_claims: int
    rows_without_images: int
    rows_without_claims: int
    """These get the plain reward."""
    rows_short_of_claims: int
    rows_unbalanced: int
    """Rows whose share of true claims is outside BALANCED_SHARE."""
    rows_with_duplicate_claims: int
    rows_with_contradiction: int
    """Rows where the same claim is labelled both true and false."""

    @property
    def warnings(self) -> tuple[str, ...]:
        """One phrase for each thing that is allowed, but worth a look."""
        counted = (
            (self.rows_without_images, "without images"),
            (self.rows_without_claims, "without claims"),
            (self.rows_short_of_claims, f"with fewer than {self.min_claims} claims"),
            (self.rows_unbalanced, "with unbalanced claims"),
            (self.rows_with_duplicate_claims, "with duplicate claims"),
            (self.rows_with_contradiction, "with a claim labelled both true and false"),
        )
        images = (
            (self.images_turned, "turned by EXIF"),
            (self.images_transparent, "transparent, shown on white"),
            (self.images_deep, "of over 8 bits a channel, scaled to 8"),
        )
        return (
            *(f"{_rows(count)} {what}" for count, what in counted if count),
            *(f"{_counted(count, 'image')} {what}" for count, what in images if count),
        )

    def __str__(self) -> str:
        share = f" ({self.num_true_claims / self.num_claims:.1%} true)" if self.num_claims else ""
        counts = (
            f"{self.path}: {_rows(self.num_rows)}, {self.num_images} images"
            f" ({self.num_images_opened} opened), {self.num_claims} claims{share}"
        )
        return f"{counts}; warnings: {', '.join(self.warnings)}" if self.warnings else counts


def check_parquet(
    path: str | Path,
    *,
    key: str = "file",
    min_claims: int = CLAIMS_PER_IMAGE,
    max_images_checked: int | None = None,
    decode_images: bool = False,
    shown_per_kind: int = 5,
    show_progress: bool = False,
) -> CheckReport:
    """Stream a data file and check every row; problems are reported together, not one at a time.

    Args:
        key: where the path was given (`data.train_files`), for the messages.
        min_claims: rows with fewer claims are counted (not refused).
        max_images_checked: open at most this many images; None opens all of them.
        decode_images: read all pixels: slower, and finds cut-off JPEG data too.
        shown_per_kind: lines per kind of problem in the message; the others are counted.
        show_progress: draw a bar on a terminal.

    Raises:
        FileError: missing, not parquet, empty, or without a required column.
        RowError: rows that cannot be trained on.
    """
    tally = RowTally(min_claims, max_images_checked, decode_images)
    log = ProblemLog(shown_per_kind)
    columns = (*REQUIRED_COLUMNS, *OPTIONAL_COLUMNS)
    with open_parquet(path, key=key) as parquet:
        require_columns(parquet, REQUIRED_COLUMNS, path=str(path), fix=_IMPORT_FIRST)
        num_rows = parquet.metadata.num_rows
        bar = progress_bar(num_rows, unit="row") if show_progress else nullcontext()
        with bar as progress:
            for number, row in iter_rows(parquet, columns, path=path, key=key):
                for bad_cell in tally.add(row):
                    log.add(bad_cell.at(number), str(path))
                if progress is not None:
                    progress.update()
    log.raise_if_any()
    return tally.report(str(path))


def _rows(count: int) -> str:
    return _counted(count, "row")


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


class RowTally:
    """Running counts over the rows of one file; constant memory."""

    def __init__(self, min_claims: int, max_images: int | None, decode: bool):
        self._min_claims, self._max_images, self._decode = min_claims, max_images, decode
        self._count: Counter[str] = Counter()

    def add(self, row: dict[str, object]) -> list[BadCell]:
        """Check and count a row; returns its problems, at most one per check."""
        self._count["num_rows"] += 1
        problems = []
        checks = (self._add_images, self._check_answer, self._check_source, self._add_claims)
        for check in checks:
            try:
                check(row)
            except BadCell as problem:
                problems.append(problem)
        return problems

    def report(self, path: str) -> CheckReport:
        counted = {field.name for field in fields(CheckReport)} - {"path", "min_claims"}
        counts = {name: self._count[name] for name in counted}
        return CheckReport(path=path, min_claims=self._min_claims, **counts)

    def _check_answer(self, row: dict[str, object]) -> None:
        check_answer(row["reward_model"])

    def _check_source(self, row: dict[str, object]) -> None:
        check_source(row["data_source"], row["extra_info"])

    def _add_images(self, row: dict[str, Any]) -> None:
        check_prompt(row["prompt"])
        sources = check_images_match(row["prompt"], row["images"])
        self._count["num_images"] += len(sources)
        self._count["rows_without_images"] += not sources
        for source in sources:
            self._open(source)

    def _open(self, source: bytes | str) -> None:
        limit_reached = self._count["num_images_opened"] == self._max_images
        if limit_reached or is_remote(source):
            return
        self._count["num_images_opened"] += 1
        header = check_image(source, decode=self._decode)
        self._count["images_turned"] += header.is_turned
        self._count["images_transparent"] += header.is_transparent
        self._count["images_deep"] += header.is_deep

    def _add_claims(self, row: dict[str, object]) -> None:
        claims = read_claims(row["claims"])
        self._count["num_claims"] += len(claims)
        self._count["num_true_claims"] += sum(claim.label for claim in claims)
        self._count["rows_without_claims"] += not claims
        self._count["rows_short_of_claims"] += 0 < len(claims) < self._min_claims
        self._count["rows_unbalanced"] += not is_balanced(claims)
        self._count["rows_with_duplicate_claims"] += has_duplicates(claims)
        self._count["rows_with_contradiction"] += has_contradiction(claims)
