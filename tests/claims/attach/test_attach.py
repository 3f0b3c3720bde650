"""The `attach` command on files, as a person runs it."""

import argparse
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vapo_verl.claims import attach
from vapo_verl.claims.images import image_key
from vapo_verl.claims.shards import ClaimRecord, ShardWriter
from vapo_verl.data.claims_column import Claim
from vapo_verl.data.errors import DataError, FileError
from vapo_verl.data.parquet_stream import row_schema

RED, GREEN, BLUE = (b"\x89PNG\r\n\x1a\n" + name for name in (b"red", b"green", b"blue"))


def claims(name: str, count: int = 2) -> tuple[Claim, ...]:
    return tuple(Claim(f"The {name} thing is number {n}.", n % 2 == 0) for n in range(count))


@pytest.fixture
def claims_dir(tmp_path: Path) -> Path:
    """Red has two claims and green three; blue is unknown."""
    with ShardWriter(tmp_path / "claims") as shards:
        for data, made in ((RED, claims("red")), (GREEN, claims("green", 3))):
            shards.write(ClaimRecord(image_key=image_key(data), claims=made, model="m"))
    return tmp_path / "claims"


def row(index: int, *images: bytes, **cells) -> dict:
    return {
        "prompt": [{"role": "user", "content": "<image>" * len(images) + "What is it?"}],
        "images": [{"bytes": data, "path": None} for data in images],
        "data_source": "colours",
        "reward_model": {"style": "rule", "ground_truth": "7"},
        "extra_info": {"split": "train", "index": index, "source_id": None},
    } | cells


def without_claims() -> pa.Schema:
    schema = row_schema(embedded_images=True)
    return schema.remove(schema.get_field_index("claims"))


def train_file(folder: Path, rows: list[dict], schema: pa.Schema | None = None, **options) -> Path:
    path = folder / "train.parquet"
    pq.write_table(pa.Table.from_pylist(rows, schema or without_claims()), path, **options)
    return path


def run(*words: object) -> int:
    parser = argparse.ArgumentParser()
    attach.add_arguments(parser)
    return attach.run(parser.parse_args([str(word) for word in words]))


def claims_of(path: Path) -> list[list[str]]:
    cells = pq.read_table(path)["claims"].to_pylist()
    return [[claim["text"] for claim in cell] for cell in cells]


def texts(*claims: Claim) -> list[str]:
    return [claim.text for claim in claims]


def test_claims_find_their_rows_by_the_bytes_of_the_image(claims_dir, tmp_path, capsys):
    train = train_file(tmp_path, [row(0, GREEN), row(1, BLUE), row(2, RED), row(3)])
    assert run(claims_dir, train, "--out", tmp_path / "out.parquet") == 0
    written = pq.read_table(tmp_path / "out.parquet")
    assert written["claims"].to_pylist()[2] == [claim.as_dict() for claim in claims("red")]
    assert claims_of(tmp_path / "out.parquet") == [
        texts(*claims("green", 3)),
        [],
        texts(*claims("red")),
        [],
    ]
    # 3 + 2 claims of which 2 + 1 are true
    assert capsys.readouterr().out.splitlines() == [
        f"{tmp_path}/out.parquet: 4 rows written, 2 of 4 (50.0%) with claims",
        "2 rows without claims: 1, 3 (1 row without an image, 1 image of 3 without claims)",
        "claims per row with claims: min 2, mean 2.5, max 3; 3 of 5 (60.0%) true",
    ]


def test_everything_else_stays_as_it_was(claims_dir, tmp_path):
    hf = {"info": {"features": {"images": {"feature": {"_type": "Image"}, "_type": "List"}}}}
    schema = without_claims().append(pa.field("level", pa.dictionary(pa.int32(), pa.string())))
    schema = schema.append(pa.field("when", pa.timestamp("us", "UTC"), metadata={b"k": b"v"}))
    schema = schema.with_metadata({b"huggingface": json.dumps(hf).encode(), b"pandas": b"{}"})
    rows = [row(n, RED, level="hard", when=n) for n in range(100)]
    train = train_file(tmp_path, rows, schema, row_group_size=7, compression="zstd")
    run(claims_dir, train, "--out", tmp_path / "out.parquet")

    before, after = pq.read_table(train), pq.read_table(tmp_path / "out.parquet")
    assert after.drop(["claims"]).equals(before, check_metadata=True)
    assert after.schema.field("claims") == row_schema(embedded_images=True).field("claims")
    assert pq.ParquetFile(tmp_path / "out.parquet").metadata.row_group(0).column(0).compression == (
        "ZSTD"
    )


