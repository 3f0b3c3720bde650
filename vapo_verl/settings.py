"""Checks of all settings of a run, veRL's among them: types, finite numbers, limits, known keys.

veRL reads most of its keys unchecked, minutes after the start.
:mod:`~vapo_verl.config` checks those under ``vapo.*`` as well, where they are read.
"""

import difflib
import importlib
import math
import pkgutil
import re
import shlex
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from itertools import takewhile
from pathlib import Path
from typing import Any, NamedTuple

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vapo_verl.config import VapoConfig, flat, is_within, section, value_at
from vapo_verl.hydra_config import base_values

MAX_COUNT = 10**9
"""A larger number of rows, tokens, ranks or steps is a typing error."""
HEADER = "# @package _global_"
_HEADER = re.compile(r"#\s*@package\b\s*:?\s*_global_\s*$")


class Number(NamedTuple):
    """Limits of a number."""

    low: float
    high: float = MAX_COUNT
    whole: bool = True
    optional: bool = False
    """null is allowed."""


_COUNT, _COUNT_OR_NULL, _SIZE = Number(1), Number(1, optional=True), Number(0)
_WORKERS = Number(1, 4096)
_ANY = Number(-MAX_COUNT)
_FRACTION = Number(0, 1, whole=False)
_POLICY = "actor_rollout_ref"
NUMBERS: Mapping[str, Number] = {
    **dict.fromkeys(("trainer.n_gpus_per_node", "trainer.nnodes", "trainer.total_epochs"), _COUNT),
    **dict.fromkeys(("trainer.save_freq", "trainer.test_freq"), _ANY),
    "trainer.total_training_steps": _COUNT_OR_NULL,
    "trainer.max_actor_ckpt_to_keep": Number(-MAX_COUNT, optional=True),
    "trainer.critic_warmup": _SIZE,
    **dict.fromkeys(
        ("data.train_batch_size", "data.max_prompt_length", "data.max_response_length"), _COUNT
    ),
    **dict.fromkeys(
        ("data.gen_batch_size", "data.val_batch_size", "data.min_pixels", "data.max_pixels"),
        _COUNT_OR_NULL,
    ),
    **dict.fromkeys(("data.train_max_samples", "data.val_max_samples"), _ANY),
    "data.dataloader_num_workers": Number(0, 1024),
    **dict.fromkeys(("reward.num_workers", f"{_POLICY}.rollout.agent.num_workers"), _WORKERS),
    "transfer_queue.backend.SimpleStorage.num_data_storage_units": _WORKERS,
    "ray_kwargs.ray_init.num_cpus": _COUNT_OR_NULL,
    "ray_kwargs.ray_init.num_gpus": Number(0, optional=True),
    "data.seed": Number(0, 2**63 - 1, optional=True),
    **dict.fromkeys(
        (
            *(f"{_POLICY}.actor.ppo_mini_batch_size", f"{_POLICY}.actor.ppo_epochs"),
            f"{_POLICY}.actor.ppo_max_token_len_per_gpu",
            *(f"{_POLICY}.rollout.n", f"{_POLICY}.rollout.val_kwargs.n"),
            f"{_POLICY}.rollout.tensor_model_parallel_size",
            f"{_POLICY}.rollout.data_parallel_size",
            f"{_POLICY}.rollout.pipeline_model_parallel_size",
            *(f"{_POLICY}.rollout.max_num_seqs", f"{_POLICY}.rollout.max_num_batched_tokens"),
        ),
        _COUNT,
    ),
    **dict.fromkeys(
        (
            f"{_POLICY}.actor.ppo_micro_batch_size_per_gpu",
            f"{_POLICY}.ref.log_prob_micro_batch_size_per_gpu",
            f"{_POLICY}.rollout.log_prob_micro_batch_size_per_gpu",
            f"{_POLICY}.rollout.max_model_len",
        ),
        _COUNT_OR_NULL,
    ),
    f"{_POLICY}.rollout.gpu_memory_utilization": Number(0.01, 1, whole=False),
    **dict.fromkeys(
        (f"{_POLICY}.rollout.top_p", f"{_POLICY}.rollout.val_kwargs.top_p"),
        Number(0.001, 1, whole=False),
    ),
    **dict.fromkeys(
        (f"{_POLICY}.rollout.top_k", f"{_POLICY}.rollout.val_kwargs.top_k"), Number(-1)
    ),
    # 0 is greedy: all responses to a prompt are the same, and log probs would be divided by it.
    # vLLM raises smaller ones to 0.01.
    f"{_POLICY}.rollout.temperature": Number(0.01, whole=False),
    f"{_POLICY}.actor.optim.lr_warmup_steps_ratio": _FRACTION,
    **dict.fromkeys(
        (
            *(f"{_POLICY}.actor.optim.lr", f"{_POLICY}.actor.optim.weight_decay"),
            *(f"{_POLICY}.actor.kl_loss_coef", f"{_POLICY}.actor.grad_clip"),
            *(f"{_POLICY}.actor.clip_ratio", f"{_POLICY}.rollout.val_kwargs.temperature"),
        ),
        Number(0, whole=False),
    ),
    **dict.fromkeys(
        (f"{_POLICY}.actor.clip_ratio_low", f"{_POLICY}.actor.clip_ratio_high"),
        Number(0, whole=False, optional=True),
    ),
}
"""Keys with limits. All other keys are compared with the type of their default."""
PATHS = ("data.train_files", "data.val_files")
TEXTS = ("trainer.default_local_dir", "actor_rollout_ref.model.path")
OPTIONAL_PATHS = (
    *("reward.custom_reward_function.path", "custom_reward_function.path"),
    *("trainer.resume_from_path", f"{_POLICY}.model.lora_adapter_path"),
)
"""Paths that may be null."""
_KL = ("kl", "k1", "abs", "mse", "k2", "low_var_kl", "k3")
_KL_OR_STRAIGHT_THROUGH = (*_KL, *(f"{name}+" for name in _KL))
CHOICES: Mapping[str, tuple[str, ...]] = {
    "trainer.resume_mode": ("auto", "disable", "resume_path"),
    "trainer.device": ("cpu", "cuda", "npu"),
    "data.truncation": ("error", "left", "right", "middle"),
    "algorithm.kl_penalty": _KL_OR_STRAIGHT_THROUGH,
    f"{_POLICY}.actor.kl_loss_type": _KL_OR_STRAIGHT_THROUGH,
    f"{_POLICY}.actor.strategy": ("fsdp", "fsdp2"),
    f"{_POLICY}.actor.loss_agg_mode": (
        *("token-mean", "token-sum", "seq-mean-token-sum", "seq-mean-token-mean"),
        "seq-mean-token-sum-norm",
    ),
    f"{_POLICY}.actor.optim.lr_scheduler_type": ("constant", "cosine"),
    f"{_POLICY}.rollout.scheduling_policy": ("fcfs", "priority"),
    f"{_POLICY}.rollout.dtype": ("auto", "bfloat16", "float16", "half", "float32", "float"),
}
ESTIMATOR, POLICY_LOSS = "algorithm.adv_estimator", f"{_POLICY}.actor.policy_loss.loss_mode"
EXTERNAL_LIB = f"{_POLICY}.model.external_lib"
"""A module, or a list of them, that veRL imports in every process before it looks up a name."""
LACKING = {
    "gae": "the values of a critic",
    "remax": "the reward of a greedy response to each prompt",
    "optimal_token_baseline": "the sum of squared probabilities at each token",
    "tir_optimal_token_baseline": "the sum of squared probabilities at each token",
    "gdpo": "the parts of a reward as columns",
}
"""Estimator -> what it reads that veRL's V1 trainers, or this package, do not compute."""
VERL_ESTIMATORS = (
    *("grpo", "grpo_vectorized", "grpo_passk", "rloo", "rloo_vectorized", "opo", "gpg"),
    *("reinforce_plus_plus", "reinforce_plus_plus_baseline"),
    *LACKING,
)
REGISTERED: Mapping[str, tuple[str, ...]] = {
    ESTIMATOR: ("vapo", *VERL_ESTIMATORS),
    POLICY_LOSS: (
        *("vanilla", "gspo", "sapo", "gpg", "clip_cov", "kl_cov", "geo_mean", "dro", "cispo"),
        *("dppo_tv", "dppo_kl", "bypass_mode"),
    ),
    f"{_POLICY}.rollout.load_format": (
        *("auto", "safetensors", "dummy", "hf", "pt", "npcache", "mistral", "fastsafetensors"),
        *("sharded_state", "tensorizer", "bitsandbytes", "runai_streamer"),
        *("runai_streamer_sharded", "instanttensor", "modelexpress"),
    ),
}
"""Names of veRL's and vLLM's registries: :data:`EXTERNAL_LIB` may add some."""
_OWN_REWARD = (
    "the agent loop computes rewards, without a reward manager; leave it out, or set "
    "reward.custom_reward_function.path (docs/rewards.md)"
)
_OLD_KEY = "nothing reads this older key; leave it out"
_ONE_TURN = "a response has one turn and no tools; leave it out"
_OWN_SAMPLER = "the trainer uses this package's replay buffer; leave it out"
UNREAD: Mapping[str, str] = {
    "reward.reward_model.enable": (
        "a reward model would replace the reward of VAPO; leave it out, or let a model compare "
        "answers (vapo.reward.judge, docs/rewards.md)"
    ),
    **dict.fromkeys(
        (
            *("reward.reward_manager.name", "reward.reward_manager.source"),
            *("reward.reward_manager.module.path", "reward.reward_kwargs"),
            "reward.sandbox_fusion.url",
        ),
        _OWN_REWARD,
    ),
    **dict.fromkeys(
        ("reward_model.reward_manager", "reward_model.reward_kwargs", "sandbox_fusion.url"),
        _OWN_REWARD,
    ),
    **dict.fromkeys(("reward_model.enable", "reward_model.model.path"), _OLD_KEY),
    **dict.fromkeys(
        (
            f"{_POLICY}.rollout.multi_turn.enable",
            f"{_POLICY}.rollout.multi_turn.tool_config_path",
            f"{_POLICY}.rollout.multi_turn.function_tool_path",
        ),
        _ONE_TURN,
    ),
    f"{_POLICY}.rollout.do_sample": (
        "responses are sampled; set actor_rollout_ref.rollout.temperature, or 0.01 for nearly "
        "greedy ones"
    ),
    f"{_POLICY}.rollout.repetition_penalty": (
        "veRL's agent loop asks for 1.0 in every request; leave it out"
    ),
    "data.prompt_key": (
        "the checks, the claims and benchmark files have the column 'prompt'; rename the column in "
        "the files, and leave the key out"
    ),
    "data.image_key": (
        "the checks, the claims and benchmark files have the column 'images'; rename the column in "
        "the files, and leave the key out"
    ),
    "data.reward_fn_key": (
        "rewards and metrics read the column 'data_source'; rename the column in the files, and "
        "leave the key out"
    ),
    "algorithm.use_pf_ppo": "no trainer here reads it; leave it out",
    "trainer.default_hdfs_dir": (
        "nothing copies checkpoints there; mount it and set trainer.default_local_dir"
    ),
    "trainer.remove_previous_ckpt_in_save": (
        "veRL would remove the only complete checkpoint before the next one is complete; set "
        "trainer.max_actor_ckpt_to_keep=1"
    ),
    **dict.fromkeys(
        (
            "trainer.v1.sampler.sync_refill_failed_groups",
            "trainer.v1.sampler.custom_sampler.path",
        ),
        _OWN_SAMPLER,
    ),
}
"""Key of veRL that would have no effect here, or a wrong one -> why, and what to do instead. Its
default and null are allowed, and false if the default is null."""
NEUTRAL = {f"{_POLICY}.rollout.repetition_penalty": 1.0}
"""Defaults of such keys that veRL's own config does not list."""
SEVERAL_TYPES = ("algorithm.rollout_correction.rollout_is_threshold",)
"""Keys whose values may have other types than their default, checked where they are used."""
CHECKPOINT_PARTS = ("model", "optimizer", "extra", "hf_model")
NULL_GROUPS = (
    *("custom_reward_function", "reward.custom_reward_function", "reward_model"),
    *("algorithm.rollout_correction", f"{_POLICY}.model.lora", f"{_POLICY}.model.override_config"),
)
"""Groups of settings, and values that are groups, that null turns off."""
_ENVIRONMENT = "ray_kwargs.ray_init.runtime_env.env_vars"
_SECRET = re.compile(r"(?i)(^|_)(api_?key|key|token|secret|password)$")
_OPEN = ("ray_kwargs", "hydra")
"""Groups whose keys are arguments of another library."""
_SIMILAR = 0.8
_STEP = re.compile(r"global_step_\d+")


