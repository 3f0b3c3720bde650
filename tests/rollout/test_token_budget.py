"""A cap on tokens in flight: nobody over it, nobody forgotten."""

import asyncio

import pytest

from vapo_verl.rollout.prober import TokenBudget


class Engine:
    """Requests that run until they are let go."""

    def __init__(self, limit):
        self.budget = TokenBudget(limit)
        self.running = {}
        self.most = 0

    async def request(self, name, num_tokens):
        async with self.budget.hold(num_tokens):
            self.running[name] = (num_tokens, asyncio.Event())
            self.most = max(self.most, sum(tokens for tokens, _ in self.running.values()))
            await self.running[name][1].wait()
            del self.running[name]

    async def start(self, **requests):
        tasks = [asyncio.create_task(self.request(*item)) for item in requests.items()]
        await settle()
        return tasks

    async def end(self, name):
        self.running[name][1].set()
        await settle()


async def settle():
    for _ in range(5):
        await asyncio.sleep(0)


async def test_requests_wait_in_their_order_until_there_is_room():
    engine = Engine(10)
    await engine.start(a=4, b=5, c=3, d=1)
    assert sorted(engine.running) == ["a", "b"]  # d would fit, but c is before it
    await engine.end("a")
    assert sorted(engine.running) == ["b", "c", "d"]
    for name in "bcd":
        await engine.end(name)
    assert engine.most == 9


async def test_one_larger_than_the_limit_goes_alone():
    engine = Engine(10)
    await engine.start(big=25, small=1)
    assert list(engine.running) == ["big"]
    await engine.end("big")
    assert list(engine.running) == ["small"]


async def test_no_limit():
    engine = Engine(0)
    await engine.start(a=10**9, b=10**9)
    assert len(engine.running) == 2


async def test_a_waiting_request_that_is_cancelled_is_passed_over():
    engine = Engine(10)
    tasks = await engine.start(a=8, b=8, c=8)
    tasks[1].cancel()
    await settle()
    await engine.end("a")
    assert list(engine.running) == ["c"]
    await engine.end("c")
    await engine.start(d=10)
    assert list(engine.running) == ["d"], "tokens of the cancelled one are still counted"


async def test_one_that_is_let_in_and_cancelled_at_once_gives_its_tokens_back():
    engine = Engine(10)
    tasks = await engine.start(a=8, b=8)
    engine.running["a"][1].set()
    await asyncio.sleep(0)  # a leaves: b's turn has come, b has not run yet
    tasks[1].cancel()
    await settle()
    await engine.start(c=10)
    assert list(engine.running) == ["c"]


async def test_a_failed_request_gives_its_tokens_back():
    budget = TokenBudget(10)
    with pytest.raises(ZeroDivisionError):
        async with budget.hold(10):
            raise ZeroDivisionError
    async with budget.hold(10):
        pass
