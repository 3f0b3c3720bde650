"""Benchmark files among the validation files of a run.

veRL reads parquet. Each TSV of `data.val_files` is written to the run folder as a parquet file of
the row format. `data_source` is the benchmark's name, and one more column, `BENCHMARK_COLUMN`, has
the row's JSON without images. The agent loop grades responses to such rows by the benchmark's rule.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from vapo_verl.data.images import image_source
from vapo_verl.data.rows import BENCHMARK_COLUMN
from vapo_verl.evaluation.benchmarks import BenchmarkError, BenchmarkRow, Grade, Rule
from vapo_verl.evaluation.benchmarks.rules import find_rule
from vapo_verl.files import atomic_write

FOLDER = "benchmarks"
"""Folder of the parquet files, in the run folder."""


def is_benchmark_file(path: str | Path) -> bool:
    """Whether a validation file is a TSV of VLMEvalKit rather than parquet."""
    return Path(path).suffix == ".tsv"


def validation_files(config: DictConfig) -> list[str]:
    """The validation files of a run as veRL reads them; see :func:`write_validation_files`."""
    files = config.data.val_files
    listed = [files] if isinstance(files, str) else list(files)
    if not any(map(is_benchmark_file, listed)):
        return listed
    from vapo_verl.evaluation.benchmarks.benchmark_command import suffix_text, trained_suffix

    suffix = suffix_text(None, "avg8", trained_suffix(config))
    return write_validation_files(listed, Path(config.trainer.default_local_dir), suffix)


def write_validation_files(files: Sequence[str], run_dir: Path, suffix: str) -> list[str]:
    """The validation files of a run, with each TSV replaced by a parquet file made from it.

    Images of all TSV files are embedded, or written beside the parquet file if the other files hold
    paths: veRL joins all files into one table.

    Args:
        files: `data.val_files`.
        suffix: text after every question, the same as in the training rows.

    Raises:
        DataError: a bad file, with rows, columns and fixes.
        BenchmarkError: two TSV files of one name.
    """
    names = [Path(file).stem for file in files if is_benchmark_file(file)]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise BenchmarkError(
            f"data.val_files: two files are called {twice[0]}.tsv, which names the metrics; "
            "rename one"
        )
    embed = _images_are_embedded([file for file in files if not is_benchmark_file(file)])
    return [
        str(_write(Path(file), run_dir / FOLDER, suffix, embed=embed))
        if is_benchmark_file(file)
        else file
        for file in files
    ]


def grade_cell(cell: str, text: str) -> Grade:
    """Grade a response to the row of a :data:`BENCHMARK_COLUMN` cell by the benchmark's rule."""
    stored = json.loads(cell)
    row = BenchmarkRow(**stored["row"])
    return find_rule(stored["rule"]).grade(row, text)


def _write(path: Path, folder: Path, suffix: str, *, embed: bool) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from vapo_verl.data.parquet_stream import row_schema
    from vapo_verl.evaluation.benchmarks.benchmark_command import read_with_rule

    rows, rule = read_with_rule(path)
    if rule.judge_only:
        raise BenchmarkError(
            f"data.val_files: {path} is graded by a judge alone, which no run asks; leave it out, "
            "and run `python -m vapo_verl.evaluation benchmark --judge URL` on a checkpoint"
        )
    schema = row_schema(embedded_images=embed)
    for name in ("extra_info", "claims"):  # null fits any type that other files have
        schema = schema.set(schema.get_field_index(name), pa.field(name, pa.null()))
    schema = schema.append(pa.field(BENCHMARK_COLUMN, pa.string()))
    folder.mkdir(parents=True, exist_ok=True)
    images = _Images(folder / f"{path.stem}_images", embed=embed)
    records = [_record(path.stem, row, rule, suffix, images) for row in rows]
    out = folder / f"{path.stem}.parquet"
    with atomic_write(out) as temporary:
        pq.write_table(pa.Table.from_pylist(records, schema), temporary, row_group_size=64)
    return out


def _record(
    name: str, row: BenchmarkRow, rule: Rule, suffix: str, images: "_Images"
) -> dict[str, Any]:
    prompt = rule.prompt(row)
    stored = asdict(row)
    for field in ("images", "messages"):
        del stored[field]
    return {
        "prompt": [{"role": "user", "content": prompt.text + suffix}],
        "images": [images.entry(image_source(each)) for each in prompt.images],
        "data_source": name,
        "reward_model": {"style": "rule", "ground_truth": row.answer},
        BENCHMARK_COLUMN: json.dumps({"rule": rule.name, "row": stored}, ensure_ascii=False),
    }


class _Images:
    """Entries of the `images` column."""

    def __init__(self, folder: Path, *, embed: bool) -> None:
        self._folder, self._embed = folder, embed
        self._paths: dict[bytes, str] = {}

    def entry(self, source: bytes | str) -> Mapping[str, Any] | str:
        """Entry of an encoded image, or of one at a path."""
        if self._embed:
            data = Path(source).read_bytes() if isinstance(source, str) else source
            return {"bytes": data, "path": None}
        if isinstance(source, str):
            return str(Path(source).absolute())
        if source not in self._paths:
            self._folder.mkdir(exist_ok=True)
            path = self._folder / f"{len(self._paths)}.image"
            with atomic_write(path) as temporary:
                temporary.write_bytes(source)
            self._paths[source] = str(path.absolute())
        return self._paths[source]


def _images_are_embedded(files: Sequence[str]) -> bool:
    """Whether parquet files hold encoded images and not paths; True without any file."""
    import pyarrow as pa

    from vapo_verl.data.parquet_stream import open_parquet

    for file in files:
        with open_parquet(Path(file), key="data.val_files") as parquet:
            schema = parquet.schema_arrow
        place = schema.get_field_index("images")
        if place >= 0 and pa.types.is_list(schema.field(place).type):
            return not pa.types.is_string(schema.field(place).type.value_type)
    return True
