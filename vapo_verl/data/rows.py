"""The row format, and the check of a parquet file against it.

A row is veRL's (`RLHFDataset`) plus `claims`:

    prompt        list of {role, content}; one `<image>` in the content per image
    images        list of {bytes, path} structs, or of paths / addresses; may be absent (text only)
    data_source   name of the data set
    reward_model  {style, ground_truth}
    extra_info    struct or null
    claims        list of {text: string, label: bool}; absent, null or empty: the plain reward
"""

import hashlib
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from vapo_verl.console import progress_bar
from vapo_verl.data.cells import RowRules, row_problems
from vapo_verl.data.claims_column import (
    CLAIMS_PER_IMAGE,
    Claim,
    has_contradiction,
    has_duplicates,
    is_balanced,
    read_claims,
)
from vapo_verl.data.errors import BadCell, FileError, ProblemLog, number_of
from vapo_verl.data.images import (
    ImageHeader,
    check_file,
    check_image,
    check_resize,
    image_options,
    image_source,
    is_remote,
    local_path,
)
from vapo_verl.data.parquet_stream import (
    iter_rows,
    kept_rows,
    open_parquet,
    require_columns,
    writing_parquet,
)

__all__ = [
    "OPTIONAL_COLUMNS",
    "REQUIRED_COLUMNS",
    "CheckReport",
    "Claim",
    "RowRules",
    "check_parquet",
    "num_duplicates",
    "require_rows",
    "write_usable",
]

REQUIRED_COLUMNS = ("prompt", "data_source", "reward_model")
OPTIONAL_COLUMNS = ("images", "extra_info", "claims")
BENCHMARK_COLUMN = "vapo_benchmark_row"
"""Column of validation files that are made from benchmark files: JSON that decides how a response
is graded. No user's file has a column of this name."""
RESERVED_COLUMNS = (
    *("self", "sampling_params", "trajectory", "trace", "agent_name", "session_id", "priority"),
    *("output", "validate", "__rollout_n__", "__do_sample__", "done_sessions"),
    *("prompts", "responses", "response_mask", "attention_mask", "rm_scores", "num_turns"),
    *("rollout_log_probs", "rollout_is_weights", "routed_experts", "metrics", "extra_fields"),
    *("visual_attention", "visual_attention_layers", "token_level_rewards"),
    *("mm_processor_kwargs", "mm_processor_output", "teacher_ids", "teacher_logprobs"),
    *("old_log_probs", "ref_log_prob", "entropy", "advantages", "returns", "values"),
)
"""Names of arguments and of fields of a response, which a column would replace or be passed beside.
veRL overwrites other names that it uses (`uid`, `index`, `input_ids`, ...), so these do no harm."""
_IMPORT_FIRST = "run `python -m vapo_verl.data import-vapo-thinker` or `import-plain` on it"
_SAMPLE_BYTES = 4096
"""Images are compared by their size and this many bytes at either end."""


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
    num_images_decoded: int
    """Opened images whose pixels were all read."""
    images_turned: int
    """Opened images that their EXIF orientation turns; the next two also count opened images."""
    images_transparent: int
    """Shown on white."""
    images_deep: int
    """With more than 8 bits a channel, scaled to 8."""
    images_remote: int
    """At an address."""
    num_claims: int
    num_true_claims: int
    rows_without_images: int
    rows_without_claims: int
    """These get the plain reward."""
    rows_short_of_claims: int
    rows_unbalanced: int
    """Rows whose fraction of true claims is outside BALANCED_SHARE."""
    rows_with_duplicate_claims: int
    rows_with_contradiction: int
    """Rows where the same claim is labelled both true and false."""
    rows_with_shared_index: int
    """Rows with the `extra_info.index` of another row of the file."""
    rows_with_controls: int
    """Rows with control tokens that are encoded as plain text."""
    fingerprints: np.ndarray = field(repr=False, compare=False)
    """uint64 [num_rows]: hash of question and images, see :func:`num_duplicates`."""
    bad_rows: np.ndarray = field(repr=False, compare=False)
    """int64 [bad]: numbers of the rows that cannot be trained on."""
    dropped: dict[str, int] = field(default_factory=dict)
    """Reason -> rows left out for it; empty unless bad rows are left out."""

    @property
    def warnings(self) -> tuple[str, ...]:
        """One phrase for each thing that is allowed but worth a look."""
        counted = (
            (self.rows_without_images, "without images"),
            (self.rows_without_claims, "without claims"),
            (self.rows_short_of_claims, f"with fewer than {self.min_claims} claims"),
            (self.rows_unbalanced, "with unbalanced claims"),
            (self.rows_with_duplicate_claims, "with duplicate claims"),
            (self.rows_with_contradiction, "with a claim labelled both true and false"),
            (self.rows_with_shared_index, "with the extra_info.index of another row"),
            (self.rows_with_controls, "with control tokens, encoded as plain text"),
        )
        images = (
            (self.images_turned, "turned by EXIF"),
            (self.images_transparent, "transparent, shown on white"),
            (self.images_deep, "of over 8 bits a channel, scaled to 8"),
            (self.images_remote, "at an address, not opened"),
        )
        return (
            *(f"{_rows(count)} {what}" for count, what in counted if count),
            *(f"{number_of(count, 'image')} {what}" for count, what in images if count),
        )

    def __str__(self) -> str:
        share = f" ({self.num_true_claims / self.num_claims:.1%} true)" if self.num_claims else ""
        decoded = f", {self.num_images_decoded} decoded"
        if self.num_images_decoded == self.num_images_opened:
            decoded = ""
        counts = (
            f"{self.path}: {_rows(self.num_rows)}, {self.num_images} images"
            f" ({self.num_images_opened} opened{decoded}), {self.num_claims} claims{share}"
        )
        if self.warnings:
            counts = f"{counts}; warnings: {', '.join(self.warnings)}"
        reasons = (f"\n  {count} of them: {reason}" for reason, count in self.dropped.items())
        left_out = f"\n{_rows(len(self.bad_rows))} cannot be used" if len(self.bad_rows) else ""
        return counts + left_out + "".join(reasons)


