"""Waits: the rate limit, backoff, Retry-After, and the pool, on a clock of our own."""

import asyncio
import math
from random import Random

import pytest

from vapo_verl.claims.job import run_pool
from vapo_verl.claims.options import RetryOptions
from vapo_verl.claims.report import RunCounts
from vapo_verl.claims.requests.endpoint import retry_after_s
from vapo_verl.claims.requests.reply import Choice, Reply, TransientFault
from vapo_verl.claims.requests.retry import Pacer, PatientAsker, backoff_s
from vapo_verl.claims.shards import Usage


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now

    async def sleep(self, seconds):
        self.now += seconds


async def starts(pacer: Pacer, clock: Clock, count: int) -> list[float]:
    times = []
    for _ in range(count):
        await pacer.turn()
        times.append(clock.now - 100)
    return times


async def test_thirty_a_minute_is_one_every_two_seconds():
    clock = Clock()
    pacer = Pacer(30, clock=clock, sleep=clock.sleep)
    assert await starts(pacer, clock, 4) == [0, 2, 4, 6]
    clock.now += 60  # unused time is not saved up for a burst
    assert await starts(pacer, clock, 2) == [66, 68]


async def test_a_hold_delays_everybody_and_a_shorter_one_changes_nothing():
    clock = Clock()
    pacer = Pacer(clock=clock, sleep=clock.sleep)
    pacer.hold(5)
    pacer.hold(1)
    assert await starts(pacer, clock, 2) == [5, 5]


async def test_after_a_hold_the_rate_is_kept_by_all_that_wait():
    """The tenth of 32 requests is told to wait: any minute, with both ends, has 61 starts."""
    events: list[tuple[float, int, asyncio.Future[None]]] = []
    clock, times = Clock(), []

    async def sleep(seconds):
        events.append((clock.now + seconds, len(times), asyncio.Future()))
        await events[-1][2]

    pacer = Pacer(60, clock=clock, sleep=sleep)

    async def work():
        while True:
            await pacer.turn()
            times.append(clock.now - 100)
            if len(times) == 10:
                pacer.hold(60)
            await sleep(5)

    workers = [asyncio.create_task(work()) for _ in range(32)]
    while clock.now < 250:
        for _ in range(2 * len(workers)):
            await asyncio.sleep(0)
        events.sort(key=lambda event: event[:2])
        clock.now, _, wakes = events.pop(0)
        wakes.set_result(None)
    for worker in workers:
        worker.cancel()
    assert times[:12] == [*range(10), 69, 70]
    assert max(sum(start <= other <= start + 60 for other in times) for start in times) == 61


@pytest.mark.parametrize("rate", [0, -1, math.inf, math.nan])
def test_a_rate_must_be_positive(rate):
    with pytest.raises(ValueError, match="--requests-per-minute"):
        Pacer(rate)


def test_backoff_doubles_up_to_the_cap_with_jitter_of_half():
    options = RetryOptions(backoff_s=1, max_backoff_s=10)
    for num_failed, full in enumerate([1, 2, 4, 8, 10, 10]):
        wait = backoff_s(num_failed, TransientFault("x"), options, Random(num_failed))
        assert full / 2 <= wait <= full


def test_the_wait_is_never_less_than_the_server_says():
    fault = TransientFault("x", retry_after_s=90)
    waits = [backoff_s(0, fault, RetryOptions(), Random(seed)) for seed in range(50)]
    assert min(waits) >= 90 and max(waits) <= 91


@pytest.mark.parametrize("asked", [99_999_999.0, math.inf])
async def test_a_wait_is_cut_to_the_cap_and_printed_once(asked, capsys):
    """Three requests fail by one limit: all wait, and one line says how long."""
    clock, options = Clock(), RetryOptions(max_wait_s=120, backoff_s=0)
    pacer = Pacer(clock=clock, sleep=clock.sleep)

    class Limited:
        num_asked = 0

        async def ask(self, messages, num_choices=1):
            self.num_asked += 1
            number = self.num_asked
            await asyncio.sleep(0)  # all three are on their way before the first is answered
            if number <= 3:
                raise TransientFault("status 429", asked)
            return Reply(choices=(Choice(text="Yes", cut_off=False),), usage=Usage(num_requests=1))

    async def wait(seconds):
        await asyncio.sleep(0)
        clock.now = max(clock.now, 100 + seconds)

    counts = RunCounts()
    asker = PatientAsker(Limited(), pacer, options, counts, sleep=wait)
    await asyncio.gather(*(asker.ask([], Random(0)) for _ in range(3)))
    assert 219 <= clock.now <= 221
    said = capsys.readouterr().err
    assert said.count("waiting 120 s with all requests: the endpoint asks to wait") == 1
    assert "(status 429)" in said


def test_one_seed_gives_one_wait():
    waits = {backoff_s(2, TransientFault("x"), RetryOptions(), Random("0:key")) for _ in range(5)}
    assert len(waits) == 1


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "7"}, 7),
        ({"retry-after": "1.5"}, 1.5),
        ({"retry-after": "soon"}, None),
        ({"retry-after-ms": "250", "retry-after": "7"}, 0.25),
        ({"retry-after": "Thu, 01 Jan 1970 00:01:40 GMT"}, 40),
        ({"retry-after": "Thu, 01 Jan 1970 00:00:10 GMT"}, 0),
        ({"retry-after": "99999999"}, 99999999),
        ({"retry-after": "9" * 400}, math.inf),
        ({"retry-after": "0"}, 0),
        ({"retry-after": "-5"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "1e9"}, None),
        ({"retry-after": "\u0667"}, None),
        ({"retry-after": "Fri, 31 Dec 9999 23:59:59 GMT"}, 253402300799 - 60),
        ({"retry-after": "Fri, 31 Dec 9999 23:59:59 -0000"}, 253402300799 - 60),
        ({"retry-after": "Fri, 31 Dec 99999 23:59:59 GMT"}, None),
        ({"retry-after": "Fri, 99 Dec 1970 23:59:59 GMT"}, None),
        ({"retry-after-ms": "inf", "retry-after": "7"}, 7),
        ({"retry-after-ms": "-250"}, None),
    ],
)
def test_forms_of_retry_after(headers, seconds):
    assert retry_after_s(headers, now=60) == seconds


async def test_the_pool_reads_no_further_than_it_works():
    num_read, num_done, most_ahead = 0, 0, 0

    def items():
        nonlocal num_read, most_ahead
        for number in range(200):
            num_read += 1
            most_ahead = max(most_ahead, num_read - num_done)
            yield number

    async def work(number):
        nonlocal num_done
        await asyncio.sleep(0)
        num_done += 1

    await run_pool(items(), work, concurrency=8)
    assert num_done == 200
    assert most_ahead <= 8


@pytest.mark.parametrize("place", ["work", "items"])
async def test_the_first_error_ends_the_pool(place):
    cancelled = 0

    def items():
        yield from range(4)
        if place == "items":
            raise ValueError("broken")
        yield from range(4, 100)

    async def work(number):
        nonlocal cancelled
        if place == "work" and number == 3:
            raise ValueError("broken")
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            cancelled += 1
            raise

    with pytest.raises(ValueError, match="broken"):
        await run_pool(items(), work, concurrency=5)
    assert cancelled >= 3
