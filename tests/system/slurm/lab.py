"""A Slurm cluster on one machine: slurmd on simulated nodes, munged and slurmctld on one more."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tests.system.simulated_nodes import SimulatedNode, simulated_nodes
from tests.system.simulated_nodes import why_not as why_no_nodes

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol")
GPUS_PER_NODE = 8

SLURM_CONF = """\
ClusterName=lab
SlurmctldHost={controller.name}({controller.address})
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
MailProg=/bin/true
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
ReturnToService=2
MpiDefault=none
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=2,batch_sched_delay=0
MinJobAge=600
GresTypes=gpu
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE DefaultTime=10 State=UP
"""
NODE_CONF = (
    "NodeName={node.name} NodeAddr={node.address} CPUs=16 RealMemory=20000 Gres=gpu:{gpus}\n"
)


def why_not() -> str:
    """Why this machine cannot run the lab; empty where it can."""
    missing = [program for program in PROGRAMS if not shutil.which(program)]
    if missing:
        return f"{', '.join(missing)}: not installed (tests/system/slurm/install.sh)"
    return why_no_nodes()


class SlurmLab:
    """The cluster: ``nodes`` run jobs, ``controller`` runs the rest."""

    def __init__(self, folder: Path, nodes: list[SimulatedNode], controller: SimulatedNode) -> None:
        self.folder, self.nodes, self.controller = folder, nodes, controller
        self.env = {
            "PATH": os.environ["PATH"],
            "HOME": os.environ["HOME"],
            "SLURM_CONF": str(folder / "slurm.conf"),
            "VAPO_VENV": sys.prefix,
            "VAPO_RUNS_DIR": str(folder / "runs"),
            "VAPO_DATA_DIR": str(folder / "data"),
            "VAPO_LOG_DIR": str(folder / "logs"),
            "VAPO_NODE_TMP": "/tmp/ray",  # of each node
            "RAY_memory_monitor_refresh_ms": "0",  # it counts what others use on this machine
        }

    def up(self) -> None:
        for name in ("logs", "state", *(f"spool/{node.name}" for node in self.nodes)):
            (self.folder / name).mkdir(parents=True)
        self._configure()
        key, munge = self.folder / "munge.key", self.folder / "munge"
        key.touch(0o600)
        key.write_bytes(os.urandom(1024))
        self._serve(
            self.controller,
            *["munged", "--foreground", "--force", f"--socket={munge}.socket"],
            *[f"--key-file={key}", f"--pid-file={munge}.pid", f"--seed-file={munge}.seed"],
        )
        wait_for(Path(f"{munge}.socket").exists)
        self._serve(self.controller, "slurmctld", "-D", "-c")
        wait_for(lambda: "is UP" in self.run("sh", "-c", "scontrol ping || true"))
        for node in self.nodes:
            self.start_slurmd(node)
        wait_for(lambda: self.run("sinfo", "-h", "-N", "-t", "idle").count("\n") == len(self.nodes))

    def _configure(self) -> None:
        conf = SLURM_CONF.format(controller=self.controller, folder=self.folder)
        conf += "".join(NODE_CONF.format(node=node, gpus=GPUS_PER_NODE) for node in self.nodes)
        (self.folder / "slurm.conf").write_text(conf)
        for i in range(GPUS_PER_NODE):  # Slurm wants device files; no driver is behind them
            os.mknod(self.folder / f"gpu{i}", 0o20600, os.makedev(195, i))
        (self.folder / "gres.conf").write_text(
            f"Name=gpu File={self.folder}/gpu[0-{GPUS_PER_NODE - 1}]\n"
        )

    def _serve(self, node: SimulatedNode, *command: str) -> None:
        with (self.folder / f"{command[0]}-{node.name}.log").open("a") as log:
            node.start(command, env=self.env, output=log.fileno())

    def start_slurmd(self, node: SimulatedNode) -> None:
        self._serve(node, "slurmd", "-D", "-N", node.name)

    def run(self, *command: str, cwd: Path | None = None, env: Mapping[str, str] = {}) -> str:
        """What a client command prints, run on the controller; an error where it fails."""
        inside = ["env", "-C", str(cwd or self.folder)]
        return self.controller.run([*inside, *command], env={**self.env, **env})

    def submit(self, *arguments: str, env: Mapping[str, str] = {}, cwd: Path | None = None) -> str:
        """``sbatch`` with these arguments; the job's id."""
        return self.run("sbatch", "--parsable", *arguments, cwd=cwd, env=env).strip()

    def job(self, job: str) -> dict[str, str]:
        """What Slurm knows about a job: JobState, ExitCode, Restarts, ..."""
        fields = self.run("scontrol", "--oneliner", "show", "job", job).split()
        return dict(field.split("=", 1) for field in fields if "=" in field)

    def wait(self, job: str, timeout_s: float = 600) -> int:
        """Exit code of a job that has ended for good."""
        done = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
        wait_for(lambda: self.job(job)["JobState"] in done, timeout_s, lambda: self.output(job))
        return int(self.job(job)["ExitCode"].split(":")[0])

    def output(self, job: str) -> str:
        """Output of all starts of a job."""
        file = Path(self.job(job)["StdOut"])
        return file.read_text() if file.exists() else ""

    def processes(self) -> list[str]:
        """Commands that run on the nodes, but for Slurm's own and the node's init."""
        listed = [
            line for node in self.nodes for line in node.run(["ps", "-eo", "args="]).split("\n")
        ]
        own = ("bash -c", "sleep 1000", "slurmd -D", "ps -eo")
        return [line for line in listed if line and not line.startswith(own)]


@contextmanager
def slurm_lab(num_nodes: int) -> Iterator[SlurmLab]:
    """A cluster that is up, in a folder that all its nodes share."""
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))
    try:
        with simulated_nodes(folder / "nodes", num_nodes + 1) as (*nodes, controller):
            lab = SlurmLab(folder, nodes, controller)
            lab.up()
            yield lab
    finally:
        shutil.rmtree(folder)


def wait_for(
    condition: Callable[[], object],
    timeout_s: float = 30,
    explain: Callable[[], str] = lambda: "Slurm does not start",
) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, explain()
        time.sleep(0.2)
