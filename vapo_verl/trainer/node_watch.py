"""State, progress and last log lines of the processes on a node."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from vapo_verl import heartbeat
from vapo_verl.patches.upstream import session_folder

LAST_LINES = 5
_COLOURS = re.compile(r"\x1b\[[\d;]*m")
_OF_CHILD = re.compile(r"\(\w+ pid=(\d+)\)")
"""vLLM's prefix of the lines of an engine, in the log of its server."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sighting:
    """A process as seen from outside."""

    alive: bool = True
    status: str = psutil.STATUS_RUNNING
    """psutil's name of its state."""
    cpu_s: float = 0.0
    written: int = 0
    """Bytes written to files."""
    read: int = 0
    beats: int = 0
    pending: int = 0
    doing: str = ""


class NodeWatch:
    """Looks at the processes of its own node; an actor on nodes other than the trainer's.

    Args:
        folder: of the Ray session; None: this process's.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder or session_folder()
        self._processes: dict[int, psutil.Process] = {}
        self._oom_kills = _oom_kills()
        self._began = int(time.time())

    def engines(self, server: int) -> dict[int, str]:
        """Pid and title of vLLM's processes below a server."""
        found = {}
        with suppress(psutil.NoSuchProcess):
            for child in psutil.Process(server).children(recursive=True):
                title = " ".join(child.cmdline()).strip()
                if title.startswith("VLLM::"):
                    found[child.pid] = title
        return found

    def look(self, pids: Sequence[int]) -> dict[int, Sighting]:
        """What the processes are doing now; a zombie has ended."""
        return {pid: self._look(pid) for pid in pids}

    def _look(self, pid: int) -> Sighting:
        try:
            process = self._processes.setdefault(pid, psutil.Process(pid))
            with process.oneshot():
                status, times = process.status(), process.cpu_times()
            moved = process.io_counters()
            read, written = moved.read_chars, moved.write_chars
        except psutil.NoSuchProcess:
            return Sighting(alive=False)
        except psutil.AccessDenied:  # a hardened kernel hides /proc/PID/io
            read = written = 0
        beat = heartbeat.read(self._folder / heartbeat.FOLDER, pid)
        return Sighting(
            alive=process.is_running() and status not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD),
            status=status,
            cpu_s=times.user + times.system,
            written=written,
            read=read,
            beats=beat.count,
            pending=beat.pending,
            doing=beat.doing,
        )

    def evidence(self, pid: int, owner: int | None) -> list[str]:
        """The last log lines of a process, and why it ended as far as its node can tell."""
        lines = self._last_lines(pid, owner)
        found = [f"{'  ' if i else 'Its last lines: '}{line}" for i, line in enumerate(lines)]
        if (killed := _oom_kills() - self._oom_kills) > 0:
            found.append(
                f"The kernel's OOM killer ended {killed} processes of the node since the run began."
            )
        events = self._folder / "logs" / "events" / "event_RAYLET.log"
        found += [
            f"Ray's memory monitor: {text}. See docs/troubleshooting.md, It runs out of memory."
            for text in _out_of_memory(events, self._began)
        ]
        shm = os.statvfs("/dev/shm")
        if shm.f_bavail * shm.f_frsize < 2**20 or any("Bus error" in line for line in lines):
            found.append(
                f"/dev/shm has {shm.f_bavail * shm.f_frsize / 2**20:.0f} of "
                f"{shm.f_blocks * shm.f_frsize / 2**20:.0f} MiB free: a write to a full one ends a "
                "process with a bus error (SIGBUS). Give it room: docker run --ipc=host."
            )
        return found

    def _last_lines(self, pid: int, owner: int | None) -> list[str]:
        for kind in ("err", "out"):
            for path in (self._folder / "logs").glob(f"worker-*-{owner or pid}.{kind}"):
                whose = ((line, _OF_CHILD.match(line)) for line in _tail(path))
                lines = [line for line, of in whose if (int(of[1]) == pid if of else owner is None)]
                if lines:
                    return lines[-LAST_LINES:]
        return []

    def kill(self, pids: Sequence[int]) -> None:
        """End processes that nothing else reaches, such as stopped ones."""
        for pid in pids:
            with suppress(psutil.NoSuchProcess):
                self._processes.get(pid, psutil.Process(pid)).kill()


def _tail(path: Path, size: int = 16_384) -> list[str]:
    with path.open("rb") as file:
        file.seek(max(path.stat().st_size - size, 0))
        text = file.read().decode(errors="replace")
    lines = (_COLOURS.sub("", line).strip() for line in text.splitlines())
    return [line for line in lines if line and not line.startswith(":")]  # Ray's marks


def _out_of_memory(events: Path, since: int) -> list[str]:
    """A raylet's messages on workers that it killed for lack of memory on its node.

    Args:
        events: the raylet's events, a JSON object per line.
        since: seconds; earlier ones are left out.
    """
    found = []
    with suppress(OSError):  # a raylet that has written none
        for line in events.read_text(errors="replace").splitlines():
            with suppress(json.JSONDecodeError):  # one that is being written
                event = json.loads(line)
                if event["label"] == "Out of Memory" and int(event["timestamp"]) >= since:
                    message = event["message"].partition("\\n")[0].partition("\n")[0]
                    found.append(message.strip().rstrip("."))
    return found


def _oom_kills() -> int:
    """Processes that the kernel has ended for lack of memory since it started."""
    for line in Path("/proc/vmstat").read_text().splitlines():
        if line.startswith("oom_kill "):
            return int(line.split()[1])
    return 0
