"""Saved rollouts: what is written is what is read, and nothing else is."""

import inspect
import json
import math
import re
from importlib.metadata import version

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from tests.checkpoints import mark_complete
from tests.composing import compose_once
from vapo_verl.launch import settle_debug
from vapo_verl.settings import MAX_COUNT
from vapo_verl.trainer.replay import (
    META_FILE,
    PACKAGES,
    ROWS_FILE,
    TENSORS_FILE,
    NoAgentLoops,
    SavedBuffer,
    SavedRolloutsError,
    SavedStep,
    origin_of,
    read_step,
    saved_steps,
    step_folder,
    write_step,
)

ROW = {
    "responses": torch.tensor([5, 6, 7]),
    "position_ids": torch.arange(8).view(4, 2),
    "response_mask": torch.tensor([1, 1, 0]),
    "visual_attention": torch.tensor([0.25, math.nan, 1.0]),
    "half": torch.tensor([1.5], dtype=torch.bfloat16),
    "flags": torch.tensor([True, False]),
    "scalar": torch.tensor(3.0),
    "empty": torch.zeros(0, 4),
    "multi_modal_inputs": {"image_grid_thw": torch.tensor([[1, 2, 2]]), "pixels_of": "000001-0"},
    "extra_fields": {
        "vapo": {"reward": {"total": 1.5}, "anchors": [], "nan": math.nan, "none": None},
        "layers": np.array([[0.5, 0.25]], dtype=np.float32),
        "number": np.float32(0.5),
        7: ("a", 1, True),
    },
    "claims": np.array([{"text": "a", "label": True}, {"text": "b", "label": False}], dtype=object),
    "words": np.array(["x", "y"]),
    "bytes": b"\x00\xff",
    "text": "</think> \u2028 \U0001f600",
    "tricky": ["mapping", ["tensor", "0"]],
}
TAGS = {"status": "success", "seq_len": 5, "min_global_steps": 0, "is_padding": False}


def saved(step=1, **changes):
    """Two responses to one prompt."""
    return SavedStep(
        step=step,
        keys=["000001-00000_0_0", "000001-00000_1_0"],
        tags=[TAGS, TAGS],
        rows=[ROW, {**ROW, **changes}],
        prompts={"000001-00000": {"pixels": None, "grid": torch.tensor([[1, 2, 2]])}},
    )


def origin():
    return origin_of(compose_once("smoke"), num_tokens=3)


def same(one, other):
    """Equal in type and value, tensors and nan by bits."""
    assert type(one) is type(other)
    if isinstance(one, torch.Tensor):
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        bits = [tensor.reshape(-1).view(torch.uint8) for tensor in (one, other)]
        assert torch.equal(*bits)
    elif isinstance(one, np.ndarray):
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        same(one.tolist(), other.tolist())
    elif isinstance(one, dict):
        assert list(one) == list(other)
        for name in one:
            same(one[name], other[name])
    elif isinstance(one, list | tuple):
        assert len(one) == len(other)
        for pair in zip(one, other, strict=True):
            same(*pair)
    else:
        assert one == other or (math.isnan(one) and math.isnan(other))


def test_what_is_read_is_what_was_written(tmp_path):
    folder = write_step(tmp_path, saved(), origin())
    assert folder == step_folder(tmp_path, 1) and saved_steps(tmp_path) == [1]
    read = read_step(tmp_path, 1)
    assert (read.keys, read.tags) == (saved().keys, saved().tags)
    for one, other in zip(read.rows, saved().rows, strict=True):
        other = {**other, "words": np.array(["x", "y"], dtype=object)}
        other["extra_fields"] = {**other["extra_fields"], "number": 0.5}  # as a plain number
        same(one, other)
    same(read.prompts, saved().prompts)


def test_versions_and_seeds_are_recorded(tmp_path):
    meta = json.loads((write_step(tmp_path, saved(), origin()) / META_FILE).read_text())
    assert meta["versions"] == {name: version(name) for name in PACKAGES}
    assert meta["seeds"]["vapo.seed"] == 0 and meta["seeds"]["vapo.seeded_sampling"] is True
    assert (meta["num_responses"], meta["num_prompts"], meta["vocabulary"]) == (2, 1, 3)
    assert meta["model"].endswith("digits/model/digits")


