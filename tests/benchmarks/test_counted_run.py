"""What is made of a counted run, and the check against an earlier one."""

import json
import os
import subprocess
import sys
from io import BytesIO
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

from benchmarks import counted_run
from benchmarks.counted_run import (
    PROMPTS,
    check,
    differences,
    lags,
    memory,
    metrics_of,
    number_of_steps,
    per_prompt,
    read_events,
    report_growth,
    rollouts,
    write_data,
)

BENCHMARKS = Path(counted_run.__file__).parent
ENDS = (10.0, 20.0, 30.0)
FIRST = (5.0, "AgentLoopWorkerTQ", "lag", 0.0)
EVERY_KIND = [(11.0, "Server", kind, 1.0) for kind in ("processor", "hash", "encoder", "sent")]


@pytest.mark.parametrize(
    ("value", "code"), [(10.0, 0), (9.0, 0), (10.5, 0), (10.51, 1), (11.0, 1), (1e9, 1)]
)
def test_a_growth_of_more_than_five_percent_is_flagged(value, code, capsys):
    then = {"counts": {"hash": 10.0}, "bytes": {340: {"response": 7}}}
    now = {"counts": {"hash": value}, "bytes": {"340": {"response": 7}}}
    assert report_growth(now, then) == code
    assert ("counts.hash: 10.0 -> " in capsys.readouterr().out) == bool(code)


def test_bytes_are_compared_too_and_verls_are_not():
    then = {"bytes": {"340": {"response": 100, "verl_response": 100}}}
    assert report_growth({"bytes": {340: {"response": 106, "verl_response": 1}}}, then) == 1
    assert report_growth({"bytes": {340: {"response": 100, "verl_response": 999}}}, then) == 0


def test_a_file_with_nothing_to_compare_is_refused():
    with pytest.raises(ValueError, match="none of these counts"):
        report_growth({"counts": {"hash": 1}}, {"counts": {"verl": 1}})


def test_the_check_of_a_run_reads_its_counts_and_no_times():
    def result(hashes, lag):
        ours = {"per_prompt": {"hash Server": hashes, "sent": 1e6}, "lag_ms": {"Server": lag}}
        return {"runs": {"ours": ours, "baseline": {"per_prompt": {"hash Server": 33.0}}}}

    assert check(result(1.0, 90.0), result(1.0, 1.0)) == 0
    assert check(result(2.0, 1.0), result(1.0, 1.0)) == 1


def test_the_committed_counts_can_be_checked_against():
    result = json.loads((BENCHMARKS / "results" / "rollout_scale.json").read_text())
    parts = {part: result[part] for part in ("counts", "bytes")}
    assert report_growth(parts, parts) == 0
    parts["counts"] = {"processor_runs": result["counts"]["processor_runs"] + 1}
    assert report_growth(parts, result) == 1


def test_counts_are_those_of_a_prompt_from_the_first_response_on():
    events = [
        FIRST,
        *EVERY_KIND,
        (4.0, "Server", "hash", 100.0),  # of the check before the first step
        (31.0, "Server", "hash", 100.0),  # behind the last
        *[(12.0, "Server", "processor", 2.0)] * (3 * PROMPTS),
        *[(13.0, "Worker", "processor", 1.0)] * (3 * PROMPTS),
        (14.0, "other", "sent", 12.0 * PROMPTS),
    ]
    found = per_prompt(events, ENDS)
    assert found["processor Server"] == pytest.approx(2 + 1 / (3 * PROMPTS), abs=1e-3)
    assert found["processor Worker"] == 1
    assert found["sent"] == pytest.approx(4 + 1 / (3 * PROMPTS), abs=1e-3)
    assert not any("lag" in name for name in found)


def test_a_kind_that_was_never_counted_is_an_error():
    with pytest.raises(ValueError, match=r"nothing counted of \['encoder'\]"):
        per_prompt([FIRST] + [event for event in EVERY_KIND if event[2] != "encoder"], ENDS)


def test_lag_is_that_of_each_role():
    events = [(11.0 + n / 100, "Server", "lag", float(n)) for n in range(101)]
    found = lags([FIRST, (4.0, "Server", "lag", 9e9), *events], ENDS)
    assert found["Server"] == {"p50": 50.0, "p99": 99.0, "max": 100.0}


def test_memory_has_the_peaks_of_steps_and_their_slope():
    """A process that grows by 64 MiB a step beside one that stays."""
    ends = [10.0 * n for n in range(1, 9)]
    samples = [
        (at, {"Worker": 2**20 + 2**16 * int(at // 10), "other": 2**20}) for at in range(1, 81)
    ]
    found = memory(samples, ends)
    assert found["peak_gib"] == pytest.approx(2 + 8 / 16, abs=1e-3)
    assert found["slope_mib_per_step"] == pytest.approx(64, abs=1)
    assert found["slopes_of_processes_mib_per_step"]["other"] == 0


def test_two_runs_differ_where_their_samples_or_metrics_do():
    samples, metrics = (
        [{"reward": [1.0], "p_yes": [[0.5]]}],
        [{"loss": 0.1, "nothing": float("nan")}],
    )
    same = differences((samples, metrics), (samples, metrics))
    assert same == ["stored samples and metrics are equal"]
    other = [{"reward": [1.0], "p_yes": [[0.5000001]]}], [{"loss": 0.2, "nothing": float("nan")}]
    assert differences((samples, metrics), other) == [
        "step 1: p_yes differ",
        "step 1: loss: 0.1 and 0.2",
    ]


def test_images_are_enlarged_to_a_multiple_of_a_token(tmp_path):
    paths = write_data(tmp_path, pixels=40_000, num_rows=2)
    for row in pq.read_table(paths["train"]).to_pylist():
        [image] = row["images"]
        assert Image.open(BytesIO(image["bytes"])).size == (196, 196)


def test_every_process_counts_into_a_file_of_its_own(tmp_path):
    """As Python starts with the hooks on its path, in whatever process."""
    code = (
        "from PIL import Image; "
        "from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor; "
        "from transfer_queue.utils import zmq_utils; "
        "images = [Image.new('RGB', (56, 56))] * 3; "
        "Qwen2VLImageProcessor()(images=images, return_tensors='pt'); "
        "zmq_utils.encode({'small': b'1'}); zmq_utils.encode({'large': b'1' * 10000})"
    )
    environment = {
        **os.environ,
        "PYTHONPATH": str(BENCHMARKS / "counting"),
        "VAPO_COUNTS": str(tmp_path),
    }
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=250)
    events = read_events(tmp_path)
    assert [(role, kind) for _, role, kind, _ in events] == [
        ("other", "processor"),
        ("other", "sent"),
    ]
    assert events[0][3] == 3
    assert 10_000 <= events[1][3] < 10_200


def test_a_run_folder_is_read_as_the_trainer_writes_it(make_run, rollout_row):
    rows = [rollout_row(1, index, sample) for index in range(2) for sample in range(2)]
    numbers = {"actor/loss": 0.5, "timing_s/step": 9.0, "vapo/anchors/probe_s": 1.0}
    run_dir = make_run("run", {1: rows[::-1]}, {1: numbers})
    [step] = rollouts(run_dir, 1)
    assert step["response_ids"] == [row["response_ids"] for row in rows]
    assert step["p_yes"] == [[0.9, 0.6]] * 4
    assert step["reward"][0]["total"] == 2.0
    assert metrics_of(run_dir) == [{"actor/loss": 0.5}]
    assert number_of_steps(run_dir / "metrics.jsonl") == 1
