"""What the trainer's process, and its place in a Ray cluster, refuse before any worker."""

import json
import os
import subprocess
import sys
import threading
import time

import pytest
import ray

from tests.composing import compose_once
from vapo_verl.preflight import InputError
from vapo_verl.trainer.stopping import AnnouncedActor
from vapo_verl.trainer.task_runner import QUEUE, RUNNER, VapoTaskRunner, create_alone

OTHER_RUN = """
import sys, time
import ray

ray.init(sys.argv[1], log_to_driver=False, logging_level="ERROR")

@ray.remote(num_cpus=0)
class Dummy:
    def ping(self):
        return "alive"

dummy = Dummy.options(name=sys.argv[2], namespace=sys.argv[3]).remote()
print(ray.get(dummy.ping.remote()), flush=True)
time.sleep(1000)
"""


@pytest.fixture(scope="module")
def cluster():
    context = ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False)
    yield context.address_info["address"]
    ray.shutdown()


@ray.remote(num_cpus=0)
class Runner:
    def ping(self) -> str:
        return "alive"


def gone(named) -> bool:
    try:
        ray.get_actor(**named)
    except ValueError:
        return True
    return False


def until_gone(named) -> None:
    deadline = time.monotonic() + 60
    while not gone(named):
        assert time.monotonic() < deadline, f"{named} stays"
        time.sleep(0.05)


@pytest.mark.parametrize("named", [QUEUE, RUNNER], ids=["queue", "runner"])
def test_a_second_run_is_refused_and_the_first_one_lives(cluster, capsys, named):
    """The first is another job: of veRL alone, or of this package. Killed, it does not block."""
    command = [sys.executable, "-c", OTHER_RUN, cluster, *named.values()]
    environment = {**os.environ, "RAY_ADDRESS": cluster}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as other:
        try:
            assert other.stdout.readline() == "alive\n"
            announced = []
            second = AnnouncedActor(
                Runner, announced.append, lambda made: create_alone(made, 1.0), **RUNNER
            )
            with pytest.raises(InputError, match="another run uses this Ray cluster") as told:
                second.remote()
            assert f"its driver: pid {other.pid} on " in str(told.value)
            assert "waiting up to 1 s for another run" in capsys.readouterr().out
            assert announced == []
            first = ray.get_actor(**named)
            assert ray.get(first.ping.remote()) == "alive"
        finally:
            other.kill()
    runner = create_alone(Runner.options(**RUNNER), 60.0)  # waits until Ray has noticed
    assert ray.get(runner.ping.remote()) == "alive"
    ray.kill(runner)
    until_gone(RUNNER)


def test_of_two_starts_at_once_one_gets_the_cluster(cluster):
    started, refused = [], []

    def start() -> None:
        try:
            started.append(create_alone(Runner.options(**RUNNER), 0.0))
        except InputError as error:
            refused.append(error)

    threads = [threading.Thread(target=start) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(started), len(refused)) == (1, 1)
    assert ray.get(started[0].ping.remote()) == "alive"
    ray.kill(started[0])
    until_gone(RUNNER)


def test_a_model_that_only_its_node_can_read_is_refused_before_the_workers(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "internvl_chat"}))
    config = compose_once("smoke", [f"actor_rollout_ref.model.path={tmp_path}"])
    with pytest.raises(InputError, match=r"model\.path=.* is a 'internvl_chat' model"):
        VapoTaskRunner().run(config)
