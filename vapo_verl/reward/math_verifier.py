"""The math verifier: a pool of processes that compare answers and end when one takes too long.

Safe in any thread, event loop or Ray actor: a call waits on a socket, without the interpreter
lock. The first comparison starts the process that forks the workers (seconds); all of them end
with the calling process, however that ends.
"""

import atexit
import contextlib
import json
import logging
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

from vapo_verl.reward.math_worker import READY

ANSWER_LIMIT_S = 3.0
"""CPU seconds of one comparison: the load of the machine does not change a result."""
WAIT_LIMIT_S = 120.0
"""Wall seconds after which a worker that gets no CPU time is given up."""
START_LIMIT_S = 180.0
MAX_WORKERS = 8
MAX_CHARS = 1000

_log = logging.getLogger(__name__)


class MathVerifier:
    """Workers that are started when needed; each compares one pair of answers at a time.

    A hard pair ends its own worker only. A pair waits for a worker only while all `max_workers` are
    busy.
    """

    def __init__(self, answer_limit_s: float = ANSWER_LIMIT_S, max_workers: int = MAX_WORKERS):
        self.answer_limit_s = answer_limit_s
        self.max_workers = max_workers
        self._workers: set[socket.socket] = set()
        self._parent: _WorkerParent | None = None
        self._reset_locks()

    def equal(self, answer: str, truth: str) -> bool:
        """Whether the two are equal in value; too long, too slow or unreadable: False.

        Raises:
            RuntimeError: the processes do not start, as without math-verify.
        """
        if max(len(answer), len(truth)) > MAX_CHARS:
            return False
        question = json.dumps([answer, truth, self.answer_limit_s]).encode() + b"\n"
        for _ in range(3):  # again only if something else ended the process
            parent, worker = self._take()
            reply = _ask(worker, question)
            self._give_back(worker, is_usable=reply in ("0", "1"))
            if reply in ("0", "1"):
                return reply == "1"
            if reply == "?" and parent.is_running(wait_s=0.1):
                break
        _log.warning("no answer on %.80r against %.80r: counted incorrect", answer, truth)
        return False

    def close(self) -> None:
        """End all processes; the next comparison starts others."""
        with self._lock:
            self._drop_idle()
            if self._parent is not None:
                self._parent.end()
            self._parent = None

    def forget(self) -> None:
        """Drop the processes without ending them: after a fork they belong to the parent."""
        for worker in self._workers:
            worker.close()
        self._workers.clear()
        if self._parent is not None:
            self._parent.control.close()
        self._parent = None
        self._reset_locks()

    def _reset_locks(self) -> None:
        self._lock = threading.Lock()
        self._free = threading.Semaphore(self.max_workers)
        self._idle: list[socket.socket] = []

    def _take(self) -> tuple["_WorkerParent", socket.socket]:
        self._free.acquire()
        try:
            with self._lock:
                parent, worker = self._started_worker()
                self._workers.add(worker)
                return parent, worker
        except BaseException:
            self._free.release()
            raise

    def _started_worker(self) -> tuple["_WorkerParent", socket.socket]:
        if self._parent is not None and self._parent.is_running():
            if self._idle:
                return self._parent, self._idle.pop()
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it ended just now
                return self._parent, self._parent.fork_worker()
        self._drop_idle()
        self._parent = _WorkerParent()
        return self._parent, self._parent.fork_worker()

    def _drop_idle(self) -> None:
        for worker in self._idle:
            self._workers.discard(worker)
            worker.close()
        self._idle.clear()

    def _give_back(self, worker: socket.socket, *, is_usable: bool) -> None:
        with self._lock:
            if is_usable:
                self._idle.append(worker)
            else:
                self._workers.discard(worker)
                worker.close()
        self._free.release()


class _WorkerParent:
    """The process that has sympy loaded and forks the workers."""

    def __init__(self) -> None:
        package_root = str(Path(__file__).parents[2])
        path = os.pathsep.join(filter(None, [package_root, os.environ.get("PYTHONPATH")]))
        self.control, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "vapo_verl.reward.math_worker"],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=os.environ | {"PYTHONPATH": path},
            )
        self.control.settimeout(START_LIMIT_S)
        if _receive(self.control, len(READY)) != READY:
            self.end()
            raise RuntimeError(
                "the math verifier did not start: `python -m vapo_verl.reward.math_worker` says "
                "why; it needs math-verify with its antlr4 runtime"
            )

    def is_running(self, wait_s: float = 0.0) -> bool:
        """Whether the process still runs after `wait_s`: workers end a moment before it."""
        try:
            self._process.wait(timeout=wait_s)
        except subprocess.TimeoutExpired:
            return True
        return False

    def fork_worker(self) -> socket.socket:
        ours, theirs = socket.socketpair()
        with theirs:
            socket.send_fds(self.control, [b"w"], [theirs.fileno()])
        ours.settimeout(WAIT_LIMIT_S)
        return ours

    def end(self) -> None:
        self.control.close()
        self._process.kill()
        self._process.wait()


def _ask(worker: socket.socket, question: bytes) -> str:
    """`0` or `1`; `?` if the worker ended while it compared; empty if it had ended before."""
    try:
        worker.sendall(question)
        if _receive(worker, 1) != b"?":
            return ""
    except OSError:
        return ""
    try:
        return _receive(worker, 1).decode() or "?"
    except OSError:
        return "?"


def _receive(connection: socket.socket, size: int) -> bytes:
    """Up to `size` bytes; fewer when the other end closes or the time limit passes."""
    received = b""
    try:
        while len(received) < size and (more := connection.recv(size - len(received))):
            received += more
    except OSError:
        return received
    return received


_verifier = MathVerifier()
math_equal = _verifier.equal
atexit.register(_verifier.close)
os.register_at_fork(after_in_child=_verifier.forget)
