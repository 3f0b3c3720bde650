"""The harness finds what it looks for, and draws the same faults for the same seed."""

import json
from collections import Counter
from contextlib import nullcontext
from pathlib import Path

import pytest

from tests.checkpoints import mark_complete
from tests.system.chaos import __main__ as command
from tests.system.chaos import reference
from tests.system.chaos.faults import KILLED, PHASES, all_faults, chains, drawn
from tests.system.chaos.trial import Observation
from vapo_verl.run_folder.checkpoints import checkpoint_folder
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


def test_each_fault_is_in_one_chain_and_the_last_start_is_left_to_end_well():
    faults = drawn(len(all_faults()), 3)
    planned = chains(faults, 3)
    assert Counter(fault.name for chain in planned for fault in (*chain.ends, *chain.last)) == (
        Counter(fault.name for fault in faults)
    )
    for chain in planned:
        assert len(chain.ends) <= 3
        assert all(fault.ends_run for fault in chain.ends)
        assert sum(fault.phase == "resume" for fault in chain.last) <= 1
        assert sum(fault.kind == "second" for fault in chain.last) <= 1
        assert {fault.ranks for fault in (*chain.ends, *chain.last)} == {chain.ranks}


def seen(**fields: object) -> Observation:
    """What is seen of a fault that went as promised, but for these fields."""
    good = {"fault": "kill-rank-update-1rank", "noticed_s": 3.0, "is_named": True, "exit_code": 1}
    return Observation(**{**good, **fields})


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({}, None),
        ({"noticed_s": 61.0}, "noticed after 61.0 s"),
        ({"fault": "stop-rank-update-1rank", "noticed_s": 61.0}, None),
        ({"noticed_s": None}, "noticed after None s"),
        ({"fault": "kill-driver-save-1rank", "noticed_s": None, "is_named": None}, None),
        ({"is_named": False}, "not named"),
        ({"note": " not ended: killed by the harness"}, "not ended 150 s after the fault"),
        ({"num_lines": 104}, "104 lines on the console"),
        ({"last_lines": ["OSError: [Errno 28]"]}, "the last lines are not the run's own"),
        ({"last_lines": ["step 1", "vapo_verl: it died"]}, None),
        ({"left_files": ["/dev/shm/verl_weights_1"]}, "left: /dev/shm/verl_weights_1"),
        ({"problems": ["step 2: 3 of 90 metrics differ"]}, "run folder: step 2: 3 of 90 metrics"),
        ({"fault": "(end of chain_1)", "exit_code": 1}, "the last start ended with 1"),
        ({"fault": "(end of chain_1)", "exit_code": 0, "noticed_s": None}, None),
    ],
)
def test_a_broken_promise_is_a_complaint(fields, complaint):
    found = command.complaints(seen(**fields))
    assert [text[: len(complaint)] for text in found] == [complaint] if complaint else not found


@pytest.fixture
def harness(tmp_path, monkeypatch):
    """`harness(*arguments)`: exit code of the command without runs, and what it tried."""
    tried: list[str] = []
    broken: list[str] = []

    def try_fault(run, fault, number, usual_s, first_step):
        tried.append(fault.name)
        return seen(fault=fault.name, is_named=fault.name not in broken)

    def last_start(run, faults, number, name):
        tried.extend(fault.name for fault in faults)
        each = [seen(fault=f.name, is_named=f.name not in broken) for f in faults]
        return [*each, seen(fault=name, exit_code=0)]

    monkeypatch.setattr(command.trial, "try_fault", try_fault)
    monkeypatch.setattr(command.trial, "last_start", last_start)
    monkeypatch.setattr(command.Run, "mounted", lambda *_: nullcontext())
    monkeypatch.setattr(command.reference, "problems", lambda *_, **__: [])
    monkeypatch.setattr(command.reference, "usual_seconds", lambda _: {})
    monkeypatch.setattr(command, "digits", lambda folder: folder)
    monkeypatch.setattr(command, "straight_run", lambda out, data, ranks: out)
    monkeypatch.setattr(command.os, "geteuid", lambda: 0)
    monkeypatch.setattr(Path, "is_relative_to", lambda *_: False)  # pytest's folder is in /tmp
    out = tmp_path / "out"
    out.mkdir()

    def run(*arguments: str, breaks: str = "") -> tuple[int, list[str]]:
        tried.clear()
        broken[:] = [breaks]
        code = command.main(["--out", str(out), "--faults", "9", "--seed", "1", *arguments])
        return code, sorted(tried)

    return run


def test_a_sitting_goes_on_where_the_last_one_ended(harness, tmp_path, capsys):
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- table -->\nold\n<!-- end of table -->\nafter\n")
    names = [fault.name for fault in drawn(9, 1)]
    assert harness("--minutes", "0") == (command.LEFT, [])
    assert "0 of 9 faults" in capsys.readouterr().out
    assert harness("--page", str(page), breaks=names[3]) == (1, sorted(names))
    assert harness() == (1, [])  # all of it is in the journal
    lines = page.read_text().splitlines()
    assert (lines[0], lines[-1]) == ("before", "after") and "old" not in lines
    row = next(line for line in lines if line.startswith(f"| {names[3]} "))
    assert row.endswith("| not named |")
