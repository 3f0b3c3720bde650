"""Read from a config everything that decides the memory of a run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf

from vapo_verl.config import SEPARATE, SYNC
from vapo_verl.doctor.model_size import (
    dtype_bytes,
    model_folder,
    parameter_bytes,
    vision_tokens,
)
from vapo_verl.lora import Lora, lora_of
from vapo_verl.preflight import (
    engine_gpus,
    has_reference,
    has_reference_model,
    ranks_of,
    shard_ranks_of,
    shards_of,
)
from vapo_verl.rollout.correction import bypasses
from vapo_verl.run_folder.resume import STORAGE_UNITS

SHORTEST_TEXT = 128
"""Tokens of template, question and response beside the smallest image, in the shortest sequence."""
FIXED_PROCESSES = 5
"""Driver, task runner, replay buffer's controller, and Ray's own two."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MicroBatch:
    """The largest micro-batch of a pass on a rank."""

    rows: int
    tokens: int
    """Includes padding if sequences are padded."""
    shards: int = 1
    """Ranks that share its sequences (Ulysses); each has all images of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemorySettings:
    """The part of a config that memory depends on. Sizes are bytes, counts are per rank."""

    on_gpu: bool
    ranks_per_node: int
    num_nodes: int
    shard_ranks: int
    """Ranks that share one copy of the state (``fsdp_size``; all if it is -1)."""
    fsdp1: bool

    parameter_bytes: int
    """Of a parameter as FSDP holds it; gradient and Adam's moments have its type."""
    compute_bytes: int
    """Of a parameter in a layer's computation, and of an activation."""
    reduce_bytes: int
    """Of a gradient during its reduction, or while that is deferred."""
    lora: Lora | None
    """Adapters, which alone are trained; None: all parameters are."""
    offload_policy: bool
    """State is on the host, layers fetch it and Adam runs there (FSDP 2)."""
    param_offload: bool
    optimizer_offload: bool
    deferred_sync: bool
    reference_bytes: int
    """Of a parameter of the reference model; 0 if no KL term needs one, or the actor without its
    adapters is the reference."""
    reference_in_actor: bool
    """A KL term compares with the actor without its adapters."""

    packed: bool
    fused_logits: bool
    """``use_fused_kernels``: logits are computed in chunks and never exist in full."""
    scaled_logits: bool
    """A temperature other than 1 copies the logits."""
    gradient_checkpointing: bool
    compiled_entropy: bool
    entropy_chunk: int
    """Tokens per chunk; 0: no chunks."""
    entropy_in_update: bool
    recompute_old: bool
    update: MicroBatch
    old: MicroBatch
    ref: MicroBatch
    max_prompt_tokens: int

    engine_bytes: int
    """Of a parameter in the engine."""
    tensor_parallel: int
    utilization: float
    """The engine's fraction of the device."""
    sleeps: bool
    """``free_cache_engine``: the engine frees its memory during training."""
    engine_gpus_per_node: int
    """GPUs that engines have to themselves; 0: they are on the actor's."""
    kept_copies: int
    """Host copies of the actor's weights: those of the step's start, and the current ones."""
    cuda_graphs: bool
    max_model_len: int
    max_batched_tokens: int
    max_num_seqs: int
    bucket_bytes: int
    cpu_cache_bytes: float

    saves: bool
    saves_optimizer: bool
    saves_hf_model: bool
    worker_processes: int
    """On a node, in addition to three for each rank."""
    prompts: float
    """Prompts in flight per node: a step's, and the warm-up of an asynchronous trainer."""
    group_size: int
    """Responses to a prompt."""
    pixels: int
    """Of an image at most, as the processor resizes it to fit the prompt."""

    @property
    def ranks(self) -> int:
        return self.ranks_per_node * self.num_nodes

    @classmethod
    def read(cls, config: DictConfig) -> MemorySettings:
        """From a settled config."""
        policy, trainer = config.actor_rollout_ref, config.trainer
        actor, rollout, fsdp = policy.actor, policy.rollout, policy.actor.fsdp_config
        precision, checkpoint = fsdp.get("mixed_precision") or {}, actor.checkpoint.save_contents
        cut = vision_tokens(model_folder(config))
        most = config.data.max_prompt_length * cut.pixels_per_token
        limit = config.data.max_pixels or cut.max_pixels or most
        chunked = fsdp.entropy_from_logits_with_chunking
        fused = bool(policy.model.get("use_fused_kernels", False))
        engine = OmegaConf.select(policy, "rollout.engine_kwargs.vllm.kv_cache_memory_bytes")
        lora = lora_of(config)
        mode, recomputes = trainer.v1.trainer_mode, not bypasses(config)
        ahead = trainer.v1.get(mode.removeprefix(f"{SYNC}_"), {}).get("num_warmup_batches", 0)
        sampled, copies = config.data.train_batch_size, 0
        if mode == SEPARATE:
            sampled = actor.ppo_mini_batch_size
            copies = recomputes * min(trainer.v1.separate_async.parameter_sync_step, 2)
        units = OmegaConf.select(config, STORAGE_UNITS) or 0
        spread = rollout.agent.num_workers + config.reward.num_workers + units  # over the nodes
        old = _log_prob_batch(config, rollout, "actor", sampled)
        return cls(
            on_gpu=trainer.device != "cpu",
            ranks_per_node=trainer.n_gpus_per_node,
            num_nodes=trainer.nnodes,
            shard_ranks=shard_ranks_of(config),
            fsdp1=actor.strategy == "fsdp",
            parameter_bytes=parameter_bytes(config),
            compute_bytes=dtype_bytes(precision.get("param_dtype", "bf16")),
            reduce_bytes=dtype_bytes(precision.get("reduce_dtype", "fp32")),
            lora=lora,
            reference_in_actor=has_reference(config) and lora is not None,
            offload_policy=fsdp.offload_policy,
            param_offload=fsdp.param_offload,
            optimizer_offload=fsdp.optimizer_offload,
            deferred_sync=fsdp.use_no_sync_for_gradient_accumulation,
            reference_bytes=dtype_bytes(policy.ref.fsdp_config.model_dtype)
            if has_reference_model(config)
            else 0,
            packed=policy.model.use_remove_padding,
            fused_logits=fused,
            scaled_logits=rollout.temperature != 1,
            gradient_checkpointing=policy.model.enable_gradient_checkpointing,
            compiled_entropy=fsdp.use_torch_compile,
            entropy_chunk=fsdp.entropy_from_logits_chunk_size if chunked else 0,
            entropy_in_update=bool(actor.calculate_entropy or actor.entropy_coeff),
            recompute_old=recomputes,
            update=_micro_batch(
                config,
                dynamic=actor.use_dynamic_bsz,
                budget=actor.ppo_max_token_len_per_gpu,
                rows=actor.ppo_micro_batch_size_per_gpu,
                rows_of_step=actor.ppo_mini_batch_size * rollout.n,
                shards=shards_of(config, "actor"),
            ),
            old=old,
            ref=old if lora else _log_prob_batch(config, policy.ref, "ref", sampled),
            max_prompt_tokens=config.data.max_prompt_length,
            engine_bytes=dtype_bytes(rollout.dtype),
            tensor_parallel=rollout.tensor_model_parallel_size,
            utilization=rollout.gpu_memory_utilization,
            sleeps=rollout.free_cache_engine,
            engine_gpus_per_node=-(-engine_gpus(config) // trainer.nnodes),
            kept_copies=copies,
            cuda_graphs=not rollout.enforce_eager,
            max_model_len=rollout.max_model_len
            or config.data.max_prompt_length + config.data.max_response_length,
            max_batched_tokens=rollout.max_num_batched_tokens,
            max_num_seqs=rollout.max_num_seqs,
            bucket_bytes=rollout.checkpoint_engine.update_weights_bucket_megabytes << 20,
            cpu_cache_bytes=engine or 2**30,
            saves=trainer.save_freq > 0,
            saves_optimizer="optimizer" in checkpoint,
            saves_hf_model="hf_model" in checkpoint,
            worker_processes=FIXED_PROCESSES + -(-spread // trainer.nnodes),
            prompts=config.data.train_batch_size * (1 + ahead) / trainer.nnodes,
            group_size=rollout.n,
            pixels=min(limit, most),
        )


def _log_prob_batch(config: DictConfig, keys: DictConfig, role: str, prompts: int) -> MicroBatch:
    """Of a pass over the responses to `prompts`, with the ``log_prob_*`` of `keys`."""
    return _micro_batch(
        config,
        dynamic=keys.log_prob_use_dynamic_bsz,
        budget=keys.log_prob_max_token_len_per_gpu,
        rows=keys.log_prob_micro_batch_size_per_gpu,
        rows_of_step=prompts * config.actor_rollout_ref.rollout.n,
        shards=shards_of(config, role),
    )


def _micro_batch(
    config: DictConfig,
    *,
    dynamic: bool,
    budget: int,
    rows: int | None,
    rows_of_step: int,
    shards: int,
) -> MicroBatch:
    """The largest micro-batch of a pass. The ranks of a group that shares sequences have one.

    Packed and sized by tokens, it holds ``budget`` of them (`rearrange_micro_batches` of veRL keeps
    that limit). Padded and sized by tokens, the limit is on the tokens before padding: one longest
    sequence and as many of the shortest as fit beside it, all padded to the longest.
    """
    data: Any = config.data
    longest = data.max_prompt_length + data.max_response_length
    of_group = max(rows_of_step * shards // ranks_of(config), 1)
    if not dynamic:
        rows = min(rows or of_group, of_group)
        return MicroBatch(rows=rows, tokens=-(-rows * longest // shards), shards=shards)
    cut = vision_tokens(model_folder(config))
    shortest = (data.min_pixels or 0) // cut.pixels_per_token + SHORTEST_TEXT
    limit = budget * shards
    beside = max(limit - longest, 0) // shortest
    rows = min(1 + beside, of_group)
    tokens = rows * longest
    if config.actor_rollout_ref.model.use_remove_padding:
        tokens = min(max(limit, longest), of_group * longest)
    return MicroBatch(rows=rows, tokens=-(-tokens // shards), shards=shards)
