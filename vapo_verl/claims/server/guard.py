"""Ends a server whose owner was killed outright and could not end it itself.

Runs as `python -m vapo_verl.claims.server.guard` with a pipe from the owner as its standard input:
the server's process id comes through it as a line, and its end means that the owner is gone. (The
kernel's PR_SET_PDEATHSIG would reach the server only, and vLLM's engine core outlives that.)
"""

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from vapo_verl.claims.server.family import end_family


@contextmanager
def guarded() -> Iterator[Callable[[int], None]]:
    """Start a guard; the yielded function tells it which session leader to end after us."""
    guard = subprocess.Popen(
        [sys.executable, "-m", "vapo_verl.claims.server.guard"],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # a Ctrl-C at the terminal is not for the guard
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


def main() -> None:
    leader = sys.stdin.readline()
    sys.stdin.read()  # until the owner is gone
    if leader.strip():
        end_family(int(leader))


if __name__ == "__main__":
    main()
