"""The engine's part of ``vapo.attention``, written into veRL's config."""

from __future__ import annotations

from omegaconf import DictConfig, OmegaConf, open_dict

from vapo_verl.attention import engine_args
from vapo_verl.config import AttentionConfig

ENGINE = "actor_rollout_ref.rollout.engine_kwargs.vllm"

UNSUPPORTED = {
    "actor_rollout_ref.rollout.pipeline_model_parallel_size": 1,
    "actor_rollout_ref.rollout.enable_rollout_routing_replay": False,
    "actor_rollout_ref.rollout.mtp.enable_rollout": False,
    "actor_rollout_ref.rollout.quantization": None,
    f"{ENGINE}.pipeline_parallel_size": 1,
    f"{ENGINE}.decode_context_parallel_size": 1,
    f"{ENGINE}.prefill_context_parallel_size": 1,
    f"{ENGINE}.enable_dbo": False,
    f"{ENGINE}.speculative_config": None,
    f"{ENGINE}.enable_return_routed_experts": False,
    f"{ENGINE}.kv_cache_dtype": "auto",
}
"""Key -> the only value that visual attention works with, where the key is set at all. The engine
checks again (`vapo_verl.attention.support`), after the minute it takes to get there."""


def add_attention(config: DictConfig, attention: AttentionConfig) -> None:
    """Set the engine arguments that export visual attention, when it is enabled.

    Raises:
        ValueError: a setting that it does not work with, or one of the arguments is taken.
    """
    if not attention.enabled:
        return
    for key, works in UNSUPPORTED.items():
        value = OmegaConf.select(config, key)
        if value is not None and value != works:
            raise ValueError(
                f"{key}={value}: visual attention is not exported under it; "
                f"set {'null' if works is None else works} or vapo.attention.enabled=false"
            )
    arguments = engine_args(attention.layers, attention.per_layer)
    engine = OmegaConf.select(config, ENGINE) or OmegaConf.create({})
    for key in ("worker_cls", "scheduler_cls"):
        if engine.get(key) not in (None, arguments[key]):
            raise ValueError(
                f"{ENGINE}.{key}={engine[key]} is taken: visual attention needs it; "
                "remove it or set vapo.attention.enabled=false"
            )
    with open_dict(config):
        OmegaConf.update(config, ENGINE, OmegaConf.merge(engine, arguments), force_add=True)
