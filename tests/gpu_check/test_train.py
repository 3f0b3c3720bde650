"""What the stage `train` takes for a healthy run."""

import pytest

from tests.composing import compose_once
from vapo_verl.gpu_check.case import CaseFailed
from vapo_verl.gpu_check.train import CORRELATION, Job, healthy_figures, several_ranks
from vapo_verl.preflight import check_batches, check_micro_batches

JOB = Job(recipe="smoke_gpu", overrides=[], steps=2, least_correlation=0.98, start_s=1)
STEP = {
    "step": 1,
    "vapo/reward/total": 0.5,
    "vapo/attention/mean": 0.2,
    "actor/grad_norm": 1.0,
    CORRELATION: 0.999,
    "training/rollout_probs_diff_mean": 0.001,
    "training/rollout_probs_diff_max": 0.1,
    "vapo/memory/rollout_gib": 20.0,
    "timing_s/step": 3.21,
}


def test_figures_are_the_worst_of_all_steps():
    other = {**STEP, "step": 2, CORRELATION: 0.99, "vapo/memory/rollout_gib": 21.0}
    figures = healthy_figures([STEP, other], JOB)
    assert figures["least_correlation"] == 0.99
    assert figures["rollout_gib"] == 21.0
    assert figures["step_s"] == 3.2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({CORRELATION: 0.9}, "step 1: rollout and actor correlate by 0.90000, 0.98 is expected"),
        ({CORRELATION: float("nan")}, "correlation|corr is nan"),
        ({"actor/grad_norm": float("inf")}, "actor/grad_norm is inf"),
        ({"vapo/attention/mean": float("nan")}, "vapo/attention/mean is nan"),
    ],
)
def test_a_sick_run_fails(change, message):
    with pytest.raises(CaseFailed, match=message):
        healthy_figures([{**STEP, **change}], JOB)


def test_a_metric_that_is_missing_fails():
    step = {name: value for name, value in STEP.items() if name != "vapo/attention/mean"}
    with pytest.raises(CaseFailed, match="vapo/attention/mean is nan"):
        healthy_figures([step], JOB)


@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_several_ranks_pass_the_checks_of_a_start(ranks):
    config = compose_once("smoke_gpu", several_ranks(ranks))
    check_batches(config)
    check_micro_batches(config)
    # veRL's resource pool: 3 CPUs a GPU; TransferQueue: its controller, and a CPU a storage unit
    units = config.transfer_queue.backend.SimpleStorage.num_data_storage_units
    assert config.ray_kwargs.ray_init.num_cpus >= 3 * ranks + units + 1
