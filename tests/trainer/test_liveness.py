"""The monitor names the process that died or hangs; a busy or slow one is left alone."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace

import psutil
import pytest
import ray

from vapo_verl import heartbeat
from vapo_verl.run_folder.resume import Start
from vapo_verl.trainer import liveness, node_watch
from vapo_verl.trainer.liveness import (
    ENGINE,
    LOOP,
    RANK,
    ROLLOUT,
    SAVE,
    SERVER,
    START,
    TRANSFER,
    UPDATE,
    VALIDATION,
    VERIFICATION,
    Finding,
    HangDetector,
    Member,
    Monitor,
    RunnerWatch,
    outlook,
)
from vapo_verl.trainer.node_watch import NodeWatch, Sighting

TIMEOUT_S = 300.0


def member(role: str, pid: int = 1) -> Member:
    return Member(role=role, pid=pid, node="n", address="10.0.0.1")


def judged(phase, sightings, *, every_s=2.0, until_s=400.0):
    """When the detector finds something in `sightings(seconds)`, and what it finds."""
    detector, now = HangDetector(TIMEOUT_S), 0.0
    while now <= until_s:
        found = detector.judge(now, phase, sightings(now))
        if found is not None:
            return now, *found
        now += every_s
    return None


IDLE = Sighting(status=psutil.STATUS_SLEEPING)


@pytest.mark.parametrize("phase", [None, ROLLOUT, UPDATE, TRANSFER, SAVE])
@pytest.mark.parametrize("role", [SERVER, LOOP, RANK, ENGINE, "TransferQueue storage"])
def test_a_dead_process_is_named_at_once_in_every_phase(phase, role):
    process = member(role, 7)
    now, what, who = judged(phase, lambda s: {process: replace(IDLE, alive=s < 10)})
    assert (now, who) == (10.0, process)
    assert what == f"the {role} (pid 7, node 10.0.0.1) died"


@pytest.mark.parametrize("phase", [None, ROLLOUT, UPDATE])
@pytest.mark.parametrize("status", [psutil.STATUS_STOPPED, psutil.STATUS_DISK_SLEEP])
@pytest.mark.parametrize("role", [SERVER, LOOP, RANK, "reward worker", "TransferQueue storage"])
def test_a_process_that_cannot_run_hangs_after_the_timeout_in_every_phase(phase, status, role):
    process, other = member(role, 7), member(RANK, 8)

    def seen(s):
        return {process: replace(IDLE, status=status), other: replace(IDLE, beats=int(s))}

    now, what, who = judged(phase, seen)
    assert (now, who) == (TIMEOUT_S, process)
    assert "hangs: " in what or "holds it up" in what


def test_a_process_that_waits_for_its_disk_and_works_does_not_hang():
    status = psutil.STATUS_DISK_SLEEP
    process = member(RANK)
    seen = lambda s: {process: replace(IDLE, status=status, cpu_s=s / 10)}  # noqa: E731
    assert judged(None, seen) is None


def test_a_stop_that_ends_in_time_is_forgotten():
    def seen(s):
        stopped = s % 290 > 4
        return {
            member(LOOP): replace(IDLE, status=psutil.STATUS_STOPPED if stopped else "sleeping")
        }

    assert judged(None, seen, until_s=2000.0) is None


@pytest.mark.parametrize(
    ("phase", "role"), [(ROLLOUT, SERVER), (ROLLOUT, LOOP), (UPDATE, RANK), (TRANSFER, RANK)]
)
def test_progress_however_slow_is_no_hang(phase, role):
    seen = lambda s: {member(role): replace(IDLE, beats=int(s / 290))}  # noqa: E731
    assert judged(phase, seen, until_s=3000.0) is None


def test_a_save_makes_progress_by_what_it_writes_or_computes():
    rank = member(RANK)
    for change in ("written", "cpu_s"):
        seen = lambda s, c=change: {rank: replace(IDLE, **{c: int(s)})}  # noqa: E731
        assert judged(SAVE, seen) is None
    assert judged(SAVE, lambda _: {rank: IDLE})[0] == TIMEOUT_S
    assert judged(UPDATE, lambda s: {rank: replace(IDLE, cpu_s=s)})[0] == TIMEOUT_S


def test_a_request_that_never_returns_is_found_at_its_server():
    loop, server, other = member(LOOP, 1), member(SERVER, 2), member(SERVER, 3)

    def seen(s):
        return {
            loop: replace(IDLE, beats=min(int(s), 20), pending=1, doing="1 responses in flight"),
            server: replace(IDLE, beats=int(s) if s < 20 else 20, pending=1, doing="1 requests"),
            other: replace(IDLE, beats=int(s) if s < 20 else 20),
        }

    now, what, who = judged(ROLLOUT, seen)
    assert who == server and TIMEOUT_S + 20 <= now <= TIMEOUT_S + 22
    assert "no progress for 300 s; the vLLM server (pid 2, node 10.0.0.1) holds it up" in what
    assert "1 requests" in what


def test_a_reward_that_never_returns_is_found_at_its_agent_loop():
    loops = [member(LOOP, 1), member(LOOP, 2)]
    doing = "3 responses in flight, the oldest 000001-00002_4"
    seen = lambda _: {  # noqa: E731
        member(SERVER, 3): IDLE,
        loops[0]: IDLE,
        loops[1]: replace(IDLE, pending=3, doing=doing),
    }
    _, what, who = judged(ROLLOUT, seen)
    assert who == loops[1]
    assert "000001-00002_4" in what


def test_the_rank_that_the_others_wait_for_is_named():
    ranks = [member(RANK, pid) for pid in range(4)]

    def seen(s):
        return {rank: replace(IDLE, beats=min(int(s), 5 if rank.pid == 2 else 6)) for rank in ranks}

    assert judged(UPDATE, seen)[2] == ranks[2]


def test_each_phase_has_the_whole_timeout():
    detector, rank = HangDetector(TIMEOUT_S), member(RANK)
    for number in range(10):
        phase = UPDATE if number % 2 else TRANSFER
        assert detector.judge(number * 290.0, phase, {rank: IDLE}) is None
    assert detector.judge(9 * 290.0 + TIMEOUT_S, UPDATE, {rank: IDLE}) is not None


STARTS = Sighting(status=psutil.STATUS_SLEEPING, doing="starting")


def test_a_start_in_which_no_process_works_ends_after_the_timeout():
    rank, queue = member(RANK, 1), member("TransferQueue storage", 2)

    def seen(s):  # idle processes use a little of a CPU
        worked = min(s, 50.0)
        return {queue: replace(IDLE, cpu_s=s / 50), rank: replace(STARTS, cpu_s=worked + s / 50)}

    now, what, who = judged(START, seen)
    assert who == rank and TIMEOUT_S + 50 <= now <= TIMEOUT_S + 54
    assert "no progress for 300 s; the FSDP worker (pid 1, node 10.0.0.1) holds it up: star" in what


@pytest.mark.parametrize(
    "change",
    [
        lambda s: {"cpu_s": s / 10},
        lambda s: {"read": int(s) << 20},
        lambda s: {"written": int(s / 100) << 24},  # now and then
    ],
)
def test_a_start_in_which_one_process_works_goes_on(change):
    rank, server = member(RANK, 1), member(SERVER, 2)
    seen = lambda s: {server: STARTS, rank: replace(STARTS, **change(s))}  # noqa: E731
    assert judged(START, seen, until_s=2000.0) is None


def test_a_process_that_comes_is_progress_of_a_start():
    seen = lambda s: {member(RANK, n): STARTS for n in range(1 + int(s / 250))}  # noqa: E731
    assert judged(START, seen, until_s=1500.0) is None


def test_an_actor_without_a_node_is_named():
    waiting = Sighting(doing="it waits for a node that has room for it")
    seen = lambda _: {member(RANK, 1): STARTS, member(SERVER, 0): waiting}  # noqa: E731
    _, what, who = judged(START, seen)
    assert who.pid == 0
    assert "vLLM server" in what and "it waits for a node" in what


def test_a_process_that_starts_later_is_no_death_of_an_older_one():
    detector, rank = HangDetector(TIMEOUT_S), member(RANK)
    assert detector.judge(0.0, START, {}) is None
    assert detector.judge(2.0, START, {rank: STARTS}) is None
    assert detector.judge(4.0, START, {rank: replace(STARTS, alive=False)})[1] == rank


CHILD = """
import os, sys, time
from pathlib import Path
from vapo_verl import heartbeat
heartbeat.start(Path(sys.argv[1]))
while True:
    heartbeat.beat("working", pending=1)
    time.sleep(0.02)