def test_the_features_of_the_datasets_library_survive(claims_dir, tmp_path):
    from datasets import Features, Image, Value

    features = Features({"images": [Image()], "data_source": Value("string")})
    train = train_file(tmp_path, [row(0, RED)], features.arrow_schema)
    run(claims_dir, train, "--out", tmp_path / "out.parquet")
    read = Features.from_arrow_schema(pq.read_schema(tmp_path / "out.parquet"))
    assert read["images"].feature == Image()
    assert read["claims"].feature == {"text": Value("string"), "label": Value("bool")}


def test_paths_are_read_and_addresses_are_not(claims_dir, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)  # where relative paths start, as in training
    (tmp_path / "red.png").write_bytes(RED)
    cells = ["red.png", str(tmp_path / "red.png"), "https://example.org/red.png"]
    rows = [row(n) | {"images": [cell]} for n, cell in enumerate(cells)]
    schema = without_claims()
    position = schema.get_field_index("images")
    schema = schema.set(position, pa.field("images", pa.list_(pa.string())))
    run(claims_dir, train_file(tmp_path, rows, schema), "--out", tmp_path / "out.parquet")
    assert [len(row) for row in claims_of(tmp_path / "out.parquet")] == [2, 2, 0]
    assert "1 image behind an address, not fetched" in capsys.readouterr().out


def test_relative_paths_start_from_the_root(claims_dir, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "red.png").write_bytes(RED)
    cells = ["red.png", str(tmp_path / "photos" / "red.png")]
    rows = [row(n) | {"images": [cell]} for n, cell in enumerate(cells)]
    schema = without_claims()
    position = schema.get_field_index("images")
    schema = schema.set(position, pa.field("images", pa.list_(pa.string())))
    train, out = train_file(tmp_path, rows, schema), tmp_path / "out.parquet"
    with pytest.raises(DataError, match=r"row 0, column 'images': cannot read 'red.png'"):
        run(claims_dir, train, "--out", out)
    run(claims_dir, train, "--out", out, "--image-root", tmp_path / "photos")
    assert claims_of(out) == [texts(*claims("red"))] * 2
    assert pq.read_table(out)["images"].to_pylist() == [[cell] for cell in cells]


def test_rows_of_several_images(claims_dir, tmp_path, capsys):
    train = train_file(tmp_path, [row(0, RED, GREEN), row(1, RED, BLUE), row(2, GREEN)])
    run(claims_dir, train, "--out", tmp_path / "out.parquet")
    first, second, third = claims_of(tmp_path / "out.parquet")
    assert first == [f"In image 1, the red thing is number {n}." for n in range(2)] + [
        f"In image 2, the green thing is number {n}." for n in range(3)
    ]
    assert second == []
    run(claims_dir, train, "--out", tmp_path / "out.parquet", "--single-image-only")
    assert claims_of(tmp_path / "out.parquet") == [[], [], third]
    assert "2 rows of several images skipped" in capsys.readouterr().out


def test_images_with_too_few_claims_count_as_unknown(claims_dir, tmp_path, capsys):
    train = train_file(tmp_path, [row(0, RED), row(1, GREEN)])
    run(claims_dir, train, "--out", tmp_path / "out.parquet", "--min-claims", 3)
    assert [len(row) for row in claims_of(tmp_path / "out.parquet")] == [0, 3]
    assert "1 record of under 3 claims passed over" in capsys.readouterr().out
    with pytest.raises(FileError, match="none of its 2 images has 4 claims; lower --min-claims 4"):
        run(claims_dir, train, "--out", tmp_path / "out.parquet", "--min-claims", 4)


def test_drop_uncovered(claims_dir, tmp_path, capsys):
    train = train_file(tmp_path, [row(n, *([RED] if n % 3 else [BLUE])) for n in range(90)])
    run(claims_dir, train, "--out", tmp_path / "out.parquet", "--drop-uncovered")
    written = pq.read_table(tmp_path / "out.parquet").to_pylist()
    assert [row["extra_info"]["index"] for row in written] == [n for n in range(90) if n % 3]
    report = capsys.readouterr().out
    assert (
        "60 rows written, 60 of 90 (66.7%) with claims (30 rows without claims left out)" in report
    )
    assert "30 rows without claims: 0, 3, 6, 9, 12, ..." in report


