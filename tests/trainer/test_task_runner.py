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
from vapo_verl.trainer.task_runner import (
    QUEUE,
    RUNNER,
    VapoTaskRunner,
    check_room,
    create_alone,
    shortage,
)

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


def test_a_cluster_without_room_is_refused_before_anything_starts(cluster):
    with pytest.raises(InputError, match=r"trainer\.n_gpus_per_node=1 GPUs .* 0 GPUs, 4 CPUs"):
        check_room(compose_once("smoke"))


def node(name: str, gpus: int, cpus: int, **more: float) -> dict[str, object]:
    """As ``ray.nodes()`` lists it: without what it has none of."""
    has = {"GPU": float(gpus), "CPU": float(cpus), **more}
    return {
        "NodeID": f"id of {name}",
        "NodeManagerHostname": name,
        "Alive": True,
        "Resources": {key: value for key, value in has.items() if value},
    }


@pytest.mark.parametrize(
    ("recipe", "gpus", "cpus"),
    [
        ("vapo", 8, 33),  # 3 * 8 + 8 storage units + the controller
        ("vapo_7b_4gpu", 4, 21),  # 3 * 4 + 8 + 1
        ("vapo_3b_1gpu", 1, 6),  # 3 + 2 + 1
        ("smoke", 1, 5),  # 3 + 1 + 1
        ("smoke_async", 2, 7),  # 3 of the rank + 2 of the engine + 1 + 1
    ],
)
def test_the_cpus_of_a_recipe_on_one_node(recipe, gpus, cpus):
    config = compose_once(recipe)
    assert shortage(config, [node("a", gpus, cpus)]) is None
    lack = shortage(config, [node("a", gpus, cpus - 1)])
    assert f"a has {cpus - 1}, the run takes {cpus}. " in lack.found
    assert f"`ray start --num-cpus {cpus}`" in lack.fix
    assert f"ray_kwargs.ray_init.num_cpus={cpus}" in lack.fix
    few = shortage(config, [node("a", gpus - 1, 64)])
    assert f"a: {gpus - 1} GPUs, 64 CPUs" in few.found


def test_ranks_of_a_node_have_no_place_on_two():
    config = compose_once("vapo")  # 8 GPUs on one node
    halves = [node("a", 4, 64), node("b", 4, 64)]
    lack = shortage(config, halves)
    assert lack.found == (
        "trainer.n_gpus_per_node=8 GPUs on each of trainer.nnodes=1 nodes have no place in the Ray "
        "cluster: a: 4 GPUs, 64 CPUs; b: 4 GPUs, 64 CPUs"
    )
    assert "--num-gpus" in lack.fix
    split = compose_once("vapo", ["trainer.nnodes=2", "trainer.n_gpus_per_node=4"])
    assert shortage(split, halves) is None
    assert shortage(split, [node("a", 8, 64)]) is None  # each half has a place there
    dead = {**halves[1], "Alive": False}
    assert "b: " not in shortage(split, [halves[0], dead]).found


def test_ranks_go_where_the_cpus_are():
    config = compose_once("vapo_3b_1gpu")
    assert shortage(config, [node("a", 1, 1), node("b", 2, 5)]) is None  # a: one storage unit


def test_a_driver_without_resources_holds_no_storage_where_a_resource_is_required():
    """As docker/train.py sets it: TransferQueue would wait for a CPU of the driver's node."""
    nodes = [node("driver", 0, 0), node("a", 8, 33)]
    lack = shortage(compose_once("vapo"), nodes)
    assert "driver has 0, the run takes 4" in lack.found
    beside = "++transfer_queue.backend.SimpleStorage.required_node_resource=GPU"
    assert shortage(compose_once("vapo", [beside]), nodes) is None


def test_engines_of_their_own_need_gpus_on_a_node_too():
    config = compose_once("vapo_async")
    ranks, rollout = config.trainer, config.actor_rollout_ref.rollout
    assert rollout.nnodes * rollout.n_gpus_per_node > 0
    gpus = ranks.n_gpus_per_node * ranks.nnodes
    lack = shortage(config, [node("a", gpus, 64)])
    assert "GPUs for engines (actor_rollout_ref.rollout.nnodes" in lack.found
    assert shortage(config, [node("a", gpus, 64), node("b", 8, 64)]) is None
