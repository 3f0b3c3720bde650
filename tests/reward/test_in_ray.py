"""Grading inside a Ray actor, where rollouts are graded."""

import asyncio
import time

import psutil
import pytest
import ray

from vapo_verl.reward.accuracy import accuracy

PAIRS = [
    (r"\frac{3}{8}", "0.375"),
    (r"2\sqrt{3}", r"\sqrt{12}"),
    ("y=x-5", "x-y=5"),
    (r"\prod_{n=1}^{9999} (x+n)", "x"),
    ("3-2", "2-1"),
]


@pytest.mark.slow
def test_results_are_the_same_in_a_ray_actor_and_nothing_is_left():
    class Grader:  # of this function, so that it travels by value: a worker finds no tests
        async def grade(self, pairs):
            answers = [(rf"\boxed{{{answer}}}", truth, "math") for answer, truth in pairs]
            inside = [accuracy(*answer) for answer in answers]
            calls = [asyncio.to_thread(accuracy, *answer) for answer in answers]
            children = psutil.Process().children(recursive=True)
            return inside, await asyncio.gather(*calls), [child.pid for child in children]

    expected = [1.0, 1.0, 1.0, 0.0, 0.0]
    assert [accuracy(rf"\boxed{{{answer}}}", truth, "math") for answer, truth in PAIRS] == expected
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
    try:
        actor = ray.remote(Grader).remote()
        inside, in_threads, children = ray.get(actor.grade.remote(PAIRS))
        assert inside == in_threads == expected
        assert children
        ray.kill(actor)
        deadline = time.monotonic() + 30
        while any(map(psutil.pid_exists, children)) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not any(map(psutil.pid_exists, children))
    finally:
        ray.shutdown()