def old_claims(text: str) -> dict:
    return {"claims": [{"text": text, "label": True}]}


def test_claims_that_are_there_are_replaced_on_demand_only(claims_dir, tmp_path, capsys):
    rows = [row(0, RED, **old_claims("Old.")), row(1, BLUE, **old_claims("Kept.")), row(2, GREEN)]
    train = train_file(tmp_path, rows, row_schema(embedded_images=True))
    out = tmp_path / "out.parquet"
    with pytest.raises(FileError, match="claims already in 2 rows; add --replace"):
        run(claims_dir, train, "--out", out)
    assert not out.exists()
    run(claims_dir, train, "--out", out, "--replace")
    assert claims_of(out) == [texts(*claims("red")), ["Kept."], texts(*claims("green", 3))]
    report = capsys.readouterr().out
    assert "(1 row had claims that were replaced, 1 row without new claims kept the old)" in report
    assert pq.read_schema(out).names == row_schema(embedded_images=True).names


def test_an_empty_claims_column_is_filled_without_asking(claims_dir, tmp_path):
    rows = [row(0, RED, claims=[]), row(1, RED, claims=None)]
    train = train_file(tmp_path, rows, row_schema(embedded_images=True))
    run(claims_dir, train, "--out", tmp_path / "out.parquet")
    assert claims_of(tmp_path / "out.parquet") == [texts(*claims("red"))] * 2


def test_nothing_is_written_over_what_is_there_when_something_is_wrong(claims_dir, tmp_path):
    out = tmp_path / "folder" / "out.parquet"
    out.parent.mkdir()
    out.write_text("before")
    rows = [row(0, RED), row(1) | {"images": [{"bytes": None, "path": "gone.png"}]}]
    train = train_file(tmp_path, rows)
    with pytest.raises(DataError, match=r"train.parquet row 1, column 'images': .*'gone.png'"):
        run(claims_dir, train, "--out", out)
    with pytest.raises(FileError, match=r"no row of .* has its images in .*byte for byte"):
        run(claims_dir, train_file(tmp_path, [row(0, BLUE)]), "--out", out)
    assert [path.name for path in out.parent.iterdir()] == ["out.parquet"]
    assert out.read_text() == "before"


def test_what_a_person_can_get_wrong_is_said_with_its_fix(claims_dir, tmp_path):
    train, out = train_file(tmp_path, [row(0, RED)]), tmp_path / "out.parquet"
    folder = tmp_path / "folder.parquet"
    folder.mkdir()
    wrong = {
        "is the input": (claims_dir, train, "--out", tmp_path / "." / "train.parquet"),
        "does not end in .parquet": (claims_dir, train, "--out", tmp_path / "out"),
        "--out: .*folder.parquet is a folder": (claims_dir, train, "--out", folder),
        "TRAIN: .* does not exist": (claims_dir, tmp_path / "no.parquet", "--out", out),
        "missing columns .'pictures'.*--column": (
            *(claims_dir, train, "--out", out, "--column", "pictures"),
        ),
        "--min-claims is 0": (claims_dir, train, "--out", out, "--min-claims", 0),
        "CLAIMS_DIR: no folder": (tmp_path / "none", train, "--out", out),
        "has no claims; run `generate`": (tmp_path, train, "--out", out),
    }
    for message, words in wrong.items():
        with pytest.raises(ValueError, match=message):
            run(*words)
    assert not out.exists()


def test_damaged_shards_are_named(claims_dir, tmp_path):
    train, out = train_file(tmp_path, [row(0, RED)]), tmp_path / "out.parquet"
    shard = next(claims_dir.glob("shard-*.jsonl"))
    good = shard.read_text()
    shard.write_text("{]\n" + good)
    with pytest.raises(FileError, match=rf"{shard.name}:1: not a record"):
        run(claims_dir, train, "--out", out)
    shard.write_text(good.replace("true", '"CORRECT"', 1))
    with pytest.raises(FileError, match="label is 'CORRECT'"):
        run(claims_dir, train, "--out", out)


