"""Checks that run before Ray, the model and the engine start.

A run starts a dozen processes and takes a minute to its first token. Each check turns a stack trace
from one of them into one line that names the key, the value and the fix.
"""

import importlib
import importlib.util
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vapo_verl.config import COLOCATED, SEPARATE, SYNC, AnchorConfig, VapoConfig, vapo_config
from vapo_verl.data.control_tokens import PROCESSOR_FILES, image_processor_settings
from vapo_verl.lora import check_lora, lora_of, refuse_merged_experts, refuse_quantized
from vapo_verl.methods import method_of
from vapo_verl.rollout.correction import BYPASS_LOSS, bypasses, check_rollout_correction
from vapo_verl.rollout.engine_args import (
    ENGINE,
    check_engine_arguments,
    processor_max_pixels,
    refuse_lifted_limit,
)
from vapo_verl.rollout.model_families import (
    captured_layers,
    check_family,
    check_heads,
    check_weight_sync,
    num_experts,
    read_config,
    read_hub_config,
)
from vapo_verl.rollout.reward_function import check_reward_function, function_path
from vapo_verl.rollout.reward_judge import check_reward_judge
from vapo_verl.settings import LACKING

if TYPE_CHECKING:
    from vapo_verl.anchors import AnchorQuestion
    from vapo_verl.anchors.question import Tokenizer
    from vapo_verl.data.cells import RowRules
    from vapo_verl.data.run_files import RunData

PASSES = {
    "actor.ppo_micro_batch_size_per_gpu": (
        "actor.use_dynamic_bsz",
        "actor.ppo_max_token_len_per_gpu",
    ),
    "ref.log_prob_micro_batch_size_per_gpu": (
        "ref.log_prob_use_dynamic_bsz",
        "ref.log_prob_max_token_len_per_gpu",
    ),
    "rollout.log_prob_micro_batch_size_per_gpu": (
        "rollout.log_prob_use_dynamic_bsz",
        "rollout.log_prob_max_token_len_per_gpu",
    ),
}
"""Key of a pass's micro-batch size in sequences -> keys of the switch to sizing by tokens, and of
the tokens that a rank has memory for. All are under ``actor_rollout_ref``."""

OPTIMIZER: Mapping[str, Any] = {
    "optimizer": "AdamW",
    "optimizer_impl": "torch.optim",
    "betas": [0.9, 0.999],
    "override_optimizer_config": None,
}
"""Keys that decide which optimizer a rank builds, with veRL's defaults. They are under
``actor_rollout_ref.actor.optim``."""


class LossNumber(NamedTuple):
    """Limits of a number outside which a policy loss fails at the first update."""

    key: str
    """Below ``actor_rollout_ref.actor``."""
    above: float
    at_most: float = math.inf
    or_null: bool = False
    """null is veRL's default."""
    more: str = ""
    """End of the message."""


_DUAL_CLIP = LossNumber("clip_ratio_c", 1, more="; a large one, such as 1e6, turns dual clip off")
_TRUNCATION = LossNumber("clip_ratio_c", 0, more="; a large one, such as 1e6, truncates nothing")
LOSS_NUMBERS: Mapping[str, tuple[LossNumber, ...]] = {
    **dict.fromkeys(("vanilla", BYPASS_LOSS), (_DUAL_CLIP,)),
    **dict.fromkeys(("dppo_tv", "dppo_kl"), (_TRUNCATION,)),
    "clip_cov": (LossNumber("policy_loss.clip_cov_ratio", 0, 1, or_null=True),),
    "kl_cov": (LossNumber("policy_loss.kl_cov_ratio", 0, 1, or_null=True),),
    "dro": (LossNumber("policy_loss.dro_beta", 0),),
    "sapo": (LossNumber("tau_pos", 0), LossNumber("tau_neg", 0)),
}
"""Numbers that a ``policy_loss.loss_mode`` reads."""
GROUP_VALUES = ("reward", "acc", "format")
"""Values that every response has, usable as the metric of a group filter."""
VERL_AGENT_LOOPS = ("single_turn_agent", "tool_agent")
WEIGHTS_MODULE = "vapo_verl.rollout.weight_sync"
VOCABULARY_FILES = ("tokenizer.json", "vocab.json")
"""A tokenizer's vocabulary: a model folder has one of them."""


class InputError(ValueError):
    """An error in the config or the data that the user has to fix."""


def check_run(config: DictConfig) -> list[str]:
    """Check a composed config and the files it names; returns notes to print.

    Raises:
        InputError: the first problem found.
    """
    try:
        for check in CHECKS:
            check.run(config)
        notes = check_model(config)
        check_answer_words(config)
        return [*notes, *check_data(config)]
    except (ValueError, OSError, OmegaConfBaseException) as error:
        raise InputError(str(error)) from error


def _settings(config: DictConfig) -> VapoConfig:
    return vapo_config(OmegaConf.to_container(config.vapo, resolve=True))  # type: ignore[arg-type]


def check_normalization(config: DictConfig) -> None:
    """Refuse contradictory settings of advantage normalisation.

    Raises:
        ValueError: veRL's key, which follows ours, was set to something else; decoupled
            normalisation with a KL in the reward or another estimator; attention weights with
            another estimator; or an estimator that ignores ``normalize_by_std``.
    """
    advantage, algorithm = _settings(config).advantage, config.algorithm
    is_decoupled = advantage.normalization == "decoupled"
    for setting, is_set, default in (
        ("normalization=decoupled", is_decoupled, "total"),
        (f"attention_coef={advantage.attention_coef:g}", advantage.attention_coef > 0, "0"),
    ):
        if is_set and algorithm.adv_estimator != "vapo":
            raise ValueError(
                f"algorithm.adv_estimator={algorithm.adv_estimator} ignores "
                f"vapo.advantage.{setting}; set algorithm.adv_estimator=vapo, or {default}"
            )
    if is_decoupled and algorithm.use_kl_in_reward:
        raise ValueError(
            "algorithm.use_kl_in_reward=True adds a part to the reward that is neither "
            "accuracy nor perception, and vapo.advantage.normalization=decoupled has no place "
            "for it; set actor_rollout_ref.actor.use_kl_loss=true instead, or total"
        )
    if algorithm.adv_estimator == "grpo_vectorized" and not advantage.normalize_by_std:
        raise ValueError(
            "algorithm.adv_estimator=grpo_vectorized ignores vapo.advantage.normalize_by_std=False "
            "and divides by the deviations of groups; set algorithm.adv_estimator=grpo"
        )
    ours = advantage.normalize_by_std
    verls = config.algorithm.norm_adv_by_std_in_grpo
    if ours != verls:
        raise ValueError(
            f"algorithm.norm_adv_by_std_in_grpo={verls} contradicts "
            f"vapo.advantage.normalize_by_std={ours}, which it follows; leave it out and set "
            f"vapo.advantage.normalize_by_std={str(verls).lower()}"
        )


