"""Runs that are asked to stop, and a run whose disk is full: what they leave, how they go on."""

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.system.smoke import Smoke, metrics, rollouts
from vapo_verl.run_folder.checkpoints import MARKER, checkpoint_folder, complete_steps
from vapo_verl.trainer.stopping import EXIT_STOPPED

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

STEPS = 7
SHORT = (
    f"trainer.total_training_steps={STEPS}",
    "trainer.save_freq=2",
    "trainer.test_freq=-1",
    "trainer.val_before_train=false",
    "trainer.max_actor_ckpt_to_keep=2",
)
BEFORE_THE_UPDATE = ("gen", "old_log_prob", "ref", "adv")


class Stops:
    """One run that is stopped again and again."""

    def __init__(self, smoke: Smoke, name: str) -> None:
        self.smoke = smoke
        self.name = name
        self.run_dir = smoke.root / name

    def stop(self, reached: Callable[[str], bool], *signals: int, after_s: float = 0.0) -> str:
        """Start, wait, send the signals; what the run said until its end."""
        before = len(self._log())
        process = self.smoke.start(self.name, *SHORT)
        self._wait(process, lambda: reached(self._log()[before:]))
        time.sleep(after_s)
        for number in signals:
            process.send_signal(number)
            time.sleep(0.2)
        assert process.wait(timeout=600) == EXIT_STOPPED, self._log()[-6000:]
        assert not _processes_of(process.pid), "the run left processes behind"
        return self._log()[before:]

    def _wait(self, process: subprocess.Popen[str], happened: Callable[[], bool]) -> None:
        while not happened():
            assert process.poll() is None, self._log()[-6000:]
            time.sleep(0.02)

    def _log(self) -> str:
        return self.smoke.log(self.name) if (self.smoke.root / f"{self.name}.log").exists() else ""


def _processes_of(group: int) -> list[str]:
    """Command lines of the living processes of a group; a run has one of its own.

    A zombie has ended, and init collects it a moment later.
    """
    found = subprocess.run(["pgrep", "-ag", str(group)], capture_output=True, text=True)
    return [line for line in found.stdout.splitlines() if not line.endswith("<defunct>")]


def _check_stop(run_dir: Path, said: str) -> int:
    """The step at which a run says that it stopped: logged, saved once, and the newest of two."""
    step = int(re.findall(r"Stopped on request at step (\d+); the same command resumes", said)[0])
    saves = re.findall(r"Saving checkpoint to \S+", said)
    assert len(saves) == len(set(saves))
    assert max(metrics(run_dir)) == complete_steps(run_dir)[-1] == step
    assert len(complete_steps(run_dir)) <= 2
    return step


@pytest.fixture(scope="module")
def straight(smoke: Smoke) -> Path:
    return smoke.run("straight", *SHORT)


@pytest.fixture(scope="module")
def stopped(smoke: Smoke) -> Path:
    """The same run, stopped in each phase of a step and started again."""
    run = Stops(smoke, "stopped")
    folder = run.run_dir

    saved = checkpoint_folder(folder, 2)
    said = run.stop(
        lambda _: saved.exists() and not (saved / MARKER).exists(),  # half of it is written
        signal.SIGTERM,
        signal.SIGUSR1,
    )
    assert "already stopping" in said
    _check_stop(folder, said)

    said = run.stop(lambda log: "anchor format check" in log, signal.SIGUSR1)  # a rollout begins
    last = _check_stop(folder, said)

    timing = metrics(folder)[last]
    until_update_s = sum(timing[f"timing_s/{phase}"] for phase in BEFORE_THE_UPDATE)
    said = run.stop(
        lambda log: "anchor format check" in log,
        signal.SIGTERM,
        after_s=until_update_s + timing["timing_s/update_actor"] / 2,
    )
    _check_stop(folder, said)

    smoke.run("stopped", *SHORT)
    return folder


@pytest.mark.parametrize(
    ("reached", "says"),
    [
        ("ray init kwargs", "stopped before the run began"),  # Ray has a handler of its own now
        ("VapoHttpServer", "Stopped on request before the first step"),  # the engine loads
    ],
)
def test_a_run_that_starts_ends_at_once(smoke, reached, says):
    run = Stops(smoke, "starting")
    assert says in run.stop(lambda log: reached in log, signal.SIGTERM)
    assert complete_steps(run.run_dir) == []


def test_no_step_is_lost_or_repeated(straight, stopped):
    assert sorted(metrics(stopped)) == sorted(metrics(straight)) == list(range(1, STEPS + 1))


def test_stopped_and_resumed_is_the_straight_run(straight, stopped):
    one, other = metrics(straight), metrics(stopped)
    for step in range(1, STEPS + 1):
        prompts = [[row["prompt"] for row in rollouts(run, step)] for run in (straight, stopped)]
        assert prompts[0] == prompts[1], f"step {step} saw other data"
        for name in ("vapo/reward/total", "actor/pg_loss", "actor/grad_norm", "actor/entropy"):
            assert other[step][name] == pytest.approx(one[step][name], rel=1e-3, abs=1e-4), name


def test_both_end_with_the_newest_checkpoints_in_whole_folders(straight, stopped):
    for run_dir in (straight, stopped):
        assert complete_steps(run_dir) == [STEPS - 1, STEPS]
        assert sorted(run_dir.glob("global_step_*")) == [
            checkpoint_folder(run_dir, step) for step in (STEPS - 1, STEPS)
        ]
        assert (run_dir / "latest_checkpointed_iteration.txt").read_text() == str(STEPS)


@pytest.fixture
def small_disk(smoke: Smoke) -> Iterator[Path]:
    """A file system of its own with room for one checkpoint (28 MB), as a run folder."""
    folder = smoke.root / "small_disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=40m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("mounting a small tmpfs needs root")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_disk_is_named_and_the_older_checkpoint_goes_on(smoke, small_disk):
    two_saves = (*SHORT, "trainer.total_training_steps=2", "trainer.save_freq=1")
    process = smoke.start("small_disk", *two_saves)
    assert process.wait(timeout=600) == 1
    said = smoke.log("small_disk")
    assert f"could not write the checkpoint {small_disk / 'global_step_2'}" in said
    assert "That of step 1 is complete" in said
    assert [folder.name for folder in small_disk.glob("global_step_*")] == ["global_step_1"]

    subprocess.run(["mount", "-o", "remount,size=200m", str(small_disk)], check=True)
    smoke.run("small_disk", *two_saves)
    assert sorted(metrics(small_disk)) == [1, 2]
    assert complete_steps(small_disk) == [1, 2]
