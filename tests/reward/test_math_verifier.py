import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest

from vapo_verl.reward.math_verifier import MAX_CHARS, MathVerifier
from vapo_verl.reward.math_worker import MEMORY_GIB

ENDLESS = r"\prod_{n=1}^{9999} (x+n)"  # sympy expands it; no signal of Python interrupts that
HUNGRY = r"(10^{9999})^{9999}"
ABSURD = ["9^{9^{9^9}}", "10^{999999}", "99999!", "7" * 999, "2^{3^{4^{5}}}", "1!!!!"]
EQUAL_PAIRS = [(rf"\frac{{{n}}}{{8}}", str(n / 8)) for n in range(1, 9)]


@pytest.fixture
def new_workers():
    """Processes of verifiers that a test has started, the parent of the workers first."""
    before = {process.pid for process in workers()}
    return lambda: [process for process in workers() if process.pid not in before]


@pytest.fixture
def verifier():
    verifier = MathVerifier(answer_limit_s=60.0)
    yield verifier
    verifier.close()


@pytest.fixture(scope="module")
def shared_verifier():
    """For tests that end none of its processes."""
    verifier = MathVerifier(answer_limit_s=3600.0)
    yield verifier
    verifier.close()


def workers(process=None):
    children = (process or psutil.Process()).children(recursive=True)
    return [child for child in children if is_worker(child)]


def is_worker(process):
    try:
        return "vapo_verl.reward.math_worker" in process.cmdline()
    except psutil.NoSuchProcess:
        return False


def test_an_endless_comparison_is_stopped_and_the_next_one_works(verifier):
    assert verifier.equal(r"\frac{1}{2}", "0.5")
    verifier.answer_limit_s = 0.5
    assert not verifier.equal(ENDLESS, "3")
    verifier.answer_limit_s = 60.0
    assert verifier.equal(r"\frac{1}{2}", "0.5")


@pytest.mark.parametrize("absurd", ABSURD)
def test_digits_of_absurd_size_are_refused_before_they_are_computed(shared_verifier, absurd):
    assert not shared_verifier.equal(absurd, "3")
    assert not shared_verifier.equal("3", absurd)


def test_a_hungry_comparison_is_bounded_in_memory(verifier, new_workers):
    verifier.answer_limit_s = 1.0
    assert verifier.equal("0.5", r"\frac{1}{2}")
    peak, stop = [0], threading.Event()

    def watch():
        while not stop.is_set():
            with contextlib.suppress(psutil.NoSuchProcess):
                peak[0] = max(peak[0], *(worker.memory_info().rss for worker in new_workers()))
            time.sleep(0.01)

    watcher = threading.Thread(target=watch)
    watcher.start()
    assert not verifier.equal(HUNGRY, "3")
    assert not verifier.equal(rf"{HUNGRY}+x", HUNGRY)
    stop.set()
    watcher.join()
    assert peak[0] < (MEMORY_GIB + 1) * 2**30


def test_hard_answers_change_no_result_of_the_others_and_do_not_hold_them_up(verifier, new_workers):
    assert verifier.equal("0.5", r"\frac{1}{2}")
    with ThreadPoolExecutor(verifier.max_workers - 1) as pool:
        endless = [pool.submit(verifier.equal, ENDLESS, str(n)) for n in range(3)]
        while len(new_workers()) < 4:
            time.sleep(0.01)
        assert all(verifier.equal(*pair) for pair in EQUAL_PAIRS)
        assert not any(future.done() for future in endless)
        for worker in new_workers()[1:]:
            worker.kill()
        assert not any(future.result() for future in endless)


def test_a_child_that_died_between_questions_is_replaced(verifier, new_workers):
    assert verifier.equal("0.25", r"\frac{1}{4}")
    processes = new_workers()
    assert len(processes) == 2  # the parent of the workers, and one worker
    for process in reversed(processes):
        process.kill()
        psutil.wait_procs([process], timeout=10)
        assert verifier.equal("0.25", r"\frac{1}{4}")


def test_very_long_expressions_are_not_asked(verifier, new_workers):
    long = "1+" * MAX_CHARS + "1"
    assert not verifier.equal(long, long)
    assert not new_workers()


def test_results_are_the_same_in_threads_and_in_an_event_loop(shared_verifier):
    verifier = shared_verifier
    pairs = [*EQUAL_PAIRS, *((answer, "7") for answer, _ in EQUAL_PAIRS)]
    expected = [verifier.equal(*pair) for pair in pairs]
    assert expected == [True] * 8 + [False] * 8

    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(lambda pair: verifier.equal(*pair), pairs)) == expected

    async def ask_all():
        in_loop = [verifier.equal(*pair) for pair in pairs]
        in_threads = [asyncio.to_thread(verifier.equal, *pair) for pair in pairs]
        return in_loop, await asyncio.gather(*in_threads)

    assert asyncio.run(ask_all()) == (expected, expected)


def test_a_forked_process_starts_its_own(verifier):
    assert verifier.equal("0.25", r"\frac{1}{4}")
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        verifier.forget()
        equal = verifier.equal("0.75", r"\frac{3}{4}")
        verifier.close()
        os.write(writer, b"1" if equal else b"0")
        os._exit(0)
    assert os.read(reader, 1) == b"1"
    os.waitpid(child, 0)
    assert verifier.equal("0.75", r"\frac{3}{4}")


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_no_process_is_left_when_the_one_that_asked_dies(end):
    script = f"""
        from concurrent.futures import ThreadPoolExecutor
        from vapo_verl.reward.math_verifier import MathVerifier
        verifier = MathVerifier(answer_limit_s=3600.0)
        print(verifier.equal("0.5", "1/2"), flush=True)
        with ThreadPoolExecutor(2) as pool:
            pool.map(lambda n: verifier.equal(r{ENDLESS!r}, str(n)), range(2))
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as asking:
        assert asking.stdout.readline() == "True\n"
        while len(processes := workers(psutil.Process(asking.pid))) < 3:
            time.sleep(0.01)
        asking.send_signal(end)
    gone, alive = psutil.wait_procs(processes, timeout=20)
    assert not alive
    assert len(gone) == len(processes)
