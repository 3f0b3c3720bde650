"""Derive engine arguments from other settings and write them into veRL's config."""

import ast
import difflib
import os
from collections.abc import Iterator, Mapping
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from vapo_verl.attention import engine_args
from vapo_verl.attention.settings import KEY
from vapo_verl.config import AttentionConfig
from vapo_verl.data.control_tokens import image_processor_settings, model_folder
from vapo_verl.settings import find_module

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
    f"{ENGINE}.kv_cache_dtype": "auto",
    f"{ENGINE}.kv_sharing_fast_prefill": False,
    f"{ENGINE}.video_pruning_rate": 0,
}
"""Key -> the only value that visual attention supports, if the key is set. The engine checks again
(`vapo_verl.attention.worker`), but only a minute later."""

FILLED_BY_VERL: Mapping[str, str] = {
    **{
        name: f"rollout.{name}"
        for name in (
            *("dtype", "load_format", "max_model_len", "max_num_seqs", "enable_chunked_prefill"),
            *("max_num_batched_tokens", "enable_prefix_caching", "enable_sleep_mode"),
            *("logprobs_mode", "enforce_eager", "gpu_memory_utilization", "disable_log_stats"),
            *("seed", "quantization", "scheduling_policy", "data_parallel_size"),
        )
    },
    "tensor_parallel_size": "rollout.tensor_model_parallel_size",
    "data_parallel_size_local": "rollout.data_parallel_size",
    "data_parallel_start_rank": "rollout.data_parallel_size",
    "enable_expert_parallel": "rollout.expert_parallel_size",
    "enable_return_routed_experts": "rollout.enable_rollout_routing_replay",
    "override_generation_config": "rollout.temperature",
    "served_model_name": "rollout.prometheus.served_model_name",
    "trust_remote_code": "model.trust_remote_code",
    **dict.fromkeys(("enable_lora", "max_loras", "max_lora_rank"), "model.lora_rank"),
    "fully_sharded_loras": "model.lora.fully_sharded_loras",
}
"""Argument that veRL's server fills -> the key below ``actor_rollout_ref`` that it reads. Given in
``engine_kwargs``, most would replace veRL's value, and the checks of that key with it."""


ARGUMENT_MODULES = ("vllm.engine.arg_utils", "vllm.entrypoints.openai.cli_args")
V2_RUNNER = "VLLM_USE_V2_MODEL_RUNNER"
"""Environment variable of vLLM: its V2 model runner orders the rows of a batch elsewhere and has
another KV cache layout. vLLM 0.24 uses it by itself for some text models, later versions for most
(vllm-project/vllm#44443)."""


def settle_image_limit(config: DictConfig) -> None:
    """Make ``mm_processor_kwargs.max_pixels`` a limit that the agent loop also keeps.

    The value is capped at the processor's own limit, with which the loop counts tokens. A null, the
    default of ``data.max_pixels``, is left out: processors accept none.
    """
    key = f"{ENGINE}.mm_processor_kwargs"
    options = OmegaConf.select(config, key)
    if options is None:
        return
    given = {name: value for name, value in options.items() if value is not None}
    own = processor_max_pixels(config)
    if "max_pixels" in given and own is not None:
        given["max_pixels"] = min(given["max_pixels"], own)
    OmegaConf.update(config, key, given or None, merge=False)


def processor_max_pixels(config: DictConfig) -> int | None:
    """The limit in a model's files; None if no file states it, or for a hub name that is not in
    this machine's cache: :func:`refuse_lifted_limit` checks it when its processor is loaded."""
    for stated in image_processor_settings(model_folder(config.actor_rollout_ref.model.path)):
        limit = stated.get("max_pixels") or stated.get("size", {}).get("longest_edge")
        if limit is not None:
            return int(limit)
    return None


def refuse_lifted_limit(config: DictConfig, own: int | None) -> None:
    """Refuse an engine's pixel limit above `own`, that of the model's processor, if it is known.

    The agent loop shrinks an image to the processor's own limit, and the engine would not: the
    response would be written from an image of more tokens than the one that it is trained on.

    Raises:
        ValueError: with the limit to set.
    """
    key = f"{ENGINE}.mm_processor_kwargs.max_pixels"
    limit = OmegaConf.select(config, key)
    if limit is not None and own is not None and limit > own:
        raise ValueError(
            f"{key}={limit} is above the {own} pixels of the model's processor: the engine would "
            f"not shrink images that the agent loop does; set data.max_pixels={own} or less"
        )