def check_estimator(config: DictConfig) -> None:
    """Refuse a critic, and an estimator that needs values that no trainer here computes.

    Raises:
        ValueError: ``critic.enable``, or the estimator.
    """
    enabled, estimator = config.critic.enable, config.algorithm.adv_estimator
    if estimator == "grpo_passk":
        raise ValueError(
            f"algorithm.adv_estimator={estimator} refuses a group of one response, and veRL pads a "
            "step in which responses failed with such groups; set algorithm.adv_estimator=grpo"
        )
    if not enabled and estimator not in LACKING:
        return
    asked = f"critic.enable={enabled}" if enabled else f"algorithm.adv_estimator={estimator}"
    needs = "trains a critic" if enabled else f"reads {LACKING[estimator]}"
    raise ValueError(
        f"{asked} {needs}, and there is none here: rewards are compared within the group of a "
        "prompt; leave critic.enable out, and set algorithm.adv_estimator=vapo"
    )


def check_policy_loss(config: DictConfig) -> None:
    """Refuse a policy loss that cannot be computed as its settings say.

    Raises:
        ValueError: ``geo_mean``, which has no place for token weights; a number out of
            :data:`LOSS_NUMBERS`; ``sapo`` with an aggregation that it ignores; sums over a response
            that are divided by the longest response of a micro-batch.
    """
    actor = config.actor_rollout_ref.actor
    mode, aggregation = actor.policy_loss.loss_mode, actor.loss_agg_mode
    for number in LOSS_NUMBERS.get(mode, ()):
        _check_loss_number(actor, number, mode)
    if mode == "sapo" and aggregation != "seq-mean-token-mean":
        raise ValueError(
            f"actor_rollout_ref.actor.loss_agg_mode={aggregation}: loss_mode=sapo takes the mean "
            "over a response's tokens, then over responses; set seq-mean-token-mean"
        )
    if aggregation == "seq-mean-token-sum-norm" and actor.loss_scale_factor is None:
        raise ValueError(
            "actor_rollout_ref.actor.loss_scale_factor=null: "
            f"actor_rollout_ref.actor.loss_agg_mode={aggregation} would divide by the longest "
            "response of each micro-batch; set '${data.max_response_length}', as recipe dr_grpo"
        )
    if mode == "geo_mean":
        raise ValueError(
            f"actor_rollout_ref.actor.policy_loss.loss_mode={mode}: it takes the mean of a "
            "response's advantages, so that weights of tokens have no effect, and of a "
            "micro-batch's responses, so that its gradient grows with the number of micro-batches; "
            "set gspo, whose ratio is that of a response, too"
        )


def _check_loss_number(actor: DictConfig, number: LossNumber, mode: str) -> None:
    value = OmegaConf.select(actor, number.key)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if (value is None and number.or_null) or (
        is_number and number.above < value <= number.at_most and value < math.inf
    ):
        return
    limit = "" if number.at_most == math.inf else f", {number.at_most:g} at most"
    raise ValueError(
        f"actor_rollout_ref.actor.{number.key}={value}: loss_mode={mode} cannot compute with it; "
        f"set a number above {number.above:g}{limit}{number.more}"
    )


def lacks_flash_attention(config: DictConfig) -> bool:
    """Whether a GPU run would have to train without flash-attn."""
    return config.trainer.device != "cpu" and importlib.util.find_spec("flash_attn") is None


def check_attention_kernel(config: DictConfig) -> None:
    """Refuse a GPU run without flash-attn, unless ``vapo.allow_sdpa``.

    Raises:
        ValueError: flash-attn is missing; the message says how to install it and how to opt out.
    """
    if not lacks_flash_attention(config) or config.vapo.allow_sdpa:
        return
    raise ValueError(
        f"trainer.device={config.trainer.device} and vapo.allow_sdpa=False, but flash-attn is not "
        "installed: it packs sequences, without it they are padded and the recipe's micro-batches "
        "run out of memory. Install it with `make setup EXTRA=gpu FLASH_ATTN=1`, which needs nvcc, "
        "or use the image of docker/Dockerfile (vapo-verl:gpu), which has it; or set "
        "vapo.allow_sdpa=true to train with sdpa on padded sequences, two in a micro-batch, slower"
    )


def check_padding(config: DictConfig) -> None:
    """Bound the tokens of a micro-batch whose sequences are padded.

    veRL pads a micro-batch of B sequences to its longest one, so that it holds up to
    B * (max_prompt_length + max_response_length) tokens. These must not exceed the tokens that the
    pass is declared to have memory for, ``*_max_token_len_per_gpu``. Sizing by tokens
    (``use_dynamic_bsz``) bounds nothing here: veRL counts the tokens before it pads.

    Raises:
        ValueError: the first pass that is not bounded, with its key, the value and the fix.
    """
    policy, data = config.actor_rollout_ref, config.data
    if policy.model.use_remove_padding:
        return
    longest = data.max_prompt_length + data.max_response_length
    for size_key, (dynamic_key, limit_key) in PASSES.items():
        if size_key.startswith("ref.") and not has_reference_model(config):
            continue
        size, limit = OmegaConf.select(policy, size_key), OmegaConf.select(policy, limit_key)
        fits = limit // longest
        if OmegaConf.select(policy, dynamic_key):
            raise ValueError(
                f"actor_rollout_ref.{dynamic_key}=True with "
                "actor_rollout_ref.model.use_remove_padding=False: micro-batches are cut by their "
                "tokens before padding, which bounds no memory; set it to false and "
                f"actor_rollout_ref.{size_key}={max(fits, 1)}"
            )
        if size is not None and size * longest > limit:
            fewer = f"{size_key}={fits}" if fits else "shorter lengths"
            raise ValueError(
                f"actor_rollout_ref.{size_key}={size}: that many sequences, padded to "
                f"data.max_prompt_length + data.max_response_length = {longest}, are "
                f"{size * longest} tokens, above actor_rollout_ref.{limit_key}={limit}; "
                f"set {fewer}, or {limit_key}={size * longest} where a rank has the memory"
            )


