"""Detect processes of a run that died or hang, in every phase of a step.

A thread in the trainer's process checks all processes of the run from outside, every two seconds,
on every node: their state in /proc and their heartbeats. A finding ends the run within seconds,
wherever the trainer waits. Rules, in this order:

1. A process is gone: it died.
2. A process was stopped, or waited for its disk, for `vapo.rollout.timeout_s` without using its
   CPU: it hangs. Ray's threads use a little in a process that waits for its disk: it is not found,
   and cannot be told from one in a long fsync.
3. A phase made no progress for `vapo.rollout.timeout_s`: the process that holds it up hangs.
   Progress is tokens and responses in a rollout, micro-batches in a pass over the model, buckets in
   a weight transfer, bytes and CPU time in a save and while the workers start.
"""

from __future__ import annotations

import math
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import psutil
import ray

from vapo_verl.console import say
from vapo_verl.patches.upstream import job_actors
from vapo_verl.run_folder.checkpoints import checkpoint_folder, latest_complete
from vapo_verl.run_folder.resume import Start
from vapo_verl.trainer.node_watch import NodeWatch, Sighting

INTERVAL_S = 2.0
GRACE_S = 15.0
"""Time from a finding to a forced end of the trainer's process, if it does not end by itself."""
RAY_PROCESSES = ("gcs_server", "raylet")
"""Names of the processes that `ray.init` starts below a driver that joins no cluster."""
GCS_MISSES = 3
"""Refused connections in a row after which Ray's head process counts as dead."""
TOGETHER_S = 0.5
"""Time within which an engine and its server end, if one ends with the other."""
_STOPPED = {psutil.STATUS_STOPPED, psutil.STATUS_DISK_SLEEP}
_CPU_S = 0.05
"""CPU time below which a process counts as not having run."""

SERVER, ENGINE = "vLLM server", "vLLM engine"
LOOP, RANK = "agent loop worker", "FSDP worker"
RECEIVER = "receiver of weights"
ROLES = {
    "VapoHttpServer": SERVER,
    "AgentLoopWorkerTQ": LOOP,  # veRL's: Ray names a subclass of an actor class by that
    "WorkerDict": RANK,
    "VapoReceiver": RECEIVER,
    "RewardLoopWorker": "reward worker",
    "PromptRouter": "router",
    "TransferQueueController": "TransferQueue controller",
    "SimpleStorageUnit": "TransferQueue storage",
}
"""Role by the class of a Ray actor."""
IGNORED_ACTORS = ("VapoTaskRunner", "NodeWatch")
ROLLOUT, VALIDATION, TRANSFER, SAVE = "rollout", "validation", "weight transfer", "checkpoint"
LOG_PROBS, UPDATE = "log probabilities", "update"
START = "start of the workers"
VERIFICATION = "verification of checkpoints"
"""The trainer's process reads files, however long that takes; the others wait for it."""
WORKING = {
    ROLLOUT: (SERVER, LOOP),
    VALIDATION: (SERVER, LOOP),
    LOG_PROBS: (RANK,),
    UPDATE: (RANK,),
    TRANSFER: (RANK, RECEIVER),
    SAVE: (RANK,),
    START: (SERVER, LOOP, RANK),
}
"""Roles whose progress counts in a phase; while the workers start, all processes count."""
_WORKING_CPU, _WORKING_BYTES = 0.05, 1 << 20
"""While workers start, a process counts as working above this CPU fraction or number of bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A process of the run."""

    role: str
    pid: int
    node: str
    """Id of its Ray node."""
    address: str = ""
    """Address of its node."""
    owner: int | None = None
    """For an engine: pid of its server, in whose log its output is."""

    @property
    def server(self) -> tuple[str, int] | None:
        """Node and pid of the server that it is a part of; None for other processes."""
        return (self.node, self.owner or self.pid) if self.owner or self.role == SERVER else None

    def __str__(self) -> str:
        return f"the {self.role} (pid {self.pid}, node {self.address})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Why a run cannot go on."""

    what: str
    """One sentence: which process, what happened to it."""
    member: Member | None = None
    at: float = field(default_factory=time.time)
    evidence: tuple[str, ...] = ()
    """Log lines and other evidence from the process or its node."""


