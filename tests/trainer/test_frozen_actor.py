"""Which worker trains the actor, and how it is sharded, where the vision tower is frozen."""

import pytest
from verl.workers.engine_workers import ActorRolloutRefWorker

from vapo_verl.launch import composed
from vapo_verl.trainer.worker import FrozenTowerWorker, VapoTrainingWorker, VapoWorker

FREEZE = "actor_rollout_ref.actor.freeze_vision_tower=true"
FSDP1 = "actor_rollout_ref.actor.strategy=fsdp"


class Worker(VapoWorker):
    """A worker outside of Ray."""

    def __init__(self, *overrides, recipe="smoke"):
        self.config = composed(recipe, list(overrides)).actor_rollout_ref


@pytest.fixture
def built(monkeypatch):
    """`built(worker)` -> classes of actor and reference, and `use_orig_params` of both."""

    def made(self):
        self.made = self.actor_worker_cls, self.ref_worker_cls

    monkeypatch.setattr(ActorRolloutRefWorker, "init_model", made)

    def build(worker):
        worker.init_model()
        parts = (worker.config.actor, worker.config.ref)
        return worker.made, [part.fsdp_config.use_orig_params for part in parts]

    return build


def test_without_the_setting_actor_and_reference_are_alike(built):
    assert built(Worker()) == ((VapoTrainingWorker, VapoTrainingWorker), [False, False])


def test_the_tower_of_the_actor_is_frozen_and_not_that_of_the_reference(built):
    classes, _ = built(Worker(FREEZE))
    assert classes == (FrozenTowerWorker, VapoTrainingWorker)
    assert VapoWorker.actor_worker_cls is VapoTrainingWorker


def test_fsdp1_shards_frozen_and_trained_parameters_as_one(built):
    """Which torch refuses without use_orig_params."""
    assert built(Worker(FREEZE, FSDP1))[1] == [True, False]
    assert built(Worker(FSDP1))[1] == [False, False]
    assert built(Worker(FREEZE, FSDP1, recipe="smoke_lora"))[1] == [False, False]


def test_the_workers_method_is_still_dispatched_to_all_ranks():
    from verl.single_controller.base.decorator import MAGIC_ATTR

    upstream = getattr(ActorRolloutRefWorker.init_model, MAGIC_ATTR)
    assert getattr(VapoWorker.init_model, MAGIC_ATTR) == upstream
