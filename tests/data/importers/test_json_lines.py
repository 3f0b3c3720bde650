"""Rows from a `.jsonl`: what a line says, to the letter, and what is wrong with one."""

import json
import tracemalloc

import pyarrow.parquet as pq
import pytest

from vapo_verl.data.errors import FileError, RowError
from vapo_verl.data.importers.plain import plain_reader
from vapo_verl.data.importers.run import ImportOptions, import_rows

LONG = "12345678901234567890123"


@pytest.fixture
def lines(tmp_path, png):
    """Write lines to mine.jsonl, with an image a.png beside it."""
    (tmp_path / "a.png").write_bytes(png())

    def write(*lines: str | bytes, end: bytes = b"\n"):
        encoded = [line.encode() if isinstance(line, str) else line for line in lines]
        (tmp_path / "mine.jsonl").write_bytes(b"".join(line + end for line in encoded))
        return tmp_path / "mine.jsonl"

    return write


def line(answer: str = '"4"', **more: str) -> str:
    """A line whose cells are JSON text."""
    cells = {"question": '"How many?"', "answer": answer, "image": '"a.png"'} | more
    return "{" + ", ".join(f'"{name}": {text}' for name, text in cells.items()) + "}"


def imported(path, *others, **options):
    out = path.parent / "out.parquet"
    given = {"data_source": "mine", "image_root": path.parent} | options
    import_rows([path, *others], plain_reader, ImportOptions(out=out, **given))
    return pq.read_table(out).to_pylist()


def refused(path, error=RowError, **options) -> str:
    with pytest.raises(error) as caught:
        imported(path, **options)
    assert not (path.parent / "out.parquet").exists()
    return str(caught.value)


@pytest.mark.parametrize(
    ("written", "truth"),
    [
        ('"007"', "007"),
        ('"1.50"', "1.50"),
        ('"None"', "None"),
        ('"N/A"', "N/A"),
        ('"2024-01-02"', "2024-01-02"),
        ("7", "7"),
        ("-0", "-0"),
        ("1.50", "1.50"),
        ("1e3", "1e3"),
        (LONG, LONG),
        (f"0.{LONG}", f"0.{LONG}"),
        ("true", "true"),
        ('["4"]', "4"),
        ("[false]", "false"),
        ('"\\\\boxed{1.50}"', "1.50"),
        ('"½ \\u00e9 \\ud83d\\ude00"', "½ é 😀"),
    ],
)
def test_an_answer_is_the_text_of_the_file(written, truth, lines):
    (row,) = imported(lines(line(written)))
    assert row["reward_model"]["ground_truth"] == truth


def test_mixed_types_ids_and_order(lines, tmp_path):
    path = lines(line("7", id='"0012"'), line('"seven"', id="12"), line("7.0"))
    rows = imported(path)
    assert [row["reward_model"]["ground_truth"] for row in rows] == ["7", "seven", "7.0"]
    # a row without an id is named by its file and line
    assert [row["extra_info"]["source_id"] for row in rows] == ["0012", "12", "mine:3"]
    assert {tuple(row["images"]) for row in rows} == {(str(tmp_path / "a.png"),)}


def test_a_column_that_only_later_lines_have_counts(lines):
    first = '{"question": "2 + 2?", "answer": "4"}'
    rows = imported(lines(first, line()))
    assert [len(row["images"]) for row in rows] == [0, 1]


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_a_byte_order_mark_and_blank_lines_are_left_out(end, lines):
    rows = imported(lines(b"\xef\xbb\xbf" + line("1").encode(), "", "  ", line("2"), end=end))
    assert [row["reward_model"]["ground_truth"] for row in rows] == ["1", "2"]
    assert rows[1]["extra_info"]["source_id"] == "mine:4"


