"""Processes of a run are killed or stopped: each is named, no step is trained on a part of its
responses, and the same command goes on as if nothing had happened."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.system.chaos.reference import BY_TIME
from tests.system.smoke import Smoke, metrics, rollouts
from vapo_verl import heartbeat
from vapo_verl.run_folder.checkpoints import complete_steps

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

STEPS, NUM_RESPONSES = 3, 16 * 5
START_S = 600.0
"""For a start of the command on a busy machine."""
BEATS = f"/{heartbeat.FOLDER}/"
SHORT = (
    f"trainer.total_training_steps={STEPS}",
    "trainer.save_freq=1",
    "trainer.test_freq=-1",
    "trainer.val_before_train=false",
    "vapo.logging.console=short",
)
TITLES = {
    "engine": "VLLM::EngineCore",
    "server": "ray::VapoHttpServer",
    "agent loop": "ray::VapoAgentLoopWorker",
    "FSDP worker": "ray::WorkerDict",
    "trainer": "ray::VapoTaskRunner",
}


class FaultyRun:
    """One run of the smoke recipe to which something happens."""

    def __init__(self, smoke: Smoke, name: str, *overrides: str) -> None:
        self.smoke, self.name = smoke, name
        self.run_dir = smoke.root / name
        self._before = len(self.log())
        self.process = smoke.start(name, *SHORT, *overrides)

    def log(self) -> str:
        log = self.run_dir / "console.log"
        return log.read_text(errors="replace") if log.exists() else ""

    def wait_for(self, pattern: str) -> None:
        """Until this start of the run has logged what matches."""
        self._while_running(lambda: re.search(pattern, self.log()[self._before :]) is not None)

    def wait_for_responses(self) -> None:
        """Until some responses of a rollout have come and others have not."""
        pid = self.pid("agent loop")
        (path,) = {Path(m.path) for m in psutil.Process(pid).memory_maps() if BEATS in m.path}
        folder, most = path.parent, NUM_RESPONSES - 10
        self._while_running(lambda: 0 < heartbeat.read(folder, pid).pending < most)

    def until(self, happened: Callable[[], bool]) -> None:
        """Wait for it."""
        end = time.monotonic() + START_S
        while not happened():
            assert time.monotonic() < end, self.smoke.log(self.name)[-6000:]
            time.sleep(0.02)

    def _while_running(self, happened: Callable[[], bool]) -> None:
        def look() -> bool:
            assert self.process.poll() is None, self.smoke.log(self.name)[-6000:]
            return happened()

        self.until(look)

    def pid(self, process: str) -> int:
        """The process of the run, once it has its title."""
        found: list[int] = []

        def look() -> bool:
            for child in psutil.Process(self.process.pid).children(recursive=True):
                with suppress(psutil.NoSuchProcess):
                    if " ".join(child.cmdline()).startswith(TITLES[process]):
                        found.append(child.pid)
            return bool(found)

        self._while_running(look)
        return found[0]

    def send(self, process: str, number: int) -> int:
        """Send a signal to a process of the run; its pid."""
        pid = self.pid(process)
        self._sent_at = time.localtime()
        os.kill(pid, number)
        return pid

    def end(self, within_s: float) -> str:
        """The last words of a run that must end with code 1, and see the harm within some time."""
        assert self.process.wait(timeout=START_S) == 1
        said = self.smoke.log(self.name)
        last = said[said.rindex("vapo_verl:") :]
        seen_at = time.strptime(re.findall(r"seen at ([\d:]+)", last)[0], "%H:%M:%S")
        assert (seconds(seen_at) - seconds(self._sent_at)) % 86_400 <= within_s, last
        assert "Traceback" not in last
        assert f"{self.run_dir / 'console.log'}" in last.splitlines()[-1]
        assert len(last.splitlines()) <= 15, last
        return last


def seconds(time_of_day: time.struct_time) -> int:
    """Since midnight."""
    return (time_of_day.tm_hour * 60 + time_of_day.tm_min) * 60 + time_of_day.tm_sec


@pytest.fixture(scope="module")
def straight(smoke: Smoke) -> Path:
    return smoke.run("straight", *SHORT)


@pytest.fixture
def run(smoke: Smoke, request: pytest.FixtureRequest) -> Iterator[FaultyRun]:
    name = request.node.name.replace("[", "_").replace("]", "")
    run = FaultyRun(smoke, name, *getattr(request, "param", ()))
    yield run
    if run.process.poll() is None:
        os.killpg(run.process.pid, signal.SIGKILL)


def check_same(one: Path, other: Path) -> None:
    """Two runs have the same steps, sampled responses and metrics that are not times."""
    first, second = metrics(one), metrics(other)
    assert sorted(first) == sorted(second) == list(range(1, STEPS + 1))
    for step in first:
        texts = [[row["response"] for row in rollouts(run, step)] for run in (one, other)]
        assert texts[0] == texts[1], f"step {step}"
        assert first[step].keys() == second[step].keys()
        for name in (name for name in first[step] if not BY_TIME.search(name)):
            value, expected = second[step][name], first[step][name]
            if expected is not None:  # nan
                expected = pytest.approx(expected, rel=1e-3, abs=1e-4)
            assert value == expected, f"step {step}: {name}"


def test_an_engine_killed_in_a_rollout_trains_nothing(smoke, straight, run):
    run.wait_for(r"\] rollout")
    run.wait_for(r"step 1/3 \|")
    run.wait_for(r"step 2/3 \[[=.]+\] rollout")
    run.wait_for_responses()
    pid = run.send("engine", signal.SIGKILL)
    said = run.end(within_s=60)
    assert f"the vLLM engine process VLLM::EngineCore (pid {pid}" in said
    assert "step 2, rollout" in said
    assert re.search(r"\d+ of 80 responses .*failed", said)
    assert "The same command goes on with step 2" in said
    assert run.log().count("Traceback") < 30  # of 80 responses, with probes
    assert "synthetic padding" not in run.log()
    assert complete_steps(run.run_dir) == [1]

    smoke.run(run.name, *SHORT)
    check_same(straight, run.run_dir)


@pytest.mark.parametrize(
    "run", [("vapo.rollout.restart_servers=true",)], indirect=True, ids=["restarted"]
)
def test_a_dead_engine_and_a_dead_server_are_restarted_and_nothing_differs(straight, run):
    run.wait_for(r"step 2/3 \[[=.]+\] rollout")
    run.wait_for_responses()
    first = run.send("engine", signal.SIGKILL)
    run.wait_for(r"step 3/3 \[[=.]+\] rollout")
    run.wait_for_responses()
    second = run.send("server", signal.SIGKILL)
    assert run.process.wait(timeout=START_S) == 0, run.smoke.log(run.name)[-6000:]
    said = run.log()
    assert f"step 2, rollout: the vLLM engine process VLLM::EngineCore (pid {first}" in said
    assert f"step 3, rollout: the vLLM server (pid {second}" in said
    assert said.count("asking again for the missing responses to") == 2
    check_same(straight, run.run_dir)


def test_a_server_killed_between_rollout_and_update_is_named(run):
    run.wait_for(r"step 1/3 \|")
    run.wait_for(r"step 2/3 \[[=.]+\] log probabilities")
    pid = run.send("server", signal.SIGKILL)
    said = run.end(within_s=60)
    assert f"the vLLM server (pid {pid}" in said
    assert re.search(r"step 2, (log probabilities|update|checkpoint|weight transfer)", said)
    assert complete_steps(run.run_dir) == [1]
    assert not list(Path("/dev/shm").glob("verl_weights_*"))


@pytest.mark.parametrize("run", [("vapo.rollout.timeout_s=20",)], indirect=True, ids=["20s"])
@pytest.mark.parametrize("process", ["server", "agent loop", "FSDP worker"])
def test_a_stopped_process_is_named_within_the_timeout(run, process):
    run.wait_for(r"\] rollout")
    pid = run.send(process, signal.SIGSTOP)
    said = run.end(within_s=20 + 60)
    assert re.search(rf"the (vLLM )?{process}( worker)? \(pid {pid}", said)
    assert "stopped by a signal" in said
    assert complete_steps(run.run_dir) == []
    run.until(lambda: not psutil.pid_exists(pid))


def test_two_interrupts_end_a_run_without_a_traceback(run):
    run.wait_for(r"\[vapo begin\] vLLM")
    for _ in range(2):
        os.killpg(run.process.pid, signal.SIGINT)
        time.sleep(0.7)
    assert run.process.wait(timeout=START_S) == 130
    said = run.smoke.log(run.name)
    assert "Traceback" not in said
    assert "vapo_verl: interrupted (Ctrl-C). No step is saved" in said.splitlines()[-1]
