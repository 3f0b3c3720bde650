"""The monitor over two Ray nodes, of which one dies or no longer answers."""

import os
import signal

import pytest
import ray
from ray.cluster_utils import Cluster

from vapo_verl.trainer.liveness import Finding, Monitor, job_actors


@ray.remote(num_cpus=0, resources={"second": 1})
class Worker:
    """Runs on the second node."""

    def node(self) -> str:
        return ray.get_runtime_context().get_node_id()


@pytest.fixture
def second():
    """The second node of a cluster that this process has joined."""
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False}
    )
    node = cluster.add_node(num_cpus=1, resources={"second": 1})
    ray.init(address=cluster.address, log_to_driver=False)
    yield node
    ray.shutdown()
    cluster.shutdown()


@pytest.fixture
def monitor(second):
    ended: list[Finding] = []
    worker = Worker.remote()
    assert ray.get(worker.node.remote()) != ray.get_runtime_context().get_node_id()
    monitor = Monitor(5.0, ended.append, lambda: "step 3, update", interval_s=0.1)
    monitor.start()
    assert monitor.wait(2.0) is None
    yield monitor
    monitor.stop()


def said(address: str) -> str:
    return f"step 3, update: the node at {address} died, or did not answer for 5 s"


def test_a_dead_node_is_named(second, monitor):
    address = second.node_ip_address
    second.kill_raylet()
    finding = monitor.wait(60.0)
    assert finding is not None and finding.what == said(address)
    suspect = monitor.suspect()  # where the trainer meets the death first
    assert suspect is not None and suspect.what == finding.what


def test_a_node_that_does_not_answer_is_named(second, monitor):
    (watch,) = (each for each in job_actors() if each["ActorClassName"] == "NodeWatch")
    os.kill(watch["Pid"], signal.SIGSTOP)
    finding = monitor.wait(60.0)
    os.kill(watch["Pid"], signal.SIGKILL)
    assert finding is not None and finding.what == said(second.node_ip_address)
