"""What the trainer overrides in veRL 0.9.1 is still there, and is what it was when written."""

import inspect

import pytest
import verl
from verl.trainer.ppo.core_algos import get_adv_estimator_fn
from verl.trainer.ppo.v1 import PPOTrainerSync, get_trainer_cls
from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer

from vapo_verl.trainer.trainer import VapoTrainer
from vapo_verl.trainer.worker import VapoWorker

OVERRIDDEN = [
    "fit",
    "on_step_begin",
    "_init_resource_pool_mgr",
    "_fetch_one_gen_batch",
    "_balance_batch",
    "_compute_advantage",
    "_compute_metrics",
    "_save_checkpoint",
    "_load_checkpoint",
]


def test_the_registries_hold_our_classes():
    assert get_trainer_cls("vapo") is VapoTrainer
    assert get_adv_estimator_fn("vapo").__module__ == "vapo_verl.advantage.estimator"


@pytest.mark.parametrize("name", OVERRIDDEN)
def test_overridden_methods_exist_upstream(name):
    assert callable(getattr(PPOTrainerSync, name, None)), (
        f"verl {verl.__version__} has no PPOTrainer.{name}: VapoTrainer.{name} overrides nothing; "
        "find the method's new name in verl/trainer/ppo/v1/trainer_base.py"
    )


def test_a_step_begins_only_after_the_one_before_was_logged():
    """A stop on request relies on it: what is saved between two steps is in metrics.jsonl."""
    loop = inspect.getsource(PPOTrainerSync.fit).partition("while current_epoch")[2]
    places = [
        loop.index(call)
        for call in ("self.on_step_begin()", "self._save_checkpoint()", "self.logger.log(")
    ]
    assert places == sorted(places)
    fetches = inspect.getsource(PPOTrainerSync.step).partition("_step_once")[0]
    assert "self.prepare_step()" in fetches  # data of a step are drawn after it began


def test_ray_sets_its_sigterm_handler_through_the_function_that_launch_replaces():
    import ray._private.worker

    source = inspect.getsource(ray._private.worker.init)
    assert "ray._private.utils.set_sigterm_handler(" in source
    assert "signal.signal(" not in source


def test_the_replay_buffer_still_polls_at_an_interval():
    assert "poll_interval" in inspect.signature(ReplayBuffer).parameters, (
        "verl's ReplayBuffer lost poll_interval: VapoTrainer sets it from vapo.replay_poll_s"
    )
    assert "self._wait_for_next_poll(" in inspect.getsource(ReplayBuffer.sample), (
        "verl's ReplayBuffer.sample waits in another way: VapoTrainer looks for dead actors there"
    )


def test_workers_are_made_from_the_class_attributes_we_set():
    source = inspect.getsource(VapoWorker.__mro__[1])
    for name in ("actor_worker_cls", "ref_worker_cls"):
        assert f"self.{name}(" in source, f"ActorRolloutRefWorker no longer makes self.{name}"


def test_the_pointer_verl_reads_is_the_one_we_write():
    from verl.utils.checkpoint.checkpoint_manager import get_checkpoint_tracker_filename

    from vapo_verl.run_folder.checkpoints import POINTER

    assert get_checkpoint_tracker_filename("run").endswith(f"run/{POINTER}")
