"""Bad files end with row, column and fix; predictions are read alike from every format."""

import json
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.evaluation.benchmarks.benchmark_tables import base64_png, png, write_tsv
from vapo_verl.data.errors import FileError, RowError
from vapo_verl.data.images import SizedImage
from vapo_verl.data.parquet_stream import row_schema
from vapo_verl.evaluation.benchmarks.benchmark_file import read_benchmark, read_predictions
from vapo_verl.evaluation.benchmarks.rules import check_rows, find_rule, rule_name_of


def rows(**changes: dict[int, object]) -> list[dict[str, object]]:
    """Three rows; `changes` are column -> {row: value}."""
    found = [
        {
            "index": n,
            "image": base64_png(n),
            "question": "Which?",
            "A": "x",
            "B": "y",
            "answer": "A",
        }
        for n in range(3)
    ]
    for column, values in changes.items():
        for number, value in values.items():
            found[number][column] = value
    return found


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            {"index": {1: 0}},
            r"row 1, column 'index': 0 is the index of row 0 too; give every row an index",
        ),
        ({"index": {2: ""}}, r"row 2, column 'index': it is blank; give every row an index"),
        ({"image": {1: ""}}, r"row 1, column 'image': index '1' has no image; fill in the image"),
        ({"image": {1: "7"}}, r"row 1, column 'image': neither base64 nor another row's index"),
        (
            {"image": {1: "[]"}},
            r"row 1, column 'image': the list is '\[\]'.*write a list of strings",
        ),
        (
            {"image": {1: "[__import__('os').getcwd()]"}},
            r"row 1, column 'image': the list is .*write a list of strings",
        ),
        ({"image": {0: "1", 1: "2", 2: "0"}}, r"row 0, column 'image': it refers to index '1'"),
        ({"image": {0: "0"}}, r"row 0, column 'image': it refers to index '0'"),
        (
            {"image": {2: base64_png(-3, side=64)[:8000]}},
            r"row 2, column 'image': cannot read .* bytes.*; replace the image or drop the row",
        ),
        ({"answer": {0: " "}}, r"row 0, column 'answer': index '0' is blank; fill it in"),
        ({"choices": {0: "[1, 2"}, "A": {0: ""}, "B": {0: ""}}, r"row 0, column 'choices'"),
    ],
)
def test_a_bad_cell_is_named_with_its_row_and_a_fix(tmp_path, changes, message):
    path = write_tsv(tmp_path / "b.tsv", rows(**changes))
    with pytest.raises(RowError, match=message):
        read_benchmark(path)


def test_all_bad_rows_are_named_at_once(tmp_path):
    path = write_tsv(tmp_path / "b.tsv", rows(image={0: "", 2: "no"}, index={1: 0}))
    with pytest.raises(RowError) as found:
        read_benchmark(path)
    assert [line.partition(",")[0].split()[-1] for line in str(found.value).splitlines()] == [
        *("1", "0", "2")
    ]


@pytest.mark.parametrize(
    "old, new, message",
    [
        (
            "question",
            "Question",
            r"missing columns \['question'\].*; rename 'Question' to 'question'",
        ),
        ("answer", "anwser", r"missing columns \['answer'\].*; rename 'anwser' to 'answer'"),
        ("image", "picture", r"missing columns \['image'\], has .*; add 'image'"),
        ("B", "A", r"columns \['A'\] are there twice; rename or drop one of each"),
    ],
)
def test_a_wrong_column_is_named_with_the_likely_one(tmp_path, old, new, message):
    path = write_tsv(tmp_path / "b.tsv", rows())
    header, _, rest = path.read_text().partition("\n")
    path.write_text("\t".join(new if c == old else c for c in header.split("\t")) + "\n" + rest)
    with pytest.raises(FileError, match=message):
        read_benchmark(path)


