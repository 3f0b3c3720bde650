"""Runs one function over many images, bounded in concurrency, and stores what it returns."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from typing import Protocol, TypeVar

from vapo_verl.claims.images import ImageItem
from vapo_verl.claims.requests.reply import FatalFault, ImageFailed
from vapo_verl.claims.shards.record import ClaimRecord
from vapo_verl.claims.shards.store import ShardWriter
from vapo_verl.claims.tally import RunTally

T = TypeVar("T")


class Progress(Protocol):
    """What is used of a tqdm bar."""

    def update(self, n: int = 1) -> object: ...


async def run_images(
    items: Iterator[ImageItem],
    make: Callable[[ImageItem], Awaitable[ClaimRecord]],
    writer: ShardWriter,
    tally: RunTally,
    progress: Progress,
    *,
    concurrency: int,
    stop_after_failures: int,
) -> None:
    """Store the record of every image that `make` can make.

    Raises:
        FatalFault: from `make`, or because `stop_after_failures` images failed one after another.
    """

    async def work(item: ImageItem) -> None:
        try:
            record = await make(item)
        except ImageFailed as failed:
            tally.add_failure(item.source, item.key, failed.reason, str(failed))
            if tally.num_failed_in_a_row >= stop_after_failures:
                raise FatalFault(
                    f"{tally.num_failed_in_a_row} images failed one after another, the last with: "
                    f"{failed}; look after the endpoint, or raise --stop-after-failures"
                ) from failed
        else:
            # not in a thread: a record is either not begun or on the disk when a run is stopped
            writer.write(record)
            tally.add_record(record)
        progress.update()

    await run_pool(items, work, concurrency=concurrency)


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
