"""Console output of a run: short for the user, complete in `console.log`.

A run prints hundreds of lines from a dozen processes; few of them matter to the user. Within
:class:`Console`, this process and its children write to ``console.log`` in the run folder. A thread
follows the file and shows the lines of :func:`say`, :class:`Phases` and :func:`progress` from all
processes: Ray forwards the output of its workers to the driver.
"""

from __future__ import annotations

import os
import re
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from tqdm import tqdm

LOG_FILE = "console.log"
SAY, BEGIN, END, PROGRESS = "[vapo] ", "[vapo begin] ", "[vapo end] ", "[vapo progress] "
"""Prefixes of lines that the console shows."""
_MARKED = re.compile(
    r"^(?:(?:\x1b\[\d+m)*\([^()]*\)(?:\x1b\[0m)* ?)*\[vapo(?: (begin|end|progress))?\] (.*)$"
)
"""Also matches behind the names that Ray and vLLM put before a line, in colour or not."""
POLL_S = 0.2
LONG_S = 5.0
_CLEAR = "\r\x1b[K"
_captured = threading.Event()


def mark() -> str:
    """The prefix with which this process's own lines are shown; empty outside a console."""
    return SAY if _captured.is_set() else ""


def say(text: str) -> None:
    """Print lines that the console shows."""
    for line in text.splitlines():
        print(f"{SAY}{line}", flush=True)


def progress(text: str) -> None:
    """Show `text` as the console's last line until the next line comes; in a terminal only."""
    print(f"{PROGRESS}{text}", flush=True)


class Phases:
    """Parts of a run that take seconds to minutes: named when they begin, timed when they end."""

    def __init__(self) -> None:
        self._text, self._since = "", 0.0

    def begin(self, text: str) -> None:
        """Begin a phase and end the one before; nothing changes within a phase of the same text."""
        if text != self._text:
            self.end()
            self._text, self._since = text, time.monotonic()
            print(f"{BEGIN}{text}", flush=True)

    def end(self) -> None:
        """End the phase, if there is one."""
        if self._text:
            print(f"{END}{self._text}: {time.monotonic() - self._since:.0f} s", flush=True)
            self._text = ""


phases = Phases()
"""The phases of this process."""


def marked(line: str) -> tuple[str, str] | None:
    """Kind (``say``, ``begin``, ``end``, ``progress``) and text of a line; None without a mark."""
    match = _MARKED.match(line)
    return (match[1] or "say", match[2]) if match else None


class Screen:
    """Shows marked lines on a stream: in a terminal the last one may be replaced."""

    def __init__(self, stream: TextIO, *, full: bool) -> None:
        self._stream, self._full = stream, full
        self._live = stream.isatty() and not full
        self._phase, self._since, self._shown = "", 0.0, ""

    def line(self, line: str) -> None:
        """Process one line of the log."""
        found = marked(line)
        if self._full:
            self._write(f"{line}\n")
        elif found is not None:
            self._show(*found)

    def _show(self, kind: str, text: str) -> None:
        if kind == "begin":
            self._phase, self._since = text, time.monotonic()
        elif kind == "progress":
            self._phase, self._since = text, 0.0
        else:
            if kind == "end":
                self._phase = ""
            self._write(f"{text}\n")
        self.tick()

    def tick(self) -> None:
        """Refresh the last line; call it about once a second.

        Where the line cannot be replaced, a phase is printed once, after `LONG_S`.
        """
        if not self._phase:
            return
        taken = time.monotonic() - self._since
        if not self._live:
            if self._since and taken > LONG_S:
                self._write(f"{self._phase} ...\n")
                self._phase = ""
            return
        seconds = f" ... {taken:.0f} s" if self._since else ""
        self._shown = f"{self._phase}{seconds}"[: self.width() - 1]
        self._stream.write(f"{_CLEAR}{self._shown}")
        self._stream.flush()

    def close(self) -> None:
        """Remove the replaceable line."""
        self._phase = ""
        self._write("")

    def width(self) -> int:
        """Columns of the terminal."""
        return os.get_terminal_size(self._stream.fileno()).columns

    def _write(self, text: str) -> None:
        if self._shown:
            self._stream.write(_CLEAR)
            self._shown = ""
        self._stream.write(text)
        self._stream.flush()


class Console:
    """A context in which the output of this process and its children goes to a log.

    Args:
        folder: of the run; created if it is missing.
        mode: ``short`` shows marked lines only, ``full`` all of them (`vapo.logging.console`).

    Raises:
        OSError: the log cannot be written.
    """

    def __init__(self, folder: Path, mode: str) -> None:
        self.log = folder / LOG_FILE
        self._mode = mode
        self._ended = threading.Event()
        folder.mkdir(parents=True, exist_ok=True)
        self._opened = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def __enter__(self) -> Console:
        _flush()
        self._kept = [os.dup(1), os.dup(2)]
        self._stream = os.fdopen(os.dup(self._kept[0]), "w", encoding="utf-8", errors="replace")
        start = os.fstat(self._opened).st_size
        for number in (1, 2):
            os.dup2(self._opened, number)
        os.close(self._opened)
        screen = Screen(self._stream, full=self._mode == "full")
        self._reader = threading.Thread(target=self._follow, args=(screen, start), daemon=True)
        self._reader.start()
        _captured.set()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with suppress(OSError):  # on a full disk; buffered text goes to the terminal
            _flush()
        _captured.clear()
        self._ended.set()
        self._reader.join()
        for number, kept in zip((1, 2), self._kept, strict=True):
            os.dup2(kept, number)
            os.close(kept)
        self._stream.close()

    def _follow(self, screen: Screen, start: int) -> None:
        """Follow the log from `start`; lines written before the context ends are still shown."""
        with self.log.open("r", encoding="utf-8", errors="replace", newline="\n") as file:
            file.seek(start)
            rest = ""
            while True:
                ended = self._ended.is_set()
                rest += file.read()
                *lines, rest = rest.split("\n")
                with suppress(OSError):  # a terminal that is gone does not end the run
                    for line in lines:
                        screen.line(line.rstrip("\r"))
                    screen.tick()
                if ended:
                    break
                time.sleep(POLL_S)
            with suppress(OSError):
                if rest:
                    screen.line(rest)
                screen.close()


def _flush() -> None:
    sys.stdout.flush()
    sys.stderr.flush()


def progress_bar(total: int, *, unit: str, done: int = 0) -> tqdm[Any]:
    """A bar on stderr with the time left; silent where stderr is no terminal.

    Args:
        done: items of `total` that an earlier run finished.
    """
    from tqdm import tqdm

    return tqdm(total=total, initial=done, unit=unit, dynamic_ncols=True, disable=None)