def test_no_file_is_a_pickle(tmp_path):
    for file in write_step(tmp_path, saved(), origin()).iterdir():
        assert not file.read_bytes().startswith((b"\x80", b"PK"))


def test_an_object_that_no_file_holds_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"extra\.hook is a function, which cannot be saved"):
        write_step(tmp_path, saved(extra={"hook": saved}), origin())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("key", [("a", 1), np.int64(7)])
def test_a_key_that_no_file_holds_is_named(tmp_path, key):
    with pytest.raises(ValueError, match=r"extra: the key .* is a \w+, which cannot be saved"):
        write_step(tmp_path, saved(extra={key: 1}), origin())
    assert list(tmp_path.iterdir()) == []


def test_a_step_that_is_repeated_replaces_itself_and_nothing_else(tmp_path):
    write_step(tmp_path, saved(), origin())
    write_step(tmp_path, saved(text="again"), origin())
    assert read_step(tmp_path, 1).rows[1]["text"] == "again"
    foreign = step_folder(tmp_path, 2)
    foreign.mkdir()
    (foreign / "thesis.tex").write_text("x")
    with pytest.raises(SavedRolloutsError, match="step_000002 holds no saved rollouts"):
        write_step(tmp_path, saved(step=2), origin())
    assert (foreign / "thesis.tex").exists()


@pytest.mark.parametrize("name", [ROWS_FILE, TENSORS_FILE])
@pytest.mark.parametrize("how", ["cut", "changed", "missing"])
def test_a_damaged_file_is_named(tmp_path, name, how):
    file = write_step(tmp_path, saved(), origin()) / name
    content = file.read_bytes()
    if how == "missing":
        file.unlink()
    else:
        file.write_bytes(content[:-1] if how == "cut" else content[:-1] + b"\x7f")
    said = "is missing" if how == "missing" else "is damaged"
    with pytest.raises(SavedRolloutsError, match=re.escape(f"{file} {said}; save the step again")):
        read_step(tmp_path, 1)


META = {"format": "vapo_verl rollouts", "version": 1, "sha256": {}, "versions": {}}


@pytest.mark.parametrize(
    ("meta", "said"),
    [
        (None, "holds no saved rollouts"),
        ("not json", "holds no saved rollouts"),
        ("[]", "holds no saved rollouts"),
        ({**META, "format": "other"}, "has the format 'other'"),
        ({**META, "version": 9}, "version 9; this package"),
        ({"format": META["format"], "version": 1}, "holds no saved rollouts"),
        ({**META, "versions": None}, "has the format"),
        (META, "is damaged"),
    ],
)
def test_a_foreign_folder_is_named(tmp_path, meta, said):
    folder = step_folder(tmp_path, 1)
    folder.mkdir()
    if meta is not None:
        (folder / META_FILE).write_text(meta if isinstance(meta, str) else json.dumps(meta))
    (folder / ROWS_FILE).write_text('{"keys": []}')
    with pytest.raises(SavedRolloutsError, match=re.escape(str(folder))) as caught:
        read_step(tmp_path, 1)
    assert said in str(caught.value)


def settled(*overrides):
    config = compose_once("smoke", overrides)
    OmegaConf.resolve(config)
    settle_debug(config)
    return config


def test_a_run_without_an_engine_needs_saved_steps(tmp_path, capsys):
    asked = f"vapo.debug.train_only={tmp_path}"
    with pytest.raises(SavedRolloutsError, match="holds no saved rollouts; give a folder that"):
        settled(asked)
    for step in (1, 2):
        write_step(tmp_path, saved(step=step), origin())
    with pytest.raises(SavedRolloutsError, match=r"steps 1, 2; set .*total_training_steps=2"):
        settled(asked)
    config = settled(asked, "trainer.total_training_steps=2")
    trainer = config.trainer
    assert (trainer.v1.trainer_mode, trainer.test_freq) == ("vapo_replay", -1)
    assert not trainer.val_before_train
    loops = config.actor_rollout_ref.rollout.agent.agent_loop_manager_class
    assert loops == f"{NoAgentLoops.__module__}.NoAgentLoops"
    assert "WARNING" not in capsys.readouterr().out
    gamma = "vapo.reward.perception_weight"
    with pytest.raises(SavedRolloutsError, match=rf"{re.escape(gamma)}=0\.5, .* by 0\.1: .*=0\.1"):
        settled(asked, "trainer.total_training_steps=2", f"{gamma}=0.5")
    tensors = step_folder(tmp_path, 1) / TENSORS_FILE
    content = tensors.read_bytes()
    tensors.write_bytes(content[:-1])
    with pytest.raises(SavedRolloutsError, match=r"step_000001/tensors\.safetensors is damaged"):
        settled(asked, "trainer.total_training_steps=2")
    tensors.write_bytes(content)
    file = step_folder(tmp_path, 2) / META_FILE
    file.write_text(file.read_text().replace(version("torch"), "1.0"))
    settled(asked, "trainer.total_training_steps=2")
    assert "was saved with other versions: {'torch': '1.0 -> " in capsys.readouterr().out