@pytest.mark.parametrize(
    ("bad", "found"),
    [
        (
            '{"question": "a" "b"}',
            "line 2: no JSON at character 18: Expecting ',' delimiter; write",
        ),
        ('{"question": "How', "line 2: no JSON at character 14: Unterminated string"),
        ("[1, 2]", "line 2: the line is ['1', '2'] (list); write one JSON object a line"),
        (b'{"question": "caf\xe9"}', "line 2: no UTF-8 at byte 18; save the file as UTF-8"),
        ("[" * 200_000, "line 2: nested too deeply"),
        (line("[" * 900 + "]" * 900), "line 2"),
        (line("null"), "line 2, column 'answer': nothing that can be compared: null"),
        (line("NaN"), "line 2, column 'answer': nothing that can be compared: nan"),
        (line('{"a": 1}'), "line 2, column 'answer': nothing that can be compared"),
        (line("[1, 2]"), "line 2, column 'answer': 2 answers"),
        (line('"\\ud83d"'), "line 2, column 'answer': half of a surrogate pair in '\\ud83d'"),
        (line(question="5"), "line 2, column 'question': no text: the number 5; write it as text"),
        (line(question="true"), "line 2, column 'question': no text: True (bool)"),
        (line(question='["a"]'), "line 2, column 'question': no text: ['a'] (list)"),
        (line(id="[1]"), "line 2, column 'id': no id: ['1'] (list); write ids as text or whole"),
        (line(question="null"), "line 2, column 'question': nothing asked"),
        (
            '{"question": "?!", "answer": 4, "images": ["a.png"]}',
            "line 2, column 'images': other rows call it 'image'; use one name in all rows",
        ),
        (line(image='"b.png"'), "line 2, column 'images': no file"),
        (line(image=f'"{"A" * 5000}"'), "line 2, column 'images': a path of 5000 characters"),
        (line(image='{"bytes": "data:,AAAA"}'), "line 2, column 'images': an image is {'bytes'"),
    ],
)
def test_a_bad_line_is_named_and_may_be_left_out(bad, found, lines):
    path = lines(line("1"), bad, line("3"))
    assert f"{path} {found}" in refused(path)
    rows = imported(path, skip_bad_rows=True)
    assert [row["reward_model"]["ground_truth"] for row in rows] == ["1", "3"]
    assert [row["extra_info"]["index"] for row in rows] == [0, 2]


def test_many_broken_lines_are_a_few_and_a_count(lines):
    said = refused(lines(line(), *["{"] * 9)).splitlines()
    assert len(said) == 6
    assert said[-1].startswith("  ... and 4 more like these (write one JSON object a line")


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ([], "mine.jsonl is empty, 0 bytes"),
        (["", " "], "mine.jsonl has no rows"),
        (["[", "{", "}", "]"], "no row with a column: line 1, no JSON at character 2"),
        (["{}"], "no row with a column: write one JSON object a line"),
        (['{"question": "?", "image": "a.png"}'], "missing columns ['answer'], has"),
        (['{"prompt": "?", "answer": "4"}'], "no column question or problem, has"),
    ],
)
def test_files_that_hold_no_rows_are_refused(content, found, lines):
    assert found in refused(lines(*content), FileError)


def test_a_file_that_is_not_there(tmp_path):
    said = refused(tmp_path / "none.jsonl", FileError)
    assert "none.jsonl does not exist; give the path of a JSON lines file" in said


def test_images_in_lines_and_in_parquet_make_one_file(lines, write, png, tmp_path):
    entry = {"bytes": png("blue"), "path": None}
    parquet = write([{"question": "Colour?", "answer": "blue", "images": [entry]}])
    uri = '"data:image/png;base64,iVBORw=="'
    path = lines(line(), line(image='["a.png", "a.png"]'), line(image=uri), line(image="null"))
    rows = imported(path, parquet)
    assert [[image["bytes"] for image in row["images"]] for row in rows] == [
        [png()],
        [png(), png()],
        [b"\x89PNG"],
        [],
        [png("blue")],
    ]
    assert [row["extra_info"]["index"] for row in rows] == [0, 1, 2, 3, 4]


def test_held_out_lines_and_a_limit(lines, tmp_path, png):
    for number in range(40):
        (tmp_path / f"{number}.png").write_bytes(png())
    path = lines(*[line(str(n), image=f'"{n}.png"') for n in range(40)])
    val = tmp_path / "val.parquet"
    train = imported(path, val_out=val, val_fraction=0.5, limit=30)
    held_out = pq.read_table(val).to_pylist()
    truths = {row["reward_model"]["ground_truth"] for row in (*train, *held_out)}
    assert truths == {str(number) for number in range(30)}
    assert train and held_out


def test_memory_is_that_of_a_few_lines(lines):
    """40 lines of 1 MiB; what is kept of a line is small."""
    path = lines(*[line(str(n), note=json.dumps("x" * 2**20)) for n in range(40)])
    tracemalloc.start()
    try:
        assert len(imported(path)) == 40
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 10 * 2**20