def check_engine_images(config: DictConfig) -> None:
    """Refuse limits under which the engine would resize an image that the agent loop has resized.

    The loop resizes an image to ``data.min_pixels`` .. ``data.max_pixels`` and lets the processor
    count its tokens under the model's own limits. The engine processes the resized image again, but
    under ``mm_processor_kwargs.max_pixels`` if that is set. It must not resize the image: otherwise
    trainer and engine silently use different numbers of image tokens.

    ``data.mm_processor_kwargs`` go to both, but are read differently: with one of ``min_pixels``
    and ``max_pixels``, the processor of transformers 5.9 resizes nothing, and vLLM does.

    Raises:
        ValueError: an image could come out of the loop larger than the engine's limit, the
            engine's limit is above the model's own, or a size is given to a processor directly.
    """
    key = f"{ENGINE}.mm_processor_kwargs"
    options, data = OmegaConf.select(config, key) or {}, config.data
    for name in ("min_pixels", "size"):
        if options.get(name) is not None:
            raise ValueError(
                f"{key}.{name}={options[name]}: the engine alone would resize images by it; remove "
                "it and set data.min_pixels and data.max_pixels"
            )
    for name in ("min_pixels", "max_pixels", "size"):
        if (given := (data.get("mm_processor_kwargs") or {}).get(name)) is not None:
            raise ValueError(
                f"data.mm_processor_kwargs.{name}={given}: engine and trainer would resize images "
                "by it differently; remove it and set data.min_pixels and data.max_pixels"
            )
    limit, own = options.get("max_pixels"), processor_max_pixels(config)
    if limit is None or limit == own:  # as in the loop
        return
    refuse_lifted_limit(config, own)
    if data.max_pixels is None or data.max_pixels > limit:
        raise ValueError(
            f"{key}.max_pixels={limit} is below data.max_pixels={data.max_pixels}: the engine "
            f"would shrink images that the agent loop did not; set data.max_pixels={limit} or less"
        )
    largest = max_enlarged_pixels(data.min_pixels or 0)
    if largest > limit:
        raise ValueError(
            f"data.min_pixels={data.min_pixels} is too close to {key}.max_pixels={limit}: enlarged "
            f"and rounded up to whole patches, an image can take {largest} pixels; lower "
            "data.min_pixels, or raise data.max_pixels"
        )


def max_enlarged_pixels(min_pixels: int) -> int:
    """Most pixels of an image that was enlarged to ``min_pixels``: each side is rounded up to whole
    image tokens of at most 32 pixels, and one side is at most 200 times the other."""
    side, long = 32, math.sqrt(200 * min_pixels)
    return math.floor((long + side) * (min_pixels / long + side)) if min_pixels else 0


def check_engine(config: DictConfig) -> None:
    """Refuse engine settings that anchors, or checkpoints, cannot work with.

    Raises:
        ValueError: the first such setting.
    """
    rollout = config.actor_rollout_ref.rollout
    if rollout.name != "vllm":
        raise ValueError(
            f"actor_rollout_ref.rollout.name={rollout.name}: anchors need vllm; set vllm"
        )
    if rollout.disaggregation.enabled:
        raise ValueError(
            "actor_rollout_ref.rollout.disaggregation.enabled=True: veRL starts servers of its own "
            "for prefill and decoding, which answer no probes and receive no weights here; set it "
            "to false"
        )
    if rollout.data_parallel_size > 1 and _settings(config).probes_claims:
        raise ValueError(
            f"actor_rollout_ref.rollout.data_parallel_size={rollout.data_parallel_size}: vLLM "
            "sends a probe to any of its engines, and only one has the response's prefix in its "
            "cache; set 1, which makes each tensor_model_parallel_size GPUs a server of their own"
        )
    if rollout.agent.default_agent_loop in VERL_AGENT_LOOPS:
        raise ValueError(
            f"actor_rollout_ref.rollout.agent.default_agent_loop={rollout.agent.default_agent_loop}"
            ": veRL's own loops ask no claims; leave it out, or give a subclass of "
            "vapo_verl.rollout.agent_loop.VapoAgentLoop a name of its own"
        )
    if rollout.full_determinism:
        raise ValueError(
            "actor_rollout_ref.rollout.full_determinism=True gives all probes of a response one "
            "request id; set it to false and vapo.seeded_sampling=true"
        )
    if not rollout.calculate_log_probs:
        raise ValueError(
            "actor_rollout_ref.rollout.calculate_log_probs=False: saved rollouts and metrics "
            "have the engine's log probabilities; set true"
        )
    if rollout.logprobs_mode != "processed_logprobs":
        raise ValueError(
            f"actor_rollout_ref.rollout.logprobs_mode={rollout.logprobs_mode}: p(yes) is read from "
            "log probabilities normalised over yes and no; set processed_logprobs"
        )
    if config.actor_rollout_ref.actor.checkpoint.async_save:
        raise ValueError(
            "actor_rollout_ref.actor.checkpoint.async_save=True: a checkpoint that is still being "
            "written cannot be marked complete; set it to false"
        )


