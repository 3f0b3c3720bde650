"""How late an event loop runs what is due: work on it that should be in a thread."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence

import numpy as np

INTERVAL_S = 0.05
MAX_SAMPLES = 100_000
"""Of one loop between two reads; the oldest are dropped."""


class LoopLag:
    """Measures the lag of the running event loop from the first call of :meth:`start` on."""

    def __init__(self) -> None:
        self._lags_s: deque[float] = deque(maxlen=MAX_SAMPLES)
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Measure in a task of the running loop; further calls do nothing."""
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._measure())

    def take(self) -> list[float]:
        """Seconds since the last call, one value every ``INTERVAL_S``."""
        taken = list(self._lags_s)
        self._lags_s.clear()
        return taken

    async def _measure(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + INTERVAL_S
            await asyncio.sleep(INTERVAL_S)
            self._lags_s.append(max(loop.time() - due, 0.0))


def lag_metrics(name: str, lags_s: Sequence[float]) -> dict[str, float]:
    """``vapo/rollout/NAME_lag_ms_p50`` and ``_p99`` over all loops of a kind; nan of nothing."""
    shown = np.percentile(lags_s, [50, 99]) * 1e3 if lags_s else (np.nan, np.nan)
    names = (f"vapo/rollout/{name}_lag_ms_p{percent}" for percent in (50, 99))
    return dict(zip(names, map(float, shown), strict=True))
