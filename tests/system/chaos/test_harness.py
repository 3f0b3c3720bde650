"""The harness finds what it looks for, and draws the same faults for the same seed."""

import json
from collections import Counter
from pathlib import Path

import pytest

from tests.system.chaos import reference
from tests.system.chaos.faults import KILLED, PHASES, all_faults, chains, drawn
from vapo_verl.run_folder.checkpoints import checkpoint_folder, mark_complete
from vapo_verl.run_folder.metrics import MetricsFile
from vapo_verl.run_folder.rollouts import write_rollouts

STEPS = 4


def sample(step: int) -> dict[str, object]:
    return {
        "step": step,
        "uid": f"{step:06d}-0",
        "sample": 0,
        "response_ids": [1, 2],
        "anchors": [],
    }


def make_run(folder: Path) -> Path:
    """A finished run; its metrics depend on the step, and one of them on the time."""
    folder.mkdir()
    metrics = MetricsFile(folder / "metrics.jsonl", 0)
    for step in range(1, STEPS + 1):
        write_rollouts(folder, step, [sample(step)])
        metrics.log({"actor/pg_loss": 0.1 * step, "timing_s/step": hash(folder)}, step)
        checkpoint_folder(folder, step).mkdir()
        (checkpoint_folder(folder, step) / "data.pt").write_bytes(b"data %d" % step)
        mark_complete(folder, step)
    (folder / "report.html").touch()
    return folder


@pytest.fixture
def runs(tmp_path):
    return make_run(tmp_path / "run"), make_run(tmp_path / "reference")


def rewrite(run: Path, change) -> None:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    text = "".join(json.dumps(line) + "\n" for line in change(lines))
    (run / "metrics.jsonl").write_text(text)


def poison(lines):
    lines[2]["data"]["actor/pg_loss"] *= 1.001
    return lines


DAMAGES = {
    "steps without a line in metrics.jsonl: [2]": lambda run: rewrite(run, lambda x: x[:1] + x[2:]),
    "repeated steps in metrics.jsonl: [1, 1, 2": lambda run: rewrite(run, lambda x: x[:1] + x),
    "step 3: 1 of 1 metrics differ: actor/pg_loss 0.3": lambda run: rewrite(run, poison),
    "rollouts missing: ['step_000003.parquet']": lambda run: (
        run / "rollouts" / "step_000003.parquet"
    ).unlink(),
    "step 3: 1 of 1 sampled responses differ": lambda run: write_rollouts(
        run, 3, [sample(3) | {"response_ids": [1, 3]}]
    ),
    "checkpoint 4: data.pt: expected 6 bytes, found 3 bytes": lambda run: (
        checkpoint_folder(run, 4) / "data.pt"
    ).write_bytes(b"dat"),
    "no checksums in checkpoint 4": lambda run: (
        checkpoint_folder(run, 4) / "complete.json"
    ).write_text('{"step": 4}'),
    "no report.html": lambda run: (run / "report.html").unlink(),
}


def test_a_run_like_its_reference_has_no_problem(runs):
    assert reference.problems(*runs, is_finished=True) == []


@pytest.mark.parametrize("problem", DAMAGES)
def test_each_problem_is_found(runs, problem):
    DAMAGES[problem](runs[0])
    assert any(found.startswith(problem) for found in reference.problems(*runs, is_finished=True))


def test_a_run_that_stopped_early_is_not_finished(runs):
    run, straight = runs
    rewrite(run, lambda lines: lines[:3])
    (checkpoint_folder(run, 4) / "complete.json").unlink()
    assert reference.problems(run, straight, is_finished=False) == []
    assert reference.problems(run, straight, is_finished=True) == [
        "steps [1, 2, 3] instead of [1, 2, 3, 4]"
    ]


def test_the_same_seed_draws_the_same_faults_and_all_kinds_come_in_turn():
    assert drawn(30, 1) == drawn(30, 1) != drawn(30, 2)
    chosen = drawn(30, 1)
    assert len({fault.name for fault in chosen}) == 30
    assert {fault.role for fault in chosen if fault.kind == "kill"} == set(KILLED)
    assert {fault.phase for fault in chosen} >= set(PHASES)
    assert set(Counter(fault.ranks for fault in chosen)) == {1, 2}
    assert [fault.name for fault in drawn(99, 1, "stop-server-update-1rank")] == [
        "stop-server-update-1rank"
    ]


def test_each_fault_is_in_one_chain_and_those_after_which_a_run_ends_well_come_last():
    faults = drawn(len(all_faults()), 3)
    planned = chains(faults, 3)
    assert Counter(fault.name for chain in planned for fault in chain) == Counter(
        fault.name for fault in faults
    )
    for chain in planned:
        assert len(chain) <= 3
        assert len({fault.ranks for fault in chain}) == 1
        assert sorted(chain, key=lambda fault: fault.goes_on) == chain