def check_trainer_mode(config: DictConfig) -> None:
    """Refuse a trainer of another package, and settings that the chosen trainer cannot use.

    Raises:
        ValueError: the first of these problems, with the fix.
    """
    mode, policy = config.trainer.v1.trainer_mode, config.actor_rollout_ref
    debug = config.vapo.debug
    if debug.save_rollouts or debug.train_only:  # both run in a synchronous trainer of their own
        mode = SYNC
    if mode not in (SYNC, COLOCATED, SEPARATE):
        raise ValueError(
            f"trainer.v1.trainer_mode={mode} is not a trainer of this package; set {SYNC}, "
            f"{COLOCATED} or {SEPARATE}"
        )
    _check_sampler(config.trainer.v1, mode)
    if mode != SYNC and config.vapo.rollout.restart_servers:
        raise ValueError(
            f"vapo.rollout.restart_servers=True with trainer.v1.trainer_mode={mode}: only the "
            f"responses of one step can be asked again; set it to false, or the mode to {SYNC}"
        )
    if mode == SEPARATE:
        _check_separate_pool(config)
        return
    if not policy.hybrid_engine:
        raise ValueError(
            f"actor_rollout_ref.hybrid_engine=False with trainer.v1.trainer_mode={mode}: its "
            f"engine is on the actor's GPUs; set it to true, or the mode to {SEPARATE}"
        )
    rollout = policy.rollout
    each = engine_size(rollout)
    if ranks_of(config) % each:
        raise ValueError(
            f"actor_rollout_ref.rollout.tensor_model_parallel_size="
            f"{rollout.tensor_model_parallel_size}: {ranks_of(config)} GPUs "
            "(trainer.n_gpus_per_node * trainer.nnodes) do not make engines of "
            f"{each} (with the pipeline's and data's); set a divisor"
        )
    if config.vapo.rollout.restart_servers and each > config.trainer.n_gpus_per_node:
        raise ValueError(
            f"vapo.rollout.restart_servers=True with engines of {each} GPUs, on nodes of "
            f"{config.trainer.n_gpus_per_node}: a server of several nodes is not started again; "
            "set it to false, or a smaller tensor_model_parallel_size"
        )
    if policy.rollout.nnodes:
        raise ValueError(
            f"actor_rollout_ref.rollout.nnodes={policy.rollout.nnodes} with "
            f"trainer.v1.trainer_mode={mode}: GPUs for rollout alone would stay idle; set it to "
            f"0, or the mode to {SEPARATE}"
        )


def _check_sampler(settings: DictConfig, mode: str) -> None:
    """Refuse what veRL would assert at the trainer's start, or fail at in the first prompts."""
    key, threshold = "trainer.v1.sampler", settings.sampler.max_off_policy_threshold
    if threshold is not None and (type(threshold) is not int or threshold < 1):
        raise ValueError(
            f"{key}.max_off_policy_threshold={threshold} is no number of steps; give 1 or more, or "
            "null for responses of any age"
        )
    if (strategy := settings.sampler.max_off_policy_strategy) not in ("drop", "wait"):
        raise ValueError(f"{key}.max_off_policy_strategy={strategy} is not known; use drop or wait")
    own = mode.removeprefix(f"{SYNC}_")
    ahead = settings.get(own, {}).get("num_warmup_batches", 0)
    is_number = isinstance(ahead, int | float) and not isinstance(ahead, bool)
    if not (is_number and 0 <= ahead < math.inf):
        raise ValueError(
            f"trainer.v1.{own}.num_warmup_batches={ahead} is no number of batches; give 0 or more, "
            "as 1 or 0.5"
        )


def _check_separate_pool(config: DictConfig) -> None:
    trainer, policy = config.trainer, config.actor_rollout_ref
    rollout, settings = policy.rollout, trainer.v1.separate_async
    mode = f"with trainer.v1.trainer_mode={SEPARATE}"
    gpus = rollout.nnodes * rollout.n_gpus_per_node
    each = engine_size(rollout)
    if gpus < each or gpus % each:
        raise ValueError(
            f"actor_rollout_ref.rollout.nnodes={rollout.nnodes} and "
            f"rollout.n_gpus_per_node={rollout.n_gpus_per_node} {mode}: {gpus} GPUs do not make "
            f"engines of {each} (tensor_model_parallel_size and the like); give rollout GPUs of "
            "its own, and trainer.n_gpus_per_node the others"
        )
    slots, wanted = config.ray_kwargs.ray_init.get("num_gpus"), gpus + ranks_of(config)
    starts_ray = trainer.nnodes == rollout.nnodes == 1  # of several nodes it joins a cluster
    if starts_ray and slots is not None and slots < wanted:
        raise ValueError(
            f"ray_kwargs.ray_init.num_gpus={slots} {mode}: {ranks_of(config)} ranks of the actor "
            f"and {gpus} of the rollout need {wanted}"
        )
    if policy.hybrid_engine or settings.hybrid_rollout.enable_switch:
        raise ValueError(
            f"actor_rollout_ref.hybrid_engine={policy.hybrid_engine} and separate_async."
            f"hybrid_rollout.enable_switch={settings.hybrid_rollout.enable_switch} {mode}: the "
            "responses to a prompt stay on the server that has its images, so engines cannot come "
            "and go on the actor's GPUs; set both to false"
        )
    step = settings.parameter_sync_step * policy.actor.ppo_mini_batch_size
    if config.data.train_batch_size != step:
        raise ValueError(
            f"data.train_batch_size={config.data.train_batch_size} {mode} must be "
            f"separate_async.parameter_sync_step * actor.ppo_mini_batch_size = {step}"
        )
    engine, fsdp = rollout.checkpoint_engine, policy.actor.fsdp_config
    if engine.backend == "naive" or engine.custom_backend_module != WEIGHTS_MODULE:
        raise ValueError(
            f"actor_rollout_ref.rollout.checkpoint_engine.backend={engine.backend}, "
            f"custom_backend_module={engine.custom_backend_module} {mode}: set backend to nccl, or "
            f"to zmq without NCCL, and custom_backend_module={WEIGHTS_MODULE}"
        )
    if engine.backend == "nccl" and lacks_cupy():
        raise ValueError(
            f"actor_rollout_ref.rollout.checkpoint_engine.backend=nccl {mode}: cupy is not "
            "installed; pip install cupy-cuda12x or cupy-cuda13x, as torch.version.cuda says, or "
            "set backend=zmq, which goes through host memory and is slower"
        )
    lora = lora_of(config)
    if lora and not lora.merged:
        raise ValueError(
            f"actor_rollout_ref.model.lora_rank={lora.rank} {mode}: veRL sends "
            "the weights below the adapter to another pool, and never the adapter; set "
            "actor_rollout_ref.model.lora.merge=true"
        )
    if settings.parameter_sync_step > 1 and not bypasses(config):
        for key in ("param_offload", "offload_policy"):
            if fsdp[key]:
                raise ValueError(
                    f"actor_rollout_ref.actor.fsdp_config.{key}=True {mode}: the weights of the "
                    "step's beginning are kept as a copy of those on the GPU, where they are not; "
                    f"set {key}=false, or separate_async.parameter_sync_step=1"
                )
        if not fsdp.get("reshard_after_forward", True):
            raise ValueError(
                f"actor_rollout_ref.actor.fsdp_config.reshard_after_forward=False {mode}: the "
                "weights of the step's beginning are restored between two passes, into shards that "
                "a pass does not gather again; set it to true, or "
                "separate_async.parameter_sync_step=1"
            )
        if policy.actor.strategy == "fsdp":
            raise ValueError(
                f"actor_rollout_ref.actor.strategy=fsdp {mode}: the weights of the step's "
                "beginning are restored between two passes, and FSDP 1 keeps the outermost weights "
                "gathered after a pass, so that an update would use older ones; set fsdp2, or "
                "separate_async.parameter_sync_step=1"
            )


