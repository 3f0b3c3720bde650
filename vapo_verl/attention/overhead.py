"""What recording costs, said once a run as a share of decode time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

NUM_STEPS = 32
"""Decode steps that are timed; after them nothing is."""


class OverheadMeter:
    """Times the recording inside of the first `NUM_STEPS` pure decode steps.

    Only where a kernel has ended when its call returns, that is on CPU.

    Args:
        report: told the share, from 0 up, of recording time in the rest of the timed steps.
    """

    def __init__(self, report: Callable[[float], None]) -> None:
        self._report = report
        self._steps, self._step_s, self._recording_s = 0, 0.0, 0.0
        self._timing = False

    @contextmanager
    def step(self, timed: bool) -> Iterator[None]:
        """Around the forward of one engine step; `timed` for a decode step without a prefill."""
        if not timed or self._steps >= NUM_STEPS:
            yield
            return
        self._timing, start = True, time.perf_counter()
        try:
            yield
        finally:
            self._timing = False
        self._step_s += time.perf_counter() - start
        self._steps += 1
        if self._steps == NUM_STEPS:
            self._report(self._recording_s / (self._step_s - self._recording_s))

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Around the recording of one layer."""
        if not self._timing:
            yield
            return
        start = time.perf_counter()
        yield
        self._recording_s += time.perf_counter() - start
