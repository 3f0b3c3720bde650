"""Sends requests at the allowed pace, and again after transient faults.

The wait is an exponential backoff with jitter, or what the server asks for.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from random import Random
from typing import Protocol

from vapo_verl.claims.options import RetryOptions
from vapo_verl.claims.requests.reply import ImageFailed, Message, Reply, TransientFault
from vapo_verl.claims.tally import RunTally


class Asks(Protocol):
    """What is used of `Endpoint`."""

    async def ask(self, messages: Sequence[Message], num_choices: int = 1) -> Reply: ...


class Pacer:
    """Spaces the starts of requests evenly, and holds all of them back when told to."""

    def __init__(
        self,
        requests_per_minute: float | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ):
        if requests_per_minute is not None and requests_per_minute <= 0:
            raise ValueError(
                f"--requests-per-minute: {requests_per_minute}; give more than 0, or leave it out"
            )
        self._interval_s = 60.0 / requests_per_minute if requests_per_minute else 0.0
        self._clock, self._sleep = clock, sleep
        self._next_start = float("-inf")
        self._held_until = float("-inf")

    async def turn(self) -> None:
        """Return when a request may start. Turns are given in the order they were asked for."""
        start = max(self._clock(), self._next_start)
        self._next_start = start + self._interval_s
        while (wait_s := max(start, self._held_until) - self._clock()) > 0:
            await self._sleep(wait_s)

    def hold(self, seconds: float) -> None:
        """Let no request start for `seconds`: the limit one of them met is everybody's."""
        self._held_until = max(self._held_until, self._clock() + seconds)


class PatientAsker:
    """Sends requests at the allowed pace, tries again where that may help, and counts."""

    def __init__(
        self,
        endpoint: Asks,
        pacer: Pacer,
        options: RetryOptions,
        tally: RunTally,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ):
        self._endpoint, self._pacer, self._options, self._tally = endpoint, pacer, options, tally
        self._sleep = sleep

    async def ask(self, messages: Sequence[Message], rng: Random, num_choices: int = 1) -> Reply:
        """The reply, after up to `max_retries` further tries.

        Args:
            rng: draws the jitter; seeded by image, so that it does not hang on arrival order.

        Raises:
            ImageFailed: the tries are used up, or the endpoint refuses this image.
            FatalFault: the endpoint would refuse every image.
        """
        for num_failed in range(self._options.max_retries + 1):
            await self._pacer.turn()
            try:
                reply = await self._endpoint.ask(messages, num_choices)
            except TransientFault as fault:
                if num_failed == self._options.max_retries:
                    raise ImageFailed(fault.reason, f"{num_failed + 1} tries") from fault
                self._tally.retries[fault.reason] += 1
                if fault.retry_after_s is not None:
                    self._pacer.hold(fault.retry_after_s)
                await self._sleep(backoff_s(num_failed, fault, self._options, rng))
            else:
                self._tally.usage += reply.usage
                return reply
        raise AssertionError("unreachable: the last try returns or raises")


def backoff_s(num_failed: int, fault: TransientFault, options: RetryOptions, rng: Random) -> float:
    """Seconds to wait after failure number `num_failed` (from 0): base * 2^n up to the cap, times
    0.5..1; where the server names a time, that time and up to one base on top, never less."""
    if fault.retry_after_s is not None:
        return fault.retry_after_s + rng.uniform(0, options.backoff_s)
    full_s = min(options.backoff_s * 2**num_failed, options.max_backoff_s)
    return full_s * rng.uniform(0.5, 1)
