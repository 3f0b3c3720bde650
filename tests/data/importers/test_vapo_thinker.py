import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vapo_verl.data.errors import FileError, RowError
from vapo_verl.data.importers.run import ImportOptions, import_rows
from vapo_verl.data.importers.vapo_thinker import vapo_thinker_reader
from vapo_verl.data.parquet_stream import PROMPT_SUFFIX
from vapo_verl.data.rows import check_parquet


def run(sources, out: Path, **options):
    return import_rows(
        sources, vapo_thinker_reader, ImportOptions(out=out, data_source="thinker", **options)
    )


def test_a_released_row_comes_out_in_our_format(thinker_row, write, tmp_path):
    source = write([thinker_row()], "released.parquet")
    report = run([source], tmp_path / "out" / "train.parquet")
    assert (report.num_rows, report.num_claims, report.num_blank_claims) == (1, 20, 0)
    (row,) = pq.read_table(report.out).to_pylist()
    content = f"<image>What colour is it?\n{PROMPT_SUFFIX}"
    assert row["prompt"] == [{"role": "user", "content": content}]
    assert row["images"] == thinker_row()["images"]
    assert row["reward_model"] == {"style": "rule", "ground_truth": "red"}
    assert row["data_source"] == "thinker"
    assert row["extra_info"] == {"split": "train", "index": 0, "source_id": "released:0"}
    assert row["claims"][:2] == [
        {"text": "Claim number 1.", "label": True},
        {"text": "Claim number 2.", "label": False},
    ]
    assert "warnings" not in str(check_parquet(report.out))


@given(
    labels=st.lists(st.booleans(), min_size=20, max_size=20),
    blank=st.sets(st.integers(1, 20)),
    order=st.permutations(range(1, 21)),
)
@settings(max_examples=30)
def test_claim_i_keeps_label_i_whatever_is_blank_and_however_columns_are_ordered(
    labels, blank, order
):
    row = {"answer": "red", "images": [], "problem": "What?"}
    for i in order:
        row[f"label_{i}"] = "CORRECT" if labels[i - 1] else "WRONG"
        row[f"claim_{i}"] = (None if i % 2 else "  ") if i in blank else f"Claim {i}"
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "source.parquet"
        schema = pa.schema([("images", pa.list_(pa.string()))])
        for name in row.keys() - {"images"}:
            schema = schema.append(pa.field(name, pa.string()))
        pq.write_table(pa.Table.from_pylist([row], schema), source)
        report = run([source], Path(folder) / "out.parquet")
        (written,) = pq.read_table(report.out).to_pylist()
    kept = [i for i in range(1, 21) if i not in blank]
    assert written["claims"] == [{"text": f"Claim {i}", "label": labels[i - 1]} for i in kept]
    assert (report.num_claims, report.num_blank_claims) == (len(kept), len(blank))


@pytest.mark.parametrize("label", ["MAYBE", None, ""])
def test_unknown_label_is_an_error_with_its_row_and_leaves_the_old_file(
    thinker_row, write, tmp_path, label
):
    source = write([thinker_row(), thinker_row(label_7=label)], "released.parquet")
    out = tmp_path / "out.parquet"
    out.write_text("old")
    with pytest.raises(RowError, match=r"released.parquet row 1, column 'label_7'") as error:
        run([source], out)
    assert "correct the label to CORRECT or WRONG" in str(error.value)
    assert out.read_text() == "old"
    assert not list(tmp_path.glob(".*"))


def test_bad_rows_are_skipped_and_counted_on_request(thinker_row, write, tmp_path):
    rows = [thinker_row(answer=" "), thinker_row(problem="<image>"), thinker_row()]
    report = run([write(rows)], tmp_path / "out.parquet", skip_bad_rows=True)
    assert (report.num_rows, report.num_bad_rows, report.num_claims) == (1, 2, 20)
    (row,) = pq.read_table(report.out).to_pylist()
    assert row["extra_info"]["index"] == 2


def test_label_of_a_blank_claim_does_not_matter(thinker_row, write, tmp_path):
    report = run([write([thinker_row(claim_3="", label_3=None)])], tmp_path / "out.parquet")
    assert (report.num_claims, report.num_blank_claims) == (19, 1)


def test_files_without_claims_or_labels_are_refused(row, thinker_row, write, tmp_path):
    with pytest.raises(FileError, match="use import-plain"):
        run([write([row()])], tmp_path / "out.parquet")
    unlabelled = thinker_row()
    del unlabelled["label_20"]
    with pytest.raises(FileError, match=r"'claim_20'.* have no label column"):
        run([write([unlabelled])], tmp_path / "out.parquet")


def test_several_shards_make_one_file_with_one_numbering(thinker_row, write, tmp_path):
    shards = [write([thinker_row()] * 70, "a.parquet"), write([thinker_row()] * 3, "b.parquet")]
    report = run(shards, tmp_path / "out.parquet", limit=72)
    extra = pq.read_table(report.out)["extra_info"].to_pylist()
    assert [info["index"] for info in extra] == list(range(72))
    assert extra[71]["source_id"] == "b:1"
    # 72 rows in groups of 64 held in memory: two groups
    assert pq.ParquetFile(report.out).num_row_groups == 2


def test_held_out_rows_are_seeded_and_share_no_image_with_training(
    thinker_row, write, tmp_path, png
):
    shades = [f"rgb({i % 40},0,0)" for i in range(120)]  # 40 images, three rows each
    rows = [thinker_row(images=[{"bytes": png(shade), "path": None}]) for shade in shades]
    source = write(rows, "released.parquet")

    def split(name, seed):
        out, val = tmp_path / f"{name}.parquet", tmp_path / f"{name}_val.parquet"
        run([source], out, val_out=val, val_fraction=0.3, seed=seed)
        return pq.read_table(out).to_pylist(), pq.read_table(val).to_pylist()

    train, val = split("one", 0)
    assert len(train) + len(val) == 120
    assert {row["extra_info"]["split"] for row in val} == {"val"}
    images = [{row["images"][0]["bytes"] for row in rows} for rows in (train, val)]
    assert images[0].isdisjoint(images[1]) and 3 <= len(images[1]) <= 21
    assert split("again", 0) == (train, val)
    assert split("other", 1) != (train, val)


@pytest.mark.parametrize("cell", [b"The sign is red.", 5, ["The sign", "is red."], {"a": "red."}])
def test_a_claim_that_is_no_text_is_refused(cell, thinker_row, write, tmp_path):
    source = write([thinker_row(claim_7=cell)])
    with pytest.raises(RowError, match=r"row 0, column 'claim_7': no text: .*; write it as"):
        run([source], tmp_path / "out.parquet")


def test_a_label_that_is_no_text_is_refused(thinker_row, write, tmp_path):
    with pytest.raises(RowError, match=r"row 0, column 'label_7': label is \['WRONG'\]"):
        run([write([thinker_row(label_7=["WRONG"])])], tmp_path / "out.parquet")
