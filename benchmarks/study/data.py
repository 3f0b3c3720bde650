"""The rows that all runs share."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.study.arms import Plan
from benchmarks.study.workspace import OTHER_IMAGE, TEST, Workspace
from vapo_verl.digits.build import DigitsConfig, write_dataset

NUM_VALIDATION_ROWS = 256
_SEED = 0


def make_data(work: Workspace, plan: Plan) -> None:
    """Rows of the questions in parts, and the test rows with each other's images."""
    write_dataset(
        work.data,
        DigitsConfig(
            train=plan.num_train_rows,
            val=NUM_VALIDATION_ROWS,
            test=plan.num_test_rows,
            seed=_SEED,
            grids=("3x3",),
            questions="parts",
        ),
    )
    if not (work.data / OTHER_IMAGE).exists():
        rows = pq.read_table(work.data / TEST)
        pq.write_table(with_other_images(rows), work.data / OTHER_IMAGE)


def with_other_images(rows: pa.Table) -> pa.Table:
    """Every row with the next row's image, a control for text alone."""
    places = [*range(1, rows.num_rows), 0]
    images = rows.column("images").take(pa.array(places))
    return rows.set_column(rows.schema.get_field_index("images"), rows.field("images"), images)