def check_settings(config: DictConfig) -> None:
    """Refuse values that no run can use.

    Raises:
        ValueError: the first one, with the key, the value and the fix.
    """
    for key in TEXTS:
        value = _value_of(config, key)
        if not isinstance(value, str) or not value.strip() or "\0" in value:
            raise ValueError(f"{key}={value!r} is no path; give one")
    _check_groups(config)
    for key in OPTIONAL_PATHS:
        value = _value_of(config, key)
        if value is not None and not isinstance(value, str):
            raise ValueError(f"{key}={value!r} is no path; give one, or null")
    for key, allowed in CHOICES.items():
        _check_choice(key, _value_of(config, key), allowed)
    libraries = _value_of(config, EXTERNAL_LIB)
    _check_libraries(libraries)
    if not libraries:
        for key, allowed in REGISTERED.items():
            _check_registered(key, _value_of(config, key), allowed)
    path = _value_of(config, "trainer.resume_from_path")
    if _value_of(config, "trainer.resume_mode") == "resume_path" and not _is_checkpoint(path):
        raise ValueError(
            f"trainer.resume_from_path={path!r} is no checkpoint, and trainer.resume_mode="
            "resume_path; give the path of a folder global_step_N"
        )
    loggers = _value_of(config, "trainer.logger")
    if not isinstance(loggers, str):
        names = list(loggers) if OmegaConf.is_list(loggers) else [loggers]
        if not all(isinstance(name, str) for name in names):
            raise ValueError(f"trainer.logger={loggers}: give names as [tensorboard,wandb]")
    for key in PATHS:
        _check_files(key, _value_of(config, key))
    for key, number in NUMBERS.items():
        _check_number(key, _value_of(config, key), number)
    values, defaults = _plain(config, resolve=True), base_values()
    for key, value in flat(values).items():
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, float) and not math.isfinite(item):
                raise ValueError(f"{key}={value!r}: give a finite number")
    for key, default in defaults.items():
        if key not in SEVERAL_TYPES:
            _check_type(key, value_at(values, key), default)
    for key, reason in UNREAD.items():
        value, default = value_at(values, key), defaults.get(key, NEUTRAL.get(key))
        if value not in (default, None) and not (value is False and default is None):
            raise ValueError(f"{key}={value!r}: {reason}")
    for name in value_at(values, _ENVIRONMENT) or ():
        if _SECRET.search(str(name)):
            raise ValueError(
                f"{_ENVIRONMENT}.{name}: config.yaml, the log and trackers would show it; leave it "
                "out, and export it before `ray start` on every node, or before this command where "
                "it starts Ray"
            )
    for name in ("save_contents", "load_contents"):
        _check_parts(f"{_POLICY}.actor.checkpoint.{name}", values)
    section(VapoConfig, values["vapo"], "vapo")