def test_a_step_that_is_missing_between_others_is_named_before_the_start(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    saves = tmp_path / "saves"
    asked = f"vapo.debug.train_only={saves}"
    for step in (2, 3, 5):
        write_step(saves, saved(step=step), origin())
    with pytest.raises(SavedRolloutsError, match=r"steps 2, 3, 5, not step 1; save step 1, or"):
        settled(asked, "trainer.total_training_steps=3")
    done = tmp_path / "runs" / "one" / "global_step_1"
    done.mkdir(parents=True)
    resumed = ("trainer.resume_mode=resume_path", f"trainer.resume_from_path={done}")
    settled(asked, "trainer.total_training_steps=3", *resumed)
    with pytest.raises(SavedRolloutsError, match=r"not step 4; set .*total_training_steps=3"):
        settled(asked, "trainer.total_training_steps=5", *resumed)
    mark_complete(done.parent, 1)
    settled(asked, "trainer.total_training_steps=3", f"trainer.default_local_dir={done.parent}")


def test_rollouts_are_saved_where_a_folder_can_be(tmp_path):
    (tmp_path / "file").write_text("x")
    for place in ("file", "file/saves"):
        with pytest.raises(ValueError, match=r"vapo.debug.save_rollouts=.*file is no folder; name"):
            settled(f"vapo.debug.save_rollouts={tmp_path / place}")
    assert (tmp_path / "file").read_text() == "x"


def test_rollouts_without_training_leave_the_weights_and_save_nothing():
    config = settled("vapo.debug.rollout_only=true")
    assert (config.trainer.critic_warmup, config.trainer.save_freq) == (MAX_COUNT, -1)
    assert config.trainer.v1.trainer_mode == "vapo"
    both = settled("vapo.debug.rollout_only=true", "vapo.debug.save_rollouts=here")
    assert both.trainer.v1.trainer_mode == "vapo_saving"
    assert both.vapo.debug.save_rollouts.startswith("/")


@pytest.mark.parametrize("key", ["rollout_only=true", "save_rollouts=a", "train_only=a"])
def test_where_a_step_is_no_batch_by_itself_it_is_refused(key):
    with pytest.raises(ValueError, match=r"trainer_mode=vapo_colocate_async: there a step is no"):
        settled(f"vapo.debug.{key}", "trainer.v1.trainer_mode=vapo_colocate_async")


def test_nothing_changes_without_it():
    assert OmegaConf.to_container(settled()) == OmegaConf.to_container(
        compose_once("smoke"), resolve=True
    )


def test_what_training_without_an_engine_needs_of_verl():
    """The switch that leaves engines out, and a manager of agent loops of one's own."""
    from verl.trainer.main_ppo import TaskRunnerV1
    from verl.trainer.ppo.v1 import PPOTrainer

    assert '"_enable_hybrid_replicas"' in inspect.getsource(PPOTrainer)
    runner = TaskRunnerV1.__ray_metadata__.modified_class
    made = inspect.getsource(runner.init_agent_loop_manager)
    assert "agent_loop_manager_cls.create(" in made
    loops = NoAgentLoops.create(config=None, llm_client=None)
    assert (loops.expected, loops.agent_loop_workers) == ({}, [])


def test_rollouts_of_another_tokenizer_are_refused(tmp_path):
    write_step(tmp_path, saved(), origin())
    with pytest.raises(SavedRolloutsError, match=r"a tokenizer of 3 tokens, and that of .* has 4"):
        SavedBuffer(tmp_path, num_tokens=4).sample(1, "train", 1)