def test_files_that_are_no_table(tmp_path):
    def refused(name: str, content: bytes, message: str) -> None:
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises((FileError, RowError), match=message):
            read_benchmark(path)

    refused("a.csv", b"index,question", "neither .tsv nor .parquet")
    refused("a.tsv", b"", "has no rows")
    refused("a.tsv", b"index\tquestion\tanswer\timage\n", "has no rows")
    refused("a.tsv", "index\tü".encode("utf-16"), "is not UTF-8")
    refused("a.tsv", b'index\tquestion\tanswer\timage\n1\t"x\ty\tz\n', "line 2: unexpected end of")
    refused(
        "a.tsv", b"index\tquestion\tanswer\timage\n1\tx\n", "row 0, .* 2 cells, 4 in the header"
    )
    refused("a.parquet", b"no", "cannot read")
    with pytest.raises(FileError, match="does not exist"):
        read_benchmark(tmp_path / "none.tsv")


def test_a_missing_image_file_is_named(tmp_path):
    table = [{**row, "image_path": f"{row['index']}.png", "image": ""} for row in rows()]
    (tmp_path / "0.png").write_bytes(png(0))
    (tmp_path / "2.png").write_bytes(png(-2)[:100])
    with pytest.raises(RowError) as found:
        read_benchmark(write_tsv(tmp_path / "b.tsv", table))
    first, second = str(found.value).splitlines()
    assert "row 1, column 'image_path': no file" in first and "1.png" in first
    assert "row 2, column 'image_path': cannot read" in second


def test_none_of_an_option_is_an_option(tmp_path):
    """The readers of VLMEvalKit take `None` and `NA` for missing cells."""
    table = rows(A={0: "None", 1: "NA"}, B={0: "nan"})
    found = read_benchmark(write_tsv(tmp_path / "b.tsv", table))
    assert found[0].choices == {"A": "None", "B": "nan"}
    assert found[1].choices == {"A": "NA", "B": "y"}


def test_options_of_a_list(tmp_path):
    table = rows(
        choices={0: "['3/11', '8/11']", 1: "[]", 2: ""}, A={0: "", 1: ""}, B={0: "", 1: ""}
    )
    found = read_benchmark(write_tsv(tmp_path / "b.tsv", table))
    assert [row.choices for row in found] == [
        {"A": "3/11", "B": "8/11"},
        {},
        {"A": "x", "B": "y"},
    ]


def our_parquet(path, indices, sources=("digits", "digits"), image=None):
    table = [
        {
            "prompt": [
                {"role": "system", "content": "Think."},
                {"role": "user", "content": "<image>How many?\nAnswer in a box."},
            ],
            "images": [{"bytes": image or png(n), "path": None}],
            "data_source": source,
            "reward_model": {"style": "exact", "ground_truth": str(n)},
            "extra_info": {"split": "test", "index": index, "source_id": f"s{n}"},
            "claims": None,
        }
        for n, (index, source) in enumerate(zip(indices, sources, strict=True))
    ]
    pq.write_table(pa.Table.from_pylist(table, row_schema(embedded_images=True)), path)
    return path


def test_rows_of_our_parquet(tmp_path):
    first, second = read_benchmark(our_parquet(tmp_path / "a.parquet", (5, 3)))
    assert (first.index, second.index) == (5, 3)
    assert first.question == "How many?\nAnswer in a box."
    assert first.messages[1]["content"].startswith("<image>")
    assert (first.answer, first.style, first.category, first.split) == (
        "0",
        "exact",
        "digits",
        "test",
    )
    assert first.images == (png(0),)
    assert first.extra["source_id"] == "s0"
    rule = find_rule("free-form")
    check_rows(rule, [first, second], tmp_path)
    assert rule.grade(second, r"\boxed{01}").correct is True


def test_rows_of_our_parquet_with_options_for_size_and_control_tokens(tmp_path):
    """Which tokens a model has is not known yet: the command refuses them."""
    [row, _] = pq.read_table(our_parquet(tmp_path / "a.parquet", (5, 3))).to_pylist()
    row["images"][0] |= {"max_pixels": 784}
    row["prompt"][1]["content"] += " <|im_end|>"
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "b.parquet")
    [read] = read_benchmark(tmp_path / "b.parquet")
    assert read.messages[1]["content"].endswith("<|im_end|>")
    assert read.images == (SizedImage(png(0), (("max_pixels", 784),)),)
    cluster = find_rule("free-form").cluster
    assert cluster(read) == cluster(replace(read, images=(png(0),)))


