"""The rows that all runs share."""

from __future__ import annotations

from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.study.arms import Plan
from benchmarks.study.workspace import OTHER_IMAGE, TEST, Workspace
from vapo_verl.digits.build import DigitsConfig, write_dataset

NUM_VALIDATION_ROWS = 256
_SEED = 0
PARTS = DigitsConfig(grids=("3x3",), questions="parts")
"""Questions in parts, with claims of all kinds."""
LINES = DigitsConfig(grids=("3x3",), questions="lines", claim_kinds=("identity", "color"))
"""The world `forgetful_digits`."""


def make_data(work: Workspace, plan: Plan, world: DigitsConfig = PARTS) -> None:
    """Write the rows of a world in the plan's sizes, and the test rows with each other's images."""
    sizes = {"train": plan.num_train_rows, "test": plan.num_test_rows}
    write_dataset(work.data, replace(world, val=NUM_VALIDATION_ROWS, seed=_SEED, **sizes))
    if not (work.data / OTHER_IMAGE).exists():
        rows = pq.read_table(work.data / TEST)
        pq.write_table(with_other_images(rows), work.data / OTHER_IMAGE)


def with_other_images(rows: pa.Table) -> pa.Table:
    """Every row with the next row's image, a control for text alone."""
    places = [*range(1, rows.num_rows), 0]
    images = rows.column("images").take(pa.array(places))
    return rows.set_column(rows.schema.get_field_index("images"), rows.field("images"), images)
