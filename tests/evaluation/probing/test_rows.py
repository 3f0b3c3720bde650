"""Rows of a data file as the probes see them."""

import io

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from vapo_verl.data.errors import RowError
from vapo_verl.data.images import SizedImage
from vapo_verl.evaluation.probing.probe_options import data_fingerprint, model_fingerprint
from vapo_verl.evaluation.probing.rows import draw_rows, image_size, open_image, read_rows


def encoded():
    image = io.BytesIO()
    Image.new("RGB", (28, 28), "red").save(image, "PNG")
    return image.getvalue()


def write(path, num_rows=5, **cells):
    rows = [
        {
            "prompt": [{"role": "user", "content": f"<image>What is {number}?"}],
            "images": [{"bytes": encoded(), "path": None}],
            "data_source": "made up",
            "reward_model": {"style": "rule", "ground_truth": str(number)},
            "extra_info": {"index": 10 + number},
            "claims": [{"text": "It is red.", "label": True}],
            **cells,
        }
        for number in range(num_rows)
    ]
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def test_rows_are_drawn_by_the_seed_in_the_order_of_the_file(tmp_path):
    path = write(tmp_path / "rows.parquet")
    rows = read_rows(path, num_rows=3, seed=1, answer_style="exact")
    assert [row.number for row in rows] == draw_rows(5, 3, seed=1) == sorted(draw_rows(5, 3, 1))
    assert all(row.index == 10 + row.number for row in rows)
    assert all(row.ground_truth == str(row.number) for row in rows)
    assert {row.style for row in rows} == {"exact"}  # "rule" says nothing
    assert rows[0].claims[0].label is True
    assert open_image(rows[0].images[0]).size == (28, 28)
    assert len(read_rows(path, num_rows=None, seed=1, answer_style="exact")) == 5


def test_a_row_that_cannot_be_asked_is_named(tmp_path):
    path = write(tmp_path / "rows.parquet", images=[])
    with pytest.raises(RowError, match="row 0, column 'images'"):
        read_rows(path, num_rows=None, seed=0, answer_style="exact")


def test_a_row_for_a_judge_is_refused(tmp_path):
    judged = {"style": "judge", "ground_truth": "a cat"}
    path = write(tmp_path / "rows.parquet", reward_model=judged)
    message = "row 0, column 'reward_model': style is 'judge'; .* leave the row out"
    with pytest.raises(RowError, match=message):
        read_rows(path, num_rows=None, seed=0, answer_style="math")


def test_fingerprints_follow_the_content(tmp_path):
    (tmp_path / "moved").mkdir()
    one, other = write(tmp_path / "a.parquet"), write(tmp_path / "moved" / "a.parquet")
    assert data_fingerprint(one) == data_fingerprint(other)
    write(other, num_rows=6)
    assert data_fingerprint(one) != data_fingerprint(other)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(bytes(3 * 2**20))
    before = model_fingerprint(str(tmp_path))
    weights.write_bytes(bytes(3 * 2**20 - 1) + b"1")
    assert model_fingerprint(str(tmp_path)) != before
    assert model_fingerprint("Qwen/some-name") == "Qwen/some-name"


def test_other_labels_of_equal_size_are_other_data(tmp_path):
    path, fingerprints = tmp_path / "rows.parquet", []
    for labels in ([True, False] * 150, [False, True] * 150):
        pq.write_table(pa.table({"labels": labels}), path)
        fingerprints.append((path.stat().st_size, data_fingerprint(path)))
    (size, first), (other_size, other) = fingerprints
    assert size == other_size and first != other


def test_a_model_whose_ends_are_equal_is_another_model(tmp_path):
    """The first and last tensors of a merged adapter are those of its base."""
    (tmp_path / "a").mkdir()
    weights, found = tmp_path / "a" / "model.safetensors", set()
    for trained in (b"0", b"1"):
        weights.write_bytes(bytes(2**24) + trained * 2**23 + bytes(2**24))
        found.add(model_fingerprint(str(weights.parent)))
    assert len(found) == 2


def test_the_options_of_an_image_are_part_of_it(tmp_path):
    entry = {"bytes": encoded(), "path": None, "max_pixels": 784}
    [row] = read_rows(
        write(tmp_path / "rows.parquet", num_rows=1, images=[entry]),
        num_rows=None,
        seed=0,
        answer_style="exact",
    )
    assert row.images == (SizedImage(entry["bytes"], (("max_pixels", 784),)),)
    assert image_size(row.images[0]) == open_image(row.images[0]).size == (28, 28)