def test_a_path_that_is_not_utf8_is_named(claims_dir, tmp_path):
    paths = pa.array([b"a.png", b"gro\xdf.png"]).view(pa.string())
    train = tmp_path / "train.parquet"
    pq.write_table(pa.table({"images": paths}), train)
    (tmp_path / "a.png").write_bytes(RED)
    words = ("--out", tmp_path / "out.parquet", "--image-root", tmp_path)
    with pytest.raises(DataError, match=r"row 1, column 'images': an image is unreadable, 'utf-8'"):
        run(claims_dir, train, *words)


def test_rows_are_dropped_beside_columns_that_arrow_cannot_filter(claims_dir, tmp_path):
    notes = pa.array(["a", "b", "c"]).cast(pa.string_view())
    train, out = train_file(tmp_path, [row(0, BLUE), row(1, RED), row(2)]), tmp_path / "out.parquet"
    pq.write_table(pq.read_table(train).append_column("note", notes), train)
    assert run(claims_dir, train, "--out", out, "--drop-uncovered") == 0
    assert pq.read_table(out)["note"].to_pylist() == ["b"]


def test_two_lines_of_an_image_are_named(claims_dir, tmp_path):
    train, out = train_file(tmp_path, [row(0, RED)]), tmp_path / "out.parquet"
    with ShardWriter(claims_dir) as shards:
        shards.write(ClaimRecord(image_key=image_key(RED), claims=claims("other"), model="m"))
    with pytest.raises(FileError, match=r"shard-00001.jsonl:1: image .* is also in shard-00000"):
        run(claims_dir, train, "--out", out)


@pytest.mark.parametrize("word", ["<image>", "<|im_end|>"])
def test_a_claim_that_a_row_may_not_hold_is_named(claims_dir, tmp_path, word):
    made = (*claims("blue"), Claim(f"The sign shows {word} once.", True))
    with ShardWriter(claims_dir) as shards:
        shards.write(ClaimRecord(image_key=image_key(BLUE), claims=made, model="m"))
    train = train_file(tmp_path, [row(0, RED)])
    with pytest.raises(FileError) as caught:
        run(claims_dir, train, "--out", tmp_path / "out.parquet")
    assert f"shard-00001.jsonl:1, image {image_key(BLUE)}: {word} in " in str(caught.value)
    assert "reword the claim, or delete it" in str(caught.value)


def test_a_check_that_dropped_all_claims_is_named(tmp_path):
    with ShardWriter(tmp_path / "checked") as shards:
        shards.write(ClaimRecord(image_key=image_key(RED), claims=(), model="m"))
    train = train_file(tmp_path, [row(0, RED)])
    words = (tmp_path / "checked", train, "--out", tmp_path / "out.parquet")
    with pytest.raises(FileError, match=r"none of its 1 images has a claim left; give the folder"):
        run(*words)
    with pytest.raises(FileError, match="lower --min-claims 2"):
        run(*words, "--min-claims", 2)


def test_a_damaged_training_file_is_named(claims_dir, tmp_path):
    train = train_file(tmp_path, [row(n, RED) for n in range(50)], compression="none")
    data = bytearray(train.read_bytes())
    data[4:200] = bytes(196)
    train.write_bytes(data)
    with pytest.raises(FileError, match=rf"TRAIN: cannot read {train}.*download or make it again"):
        run(claims_dir, train, "--out", tmp_path / "out.parquet")
    assert not (tmp_path / "out.parquet").exists()


def test_row_groups_are_bounded_by_rows_and_by_bytes(claims_dir, tmp_path):
    out = tmp_path / "out.parquet"

    def groups() -> list[int]:
        metadata = pq.ParquetFile(out).metadata
        return [metadata.row_group(n).num_rows for n in range(metadata.num_row_groups)]

    train = train_file(tmp_path, [row(n, RED) for n in range(2100)])
    run(claims_dir, train, "--out", out)
    assert groups() == [1024, 1024, 52]
    # 1 MiB a row: a batch of 32 rows is 32 MiB, which is a group
    large = [row(n, RED + bytes(1 << 20)) for n in range(40)] + [row(40, RED)]
    run(claims_dir, train_file(tmp_path, large), "--out", out)
    assert groups() == [32, 9]
