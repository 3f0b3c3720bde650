"""When the next request may start: a rate limit, and waits that the server asked for."""

import asyncio
import time
from collections.abc import Awaitable, Callable


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
