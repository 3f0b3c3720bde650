import random

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vapo_verl.data.parquet_stream import iter_rows, kept_rows, open_parquet


def test_memory_is_bounded_by_a_row_group_not_by_the_file(tmp_path):
    path, noise = tmp_path / "a.parquet", random.Random(0)
    with pq.ParquetWriter(path, pa.schema([("images", pa.binary())])) as writer:
        for _ in range(20):  # 20 groups of 1 MiB
            group = [{"images": noise.randbytes(1 << 17)} for _ in range(8)]
            writer.write_table(pa.Table.from_pylist(group, writer.schema))
    before, most, num_rows = pa.total_allocated_bytes(), 0, 0
    with open_parquet(path, key="FILE") as parquet:
        for number, row in iter_rows(parquet, ["images", "absent"], path=path, key="FILE"):
            assert number == num_rows and row["absent"] is None
            num_rows += 1
            most = max(most, pa.total_allocated_bytes() - before)
    assert num_rows == 160
    assert most < 10 * 2**20


@pytest.mark.parametrize("kept", ["", "0", "1", "000", "111", "0110", "1001", "10101"])
def test_rows_are_kept_by_a_mask(kept):
    table = pa.table({"a": pa.array(range(len(kept)), pa.int64())})
    mask = np.array([each == "1" for each in kept], bool)
    assert kept_rows(table, mask)["a"].to_pylist() == np.flatnonzero(mask).tolist()
