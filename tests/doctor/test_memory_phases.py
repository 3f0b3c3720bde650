"""Memory of each phase: formulas by hand on a model of round numbers, and every GPU recipe."""

import re
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transfer_queue.utils.serial_utils import calc_packed_size, encode
from transformers import AutoModelForImageTextToText, Qwen2VLImageProcessor

from vapo_verl.data.compact_pixels import compact
from vapo_verl.doctor.findings import GIB
from vapo_verl.doctor.memory import ASSUMED_DEVICE_BYTES, GPU_MARGIN_BYTES
from vapo_verl.doctor.memory_phases import (
    GPU_CONTEXT_BYTES,
    PIXEL_BYTES,
    PROCESS_BYTES,
    TOKEN_BYTES,
    kv_cache_bytes,
    kv_token_bytes,
    logit_bytes,
    memory_phases,
)
from vapo_verl.doctor.memory_settings import MemorySettings, MicroBatch
from vapo_verl.doctor.model_size import KNOWN_SHAPES, ModelShape, model_shape, model_size
from vapo_verl.hydra_config import RECIPES, recipe_names
from vapo_verl.launch import composed
from vapo_verl.lora import Lora, lora_of

SHAPE = ModelShape(
    hidden_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    intermediate_size=128,
    vocab_size=1000,
    tie_word_embeddings=False,
    vision_hidden_size=32,
    vision_depth=1,
    vision_intermediate_size=64,
    vision_patch_elements=1176,
)
P = SHAPE.num_parameters


@pytest.fixture(scope="module")
def vapo():
    """What the recipe `vapo` asks for, on a machine with flash-attn."""
    return MemorySettings.read(composed("vapo", []))


def phase(name, settings, shape=SHAPE):
    found = memory_phases(shape, settings, device_bytes=80 * GIB)
    return next(phase for phase in found if phase.name == name)


def test_a_rank_holds_its_shard_of_weights_gradients_and_adam(vapo):
    update = phase("update", vapo)
    # float32 over 8 ranks
    assert update.gpu["weights"] == P * 4 / 8
    assert update.gpu["gradients"] == P * 4 / 8
    assert update.gpu["Adam"] == P * 8 / 8
    assert phase("rollout", vapo).gpu["Adam"] == P * 8 / 8
    four = phase("update", replace(vapo, ranks_per_node=4, shard_ranks=4))
    assert four.gpu["Adam"] == P * 8 / 4
    hybrid = phase("update", replace(vapo, num_nodes=2))  # HSDP: 16 ranks in groups of 8
    assert hybrid.gpu["Adam"] == P * 8 / 8


def test_off_loaded_state_is_on_the_gpu_in_the_phases_that_use_it(vapo):
    off = replace(vapo, param_offload=True, optimizer_offload=True)
    on_gpu = {
        p.name: {"weights", "Adam"} & set(p.gpu)
        for p in memory_phases(SHAPE, off, device_bytes=80 * GIB)
    }
    assert on_gpu["rollout"] == on_gpu["ref log prob"] == on_gpu["weight sync"] == set()
    assert on_gpu["old log prob"] == {"weights"}
    assert on_gpu["update"] == {"weights", "Adam"}
    policy = phase("update", replace(vapo, offload_policy=True))
    assert not {"weights", "gradients", "Adam"} & set(policy.gpu)
    assert policy.host["Adam"] == P * 8


def test_pinned_blocks_are_powers_of_two(vapo):
    one = replace(SHAPE, num_hidden_layers=0, vision_depth=0, vocab_size=1000)
    whole = replace(vapo, offload_policy=True, ranks_per_node=1, shard_ranks=1)
    pinned = phase("rollout", whole, one).host["weights"]
    # elements of 4 bytes, up to the next power of two
    blocks = 2 * 2**18  # two of 1000 * 64
    blocks += 2**8  # norm of 64
    blocks += 2**18  # patches: 32 * 1176
    blocks += 2**7 + 2**16 + 2**9 + 2**15 + 2**8  # merger: 32, 128 * 128, 128, 64 * 128, 64
    assert pinned == blocks


