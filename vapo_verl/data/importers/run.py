"""Runs an import: source files through a reader into our row format, a few rows at a time."""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Any

from vapo_verl.data.errors import BadCell, FileError
from vapo_verl.data.importers.atomic_parquet import atomic_parquet
from vapo_verl.data.importers.build_row import build_row
from vapo_verl.data.importers.options import ImportOptions, ImportReport
from vapo_verl.data.importers.sources import ReaderFactory, Source, iter_sources, open_source
from vapo_verl.data.problem_log import ProblemLog
from vapo_verl.data.schema import row_schema


def import_rows(
    paths: Sequence[Path], make_reader: ReaderFactory, options: ImportOptions
) -> ImportReport:
    """Write the rows of all source files to `options.out` (and `options.val_out`).

    `extra_info.index` numbers the rows of all sources together, bad ones included, so that a row
    keeps its index whatever is skipped or held out.

    Raises:
        FileError: a source that is missing or lacks columns; or nothing to write.
        RowError: rows that cannot be used, unless `options.skip_bad_rows`. Nothing is written.
    """
    if options.out.resolve() in {path.resolve() for path in paths}:
        raise FileError(f"--out: {options.out} is one of the sources; give another path")
    sources = [open_source(path, make_reader) for path in paths]
    embed = options.embed_images or not all(source.holds_paths for source in sources)
    count: Counter[str] = Counter()
    _write(_converted(sources, embed, options, count), embed, options, count)
    return ImportReport(
        out=options.out,
        num_rows=count["train"],
        num_val_rows=count["val"],
        num_claims=count["claims"],
        num_blank_claims=count["blank_claims"],
        num_bad_rows=count["bad_rows"],
    )


def _converted(
    sources: Sequence[Source], embed: bool, options: ImportOptions, count: Counter[str]
) -> Iterator[dict[str, object]]:
    """Yield the usable rows; after the last one, raise RowError for the others if asked to."""
    log = ProblemLog()
    raw_rows = islice(iter_sources(sources), options.limit)
    for index, (source, number, raw) in enumerate(raw_rows):
        place = f"{source.path.stem}:{number}"
        try:
            row = source.reader.read(raw)
            built = build_row(row, index=index, place=place, embed=embed, options=options)
        except BadCell as bad_cell:
            log.add(bad_cell.at(number), str(source.path))
            count["bad_rows"] += 1
            continue
        count.update(claims=len(row.claims), blank_claims=row.num_blank_claims)
        yield built
    if not options.skip_bad_rows:
        log.raise_if_any()


def _write(
    rows: Iterator[dict[str, Any]], embed: bool, options: ImportOptions, count: Counter[str]
) -> None:
    schema = row_schema(embedded_images=embed)
    outputs = {"train": options.out}
    if options.val_out is not None:
        outputs["val"] = options.val_out
    with ExitStack() as stack:
        files = {
            side: stack.enter_context(atomic_parquet(outputs[side], schema)) for side in outputs
        }
        for row in rows:
            side = "val" if "val" in files and row["extra_info"]["split"] == "val" else "train"
            files[side].add(row)
            count[side] += 1
        if empty := [str(outputs[side]) for side in outputs if not count[side]]:
            raise FileError(f"no rows for {empty}; check the sources, --limit and --val-fraction")
