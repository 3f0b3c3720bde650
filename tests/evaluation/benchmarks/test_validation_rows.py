"""Benchmark files among validation files: one table with parquet, graded by their rule."""

import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import concatenate_datasets, load_dataset
from omegaconf import OmegaConf
from PIL import Image

from tests.evaluation.benchmarks.chat_server import write_tsv
from vapo_verl.data.rows import BENCHMARK_COLUMN
from vapo_verl.evaluation.benchmarks.validation_rows import (
    grade_cell,
    validation_files,
    write_validation_files,
)
from vapo_verl.preflight import check_best_checkpoint

SUFFIX = "\nThink first."


@pytest.fixture
def quiz(tmp_path):
    rows = [
        {"question": "Colour?", "A": "red", "B": "blue", "answer": "B", "category": "look"},
        {"question": "Shape?", "A": "round", "B": "square", "answer": "A", "category": "look"},
    ]
    return write_tsv(tmp_path / "quiz.tsv", rows)


def read(path):
    return pq.read_table(path).to_pylist()


def test_a_tsv_becomes_rows_of_the_row_format(quiz, tmp_path):
    (path,) = write_validation_files([str(quiz)], tmp_path / "run", SUFFIX)
    assert path == str(tmp_path / "run" / "benchmarks" / "quiz.parquet")
    first, second = read(path)
    (turn,) = first["prompt"]
    assert turn["role"] == "user"
    assert turn["content"].startswith("<image>")
    assert "A. red\nB. blue" in turn["content"]
    assert turn["content"].endswith(SUFFIX)
    assert first["data_source"] == second["data_source"] == "quiz"
    assert first["reward_model"]["ground_truth"] == "B"
    assert Image.open(io.BytesIO(first["images"][0]["bytes"])).size == (56, 28)


def test_a_response_is_graded_by_the_benchmarks_rule(quiz, tmp_path):
    (path,) = write_validation_files([str(quiz)], tmp_path / "run", SUFFIX)
    colour, shape = (row[BENCHMARK_COLUMN] for row in read(path))
    assert grade_cell(colour, "<think>blue</think>\\boxed{B}").correct is True
    assert grade_cell(colour, "\\boxed{blue}").correct is True  # an option's text is its letter
    assert grade_cell(colour, "\\boxed{A}").correct is False
    assert grade_cell(shape, "").correct is None
    assert json.loads(colour)["rule"] == "mcq"
    assert "images" not in json.loads(colour)["row"]


def test_the_same_file_gives_the_same_bytes(quiz, tmp_path):
    paths = [write_validation_files([str(quiz)], tmp_path / run, SUFFIX)[0] for run in ("a", "b")]
    first, second = (Path(path).read_bytes() for path in paths)
    assert first == second


@pytest.mark.parametrize("embedded", [True, False], ids=["embedded images", "paths"])
def test_it_is_one_table_with_the_parquet_files_beside_it(quiz, embedded, digits_data, tmp_path):
    parquet = digits_data(train=8, val=2)["val"]
    if not embedded:
        rows = read(parquet)
        for number, row in enumerate(rows):
            (tmp_path / f"{number}.png").write_bytes(row["images"][0]["bytes"])
            row["images"] = [str(tmp_path / f"{number}.png")]
        parquet = tmp_path / "paths.parquet"
        pq.write_table(pa.Table.from_pylist(rows), parquet)
    files = write_validation_files([str(parquet), str(quiz)], tmp_path / "run", SUFFIX)
    assert files[0] == str(parquet)
    parts = [
        load_dataset("parquet", data_files=file, cache_dir=str(tmp_path / "cache"))["train"]
        for file in files
    ]
    table = concatenate_datasets(parts)
    assert len(table) == 4
    assert [bool(row[BENCHMARK_COLUMN]) for row in table] == [False, False, True, True]
    assert [row["data_source"] for row in table][2:] == ["quiz", "quiz"]
    if not embedded:
        assert Image.open(table[2]["images"][0]).size == (56, 28)


def test_a_run_reads_its_files_with_the_suffix_it_trains_on(quiz, tmp_path):
    train = tmp_path / "train.parquet"
    prompts = [[{"role": "user", "content": f"<image>{q}?{SUFFIX}"}] for q in ("How many", "What")]
    pq.write_table(pa.table({"prompt": prompts}), train)
    config = OmegaConf.create(
        {
            "data": {"train_files": str(train), "val_files": [str(quiz)]},
            "trainer": {"default_local_dir": str(tmp_path / "run")},
        }
    )
    (path,) = validation_files(config)
    assert read(path)[0]["prompt"][0]["content"].endswith(SUFFIX)
    config.data.val_files = "val.parquet"
    assert validation_files(config) == ["val.parquet"]


def test_files_that_no_validation_can_grade_are_refused(quiz, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    twin = write_tsv(other / "quiz.tsv", [{"question": "Q?", "answer": "1"}])
    with pytest.raises(ValueError, match=r"two files are called quiz\.tsv"):
        write_validation_files([str(quiz), str(twin)], tmp_path / "run", "")
    judged = write_tsv(tmp_path / "MMVet.tsv", [{"question": "Q?", "answer": "1"}])
    with pytest.raises(ValueError, match="graded by a judge alone"):
        write_validation_files([str(judged)], tmp_path / "run", "")
    quiz.write_text(quiz.read_text().replace("answer", "solution"))
    with pytest.raises(ValueError, match="answer"):
        write_validation_files([str(quiz)], tmp_path / "run", "")


@pytest.mark.parametrize(
    ("metric", "save_freq", "test_freq", "is_refused"),
    [
        ("", -1, -1, False),
        ("val/quiz/accuracy", 5, 10, False),
        ("val/quiz/accuracy", 10, 10, False),
        ("val/quiz/accuracy", 10, 5, True),
        ("val/quiz/accuracy", -1, 5, True),
        ("val/quiz/accuracy", 5, -1, True),
    ],
)
def test_the_best_checkpoint_needs_validated_checkpoints(metric, save_freq, test_freq, is_refused):
    trainer = {"save_freq": save_freq, "test_freq": test_freq}
    config = OmegaConf.create({"vapo": {"keep_best": metric}, "trainer": trainer})
    if not is_refused:
        check_best_checkpoint(config)
        return
    with pytest.raises(ValueError, match=f"trainer.test_freq={test_freq}"):
        check_best_checkpoint(config)
