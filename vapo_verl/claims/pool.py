"""Works on a stream of things with bounded concurrency and bounded memory."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from typing import TypeVar

T = TypeVar("T")


async def run_pool(
    items: Iterator[T], work: Callable[[T], Awaitable[None]], *, concurrency: int
) -> None:
    """Run `work` on every item, on up to `concurrency` at once; an item is read only when one of
    them is free for it. The first exception of `work` or of `items` cancels the rest and is raised.
    """
    reading, end = asyncio.Lock(), object()

    async def worker() -> None:
        while True:
            async with reading:
                # in a thread: reading a file must not hold up the requests
                item = await asyncio.to_thread(next, items, end)
            if item is end:
                return
            await work(item)  # type: ignore[arg-type]

    workers = [asyncio.create_task(worker()) for _ in range(concurrency)]
    try:
        await asyncio.gather(*workers)
    finally:
        for task in workers:
            task.cancel()
        await asyncio.gather(*workers, return_exceptions=True)