def test_indices_of_our_parquet(tmp_path):
    def indices(*given, **more):
        return [
            row.index for row in read_benchmark(our_parquet(tmp_path / "a.parquet", given, **more))
        ]

    with pytest.raises(RowError, match="row 0, column 'extra_info'"):
        indices(None, 3)
    assert indices(7, 7, sources=("a", "b")) == ["a/7", "b/7"]
    with pytest.raises(RowError, match="row 1, column 'index': 7 is the index of row 0 too"):
        indices(7, 7)
    with pytest.raises(RowError, match="row 0, column 'images': cannot read"):
        indices(1, 2, image=png(-1, side=64)[:2000])


RECORDS = [
    {"index": 3, "question": "?", "answer": "['a', 'b']", "prediction": r"\boxed{a}", "A": "x"},
    {"index": 1, "question": "?", "answer": "2", "prediction": None, "A": None},
]


@pytest.mark.parametrize("ending", ["tsv", "jsonl", "parquet"])
def test_predictions_of_every_format_are_alike(tmp_path, ending):
    path = tmp_path / f"p.{ending}"
    if ending == "tsv":
        write_tsv(path, RECORDS)
    elif ending == "jsonl":
        path.write_text("".join(json.dumps(r) + "\n\n" for r in RECORDS))
    else:
        pq.write_table(pa.Table.from_pylist(RECORDS), path)
    found, predictions = read_predictions(path)
    assert [row.index for row in found] == [3, 1]
    assert [row.answer for row in found] == ["['a', 'b']", "2"]
    assert [row.choices for row in found] == [{"A": "x"}, {}]
    assert predictions == [r"\boxed{a}", ""]


def test_bad_files_of_predictions(tmp_path):
    def refused(name: str, text: str, message: str) -> None:
        (tmp_path / name).write_text(text)
        with pytest.raises((FileError, RowError), match=message):
            read_predictions(tmp_path / name, ("key",))

    good = {**RECORDS[0], "key": "k"}
    refused("a.xlsx", "", "Excel files are not read.*save it as .tsv")
    refused("a.json", "[]", "ends in .tsv, .jsonl, .parquet")
    refused("a.jsonl", json.dumps(RECORDS[0]), r"missing columns \['key'\]")
    refused("a.jsonl", json.dumps(good) + "\n[1]\n{", "(?s)row 1, .* no JSON object.*row 2")
    refused("a.jsonl", f"{json.dumps(good)}\n{json.dumps(good)}", "row 1, column 'index': 3 is the")
    refused(
        "a.jsonl",
        json.dumps(good | {"predictoin": good["prediction"]}).replace('"prediction"', '"x"'),
        "rename 'predictoin' to 'prediction'",
    )


def test_rows_that_a_rule_cannot_use_are_listed(tmp_path):
    path = write_tsv(tmp_path / "b.tsv", rows(answer={0: "C", 2: "the sun"}))
    with pytest.raises(RowError) as found:
        check_rows(find_rule("mcq"), read_benchmark(path), path)
    assert "row 0, column 'answer': 'C' (str) is no option of index 0" in str(found.value)
    assert "row 2, column 'answer'" in str(found.value)
    path = write_tsv(tmp_path / "b.tsv", rows(question={1: "See <image 2>."}))
    with pytest.raises(
        RowError, match="row 1, column 'question': <image 2> of index 1, which has 1"
    ):
        check_rows(find_rule("mmmu"), read_benchmark(path), path)
    for rules, column in (("hallusionbench", "index"), ("wemath", "key"), ("yes-no", "answer")):
        with pytest.raises(RowError, match=f"row 0, column '{column}'"):
            check_rows(find_rule(rules), read_benchmark(path), path)


@pytest.mark.parametrize(
    "name, rules",
    [
        ("MathVerse_MINI_Vision_Only", "mathverse"),
        ("MathVista_MINI", "mathvista"),
        ("MathVision_MINI", "mathvision"),
        ("HallusionBench", "hallusionbench"),
        ("MMMU_DEV_VAL", "mmmu"),
        ("geometry3k-test", "geo3k"),
        ("WeMath_COT", "wemath"),
        ("my_bench", None),
    ],
)
def test_the_rule_of_a_file_name(name, rules):
    assert rule_name_of(name) == rules
