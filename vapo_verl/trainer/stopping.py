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
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from vapo_verl.console import mark, phases
from vapo_verl.run_folder import checkpoints
from vapo_verl.run_folder.checkpoints import FileRecord, Scores
from vapo_verl.run_folder.layout import METRICS_FILE, named_failure
from vapo_verl.run_folder.metrics import read_metrics

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
    """A Ray actor class that passes each new actor to `announce`; ``run_ppo`` returns none.

    Args:
        create: makes an actor of the class with its options.
        options: of Ray.
    """

    def __init__(
        self,
        actor_class: Any,
        announce: Callable[[Any], None],
        create: Callable[[Any], Any] = lambda actor_class: actor_class.remote(),
        **options: Any,
    ) -> None:
        self._actor_class, self._options = actor_class, options
        self._announce, self._create = announce, create

    def options(self, **options: Any) -> AnnouncedActor:
        given = {**self._options, **options}
        return AnnouncedActor(self._actor_class, self._announce, self._create, **given)

    def remote(self) -> Any:
        actor = self._create(self._actor_class.options(**self._options))
        self._announce(actor)
        return actor


def _stop_before_the_start(number: int) -> None:
    _say(number, "stopped before the run began; the same command starts it")
    raise SystemExit(EXIT_STOPPED)


def _say(number: int, text: str) -> None:
    """Write to stderr; safe inside a print() that the signal interrupted."""
    os.write(2, f"{mark()}vapo_verl: {signal.Signals(number).name}: {text}\n".encode())


class SafeStop:
    """A trainer's answer to a request to stop; knows which step is saved.

    Args:
        run_dir: folder of the run.
        num_checkpoints: complete checkpoints to keep; None keeps all.
        best_by: metric whose best checkpoint is kept too.
    """

    def __init__(
        self, run_dir: Path, num_checkpoints: int | None, best_by: str | None = None
    ) -> None:
        self._run_dir = run_dir
        self._num_checkpoints, self._best_by = num_checkpoints, best_by
        self._requested = threading.Event()
        self._training = False
        self._saved_step = 0
        self._written: tuple[int, Mapping[str, FileRecord]] | None = None

    def request(self) -> bool:
        """Ask, from another thread, to end the run after the current step and its checkpoint.

        Returns:
            False before the first step: there is nothing to save, the process may be ended at once.
        """
        self._requested.set()
        return self._training

    def resumed(self, step: int) -> None:
        """Record that the run begins after ``step``, whose checkpoint it has loaded."""
        self._saved_step = step

    @contextmanager
    def saving(self, step: int) -> Iterator[dict[str, FileRecord]]:
        """Context that writes the checkpoint of `step`; see :func:`checkpoints.writing`."""
        phases.begin(f"checkpoint of step {step}")
        with checkpoints.writing(self._run_dir, step, *self._retention()) as records:
            yield records
        phases.end()
        self._written = step, records

    def declare_saved(self) -> None:
        """Declare the checkpoint that `saving` wrote complete, if there is one.

        The trainer calls it once the step's metrics and rollouts are on disk: a run that is killed
        earlier repeats the step, and none of them has a gap.
        """
        if self._written is not None:
            step, records = self._written
            checkpoints.declare_complete(self._run_dir, step, records, *self._retention())
            self._saved_step, self._written = step, None

    def update_best(self) -> None:
        """Compare the checkpoints again: the saved step was validated after it was declared."""
        keep, best_by = self._retention()
        if best_by is not None:
            with named_failure(self._run_dir / checkpoints.BEST_FILE):
                checkpoints.name_best(self._run_dir, best_by)
            checkpoints.remove_old(self._run_dir, self._saved_step, keep, best_by)

    def _retention(self) -> tuple[int | None, Scores | None]:
        """Which checkpoints are kept, by the metrics that are on the disk."""
        if self._best_by is None:
            return self._num_checkpoints, None
        metrics = read_metrics(self._run_dir / METRICS_FILE)
        return self._num_checkpoints, Scores(self._best_by, metrics.series(self._best_by))

    def begin_step(
        self, step: int, *, sleep: Callable[[], object], save_step: Callable[[int], None]
    ) -> None:
        """Let ``step`` begin, unless the run was asked to stop.

        Args:
            sleep: puts the engine to sleep, as during training: memory for the actor.
            save_step: saves the step before, within `saving`. Neither is called if it is saved.

        Raises:
            RunStopped: the run was asked to stop; the step before is saved.
        """
        self._training = True
        if not self._requested.is_set():
            return
        finished = step - 1
        if finished > self._saved_step:
            sleep()
            save_step(finished)
            self.declare_saved()
        raise RunStopped(finished)
