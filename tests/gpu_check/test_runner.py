"""Stages that crash, hang, are killed or are stopped: each is told, and the others run."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest

from vapo_verl import process_tree
from vapo_verl.gpu_check.runner import Stage, machine_facts, run_check

RECORD = """
import json, os, signal, subprocess, sys, time
def record(name, status="passed", message=""):
    line = {"name": name, "status": status, "seconds": 0.1, "message": message, "figures": {"n": 1}}
    with open(sys.argv[1] + "/cases.jsonl", "a") as stream:
        stream.write(json.dumps(line) + "\\n")
"""
BODIES = {
    "good": "record('one'); record('two')",
    "wrong": "record('one'); record('two', 'failed', 'off by 1')",
    "crash": "record('one'); print('out of memory'); sys.exit(3)",
    "killed": "print('going down', flush=True); os.kill(os.getpid(), signal.SIGKILL)",
    "hang": """
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        print("child", child.pid, flush=True)
        record('one')
        time.sleep(600)
    """,
    "sampler": "print(os.environ['VLLM_USE_FLASHINFER_SAMPLER'])",
    "idle": "record('one', 'skipped', 'no GPU')",
}


def stages(*names, core_s=1, cap_s=3):
    return [
        Stage(name=name, what="a test", needs="nothing", core_s=core_s, cap_s=cap_s)
        for name in names
    ]


def command(stage, seconds, scratch):
    assert stage.core_s <= seconds <= stage.cap_s
    body = RECORD + textwrap.dedent(BODIES[stage.name])
    return [sys.executable, "-c", body, str(scratch)]


@pytest.fixture
def check(tmp_path, monkeypatch):
    monkeypatch.setattr(process_tree, "TERM_S", 1.0)
    said = []

    def run(*chosen, minutes=1.0):
        result = run_check(
            chosen,
            minutes=minutes,
            out=tmp_path / "out",
            machine={"gpu": "none"},
            command=command,
            say=said.append,
        )
        return result, "\n".join(said)

    return run


def outcome(result):
    return {stage.name: stage.status for stage in result.stages}


def is_running(pid):
    return psutil.pid_exists(pid) and process_tree.is_alive(psutil.Process(pid))


def test_a_stage_that_crashes_is_told_with_its_last_lines_and_the_rest_runs(check, tmp_path):
    result, said = check(*stages("good", "crash", "killed", "wrong", "idle"))
    assert outcome(result) == {
        "good": "passed",
        "crash": "failed",
        "killed": "failed",
        "wrong": "failed",
        "idle": "skipped",
    }
    assert not result.passed
    messages = {stage.name: stage.message for stage in result.stages}
    assert messages["crash"] == "its process ended with exit code 3; last lines: out of memory"
    assert messages["killed"] == "its process ended with killed by SIGKILL; last lines: going down"
    assert [case.name for case in result.stages[1].cases] == ["one"], "what it did is lost"
    assert "| out of memory" in said
    assert "FAILED   two (0.1 s): off by 1" in said
    assert (tmp_path / "out" / "crash.log").read_text() == "out of memory\n"


@pytest.mark.parametrize(("given", "used"), [(None, "0"), ("1", "1")])
def test_engines_of_a_stage_need_no_compiler_to_sample(check, tmp_path, monkeypatch, given, used):
    monkeypatch.delenv("VLLM_USE_FLASHINFER_SAMPLER", raising=False)
    if given:
        monkeypatch.setenv("VLLM_USE_FLASHINFER_SAMPLER", given)
    check(*stages("sampler"))
    assert (tmp_path / "out" / "sampler.log").read_text() == f"{used}\n"


def test_a_stage_that_hangs_is_ended_with_its_children(check, tmp_path):
    result, _ = check(*stages("hang", "good", cap_s=2))
    assert outcome(result) == {"hang": "failed", "good": "passed"}
    assert result.stages[0].message.startswith("not done after 2 s; last lines: child ")
    child = int((tmp_path / "out" / "hang.log").read_text().split()[1])
    assert not is_running(child)


def test_a_stage_without_time_is_skipped(check):
    (short,), (long,) = stages("good"), stages("wrong", core_s=50, cap_s=60)
    result, _ = check(short, long, minutes=0.5)
    assert [stage.status for stage in result.stages] == ["passed", "skipped"]
    assert "50 s needed" in result.stages[1].message
    assert result.passed


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_check_that_is_stopped_leaves_its_results_and_nothing_that_runs(tmp_path, number):
    code = f"""
        import sys
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        import signal
        signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in a background shell
        import test_runner as t
        from pathlib import Path
        from vapo_verl import process_tree
        from vapo_verl.gpu_check.runner import run_check
        process_tree.TERM_S = 1.0
        result = run_check(
            t.stages("good", "hang", "wrong", cap_s=60), minutes=5, out=Path(sys.argv[1]),
            machine={{}}, command=t.command, say=lambda line: print(line, flush=True),
        )
        print("stopped by", result.stopped)
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    log = tmp_path / "hang.log"
    deadline = time.monotonic() + 60
    while not (log.is_file() and log.read_text().endswith("\n")):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(process.pid, number)
    told, _ = process.communicate(timeout=60)
    assert told.endswith(f"stopped by {number.name}\n")
    document = json.loads((tmp_path / "results.json").read_text())
    assert document["stopped"] == number.name
    assert [stage["status"] for stage in document["stages"]] == ["passed", "failed", "skipped"]
    assert document["stages"][1]["message"] == f"stopped by {number.name}"
    assert not is_running(int(log.read_text().split()[1]))


def test_facts_of_a_machine_without_a_gpu():
    facts = machine_facts()
    assert facts["python"] == ".".join(map(str, sys.version_info[:3]))
    assert str(facts["torch"]).startswith("2.")
    assert isinstance(facts["gpus"], int)
