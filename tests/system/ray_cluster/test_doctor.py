"""The doctor's look at a cluster: whether this machine can join it as a run would."""

import json
import os
import sys
from pathlib import Path

import pytest

from tests.system.simulated_nodes import simulated_nodes, why_not

pytestmark = [
    pytest.mark.multinode,
    pytest.mark.timeout(900),
    pytest.mark.skipif(bool(why_not()), reason=why_not()),
]

LOOK = """
import json
from vapo_verl.doctor.ray_cluster import check_nodes
(finding,) = check_nodes(None)
print(json.dumps(finding.as_dict()))
"""
HEAD = "ray start --head --node-ip-address {} --include-dashboard false --num-cpus 2 --num-gpus 3"


@pytest.fixture(scope="module")
def look(tmp_path_factory):
    """What is found on node 1, where Ray runs with a token, or on node 2, where it does not run."""
    root = tmp_path_factory.mktemp("doctor")
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    env = {**os.environ, "PATH": path, "HOME": str(root), "RAY_AUTH_MODE": "token"}
    env["RAY_raylet_start_wait_time_s"] = "240"  # a loaded machine
    with simulated_nodes(root / "lab", 2) as nodes:
        nodes[0].run(["ray", "get-auth-token", "--generate"], env=env)
        nodes[0].run(HEAD.format(nodes[0].address).split(), env=env)
        env["RAY_ADDRESS"] = f"{nodes[0].address}:6379"

        def look(node: int, **changes: str) -> dict[str, str]:
            command = [sys.executable, "-c", LOOK]
            said = nodes[node - 1].run(command, env={**env, **changes}, timeout_s=300)
            return json.loads(said.splitlines()[-1])

        yield look


def test_a_node_of_the_cluster_with_its_token_joins(look):
    found = look(1)
    assert (found["status"], found["check"]) == ("ok", "ray")
    assert "the cluster has 1 nodes; GPU slots: node1 3, 3 free" in found["found"]


@pytest.mark.parametrize("changes", [{"RAY_AUTH_TOKEN": "f" * 64}, {"RAY_AUTH_MODE": "disabled"}])
def test_a_wrong_token_or_none_is_named(look, changes):
    found = look(1, **changes)
    assert found["status"] == "error"
    assert "Authentication token is missing or incorrect" in found["found"]
    assert "RAY_AUTH_MODE" in found["fix"]


def test_a_machine_without_ray_cannot_join(look):
    found = look(2)
    assert found["status"] == "error"
    assert "answers, but this machine cannot join" in found["found"]
    assert "ray start --address" in found["fix"]
