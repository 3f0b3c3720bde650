"""Check the data files of a run: each row, the files together, and that they fill a batch.

veRL reads the files when all processes of a run have started, and an image when it is needed. The
problems found here would end the run minutes or hours later.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from vapo_verl.console import progress_bar
from vapo_verl.data.cells import RowRules
from vapo_verl.data.control_tokens import load_processor, model_folder, text_words
from vapo_verl.data.errors import FileError, ProblemLog, RowProblem
from vapo_verl.data.parquet_stream import iter_rows, open_parquet
from vapo_verl.data.rows import (
    CheckReport,
    check_parquet,
    num_duplicates,
    require_rows,
    require_same_columns,
)

NUM_DECODED = 64
"""Images of each file that are decoded before a run; of all others only the header and the end are
read. `python -m vapo_verl.data check` decodes all."""
KEYS = ("train_files", "val_files")
CHAT_TEMPLATE_KEY = "actor_rollout_ref.model.custom_chat_template"
_CHAIN = "::"
"""Joins two file systems in a path, as fsspec and with it `datasets` reads one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunData:
    """Requirements of a run on its files, from `data.*` and the model."""

    files: Mapping[str, Sequence[Path]]
    """By key: `train_files`, `val_files`."""
    needed: Mapping[str, tuple[int, str]]
    """By key: rows that a batch takes, and the key and value that set this number."""
    max_samples: Mapping[str, int]
    """By key: rows used at most; -1 uses all."""
    rules: RowRules
    min_claims: int
    model: str
    """Folder or hub name: prompts are measured where its processor is on this machine."""
    max_prompt_length: int
    filters_long: bool
    """Longer prompts are left out (`data.filter_overlong_prompts`)."""
    limits: Mapping[str, int | None] = field(default_factory=dict)
    """`min_pixels` and `max_pixels`."""
    chat_template: str | None = None
    """:data:`CHAT_TEMPLATE_KEY`; None is the model's own."""
    template_options: Mapping[str, Any] = field(default_factory=dict)
    processor_options: Mapping[str, Any] = field(default_factory=dict)
    """If there are any, veRL measures the lengths."""
    plain_think_tokens: str = "auto"
    """`vapo.data.plain_think_tokens`"""
    subset_seed: int | None = None
    """Draws the `max_samples` rows; None takes the first ones."""
    draws_subset: bool = False


def check_run_files(data: RunData) -> Iterator[str]:
    """Check all files of a run; yields a line about each, and one about rows in both sets.

    Raises:
        FileError, RowError: the first kind of problem found.
    """
    reports: dict[str, list[CheckReport]] = {}
    for key in KEYS:
        reports[key] = [_report(data, key, path) for path in data.files[key]]
        require_same_columns(data.files[key], key=f"data.{key}")
        yield from map(str, reports[key])
        _require_batch(data, key, sum(report.num_rows for report in reports[key]))
    yield from _in_both(reports["train_files"], reports["val_files"])
    yield from _check_lengths(data)


def _report(data: RunData, key: str, path: Path) -> CheckReport:
    require_loadable(path, f"data.{key}")
    return check_parquet(
        path,
        key=f"data.{key}",
        rules=data.rules,
        min_claims=data.min_claims,
        decode_images=NUM_DECODED,
        show_progress=True,
    )


def _require_batch(data: RunData, key: str, num_rows: int, of: str = "") -> None:
    needed, needed_by = data.needed[key]
    limit = data.max_samples[key]
    if 0 < limit < num_rows:
        num_rows, of = limit, f" under data.{key.removesuffix('_files')}_max_samples={limit}{of}"
    require_rows(num_rows, needed, key=f"data.{key}", needed_by=needed_by, of=of)


def _in_both(train: Sequence[CheckReport], val: Sequence[CheckReport]) -> Iterator[str]:
    for one, other in itertools.product(train, val):
        if both := num_duplicates(one, other):
            yield (
                f"warning: {both} of {other.num_rows} rows of {other.path} have question and "
                f"images of a row of {one.path}: validation says less than it seems to; leave "
                "them out of one of the files"
            )


