"""Shared by `generate`, `self` and `check`: survey, plan, run, report, exit code."""

import asyncio
import sys
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Protocol, TypeVar

from vapo_verl.claims.images import ImageItem, OnProblem, iter_images
from vapo_verl.claims.options import EndpointOptions, RunOptions
from vapo_verl.claims.report import (
    Figures,
    RunCounts,
    describe_run,
    describe_usage,
    run_figures,
    write_report,
)
from vapo_verl.claims.requests.endpoint import Endpoint, num_pixels
from vapo_verl.claims.requests.reply import FatalFault, ImageFailed
from vapo_verl.claims.requests.retry import Pacer, PatientAsker
from vapo_verl.claims.shards import ClaimRecord, ShardWriter, Usage, read_records
from vapo_verl.console import progress_bar
from vapo_verl.data.errors import BadCell, RowProblem

DONE, SOME_FAILED, STOPPED, INTERRUPTED = 0, 1, 2, 130
"""Exit codes. 2 is also that of bad input."""

Make = Callable[[ImageItem], Awaitable[ClaimRecord]]
PIXELS_PER_TOKEN = 28 * 28
"""One merged vision token of Qwen2.5-VL. Other models differ by up to a few times."""
CHARACTERS_PER_TOKEN = 4
_UNKNOWN_PIXELS = 512 * 512
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What one command does with images."""

    model: str
    images: Callable[[OnProblem], Iterator[ImageItem]]
    """All images that get a record. Called twice: for the plan, and for the run."""
    cost: Callable[[ImageItem], Usage]
    """Estimated cost of one image, for the plan."""
    maker: Callable[[PatientAsker, RunCounts], Make]
    totals: Callable[[Path], tuple[Figures, str]]
    """Figures over all records of the folder, for report.json and as text."""


def run_job(
    job: Job, options: RunOptions, endpoint: Callable[[], AbstractContextManager[EndpointOptions]]
) -> int:
    """Store a record of every source image, or report why not; returns the exit code.

    Args:
        endpoint: opened only if there are requests to send; always closed.

    Raises:
        DataError, OSError, ValueError: a source, folder or table that a user has to fix.
    """
    pacer = Pacer(options.requests_per_minute)
    counts, why_stopped, code = RunCounts(), "", DONE
    if options.dry_run:
        survey = _plan(job, stored_keys(options.out), counts)
        print(f"estimate: {describe_usage(survey.estimate)}")
        return SOME_FAILED if counts.num_failed else DONE
    with ShardWriter(options.out) as writer:
        stored = stored_keys(options.out)
        survey = _plan(job, stored, counts)
        try:
            if survey.num_to_do:
                with endpoint() as endpoint_options:
                    work = _work(job, options, endpoint_options, pacer, writer, counts, stored)
                    asyncio.run(work(survey.num_to_do))
            code = SOME_FAILED if counts.num_failed else DONE
        except FatalFault as fault:
            why_stopped, code = str(fault), STOPPED
        except KeyboardInterrupt:
            why_stopped, code = "interrupted; run the same command again to go on", INTERRUPTED
        figures, text = job.totals(options.out)
        run = run_figures(counts, job.model, why_stopped)
        write_report(options.out, {"run": run, "folder": figures})
    print(f"{describe_run(counts)}\n{text}")
    if why_stopped:
        print(f"stopped: {why_stopped}", file=sys.stderr)
    return code


def stored_keys(folder: Path) -> frozenset[str]:
    return frozenset(record.image_key for record in read_records(folder))


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """The work of a run, counted before it starts."""

    num_images: int
    """Different images of the source."""
    num_stored: int
    """Images already stored; they are not requested again."""
    estimate: Usage
    """For the remaining images if every first answer is complete; further requests add to it."""

    @property
    def num_to_do(self) -> int:
        return self.num_images - self.num_stored


def _plan(job: Job, stored: frozenset[str], counts: RunCounts) -> Survey:
    """Print the plan; unreadable images are counted as failed, and the first is named."""

    def note(problem: RowProblem, path: str) -> None:
        place, what = f"{path} row {problem.row}", problem.describe(path)
        counts.add_unreadable(place, "", "unreadable image", what)

    survey = take_survey(job.images(note), stored, job.cost)
    print(
        f"{survey.num_images:,} images, {survey.num_stored:,} stored before, "
        f"{survey.num_to_do:,} to do, {counts.num_failed:,} unreadable",
        flush=True,
    )
    if counts.failures:
        print(f"the first unreadable one: {counts.failures[0]['what']}", flush=True)
    return survey


def _passed_over(problem: RowProblem, path: str) -> None:
    """Ignored here: `_plan` has already counted it."""


def _work(
    job: Job,
    options: RunOptions,
    endpoint_options: EndpointOptions,
    pacer: Pacer,
    writer: ShardWriter,
    counts: RunCounts,
    stored: frozenset[str],
) -> Callable[[int], Coroutine[None, None, None]]:
    async def work(num_to_do: int) -> None:
        to_do = (item for item in job.images(_passed_over) if item.key not in stored)
        async with Endpoint(endpoint_options) as endpoint:
            asker = PatientAsker(endpoint, pacer, options.retry, counts)
            with progress_bar(num_to_do, unit="image") as progress:
                await run_images(
                    to_do,
                    job.maker(asker, counts),
                    writer,
                    counts,
                    progress,
                    concurrency=options.max_concurrency,
                    stop_after_failures=options.stop_after_failures,
                )

    return work


def source_images(options: RunOptions, on_problem: OnProblem) -> Iterator[ImageItem]:
    """The images that the options name, including stored ones."""
    images = iter_images(
        options.source, options.column, base=options.image_root, on_problem=on_problem
    )
    return islice(images, options.limit)


def take_survey(
    images: Iterable[ImageItem], stored_keys: Collection[str], cost: Callable[[ImageItem], Usage]
) -> Survey:
    """Go through `images` once; `cost` estimates the requests and tokens of one."""
    num_images = num_stored = 0
    estimate = Usage()
    for item in images:
        num_images += 1
        if item.key in stored_keys:
            num_stored += 1
        else:
            estimate += cost(item)
    return Survey(num_images=num_images, num_stored=num_stored, estimate=estimate)


def image_tokens(item: ImageItem, max_pixels: int | None) -> int:
    """An estimate from the size in the image's header."""
    try:
        pixels = num_pixels(item.data)
    except BadCell:
        pixels = _UNKNOWN_PIXELS
    return max(min(pixels, max_pixels or pixels) // PIXELS_PER_TOKEN, 1)


def text_tokens(text: str) -> int:
    return len(text) // CHARACTERS_PER_TOKEN


class Progress(Protocol):
    """The part of a tqdm bar that is used."""

    def update(self, n: int = 1) -> object: ...


async def run_images(
    items: Iterator[ImageItem],
    make: Callable[[ImageItem], Awaitable[ClaimRecord]],
    writer: ShardWriter,
    counts: RunCounts,
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
            counts.add_failure(item.source, item.key, failed.reason, str(failed))
            if counts.num_failed_in_a_row >= stop_after_failures:
                raise FatalFault(
                    f"{counts.num_failed_in_a_row} images failed one after another, the last with: "
                    f"{failed}; check the endpoint, or raise --stop-after-failures"
                ) from failed
        else:
            # not in a thread: a stopped run has either not begun a record or has it on disk
            writer.write(record)
            counts.add_record(record)
        progress.update()

    await run_pool(items, work, concurrency=concurrency)


async def run_pool(
    items: Iterator[T], work: Callable[[T], Awaitable[None]], *, concurrency: int
) -> None:
    """Run `work` on every item, up to `concurrency` at once; an item is read only when a worker is
    free. The first exception of `work` or of `items` cancels the rest and is raised.
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
