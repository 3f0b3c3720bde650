"""LoRA settings, and a check that refuses those that a run cannot use.

An adapted linear layer of weight W, [out, in], computes (Hu et al., arXiv 2106.09685)

    y = W x + (alpha / r) * B A x        A: [r, in], B: [out, r], zero at the start

and only A and B are trained. veRL's FSDP engine builds them with peft. Its rules for selecting
layers by name are repeated here, because a check must not import torch.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from vapo_verl.config import COLOCATED, SEPARATE, SYNC
from vapo_verl.hydra_config import compose_base

MODEL = "actor_rollout_ref.model"
ROLLOUT = "actor_rollout_ref.rollout"
ALL_LINEAR = "all-linear"
NOT_VISION = ".*visual.*"
"""A value of ``exclude_modules`` that keeps adapters out of every supported vision tower."""
DECODER_LAYER = "model.language_model.layers.{}."
DECODER_LINEAR = (
    *(f"self_attn.{part}_proj" for part in "qkvo"),
    *(f"mlp.{part}_proj" for part in ("gate", "up", "down")),
)
"""Linear layers of a decoder layer of Qwen2-VL, Qwen2.5-VL and Qwen3-VL."""
VISION_LAYERS = (
    *("blocks.{}.attn.qkv", "blocks.{}.attn.proj", "blocks.{}.mlp.fc1", "blocks.{}.mlp.fc2"),
    *("blocks.{}.mlp.gate_proj", "blocks.{}.mlp.up_proj", "blocks.{}.mlp.down_proj"),
    *("blocks.{}.mlp.linear_fc1", "blocks.{}.mlp.linear_fc2"),
    *("merger.mlp.0", "merger.mlp.2", "merger.linear_fc1", "merger.linear_fc2"),
    *("deepstack_merger_list.{}.linear_fc1", "deepstack_merger_list.{}.linear_fc2"),
)
"""Linear layers of their vision towers; {} is the number of a block."""
MAX_LAYERS = 128
"""More layers than any of these models has: the check knows their names, not their number."""
OTHER_LAYERS = (
    *("lm_head", "model.language_model.embed_tokens"),
    *("model.visual.patch_embed.proj", "model.visual.pos_embed"),
)
"""Other layers that peft adapts where they are named; ``all-linear`` leaves them out."""
READ_BY_FSDP = ("merge", "fully_sharded_loras")
"""Keys of the group ``model.lora`` that FSDP reads, too; only Megatron reads the others."""
UNSUPPORTED = (
    *("use_dora", "use_rslora", "rank_pattern", "alpha_pattern", "modules_to_save"),
    *("layers_to_transform", "layer_replication", "target_parameters", "bias", "lora_bias"),
    *("lora_dropout", "use_qalora", "use_bdlora", "trainable_token_indices"),
    *("alora_invocation_tokens", "arrow_config", "velora_config", "monteclora_config"),
    "kasa_config",
)
"""Keys of an adapter's config that change its equation, its rank per layer or its contents."""
PLAIN_STARTS = (True, False, None, "gaussian", "orthogonal", "eva")
"""Values of ``init_lora_weights`` that keep the base weights unchanged. With others (pissa, olora)
peft changes them when it loads an adapter, but the engine reads the original ones."""
ENGINE_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""vLLM allocates memory for the next larger of these ranks (``max_lora_rank``)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lora:
    """The adapters of a run."""

    rank: int
    alpha: int
    targets: str | tuple[str, ...]
    """``all-linear``, a regular expression for full names, or a list of names and name endings."""
    excluded: str | tuple[str, ...] = ()
    """Layers without adapters, in the same form."""
    merged: bool = False
    """The engine gets merged weights instead of adapters beside the base weights."""

    def adapts(self, name: str) -> bool:
        """Whether peft puts an adapter on the linear layer of that full name."""
        if _selects(self.excluded, name):
            return False
        if self.targets == ALL_LINEAR:
            return name != "lm_head"
        return _selects(self.targets, name)

    def num_adapted(self, num_layers: int = MAX_LAYERS) -> dict[str, int]:
        """Name of :data:`DECODER_LINEAR` -> in how many of `num_layers` layers it is adapted."""
        layers = [DECODER_LAYER.format(number) for number in range(num_layers)]
        return {name: sum(self.adapts(layer + name) for layer in layers) for name in DECODER_LINEAR}

    @property
    def engine_rank(self) -> int:
        """The rank that vLLM allocates memory for."""
        return engine_rank(self.rank)