def test_the_reference_is_on_the_host_whatever_param_offload_says(vapo):
    ref = phase("ref log prob", vapo)
    assert ref.host["reference"] > P * 2  # bf16, pinned
    assert phase("ref log prob", vapo).gpu.keys() == phase("old log prob", vapo).gpu.keys()
    without = memory_phases(SHAPE, replace(vapo, reference_bytes=0), device_bytes=80 * GIB)
    assert "ref log prob" not in {p.name for p in without}
    assert not any("reference" in p.host for p in without)


def test_one_rank_reads_the_model_but_with_tied_embeddings_every_one(vapo):
    assert phase("load", vapo).host["the loaded model"] == P * 4
    tied = replace(SHAPE, tie_word_embeddings=True)
    assert phase("load", vapo, tied).host["the loaded model"] == 8 * tied.num_parameters * 4
    # HSDP: the first rank of each group of 4
    groups = replace(vapo, shard_ranks=4)
    assert phase("load", groups).host["the loaded model"] == 2 * P * 4


@pytest.mark.parametrize(
    ("changes", "gradients", "entropy", "num_bytes"),
    [
        ({}, False, False, 2),  # reference: bf16 logits
        ({}, False, True, 2 + 4),  # compiled: one float32 copy
        ({}, True, False, 2),  # flash-attn's cross entropy: gradient in place
        ({}, True, True, 2 + 6),
        ({"scaled_logits": True}, False, False, 2 + 2),
        ({"entropy_chunk": 2048}, False, True, 2),
        ({"compiled_entropy": False}, False, True, 2 + 8),
        ({"packed": False}, False, True, 2 + 8),  # float32 softmax and product
        ({"packed": False}, False, False, 2 + 2),  # without padding, once more
        ({"packed": False}, True, False, 2 + 8),
        ({"fused_logits": True}, True, True, 0),
    ],
)
def test_bytes_of_a_logit(vapo, changes, gradients, entropy, num_bytes):
    settings = replace(vapo, **changes)
    assert logit_bytes(settings, gradients=gradients, entropy=entropy) == num_bytes


def test_activations_follow_the_tokens_of_a_micro_batch(vapo):
    no_images = replace(vapo, max_prompt_tokens=0, update=MicroBatch(rows=1, tokens=1000))
    update = phase("update", replace(no_images, packed=False), replace(SHAPE, vocab_size=50_000))
    assert update.gpu["logits or a layer"] == 1000 * 50_000 * 10
    assert update.gpu["checkpointed activations"] == 1000 * 2 * 64 * 2  # bf16, hidden, layers
    images = replace(no_images, max_prompt_tokens=1000)
    vision = phase("update", images).gpu["checkpointed activations"] - 1000 * 2 * 64 * 2
    assert vision == 1000 * 2 * 4 * 32 * 1  # bf16, patches of a token, hidden, depth


def test_ranks_that_share_sequences_share_their_text_and_not_their_images(vapo):
    batch = MicroBatch(rows=2, tokens=1000, shards=4)
    shared = replace(vapo, max_prompt_tokens=1500, update=batch)
    images = 2 * 1500  # of 4000 tokens
    assert phase("update", shared).gpu["checkpointed activations"] == (
        1000 * 2 * 64 * 2 + images * 2 * 4 * 32 * 1
    )


def test_a_micro_batch_of_ranks_that_share_sequences_is_that_of_their_group():
    key = "ulysses_sequence_parallel_size=4"
    changes = [f"actor_rollout_ref.actor.{key}"]
    one, four = (MemorySettings.read(composed("vapo", more)).update for more in ([], changes))
    in_engine = [f"actor_rollout_ref.actor.fsdp_config.{key}"]  # the other place of the key
    assert MemorySettings.read(composed("vapo", in_engine)).update == four
    assert (one.shards, four.shards) == (1, 4)
    assert four.tokens == one.tokens and four.rows > one.rows