def _is_checkpoint(path: object) -> bool:
    return (
        isinstance(path, str)
        and Path(path).expanduser().is_dir()
        and _STEP.fullmatch(Path(path).name) is not None
    )


def _value_of(config: DictConfig, key: str) -> Any:
    try:
        return OmegaConf.select(config, key)
    except OmegaConfBaseException as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{key}: {reason}; correct the reference, or give a value") from error


def _check_files(key: str, value: Any) -> None:
    files = [value] if isinstance(value, str) else value
    if not OmegaConf.is_list(files) and not isinstance(files, list):
        raise ValueError(f"{key}={value!r}: give a file, or a list of files as [a, b]")
    for file in files:
        if not isinstance(file, str) or not file.strip():
            raise ValueError(f"{key}: {file!r} is no file; give the path of a parquet file")
    if not files:
        raise ValueError(f"{key}=[]: give the path of a parquet file")


def _check_number(key: str, value: Any, number: Number) -> None:
    if value is None and number.optional:
        return
    what = "whole number" if number.whole else "number"
    kinds = (int,) if number.whole else (int, float)
    null = ", or null" if number.optional else ""
    if isinstance(value, bool) or not isinstance(value, kinds):
        raise ValueError(
            f"{key}={value!r} is a {type(value).__name__}; give a {what} from {number.low}{null}"
        )
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{key}={value!r}: give a finite number")
    if not number.low <= value <= number.high:
        raise ValueError(
            f"{key}={_short(value)} is out of range; give a {what} from {number.low} to "
            f"{number.high}{null}"
        )