def engine_gpus(config: DictConfig) -> int:
    """GPUs reserved for engines; 0 if the engines share those of the actor."""
    rollout = config.actor_rollout_ref.rollout
    is_separate = config.trainer.v1.trainer_mode == SEPARATE
    return rollout.nnodes * rollout.n_gpus_per_node if is_separate else 0


def engine_size(rollout: DictConfig) -> int:
    """GPUs of one engine."""
    size: int = rollout.tensor_model_parallel_size * rollout.pipeline_model_parallel_size
    return size * rollout.data_parallel_size


def lacks_cupy() -> bool:
    """Whether cupy is missing, which veRL needs to transfer weights by NCCL."""
    return importlib.util.find_spec("cupy") is None


def ranks_of(config: DictConfig) -> int:
    """Ranks of the actor on all nodes."""
    return config.trainer.n_gpus_per_node * config.trainer.nnodes


def shard_ranks_of(config: DictConfig) -> int:
    """Ranks that share one copy of the actor's state: ``fsdp_size``, or all."""
    size, ranks = config.actor_rollout_ref.actor.fsdp_config.fsdp_size, ranks_of(config)
    return int(size) if 0 < size < ranks else ranks


def has_reference(config: DictConfig) -> bool:
    """Whether a run needs a reference policy: only a KL term does."""
    return bool(config.actor_rollout_ref.actor.use_kl_loss or config.algorithm.use_kl_in_reward)


def has_reference_model(config: DictConfig) -> bool:
    """Whether the reference is a model of its own, with the settings under ``ref``. With LoRA it is
    the actor without its adapters, whose log probs are computed with those under ``rollout``."""
    return has_reference(config) and lora_of(config) is None


def check_batches(config: DictConfig) -> None:
    """Refuse batches that do not split into mini-batches, or over the ranks.

    Raises:
        ValueError: the first number that does not divide, or too few responses to compare.
    """
    actor = config.actor_rollout_ref.actor
    prompts, mini, n = (
        config.data.train_batch_size,
        actor.ppo_mini_batch_size,
        config.actor_rollout_ref.rollout.n,
    )
    if n < 2:
        raise ValueError(
            f"actor_rollout_ref.rollout.n={n}: an advantage compares responses to one prompt; "
            "set 2 or more"
        )
    if prompts % mini:
        raise ValueError(
            f"data.train_batch_size={prompts} is not a multiple of "
            f"actor_rollout_ref.actor.ppo_mini_batch_size={mini}; change one of them"
        )
    given = config.data.get("gen_batch_size")
    is_drawn_singly = config.trainer.v1.trainer_mode != SYNC or _filters_groups(config)
    if given and prompts % given and not is_drawn_singly:
        raise ValueError(
            f"data.gen_batch_size={given} does not divide data.train_batch_size={prompts}, and a "
            "step is made of whole batches of the loader; set a divisor, or null"
        )
    replicas, named = _replicas(config, "actor")
    if mini * n % replicas:
        raise ValueError(
            f"actor_rollout_ref.actor.ppo_mini_batch_size={mini} with rollout.n={n}: {mini * n} "
            f"responses do not split over {named} "
            "(trainer.n_gpus_per_node * trainer.nnodes); change one of them"
        )


def shards_of(config: DictConfig, role: str) -> int:
    """Ranks that share a sequence in the actor or the reference (``ref``)."""
    part = config.actor_rollout_ref[role]
    groups = (part, part.fsdp_config)
    return max(group.ulysses_sequence_parallel_size or 1 for group in groups)


def _replicas(config: DictConfig, role: str) -> tuple[int, str]:
    """Number of ranks, or groups of ranks, that hold different sequences; and their name.

    Raises:
        ValueError: the ranks do not make groups of that size.
    """
    shards, ranks = shards_of(config, role), ranks_of(config)
    if ranks % shards:
        raise ValueError(
            f"actor_rollout_ref.{role}.ulysses_sequence_parallel_size={shards} does not divide the "
            f"{ranks} ranks (trainer.n_gpus_per_node * trainer.nnodes); set a divisor, as 1"
        )
    if shards == 1:
        return ranks, f"{ranks} ranks"
    return ranks // shards, f"{ranks // shards} groups of {shards} ranks"


def _role(key: str) -> str:
    return "ref" if key.startswith("ref.") else "actor"


def _filters_groups(config: DictConfig) -> bool:
    return bool((config.algorithm.get("filter_groups") or {}).get("enable"))


def check_group_filter(config: DictConfig) -> None:
    """Refuse a group filter by a value that some responses lack: veRL would end the first step.

    Raises:
        ValueError: with the usable values.
    """
    metric = (config.algorithm.get("filter_groups") or {}).get("metric")
    if not _filters_groups(config) or metric in GROUP_VALUES or function_path(config):
        return
    key = f"algorithm.filter_groups.metric={metric}"
    choice = f"use one of {', '.join(GROUP_VALUES)}"
    if metric == "perception":
        raise ValueError(f"{key}: responses without probes have none; {choice}")
    raise ValueError(f"{key} is no value of a response; {choice}")


