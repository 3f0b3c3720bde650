"""A process with all that it started: found, asked to end, and made to."""

import os
import signal
import time
from collections.abc import Sequence
from contextlib import suppress

import psutil

END_S = 10.0
"""Between asking and making. vLLM does not heed SIGTERM while it loads a model."""
_KILL_S = 5.0
_POLL_S = 0.05


def end_family(leader: int) -> None:
    """End the session leader `leader`, its children and what else is in its session.

    Processes of one session are found after their parents are gone, too: an engine core outlives a
    server that is killed.
    """
    members = family(leader)
    try:
        for member in members:
            _send(member, signal.SIGTERM)
        _wait_for_end(members, END_S)
    finally:  # also on a second Ctrl-C
        members = list({*members, *family(leader)})
        for member in members:
            _send(member, signal.SIGKILL)
        _wait_for_end(members, _KILL_S)


def family(leader: int) -> list[psutil.Process]:
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
    """A zombie has ended; in a container nobody may ever collect it."""
    try:
        return member.is_running() and member.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _send(member: psutil.Process, number: signal.Signals) -> None:
    with suppress(psutil.NoSuchProcess):
        member.send_signal(number)


def _wait_for_end(members: Sequence[psutil.Process], timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while any(is_alive(member) for member in members) and time.monotonic() < deadline:
        time.sleep(_POLL_S)
