"""Runs one function over many images, stores what it returns, and counts what fails."""

from collections.abc import Awaitable, Callable, Iterator
from typing import Protocol

from vapo_verl.claims.images import ImageItem
from vapo_verl.claims.pool import run_pool
from vapo_verl.claims.requests.faults import FatalFault, ImageFailed
from vapo_verl.claims.shards.record import ClaimRecord
from vapo_verl.claims.shards.store import ShardWriter
from vapo_verl.claims.tally import RunTally


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
