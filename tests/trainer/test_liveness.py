"""A dead actor is detected without blocking; a busy one does not count as dead."""

import time

import pytest
import ray

from vapo_verl.trainer.liveness import Liveness


@ray.remote(num_cpus=0)
class Worker:
    def busy(self, seconds: float) -> None:
        time.sleep(seconds)


@pytest.fixture(scope="module")
def cluster():
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def test_a_dead_actor_is_an_error_and_a_busy_one_is_not(cluster):
    workers = [Worker.remote() for _ in range(2)]
    ray.get([worker.__ray_ready__.remote() for worker in workers])
    liveness = Liveness(workers, interval_s=0)
    workers[0].busy.remote(60)
    for _ in range(5):
        liveness.check()
        time.sleep(0.1)
    ray.kill(workers[1])
    with pytest.raises(ray.exceptions.RayActorError):
        for _ in range(100):
            liveness.check()
            time.sleep(0.1)
    ray.kill(workers[0])


def test_the_ping_of_all_actors_waits_for_answers_up_to_its_timeout(cluster):
    workers = [Worker.remote() for _ in range(2)]
    ray.get([worker.__ray_ready__.remote() for worker in workers])
    Liveness(workers).look_for_death()  # all answer
    workers[0].busy.remote(600)
    Liveness(workers).look_for_death(timeout_s=1)
    ray.kill(workers[1])
    with pytest.raises(ray.exceptions.RayActorError):
        Liveness(workers).look_for_death(timeout_s=30)
    ray.kill(workers[0])


def test_pings_keep_their_interval(cluster, monkeypatch):
    pings = []
    monkeypatch.setattr(ray, "wait", lambda refs, **_: (pings.append(refs), ([], []))[1])
    worker = Worker.remote()
    liveness = Liveness([worker], interval_s=3600)
    liveness.check()
    liveness.check()
    assert len(pings) == 1