"""


def until(seen: Callable[[], object], within_s: float = 60.0) -> None:
    """Wait until `seen()` is true; the test fails after `within_s` seconds of a busy machine."""
    deadline = time.monotonic() + within_s
    while not seen():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture
def session(tmp_path, monkeypatch):
    (tmp_path / "logs").mkdir()
    monkeypatch.setattr(node_watch, "session_folder", lambda: tmp_path)
    return tmp_path


@pytest.fixture
def child(session):
    process = subprocess.Popen([sys.executable, "-c", CHILD, str(session / heartbeat.FOLDER)])
    until(lambda: heartbeat.read(session / heartbeat.FOLDER, process.pid).count)
    yield process
    process.kill()
    process.wait()


def test_a_real_process_is_seen_working_stopped_and_dead(session, child):
    watch = NodeWatch()
    first = watch.look([child.pid])[child.pid]
    until(lambda: watch.look([child.pid])[child.pid].beats > first.beats)
    second = watch.look([child.pid])[child.pid]
    assert second.alive
    assert (second.doing, second.pending) == ("working", 1)

    child.send_signal(signal.SIGSTOP)
    until(lambda: watch.look([child.pid])[child.pid].status == psutil.STATUS_STOPPED)
    assert watch.look([child.pid])[child.pid].alive

    watch.kill([child.pid])  # reaches a stopped process
    until(lambda: not watch.look([child.pid])[child.pid].alive)  # a zombie: nobody waited for it
    child.wait()
    assert not watch.look([child.pid])[child.pid].alive


def test_the_last_words_are_those_of_the_process(session, child):
    logs = session / "logs"
    name = f"worker-abc-01000000-{child.pid}"
    (logs / f"{name}.out").write_text("out\n")
    (logs / f"{name}.err").write_text(
        ":job_id:01\n\x1b[31mfirst\x1b[0m\n\n" + "\n".join(f"line {n}" for n in range(9)) + "\n"
    )
    words = NodeWatch().evidence(child.pid, None)
    assert words[:5] == ["Its last lines: line 4", *(f"  line {n}" for n in range(5, 9))]

    (logs / "worker-abc-01000000-77.err").write_text("(EngineCore pid=12) mine\nanother's\n")
    assert NodeWatch().evidence(12, 77)[0] == "Its last lines: (EngineCore pid=12) mine"
    assert NodeWatch().evidence(77, None)[0] == "Its last lines: another's"
    assert NodeWatch().evidence(13, 78) == []


def test_a_worker_that_ray_killed_for_memory_says_so(session, child):
    events = session / "logs" / "events" / "event_RAYLET.log"
    events.parent.mkdir()
    now = int(time.time())

    def event(label, timestamp, message):
        return json.dumps({"label": label, "timestamp": timestamp, "message": message})

    text = "4 worker(s) were killed due to the node running low on memory. It was 22.67GB used"
    lines = [
        event("Out of Memory", now - 3600, "of a run before this one"),
        event("Worker Died", now, "another kind"),
        event("Out of Memory", now + 1, f"{text}\\nOOM kill reason: Memory usage exceeded"),
        '{"label": "Out of Mem',  # being written
    ]
    watch = NodeWatch()
    assert watch.evidence(child.pid, None) == []
    events.write_text("\n".join(lines))
    [said] = watch.evidence(child.pid, None)
    assert said.startswith(f"Ray's memory monitor: {text}. See docs/troubleshooting.md")


def test_a_bus_error_names_shared_memory(session, child):
    log = session / "logs" / f"worker-abc-01000000-{child.pid}.err"
    log.write_text("Fatal Python error: Bus error\n")
    assert any("/dev/shm has" in line for line in NodeWatch().evidence(child.pid, None))


@ray.remote(num_cpus=0)
class Worker:
    def pid(self) -> int:
        return os.getpid()

    def busy(self, seconds: float) -> None:
        time.sleep(seconds)


@ray.remote(num_cpus=0)
class Runner:
    """Stands for the trainer's process."""

    def __init__(self) -> None:
        self.asked = 0

    def failure(self) -> str | None:
        self.asked += 1
        return None

    def times_asked(self) -> int:
        return self.asked

    def pid(self) -> int:
        return os.getpid()