def check_engine_arguments(config: DictConfig) -> None:
    """Refuse an argument that vLLM does not have, or that veRL fills from another key.

    vLLM's parser would end the server at the first kind; the second replaces what was checked.

    Raises:
        ValueError: the first one, with similar names or the other key; or one with dashes, which
            other checks miss.
    """
    known = engine_arguments()
    for name, value in (OmegaConf.select(config, ENGINE) or {}).items():
        if "-" in name:
            raise ValueError(f"{ENGINE}.{name}: write it {name.replace('-', '_')}")
        if known and name not in known:
            near = difflib.get_close_matches(name, known)
            fix = f"use {' or '.join(near)}" if near else "leave it out"
            raise ValueError(f"{ENGINE}.{name}: this vLLM has no argument of that name; {fix}")
        if name in FILLED_BY_VERL and value is not None:
            raise ValueError(
                f"{ENGINE}.{name}={value}: veRL fills this argument from another key, which is "
                f"the one that is checked; leave it out and set "
                f"actor_rollout_ref.{FILLED_BY_VERL[name]}"
            )


@cache
def engine_arguments() -> frozenset[str]:
    """Names of all arguments of `vllm serve`, from its sources; empty if it is not installed.

    Importing them would take seconds.
    """
    return frozenset(name for module in ARGUMENT_MODULES for name in _argument_names(module))


def _argument_names(module: str) -> Iterator[str]:
    """Fields of the module's classes, and its option strings."""
    try:
        file = find_module(module).origin
    except ModuleNotFoundError:
        return
    assert file is not None
    for node in ast.walk(ast.parse(Path(file).read_text("utf-8"))):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield node.target.id
        elif isinstance(node, ast.Constant) and str(node.value).startswith("--"):
            yield str(node.value)[2:].replace("-", "_")


def add_attention(config: DictConfig, attention: AttentionConfig) -> None:
    """Set the engine arguments that export visual attention, when it is enabled.

    Raises:
        ValueError: an unsupported setting, or one of the arguments is already set to another value.
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
    _refuse_v2_runner(config)
    arguments = engine_args(attention.layers, attention.per_layer, max_spans=attention.max_spans)
    engine = OmegaConf.select(config, ENGINE) or OmegaConf.create({})
    for key in ("worker_cls", "scheduler_cls"):
        if engine.get(key) not in (None, arguments[key]):
            raise ValueError(
                f"{ENGINE}.{key}={engine[key]} is taken: visual attention needs it; "
                "remove it or set vapo.attention.enabled=false"
            )
    _refuse_other_settings(engine.get("additional_config"), arguments["additional_config"][KEY])
    with open_dict(config):  # merges into additional_config, which may hold other settings
        OmegaConf.update(config, ENGINE, OmegaConf.merge(engine, arguments), force_add=True)


def _refuse_other_settings(given: Any, ours: Mapping[str, Any]) -> None:
    """Refuse an `additional_config` that `vapo.attention` would replace without a word."""
    key = f"{ENGINE}.additional_config"
    given = OmegaConf.to_container(given) if OmegaConf.is_config(given) else given
    if given is None:
        return
    if not isinstance(given, Mapping):
        kind = "text" if isinstance(given, str) else f"a {type(given).__name__}"
        raise ValueError(
            f"{key}={given!r} is {kind}, which visual attention cannot add to; "
            "write it as a mapping: {key: value}"
        )
    stated = given.get(KEY)
    if stated is None:
        return
    if not isinstance(stated, Mapping):
        raise ValueError(f"{key}.{KEY}={stated!r} is no mapping: leave it out")
    settings = [field.name for field in fields(AttentionConfig)]
    for name, value in stated.items():
        if name not in ours or value != ours[name]:
            instead = f", and set vapo.attention.{name}" if name in settings else ""
            raise ValueError(
                f"{key}.{KEY}.{name}={value!r} would be replaced by that of vapo.attention, "
                f"{ours.get(name)!r}: leave it out{instead}"
            )


def _refuse_v2_runner(config: DictConfig) -> None:
    """Refuse what the engine's worker (`vapo_verl.attention.worker`) refuses a minute later."""
    key = f"ray_kwargs.ray_init.runtime_env.env_vars.{V2_RUNNER}"
    value = OmegaConf.select(config, key)
    name = V2_RUNNER if value is None else key
    value = os.environ.get(V2_RUNNER) if value is None else str(value)
    if value not in (None, "", "0"):
        raise ValueError(
            f"{name}={value}: visual attention is read from vLLM's V1 model runner; "
            f"export {V2_RUNNER}=0, or set vapo.attention.enabled=false"
        )
