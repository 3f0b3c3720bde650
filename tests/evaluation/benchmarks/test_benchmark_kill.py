"""`benchmark` with the packaged model, killed and resumed, leaves what an unkilled run leaves."""

import base64
import csv
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.evaluation.benchmarks.chat_server import write_tsv
from tests.evaluation.probing_commands import ENVIRONMENT
from vapo_verl.data.cells import IMAGE_PLACEHOLDER
from vapo_verl.digits.model import model_dir
from vapo_verl.evaluation.benchmarks.benchmark_results import SCORES_FILE
from vapo_verl.evaluation.probing.journal import ROWS_FILE

NUM_ROWS = 8
NUM_SAMPLES = 8
NUM_KILLS = 3


def tsv_of(parquet: Path, path: Path) -> Path:
    """The rows of the digits world as VLMEvalKit would write them."""
    rows = [
        {
            "question": row["prompt"][0]["content"].replace(IMAGE_PLACEHOLDER, ""),
            "answer": row["reward_model"]["ground_truth"],
            "image": base64.b64encode(row["images"][0]["bytes"]).decode("ascii"),
        }
        for row in pq.read_table(parquet).to_pylist()
    ]
    return write_tsv(path, rows)


@pytest.fixture
def start() -> Iterator[Callable[[list[Path], Path], subprocess.Popen]]:
    """Begin the command in a process of its own."""
    started = []

    def begin(data: list[Path], out: Path) -> subprocess.Popen:
        words = [sys.executable, "-m", "vapo_verl.evaluation", "benchmark", str(model_dir())]
        words += [*map(str, data), "--out", str(out), "--protocol", "avg8", "--batch", "2"]
        words += ["--dtype", "float32", "--kv-cache-gib", "0.25", "--max-tokens", "96"]
        words += ["--suffix", "none"]
        with (out.parent / "log.txt").open("a") as log:
            process = subprocess.Popen(words, env=os.environ | ENVIRONMENT, stdout=log, stderr=log)
        started.append(process)
        return process

    yield begin
    for process in started:
        process.kill()
        process.wait()


def num_stored(data: list[Path], out: Path) -> int:
    journals = [out / path.stem / ROWS_FILE for path in data]
    return sum(journal.read_bytes().count(b"\n") for journal in journals if journal.exists())


def kill_at(process: subprocess.Popen, data: list[Path], out: Path, stored: int, delay_s: float):
    while num_stored(data, out) < stored:
        assert process.poll() is None, (out.parent / "log.txt").read_text()[-4000:]
        time.sleep(0.001)
    time.sleep(delay_s)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()


def contents(out: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(out)): path.read_bytes()
        for path in sorted(out.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_killed_three_times_and_resumed_equals_an_unkilled_run(start, digits_data, tmp_path):
    parquet = digits_data(test=NUM_ROWS)["test"]
    data = [parquet, tsv_of(parquet, tmp_path / "digits_tsv.tsv")]
    total = len(data) * NUM_ROWS * NUM_SAMPLES
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    process = start(data, whole)
    assert process.wait(600) == 0, (tmp_path / "log.txt").read_text()[-4000:]
    rng = random.Random(18)
    lost = []
    for part in range(NUM_KILLS):
        # anywhere in this third, also between two lines of a batch
        stored = rng.randrange(part * total // NUM_KILLS + 1, (part + 1) * total // NUM_KILLS)
        kill_at(start(data, killed), data, killed, stored, rng.uniform(0, 0.2))
        lost.append(num_stored(data, killed))
    assert lost == sorted(lost)
    assert 0 < lost[0] < lost[-1] < total
    assert start(data, killed).wait(600) == 0
    expected, found = contents(whole), contents(killed)
    assert found.keys() == expected.keys()
    assert [name for name in expected if found[name] != expected[name]] == []
    with (whole / SCORES_FILE).open() as file:
        scores = {(row["benchmark"], row["score"]): row for row in csv.DictReader(file)}
    # the same questions in both formats; the model's card says 0.4 for one greedy answer
    assert 0 < float(scores["test", "accuracy"]["value"]) < 0.5
    assert 0 < float(scores["digits_tsv", "accuracy"]["value"]) < 0.5
    assert float(scores["test", "pass@8"]["value"]) >= float(scores["test", "accuracy"]["value"])