def check_micro_batches(config: DictConfig) -> None:
    """Refuse micro-batches at which a run would fail midway.

    Raises:
        ValueError: the first size that does not divide the responses of a rank, or limit of tokens
            below the longest sequence.
    """
    policy = config.actor_rollout_ref
    by_tokens = policy.actor.use_dynamic_bsz
    if policy.rollout.log_prob_use_dynamic_bsz != by_tokens:
        raise ValueError(
            "actor_rollout_ref.rollout.log_prob_use_dynamic_bsz="
            f"{policy.rollout.log_prob_use_dynamic_bsz} and actor_rollout_ref.actor."
            f"use_dynamic_bsz={by_tokens}: veRL makes the micro-batches of both passes in the same "
            "way; set them to the same value"
        )
    for key, (switch, limit) in PASSES.items():
        if key.startswith("ref.") and not has_reference_model(config):
            continue
        if OmegaConf.select(policy, switch):
            _check_token_limit(config, limit)
        else:
            _check_divides(config, key)


def _check_divides(config: DictConfig, key: str) -> None:
    """Refuse micro-batches of `key` sequences where veRL would assert."""
    policy = config.actor_rollout_ref
    replicas, named = _replicas(config, _role(key))
    # log probs cover a whole step, but failed responses shorten it by mini-batches
    size = policy.actor.ppo_mini_batch_size * policy.rollout.n
    micro = OmegaConf.select(policy, key)
    if micro is not None and size // replicas % micro:
        raise ValueError(
            f"actor_rollout_ref.{key}={micro} does not divide the {size // replicas} responses "
            f"that each of {named} holds; set a divisor of {size // replicas}"
        )


def _check_token_limit(config: DictConfig, limit: str) -> None:
    """Refuse micro-batches of fewer tokens than the longest sequence, where veRL would assert."""
    policy = config.actor_rollout_ref
    longest = config.data.max_prompt_length + config.data.max_response_length
    shards = shards_of(config, _role(limit))
    tokens = OmegaConf.select(policy, limit)
    if tokens * shards < longest:
        raise ValueError(
            f"actor_rollout_ref.{limit}={tokens}"
            f"{f' on {shards} ranks of a sequence' if shards > 1 else ''} is below "
            f"data.max_prompt_length + data.max_response_length = {longest}: the first "
            f"response of that length would end the run; set {-(-longest // shards)} or more"
        )


def check_validation(config: DictConfig) -> None:
    """Refuse several greedy responses to a validation prompt: they would all be the same.

    Raises:
        ValueError: sampling that is asked for at temperature 0.
    """
    sampling, key = config.actor_rollout_ref.rollout.val_kwargs, "actor_rollout_ref.rollout"
    if sampling.temperature:
        return
    fix = f"set {key}.val_kwargs.temperature, as 1.0"
    if sampling.do_sample:
        raise ValueError(f"{key}.val_kwargs.do_sample=True is greedy at temperature 0; {fix}")
    if sampling.n > 1:
        raise ValueError(
            f"{key}.val_kwargs.n={sampling.n} asks for equal responses at temperature 0; {fix}, "
            "or n to 1"
        )


def check_optimizer(config: DictConfig) -> None:
    """Refuse an optimizer that cannot be built: build it as a rank does, unless it is the default.

    Raises:
        ValueError: it cannot be imported, or does not take its settings.
    """
    optim, key = config.actor_rollout_ref.actor.optim, "actor_rollout_ref.actor.optim"
    if all(optim.get(name) == default for name, default in OPTIMIZER.items()):
        return  # without torch
    import torch
    from verl.workers.config.optimizer import build_optimizer

    name, library = optim.optimizer, optim.optimizer_impl
    try:
        module = importlib.import_module(library)
    except (ImportError, ValueError) as error:
        raise ValueError(
            f"{key}.optimizer_impl={library!r} cannot be imported ({error}); install it, or set "
            "torch.optim"
        ) from error
    if not isinstance(getattr(module, name, None), type):
        classes = (kind for kind in vars(module).values() if isinstance(kind, type))
        known = [kind.__name__ for kind in classes if issubclass(kind, torch.optim.Optimizer)]
        raise ValueError(
            f"{key}.optimizer={name!r} is no class of {library}; use one of "
            f"{', '.join(sorted(known))}"
        )
    try:
        build_optimizer([torch.nn.Parameter(torch.zeros(2, 2))], optim)
    except Exception as error:
        raise ValueError(
            f"{key}: {library}.{name} does not take its settings ({error}); correct "
            "weight_decay, betas or override_optimizer_config"
        ) from error


def check_chat_template(config: DictConfig) -> None:
    """Refuse a file's name as chat template: every prompt would be that name.

    Raises:
        ValueError: with the value, and where to give the text.
    """
    template = config.actor_rollout_ref.model.get("custom_chat_template")
    if template is not None and "{" not in str(template):
        raise ValueError(
            f"actor_rollout_ref.model.custom_chat_template={template!r} is the text of no "
            "template, and no file is read; give the text in a recipe, below "
            "`custom_chat_template: |`"
        )


def check_context(config: DictConfig) -> None:
    """Refuse a context without room for prompt, response, and claim with its answer.

    Raises:
        ValueError: ``max_model_len`` is too small.
    """
    settings = _settings(config)
    room = config.actor_rollout_ref.rollout.max_model_len
    question = settings.anchors.max_claim_tokens + 1 if settings.probes_claims else 0
    needed = config.data.max_prompt_length + config.data.max_response_length + question
    if room is None or room < needed:
        raise ValueError(
            f"actor_rollout_ref.rollout.max_model_len={room} is below data.max_prompt_length + "
            f"data.max_response_length + vapo.anchors.max_claim_tokens + 1 = {needed}; "
            f"set {needed} or more"
        )


def check_method(config: DictConfig) -> None:
    """Refuse a method with options out of range, or whose inputs are not computed.

    Raises:
        ValueError: the key, the value and the fix.
    """
    settings = _settings(config)
    method, chosen = method_of(settings.method), f"vapo.method.name={settings.method.name}"
    if method.needs_attention and not settings.attention.enabled:
        raise ValueError(f"{chosen} reads visual attention; set vapo.attention.enabled=true")
    if method.needs_attention and settings.advantage.attention_coef > 0:
        raise ValueError(
            f"{chosen} and vapo.advantage.attention_coef={settings.advantage.attention_coef} both "
            "weigh tokens by their visual attention; set the coefficient to 0, or the name to none"
        )
    if method.needs_actor_log_probs and bypasses(config):
        raise ValueError(
            f"{chosen} needs the actor's old log probs on the images as they are, and "
            "algorithm.rollout_correction.bypass_mode=true takes the engine's; set it to false"
        )
    correction = config.algorithm.get("rollout_correction") or {}
    for name in ("rollout_is", "rollout_rs"):
        if method.changes_images and correction.get(name):
            raise ValueError(
                f"{chosen} writes responses from changed images, and "
                f"algorithm.rollout_correction.{name}={correction[name]} compares them with the "
                "actor on the images as they are: it would take back what the method does; set "
                f"{name} to null"
            )