def check_parquet(
    path: str | Path,
    *,
    key: str = "file",
    rules: RowRules | None = None,
    min_claims: int = CLAIMS_PER_IMAGE,
    max_images_checked: int | None = None,
    decode_images: bool | int = True,
    image_root: Path = Path(),
    shown_per_kind: int = 5,
    show_progress: bool = False,
    skip_bad_rows: bool = False,
) -> CheckReport:
    """Stream a data file and check every row; problems are reported together, not one at a time.

    Memory is one row group, and 24 bytes per row.

    Args:
        key: where the path was given (`data.train_files`), for the messages.
        rules: requirements on the rows beyond their format.
        min_claims: rows with fewer claims are counted (not refused).
        max_images_checked: open at most this many images; None opens all of them. For the others
            only the file's existence is checked.
        decode_images: True reads all pixels; a number reads those of that many images, spread over
            the file; False reads headers, and checks that the file's end is there.
        image_root: where relative paths of images start; a run uses its working directory.
        shown_per_kind: lines per kind of problem in the message; the others are counted.
        show_progress: draw a bar on a terminal.
        skip_bad_rows: count bad rows in the report instead of raising.

    Raises:
        FileError: missing, not parquet, empty, or without a required column.
        RowError: rows that cannot be trained on.
    """
    rules = rules or RowRules()
    with open_parquet(path, key=key) as parquet:
        present = parquet.schema_arrow.names
        require_columns(parquet, REQUIRED_COLUMNS, path=str(path), fix=_IMPORT_FIRST)
        _refuse_reserved(present, key=key, path=str(path))
        num_rows = parquet.metadata.num_rows
        counts = RowCounts(
            rules,
            min_claims,
            max_images_checked,
            _decode_every(decode_images, num_rows),
            image_root,
        )
        log = ProblemLog(shown_per_kind)
        columns = columns_for(rules)
        bar = progress_bar(num_rows, unit="row") if show_progress else nullcontext()
        with bar as progress:
            for number, row in iter_rows(parquet, columns, path=path, key=key):
                for bad_cell in counts.add(number, row):
                    log.add(bad_cell.at(number), str(path))
                if progress is not None:
                    progress.update()
    if not skip_bad_rows:
        log.raise_if_any()
    return counts.report(str(path), log.reasons() if skip_bad_rows else {})


def columns_for(rules: RowRules) -> tuple[str, ...]:
    """Columns that the checks of a row read; absent ones are null."""
    return (*REQUIRED_COLUMNS, *OPTIONAL_COLUMNS, rules.video_column, rules.audio_column)


