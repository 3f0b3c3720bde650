"""The checkpoint that is meant, or what is missing."""

import pytest

from vapo_verl.export.source import ExportError, find_checkpoint


def test_the_newest_complete_checkpoint_is_the_default(run):
    for step, complete in ((2, True), (10, True), (12, False)):
        run.save(step, complete=complete)
    assert find_checkpoint(run.path).step == 10
    assert find_checkpoint(run.path, 2).folder == run.path / "global_step_2" / "actor"


def test_no_run_folder(tmp_path):
    with pytest.raises(ExportError, match=r"absent is no folder"):
        find_checkpoint(tmp_path / "absent")


def test_no_checkpoint(run):
    with pytest.raises(ExportError, match=r"no global_step_N; run on until trainer.save_freq"):
        find_checkpoint(run.path)


def test_only_an_unfinished_checkpoint(run):
    run.save(2, complete=False)
    with pytest.raises(ExportError, match=r"only unfinished ones \(global_step_2\)"):
        find_checkpoint(run.path)


@pytest.mark.parametrize(("step", "problem"), [(3, "does not exist"), (4, "was never finished")])
def test_another_step_names_those_there_are(run, step, problem):
    run.save(2)
    run.save(4, complete=False)
    with pytest.raises(ExportError, match=rf"--step {step}: .* {problem}; complete ones are 2"):
        find_checkpoint(run.path, step)


def test_a_missing_shard_is_named(run):
    actor = run.save(2)
    (actor / "fsdp_config.json").write_text('{"FSDP_version": 2, "world_size": 2}')
    with pytest.raises(ExportError, match=r"lacks model_world_size_2_rank_0.pt, .*rank_1.pt"):
        find_checkpoint(run.path)


def test_other_backends_are_refused(run):
    (run.save(2) / "fsdp_config.json").unlink()
    with pytest.raises(ExportError, match=r"only checkpoints of FSDP"):
        find_checkpoint(run.path)


def test_adapters_are_refused(run):
    (run.save(2) / "lora_train_meta.json").write_text("{}")
    with pytest.raises(ExportError, match=r"LoRA"):
        find_checkpoint(run.path)
