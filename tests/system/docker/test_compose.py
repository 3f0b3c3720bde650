"""The image and the compose files for real: a cluster of containers that trains on CPU."""

from __future__ import annotations

import json
import os
import subprocess

import pytest

from tests.system.docker.conftest import SECRET

pytestmark = [pytest.mark.multinode, pytest.mark.timeout(1800)]

# Two ranks, one a container; 8 prompts of 5 responses a step.
TINY = " ".join(
    (
        "data.train_batch_size=8",
        "actor_rollout_ref.actor.ppo_mini_batch_size=4",
        "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=10",
        "actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu=10",
        "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=10",
        "trainer.val_before_train=false",
        "trainer.test_freq=-1",
        "trainer.save_freq=1",
        "trainer.total_training_steps={steps}",
    )
)


def test_the_user_is_not_root_and_owns_only_the_volumes(engine, image):
    script = "id -u; touch /data/x /runs/x /cache/x; touch /opt/vapo_verl/x 2>&1 || echo refused"
    lines = engine.output("run", "--rm", "--network=none", image, "bash", "-c", script).split("\n")
    assert lines[0] == "10001"
    assert lines[-1] == "refused"


def test_no_secret_is_in_any_layer(engine, image):
    assert SECRET not in engine.output("history", "--no-trunc", image)
    assert SECRET not in engine.output("inspect", image)
    search = f"set -o pipefail; docker save {image} | grep --count --text --fixed-strings {SECRET}"
    found = subprocess.run(
        ["bash", "-c", search], env=engine.environment(), capture_output=True, text=True
    )
    assert (found.stdout.strip(), found.returncode) == ("0", 1), found.stderr


def test_labels_name_what_it_is(engine, image):
    labels = json.loads(engine.output("inspect", "--format", "{{json .Config.Labels}}", image))
    assert labels["org.opencontainers.image.licenses"] == "Apache-2.0"


def test_too_few_nodes_end_with_how_many_are_missing(compose):
    done = compose.up(VAPO_WORKERS="0", VAPO_NODES="3", VAPO_JOIN_TIMEOUT_S="5")
    assert done.returncode == os.EX_UNAVAILABLE, done.stdout[-6000:]
    assert "2 of 3 nodes missing after 5 s" in done.stdout
    assert "Joined: ray-head" in done.stdout


def test_a_run_with_bad_input_exits_as_the_driver_does(compose):
    done = compose.up(VAPO_WORKERS="0", VAPO_ARGS="actor_rollout_ref.rollout.n=1")
    assert done.returncode == 2, done.stdout[-6000:]
    assert "actor_rollout_ref.rollout.n=1" in done.stdout


@pytest.mark.core
def test_a_stopped_run_over_two_containers_is_resumed_and_ends_well(compose):
    """Stopped within step 2, which is finished and saved first; the same command does step 3."""
    settings = {"VAPO_WORKERS": "1", "VAPO_ARGS": TINY.format(steps=3)}
    compose.start(**settings)
    compose.wait_for("step 1/")
    compose.run("stop")
    assert compose.wait() == 75, compose.log("trainer")[-6000:]

    done = compose.up(**settings)
    assert done.returncode == 0, done.stdout[-6000:]
    assert "step 1/" not in done.stdout, "a step was done twice"
    lines = compose.run(
        *("run", "--rm", "--no-deps", "trainer"),
        *("bash", "-c", "cat /runs/smoke/metrics.jsonl; find /runs/smoke -name 'model_*'"),
        **settings,
    ).stdout.splitlines()
    assert [json.loads(line)["step"] for line in lines if line.startswith("{")] == [1, 2, 3]
    for rank in (0, 1):
        assert f"/runs/smoke/global_step_3/actor/model_world_size_2_rank_{rank}.pt" in lines


def test_a_worker_that_is_killed_ends_the_run_and_is_named(compose):
    compose.start(VAPO_WORKERS="1", VAPO_ARGS=TINY.format(steps=9))
    compose.wait_for("step 1/")
    worker = compose.container("ray-worker")
    compose.engine.run("kill", worker)
    assert compose.wait() not in (0, 2, 75)
    assert f"lost during the run: {worker[:12]}" in compose.log("trainer")