def _check_groups(config: DictConfig) -> None:
    """Refuse a group of settings that is missing, or that is a plain value."""
    groups = {parent for key in base_values() for parent in _parents(key)}
    for group in sorted(groups):
        value = _value_of(config, group)
        if OmegaConf.is_dict(value) or (value is None and group in NULL_GROUPS):
            continue
        found = "null" if value is None else repr(value)
        first = min(_children(group, base_values()))
        raise ValueError(
            f"{group}={found} is no group of settings; leave it out, and set what is in it, as "
            f"{group}.{first}=VALUE"
        )


def _check_choice(key: str, value: Any, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise ValueError(f"{key}={value!r} is not known; use one of {', '.join(allowed)}")


def _check_registered(key: str, value: Any, allowed: Sequence[str]) -> None:
    try:
        _check_choice(key, value, allowed)
    except ValueError:
        usable = ", ".join(name for name in allowed if name not in LACKING)
        own = f"; a name that a package of yours registers needs {EXTERNAL_LIB}=PACKAGE"
        raise ValueError(
            f"{key}={value!r} is not known; use one of {usable}"
            f"{own if key in (ESTIMATOR, POLICY_LOSS) else ''}"
        ) from None


def _check_libraries(value: Any) -> None:
    """Check each entry as veRL reads it: one module name. A text is one entry, even with commas."""
    if value is None:
        return
    for name in value if OmegaConf.is_list(value) else [value]:
        if not isinstance(name, str) or "," in name or not name.strip():
            raise ValueError(
                f"{EXTERNAL_LIB}={value!r}: {name!r} is no module; give the name of one, several "
                "as [first,second], or null"
            )
        try:
            find_module(name)
        except ModuleNotFoundError as error:
            raise ValueError(f"{EXTERNAL_LIB}={value!r}: {error}; {FIND_PACKAGE}") from None


FIND_PACKAGE = "correct it, or install the package or set PYTHONPATH to its folder, on every node"


def find_module(name: str) -> ModuleSpec:
    """Find a user's module without importing it or its parent packages.

    The spec's ``origin`` is its file; None for a folder without ``__init__.py``.

    Raises:
        ModuleNotFoundError: there is none; the message says which part of the name is missing.
    """
    if not all(part.isidentifier() for part in name.split(".")):
        raise ModuleNotFoundError(f"{name!r} is no name of a module")
    importlib.invalidate_caches()
    top, *below = name.split(".")
    try:
        spec = find_spec(top)
    except ValueError:  # it is loaded, without a spec
        spec = None
    if spec is None:
        raise ModuleNotFoundError(f"no package {top!r} can be imported here")
    for part in below:
        found = _find_below(spec, part)
        if found is None:
            raise ModuleNotFoundError(f"no module {part!r} is in {spec.name!r}")
        spec = found
    return spec


def _find_below(package: ModuleSpec, name: str) -> ModuleSpec | None:
    """As an import: modules come before folders without ``__init__.py``, which are merged."""
    spec, folders = ModuleSpec(f"{package.name}.{name}", None, is_package=True), list[str]()
    for place in package.submodule_search_locations or ():
        finder = pkgutil.get_importer(place)
        found = finder.find_spec(spec.name) if finder is not None else None
        if found is not None and found.loader is not None:
            return found
        if found is not None:
            folders += found.submodule_search_locations or ()
    spec.submodule_search_locations = folders
    return spec if folders else None


def _check_type(key: str, value: Any, default: Any) -> None:
    """Refuse a type other than the default's: number, bool, text (or texts), list or group."""
    is_reference = isinstance(default, str) and default.startswith("${")
    if value is None or default is None or is_reference:
        return
    kind = type(value).__name__
    if isinstance(default, Mapping) or isinstance(value, Mapping):
        if isinstance(default, Mapping) != isinstance(value, Mapping):
            what = "settings, as {name: value}" if isinstance(default, Mapping) else "one value"
            raise ValueError(f"{key}={value!r} is a {kind}; give {what}")
    elif isinstance(default, bool):
        if not isinstance(value, bool) and value not in (0, 1):
            raise ValueError(f"{key}={value!r} is a {kind}; give true or false")
    elif isinstance(default, int | float):
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"{key}={value!r} is a {kind}; give a number")
        if abs(value) > MAX_COUNT**2:
            raise ValueError(f"{key}={_short(value)} is out of range; give a smaller number")
    elif isinstance(default, list):
        _check_list(key, value, default)
    elif type(value) in (int, float):
        raise ValueError(
            f"{key}={_short(value)} is a {kind}; give a text: '{key}=\"{_short(value)}\"'"
        )