def engine_rank(rank: int) -> int:
    """The rank that vLLM allocates memory for, given an adapter of `rank`."""
    return next((room for room in ENGINE_RANKS if room >= rank), rank)


def lora_of(config: DictConfig) -> Lora | None:
    """The adapters of a composed config; None for a run that trains all weights.

    Raises:
        ValueError: ``lora_adapter_path`` names no adapter.
    """
    model = config.actor_rollout_ref.model
    rank = model.get("lora_rank", 0)
    if not rank:
        return None
    start = model.get("lora_adapter_path")
    names = _adapter_config(Path(start)) if start else model
    return Lora(
        rank=rank,
        alpha=model.lora_alpha,
        targets=_names(names.get("target_modules")),
        excluded=_names(names.get("exclude_modules")),
        merged=bool((model.get("lora") or {}).get("merge", False)),
    )


def check_lora(config: DictConfig) -> None:
    """Refuse LoRA settings that no run can use, or that do not do what they say.

    Raises:
        ValueError: the first one, with the key, the value and the fix.
    """
    model = config.actor_rollout_ref.model
    _check_numbers(model)
    megatrons = (model.get("lora") or {}).get("rank", 0)
    if megatrons:
        raise ValueError(
            f"{MODEL}.lora.rank={megatrons} is read by Megatron only, and this run trains with "
            f"FSDP; set {MODEL}.lora_rank={megatrons}"
        )
    lora = lora_of(config)
    if lora is None:
        if start := model.get("lora_adapter_path"):
            raise ValueError(
                f"{MODEL}.lora_adapter_path={start} with {MODEL}.lora_rank=0 would train all "
                f"weights; set {MODEL}.lora_rank to the rank of that adapter"
            )
        return
    _check_group(model)
    _check_quantization(config, lora)
    if model.get("target_parameters"):
        raise ValueError(
            f"{MODEL}.target_parameters={model.target_parameters}: adapters go to linear layers; "
            f"set it to null and name layers in {MODEL}.target_modules"
        )
    if model.get("lora_adapter_path"):
        _check_start(Path(model.lora_adapter_path), lora)
    _check_targets(lora)
    _check_transfer(config, lora)


def _check_numbers(model: DictConfig) -> None:
    rank, alpha = model.get("lora_rank", 0), model.get("lora_alpha")
    if type(rank) is not int or rank < 0:
        raise ValueError(
            f"{MODEL}.lora_rank={rank} is no rank; give a number above 0, or 0 to train all weights"
        )
    merged = (model.get("lora") or {}).get("merge", False)
    if rank > ENGINE_RANKS[-1] and not merged:
        raise ValueError(
            f"{MODEL}.lora_rank={rank} is above {ENGINE_RANKS[-1]}, the largest rank of vLLM; set "
            f"that or less, or {MODEL}.lora.merge=true"
        )
    if rank and (type(alpha) is not int or alpha < 1):
        raise ValueError(
            f"{MODEL}.lora_alpha={alpha}: the change of a layer is scaled by alpha / rank; give a "
            f"whole number above 0, such as the rank, {rank}"
        )


def refuse_quantized(path: Path, values: Mapping[str, Any]) -> None:
    """Refuse a model whose config.json says that its weights are quantized.

    Raises:
        ValueError: with what to use instead.
    """
    if quantization := values.get("quantization_config"):
        method = quantization.get("quant_method", "a quantized format")
        raise ValueError(
            f"{MODEL}.path={path} holds weights in {method}, and quantized weights cannot be "
            "trained here, not with adapters (QLoRA) either; give the model in bfloat16, and "
            f"{MODEL}.lora_rank=64 where memory is short"
        )