@pytest.fixture(scope="module")
def cluster():
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def runner(cluster):
    """For tests that leave it running."""
    runner = Runner.remote()
    ray.get(runner.__ray_ready__.remote())
    return runner


def kill_all(pids: list[int]) -> None:
    for pid in pids:
        if psutil.pid_exists(pid):
            os.kill(pid, signal.SIGKILL)


class Watched:
    """A monitor over two workers, and what it finds."""

    def __init__(
        self, timeout_s: float = 3.0, worker: object = Worker, spare_servers: bool = False
    ) -> None:
        self.workers = [worker.remote() for _ in range(2)]
        self.pids = ray.get([worker.pid.remote() for worker in self.workers])
        self.ended: list[Finding] = []
        self.monitor = Monitor(
            timeout_s,
            self.ended.append,
            lambda: "step 3, update",
            interval_s=0.1,
            spare_servers=spare_servers,
        )
        self.monitor.start()

    def close(self) -> None:
        self.monitor.stop()
        kill_all(self.pids)


@pytest.fixture
def watched(cluster):
    watched = Watched()
    yield watched
    watched.close()


@ray.remote(num_cpus=0)
class VapoHttpServer:
    """Stands for a server with an engine below it."""

    def __init__(self) -> None:
        code = "import setproctitle as s, time; s.setproctitle('VLLM::Core'); time.sleep(1e4)"
        self.engine = subprocess.Popen([sys.executable, "-c", code])

    def pid(self) -> int:
        while not psutil.Process(self.engine.pid).cmdline()[0].startswith("VLLM::"):
            time.sleep(0.02)
        return os.getpid()

    def engine_pid(self) -> int:
        return self.engine.pid


