"""Stop a run between two steps, the last of which is saved."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from vapo_verl.console import phases
from vapo_verl.run_folder import checkpoints
from vapo_verl.trainer.stopping import RunStopped


class SafeStop:
    """A trainer's answer to a request to stop; knows which step is saved.

    Args:
        run_dir: folder of the run.
        num_checkpoints: complete checkpoints to keep; all, where it is None.
    """

    def __init__(self, run_dir: Path, num_checkpoints: int | None) -> None:
        self._run_dir = run_dir
        self._num_checkpoints = num_checkpoints
        self._requested = threading.Event()
        self._training = False
        self._saved_step = 0

    def request(self) -> bool:
        """Ask, from another thread, for the run's end after the current step and its checkpoint.

        Returns:
            False before the first step: nothing is to be saved, the process may be ended at once.
        """
        self._requested.set()
        return self._training

    def resumed(self, step: int) -> None:
        """Record that the run begins after ``step``, whose checkpoint it has loaded."""
        self._saved_step = step

    @contextmanager
    def saving(self, step: int) -> Iterator[None]:
        """Save the checkpoint of ``step`` within: complete only once all of it is on disk."""
        phases.begin(f"checkpoint of step {step}")
        with checkpoints.saving(self._run_dir, step, self._num_checkpoints):
            yield
        phases.end()
        self._saved_step = step

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
        raise RunStopped(finished)