def refuse_merged_experts(config: DictConfig, num_experts: int) -> None:
    """Refuse merged adapters for a model with experts.

    Weights of all other runs go to the engine expert by expert (``unfuse_moe_params``). veRL 0.9.1
    sends merged ones as they are in memory, and vLLM 0.24 reads fused experts transposed.

    Args:
        num_experts: of a layer of the model; 0 where it has none.

    Raises:
        ValueError: with the fix.
    """
    lora = lora_of(config)
    if num_experts and lora is not None and lora.merged:
        is_async = config.trainer.v1.trainer_mode in (COLOCATED, SEPARATE)
        mode = f" with trainer.v1.trainer_mode={SYNC}" if is_async else ""
        raise ValueError(
            f"{MODEL}.lora.merge=True, and the model has {num_experts} experts a layer: veRL sends "
            "their merged weights in a layout that vLLM does not load; set "
            f"{MODEL}.lora.merge=false{mode}, or {MODEL}.lora_rank=0 to train all weights"
        )


def _names(value: Any) -> str | tuple[str, ...]:
    if value is None:
        return ()
    if isinstance(value, str):
        return ALL_LINEAR if value.lower() == ALL_LINEAR else value
    return tuple(value)


def _selects(names: str | tuple[str, ...], name: str) -> bool:
    """As peft: a text is a regular expression for the full name, a list has names or endings."""
    if isinstance(names, str):
        return re.fullmatch(names, name) is not None
    return any(name == each or name.endswith(f".{each}") for each in names)


def _adapter_config(folder: Path) -> dict[str, Any]:
    file = folder.expanduser() / "adapter_config.json"
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{MODEL}.lora_adapter_path={folder}: {file.name} cannot be read ({error}); give a "
            "folder that `vapo export --adapter` or peft has written"
        ) from error
    if not isinstance(content, dict):
        raise ValueError(f"{MODEL}.lora_adapter_path={folder}: {file.name} holds no JSON object")
    return content


def _check_start(folder: Path, lora: Lora) -> None:
    """veRL uses the adapter's whole config, but passes rank and alpha of the settings to vLLM."""
    stated = _adapter_config(folder)
    others = {name: stated[name] for name in UNSUPPORTED if stated.get(name) not in (None, "none")}
    others = {name: value for name, value in others.items() if value}
    if (start := stated.get("init_lora_weights")) not in PLAIN_STARTS:
        others["init_lora_weights"] = start
    if stated.get("peft_type", "LORA") != "LORA":
        others["peft_type"] = stated["peft_type"]
    if others:
        raise ValueError(
            f"the adapter in {MODEL}.lora_adapter_path={folder} has {others}, which is not "
            f"supported; merge it into the model with peft, and set {MODEL}.path to the result"
        )
    for key, name, value in (
        ("lora_rank", "r", lora.rank),
        ("lora_alpha", "lora_alpha", lora.alpha),
    ):
        if stated.get(name) != value:
            raise ValueError(
                f"{MODEL}.{key}={value}, and the adapter in {MODEL}.lora_adapter_path={folder} has "
                f"{name}={stated.get(name)}; set {MODEL}.{key}={stated.get(name)}"
            )


@cache
def _group_defaults() -> DictConfig:
    return compose_base().actor_rollout_ref.model.lora


def _check_group(model: DictConfig) -> None:
    for name, value in model.lora.items():
        if name not in READ_BY_FSDP and value != _group_defaults().get(name):
            raise ValueError(
                f"{MODEL}.lora.{name}={value} is read by Megatron only, and this run trains with "
                f"FSDP; delete it, and set {MODEL}.lora_rank, lora_alpha, target_modules and "
                "exclude_modules"
            )


