"""One start of the training command with one fault, and what came of it.

Roles and phases are found from outside: by process titles and by the run's console.log. Each run
has /tmp and /dev/shm of its own, in a mount namespace, so that all it leaves there can be seen.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import psutil

from tests.system.chaos.faults import ROLES, Fault
from vapo_verl.console import marked
from vapo_verl.run_folder.checkpoints import checkpoint_folder, complete_steps, latest_complete

NAMED_S = 60.0
"""Within this a death is to be noticed; a hang within `HANG_S` more."""
HANG_S = 30.0
LEFT_S = 30.0
"""After this nothing of the run is to be left."""
GIVE_UP_S = 150.0
"""After this without an end the harness kills the run."""
START_S, RUN_S = 600.0, 1800.0
"""For a start to come to a phase, and for one to come to the last step."""
NUM_STEPS = 8
TEST_FREQ = 2
SETTINGS = (
    f"trainer.total_training_steps={NUM_STEPS}",
    "trainer.save_freq=1",
    f"trainer.test_freq={TEST_FREQ}",
    "trainer.val_before_train=false",
    "trainer.max_actor_ckpt_to_keep=3",
    "data.train_batch_size=8",
    "data.val_max_samples=8",
    "vapo.anchors.self_test_rows=0",
    f"vapo.rollout.timeout_s={HANG_S:.0f}",
)
STAYS_IN_TMP = re.compile(r"^(ray|torchinductor_\w+)(/|$)")
"""Ray's logs and compiled kernels: made to stay."""
TRACES = re.compile(
    r"died|dead|hang|hung|no answer|not answer|no progress|could not|room for|is damaged|in use"
    r"|is writing here|disk is full|MiB free|failed|stopped by a signal",
    re.IGNORECASE,
)


@dataclass(slots=True, kw_only=True)
class Observation:
    """What came of one fault."""

    fault: str
    instant: str = ""
    noticed_s: float | None = None
    """From the fault to the first line on the console that speaks of it; None for none."""
    ended_s: float | None = None
    """From the fault to the end of the command; None where the harness killed it."""
    exit_code: int | None = None
    is_named: bool | None = None
    """Whether the last lines name what was hurt; None where nobody is left to say so."""
    num_lines: int = 0
    """On the console, after the fault."""
    last_lines: list[str] = field(default_factory=list)
    left_processes: list[str] = field(default_factory=list)
    left_files: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    """Of the run folder, against the reference."""
    note: str = ""


