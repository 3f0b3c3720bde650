"""Progress of a process, readable by others while it is busy, hangs or has died; event-loop lag.

Every process of a run maps a small file in a folder of its node: a counter of finished pieces of
work (tokens, micro-batches, weight buckets) and a line of text. A monitor reads the files. A beat
is a write to memory: no system call, no lock, no message.
"""

from __future__ import annotations

import asyncio
import mmap
import os
import struct
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

FOLDER_VARIABLE = "VAPO_HEARTBEATS"
"""Environment variable with the folder; child processes inherit it."""
FOLDER = "heartbeats"
"""Folder name in the folder of the Ray session, of which each node has its own."""
_NUMBERS = struct.Struct("<QQ")
_MAX_TEXT = 240
_SIZE = _NUMBERS.size + _MAX_TEXT
INTERVAL_S = 0.05
MAX_SAMPLES = 100_000
"""Samples of one loop between two reads; the oldest are dropped."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Beat:
    """The last beat of a process."""

    count: int
    """Pieces of work finished since the process started."""
    pending: int
    """Pieces of work that it has accepted and not finished."""
    doing: str


class _Writer:
    """The mapped file of one process."""

    def __init__(self, folder: Path) -> None:
        self.pid = os.getpid()
        self._count = self._pending = 0
        with (folder / str(self.pid)).open("w+b") as file:
            file.truncate(_SIZE)
            self._map = mmap.mmap(file.fileno(), _SIZE)

    def beat(self, doing: str | None, pending: int | None) -> None:
        self._count += 1
        if pending is not None:
            self._pending = pending
        _NUMBERS.pack_into(self._map, 0, self._count, self._pending)
        if doing is not None:
            self._map[_NUMBERS.size :] = doing.encode()[:_MAX_TEXT].ljust(_MAX_TEXT, b"\0")


_writer: _Writer | None = None


def start(folder: Path) -> None:
    """Let this process and the children that it starts afterwards write to `folder`."""
    global _writer
    folder.mkdir(parents=True, exist_ok=True)
    os.environ[FOLDER_VARIABLE], _writer = str(folder), None
    beat("starting")


def beat(doing: str | None = None, pending: int | None = None) -> None:
    """Count one finished piece of work; does nothing in a process outside a run.

    Args:
        doing: what the process does now, at most 240 bytes; None keeps the last text.
        pending: pieces of work it has accepted and not finished; None keeps the last number.
    """
    global _writer
    if _writer is None or _writer.pid != os.getpid():  # another pid after a fork
        folder = os.environ.get(FOLDER_VARIABLE)
        if not folder or not os.path.isdir(folder):
            return
        _writer = _Writer(Path(folder))
    _writer.beat(doing, pending)


def read(folder: Path, pid: int) -> Beat:
    """The last beat of a process; count 0 where it has written none."""
    try:
        content = (folder / str(pid)).read_bytes()
        count, pending = _NUMBERS.unpack_from(content)
    except (FileNotFoundError, struct.error):  # not there yet, or just made
        return Beat(count=0, pending=0, doing="")
    text = content[_NUMBERS.size :].rstrip(b"\0").decode(errors="replace")
    return Beat(count=count, pending=pending, doing=text)


class LoopLag:
    """Measures the lag of the running event loop from the first call of :meth:`start` on."""

    def __init__(self) -> None:
        self._lags_s: deque[float] = deque(maxlen=MAX_SAMPLES)
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Measure in a task of the running loop; further calls do nothing."""
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._measure())

    def take(self) -> list[float]:
        """Return and clear the lags since the last call, in seconds, one per ``INTERVAL_S``."""
        taken = list(self._lags_s)
        self._lags_s.clear()
        return taken

    async def _measure(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + INTERVAL_S
            await asyncio.sleep(INTERVAL_S)
            self._lags_s.append(max(loop.time() - due, 0.0))


def lag_metrics(name: str, lags_s: Sequence[float]) -> dict[str, float]:
    """``vapo/rollout/NAME_lag_ms_p50`` and ``_p99`` over all loops of a kind; nan without lags."""
    shown = np.percentile(lags_s, [50, 99]) * 1e3 if lags_s else (np.nan, np.nan)
    names = (f"vapo/rollout/{name}_lag_ms_p{percent}" for percent in (50, 99))
    return dict(zip(names, map(float, shown), strict=True))