class RunFailed(RuntimeError):
    """A process of the run died or hangs, or responses failed; the message is for the user."""


class HangDetector:
    """Applies the three rules to sightings, at times that the caller gives."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._ran: dict[Member, tuple[float, float]] = {}  # last CPU time, and when it grew
        self._phase: str | None = None
        self._start: dict[Member, Sighting] = {}
        self._progress: tuple[int, ...] = ()
        self._progress_at = 0.0
        self._last: tuple[float, Mapping[Member, Sighting]] = 0.0, {}
        self._num_worked = 0  # times that a process was seen to have worked

    def judge(
        self, now: float, phase: str | None, seen: Mapping[Member, Sighting]
    ) -> tuple[str, Member | None] | None:
        """What is wrong, and with which process; None while all is well.

        Args:
            now: seconds of a monotonic clock.
            phase: the trainer's phase; one that is not in `WORKING` has no progress to make.
        """
        for member, sighting in seen.items():
            if not sighting.alive:
                return f"{member} died", member
        stopped = self._stopped(now, seen)
        if stopped is not None:
            member, for_s = stopped
            return f"{member} hangs: {_state(seen[member])} for {for_s:.0f} s", member
        return self._no_progress(now, phase, seen)

    def _stopped(self, now: float, seen: Mapping[Member, Sighting]) -> tuple[Member, float] | None:
        longest = None
        for member, sighting in seen.items():
            cpu_s, since = self._ran.get(member, (0.0, now))
            if sighting.status not in _STOPPED or sighting.cpu_s > cpu_s + _CPU_S:
                cpu_s, since = sighting.cpu_s, now
            self._ran[member] = cpu_s, since
            if now - since >= max(self._timeout_s, longest[1] if longest else 0):
                longest = member, now - since
        return longest

    def _no_progress(
        self, now: float, phase: str | None, seen: Mapping[Member, Sighting]
    ) -> tuple[str, Member | None] | None:
        working = [member for member in seen if member.role in WORKING.get(phase or "", ())]
        progress = tuple(
            value for member in working for value in _progress(phase or "", seen[member])
        )
        if phase == START:
            progress += self._work(now, seen)
        if phase != self._phase:
            self._start = dict(seen)
        if phase != self._phase or progress != self._progress or not working:
            self._phase, self._progress, self._progress_at = phase, progress, now
            return None
        waited_s = now - self._progress_at
        if waited_s < self._timeout_s:
            return None
        culprit = self._culprit(working, seen)
        text = f"no progress for {waited_s:.0f} s; {culprit} holds it up: {_state(seen[culprit])}"
        return text, culprit

    def _work(self, now: float, seen: Mapping[Member, Sighting]) -> tuple[int, int]:
        """Changes when a process appears, or has worked since the last look."""
        (at, last), self._last = self._last, (now, seen)
        for member, sighting in seen.items():
            before = last.get(member, sighting)
            moved = sighting.written + sighting.read - before.written - before.read
            is_busy = sighting.cpu_s - before.cpu_s > _WORKING_CPU * (now - at)
            self._num_worked += is_busy or moved > _WORKING_BYTES
        return len(seen), self._num_worked

    def _culprit(self, working: Sequence[Member], seen: Mapping[Member, Sighting]) -> Member:
        """A stopped process, else the first in line that has work, else the one that did least."""
        for member, sighting in seen.items():
            if sighting.status in _STOPPED or (self._phase == START and not member.pid):
                return member
        for role in WORKING[self._phase or ""]:
            busy = [member for member in working if member.role == role and seen[member].pending]
            if busy:
                return max(busy, key=lambda member: seen[member].pending)
        return min(working, key=lambda m: seen[m].beats - self._start.get(m, Sighting()).beats)


def role_of(class_name: str) -> str:
    """Role of a Ray actor by its class, which Ray may qualify; without a role, the class name."""
    name = class_name.rpartition(".")[2]
    return ROLES.get(name, name)


def _progress(phase: str, sighting: Sighting) -> tuple[int, ...]:
    if phase == SAVE:
        return sighting.beats, sighting.written, int(sighting.cpu_s / _CPU_S)
    return (sighting.beats,)


def _state(sighting: Sighting) -> str:
    if sighting.status == psutil.STATUS_STOPPED:
        return "stopped by a signal" + (f" ({sighting.doing})" if sighting.doing else "")
    if sighting.status == psutil.STATUS_DISK_SLEEP:
        return "waiting for a disk" + (f" ({sighting.doing})" if sighting.doing else "")
    return sighting.doing or "no report about its work"


class NodeLost(ray.exceptions.RayError):
    """A node of the run died or does not answer."""


class Monitor:
    """Watches the processes of this Ray job in a thread, from :meth:`start` on.

    While the workers start, new processes are watched as they come.

    Args:
        timeout_s: ``vapo.rollout.timeout_s``.
        end: called once with the finding, in the thread; it must end the trainer's wait.
        where: text for messages: the step and the phase.
        interval_s: time between two looks.
        spare_servers: the death of a server or an engine in a rollout or a validation is left to
            :meth:`remove_dead_servers`.
    """

    def __init__(
        self,
        timeout_s: float,
        end: Callable[[Finding], None],
        where: Callable[[], str],
        interval_s: float = INTERVAL_S,
        spare_servers: bool = False,
    ) -> None:
        self._timeout_s, self._detector = timeout_s, HangDetector(timeout_s)
        self._end, self._where, self._interval_s = end, where, interval_s
        self._node = ray.get_runtime_context().get_node_id()
        self._here = NodeWatch()
        self._others: dict[str, Any] = {}  # node id -> actor
        self._members: list[Member] = []
        self._removed: set[Member] = set()
        self._lock = threading.Lock()  # held while the processes are looked at
        self.spare_servers = spare_servers
        self._phase: str | None = None
        self._stop = threading.Event()
        self._found = threading.Event()
        self._renew = threading.Event()
        self.finding: Finding | None = None

    def start(self) -> None:
        """Watch the present processes, in a thread."""
        self._add_members()
        threading.Thread(target=self._run, name="monitor", daemon=True).start()

    def renew(self) -> None:
        """Look for new processes before the next look."""
        self._renew.set()

    def stop(self) -> None:
        """Stop watching: processes that end from now on end on purpose."""
        self._stop.set()

    @property
    def phase_name(self) -> str | None:
        """The phase at this moment."""
        return self._phase

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """A phase of the trainer, which must make progress.

        After an error the phase stays set: it is where the run ended.
        """
        before, self._phase = self._phase, name
        yield
        self._phase = before

    def begin(self, name: str | None) -> None:
        """The phase from now on; None where the trainer works alone."""
        self._phase = name

    def _add_members(self) -> None:
        """Add new actors of the job, and the engines of its servers.

        None is removed: one that is missing in Ray's table has died.
        """
        found = []
        for actor in job_actors():
            name, address = actor["ActorClassName"], actor["Address"]
            if name in IGNORED_ACTORS:
                continue
            member = Member(
                role=role_of(name),
                pid=actor["Pid"],
                node=address["NodeID"],
                address=address["IPAddress"],
            )
            found.append(member)
            if member.role == SERVER and member.pid:
                found += [
                    Member(
                        role=f"{ENGINE} process {title}",
                        pid=pid,
                        node=member.node,
                        address=member.address,
                        owner=member.pid,
                    )
                    for pid, title in self._call(member.node, "engines", member.pid).items()
                ]
        members = [member for member in self._members if member.pid]
        known = {(member.node, member.pid) for member in (*members, *self._removed)}
        self._members = [
            *members,
            *(member for member in found if (member.node, member.pid) not in known),
        ]

    def remove_dead_servers(self) -> list[Member]:
        """Stop watching servers that died or whose engine died, and end what is left of them.

        Returns:
            The processes that had died.
        """
        with self._lock:
            dead = [member for member, seen in self._look().items() if not seen.alive]
            servers = {member.server for member in dead} - {None}
            removed = {member for member in self._members if member.server in servers}
            for member in removed:
                self._call(member.node, "kill", [member.pid])
            self._removed |= removed
            self._members = [member for member in self._members if member not in removed]
        return [member for member in dead if member in removed]

    def wait(self, timeout_s: float) -> Finding | None:
        """The finding, if there is one within `timeout_s`; a failure may be its consequence."""
        self._found.wait(timeout_s)
        return self.finding

    def suspect(self) -> Finding | None:
        """A process that is stopped at this moment, for any length of time, or a lost node."""
        try:
            seen = self._look()
        except NodeLost as error:
            return self._finding(str(error), None)
        for member, sighting in seen.items():
            if sighting.status == psutil.STATUS_STOPPED:
                return self._finding(f"{member} is stopped by a signal", member)
        return None

    def _run(self) -> None:
        while not self._stop.wait(self._interval_s):
            try:
                with self._lock:
                    if self._renew.is_set() or self._phase == START:
                        self._renew.clear()
                        self._add_members()
                    seen = self._look()
                    if self.spare_servers and self._phase in (ROLLOUT, VALIDATION):
                        seen = {m: s for m, s in seen.items() if s.alive or m.server is None}
                    found = self._detector.judge(time.monotonic(), self._phase, seen)
                    if found is not None:
                        found = self._cause(*found)
            except ray.exceptions.RayError as error:  # its timeout is an OSError, too
                found = str(error).splitlines()[0], None
            except (OSError, psutil.Error) as error:
                say(f"WARNING: the processes of the run are not watched for a moment: {error!r}")
                continue
            if found is not None and not self._stop.is_set():
                self.finding = self._finding(*found)
                self._found.set()
                self._end(self.finding)
                return

    def _cause(self, what: str, member: Member | None) -> tuple[str, Member | None]:
        """Blame the server of an engine if it died as well: an engine ends with its server, and may
        be gone first."""
        if member is None or member.owner is None:
            return what, member
        time.sleep(TOGETHER_S)
        for other, sighting in self._look().items():
            is_its_server = other.owner is None and other.server == member.server
            if is_its_server and not sighting.alive:
                return f"{other} died, and its engine with it", other
        return what, member

    def _look(self) -> dict[Member, Sighting]:
        nodes: dict[str, list[Member]] = {}
        for member in self._members:
            if member.pid:
                nodes.setdefault(member.node, []).append(member)
        waiting = Sighting(doing="it waits for a node that has room for it")
        seen = {member: waiting for member in self._members if not member.pid}
        for node, members in nodes.items():
            looked = self._call(node, "look", [member.pid for member in members])
            seen.update({member: looked[member.pid] for member in members})
        return seen

    def _finding(self, what: str, member: Member | None) -> Finding:
        evidence: list[str] = []
        if member is not None and member.pid:
            with suppress(ray.exceptions.RayError, OSError):  # a node that is gone as well
                evidence = self._call(member.node, "evidence", member.pid, member.owner)
        return Finding(what=f"{self._where()}: {what}", member=member, evidence=tuple(evidence))

    def kill_all(self) -> None:
        """End all processes that are watched."""
        for member in self._members:
            if member.pid:
                with suppress(ray.exceptions.RayError):
                    self._call(member.node, "kill", [member.pid])

    def kill(self, finding: Finding) -> None:
        """End a hung process and all engines, which may outlive their servers when stopped."""
        for member in self._members:
            if member.pid and (member is finding.member or member.owner is not None):
                with suppress(ray.exceptions.RayError):
                    self._call(member.node, "kill", [member.pid])

    def _call(self, node: str, method: str, *args: Any) -> Any:
        """Call a method of a node's watch.

        Raises:
            NodeLost: of another node than this one.
        """
        if node == self._node:
            return getattr(self._here, method)(*args)
        if node not in self._others:
            place = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(node, soft=False)
            watch = ray.remote(num_cpus=0)(NodeWatch)
            self._others[node] = watch.options(scheduling_strategy=place).remote()
        called = getattr(self._others[node], method).remote(*args)
        try:
            return ray.get(called, timeout=self._timeout_s)
        except ray.exceptions.RayError as error:
            where = next((each.address for each in self._members if each.node == node), node)
            late = f"did not answer for {self._timeout_s:g} s"
            raise NodeLost(f"the node at {where} died, or {late}") from error


def outlook(start: Start) -> str:
    """What a run that ended early has saved, and what the same command does."""
    if start.val_only:
        return "The same command validates again."
    saved, first = latest_complete(start.run_dir), start.step + 1
    resumes = start.mode == "auto"
    if saved is None or (not resumes and saved < first):
        again = "starts" if resumes else f"begins with step {first}"
        return f"No {'' if resumes else 'new '}step is saved: the same command {again} again."
    text = f"Saved: step {saved}, in {checkpoint_folder(start.run_dir, saved)}."
    if resumes:
        return f"{text} The same command goes on with step {saved + 1}."
    return (
        f"{text} The same command is refused now, because trainer.resume_mode={start.mode} begins "
        f"with step {first}: to go on with step {saved + 1}, set trainer.resume_mode=auto."
    )


class RunnerWatch:
    """The driver's view of a run: asks the trainer's process whether the run can go on.

    The main thread, which waits for the run, gets a KeyboardInterrupt if the run cannot go on, if
    the trainer's process does not answer for `timeout_s`, if Ray's head process (GCS) is gone, or
    if a Ray process below this one is stopped for `timeout_s`.
    """

    def __init__(self, timeout_s: float, start: Start) -> None:
        self._timeout_s, self._start = timeout_s, start
        self._stop = threading.Event()
        self.failure: str | None = None
        """Why the run cannot go on."""

    def start(self, runner: Any) -> None:
        """Watch the actor that owns the trainer; call this in the main thread."""
        if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a background job of a shell script
            signal.signal(signal.SIGINT, self._raise_if_failed)
        threading.Thread(target=self._run, args=(runner,), daemon=True).start()

    def stop(self) -> None:
        """End the watch."""
        self._stop.set()
        if signal.getsignal(signal.SIGINT) == self._raise_if_failed:
            signal.signal(signal.SIGINT, signal.SIG_IGN)

    def _raise_if_failed(self, *_: Any) -> None:
        """Keep ignoring Ctrl-C if it was ignored; only an interrupt of this watch counts."""
        if self.failure:
            raise KeyboardInterrupt

    def _run(self, runner: Any) -> None:
        head = ray.get_runtime_context().gcs_address
        host, _, port = head.rpartition(":")
        asked, answered_at, misses = runner.failure.remote(), math.inf, 0
        own = [child for child in psutil.Process().children() if child.name() in RAY_PROCESSES]
        ran_at = dict.fromkeys(own, time.monotonic())
        while not self._stop.wait(INTERVAL_S):
            misses = 0 if _listens(host.strip("[]"), int(port)) else misses + 1
            if misses == GCS_MISSES:
                self._interrupt(f"Ray's head process (GCS) at {head} is gone: it died or its node")
                return
            for process in own:
                if not _is_stopped(process):
                    ran_at[process] = time.monotonic()
                elif time.monotonic() - ran_at[process] > self._timeout_s:
                    self._interrupt(
                        f"Ray's process {process.name()} (pid {process.pid}) has been stopped by a "
                        f"signal for {self._timeout_s:g} s"
                    )
                    process.kill()  # otherwise the shutdown of Ray would wait for it
                    return
            if ray.wait([asked], timeout=0)[0]:
                try:
                    self.failure = ray.get(asked) or self.failure
                    answered_at = time.monotonic()
                except ray.exceptions.ActorUnavailableError:  # its node cannot be reached, for now
                    pass
                except ray.exceptions.RayError:  # its death ends the wait of the main thread
                    return
                asked = runner.failure.remote()
            if time.monotonic() - answered_at > self._timeout_s:
                self._interrupt(
                    f"the trainer's process (VapoTaskRunner) has not answered for "
                    f"{self._timeout_s:g} s: it is stopped, or its node is"
                )
                with suppress(ray.exceptions.RayError):
                    ray.kill(runner)
                return

    def _interrupt(self, what: str) -> None:
        at = time.strftime("%H:%M:%S")
        self.failure = f"{what}, seen at {at}\n{outlook(self._start)}"
        if not self._stop.is_set():
            main = threading.main_thread().ident
            assert main is not None, "it runs"
            # Not _thread.interrupt_main(), which does not wake a thread that waits for a lock.
            signal.pthread_kill(main, signal.SIGINT)


def _is_stopped(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):  # its death is noticed elsewhere
        return process.status() == psutil.STATUS_STOPPED
    return False


def _listens(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=INTERVAL_S).close()
    except OSError:
        return False
    return True
