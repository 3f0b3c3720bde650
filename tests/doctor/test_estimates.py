"""Sizes by hand: a model of 1000 parameters, and the shipped recipes."""

import json

import pytest

from vapo_verl.doctor.disk import checkpoint_bytes, num_checkpoints
from vapo_verl.doctor.findings import GIB
from vapo_verl.doctor.gpu_memory import rank_memory
from vapo_verl.doctor.host_memory import (
    PROCESS_BYTES,
    checkpoint_copies,
    estimate,
    image_bytes,
    state_bytes,
)
from vapo_verl.doctor.model_size import image_cut, model_size


@pytest.fixture
def model(tmp_path):
    """1000 parameters in bfloat16, patches of 16 that are merged by 2."""
    tensor = {"dtype": "BF16", "shape": [10, 100], "data_offsets": [0, 2000]}
    header = json.dumps({"__metadata__": {"format": "pt"}, "w": tensor}).encode()
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    processor = {"patch_size": 16, "merge_size": 2, "size": {"longest_edge": 10240}}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


def test_parameters_are_counted_in_the_headers(config, model):
    size = model_size(config(f"actor_rollout_ref.model.path={model}"))
    assert size is not None
    assert size.num_parameters == 1000
    cut = image_cut(model)
    assert (cut.pixels_per_token, cut.max_pixels) == (32 * 32, 10240)


def test_a_hub_name_is_sized_by_its_number(config, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    size = model_size(config(recipe="vapo_3b"))
    assert size is not None
    assert size.num_parameters == pytest.approx(3e9 * 1.2)
    assert model_size(config("actor_rollout_ref.model.path=some/model", recipe="vapo")) is None


def test_a_checkpoint_is_weights_and_two_moments(config):
    assert checkpoint_bytes(config(), 1000) == 1000 * 4 * 3
    contents = "actor_rollout_ref.actor.checkpoint.save_contents=[model]"
    assert checkpoint_bytes(config(contents), 1000) == 1000 * 4


@pytest.mark.parametrize(
    ("changes", "number"),
    [
        ([], 2),  # 6 steps, saved every 3
        (["trainer.total_training_steps=7"], 3),
        (["trainer.max_actor_ckpt_to_keep=1"], 2),
        (["trainer.save_freq=-1"], 0),
        (["trainer.total_training_steps=null"], None),
    ],
)
def test_checkpoints_on_disk_at_once(config, changes, number):
    assert num_checkpoints(config(*changes)) == number


def test_host_memory_of_the_smoke_recipe_is_what_was_measured(config):
    need = estimate(config())
    # 5 + 3 * 1 rank + one process each for agent loop, rewards and storage = 11
    assert need.processes == 11 * PROCESS_BYTES
    assert 8 * GIB < need.processes + need.state < 9.5 * GIB  # measured: 8.9 GiB


def test_off_loaded_state_lies_in_host_memory(config, model):
    path = f"actor_rollout_ref.model.path={model}"
    assert state_bytes(config(path, recipe="vapo")) == 1000 * 4  # the reference alone
    assert state_bytes(config(path, recipe="dapo")) == 0  # no KL, no reference
    offload = "actor_rollout_ref.actor.fsdp_config.optimizer_offload=true"
    assert state_bytes(config(path, offload, recipe="vapo")) == 1000 * 4 * 3
    assert state_bytes(config(path, offload, "trainer.nnodes=2", recipe="vapo")) == 1000 * 4 * 1.5


def test_a_checkpoint_passes_through_host_memory(config, model):
    path = f"actor_rollout_ref.model.path={model}"
    assert checkpoint_copies(config(path, recipe="vapo")) == 0  # FSDP 2
    one = "actor_rollout_ref.actor.strategy=fsdp"
    assert checkpoint_copies(config(path, one, recipe="vapo")) == 1000 * 4 * 3
    assert checkpoint_copies(config(path, one, "trainer.nnodes=2", recipe="vapo")) == 1000 * 4 * 1.5
    whole = "actor_rollout_ref.actor.checkpoint.save_contents=[model,hf_model]"
    assert checkpoint_copies(config(path, whole, recipe="vapo")) == 1000 * 4
    assert checkpoint_copies(config(path, whole, "trainer.save_freq=-1", recipe="vapo")) == 0


def test_images_are_kept_for_every_response(config):
    # 16 prompts, 64 tokens of 28^2 pixels at most: 24 bytes for each of 5 responses, 3 decoded
    assert image_bytes(config()) == 16 * 64 * 784 * (5 * 24 + 3)


def test_a_rank_holds_its_shard(config):
    need = rank_memory(config(recipe="vapo"), 8000)
    # 8 ranks: weights, gradients, two moments in fp32; the reference is off-loaded
    assert need.training == 1000 * 4 * 4
    assert need.engine_weights == 8000 * 2
    offload = "actor_rollout_ref.actor.fsdp_config.optimizer_offload=true"
    assert rank_memory(config(offload, recipe="vapo"), 8000).training == 1000 * 4 * 2
    on_gpu = "actor_rollout_ref.ref.fsdp_config.param_offload=false"
    assert rank_memory(config(on_gpu, recipe="vapo"), 8000).training == 1000 * 4 * 5
    assert rank_memory(config(on_gpu, recipe="dapo"), 8000).training == 1000 * 4 * 4  # no KL
