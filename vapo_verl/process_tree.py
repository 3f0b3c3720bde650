"""Terminate a process tree: SIGTERM, then SIGKILL; also when its owner is killed outright.

``python -m vapo_verl.process_tree`` is the guard of :func:`guarded`: its standard input is a pipe
from the owner, which sends the leader's process id as a line. The pipe ends when the owner does.
(The kernel's PR_SET_PDEATHSIG would reach the leader only, and vLLM's engine core
outlives that.)
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

import psutil

TERM_S = 10.0
"""Between SIGTERM and SIGKILL. vLLM ignores SIGTERM while it loads a model."""
_KILL_S = 5.0
_POLL_S = 0.05


def terminate_tree(leader: int) -> None:
    """Terminate the session leader `leader`, its children and the rest of its session.

    A session's processes are found even after their parents are gone: an engine core outlives a
    server that is killed.
    """
    members = process_tree(leader)
    try:
        for member in members:
            _send(member, signal.SIGTERM)
        _wait_for_end(members, TERM_S)
    finally:  # also on a second Ctrl-C
        members = list({*members, *process_tree(leader)})
        for member in members:
            _send(member, signal.SIGKILL)
        _wait_for_end(members, _KILL_S)


def process_tree(leader: int) -> list[psutil.Process]:
    """The living processes that belong to `leader`, itself among them."""
    members = set[psutil.Process]()
    with suppress(psutil.NoSuchProcess):
        parent = psutil.Process(leader)
        members |= {parent, *parent.children(recursive=True)}
    for other in psutil.process_iter():
        with suppress(OSError):  # it has ended, or belongs to somebody else
            if os.getsid(other.pid) == leader:
                members.add(other)
    return [member for member in members if is_alive(member)]


def is_alive(member: psutil.Process) -> bool:
    """Whether `member` runs. A zombie has ended; in a container it may never be reaped."""
    try:
        return member.is_running() and member.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@contextmanager
def guarded() -> Iterator[Callable[[int], None]]:
    """Start a guard; the yielded function sets the session leader it terminates after us."""
    guard = subprocess.Popen(
        [sys.executable, "-m", "vapo_verl.process_tree"],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # a Ctrl-C at the terminal must not reach the guard
    )
    assert guard.stdin is not None
    pipe = guard.stdin

    def watch(leader: int) -> None:
        pipe.write(b"%d\n" % leader)
        pipe.flush()

    try:
        yield watch
    finally:
        pipe.close()
        guard.wait()


def _send(member: psutil.Process, number: signal.Signals) -> None:
    with suppress(psutil.NoSuchProcess):
        member.send_signal(number)


def _wait_for_end(members: Sequence[psutil.Process], timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while any(is_alive(member) for member in members) and time.monotonic() < deadline:
        time.sleep(_POLL_S)


def main() -> None:
    """Wait until the owner is gone, then terminate the last leader that it named."""
    leaders = sys.stdin.read().split()
    if leaders:
        terminate_tree(int(leaders[-1]))


if __name__ == "__main__":
    main()