class Run:
    """A run folder and the starts of the command in it.

    Args:
        folder: of this run alone; holds `run`, `tmp`, `shm` and the output of each start.
        data: folder with the digits data.
    """

    def __init__(self, folder: Path, data: Path, ranks: int) -> None:
        self.folder, self.data, self.ranks = folder, data, ranks
        self.run_dir, self.tmp, self.shm = folder / "run", folder / "tmp", folder / "shm"

    @contextmanager
    def mounted(self, disk_mib: int = 0) -> Iterator[None]:
        """Shared memory, and with `disk_mib` a small disk as the run folder, while within.

        The disk's content is kept between two sittings.
        """
        wanted = [(self.shm, 4096)] + [(self.run_dir, disk_mib)] * (disk_mib > 0)
        kept = self.folder / "disk"
        for place in (self.run_dir, self.tmp, self.shm):
            place.mkdir(parents=True, exist_ok=True)
        for place, size in wanted:
            options = f"size={size}m,mode=1777"
            subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)], check=True)
        if kept.exists():
            shutil.copytree(kept, self.run_dir, dirs_exist_ok=True)
        try:
            yield
        finally:
            if disk_mib:
                shutil.rmtree(kept, ignore_errors=True)
                shutil.copytree(self.run_dir, kept)
            for place, _ in wanted:
                subprocess.run(["umount", "--lazy", str(place)], check=False)

    def start(self, output: Path) -> subprocess.Popen[bytes]:
        """The command, with /tmp and /dev/shm of its own."""
        command = [sys.executable, "-m", "vapo_verl.main", *self._settings()]
        self.tmp.mkdir(parents=True, exist_ok=True)
        mounts = f"mount --bind {self.shm} /dev/shm && mount --bind {self.tmp} /tmp"
        with output.open("ab") as out:
            return subprocess.Popen(
                ["unshare", "--mount", "sh", "-c", f'{mounts} && exec "$@"', "sh", *command],
                cwd=self.folder,
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def doctor(self) -> str:
        """What `vapo doctor` says about the run folder."""
        command = [sys.executable, "-m", "vapo_verl.doctor", *self._settings()]
        asked = subprocess.run(
            command, env=self._environment(), cwd=self.folder, capture_output=True, text=True
        )
        return asked.stdout + asked.stderr

    def _settings(self) -> list[str]:
        folder, ranks = f"trainer.default_local_dir={self.run_dir}", self.ranks
        return ["+recipe=smoke", *SETTINGS, folder, f"trainer.n_gpus_per_node={ranks}"]

    def _environment(self) -> dict[str, str]:
        return os.environ | {"VAPO_DATA_DIR": str(self.data), "TMPDIR": "/tmp"}


class Trial:
    """One start, watched."""

    started: ClassVar[list[Trial]] = []

    def __init__(self, run: Run, number: int) -> None:
        self.run = run
        self.output = run.folder / f"start_{number}.out"
        self._console = run.run_dir / "console.log"
        self._offset = self._console.stat().st_size if self._console.exists() else 0
        self._seen = set[psutil.Process]()
        self.process = run.start(self.output)
        self.started.append(self)

    def look(self) -> None:
        """Note the processes of the run."""
        with suppress(psutil.NoSuchProcess):
            self._seen.update(psutil.Process(self.process.pid).children(recursive=True))

    def find(self, role: str) -> list[psutil.Process]:
        """Living processes of a role."""
        if role == "driver":
            return [psutil.Process(self.process.pid)]
        self.look()
        pattern, found = re.compile(ROLES[role][0]), []
        for member in self._seen:
            with suppress(psutil.NoSuchProcess):
                title = " ".join(member.cmdline()) or member.name()
                if pattern.search(title) and member.status() != psutil.STATUS_ZOMBIE:
                    found.append(member)
        return sorted(found, key=lambda member: member.pid)

    def wait(self, happened: Callable[[], bool], timeout_s: float, every_s: float = 0.05) -> bool:
        """Wait for it; False when the run ends before, or on time-out."""
        end, looked = time.monotonic() + timeout_s, 0.0
        while time.monotonic() < end:
            if happened():
                return True
            if self.process.poll() is not None:
                return False
            if time.monotonic() - looked > 1:
                self.look()
                looked = time.monotonic()
            time.sleep(every_s)
        return False

    def marks(self) -> list[tuple[str, str]]:
        """Kind and text of the marked lines of this start, from all processes."""
        if not self._console.exists():
            return []
        with self._console.open("rb") as file:
            file.seek(self._offset)
            lines = file.read().decode(errors="replace").splitlines()
        return [found for found in map(marked, lines) if found is not None]

    def reached(self, phase: str, step: int) -> bool:
        """Whether this start has come to a phase of a step."""
        marks = self.marks()
        if phase == "start":
            return any(text.startswith("actor and reference") for _, text in marks)
        prefix = f"step {step}/"
        progress = [text for kind, text in marks if kind == "progress" and text.startswith(prefix)]
        if phase == "rollout":
            return any("rollout" in text for text in progress)
        if phase == "log-prob":
            return any("log prob" in text for text in progress)
        if phase == "update":
            return any("update" in text for text in progress)
        if phase == "save":
            return ("begin", f"checkpoint of step {step}") in marks
        is_saved = any(kind == "end" and f"checkpoint of step {step}:" in t for kind, t in marks)
        if phase == "transfer":
            return is_saved and any(self.run.tmp.glob("rl-colocate-zmq-*.sock"))
        begun = [i for i, (kind, text) in enumerate(marks) if text.startswith("validation on")]
        return is_saved and bool(begun)

    def console(self) -> list[str]:
        return self.output.read_text(errors="replace").splitlines() if self.output.exists() else []

    def left_processes(self) -> list[str]:
        left = []
        for member in self._seen:
            with suppress(psutil.NoSuchProcess):
                if member.status() != psutil.STATUS_ZOMBIE:
                    left.append(f"{member.pid} {' '.join(member.cmdline())[:80] or member.name()}")
        return sorted(left)

    def left_files(self) -> list[str]:
        """Files of this run's /tmp and /dev/shm that are not made to stay."""
        found = [str(path.relative_to(self.run.tmp)) for path in self.run.tmp.rglob("*")]
        left = [name for name in found if not STAYS_IN_TMP.match(name)]
        return sorted(
            [f"/tmp/{n}" for n in left] + [f"/dev/shm/{p.name}" for p in self.shm_files()]
        )

    def shm_files(self) -> list[Path]:
        return [path for path in self.run.shm.iterdir() if path.name != FILL]

    @classmethod
    def end_all(cls) -> None:
        """Kill what still runs; nothing to do unless the harness is interrupted."""
        for trial in cls.started:
            if trial.process.poll() is None:
                trial.look()
                trial.kill_all()

    def kill_all(self) -> None:
        for member in [*self._seen, psutil.Process(self.process.pid)]:
            with suppress(psutil.NoSuchProcess):
                member.kill()
        self.process.wait()


FILL = "fill"


def fill(folder: Path) -> None:
    """Leave no room on a disk."""
    with suppress(OSError), (folder / FILL).open("wb", buffering=0) as file:
        for size in (1 << 20, 4096, 1):
            with suppress(OSError):
                while True:
                    file.write(bytes(size))


def damage(fault: Fault, run_dir: Path) -> str:
    """Damage the largest file of the newest checkpoint; what was done."""
    step = latest_complete(run_dir)
    assert step is not None, "no checkpoint to damage"
    folder = checkpoint_folder(run_dir, step)
    path = max(folder.rglob("*.pt"), key=lambda path: path.stat().st_size)
    if fault.kind == "lose":
        path.unlink()
    else:
        content = bytearray(path.read_bytes())
        middle = len(content) // 2
        if fault.kind == "cut":
            del content[middle:]
        else:
            content[middle] ^= 1
        path.write_bytes(content)
    return str(path.relative_to(run_dir))


def try_fault(
    run: Run, fault: Fault, number: int, usual_s: dict[str, float], first_step: int = 1
) -> Observation:
    """Start the command, do the harm, watch the end and what is left.

    Args:
        fault: that ends the run.
        number: of the start in this run folder.
        usual_s: length of the phases in the reference.
        first_step: before which no harm is done.
    """
    seen = Observation(fault=fault.name)
    step = max((latest_complete(run.run_dir) or 0) + 1, first_step)
    if fault.phase == "validation":
        step += -step % TEST_FREQ
    if step > NUM_STEPS:
        seen.note = "not tried: the run is finished"
        return seen
    named = ROLES[fault.role][1] if fault.role else ""
    if fault.kind == "shm":
        fill(run.shm)
        trial, begun = Trial(run, number), time.monotonic()
        seen.instant = f"before a start, after step {step - 1}"
        _watch_end(trial, seen, fault, 0, begun, "/dev/shm")
        (run.shm / FILL).unlink(missing_ok=True)
        return seen
    trial = Trial(run, number)
    if not trial.wait(lambda: trial.reached(fault.phase, step), START_S):
        seen.note = f"the run did not come to {fault.phase} of step {step}"
        seen.last_lines = trial.console()[-12:]
        trial.kill_all()
        return seen
    time.sleep(fault.delay * usual_s.get(fault.phase, 0.2))
    if fault.role:
        trial.wait(lambda: bool(trial.find(fault.role)), START_S)
    before = len(trial.console())
    trial.look()
    instant = time.monotonic()
    if fault.kind in ("kill", "stop"):
        victims = trial.find(fault.role)
        if not victims:
            seen.note = f"no process of the role {fault.role}"
        else:
            number = signal.SIGKILL if fault.kind == "kill" else signal.SIGSTOP
            victims[int(fault.delay * len(victims))].send_signal(number)
    elif fault.kind == "disk":
        fill(run.run_dir)
        named = "disk is full|No space left"
    seen.instant = f"{fault.phase} of step {step}, {fault.delay:.2f}"
    _watch_end(trial, seen, fault, before, instant, named)
    (run.run_dir / FILL).unlink(missing_ok=True)
    return seen


def last_start(run: Run, faults: Sequence[Fault], number: int, name: str) -> list[Observation]:
    """A start that goes on to the last step, whatever these faults do.

    Returns:
        What came of each fault, and of the start, which is called `name`.
    """
    observed, step = [], latest_complete(run.run_dir) or 0
    damages = [fault for fault in faults if fault.phase == "resume"]
    for fault in damages:
        seen = Observation(fault=fault.name, instant=f"before a start, after step {step}")
        observed.append(seen)
        if len(complete_steps(run.run_dir)) < 2:
            seen.note = "not tried: there is no older checkpoint"
            damages = []
        else:
            path = damage(fault, run.run_dir)
            if Path(path).name not in (said := run.doctor()):
                seen.problems.append(f"the doctor does not name {path}: {said[-400:]}")
    first = step if damages else step + 1  # the step that it begins with
    begun, trial = time.monotonic(), Trial(run, number)
    for seen in observed[: len(damages)]:
        _watch_resume(trial, seen, Path(path).name, step, begun)
    for fault in faults:
        if fault.kind == "second":
            seen = Observation(fault=fault.name, instant=f"rollout of step {first}")
            observed.append(seen)
            if trial.wait(lambda: trial.reached("rollout", first), START_S):
                _start_second(trial, seen)
            else:
                seen.note = "the run did not come to a rollout"
    trial.wait(lambda: False, RUN_S, every_s=0.5)
    seen = Observation(fault=name, instant="no fault", exit_code=trial.process.poll())
    if seen.exit_code is None:
        trial.kill_all()
    seen.last_lines = trial.console()[-12:]
    seen.left_processes, seen.left_files = trial.left_processes(), trial.left_files()
    return [*observed, seen]


def _watch_end(
    trial: Trial, seen: Observation, fault: Fault, before: int, instant: float, named: str
) -> None:
    """Wait for the end, and for what is left to go."""

    def notice() -> bool:
        new = trial.console()[before:]
        if seen.noticed_s is None and any(TRACES.search(line) for line in new):
            seen.noticed_s = round(time.monotonic() - instant, 1)
        return False

    trial.wait(notice, GIVE_UP_S, 0.2)
    notice()
    seen.exit_code = trial.process.poll()
    if seen.exit_code is None:
        seen.note += " not ended: killed by the harness"
        trial.kill_all()
    else:
        seen.ended_s = round(time.monotonic() - instant, 1)
    lines = trial.console()[before:]
    seen.num_lines, seen.last_lines = len(lines), lines[-12:]
    is_silent = fault.role == "driver" and fault.kind == "kill"
    if not is_silent and seen.is_named is None and named:
        seen.is_named = bool(re.search(named, "\n".join(seen.last_lines)))
    end = time.monotonic() + LEFT_S
    while time.monotonic() < end and (trial.left_processes() or trial.left_files()):
        time.sleep(0.5)
    seen.left_processes, seen.left_files = trial.left_processes(), trial.left_files()[:10]
    if seen.left_processes:
        trial.kill_all()


def _watch_resume(trial: Trial, seen: Observation, named: str, step: int, begun: float) -> None:
    """Wait until the start has said what is damaged and from which step it resumes instead."""

    def said(text: str) -> list[str]:
        return [line for line in trial.console() if text in line]

    trial.wait(lambda: bool(said(named)), START_S)
    seen.noticed_s = round(time.monotonic() - begun, 1)
    trial.wait(lambda: bool(said("resuming from step")), START_S)
    seen.is_named = bool(said(named))
    seen.note = " | ".join(line[:160] for line in (said(named) + said("resuming from step"))[:2])
    if not said(f"resuming from step {step - 1}"):
        seen.problems.append(f"it does not resume from step {step - 1}: {seen.note}")


def _start_second(trial: Trial, seen: Observation) -> None:
    """Start the same command beside the first, which it must leave alone: it is refused, or waits
    for the end and has nothing to do."""
    output = trial.run.folder / "second.out"
    output.unlink(missing_ok=True)
    begun = time.monotonic()
    second = trial.run.start(output)
    try:
        code = second.wait(timeout=150)
    except subprocess.TimeoutExpired:
        os.killpg(second.pid, signal.SIGKILL)
        code = None
    text = output.read_text(errors="replace")
    seen.noticed_s = round(time.monotonic() - begun, 1)
    said = "nothing to do" if code == 0 else "is writing here|in use"
    seen.is_named = code is not None and re.search(said, text) is not None
    seen.note = f"the second start ended with {code}: {text.strip().splitlines()[-1:]}"


def fresh(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
