import hashlib
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vapo_verl.data.errors import DataError, FileError, RowError
from vapo_verl.data.importers.plain import plain_reader, unbox
from vapo_verl.data.importers.run import ImportOptions, import_rows
from vapo_verl.data.rows import check_parquet


def run(source, out, **options):
    given = ImportOptions(out=out, data_source="plain", **options)
    report = import_rows([source], plain_reader, given)
    return report, pq.read_table(out).to_pylist()


@pytest.fixture
def virl_row(tmp_path, png):
    """A row of ViRL39K, its image file in place under tmp_path/root."""
    image = tmp_path / "root" / "images" / "7.png"
    image.parent.mkdir(parents=True)
    image.write_bytes(png())
    return {
        "question": "How many?",
        "answer": "\\boxed{4}",
        "PassRate_32BTrained": 0.5,
        "category": "(GradeSchool) Geometric",
        "source": "Processed",
        "qid": "Processed-7",
        "image": ["images/7.png"],
    }


def test_virl_paths_become_absolute(virl_row, write, tmp_path):
    source = write([virl_row], "39Krelease.parquet")
    report, (row,) = run(source, tmp_path / "out.parquet", image_root=tmp_path / "root")
    assert row["images"] == [str(tmp_path / "root" / "images" / "7.png")]
    assert row["prompt"][0]["content"].startswith("<image>How many?\n")
    assert row["reward_model"]["ground_truth"] == "4"
    assert row["extra_info"]["source_id"] == "Processed-7"
    assert row["claims"] == []
    assert check_parquet(report.out).num_images_opened == 1


def test_virl_images_can_be_embedded(virl_row, write, tmp_path, png):
    source = write([virl_row])
    root = tmp_path / "root"
    report, (row,) = run(source, tmp_path / "out.parquet", image_root=root, embed_images=True)
    assert row["images"] == [{"bytes": png(), "path": "7.png"}]
    (root / "images" / "7.png").unlink()
    assert check_parquet(report.out).num_images_opened == 1


def test_missing_image_asks_for_the_root(virl_row, write, tmp_path):
    with pytest.raises(RowError, match=r"row 0, column 'images': no file .*--image-root"):
        run(write([virl_row]), tmp_path / "out.parquet", image_root=tmp_path)


def test_geometry3k_bytes_stay_bytes_and_placeholders_stay_in_place(write, tmp_path, png):
    entries = [{"bytes": png(color), "path": None} for color in ("red", "blue")]
    geometry = {"images": entries, "problem": "In <image> and <image>, find x.", "answer": "3"}
    _, (row,) = run(write([geometry]), tmp_path / "out.parquet")
    assert row["images"] == entries
    assert row["prompt"][0]["content"].startswith("In <image> and <image>, find x.\n")


def test_one_placeholder_per_image_is_put_in_front(write, tmp_path, png):
    entries = [{"bytes": png(color), "path": None} for color in ("red", "blue")]
    source = write([{"images": entries, "problem": "Compare.", "answer": "3"}])
    _, (row,) = run(source, tmp_path / "out.parquet")
    assert row["prompt"][0]["content"].startswith("<image><image>Compare.\n")


def test_placeholders_that_do_not_fit_the_images_are_refused(write, tmp_path, png):
    entry = {"bytes": png(), "path": None}
    source = write([{"images": [entry], "problem": "<image><image>?!", "answer": "3"}])
    with pytest.raises(RowError, match="column 'problem': 2 <image> for 1 images"):
        run(source, tmp_path / "out.parquet")


def test_single_image_outside_a_list_and_numeric_answer(write, tmp_path, png):
    source = write([{"image": {"bytes": png(), "path": "a"}, "question": "How many?", "answer": 4}])
    _, (row,) = run(source, tmp_path / "out.parquet")
    assert row["images"] == [{"bytes": png(), "path": "a"}]
    assert row["reward_model"]["ground_truth"] == "4"


NO_TEXT = {
    "bytes": pa.array([b"How many?"]),
    "not UTF-8": pa.array([b"Wie gro\xdf?"]).view(pa.string()),
    "nan": pa.array([float("nan")]),
    "number": pa.array([5]),
    "bool": pa.array([True]),
    "list": pa.array([["How", "many?"]]),
    "struct": pa.array([{"text": "How many?"}]),
}


def table(**cells):
    return pa.table({"question": ["?!"], "answer": ["4"], "image": pa.nulls(1)} | cells)


