"""self, with a real vLLM server and the small model that ships with the package."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

import vapo_verl
from vapo_verl.claims import serve
from vapo_verl.process_tree import is_alive

MODEL = Path(vapo_verl.__file__).parent / "digits" / "model" / "digits"
# The instructions alone are 609 of this model's tokens.
VLLM_ARGS = "--dtype float32 --enforce-eager --max-model-len 2048 --max-num-seqs 4"


def watch(process: subprocess.Popen, num_wanted: int | None = None) -> set[psutil.Process]:
    """All that the command starts, until it ends or has started so many."""
    seen: set[psutil.Process] = set()
    deadline = time.monotonic() + 300
    while process.poll() is None and (num_wanted is None or len(seen) < num_wanted):
        assert time.monotonic() < deadline
        with contextlib.suppress(psutil.NoSuchProcess):
            seen |= set(psutil.Process(process.pid).children(recursive=True))
        time.sleep(0.05)
    return seen


def are_gone(processes: set[psutil.Process], timeout_s: float) -> bool:
    deadline = time.monotonic() + timeout_s
    while any(is_alive(process) for process in processes):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


@pytest.fixture
def begin(tmp_path, parquet):
    """Start the command on three images, away from any accelerator."""
    environment = os.environ | {
        "TORCHDYNAMO_DISABLE": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
    }
    source = parquet(3)

    def start() -> subprocess.Popen:
        command = [sys.executable, "-m", "vapo_verl.claims", "self", str(source)]
        command += ["--out", str(tmp_path / "out"), "--model", str(MODEL)]
        command += [f"--vllm-args={VLLM_ARGS}", "--max-tokens", "32", "--max-attempts", "2"]
        return subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    return start


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_model_that_cannot_write_claims_fails_every_image_and_leaves_no_process(begin, tmp_path):
    process = begin()
    started = watch(process)
    printed = process.communicate()[0]
    assert process.returncode == 1, printed
    run = json.loads((tmp_path / "out" / "report.json").read_text())["run"]
    assert run["failure_reasons"] == {"no valid true and false claim": 3}, printed
    assert run["usage"]["answers"] == 3 * 2
    assert len(started) >= 3  # the guard, the server and its engine
    assert are_gone(started, 0)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("number", "limit_s"), [(signal.SIGTERM, 0), (signal.SIGKILL, 30)])
def test_a_command_that_is_ended_leaves_no_process(begin, number, limit_s):
    process = begin()
    started = watch(process, num_wanted=4)  # guard, server, tracker, engine
    time.sleep(1)
    process.send_signal(number)
    process.communicate(timeout=120)
    assert are_gone(started, limit_s)


def test_nothing_to_do_starts_no_server(claims, parquet, tmp_path, monkeypatch, png):
    def refuse(*arguments, **named):
        raise AssertionError("the server was started")

    monkeypatch.setattr(serve, "vllm_server", refuse)
    source, out = parquet(2), tmp_path / "out"
    assert claims("generate", source, "--out", out) == 0
    assert claims("self", source, "--out", out, "--model", "any") == 0
    shutil.rmtree(out)
    assert claims("self", source, "--out", out, "--model", "any", "--dry-run") == 0