def check_first_pass(config: DictConfig) -> None:
    """Refuse LoRA if the first forward pass of a step is the reference's, without adapters.

    FSDP 2 takes the precision of gradients from what the first forward pass trains, and without
    adapters that is nothing (torch 2.11).

    Raises:
        ValueError: the keys that cause it, and the fix.
    """
    adapts = lora_of(config) is not None
    if adapts and config.trainer.device != "cpu" and bypasses(config) and has_reference(config):
        raise ValueError(
            "algorithm.rollout_correction.bypass_mode=True with actor_rollout_ref.model.lora_rank "
            "and a KL to the reference: the first forward pass would be that without adapters, and "
            "FSDP 2 would reduce gradients in the wrong precision from then on; set "
            "bypass_mode=false"
        )


def check_best_checkpoint(config: DictConfig) -> None:
    """Refuse ``vapo.keep_best`` unless every validated step is saved.

    Raises:
        ValueError: ``trainer.test_freq`` is no multiple of ``trainer.save_freq``.
    """
    metric, trainer = _settings(config).keep_best, config.trainer
    if not metric or (
        min(trainer.save_freq, trainer.test_freq) > 0 and trainer.test_freq % trainer.save_freq == 0
    ):
        return
    raise ValueError(
        f"vapo.keep_best={metric} with trainer.save_freq={trainer.save_freq} and "
        f"trainer.test_freq={trainer.test_freq}: a validated step without a checkpoint cannot be "
        f"kept; set both above 0, and trainer.test_freq to a multiple of trainer.save_freq"
    )


class Check(NamedTuple):
    """One check of a composed config alone, without the files it names."""

    name: str
    """Its topic, as the doctor lists it."""
    run: Callable[[DictConfig], None]
    """Raises ValueError with the key, the value and the fix."""


CHECKS: tuple[Check, ...] = (
    Check("estimator", check_estimator),
    Check("normalization", check_normalization),
    Check("policy loss", check_policy_loss),
    Check("attention kernel", check_attention_kernel),
    Check("engine settings", check_engine),
    Check("engine arguments", check_engine_arguments),
    Check("trainer mode", check_trainer_mode),
    Check("batches", check_batches),
    Check("group filter", check_group_filter),
    Check("micro-batches", check_micro_batches),
    Check("validation", check_validation),
    Check("optimizer", check_optimizer),
    Check("padding", check_padding),
    Check("images of the engine", check_engine_images),
    Check("context", check_context),
    Check("chat template", check_chat_template),
    Check("method", check_method),
    Check("best checkpoint", check_best_checkpoint),
    Check("LoRA", check_lora),
    Check("LoRA's first pass", check_first_pass),
    Check("rollout correction", check_rollout_correction),
    Check("reward function", check_reward_function),
    Check("judge", check_reward_judge),
)
"""In the order of a run's start, which stops at the first problem; the doctor reports all."""


def check_model(config: DictConfig) -> list[str]:
    """Refuse a model that is absent, or of a family that cannot be trained here.

    Of a hub name that is not in this machine's cache only config.json is read, from the hub.

    Returns:
        A note if that file cannot be had here: :func:`check_model_of_node` reads it again.

    Raises:
        ValueError: what is wrong with ``actor_rollout_ref.model.path``, a layer that has no visual
            attention, or ranks over which its attention heads do not split.
    """
    from vapo_verl.data.control_tokens import model_folder

    name = config.actor_rollout_ref.model.path
    path = Path(name).expanduser()
    if not path.exists():
        if name.startswith((".", "/", "~")) or name.count("/") > 1:  # a hub name is OWNER/MODEL
            made = "; `python -m vapo_verl.digits.model random` makes random ones"
            raise ValueError(
                f"actor_rollout_ref.model.path={path} does not exist; "
                f"give a model folder or a hub name{made if 'random' in path.name else ''}"
            )
        if model_folder(name) is None:
            try:
                _check_model_config(config, read_hub_config(name), path)
            except OSError as error:
                return [
                    f"{name} is not on this machine, and its config.json cannot be had from the "
                    f"hub ({' '.join(str(error).split())[:200]}): its family is checked when the "
                    "trainer's process starts"
                ]
            return []
    path = model_folder(name) or path
    if not (path / "config.json").is_file():
        raise ValueError(
            f"actor_rollout_ref.model.path={path} holds no config.json; give a model folder"
        )
    _check_model_config(config, read_config(path), path)
    if not OmegaConf.select(config, "actor_rollout_ref.model.tokenizer_path"):
        _check_tokenizer_files(path, name)
    return []


def _check_tokenizer_files(folder: Path, name: str) -> None:
    """Refuse a folder that was saved without processor or tokenizer: weights alone."""
    if not Path(name).expanduser().is_dir():
        return  # the hub's cache: what is missing is downloaded
    for files in (PROCESSOR_FILES, VOCABULARY_FILES):
        if not any((folder / file).is_file() for file in files):
            raise ValueError(
                f"actor_rollout_ref.model.path={name} holds no {' and no '.join(files)}; copy "
                "them from the model that it was trained from: "
                f"AutoProcessor.from_pretrained(BASE).save_pretrained({str(folder)!r})"
            )


def _check_model_config(config: DictConfig, values: Mapping[str, Any], path: Path) -> None:
    name = config.actor_rollout_ref.model.path
    refuse_quantized(path, values)
    check_family(values, f"actor_rollout_ref.model.path={name}")
    check_weight_sync(values, config.trainer.device, f"actor_rollout_ref.model.path={name}")
    refuse_merged_experts(config, num_experts(values))
    attention = _settings(config).attention
    if attention.enabled:
        captured_layers(values, attention.layers)
    tensor_key = "actor_rollout_ref.rollout.tensor_model_parallel_size"
    check_heads(values, OmegaConf.select(config, tensor_key), tensor_key)
    for role in ("actor", "ref") if has_reference_model(config) else ("actor",):
        key = f"actor_rollout_ref.{role}.ulysses_sequence_parallel_size"
        check_heads(values, shards_of(config, role), key)


