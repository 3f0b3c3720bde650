"""Stop a run on request without losing a step, as a preempting scheduler needs.

SIGTERM or SIGUSR1 to the process of ``vapo_verl.main`` ends the run between two steps, after one
complete checkpoint, with exit code 75. Ray's SIGTERM handler, which would tear the cluster down at
once, is replaced.
"""

from __future__ import annotations

import os
import queue
import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

from vapo_verl.console import mark

EXIT_STOPPED = os.EX_TEMPFAIL
"""Exit code of a run that stopped on request: the same command resumes it."""

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class RunStopped(Exception):
    """The run stopped on request.

    Attributes:
        step: the last finished step, which is saved; None if this process finished no step.
    """

    def __init__(self, step: int | None) -> None:
        super().__init__(step)
        self.step = step


class StopSignals:
    """A context in which each of ``STOP_SIGNALS`` asks the run to stop; only the first counts.

    Before :meth:`forward_to` there is nothing to save: the signal ends the process with
    ``EXIT_STOPPED``.
    """

    def __init__(self) -> None:
        self._received = False
        self._forwarding = False
        self._requests: queue.SimpleQueue[None] = queue.SimpleQueue()  # its put() is reentrant
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopSignals:
        self._previous = {number: signal.getsignal(number) for number in STOP_SIGNALS}
        self._install()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        if isinstance(error, SystemExit) and error.code == signal.SIGTERM and not self._forwarding:
            _stop_before_the_start(signal.SIGTERM)  # Ray's handler is active during ray.init

    def forward_to(self, ask: Callable[[], None]) -> None:
        """Call ``ask`` in a separate thread at the first signal.

        Call this after ``ray.init``, which sets its own SIGTERM handler.

        Raises:
            SystemExit: a signal came before; Python drops an exception that interrupts a finalizer.
        """
        if self._received:
            raise SystemExit(EXIT_STOPPED)
        self._forwarding = True
        threading.Thread(target=self._forward, args=(ask,), daemon=True).start()
        self._install()

    def _forward(self, ask: Callable[[], None]) -> None:
        self._requests.get()
        ask()

    def _install(self) -> None:
        for number in STOP_SIGNALS:
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if not self._forwarding:
            self._received = True
            _stop_before_the_start(number)
        if self._received:
            _say(number, "already stopping")
            return
        self._received = True
        _say(number, "stopping; a step that has begun is finished and saved first")
        self._requests.put(None)


class AnnouncedActor:
    """A Ray actor class that passes each new actor to `announce`; ``run_ppo`` returns none."""

    def __init__(self, actor_class: Any, announce: Callable[[Any], None]) -> None:
        self._actor_class = actor_class
        self._announce = announce

    def options(self, **options: Any) -> AnnouncedActor:
        return AnnouncedActor(self._actor_class.options(**options), self._announce)

    def remote(self) -> Any:
        actor = self._actor_class.remote()
        self._announce(actor)
        return actor


def _stop_before_the_start(number: int) -> None:
    _say(number, "stopped before the run began; the same command starts it")
    raise SystemExit(EXIT_STOPPED)


def _say(number: int, text: str) -> None:
    """Write to stderr; safe inside a print() that the signal interrupted."""
    os.write(2, f"{mark()}vapo_verl: {signal.Signals(number).name}: {text}\n".encode())
