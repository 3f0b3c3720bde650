"""Small files of the shapes the data code meets."""

import io
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

IMAGE_TYPE = pa.list_(pa.struct([("bytes", pa.binary()), ("path", pa.string())]))


def _png(color: str = "red", size: tuple[int, int] = (56, 56)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, color).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="session")
def png() -> Callable[..., bytes]:
    """Encoded one-colour image: png(color, (width, height))."""
    return _png


@pytest.fixture
def row() -> Callable[..., dict]:
    """A good row of our format; keyword arguments replace its cells."""

    def make(**cells) -> dict:
        return {
            "prompt": [{"role": "user", "content": "<image>What colour is it?"}],
            "images": [{"bytes": _png(), "path": None}],
            "data_source": "colours",
            "reward_model": {"style": "rule", "ground_truth": "red"},
            "extra_info": {"split": "train", "index": 0},
            "claims": [{"text": "It is red.", "label": True}, {"text": "Blue.", "label": False}],
        } | cells

    return make


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Write rows to a parquet file in tmp_path; the types are inferred unless a schema is given."""

    def write_rows(rows: list[dict], name: str = "train.parquet", schema=None) -> Path:
        path = tmp_path / name
        pq.write_table(pa.Table.from_pylist(rows, schema), path)
        return path

    return write_rows


@pytest.fixture
def thinker_row() -> Callable[..., dict]:
    """A row of the released claim set: claim i is true for odd i."""

    def make(**cells) -> dict:
        claims = {f"claim_{i}": f"Claim number {i}." for i in range(1, 21)}
        labels = {f"label_{i}": "CORRECT" if i % 2 else "WRONG" for i in range(1, 21)}
        images = [{"bytes": _png(), "path": "images/1.png"}]
        basics = {"problem": "<image>What colour is it?", "answer": "red", "images": images}
        return basics | claims | labels | cells

    return make