@pytest.mark.parametrize("kind", NO_TEXT)
def test_a_question_that_is_no_text_is_refused(kind, tmp_path):
    source = tmp_path / "source.parquet"
    pq.write_table(table(question=NO_TEXT[kind]), source)
    with pytest.raises(RowError, match=r"row 0, column 'question': no text: .*; write it as"):
        run(source, tmp_path / "out.parquet")


@pytest.mark.parametrize("kind", NO_TEXT.keys() - {"number"})
def test_an_id_that_is_no_text_or_whole_number_is_refused(kind, tmp_path):
    source = tmp_path / "source.parquet"
    pq.write_table(table(pid=NO_TEXT[kind]), source)
    with pytest.raises(RowError, match=r"row 0, column 'pid': no id: .*; write ids as text"):
        run(source, tmp_path / "out.parquet")


def test_a_whole_number_is_an_id(tmp_path):
    source = tmp_path / "source.parquet"
    pq.write_table(table(pid=NO_TEXT["number"]), source)
    _, (row,) = run(source, tmp_path / "out.parquet")
    assert row["extra_info"]["source_id"] == "5"


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl"])
@pytest.mark.parametrize(
    ("cells", "row"),
    [
        ({"image": ["a.png", None], "images": [None, "a.png"]}, 1),
        ({"image": ["a.png", None], "images": ["a.png", None]}, 0),
        ({"question": ["?!", None], "problem": [None, "?!"], "image": [None, None]}, 1),
    ],
)
def test_two_names_for_a_column_are_refused(cells, row, suffix, tmp_path, png):
    (tmp_path / "a.png").write_bytes(png())
    source = saved({"question": ["?!", "?!"], "answer": ["4", "4"]} | cells, tmp_path, suffix)
    place = f"row {row}" if suffix == ".parquet" else f"line {row + 1}"
    with pytest.raises(RowError, match=f"{place}, column .*: other rows call it .*; use one name"):
        run(source, tmp_path / "out.parquet", image_root=tmp_path)


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl"])
def test_of_two_names_the_one_without_values_is_passed_over(suffix, tmp_path, png):
    (tmp_path / "a.png").write_bytes(png())
    cells = {"question": [None], "problem": ["?!"], "answer": ["4"]}
    source = saved(cells | {"image": [None], "images": ["a.png"]}, tmp_path, suffix)
    _, (row,) = run(source, tmp_path / "out.parquet", image_root=tmp_path)
    assert row["images"] == [str(tmp_path / "a.png")]


def saved(cells, folder, suffix):
    path, table = folder / f"source{suffix}", pa.table(cells)
    if suffix == ".parquet":
        pq.write_table(table, path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in table.to_pylist()))
    return path


def test_columns_that_are_missing_are_named(write, tmp_path):
    with pytest.raises(FileError, match="no column question or problem, has"):
        run(write([{"text": "?", "answer": "3", "image": ["a"]}]), tmp_path / "out.parquet")
    with pytest.raises(FileError, match=r"missing columns \['answer'\]"):
        run(write([{"question": "?", "image": ["a"]}]), tmp_path / "out.parquet")


def test_the_source_is_not_overwritten(virl_row, write):
    source = write([virl_row])
    with pytest.raises(FileError, match="is the input"):
        run(source, source)


def test_nothing_to_write_is_an_error(virl_row, write, tmp_path):
    out = tmp_path / "out.parquet"
    with pytest.raises(FileError, match="no rows for"):
        run(write([virl_row]), out, image_root=tmp_path, skip_bad_rows=True)
    assert not out.exists()


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"val_fraction": 1.0}, "--val-fraction: 1.0"),
        ({"val_fraction": 0.1}, "--val-out"),
        ({"limit": 0}, "--limit: 0"),
        ({"val_fraction": 0.1, "val_out": Path("v.parquet"), "split": "val"}, "--split: val"),
        ({"val_fraction": 0.1, "val_out": Path("OUT")}, "--val-out: OUT is also --out"),
    ],
)
def test_options_that_cannot_work_are_refused(options, named):
    with pytest.raises(DataError, match=named):
        ImportOptions(out=Path("OUT"), data_source="plain", **options)