@pytest.mark.parametrize(("victim", "phase"), [("engine", ROLLOUT), ("server", VALIDATION)])
def test_a_dead_server_is_taken_out_with_its_engine_where_servers_are_spared(
    cluster, victim, phase
):
    watched = Watched(worker=VapoHttpServer, spare_servers=True)
    monitor, server = watched.monitor, watched.pids[0]
    engines = ray.get([worker.engine_pid.remote() for worker in watched.workers])
    try:
        monitor.begin(phase)
        assert monitor.remove_dead_servers() == []
        os.kill(engines[0] if victim == "engine" else server, signal.SIGKILL)
        dead: list[Member] = []
        until(lambda: dead.extend(monitor.remove_dead_servers()) or dead)
        assert (engines[0] if victim == "engine" else server) in [member.pid for member in dead]
        for pid in (server, engines[0]):  # what was left of it has been ended
            until(lambda pid=pid: not NodeWatch().look([pid])[pid].alive)
        monitor.begin(START)  # the phase in which new processes are taken in
        assert monitor.wait(1.0) is None
        monitor.begin(UPDATE)
        os.kill(engines[1], signal.SIGKILL)  # the other one is watched as before
        finding = monitor.wait(60.0)
        assert finding is not None and f"(pid {engines[1]}, " in finding.what
    finally:
        watched.close()
        kill_all(engines)


