"""What a step of several mini-batches logs."""

from types import SimpleNamespace

import pytest
from omegaconf import OmegaConf
from transfer_queue import KVBatchMeta
from verl.trainer.ppo.v1.trainer_base import PPOTrainer

from vapo_verl.trainer.async_trainers import VapoSeparateAsync
from vapo_verl.trainer.metrics import JUDGE_FAILED
from vapo_verl.trainer.replay_buffer import FAILED
from vapo_verl.trainer.worker import PhaseMemory

UNSEEN = "vapo/vgpo/responses_without_attention"
GROUPS_OF_ONE, WEIGHT_MAX = "vapo/advantage/num_groups_of_one", "vapo/advantage/weight_max"


class Steps(VapoSeparateAsync):
    """Steps of three mini-batches, whose metrics are given."""

    parameter_sync_step = 3

    def __init__(self, mini_batches):
        self.mini_batches = list(mini_batches)
        self.config = OmegaConf.create({"data": {"train_batch_size": 6}})

    def prepare_step(self):
        return {}


@pytest.fixture(autouse=True)
def mini_batch(monkeypatch):
    def step_once(self, metrics, timing_raw, sample_batch_size):
        metrics.update(self.mini_batches.pop(0))
        key = f"{len(self.mini_batches)}_0_0"
        return KVBatchMeta(partition_id="train", keys=[key], tags=[{}])

    monkeypatch.setattr(PPOTrainer, "_step_once", step_once)


def test_counts_of_mini_batches_are_summed_and_other_metrics_are_not():
    steps = Steps(
        [
            {FAILED: 1, UNSEEN: 1, GROUPS_OF_ONE: 2, WEIGHT_MAX: 1.5, "actor/pg_loss": 0.25},
            {FAILED: 0, GROUPS_OF_ONE: 0, WEIGHT_MAX: 1.25, "actor/pg_loss": 0.5, JUDGE_FAILED: 2},
            {FAILED: 3, UNSEEN: 2, GROUPS_OF_ONE: 1, WEIGHT_MAX: 1.0, "actor/pg_loss": 0.75},
        ]
    )
    metrics = {}
    steps.step(metrics, {})
    assert (
        metrics[FAILED] == 4
        and metrics[UNSEEN] == 3
        and metrics[GROUPS_OF_ONE] == 3
        and metrics[JUDGE_FAILED] == 2
    )
    assert metrics[WEIGHT_MAX] == 1.5
    assert metrics["actor/pg_loss"] == pytest.approx(0.5)


def test_metrics_of_a_rejection_rule_are_combined_by_what_they_are():
    rule = "rollout_corr/rollout_rs_seq_{}".format
    fraction, low = rule("sum_k1_masked_fraction"), rule("max_k2_min")
    steps = Steps([{fraction: 0.25, low: -1.0}, {fraction: 0.5, low: -2.0}, {fraction: 0.75}])
    metrics = {}
    steps.step(metrics, {})
    assert (metrics[fraction], metrics[low]) == (pytest.approx(0.5), -2.0)


def test_the_counts_of_a_step_are_its_own():
    steps = Steps([{FAILED: 1}] * 6)
    for _ in range(2):
        metrics = {}
        steps.step(metrics, {})
        assert metrics[FAILED] == 3


def test_the_memory_of_a_phase_is_the_most_of_its_mini_batches():
    peaks = [[1.0, 2.0], [5.0, 3.0], [4.0, 4.0], [1.0, 1.0]]
    memory = PhaseMemory(SimpleNamespace(peak_device_memory=lambda: peaks.pop(0)))
    for phase in ("ref", "update_actor", "update_actor"):
        memory.end_phase(phase)
    assert memory.metrics() == {"vapo/memory/ref_gib": 2.0, "vapo/memory/update_actor_gib": 5.0}
    memory.end_phase("update_actor")
    assert memory.metrics() == {"vapo/memory/update_actor_gib": 1.0}, "of another step"