def test_with_adapters_the_reference_pass_has_the_micro_batches_of_old_log_probs():
    limit = "log_prob_max_token_len_per_gpu"
    changes = [f"actor_rollout_ref.ref.{limit}=90000", f"actor_rollout_ref.rollout.{limit}=40000"]
    settings = MemorySettings.read(composed("vapo_lora", changes))
    assert settings.ref == settings.old and settings.old.tokens <= 40000
    full = MemorySettings.read(composed("vapo", changes))
    assert full.ref.tokens > full.old.tokens


def test_a_sleeping_engine_with_adapters_is_in_pinned_blocks():
    """Qwen2.5-VL-7B in bfloat16: gate and up have 260 MiB in a block of 512."""
    settings = MemorySettings.read(composed("vapo_lora", []))
    shape = KNOWN_SHAPES["Qwen/Qwen2.5-VL-7B-Instruct"]
    text = 28 * (512 + 256 + 32 + 32) + 2 * 2048
    vision = 32 * 32 + 64 + 32  # gate and up of a block (17 MiB), the merger's two matrices
    shared = -(-32 * (9.375 + 3.125 + 8.35) // 20) * 32  # of a block's others, in segments of 20
    host = phase("rollout", settings, shape).host["sleeping engine"]
    assert host == pytest.approx(8 * (text + vision + shared) * 2**20, rel=0.002)


def test_deferred_reduction_keeps_whole_gradients_in_float32(vapo):
    many = replace(vapo, deferred_sync=True)
    assert phase("update", many).gpu["unreduced gradients"] == P * 4


def test_adams_step_counts_where_it_is_the_peak(vapo):
    tiny = MicroBatch(rows=1, tokens=1)
    state = replace(vapo, ranks_per_node=1, shard_ranks=1, update=tiny, compute_bytes=0)
    step = phase("update", replace(state, reduce_bytes=0))
    assert step.gpu["Adam's temporary copy"] == P * 4
    assert "gathered units" not in step.gpu


def test_the_engine_gives_back_its_fraction_only_where_it_sleeps(vapo):
    assert phase("rollout", vapo).gpu["engine"] == 0.6 * 80 * GIB
    assert "engine" not in phase("update", vapo).gpu
    assert phase("update", vapo).gpu["contexts"] == 2 * GPU_CONTEXT_BYTES
    assert phase("update", replace(vapo, sleeps=False)).gpu["engine"] == 0.6 * 80 * GIB
    sync = phase("weight sync", vapo).gpu
    assert sync["engine weights"] == P * 2
    assert sync["bucket"] == 2048 * 2**20
    assert sync["tensors in transfer"] == 2 * 4 * 1000 * 64


def test_the_kv_cache_is_what_the_weights_leave(vapo):
    # bf16: keys and values of 2 heads of 16, in 2 layers
    assert kv_token_bytes(SHAPE, vapo) == 2 * 2 * 2 * 16 * 2
    # a GPU has one of the two heads at least
    assert kv_token_bytes(SHAPE, replace(vapo, tensor_parallel=8)) == 2 * 2 * 16 * 2
    less = kv_cache_bytes(SHAPE, vapo, device_bytes=80 * GIB)
    more = kv_cache_bytes(SHAPE, replace(vapo, utilization=0.7), device_bytes=80 * GIB)
    assert more - less == pytest.approx(8 * GIB)


def test_images_are_held_once_for_a_prompt_and_again_while_a_phase_has_them(vapo):
    small = replace(vapo, prompts=10, group_size=5, pixels=1000, max_model_len=100)
    rollout, update = phase("rollout", small).host, phase("update", small).host
    # uint8, 3 channels; 80 bytes a token of each response
    assert rollout["replay buffer"] == 10 * (1000 * 3 + 5 * 100 * 80)
    assert update["fetched from it"] == rollout["replay buffer"]


def test_a_checkpoint_passes_through_the_host_under_fsdp1_and_as_a_whole_model(vapo):
    part = "copies to be written"
    assert part not in phase("checkpoint", vapo).host
    assert phase("checkpoint", replace(vapo, fsdp1=True)).host[part] == P * 12
    no_optimizer = replace(vapo, fsdp1=True, saves_optimizer=False)
    assert phase("checkpoint", no_optimizer).host[part] == P * 4
    assert phase("checkpoint", replace(vapo, saves_hf_model=True)).host[part] == P * 4
    never = memory_phases(SHAPE, replace(vapo, saves=False), device_bytes=80 * GIB)
    assert [p.name for p in never][-1] == "weight sync"


ADAPTERS = 2 * 4 * (2 * (64 + 64) + 2 * (32 + 64) + 3 * (128 + 64))
"""Two layers, rank 4: query and output, key and value, three matrices of the MLP."""


@pytest.fixture
def adapted(vapo):
    """`vapo` with adapters of rank 4 on all linear layers of the decoder."""
    lora = Lora(rank=4, alpha=4, targets="all-linear", excluded=".*visual.*")
    return replace(vapo, lora=lora, reference_bytes=0, reference_in_actor=True)


def test_lora_trains_its_adapters_alone(vapo, adapted):
    update, full = phase("update", adapted), phase("update", vapo)
    assert update.gpu["weights"] == P * 4 / 8
    assert update.gpu["gradients"] == ADAPTERS * 4 / 8
    assert update.gpu["Adam"] == ADAPTERS * 8 / 8
    assert update.gpu["gathered units"] < full.gpu["gathered units"]
    some = replace(adapted, lora=replace(adapted.lora, targets=("q_proj",)))
    assert phase("update", some).gpu["gradients"] == 2 * 4 * (64 + 64) * 4 / 8
    one_layer = replace(adapted, lora=replace(adapted.lora, targets=r".*layers\.1\..*"))
    assert phase("update", one_layer).gpu["gradients"] == ADAPTERS / 2 * 4 / 8


def test_the_adapters_are_counted_as_peft_makes_them(packaged_model):
    config = composed("smoke_lora", [])
    lora, shape = lora_of(config), model_shape(config)
    model = AutoModelForImageTextToText.from_pretrained(packaged_model)
    of_peft = LoraConfig(r=lora.rank, target_modules=lora.targets, exclude_modules=lora.excluded)
    trained = get_peft_model(model, of_peft).get_nb_trainable_parameters()[0]
    assert shape.adapter_parameters(lora, lora.rank) == trained


def test_the_actor_without_adapters_is_the_reference(vapo, adapted):
    assert "reference" in phase("update", vapo).host
    assert "reference" not in phase("update", adapted).host
    assert phase("ref log prob", adapted).gpu["weights"] == P * 4 / 8


def test_an_engine_with_adapters_sleeps_on_the_host_and_gets_adapters_only(adapted):
    sync, rollout = phase("weight sync", adapted), phase("rollout", adapted)
    for name in ("old log prob", "ref log prob", "update", "checkpoint", "weight sync"):
        # below 10 MiB, tensors share a segment of 20 MiB, which is a block of 32
        assert phase(name, adapted).host["sleeping engine"] == 8 * 32 * 2**20
    assert rollout.host["sleeping engine"] == 8 * 32 * 2**20  # blocks of an earlier sleep
    assert "sleeping engine" not in phase("load", adapted).host
    assert sync.host["adapters"] == 8 * ADAPTERS * 4
    assert sync.gpu["tensors in transfer"] == 0
    merged = replace(adapted, lora=replace(adapted.lora, merged=True))
    sync = phase("weight sync", merged)
    assert sync.host["frozen weights"] == 8 * P * 4 / 8
    assert sync.gpu["tensors in transfer"] > 0
    assert "sleeping engine" not in sync.host


def test_the_engine_has_room_for_adapters_of_the_next_rank_it_knows(vapo, adapted):
    plain, beside = (
        kv_cache_bytes(SHAPE, settings, device_bytes=80 * GIB) for settings in (vapo, adapted)
    )
    assert plain - beside == ADAPTERS * 2 * 2  # bfloat16, and rank 8 for 4


def test_without_a_gpu_all_of_it_is_in_host_memory(config):
    settings, shape = MemorySettings.read(config()), model_shape(config())
    phases = memory_phases(shape, settings, device_bytes=0)
    assert not any(p.gpu for p in phases)
    rollout = phases[1]
    # 5 + 3 * 1 rank + one process each for agent loop, rewards and storage = 11
    assert rollout.host["processes"] == pytest.approx(11 * PROCESS_BYTES)
    assert 8 * GIB < rollout.host_bytes < 9.5 * GIB  # measured: 8.9 GiB


# --- the recipes


@cache
def composed_once(*recipe_and_overrides):
    recipe, *overrides = recipe_and_overrides
    return composed(recipe, overrides)


def of_known_size(recipe):
    """Whether a recipe needs GPUs and its model's shape is known without its files."""
    config = composed_once(recipe)
    return config.trainer.device != "cpu" and model_shape(config) is not None


GPU_RECIPES = [name for name in recipe_names() if of_known_size(name)]
HOST_MEMORY = re.compile(r"^# Host memory: (\d+) GB a node", re.MULTILINE)
HOST_FRACTION = 0.9
"""Of a node's memory; the rest is the system's and the page cache's."""
MOST_FOR_ONE = 1.4
"""A recipe that asks for more than this multiple of its need turns machines away."""


def over_the_limit(recipe, *overrides):
    """Phases that leave less than the margin on a GPU of 80 GB."""
    config = composed_once(recipe, *overrides)
    size = model_size(config)
    phases = memory_phases(
        model_shape(config),
        MemorySettings.read(config),
        device_bytes=ASSUMED_DEVICE_BYTES,
        num_parameters=size.num_parameters,
    )
    return {p.name for p in phases if p.gpu_bytes > ASSUMED_DEVICE_BYTES - GPU_MARGIN_BYTES}


def test_there_are_recipes_to_hold_against_the_hardware():
    named = {"vapo", "vapo_3b", "vapo_paper", "vapo_released", "vapo_attention", "vapo_soft"}
    named |= {"vapo_relaxed", "grpo", "dapo", "vapo_3b_1gpu", "vapo_7b_4gpu"}
    assert named <= set(GPU_RECIPES)


@pytest.mark.parametrize("recipe", GPU_RECIPES)
def test_every_phase_of_a_recipe_fits_80_gb(recipe):
    assert over_the_limit(recipe) == set()


@pytest.mark.parametrize("recipe", GPU_RECIPES)
def test_the_engine_has_room_for_its_longest_sequences(recipe):
    config = composed_once(recipe)
    shape, settings = model_shape(config), MemorySettings.read(config)
    room = kv_cache_bytes(shape, settings, device_bytes=ASSUMED_DEVICE_BYTES)
    assert room > 32 * settings.max_model_len * kv_token_bytes(shape, settings)


@pytest.mark.parametrize("recipe", [name for name in GPU_RECIPES if "sweep" not in name])
def test_a_recipe_says_how_much_host_memory_it_takes(recipe):
    match = HOST_MEMORY.search((RECIPES / f"{recipe}.yaml").read_text())
    assert match, f"recipes/{recipe}.yaml has no line '# Host memory: N GB a node'"
    config = composed_once(recipe)
    phases = memory_phases(
        model_shape(config), MemorySettings.read(config), device_bytes=ASSUMED_DEVICE_BYTES
    )
    need = max(phase.host_bytes for phase in phases)
    assert need <= HOST_FRACTION * int(match[1]) * 1e9 <= MOST_FOR_ONE * need


@pytest.mark.parametrize(
    ("recipe", "overrides", "phases"),
    [
        (
            "vapo",
            ["actor_rollout_ref.actor.ppo_max_token_len_per_gpu=131072"],  # 8 times as many
            {"old log prob", "update"},
        ),
        (
            "vapo",  # padded to the longest, but counted before padding
            ["actor_rollout_ref.model.use_remove_padding=false"],
            {"old log prob", "ref log prob", "update"},
        ),
        (
            "vapo",
            ["actor_rollout_ref.model.enable_gradient_checkpointing=false"],
            {"update"},
        ),
        ("vapo", ["actor_rollout_ref.rollout.gpu_memory_utilization=0.8"], {"rollout"}),
        ("vapo", ["actor_rollout_ref.rollout.free_cache_engine=false"], {"old log prob", "update"}),
        ("vapo", ["trainer.n_gpus_per_node=4"], {"rollout"}),
        ("vapo_3b", ["trainer.n_gpus_per_node=1"], {"rollout", "update", "old log prob"}),
        (
            "vapo_3b_1gpu",  # off-load between the phases is not enough: the update needs all of it
            [
                "actor_rollout_ref.actor.fsdp_config.offload_policy=false",
                "actor_rollout_ref.actor.fsdp_config.param_offload=true",
                "actor_rollout_ref.actor.fsdp_config.optimizer_offload=true",
            ],
            {"update"},
        ),
    ],
)
def test_what_does_not_fit_is_a_finding(recipe, overrides, phases):
    assert over_the_limit(recipe, *overrides) >= phases


def test_padded_micro_batches_of_two_sequences_fit():
    passes = ("actor.ppo", "rollout.log_prob", "ref.log_prob")
    sizes = [f"actor_rollout_ref.{key}_micro_batch_size_per_gpu=2" for key in passes]
    fixed = [
        "actor_rollout_ref.actor.use_dynamic_bsz=false",
        "actor_rollout_ref.rollout.log_prob_use_dynamic_bsz=false",
        "actor_rollout_ref.ref.log_prob_use_dynamic_bsz=false",
    ]
    padded = "actor_rollout_ref.model.use_remove_padding=false"
    assert over_the_limit("vapo", padded, *fixed, *sizes) == set()


def test_the_replay_buffers_bytes_are_those_of_encoded_rows():
    """Of a prompt with one image and five responses, as the agent loop's worker writes them."""
    processor = Qwen2VLImageProcessor(size={"shortest_edge": 3136, "longest_edge": 10**7})
    image = np.zeros((560, 448, 3), dtype=np.uint8)
    inputs = dict(processor(images=[image], return_tensors="pt"))
    pixels = compact(inputs["pixel_values"], processor)
    length, answer = 1000, 600
    response = {
        **{name: torch.zeros(answer, dtype=torch.int64) for name in ("responses", "loss_mask")},
        "response_mask": torch.zeros(answer, dtype=torch.int64),
        "prompts": torch.zeros(length - answer, dtype=torch.int64),
        "input_ids": torch.zeros(length, dtype=torch.int64),
        "position_ids": torch.zeros(4, length, dtype=torch.int64),
        **{name: torch.zeros(answer) for name in SCORES},
    }
    measured = packed({"pixels": pixels.to_plain()}) + 5 * packed(response)
    formula = PIXEL_BYTES * 560 * 448 + 5 * TOKEN_BYTES * length
    assert measured == pytest.approx(formula, rel=0.1)


SCORES = (
    "rm_scores",
    "rollout_log_probs",
    "old_log_probs",
    "ref_log_prob",
    "advantages",
    "returns",
)


def packed(row):
    return calc_packed_size(encode({name: [value] for name, value in row.items()}))


def test_an_engine_with_gpus_of_its_own_shares_none(vapo):
    separate = replace(vapo, engine_gpus_per_node=4, kept_copies=2)
    weights = P * vapo.parameter_bytes / vapo.shard_ranks
    update = phase("update", separate)
    assert "engine" not in update.gpu and "CUDA graphs" not in update.gpu
    assert phase("update", vapo).gpu_bytes - update.gpu_bytes == 3 * GIB  # a context and graphs
    assert set(phase("rollout", separate).gpu) == {"contexts", "CUDA graphs", "engine"}
    assert update.host["copies of the weights"] == vapo.ranks_per_node * 2 * weights


def test_weights_for_another_pool_take_buckets_on_both_sides(vapo):
    sync = phase("weight sync", replace(vapo, engine_gpus_per_node=4))
    assert sync.gpu["buckets"] in (2 * vapo.bucket_bytes, 3 * vapo.bucket_bytes)


def test_prompts_ahead_of_a_step_are_in_the_replay_buffer():
    own = ("actor_rollout_ref.rollout.checkpoint_engine.backend=zmq",)
    ahead, step = MemorySettings.read(composed("vapo_async", own)), composed("vapo", [])
    assert ahead.prompts == 2 * step.data.train_batch_size
    assert (ahead.engine_gpus_per_node, ahead.ranks_per_node, ahead.kept_copies) == (4, 4, 2)
