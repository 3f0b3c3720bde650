"""Waits: the rate limit, backoff, Retry-After, and the pool, on a clock of our own."""

import asyncio
from random import Random

import pytest

from vapo_verl.claims.job import run_pool
from vapo_verl.claims.options import RetryOptions
from vapo_verl.claims.requests.endpoint import retry_after_s
from vapo_verl.claims.requests.reply import TransientFault
from vapo_verl.claims.requests.retry import Pacer, backoff_s


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


@pytest.mark.parametrize("rate", [0, -1])
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
