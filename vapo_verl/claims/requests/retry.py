"""Send requests at the allowed rate, and retry after transient faults.

The wait is an exponential backoff with jitter, or what the server asks for, up to a cap; long waits
are printed.
"""

import asyncio
import math
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from random import Random
from typing import Protocol

from vapo_verl.claims.options import RetryOptions
from vapo_verl.claims.report import RunCounts
from vapo_verl.claims.requests.reply import ImageFailed, Message, Reply, TransientFault

LONG_WAIT_S = 10.0
"""Waits of all requests are printed from this length on."""


class Asks(Protocol):
    """The part of `Endpoint` that is used."""

    async def ask(self, messages: Sequence[Message], num_choices: int = 1) -> Reply: ...


class Pacer:
    """Spaces the starts of requests evenly, and holds all of them back on request."""

    def __init__(
        self,
        requests_per_minute: float | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ):
        if requests_per_minute is not None and not 0 < requests_per_minute < math.inf:
            raise ValueError(
                f"--requests-per-minute: {requests_per_minute}; give more than 0, or leave it out"
            )
        self._interval_s = 60.0 / requests_per_minute if requests_per_minute else 0.0
        self._clock, self._sleep = clock, sleep
        self._next_start = float("-inf")
        self._held_until = float("-inf")
        self._in_order = asyncio.Lock()

    async def turn(self) -> None:
        """Return when a request may start. Turns are given in the order they were asked for.

        One turn at a time waits for the clock and the others wait for it, so that they are spaced
        after a hold, too.
        """
        async with self._in_order:
            start = max(self._clock(), self._next_start)
            while (wait_s := max(start, self._held_until) - self._clock()) > 0:
                await self._sleep(wait_s)
            self._next_start = max(start, self._held_until) + self._interval_s

    def hold(self, seconds: float) -> bool:
        """Let no request start for `seconds`: a rate limit applies to all requests.

        Returns:
            Whether requests could start until now: if many fail together, only the first is told.
        """
        now = self._clock()
        is_new = self._held_until <= now
        self._held_until = max(self._held_until, now + seconds)
        return is_new


class PatientAsker:
    """Sends requests at the allowed rate, retries transient faults, and counts."""

    def __init__(
        self,
        endpoint: Asks,
        pacer: Pacer,
        options: RetryOptions,
        counts: RunCounts,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ):
        self._endpoint, self._pacer, self._options, self._counts = endpoint, pacer, options, counts
        self._sleep = sleep

    async def ask(self, messages: Sequence[Message], rng: Random, num_choices: int = 1) -> Reply:
        """The reply, after up to `max_retries` retries.

        Args:
            rng: draws the jitter; seeded by image, so that it does not depend on arrival order.

        Raises:
            ImageFailed: the retries are used up, or the endpoint refuses this image.
            FatalFault: the endpoint would refuse every image.
        """
        for num_failed in range(self._options.max_retries + 1):
            await self._pacer.turn()
            try:
                reply = await self._endpoint.ask(messages, num_choices)
            except TransientFault as fault:
                if num_failed == self._options.max_retries:
                    last = f", the last: {fault.detail}" if fault.detail else ""
                    raise ImageFailed(fault.reason, f"{num_failed + 1} tries{last}") from fault
                self._counts.retries[fault.reason] += 1
                self._hold_all(fault)
                await self._sleep(backoff_s(num_failed, fault, self._options, rng))
            else:
                self._counts.usage += reply.usage
                return reply
        raise AssertionError("unreachable: the last try returns or raises")

    def _hold_all(self, fault: TransientFault) -> None:
        if fault.retry_after_s is None:
            return
        wait_s = min(fault.retry_after_s, self._options.max_wait_s)
        if self._pacer.hold(wait_s) and wait_s >= LONG_WAIT_S:
            capped = fault.retry_after_s > wait_s
            asked = f"asks to wait {fault.retry_after_s:.0f} s" if capped else "asks for it"
            print(
                f"waiting {wait_s:.0f} s with all requests: the endpoint {asked} ({fault.reason})",
                file=sys.stderr,
                flush=True,
            )


def backoff_s(num_failed: int, fault: TransientFault, options: RetryOptions, rng: Random) -> float:
    """Seconds to wait after failure number `num_failed` (from 0): base * 2^n up to the cap, times
    0.5..1. If the server names a time: that time (at most `max_wait_s`), plus up to one base."""
    if fault.retry_after_s is not None:
        return min(fault.retry_after_s, options.max_wait_s) + rng.uniform(0, options.backoff_s)
    full_s = min(options.backoff_s * 2.0 ** min(num_failed, 64), options.max_backoff_s)
    return full_s * rng.uniform(0.5, 1)
