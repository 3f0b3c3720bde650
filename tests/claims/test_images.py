"""The images of folders and parquet files."""

import hashlib
import io

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from vapo_verl.claims.images import image_key, iter_images, media_type
from vapo_verl.claims.requests.endpoint import num_pixels, prepare
from vapo_verl.data.errors import BadCell, FileError


def encoded(kind: str, size=(6, 4)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, "red").save(buffer, kind)
    return buffer.getvalue()


def test_the_key_is_of_the_bytes():
    assert image_key(b"abc") == hashlib.sha256(b"abc").hexdigest()


def test_parquet_rows_in_order_every_image_once(parquet, png):
    path = parquet([[png(0), png(1)], [png(1)], [], [png(2)]])
    items = list(iter_images(path))
    assert [item.data for item in items] == [png(0), png(1), png(2)]
    assert [item.key for item in items] == [image_key(png(number)) for number in range(3)]
    assert items[2].source == f"{path} row 3"
    assert items[0].media_type == "image/png"


def test_a_folder_is_read_recursively_and_sorted(tmp_path, png, parquet):
    (tmp_path / "deep").mkdir()
    (tmp_path / "b.PNG").write_bytes(png(1))
    (tmp_path / "deep" / "c.jpg").write_bytes(encoded("JPEG"))
    (tmp_path / "a.png").write_bytes(png(0))
    (tmp_path / "notes.txt").write_text("no image")
    parquet([[png(5)]], "z.parquet")
    found = list(iter_images(tmp_path))
    assert [item.data for item in found] == [png(0), png(1), encoded("JPEG"), png(5)]
    assert found[0].source == str(tmp_path / "a.png")


def test_paths_in_rows_and_a_column_of_single_images(tmp_path, png):
    (tmp_path / "a.png").write_bytes(png(0))
    struct = {"bytes": None, "path": str(tmp_path / "a.png")}
    table = pa.Table.from_pylist([{"image": "a.png"}, {"image": "./a.png"}])
    pq.write_table(table, tmp_path / "single.parquet")
    pq.write_table(pa.Table.from_pylist([{"images": [struct]}]), tmp_path / "structs.parquet")
    (single,) = iter_images(tmp_path / "single.parquet", "image", base=tmp_path)
    (from_struct,) = iter_images(tmp_path / "structs.parquet")
    assert single.data == from_struct.data == png(0)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_media_types_are_read_from_the_bytes(kind):
    assert media_type(encoded(kind)) == f"image/{kind.lower()}"


def test_what_is_no_image_is_an_error_with_its_row_or_told(parquet, png):
    path = parquet([[png(0)], [b"<html>"], [png(1)]])
    with pytest.raises(FileError, match=r"row 1.*no image file"):
        list(iter_images(path))
    told = []
    items = list(iter_images(path, on_problem=lambda problem, path: told.append(problem.row)))
    assert len(items) == 2 and told == [1]


@pytest.mark.parametrize(
    ("cell", "what"),
    [
        ("https://example.org/a.png", "download"),
        ("absent.png", "cannot read"),
        ("", "write a path"),
    ],
)
def test_cells_without_a_file(tmp_path, cell, what):
    pq.write_table(pa.Table.from_pylist([{"images": [cell]}]), tmp_path / "a.parquet")
    with pytest.raises(FileError, match=what):
        list(iter_images(tmp_path / "a.parquet"))


def test_sources_that_hold_nothing(tmp_path, parquet):
    with pytest.raises(FileError, match="does not exist"):
        list(iter_images(tmp_path / "absent"))
    with pytest.raises(FileError, match="holds no image"):
        list(iter_images(tmp_path))
    with pytest.raises(FileError, match=r"missing columns \['picture'\].*--column"):
        list(iter_images(parquet(1), "picture"))


def test_images_are_sent_as_stored_unless_they_cannot_be(png):
    assert prepare(png(0), "image/png").data == png(0)
    bitmap = prepare(encoded("BMP"), "image/bmp")
    assert bitmap.media_type == media_type(bitmap.data) == "image/png"


def test_large_images_are_shrunk_in_their_shape():
    small = prepare(encoded("PNG", (400, 100)), "image/png", max_pixels=10_000)
    with Image.open(io.BytesIO(small.data)) as image:
        assert image.size == (200, 50)
    assert num_pixels(prepare(encoded("PNG", (9, 9)), "image/png", max_pixels=81).data) == 81


def test_a_broken_image_that_must_be_decoded():
    with pytest.raises(BadCell, match="cannot decode"):
        prepare(b"BMrubbish", "image/bmp")