def test_a_server_is_named_though_its_engine_is_gone_before_it(cluster, monkeypatch):
    monkeypatch.setattr(liveness, "TOGETHER_S", 10.0)
    watched = Watched(worker=VapoHttpServer)
    engines = ray.get([worker.engine_pid.remote() for worker in watched.workers])
    try:
        watched.monitor.begin(UPDATE)
        os.kill(engines[0], signal.SIGKILL)
        os.kill(watched.pids[0], signal.SIGKILL)
        finding = watched.monitor.wait(60.0)
        assert finding is not None and f"the vLLM server (pid {watched.pids[0]}" in finding.what
    finally:
        watched.close()
        kill_all(engines)


def test_a_dead_server_ends_a_run_that_does_not_spare_it(cluster):
    watched = Watched(worker=VapoHttpServer)
    try:
        watched.monitor.begin(ROLLOUT)
        os.kill(watched.pids[0], signal.SIGKILL)
        finding = watched.monitor.wait(60.0)
        assert finding is not None and "the vLLM server (pid" in finding.what
    finally:
        watched.close()


def test_a_process_that_hangs_in_its_constructor_is_found(cluster):
    @ray.remote(num_cpus=0)
    class Starting:
        def __init__(self) -> None:
            time.sleep(1e4)

    ended: list[Finding] = []
    monitor = Monitor(1.0, ended.append, lambda: "start of the workers", 0.1)
    monitor.begin(START)
    monitor.start()
    actor = Starting.remote()  # it comes after the monitor

    def pids() -> list[int]:
        return [a["Pid"] for a in liveness.job_actors() if "Starting" in a["ActorClassName"]]

    until(lambda: pids() and pids()[0])
    (pid,) = pids()
    os.kill(pid, signal.SIGSTOP)
    finding = monitor.wait(60.0)
    monitor.stop()
    ray.kill(actor)
    assert finding is not None and f"(pid {pid}, " in finding.what
    assert "hangs: stopped by a signal" in finding.what
    os.kill(pid, signal.SIGKILL)


def test_a_killed_actor_is_found_within_seconds(watched):
    watched.workers[0].busy.remote(60)
    assert watched.monitor.wait(1.0) is None  # a busy one is not dead
    os.kill(watched.pids[1], signal.SIGKILL)
    finding = watched.monitor.wait(60.0)
    assert finding is not None and watched.ended == [finding]
    assert finding.what.startswith(f"step 3, update: the Worker (pid {watched.pids[1]}, node ")
    assert finding.what.endswith("died")


def test_workers_that_wait_for_the_verification_of_a_checkpoint_do_not_hang():
    """The trainer's own process reads it; one that dies meanwhile is found."""
    workers = {member(role, pid): IDLE for pid, role in enumerate((SERVER, LOOP, RANK, ENGINE), 1)}
    assert judged(VERIFICATION, lambda s: workers, until_s=10 * TIMEOUT_S) is None
    died = {**workers, member(RANK, 3): replace(IDLE, alive=False)}
    assert judged(VERIFICATION, lambda s: died if s > 20 else workers)[2] == member(RANK, 3)