def write_usable(path: Path, out: Path, report: CheckReport) -> int:
    """Write the rows of `path` that `report` calls usable, with all columns; returns their number.

    The file appears when it is complete. Memory is that of a row group.

    Raises:
        FileError: there is no usable row.
    """
    if len(report.bad_rows) == len(report.fingerprints):
        raise FileError(f"{path}: no row can be used, {out} is not written; see the reasons above")
    with (
        open_parquet(path, key="FILE") as parquet,
        writing_parquet(out, parquet.schema_arrow) as writer,
    ):
        first = 0
        for group in range(parquet.num_row_groups):
            table = parquet.read_row_group(group)
            usable = np.ones(len(table), dtype=bool)
            bad = report.bad_rows
            usable[bad[(bad >= first) & (bad < first + len(table))] - first] = False
            writer.write_table(kept_rows(table, usable))
            first += len(table)
    return first - len(report.bad_rows)


def num_duplicates(first: CheckReport, second: CheckReport) -> int:
    """Rows of `second` with the same question and images as a row of `first`.

    Questions are compared without regard to white space and case. Images are compared by their size
    in bytes and their first and last 4096 bytes, wherever they are stored; unopened images by path.
    """
    return int(np.isin(second.fingerprints, first.fingerprints).sum())


def require_rows(num_rows: int, needed: int, *, key: str, needed_by: str, of: str = "") -> None:
    """Refuse data with too few rows for a batch: veRL would divide by zero, minutes later.

    Args:
        needed_by: key and value of the setting that takes that many rows.
        of: which rows are counted, for instance those left by a filter.

    Raises:
        FileError: with the fix.
    """
    if num_rows >= needed:
        return
    raise FileError(
        f"{key}: {_rows(num_rows)}{of}, but {needed_by} takes {needed} at a time; "
        f"give more rows, or set it to {max(num_rows, 1)} or less"
    )


def require_same_columns(paths: Sequence[Path], *, key: str) -> None:
    """Refuse files that cannot be read as one data set: the types of a column differ.

    Columns that a file lacks, or that hold only nulls, match any type.

    Raises:
        FileError: the first such column, with its two types.
    """
    if len(paths) < 2:
        return
    from datasets import Features  # its types are those that veRL compares

    seen: dict[str, tuple[Path, Any]] = {}
    for path in paths:
        with open_parquet(path, key=key) as parquet:
            features = Features.from_arrow_schema(parquet.schema_arrow)
        for name, kind in features.items():
            if getattr(kind, "dtype", None) == "null":
                continue
            before, other = seen.setdefault(name, (path, kind))
            if other != kind:
                raise FileError(
                    f"{key}: column '{name}' is {other} in {before}, but {kind} in {path}: they "
                    "cannot be read as one data set; give it the same type (for images: import "
                    "with --embed-images)"
                )


def _refuse_reserved(present: Sequence[str], *, key: str, path: str) -> None:
    if taken := [name for name in present if name in RESERVED_COLUMNS]:
        raise FileError(
            f"{key}: {path} has columns {taken}, names of fields that a run makes itself; "
            "rename them, or move them into extra_info"
        )


