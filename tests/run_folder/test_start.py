"""With which step a start begins, and what its folder and its checkpoint forbid."""

import copy

import pytest
import yaml

from tests.checkpoints import mark_complete
from vapo_verl.run_folder.checkpoints import checkpoint_folder
from vapo_verl.run_folder.resume import (
    OtherRun,
    Start,
    refuse_later_steps,
    refuse_other_optimizer,
    start_of,
)


def save(run_dir, *steps):
    for step in steps:
        checkpoint_folder(run_dir, step).mkdir(parents=True)
        mark_complete(run_dir, step)


def settings(run_dir, **changes):
    trainer = {"resume_mode": "auto", "resume_from_path": None, "val_only": False}
    return {"default_local_dir": str(run_dir), **trainer, **changes}


def test_a_start_begins_after_the_newest_checkpoint_the_given_one_or_none(tmp_path):
    run, other = tmp_path / "run", tmp_path / "other" / "global_step_7"
    assert start_of(settings(run)).step == 0
    save(run, 20, 100)
    (run / "global_step_120").mkdir()  # incomplete
    given = {"resume_mode": "resume_path", "resume_from_path": str(other)}
    starts = [
        start_of(settings(run, **changes)) for changes in ({}, {"resume_mode": "disable"}, given)
    ]
    assert [start.step for start in starts] == [100, 0, 7]
    assert [start.checkpoint for start in starts] == [run / "global_step_100", None, other]


@pytest.mark.parametrize(
    ("mode", "given", "refused"),
    [
        ("disable", None, "disable begins with step 1: .* the checkpoints after step 0 "),
        ("resume_path", 20, "resume_path begins with step 21: .* checkpoints after step 20 "),
        ("resume_path", 100, None),
        ("resume_path", 120, None),
        ("auto", 20, None),
    ],
)
def test_a_start_before_a_saved_step_is_refused_with_both_ways_out(tmp_path, mode, given, refused):
    save(tmp_path, 20, 60, 100)
    checkpoint = given and tmp_path / f"global_step_{given}"
    start = Start(run_dir=tmp_path, mode=mode, checkpoint=checkpoint)
    if refused is None:
        refuse_later_steps(start)
        return
    with pytest.raises(OtherRun, match=rf"of step 100, and trainer\.resume_mode={refused}") as no:
        refuse_later_steps(start)
    assert str(no.value).startswith(f"trainer.default_local_dir={tmp_path} holds")
    assert "set trainer.resume_mode=auto. To begin" in str(no.value)
    assert "another trainer.default_local_dir or trainer.experiment_name" in str(no.value)
    refuse_later_steps(Start(run_dir=tmp_path, mode=mode, checkpoint=checkpoint, val_only=True))


def test_a_folder_without_a_complete_checkpoint_forbids_nothing(tmp_path):
    checkpoint_folder(tmp_path, 5).mkdir()
    refuse_later_steps(Start(run_dir=tmp_path, mode="disable"))
    refuse_later_steps(Start(run_dir=tmp_path / "absent", mode="disable"))


OPTIM = {
    "lr": 1e-6,
    "weight_decay": 0.01,
    "betas": [0.9, 0.999],
    "optimizer": "AdamW",
    "optimizer_impl": "torch.optim",
    "override_optimizer_config": None,
    "lr_warmup_steps": 10,
    "lr_scheduler_type": "constant",
    "clip_grad": 1.0,
}
ALL = ["model", "optimizer", "extra"]


def config(load=ALL, **optim):
    actor = {"optim": {**OPTIM, **optim}, "checkpoint": {"load_contents": load}}
    return {"actor_rollout_ref": {"actor": copy.deepcopy(actor)}}


@pytest.fixture
def checkpoint(tmp_path):
    """Of step 5, which was written under another config than the steps after it."""
    for name, kept in (("config.step_5.yaml", config()), ("config.yaml", config(lr=3e-6))):
        (tmp_path / name).write_text(yaml.safe_dump(kept))
    return tmp_path / "global_step_5"


UNDONE = {
    "lr": (5e-6, "1e-06 -> 5e-06"),
    "weight_decay": (0.1, "0.01 -> 0.1"),
    "betas": ([0.9, 0.95], "[0.9, 0.999] -> [0.9, 0.95]"),
    "optimizer": ("Adam", '"AdamW" -> "Adam"'),
    "override_optimizer_config": ({"eps": 1e-6}, 'null -> {"eps": 1e-06}'),
}


@pytest.mark.parametrize("name", UNDONE)
def test_what_the_optimizers_state_would_undo_is_refused(checkpoint, name):
    value, shown = UNDONE[name]
    refuse_other_optimizer(checkpoint, config())
    with pytest.raises(OtherRun, match=r"global_step_5 was written with other settings") as refused:
        refuse_other_optimizer(checkpoint, config(**{name: value}))
    assert f"\n  actor_rollout_ref.actor.optim.{name}: {shown}\n" in str(refused.value)
    assert "would have no effect" in str(refused.value)
    assert "Keep the old values; or start a new run from the exported model" in str(refused.value)


def test_what_no_state_holds_may_change(checkpoint):
    changes = {"lr_warmup_steps": 0, "lr_scheduler_type": "cosine", "clip_grad": 0.5}
    refuse_other_optimizer(checkpoint, config(**changes))


@pytest.mark.parametrize(
    ("load", "refused"),
    [
        (None, {"lr", "betas"}),
        (["model", "optimizer"], {"lr", "betas"}),
        (["model", "extra"], {"lr"}),
        (["model"], set()),
    ],
)
def test_only_what_is_loaded_undoes_a_change(checkpoint, load, refused):
    for name in ("lr", "betas"):
        changed = config(load, **{name: UNDONE[name][0]})
        if name in refused:
            with pytest.raises(OtherRun, match=name):
                refuse_other_optimizer(checkpoint, changed)
        else:
            refuse_other_optimizer(checkpoint, changed)


def test_a_checkpoint_without_its_config_is_not_compared(tmp_path):
    """Of veRL itself, for instance; and settings of a later release are not there."""
    refuse_other_optimizer(tmp_path / "global_step_5", config(lr=1.0))
    (tmp_path / "config.yaml").write_text("actor_rollout_ref: {actor: {optim: {}}}")
    refuse_other_optimizer(tmp_path / "global_step_5", config(lr=1.0))


def test_torch_loads_the_refused_settings_and_no_others():
    """The premise, with the classes that a rank builds."""
    import torch
    from verl.utils.torch_functional import get_constant_schedule_with_warmup

    def built(lr, weight_decay, betas, warmup):
        optimizer = torch.optim.AdamW(
            [torch.nn.Parameter(torch.zeros(2))], lr=lr, weight_decay=weight_decay, betas=betas
        )
        return optimizer, get_constant_schedule_with_warmup(optimizer, warmup)

    old, old_schedule = built(1e-6, 0.01, (0.9, 0.999), 0)
    new, new_schedule = built(4e-6, 0.1, (0.9, 0.95), 4)
    for _ in range(2):
        old.step()
        old_schedule.step()
    new.load_state_dict(old.state_dict())
    new_schedule.load_state_dict(old_schedule.state_dict())
    new.step()
    new_schedule.step()
    [group] = new.param_groups
    assert (group["weight_decay"], group["betas"]) == (0.01, (0.9, 0.999))
    assert group["lr"] == pytest.approx(1e-6 * 3 / 4)  # the old rate, in the new warm-up