@pytest.mark.parametrize(
    ("answer", "bare"),
    [
        (r"\boxed{4}", "4"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{1}, \boxed{2}", r"\boxed{1}, \boxed{2}"),
        (r"x = \boxed{4}", r"x = \boxed{4}"),
        (r"\boxed{}", r"\boxed{}"),
        ("A", "A"),
    ],
)
def test_unbox(answer, bare):
    assert unbox(answer) == bare


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        ("\\boxed{}", "nothing that can be compared"),
        ("$$", "nothing that can be compared"),
        (float("nan"), "nothing that can be compared"),
        (b"4", "nothing that can be compared: 1 bytes"),
        ({"value": 4}, "nothing that can be compared"),
        (["4", "four"], "2 answers: ['4', 'four'] (list); an import writes one"),
    ],
)
def test_an_answer_that_nothing_can_match_is_refused(answer, found, write, png, tmp_path):
    images = [{"bytes": png(), "path": None}]
    source = write(
        [{"question": "How many?", "answer": answer, "images": images}], "source.parquet"
    )
    options = ImportOptions(out=tmp_path / "out.parquet", data_source="x")
    with pytest.raises(RowError, match="row 0, column 'answer'") as caught:
        import_rows([source], plain_reader, options)
    assert found in str(caught.value)


def test_one_answer_in_a_list_and_numbers_are_written_as_text(write, png, tmp_path):
    images = [{"bytes": png(), "path": None}]
    answers = [["4"], [3.0]]
    for place, answer in enumerate(answers):
        source = write([{"question": "How many?", "answer": answer, "images": images}], "s.parquet")
        out = tmp_path / f"out-{place}.parquet"
        import_rows([source], plain_reader, ImportOptions(out=out, data_source="x"))
        [row] = pq.read_table(out).to_pylist()
        assert row["reward_model"]["ground_truth"] == str(4 - place)


@pytest.fixture
def split(write, tmp_path):
    """Import rows of images with a third held out; the images of each row of either side."""

    def run_both(images, name, **options):
        rows = [{"question": "Which?", "answer": "1", "images": each} for each in images]
        out, val = tmp_path / f"{name}_out.parquet", tmp_path / f"{name}_val.parquet"
        source = write(rows, f"{name}.parquet")
        _, train = run(source, out, val_out=val, val_fraction=0.33, **options)
        sides = (train, pq.read_table(val).to_pylist())
        return [[[image["bytes"] for image in row["images"]] for row in side] for side in sides]

    return run_both


def test_rows_that_share_any_image_are_on_one_side(split, png):
    """Image 2k is in a row of its own, in one with 2k + 1, and at the end of one with three."""
    entries = [{"bytes": png(f"rgb({i},0,0)"), "path": None} for i in range(60)]
    alone = [[entry] for entry in entries[:40:2]]
    pairs = [[entries[i], entries[i + 1]] for i in range(0, 40, 2)]
    longer = [[entries[40 + i], entries[41 + i], entries[2 * i]] for i in range(0, 16, 2)]
    rows = [*alone, *pairs, *longer]
    train, val = split(rows, "given")
    assert train and val and len(train) + len(val) == len(rows)
    assert {b for row in train for b in row}.isdisjoint(b for row in val for b in row)
    again = split(rows[::-1], "reversed")
    assert [sorted(side) for side in again] == [sorted(train), sorted(val)]
    assert split(rows, "other", seed=1) != [train, val]


def test_rows_of_one_image_are_drawn_by_its_hash(split, png):
    entries = [{"bytes": png(f"rgb({i},9,0)"), "path": None} for i in range(40)]
    _, val = split([[entry] for entry in entries], "one", seed=3)

    def draw(content):
        digest = hashlib.blake2b(b"3:" + content, digest_size=8).digest()
        return int.from_bytes(digest, "big") / 2**64

    contents = [entry["bytes"] for entry in entries]
    assert val == [[content] for content in contents if draw(content) < 0.33]


@pytest.mark.parametrize("paired", [False, True])
def test_all_spellings_of_a_path_are_on_one_side(paired, write, png, tmp_path):
    root = tmp_path / "root"
    (root / "img").mkdir(parents=True)
    (tmp_path / "link").symlink_to(root / "img")
    rows = []
    for i in range(20):
        file = root / "img" / f"{i}.png"
        file.write_bytes(png(f"rgb({i},0,0)"))
        link = tmp_path / "link" / file.name
        spellings = [f"img/{i}.png", f"./img/{i}.png", f"img/../img/{i}.png", file, link]
        spellings.append(f"file://{file}")
        rows += [[str(each), *(["img/0.png"] if paired and i < 9 else [])] for each in spellings]
    source = write([{"question": "Which?", "answer": "1", "images": row} for row in rows])
    out, val = tmp_path / "out.parquet", tmp_path / "val.parquet"
    options = {"val_out": val, "val_fraction": 0.4, "image_root": root}
    _, train = run(source, out, **options)
    sides = (train, pq.read_table(val).to_pylist())
    seen = [{Path(path).resolve() for row in side for path in row["images"]} for side in sides]
    assert seen[0] and seen[1] and seen[0].isdisjoint(seen[1])