def _check_quantization(config: DictConfig, lora: Lora) -> None:
    given = config.actor_rollout_ref.model.get("override_config") or {}
    keys = {
        f"{MODEL}.override_config.{name}": given.get(name)
        for name in ("quantization_config", "load_in_4bit", "load_in_8bit")
    }
    if not lora.merged:
        keys[f"{ROLLOUT}.quantization"] = config.actor_rollout_ref.rollout.quantization
    for key, value in keys.items():
        if value:
            raise ValueError(
                f"{key}={value} with {MODEL}.lora_rank: adapters on a quantized model (QLoRA) are "
                "not supported; set it to null. The frozen weights take 4 bytes a parameter over "
                "all ranks; more ranks, or actor_rollout_ref.actor.fsdp_config.offload_policy=true"
            )


def _check_targets(lora: Lora) -> None:
    """Adapters on decoder layers only: vLLM applies none to the vision tower, and veRL merges none
    outside the layers that FSDP wraps. Both skip them silently."""
    try:
        names = [name.format(block) for block in range(MAX_LAYERS) for name in VISION_LAYERS]
        vision = [name for name in names if lora.adapts(f"model.visual.{name}")]
        others = [name for name in OTHER_LAYERS if lora.adapts(name) and lora.targets != ALL_LINEAR]
    except re.error as error:
        raise ValueError(
            f"{MODEL}.target_modules={lora.targets!r} or {MODEL}.exclude_modules="
            f"{lora.excluded!r} is no regular expression: {error}; correct it, or give a list"
        ) from error
    shown = lora.targets if isinstance(lora.targets, str) else list(lora.targets)
    if vision:
        raise ValueError(
            f"{MODEL}.target_modules={shown} also selects layers of the vision tower, as "
            f"visual.{vision[0]}: the engine would run without their adapters; add "
            f"\"{MODEL}.exclude_modules='{NOT_VISION}'\""
        )
    if others:
        raise ValueError(
            f"{MODEL}.target_modules={shown} selects {others[0]}: adapters go to the linear layers "
            f"of decoder layers; leave it out, or set {MODEL}.target_modules={ALL_LINEAR}"
        )
    if not any(lora.num_adapted().values()):
        raise ValueError(
            f"{MODEL}.target_modules={shown} with {MODEL}.exclude_modules={lora.excluded or None} "
            f"selects no linear layer of the language model; set target_modules={ALL_LINEAR}, or "
            f"some of {', '.join(name.rpartition('.')[2] for name in DECODER_LINEAR)}"
        )


def _check_transfer(config: DictConfig, lora: Lora) -> None:
    rollout = config.actor_rollout_ref.rollout
    if lora.merged:
        if rollout.dtype in ("float32", "float"):
            raise ValueError(
                f"{MODEL}.lora.merge=True with {ROLLOUT}.dtype={rollout.dtype}: veRL sends merged "
                "weights in bfloat16, so that the engine would not run the trained policy; set "
                f"{MODEL}.lora.merge=false, or {ROLLOUT}.dtype=bfloat16"
            )
        return
    if (backend := rollout.checkpoint_engine.backend) != "naive":
        raise ValueError(
            f"{ROLLOUT}.checkpoint_engine.backend={backend} with {MODEL}.lora_rank={lora.rank}: it "
            f"sends no adapters; set {MODEL}.lora.merge=true"
        )
    if (mode := config.trainer.v1.trainer_mode) in (COLOCATED, SEPARATE):
        raise ValueError(
            f"trainer.v1.trainer_mode={mode} with {MODEL}.lora_rank={lora.rank}: verl 0.9.1 looks "
            "for the adapter before a request waits for new weights, and would answer without it; "
            f"set {MODEL}.lora.merge=true, or the mode to {SYNC}"
        )
    if str(rollout.load_format).startswith("dummy"):
        raise ValueError(
            f"{ROLLOUT}.load_format={rollout.load_format} with {MODEL}.lora_rank={lora.rank}: the "
            "engine gets adapters only, and has to read the base weights itself; set "
            f"{ROLLOUT}.load_format=safetensors, or {MODEL}.lora.merge=true"
        )
