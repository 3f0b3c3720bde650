"""What a parameter costs while it is trained, by the recipe: shared by the estimates."""

from __future__ import annotations

from omegaconf import DictConfig

DTYPE_BYTES = {"fp32": 4, "float32": 4, "bf16": 2, "bfloat16": 2, "fp16": 2, "float16": 2}


def dtype_bytes(name: object) -> int:
    """Bytes of an element; of a name not known here (auto, half, ...) the larger guess, 4."""
    return DTYPE_BYTES.get(str(name), 4)


def parameter_bytes(config: DictConfig) -> int:
    """b of the formulas: a parameter as FSDP holds it; gradient and moments have its type."""
    return dtype_bytes(config.actor_rollout_ref.actor.fsdp_config.model_dtype)


def has_reference(config: DictConfig) -> bool:
    """Whether a run loads a reference model: only a KL term needs one."""
    return bool(config.actor_rollout_ref.actor.use_kl_loss or config.algorithm.use_kl_in_reward)