def _decode_every(decode: bool | int, num_rows: int) -> int:
    """N, if the images of every N-th row are decoded; 0 for none."""
    if decode is True:
        return 1
    return max(num_rows // decode, 1) if decode else 0


def _rows(count: int) -> str:
    return number_of(count, "row")


class RowCounts:
    """Running counts over the rows of one file.

    Args:
        decode_every: N decodes the images of every N-th row; 0: of none.
        image_root: where relative paths start.
    """

    def __init__(
        self,
        rules: RowRules,
        min_claims: int,
        max_images: int | None,
        decode_every: int,
        image_root: Path,
    ) -> None:
        self._rules, self._min_claims = rules, min_claims
        self._max_images, self._decode_every = max_images, decode_every
        self._image_root = image_root
        self._count: Counter[str] = Counter()
        self._fingerprints, self._indices, self._bad = array("Q"), array("q"), array("q")

    def add(self, number: int, row: dict[str, Any]) -> list[BadCell]:
        """Check and count a row; returns its problems, at most one per check."""
        self._count["num_rows"] += 1
        problems = row_problems(row, self._rules)
        broken = {problem.column for problem in problems}
        parts = hashlib.blake2b(digest_size=8)
        if "prompt" not in broken:
            parts.update(_question(row["prompt"]))
        if "images" not in broken and "prompt" not in broken:
            try:
                self._add_images(row, number, parts.update)
            except BadCell as problem:
                problems.append(problem)
        if "claims" not in broken:
            self._add_claims(row)
        if "extra_info" not in broken and "index" in (row["extra_info"] or {}):
            self._indices.append(int(row["extra_info"]["index"]))
        if problems:
            self._bad.append(number)
        self._fingerprints.append(int.from_bytes(parts.digest(), "big"))
        return problems

    def report(self, path: str, dropped: dict[str, int]) -> CheckReport:
        counted = {each.name for each in fields(CheckReport) if each.type in (int, "int")}
        _, times = np.unique(np.array(self._indices, np.int64), return_counts=True)
        self._count["rows_with_shared_index"] = int(times[times > 1].sum())
        counts = {name: self._count[name] for name in counted - {"min_claims"}}
        return CheckReport(
            path=path,
            min_claims=self._min_claims,
            fingerprints=np.array(self._fingerprints, np.uint64),
            bad_rows=np.array(self._bad, np.int64),
            dropped=dropped,
            **counts,
        )

    def _add_images(self, row: dict[str, Any], number: int, mark: Callable[[bytes], None]) -> None:
        sources = [_placed(image_source(each), self._image_root) for each in row["images"] or ()]
        self._count["num_images"] += len(sources)
        self._count["rows_without_images"] += not sources
        controls = self._rules.controls
        self._count["rows_with_controls"] += any(
            controls.find(turn["content"]) for turn in row["prompt"]
        )
        decode = self._decode_every > 0 and number % self._decode_every == 0
        for entry, source in zip(row["images"] or (), sources, strict=True):
            header = self._open(source, decode=decode)
            if header is not None and header.has_exact_size:
                options = image_options(entry, self._rules.limits)
                factor = self._rules.resize_factor
                check_resize(header.width, header.height, factor=factor, **options)
            for part in _ends(source, opened=header is not None):
                mark(part)

    def _open(self, source: bytes | str, *, decode: bool) -> ImageHeader | None:
        """The header of the image; None if it is not opened."""
        self._count["images_remote"] += is_remote(source)
        limit_reached = self._count["num_images_opened"] == self._max_images
        if limit_reached or is_remote(source):
            return None
        self._count["num_images_opened"] += 1
        header = check_image(source, decode=decode)
        self._count["num_images_decoded"] += decode
        self._count["images_turned"] += header.is_turned
        self._count["images_transparent"] += header.is_transparent
        self._count["images_deep"] += header.is_deep
        return header

    def _add_claims(self, row: dict[str, object]) -> None:
        claims = read_claims(row["claims"])
        self._count["num_claims"] += len(claims)
        self._count["num_true_claims"] += sum(claim.label for claim in claims)
        self._count["rows_without_claims"] += not claims
        self._count["rows_short_of_claims"] += 0 < len(claims) < self._min_claims
        self._count["rows_unbalanced"] += not is_balanced(claims)
        self._count["rows_with_duplicate_claims"] += has_duplicates(claims)
        self._count["rows_with_contradiction"] += has_contradiction(claims)


def _question(prompt: Sequence[dict[str, str]]) -> bytes:
    """The text of the user's turns, without regard to white space and case."""
    text = " ".join(turn["content"] for turn in prompt if turn["role"] == "user")
    return " ".join(text.split()).casefold().encode()


def _placed(source: bytes | str, root: Path) -> bytes | str:
    """A relative path of an image put under `root`; anything else as it is."""
    if root == Path() or isinstance(source, bytes) or is_remote(source):
        return source
    return str(root / local_path(source))


def _ends(source: bytes | str, *, opened: bool) -> Iterator[bytes]:
    """The size of an encoded image and its bytes at either end; for an unopened one, its path.

    Raises:
        BadCell: there is no file at the path of an image that was not opened.
    """
    if isinstance(source, bytes):
        yield str(len(source)).encode()
        yield source[:_SAMPLE_BYTES] + source[-_SAMPLE_BYTES:]
    elif not opened:
        if not is_remote(source):
            check_file(source)
        yield source.encode()
    else:
        with local_path(source).open("rb") as file:
            num_bytes = file.seek(0, 2)
            yield str(num_bytes).encode()
            file.seek(0)
            yield file.read(_SAMPLE_BYTES)
            file.seek(max(num_bytes - _SAMPLE_BYTES, 0))
            yield file.read(_SAMPLE_BYTES)
