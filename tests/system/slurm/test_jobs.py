"""Jobs of slurm/ on a Slurm cluster of two simulated nodes."""

from __future__ import annotations

import sys

import pytest

from tests.paths import ROOT
from tests.system.slurm.lab import SlurmLab, wait_for
from tests.system.smoke import metrics
from vapo_verl.run_folder.checkpoints import latest_complete

pytestmark = [pytest.mark.multinode, pytest.mark.timeout(1800)]

SMOKE = str(ROOT / "slurm" / "smoke.sh")
SHORT = (
    "trainer.total_training_steps=3",
    "trainer.test_freq=-1",
    "trainer.val_before_train=false",
    "data.train_batch_size=8",
)
EXIT_STOPPED = 75


@pytest.fixture(autouse=True)
def nothing_is_left(lab: SlurmLab):
    """Neither a process nor Ray's files, whatever became of the job."""
    yield
    lab.run("scancel", "--user=root")  # what a test that failed has left
    wait_for(lambda: not lab.processes(), 90, lambda: "\n".join(lab.processes()))
    for node in lab.nodes:
        assert "ray_" not in node.run(["ls", "/tmp/ray"])


@pytest.mark.parametrize("script", ["smoke", "vapo_3b", "vapo_7b"])
def test_slurm_accepts_the_script(lab, script):
    lab.run("sbatch", "--test-only", str(ROOT / "slurm" / f"{script}.sh"))


def test_a_typing_error_ends_the_job_before_ray_starts(lab):
    job = lab.submit(SMOKE, "trainer.no_such_key=1")
    assert lab.wait(job, 120) == 2, lab.output(job)
    assert "trainer.no_such_key" in lab.output(job)
    assert "Ray on" not in lab.output(job)


def test_the_drivers_exit_code_is_the_jobs(lab):
    """An input error is 2. Submitted from another folder, the project is found all the same."""
    job = lab.submit(SMOKE, "data.train_files=nowhere.parquet", cwd=lab.folder / "logs")
    assert lab.wait(job) == 2
    assert f"{ROOT}/nowhere.parquet does not exist" in lab.output(job)
    logs = lab.folder / "logs" / job / "attempt_0"
    assert {path.name for path in logs.iterdir()} == {
        *("node1.log", "node2.log", "ray-node1", "ray-node2")
    }


def test_a_job_that_slurm_knows_no_file_of_needs_to_be_told_where_the_project_is(lab):
    job = lab.submit("--wrap", f"bash {SMOKE}")
    assert lab.wait(job, 60) == 2
    assert "set VAPO_HOME" in lab.output(job)


def test_a_node_that_does_not_join_is_named(lab):
    """Another program has a port of Ray's on node2."""
    job_ports = {"VAPO_PORTS": "20000-20999", "VAPO_START_TIMEOUT_S": "30"}
    listen = "import socket, time; s = socket.create_server(('', 20003)); time.sleep(900)"
    other = lab.nodes[1].start(["python3", "-c", listen])
    try:
        job = lab.submit(SMOKE, *SHORT, env=job_ports)
        assert lab.wait(job) == 1
    finally:
        lab.nodes[1].run(["pkill", "-f", "create_server"])
        other.wait()
    missing, _, _ = lab.output(job).partition("no Ray on ")[2].partition(" after 30 s")
    assert "node2" in missing, lab.output(job)


def test_a_job_near_its_time_limit_ends_when_its_requeues_are_used_up(lab):
    warning = ("--time=5", "--signal=B:USR1@290")
    job = lab.submit(*warning, SMOKE, *SHORT, env={"VAPO_MAX_REQUEUES": "0"})
    assert lab.wait(job) == EXIT_STOPPED
    assert "asked to stop by SIGUSR1" in lab.output(job)
    assert "VAPO_MAX_REQUEUES=0 is reached: submit again to go on" in lab.output(job)


def test_a_job_can_be_looked_into_and_cancelled(lab):
    job = lab.submit(SMOKE, *SHORT)
    wait_for(lambda: "all nodes joined" in lab.output(job), 240)
    attached = f". /tmp/ray/ray_{job}/cluster.env; {sys.executable} -m ray.scripts.scripts status"
    # One logical one each; Ray sums up now and then.
    wait_for(lambda: "2.0 GPU" in lab.nodes[0].run(["sh", "-c", attached]), 60)
    lab.run("scancel", job)
    lab.wait(job)
    assert lab.job(job)["JobState"] == "CANCELLED"
    assert lab.job(job)["Restarts"] == "0"


@pytest.mark.core
def test_a_job_that_is_stopped_goes_on_where_it_stopped(lab):
    """No step is lost and none is repeated."""
    job = lab.submit("--job-name=stopped", SMOKE, *SHORT, "trainer.save_freq=-1")
    run = lab.folder / "runs" / "stopped"
    wait_for((run / "metrics.jsonl").exists, 600, lambda: lab.output(job))
    show_token = f". /tmp/ray/ray_{job}/cluster.env; echo $RAY_AUTH_TOKEN"
    token = lab.nodes[0].run(["sh", "-c", show_token]).strip()
    lab.run("scancel", "--batch", "--signal=TERM", job)
    wait_for(lambda: lab.job(job)["Restarts"] == "1", 300, lambda: lab.output(job))
    saved, until_then = latest_complete(run), (run / "metrics.jsonl").read_text()
    assert saved is not None and saved < 3
    assert f"Stopped on request at step {saved}" in lab.output(job)
    assert sorted(metrics(run)) == list(range(1, saved + 1))

    assert lab.wait(job) == 0, lab.output(job)
    assert f"resuming from step {saved}" in lab.output(job)
    assert sorted(metrics(run)) == [1, 2, 3]
    assert (run / "metrics.jsonl").read_text().startswith(until_then)
    shards = {path.name for path in (run / f"global_step_{saved}" / "actor").glob("model_*.pt")}
    assert shards == {f"model_world_size_2_rank_{rank}.pt" for rank in range(2)}
    assert len(token) == 64
    lab.run("sh", "-c", f"! grep -rq {token} logs runs/stopped *.out")


def test_a_job_that_loses_a_node_goes_on_from_its_last_checkpoint(lab):
    job = lab.submit("--job-name=lost", SMOKE, *SHORT, "trainer.save_freq=1")
    run, lost = lab.folder / "runs" / "lost", lab.nodes[1]
    logged = run / "metrics.jsonl"  # of a step it gets a line when the checkpoint is whole
    wait_for(lambda: latest_complete(run) and logged.exists(), 600, lambda: lab.output(job))
    lost.power_off()
    wait_for(lambda: lab.job(job)["Restarts"] == "1", 300, lambda: lab.output(job))
    # as Slurm does by itself after SlurmdTimeout, or else it ends what is left of the first start
    lab.run("scontrol", "update", "nodename=node2", "state=down", "reason=off")
    lost.boot()
    lab.start_slurmd(lost)

    assert lab.wait(job) == 0, lab.output(job)
    assert "lost node2: requeueing" in lab.output(job)
    assert "resuming from step" in lab.output(job)
    assert sorted(metrics(run)) == [1, 2, 3]