def _check_list(key: str, value: Any, default: list[Any]) -> None:
    """Numbers must be as many as in the default; one text may replace a list of texts."""
    are_numbers = bool(default) and all(isinstance(item, int | float) for item in default)
    if not isinstance(value, list):
        if are_numbers or not isinstance(value, str):
            raise ValueError(f"{key}={value!r} is a {type(value).__name__}; give a list: [a,b]")
    elif are_numbers and (
        len(value) != len(default) or not all(type(item) in (int, float) for item in value)
    ):
        raise ValueError(f"{key}={value!r}: give {len(default)} numbers, as {default}")


def _check_parts(key: str, values: Mapping[str, Any]) -> None:
    """Check the parts of a checkpoint: a run cannot resume without the model."""
    parts = value_at(values, key)
    for part in parts:
        _check_choice(key, part, CHECKPOINT_PARTS)
    if "model" not in parts:
        raise ValueError(f"{key}={parts}: no run can go on from it; add model")


def _short(value: float) -> str:
    """The number as text: Python refuses to write whole numbers of over 4,300 digits."""
    if isinstance(value, int) and value.bit_length() > 128:
        return f"a number of {value.bit_length()} bits"
    return repr(value)


def _plain(config: DictConfig, *, resolve: bool) -> dict[str, Any]:
    return OmegaConf.to_container(config, resolve=resolve)  # type: ignore[return-value]