def test_a_stopped_actor_is_a_suspect_at_once_and_found_after_the_timeout(watched):
    assert watched.monitor.suspect() is None
    os.kill(watched.pids[0], signal.SIGSTOP)
    until(watched.monitor.suspect)
    suspect = watched.monitor.suspect()
    assert suspect is not None and suspect.what.endswith("is stopped by a signal")
    finding = watched.monitor.wait(60.0)
    assert finding is not None and f"pid {watched.pids[0]}" in finding.what
    watched.monitor.kill(finding)
    until(lambda: not psutil.pid_exists(watched.pids[0]))


def test_the_phase_of_an_error_stays(watched):
    monitor = watched.monitor
    monitor.begin(UPDATE)
    with monitor.phase(SAVE):
        assert monitor.phase_name == SAVE
    assert monitor.phase_name == UPDATE
    with pytest.raises(OSError), monitor.phase(TRANSFER):
        raise OSError
    assert monitor.phase_name == TRANSFER


def test_after_its_stop_nothing_is_found(watched):
    watched.monitor.stop()
    os.kill(watched.pids[1], signal.SIGKILL)
    assert watched.monitor.wait(1.0) is None


def test_a_look_costs_little(watched):
    started = time.process_time()
    for _ in range(50):
        watched.monitor.suspect()
    assert (time.process_time() - started) / 50 < 0.01 * liveness.INTERVAL_S


def interrupted_by(watch: RunnerWatch, runner: object, within_s: float) -> bool:
    """Whether the main thread, which waits, is interrupted."""
    watch.start(runner)
    started = time.monotonic()
    try:
        threading.Event().wait(within_s)
    except KeyboardInterrupt:
        return time.monotonic() - started < within_s  # the wait itself is interrupted
    finally:
        watch.stop()
    return False


def assert_interrupts(watch: RunnerWatch, runner: object) -> None:
    if interrupted_by(watch, runner, 60):
        return
    try:
        state = f"answers, for the {ray.get(runner.times_asked.remote(), timeout=5)}th time"
    except ray.exceptions.RayError as error:
        state = repr(error)
    handler = signal.getsignal(signal.SIGINT)
    pytest.fail(f"no interrupt; failure: {watch.failure}; SIGINT: {handler}; trainer: {state}")


@pytest.mark.parametrize("lost", [0, 2])
def test_a_trainer_that_does_not_answer_interrupts_the_driver(cluster, tmp_path, monkeypatch, lost):
    """Also after answers that got lost, while its node could not be reached."""
    monkeypatch.setattr(liveness, "INTERVAL_S", 0.1)
    runner = Runner.remote()
    pid = ray.get(runner.pid.remote())
    get, left = ray.get, [ray.exceptions.ActorUnavailableError("its node", None)] * lost

    def get_or_lose(ref):
        answer = get(ref)
        if left:
            raise left.pop()
        return answer

    def stop_it() -> None:  # once the watch has had an answer: before, a trainer may be starting
        until(lambda: get(runner.times_asked.remote()) >= 3 + lost)
        os.kill(pid, signal.SIGSTOP)

    monkeypatch.setattr(ray, "get", get_or_lose)
    watch = RunnerWatch(1.0, Start(run_dir=tmp_path))
    threading.Thread(target=stop_it, daemon=True).start()
    assert_interrupts(watch, runner)
    assert not left
    assert "has not answered for 1 s" in str(watch.failure)
    assert "No step is saved: the same command starts again." in str(watch.failure)


@pytest.mark.parametrize("handler", [signal.default_int_handler, signal.SIG_IGN])
def test_a_head_that_is_gone_interrupts_the_driver(runner, tmp_path, monkeypatch, handler):
    monkeypatch.setattr(liveness, "INTERVAL_S", 0.1)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    context = type("Context", (), {"gcs_address": address})()
    monkeypatch.setattr(ray, "get_runtime_context", lambda: context)
    watch = RunnerWatch(60.0, Start(run_dir=tmp_path))
    before = signal.signal(signal.SIGINT, handler)  # shell scripts ignore it in background jobs
    try:
        assert_interrupts(watch, runner)
        assert signal.getsignal(signal.SIGINT) == handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert f"Ray's head process (GCS) at {address} is gone" in str(watch.failure)


