"""docs/ray_cluster.md on two simulated nodes: every command is read from the page and run as it is.

Replaced are the address of the first node and the recipe: `smoke`, for a few steps.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.paths import ROOT
from tests.system.simulated_nodes import SimulatedNode, simulated_nodes, why_not
from tests.system.smoke import metrics

pytestmark = [
    pytest.mark.multinode,
    pytest.mark.timeout(3000),
    pytest.mark.skipif(bool(why_not()), reason=why_not()),
]

PAGE = (ROOT / "docs" / "ray_cluster.md").read_text()
DIES_WITHIN_S = 240


def commands(heading: str, number: int = 0) -> str:
    """A fenced block of the page."""
    section = PAGE.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    blocks = re.findall(r"^```bash\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    return blocks[number]


class Cluster:
    """Two nodes, used as the page says."""

    def __init__(self, root: Path, nodes: list[SimulatedNode], data_dir: Path) -> None:
        self.root, self.nodes, self.run_dir = root, nodes, root / "run"
        self.env = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "HOME": str(root / "home"),
            "VAPO_DATA_DIR": str(data_dir),
            "RAY_raylet_start_wait_time_s": "240",  # a loaded machine
        }
        for name in ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN"):
            self.env.pop(name, None)
        self.settings = (
            f"trainer.default_local_dir={self.run_dir} trainer.total_training_steps=4 "
            "trainer.save_freq=2 trainer.test_freq=-1 trainer.val_before_train=false"
        )

    def up(self) -> None:
        (self.root / "home").mkdir()
        head, worker = self.nodes
        self.do(head, commands("A token"))
        self.start(head, commands("Start", 0))
        self.start(worker, commands("Start", 1))

    def start(self, node: SimulatedNode, ray_start: str) -> None:
        self.do(node, commands("Ports"))
        self.do(node, commands("On every node", 0), commands("On every node", 1), ray_start)

    def status(self) -> str:
        return self.do(self.nodes[0], commands("On every node", 0), commands("Start", 2))

    def train(self, log: Path) -> subprocess.Popen[str]:
        script = self.script(commands("On every node", 0), commands("Train"))
        with log.open("w") as output:
            return self.nodes[0].start(["bash", "-ec", script], env=self.env, output=output)

    def do(self, node: SimulatedNode, *blocks: str) -> str:
        return node.run(["bash", "-ec", self.script(*blocks)], env=self.env, timeout_s=400)

    def script(self, *blocks: str) -> str:
        script = "".join(blocks).replace("HEAD=10.0.0.1", f"HEAD={self.nodes[0].address}")
        return script.replace("+recipe=vapo", f"+recipe=smoke {self.settings}")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory, digits_data) -> Iterator[Cluster]:
    root = tmp_path_factory.mktemp("plain")
    data_dir = digits_data(train=128, val=16)["train"].parents[1]
    with simulated_nodes(root / "lab", 2) as nodes:
        cluster = Cluster(root, nodes, data_dir)
        cluster.up()
        yield cluster


@dataclass
class Killed:
    """A run whose second node was switched off in its third step."""

    ranks: list[int]
    """FSDP workers by node."""
    listening: set[int]
    """Ports open to other machines."""
    exit_code: int
    log: str


@pytest.fixture(scope="module")
def killed(cluster) -> Killed:
    log = cluster.root / "killed.log"
    driver = cluster.train(log)
    while not (cluster.run_dir / "rollouts" / "step_000003.parquet").exists():
        assert driver.poll() is None, log.read_text()[-6000:]
        time.sleep(0.2)
    ranks = [node.run(["ps", "-eo", "args"]).count("ray::WorkerDict") for node in cluster.nodes]
    listening = set().union(*map(listening_ports, cluster.nodes))
    cluster.nodes[1].power_off()
    exit_code = driver.wait(DIES_WITHIN_S)
    return Killed(ranks, listening, exit_code, log.read_text())


@pytest.fixture(scope="module")
def resumed(cluster, killed) -> str:
    """The log of the same command, once the node is back."""
    worker = cluster.nodes[1]
    worker.boot()
    cluster.start(worker, commands("Start", 1))
    log = cluster.root / "resumed.log"
    assert cluster.train(log).wait(1200) == 0, log.read_text()[-6000:]
    return log.read_text()


def listening_ports(node: SimulatedNode) -> set[int]:
    """Of TCP sockets that other machines can reach."""
    addresses = [line.split()[3] for line in node.run(["ss", "-Hltn"]).splitlines()]
    reachable = [a for a in addresses if not a.startswith(("127.", "[::1]", "[::ffff:127."))]
    return {int(address.rpartition(":")[2]) for address in reachable}


def test_one_rank_trains_on_each_node(cluster, killed):
    assert killed.ranks == [1, 1]
    shards = (cluster.run_dir / "global_step_2" / "actor").glob("model_*.pt")
    assert sorted(path.name for path in shards) == [
        f"model_world_size_2_rank_{rank}.pt" for rank in range(2)
    ]


def test_no_port_is_open_that_the_page_does_not_name(killed):
    named = {int(number) for number in re.findall(r"\b\d{4,5}\b", PAGE)}
    ranges = [*range(20000, 21000), *range(30000, 32768)]  # as the page sets them
    assert not killed.listening - named - set(ranges)
    assert killed.listening >= {*range(6379, 6386)}


def test_a_dead_node_ends_the_run_and_is_named(cluster, killed):
    assert killed.exit_code == 1
    lost = f"the node at {cluster.nodes[1].address} died, or did not answer for"
    assert lost in killed.log
    assert "The same command goes on with step 3." in killed.log.rpartition(lost)[2]


def test_the_same_command_resumes_once_the_node_is_back(cluster, resumed):
    assert "the run resumes after step 2" in resumed  # the doctor, before the run
    assert [f"step {step}/4 |" in resumed for step in range(1, 5)] == [False, False, True, True]
    steps = metrics(cluster.run_dir)
    assert sorted(steps) == [1, 2, 3, 4]
    correlations = [v["training/rollout_actor_probs_pearson_corr"] for v in steps.values()]
    assert min(correlations) >= 0.9999