def check_keys(config: DictConfig, added: Iterable[str] = ()) -> None:
    """Refuse keys of a recipe file that nothing reads. Hydra accepts any.

    Known are the keys that exist without a recipe, those below a value that is null or empty there,
    and those that the command line adds. Where veRL builds a class from a group, it accepts more
    keys than its files have: there only a likely typo is refused.

    Args:
        added: keys that the command line adds with a leading ``+``.

    Raises:
        ValueError: the first one, with the keys it may stand for.
    """
    defaults = base_values()
    groups = {key.rpartition(".")[0] for key in defaults}
    groups |= {parent for key in groups for parent in _parents(key)} | {""}
    for key in flat(_plain(config, resolve=False)):
        if is_within(key, (*_OPEN, *added)) or key in defaults or key in groups:
            continue
        if any(parent in defaults for parent in _parents(key)):
            continue  # below a value that is null or {} by default
        group = next(parent for parent in (*_parents(key), "") if parent in groups)
        name = key.removeprefix(f"{group}." if group else "").partition(".")[0]
        siblings = sorted(_children(group, (*defaults, *groups)))
        near = difflib.get_close_matches(name, siblings, n=3, cutoff=_SIMILAR)
        if near or "_target_" not in siblings:
            unknown = f"{group}.{name}" if group else name
            meant = " or ".join(f"{group}.{other}" if group else other for other in near)
            fix = f"use {meant}" if near else f"delete it, or add it with +{unknown}=..."
            raise ValueError(f"{unknown} is in the recipe, and no setting has this name; {fix}")