@pytest.mark.parametrize("name", ["raylet", "gcs_server"])
def test_a_process_of_rays_that_is_stopped_interrupts_the_driver(
    runner, tmp_path, monkeypatch, name
):
    monkeypatch.setattr(liveness, "INTERVAL_S", 0.1)
    program = tmp_path / name
    shutil.copy("/bin/sleep", program)
    stopped = subprocess.Popen([program, "1000"])
    until(lambda: psutil.Process(stopped.pid).name() == name)
    stopped.send_signal(signal.SIGSTOP)
    watch = RunnerWatch(1.0, Start(run_dir=tmp_path))
    try:
        assert_interrupts(watch, runner)
        said = f"Ray's process {name} (pid {stopped.pid}) has been stopped by a signal for 1 s"
        assert said in str(watch.failure)
        assert stopped.wait(60) == -signal.SIGKILL
    finally:
        stopped.kill()
        stopped.wait()


def test_a_trainer_that_answers_does_not(runner, tmp_path, monkeypatch):
    monkeypatch.setattr(liveness, "INTERVAL_S", 0.1)
    watch = RunnerWatch(2.0, Start(run_dir=tmp_path))
    assert not interrupted_by(watch, runner, 4)
    assert watch.failure is None


def test_the_outlook_names_the_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setattr(liveness, "latest_complete", lambda _: 4)
    said = outlook(Start(run_dir=tmp_path))
    assert f"Saved: step 4, in {tmp_path / 'global_step_4'}" in said
    assert "goes on with step 5" in said


@pytest.mark.parametrize(
    ("mode", "given", "saved", "said"),
    [
        ("disable", None, None, "No new step is saved: the same command begins with step 1 again."),
        ("disable", None, 4, "resume_mode=disable begins with step 1: to go on with step 5, set"),
        ("resume_path", 2, 4, "resume_mode=resume_path begins with step 3: to go on with step 5"),
        ("resume_path", 4, 4, "No new step is saved: the same command begins with step 5 again."),
        ("resume_path", 4, None, "the same command begins with step 5 again."),
    ],
)
def test_the_outlook_says_where_the_same_command_does_not_go_on(
    tmp_path, monkeypatch, mode, given, saved, said
):
    monkeypatch.setattr(liveness, "latest_complete", lambda _: saved)
    checkpoint = given and tmp_path / f"global_step_{given}"
    told = outlook(Start(run_dir=tmp_path, mode=mode, checkpoint=checkpoint))
    assert said in told
    assert "goes on" not in told
    assert ("trainer.resume_mode=auto" in told) == ("to go on" in said)


def test_a_validation_is_said_to_be_repeated(tmp_path, monkeypatch):
    monkeypatch.setattr(liveness, "latest_complete", lambda _: 4)
    assert outlook(Start(run_dir=tmp_path, val_only=True)) == "The same command validates again."


@ray.remote(num_cpus=0)
class Late:
    def pid(self) -> int:
        return os.getpid()


def test_a_process_that_starts_later_is_watched_after_a_renewal(watched):
    late = Late.remote()
    pid = ray.get(late.pid.remote())
    watched.monitor.renew()
    os.kill(pid, signal.SIGSTOP)
    until(watched.monitor.suspect)  # it is one of the watched by now
    os.kill(pid, signal.SIGKILL)
    finding = watched.monitor.wait(60.0)
    assert finding is not None and f"the Late (pid {pid}, " in finding.what


def test_a_renewal_forgets_no_process_that_has_died(watched):
    os.kill(watched.pids[0], signal.SIGKILL)
    watched.monitor.renew()
    finding = watched.monitor.wait(60.0)
    assert finding is not None and f"pid {watched.pids[0]}" in finding.what