def check_model_of_node(config: DictConfig) -> None:
    """:func:`check_model` in the trainer's process, which may see another cache or network.

    Raises:
        InputError: what is wrong with the model.
    """
    try:
        check_model(config)
    except ValueError as error:
        raise InputError(str(error)) from error


def check_answer_words(config: DictConfig) -> None:
    """Run the checks of :func:`anchor_question` if claims are asked and the tokenizer is local: in
    a folder, or in the cache of a hub name.

    Raises:
        ValueError: the words or the limit, and what to set.
    """
    from vapo_verl.data.control_tokens import model_folder

    settings, folder = _settings(config), model_folder(config.actor_rollout_ref.model.path)
    if not settings.probes_claims or folder is None:
        return
    from transformers import AutoTokenizer

    anchor_question(AutoTokenizer.from_pretrained(folder), settings.anchors)


def anchor_question(tokenizer: "Tokenizer", anchors: AnchorConfig) -> "AnchorQuestion":
    """Tokenize a run's question for its model.

    Raises:
        ValueError: an answer word has several tokens, or the question leaves none for a claim.
    """
    from vapo_verl.anchors import bind_question

    question = bind_question(tokenizer, anchors.question, anchors.yes_words, anchors.no_words)
    alone = len(question.token_ids(""))
    if alone >= anchors.max_claim_tokens:
        raise ValueError(
            f"vapo.anchors.max_claim_tokens={anchors.max_claim_tokens}: vapo.anchors.question has "
            f"{alone} tokens without a claim, so that none could be asked; set {alone + 32} or more"
        )
    return question


def check_data(config: DictConfig) -> Iterator[str]:
    """Read the data files; yields a line per file, and warnings about all of them.

    Raises:
        ValueError: with the invalid rows or file; or there are too few rows for a batch.
    """
    from vapo_verl.data.run_files import check_run_files, files_of, require_loadable
    from vapo_verl.evaluation.benchmarks.validation_rows import is_benchmark_file

    yield from check_run_files(run_data(config))
    for path in filter(is_benchmark_file, files_of(_plain_files(config), "val_files")):
        from vapo_verl.evaluation.benchmarks.benchmark_command import read_with_rule

        require_loadable(Path(config.trainer.default_local_dir), "trainer.default_local_dir")
        try:
            rows, rule = read_with_rule(path)
        except ValueError as error:
            raise ValueError(f"data.val_files: {str(error).removeprefix('DATA: ')}") from error
        yield f"{path}: {len(rows)} rows of a benchmark, graded by the rule {rule.name}"


def _plain_files(config: DictConfig) -> Any:
    files = config.data.val_files
    return files if isinstance(files, str) else OmegaConf.to_container(files)


def run_data(config: DictConfig) -> "RunData":
    """What the composed config requires of its data files.

    Raises:
        ValueError: no files are given.
    """
    from vapo_verl.data.run_files import KEYS, RunData, files_of
    from vapo_verl.evaluation.benchmarks.validation_rows import is_benchmark_file

    data, settings = config.data, _settings(config)
    batch = max(data.train_batch_size, data.get("gen_batch_size") or 0)
    named = "train_batch_size" if batch == data.train_batch_size else "gen_batch_size"
    plain: dict[str, Any] = OmegaConf.to_container(data, resolve=True)  # type: ignore[assignment]
    files = {key: files_of(plain[key], key) for key in KEYS}
    parquet = [path for path in files["val_files"] if not is_benchmark_file(path)]
    return RunData(
        files={**files, "val_files": parquet},
        needed={
            "train_files": (batch, f"data.{named}={batch}"),
            "val_files": (int(parquet == files["val_files"]), "a validation"),
        },
        max_samples={key: plain.get(f"{key.split('_')[0]}_max_samples") or -1 for key in KEYS},
        rules=row_rules(config),
        min_claims=settings.anchors.num_anchors,
        model=config.actor_rollout_ref.model.path,
        max_prompt_length=data.max_prompt_length,
        filters_long=bool(data.filter_overlong_prompts),
        limits={name: plain.get(name) for name in ("min_pixels", "max_pixels")},
        chat_template=config.actor_rollout_ref.model.get("custom_chat_template"),
        template_options=plain.get("apply_chat_template_kwargs") or {},
        processor_options=plain.get("mm_processor_kwargs") or {},
        plain_think_tokens=settings.data.plain_think_tokens,
        draws_subset=bool(plain.get("shuffle")),
        subset_seed=plain.get("seed"),
    )


def row_rules(config: DictConfig) -> "RowRules":
    """Rules for the rows: from the tokenizer, the engine's image limit, and the judge."""
    from vapo_verl.data.cells import RowRules
    from vapo_verl.data.control_tokens import ControlTokens, model_folder, tokenizer_tokens

    folder = model_folder(config.actor_rollout_ref.model.path)
    tokens = tokenizer_tokens(folder) if folder is not None else None
    limit_key = "actor_rollout_ref.rollout.limit_images"  # veRL takes it before the engine's key
    limit = OmegaConf.select(config, limit_key)
    if limit is None:
        limit_key = f"{ENGINE}.limit_mm_per_prompt.image"
        limit = OmegaConf.select(config, limit_key)
    return RowRules(
        controls=ControlTokens() if tokens is None else ControlTokens(tokens),
        refuse_controls=_settings(config).data.control_tokens == "refuse",
        max_images=limit if isinstance(limit, int) else None,
        max_images_key=limit_key,
        limits={name: config.data.get(name) for name in ("min_pixels", "max_pixels")},
        resize_factor=_resize_factor(folder),
        refuse_judged=not (function_path(config) or _settings(config).reward.judge.model),
        refuse_media=_settings(config).probes_claims,
        video_column=config.data.video_key,
        audio_column=config.data.audio_key,
    )


def _resize_factor(folder: Path | None) -> int:
    """Side of an image token in pixels, from the processor's files; default: Qwen2.5-VL's."""
    for stated in image_processor_settings(folder):
        if stated.get("patch_size"):
            return int(stated["patch_size"] * stated.get("merge_size", 2))
    return 28