def check_recipe_package(config: DictConfig, recipe: str, folders: Sequence[Path]) -> None:
    """Refuse a recipe file without its package line: nothing would read its settings.

    Args:
        recipe: its name.
        folders: where recipes are looked for, by Hydra's search path.

    Raises:
        ValueError: with the file and the line to add.
    """
    if "recipe" not in config:
        return
    files = [file for folder in folders for file in sorted((folder / "recipe").rglob("*.yaml"))]
    files.sort(key=lambda file: file.stem != recipe.rpartition("/")[2])
    bare = [file for file in files if not _has_header(file)]
    name = bare[0] if bare else f"recipe {recipe}"
    node = config.recipe
    settings = ", ".join(flat(_plain(node, resolve=False)) if OmegaConf.is_dict(node) else [])
    raise ValueError(
        f"{name} does not begin with the line `{HEADER}`, so that its settings ({settings}) would "
        "be ignored; add that line as the first one"
    )


def _has_header(file: Path) -> bool:
    """Whether the package line is among the comments at the file's beginning, as Hydra reads it."""
    lines = file.read_text("utf-8", "replace").splitlines()
    comments = takewhile(lambda line: line.startswith("#") or not line.strip(), lines)
    return any(_HEADER.match(line) for line in comments)


def unreadable_override(argument: str, *, several_runs: bool = False) -> str | None:
    """The error in a `key=value` that Hydra cannot read, and its quoted form; None if it can.

    The quoted form is for a POSIX shell: outer quotes for the shell, inner ones for Hydra.

    Args:
        several_runs: whether `a,b` may mean one run per value.
    """
    key, equals, value = argument.partition("=")
    if not equals and not argument.startswith("~"):
        return f"{argument} is no setting; give key=value"
    try:
        override = OverridesParser.create().parse_override(argument)
        if several_runs or not override.is_sweep_override():
            return None
        problem = "its value stands for several runs, which need -m"
    except (HydraException, RecursionError):
        problem = "its value has characters that need quotes, for Hydra and for the shell"
    forms = [f"{key}={form}" for form in _quoted_forms(value)]
    good = [form for form in forms if _is_value(form)]
    if not good:
        return (
            f"the argument {argument} cannot be read; give key=value, +key=value to add a key or "
            "~key to delete one. Values with special characters: docs/troubleshooting.md"
        )
    written = "".join(f"\n  {shlex.quote(form)}" for form in good)
    return f"the argument {argument} cannot be read: {problem}. Write it so:{written}"


def _quoted_forms(value: str) -> Iterator[str]:
    """Quoted as a list, if it may be one, and as a text."""
    if value.startswith("[") and value.endswith("]"):
        value = value[1:-1]
        yield f"[{','.join(map(_quoted_item, value.split(',')))}]"
        return
    if "," in value:
        yield f"[{','.join(map(_quoted_item, value.split(',')))}]"
    yield _quoted(value)


def _quoted_item(text: str) -> str:
    """Quote an item; numbers, true, false and null stay as they are."""
    try:
        value = OverridesParser.create().parse_override(f"key={text}").value()
    except HydraException:
        value = ""
    return _quoted(text.strip()) if isinstance(value, str) else text.strip()


def _quoted(value: str) -> str:
    """A quoted value of Hydra's grammar: backslashes count before a quote and at the end only."""
    escaped = re.sub(r'(\\*)"', r'\1\1\\"', value)
    escaped = re.sub(r"(\\+)$", r"\1\1", escaped)
    return f'"{escaped}"'


def _is_value(argument: str) -> bool:
    try:
        return not OverridesParser.create().parse_override(argument).is_sweep_override()
    except HydraException:
        return False


def _parents(key: str) -> list[str]:
    """The groups around a key, the nearest first."""
    parts = key.split(".")[:-1]
    return [".".join(parts[:length]) for length in range(len(parts), 0, -1)]


def _children(group: str, keys: Collection[str]) -> set[str]:
    prefix = f"{group}." if group else ""
    return {key.removeprefix(prefix).partition(".")[0] for key in keys if key.startswith(prefix)}