def _check_lengths(data: RunData) -> Iterator[str]:
    """Check that enough rows remain, or, if none are left out, that all fit."""
    folder = model_folder(data.model)
    if folder is None:
        yield f"prompts are not measured: {data.model} is not on this machine yet"
        return
    from jinja2 import TemplateError

    from vapo_verl.data.prompt_length import PromptMeter, is_supported, long_rows  # imports torch

    processor = load_processor(folder, data.chat_template)
    if not is_supported(processor) or data.processor_options:
        return
    controls = text_words(
        processor.tokenizer,
        control_tokens="refuse" if data.rules.refuse_controls else "text",
        plain_think_tokens=data.plain_think_tokens,
        processor=processor,
    )
    meter = PromptMeter(
        processor, template_options=data.template_options, limits=data.limits, controls=controls
    )
    try:
        for key in KEYS:
            if data.filters_long:
                rows = (row for _, _, row in _rows_in_use(data, key))
                _require_fitting(data, key, (not n for n in long_rows(rows, meter, _limit(data))))
            else:
                _refuse_long(data, key, lambda row: next(long_rows([row], meter, _limit(data))))
    except TemplateError as error:
        of = data.model if data.chat_template is None else CHAT_TEMPLATE_KEY
        raise ValueError(f"{of}: the chat template fails ({error}); correct it") from error


def _limit(data: RunData) -> int:
    return data.max_prompt_length


def _require_fitting(data: RunData, key: str, fits: Iterator[bool]) -> None:
    """Count rows until there are enough for a batch."""
    needed, needed_by = data.needed[key]
    fitting = 0
    for fit in fits:
        fitting += fit
        if fitting >= needed:
            return
    of = f" of at most data.max_prompt_length={data.max_prompt_length} tokens"
    require_rows(fitting, needed, key=f"data.{key}", needed_by=needed_by, of=of)


def _refuse_long(data: RunData, key: str, excess: Callable[[Mapping[str, Any]], int]) -> None:
    """Refuse rows with an `excess`: the length of a prompt that is too long, else 0."""
    log = ProblemLog()
    fix = "raise it, or set data.filter_overlong_prompts=true to leave such rows out"
    total = sum(_num_rows(path, key) for path in data.files[key])
    size = data.max_samples[key]
    with progress_bar(min(size, total) if size > 0 else total, unit="row") as progress:
        for path, number, row in _rows_in_use(data, key):
            progress.update()
            if length := excess(row):
                found = f"{length} tokens, data.max_prompt_length={data.max_prompt_length}"
                problem = RowProblem(row=number, column="prompt", found=found, fix=fix)
                log.add(problem, str(path))
    log.raise_if_any()


def _num_rows(path: Path, key: str) -> int:
    with open_parquet(path, key=f"data.{key}") as parquet:
        return int(parquet.metadata.num_rows)


def _rows_in_use(data: RunData, key: str) -> Iterator[tuple[Path, int, Mapping[str, Any]]]:
    """File, row number in it, prompt and images of the rows that veRL keeps before it looks at
    their lengths."""
    total = sum(_num_rows(path, key) for path in data.files[key])
    size = data.max_samples[key]
    used = _subset(total, size, data) if 0 < size < total else None
    before = 0
    for path in data.files[key]:
        with open_parquet(path, key=f"data.{key}") as parquet:
            columns = ("prompt", "images")
            for number, row in iter_rows(parquet, columns, path=path, key=f"data.{key}"):
                if used is None or before + number in used:
                    yield path, number, row
            before += parquet.metadata.num_rows


def _subset(total: int, size: int, data: RunData) -> frozenset[int]:
    """As RLHFDataset draws it."""
    if not data.draws_subset:
        return frozenset(range(size))
    seeds = () if data.subset_seed is None else (data.subset_seed,)
    return frozenset(np.random.default_rng(*seeds).choice(total, size=size, replace=False).tolist())


def require_loadable(path: Path, key: str) -> None:
    """Refuse a path that `datasets` cannot read, or one below which it is to read a file.

    Raises:
        FileError: the path has `::`, which no escaping hides.
    """
    if _CHAIN in str(path):
        raise FileError(
            f"{key}={path}: no data set can be read from a path with '{_CHAIN}'; rename the "
            "folder or the file"
        )


def files_of(value: object, key: str) -> list[Path]:
    """The paths of `data.train_files` or `data.val_files`.

    Raises:
        FileError: none is given, or one is no path.
    """
    names = [value] if isinstance(value, str) else value
    if not names or not isinstance(names, Sequence):
        raise FileError(f"data.{key}={value}: give a parquet file, or a list of them")
    if wrong := [name for name in names if not isinstance(name, str) or not name.strip()]:
        raise FileError(f"data.{key} holds {wrong[0]!r}; give paths of parquet files")
    return [Path(name).expanduser() for name in names]
