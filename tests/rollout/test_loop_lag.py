"""Lag of an event loop."""

import asyncio
import math
import time

import pytest

from vapo_verl.heartbeat import INTERVAL_S, LoopLag, lag_metrics


async def test_work_on_the_loop_is_seen_and_taken_once():
    lag = LoopLag()
    lag.start()
    lag.start()
    await asyncio.sleep(INTERVAL_S * 1.5)
    time.sleep(0.2)
    await asyncio.sleep(INTERVAL_S)
    assert max(lag.take()) > 0.1
    assert lag.take() == []


def test_percentiles_are_in_milliseconds():
    values = lag_metrics("loop", [0.001] * 99 + [1.0])
    assert values["vapo/rollout/loop_lag_ms_p50"] == pytest.approx(1.0)
    assert values["vapo/rollout/loop_lag_ms_p99"] > 1.0
    assert all(map(math.isnan, lag_metrics("loop", []).values()))
