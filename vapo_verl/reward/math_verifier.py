"""The math verifier: a child process that compares answers and is killed when it takes too long.

Safe in any thread: a call holds a lock and waits on a pipe, without the interpreter lock. The
child starts at the first comparison (seconds) and ends with its parent.
"""

import atexit
import json
import logging
import os
import selectors
import subprocess
import sys
import threading
from pathlib import Path

ANSWER_LIMIT_S = 10.0
START_LIMIT_S = 180.0
MAX_CHARS = 1000

_log = logging.getLogger(__name__)


class MathVerifier:
    """One child process, started when needed, replaced after it was killed."""

    def __init__(self, answer_limit_s: float = ANSWER_LIMIT_S):
        self.answer_limit_s = answer_limit_s
        self.forget()

    def equal(self, answer: str, truth: str) -> bool:
        """Whether the two are equal in value; too long, too slow or unreadable: False.

        Raises:
            RuntimeError: the child does not start, as without math-verify.
        """
        if max(len(answer), len(truth)) > MAX_CHARS:
            return False
        with self._lock:
            child = self._running()
            reply = self._ask(child, json.dumps([answer, truth]))
            if not reply:
                _log.warning("no answer on %.80r against %.80r: counted incorrect", answer, truth)
                self._kill(child)
        return reply == "1"

    def close(self) -> None:
        """End the child; the next comparison starts another."""
        with self._lock:
            if self._child is not None:
                self._kill(self._child)

    def forget(self) -> None:
        """Drop the child without ending it: after a fork it belongs to the parent."""
        self._lock = threading.Lock()
        self._child: subprocess.Popen[str] | None = None

    def _running(self) -> subprocess.Popen[str]:
        if self._child is None or self._child.poll() is not None:
            self._child = _start()
        return self._child

    def _ask(self, child: subprocess.Popen[str], question: str) -> str:
        assert child.stdin is not None
        try:
            child.stdin.write(question + "\n")
            child.stdin.flush()
        except BrokenPipeError:
            return ""
        return _read_line(child, self.answer_limit_s)

    def _kill(self, child: subprocess.Popen[str]) -> None:
        child.kill()
        child.communicate()
        self._child = None


def _start() -> subprocess.Popen[str]:
    package_root = str(Path(__file__).parents[2])
    path = os.pathsep.join(filter(None, [package_root, os.environ.get("PYTHONPATH")]))
    child = subprocess.Popen(
        [sys.executable, "-m", "vapo_verl.reward.math_worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=os.environ | {"PYTHONPATH": path},
    )
    if _read_line(child, START_LIMIT_S) != "ready":
        child.kill()
        child.communicate()
        raise RuntimeError(
            "the math verifier did not start: `python -m vapo_verl.reward.math_worker` says why; "
            "it needs math-verify with its antlr4 runtime"
        )
    return child


def _read_line(child: subprocess.Popen[str], limit_s: float) -> str:
    """The child's next line; empty if the child ends or the time limit passes first."""
    assert child.stdout is not None
    with selectors.DefaultSelector() as selector:
        selector.register(child.stdout, selectors.EVENT_READ)
        return child.stdout.readline().strip() if selector.select(limit_s) else ""


_verifier = MathVerifier()
math_equal = _verifier.equal
atexit.register(_verifier.close)
os.register_at_fork(after_in_child=_verifier.forget)
