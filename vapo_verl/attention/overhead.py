"""What recording costs, said once a run as a share of decode time."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

logger = logging.getLogger("vllm.vapo_verl.attention")

NUM_STEPS = 100
"""Decode steps that are timed; after them nothing is."""


class OverheadMeter:
    """Times the recording inside of the first `NUM_STEPS` pure decode steps.

    Only where a kernel has ended when its call returns, that is on CPU.
    """

    def __init__(self, what: str) -> None:
        self.what = what
        self._steps, self._step_s, self._recording_s = 0, 0.0, 0.0
        self._timing = False

    @contextmanager
    def step(self, pure_decode: bool) -> Iterator[None]:
        """Around the forward of one engine step."""
        if not pure_decode or self._steps >= NUM_STEPS:
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
            logger.info("%s: %+.1f %% of decode time", self.what, 100 * self.share)

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Around the recording of one layer."""
        if not self._timing:
            yield
            return
        start = time.perf_counter()
        yield
        self._recording_s += time.perf_counter() - start

    @property
    def share(self) -> float:
        """Recording time over the rest of the timed steps; nan before the first."""
        rest = self._step_s - self._recording_s
        return self._recording_s / rest if rest > 0 else float("nan")
