"""Early decision of the packaged model, stopped in the middle and gone on with."""

import subprocess
import time

import pytest

from tests.evaluation.probing_commands import command_line, run, start
from vapo_verl.evaluation.early_decision import load_early_decision
from vapo_verl.evaluation.probing.journal import ROWS_FILE

TEXTS = ("--time-up", "", "--answer-start", "\\boxed{", "--answer-tokens", "8")
NUM_ROWS = 60


@pytest.mark.slow
def test_a_killed_run_goes_on_and_forces_answers(digits_data, tmp_path):
    data = digits_data(test=NUM_ROWS)["test"]
    out, options = tmp_path / "out", ("--batch", "4", *TEXTS)
    process = start("early-decision", data, out, *options)
    while not (out / ROWS_FILE).exists() or not (out / ROWS_FILE).stat().st_size:
        assert process.poll() is None, (tmp_path / "log.txt").read_text()[-4000:]
        time.sleep(0.05)
    process.kill()
    process.wait()
    before = (out / ROWS_FILE).read_bytes()
    whole_lines = before[: before.rfind(b"\n") + 1]
    assert whole_lines.count(b"\n") < NUM_ROWS

    records, summary = run("early-decision", data, out, *options)
    after = (out / ROWS_FILE).read_bytes()
    assert after.startswith(whole_lines)
    assert after.count(b"\n") == NUM_ROWS  # none was done twice
    assert [record["row"] for record in records] == list(range(NUM_ROWS))

    for row in load_early_decision(out).rows:
        positions = [cut.position for cut in row.cuts]
        assert positions == sorted(positions)
        assert (positions[0], positions[-1]) == row.reasoning
        assert row.response.startswith("<think>")
    assert summary["forced_agrees_with_response"]["share"] > 0.9
    # an answer from nowhere is right about one time in ten, and thinking helps this model
    assert summary["cuts"][0]["share"]["share"] < summary["cuts"][-1]["share"]["share"]

    refused = subprocess.run(
        command_line("early-decision", data, out, *options, "--num-cuts", "5"),
        capture_output=True,
        text=True,
    )
    assert refused.returncode == 2
    assert "--num-cuts was 21, is 5" in refused.stderr
