"""A cap on the probe tokens in flight in an engine."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class TokenBudget:
    """Admits requests in arrival order while their tokens fit under a limit.

    The probes of a response arrive together, and many responses may end at once. Without a cap
    their probes could take the KV cache of responses that still decode.

    Args:
        limit: most tokens in flight; a larger request runs alone. 0: no cap.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._in_flight = 0
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    @asynccontextmanager
    async def hold(self, num_tokens: int) -> AsyncIterator[None]:
        """Context of a request of `num_tokens` tokens."""
        await self._enter(num_tokens)
        try:
            yield
        finally:
            self._leave(num_tokens)

    async def _enter(self, num_tokens: int) -> None:
        if not self._waiting and self._fits(num_tokens):
            self._in_flight += num_tokens
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((num_tokens, turn))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():  # admitted and cancelled at the same time
                self._leave(num_tokens)
            raise

    def _leave(self, num_tokens: int) -> None:
        self._in_flight -= num_tokens
        while self._waiting:
            wanted, turn = self._waiting[0]
            if not turn.cancelled():
                if not self._fits(wanted):
                    return
                self._in_flight += wanted
                turn.set_result(None)
            self._waiting.popleft()

    def _fits(self, num_tokens: int) -> bool:
        free = self._limit - self._in_flight
        return self._limit == 0 or self._in_flight == 0 or num_tokens <= free
