"""SIGTERM and SIGUSR1 ask for an end; whoever trains is asked once."""

import os
import pickle
import signal
import threading
from contextlib import suppress

import pytest

from vapo_verl.trainer.stopping import (
    EXIT_STOPPED,
    STOP_SIGNALS,
    AnnouncedActor,
    RunStopped,
    StopSignals,
)


def send(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_signal_is_forwarded_once_and_a_second_one_says_so(number, capfd):
    asked = threading.Semaphore(0)
    with StopSignals() as signals:
        signals.forward_to(asked.release)
        send(number)
        assert asked.acquire(timeout=60)
        send(number)
        send(signal.SIGTERM)
        assert not asked.acquire(timeout=0.1)
    said = capfd.readouterr().err
    assert f"{number.name}: stopping" in said
    assert said.count("already stopping") == 2


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_before_the_run_begins_the_process_ends_with_the_stop_code(number, capfd):
    with pytest.raises(SystemExit) as ended, StopSignals():
        send(number)
    assert ended.value.code == EXIT_STOPPED == 75
    assert "the same command starts it" in capfd.readouterr().err


def test_a_stop_that_was_swallowed_takes_effect_before_the_run_begins():
    with pytest.raises(SystemExit) as ended, StopSignals() as signals:
        with suppress(SystemExit):  # as in a finalizer that the signal interrupts
            send(signal.SIGTERM)
        signals.forward_to(lambda: None)
    assert ended.value.code == EXIT_STOPPED


def test_rays_own_sigterm_handler_ends_with_the_stop_code_while_ray_starts():
    with pytest.raises(SystemExit) as ended, StopSignals():
        raise SystemExit(signal.SIGTERM)
    assert ended.value.code == EXIT_STOPPED


def test_other_exits_pass_unchanged():
    with pytest.raises(SystemExit) as ended, StopSignals():
        raise SystemExit(2)
    assert ended.value.code == 2


def test_handlers_set_meanwhile_are_replaced_and_the_first_ones_come_back():
    before = [signal.getsignal(number) for number in STOP_SIGNALS]
    asked = threading.Event()
    with StopSignals() as signals:
        signal.signal(signal.SIGTERM, lambda *_: pytest.fail("Ray's handler was called"))
        signals.forward_to(asked.set)
        send(signal.SIGTERM)
        assert asked.wait(60)
    assert [signal.getsignal(number) for number in STOP_SIGNALS] == before


def test_an_announced_actor_is_the_one_that_was_made_with_its_options():
    class ActorClass:
        def __init__(self, **options):
            self.made_with = options

        def options(self, **options):
            return ActorClass(**options)

        def remote(self):
            return f"actor {self.made_with}"

    announced = []
    actor = AnnouncedActor(ActorClass(), announced.append).options(num_cpus=1).remote()
    assert announced == [actor] == ["actor {'num_cpus': 1}"]


def test_the_step_crosses_process_boundaries():
    assert pickle.loads(pickle.dumps(RunStopped(7))).step == 7
