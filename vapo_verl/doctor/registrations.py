"""Check this package's entries in all registries of a run. Imports verl: for the child process.

veRL logs a failing entry point at DEBUG only, and vLLM skips a broken plugin: with a registration
missing, a run uses another class minutes later.
"""

import importlib
import importlib.util
import os
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig

from vapo_verl.doctor.findings import Finding, error, ok
from vapo_verl.doctor.model_size import model_folder
from vapo_verl.hydra_config import PACKAGE
from vapo_verl.rollout.engine_args import V2_RUNNER
from vapo_verl.rollout.model_families import read_config

CHECK = "registrations"
REINSTALL = "make setup (or pip install -e . --no-deps)"
PLUGIN = ("verl.plugins", "vapo_cpu", "vapo_verl.platform.cpu")


def check_entry_point() -> Iterator[Finding]:
    """The CPU platform's entry point, from metadata; it goes stale when the package moves."""
    group, name, module = PLUGIN
    values = {e.name: e.value for e in metadata.entry_points(group=group)}
    found = f"entry point {group}: {name} = {values.get(name)}"
    if values.get(name) != module:
        yield error(CHECK, f"{found}, it should be {module}", REINSTALL)
    elif importlib.util.find_spec(module) is None:
        yield error(CHECK, f"{found}, which is not there", REINSTALL)
    else:
        yield ok(CHECK, found)


def check_agent_loop(config: DictConfig | None) -> Iterator[Finding]:
    """The recipe's agent loop: its file, its entry and its class."""
    file, name = PACKAGE / "rollout" / "agent_loops.yaml", "vapo_agent"
    if config is not None:
        agent = config.actor_rollout_ref.rollout.agent
        file, name = Path(str(agent.agent_loop_config_path)), agent.default_agent_loop
    key = "actor_rollout_ref.rollout.agent"
    if not file.is_file():
        found = f"{key}.agent_loop_config_path={file} does not exist"
        yield error(CHECK, found, f"{PACKAGE / 'rollout' / 'agent_loops.yaml'} is the packaged one")
        return
    targets = {entry["name"]: entry["_target_"] for entry in yaml.safe_load(file.read_text())}
    if name not in targets:
        found = f"{key}.default_agent_loop={name} is not in {file}"
        yield error(CHECK, found, f"use one of {', '.join(targets)}")
        return
    yield _resolved(f"agent loop {name}", targets[name], f"correct _target_ in {file}")


def check_estimator(_: DictConfig | None) -> Iterator[Finding]:
    from verl.trainer.ppo.core_algos import ADV_ESTIMATOR_REGISTRY

    from vapo_verl.advantage import estimator

    found = ADV_ESTIMATOR_REGISTRY.get(estimator.NAME)
    yield _same("estimator vapo", found, estimator.compute_vapo_advantage)


def check_trainer(config: DictConfig | None) -> Iterator[Finding]:
    from verl.trainer.ppo.v1 import get_trainer_cls

    import vapo_verl.trainer.async_trainers as asynchronous
    from vapo_verl.trainer.trainer import VapoTrainer

    mode = "vapo" if config is None else config.trainer.v1.trainer_mode
    ours = {
        "vapo": VapoTrainer,
        "vapo_colocate_async": asynchronous.VapoColocateAsync,
        "vapo_separate_async": asynchronous.VapoSeparateAsync,
    }
    yield _same(f"trainer {mode}", get_trainer_cls(mode), ours.get(mode, VapoTrainer))


def check_replica(_: DictConfig | None) -> Iterator[Finding]:
    from verl.workers.rollout.replica import RolloutReplicaRegistry

    from vapo_verl.rollout import server

    server.register()
    yield _same("rollout replica vllm", RolloutReplicaRegistry.get("vllm"), server.VapoReplica)


def check_weight_sync(_: DictConfig | None) -> Iterator[Finding]:
    from verl.workers.rollout.base import get_rollout_class

    import vapo_verl.trainer.worker  # noqa: F401  registers it
    from vapo_verl.rollout.weight_sync import VapoServerAdapter

    yield _same("rollout vllm", get_rollout_class("vllm"), VapoServerAdapter)


def check_platform(_: DictConfig | None) -> Iterator[Finding]:
    """The platform is registered by the entry point, and selected by VERL_PLATFORM=cpu."""
    from verl.plugin.platform import PlatformRegistry, get_platform

    found = PlatformRegistry.get("cpu")
    from vapo_verl.platform.cpu import CPUPlatform

    yield _same("platform cpu", found, CPUPlatform)
    if os.environ.get("VERL_PLATFORM") == "cpu":
        yield _same("platform under VERL_PLATFORM=cpu", type(get_platform()), CPUPlatform)


def check_attention(_: DictConfig | None) -> Iterator[Finding]:
    """Each recording backend replaces vLLM's; those of this machine's kind are imported too."""
    from vllm.platforms import current_platform
    from vllm.v1.attention.backends.registry import AttentionBackendEnum

    from vapo_verl.attention.worker import BACKENDS

    for name, path in BACKENDS.items():
        registered = AttentionBackendEnum[name].get_path()
        if registered != path:
            yield error(CHECK, f"attention backend {name} is {registered}, not {path}", REINSTALL)
        elif current_platform.is_cpu() == (name == "CPU_ATTN"):
            if name != "FLASHINFER" or importlib.util.find_spec("flashinfer"):
                yield _resolved(f"attention backend {name}", path, REINSTALL)
        elif importlib.util.find_spec(path.rpartition(".")[0]) is None:
            yield error(CHECK, f"attention backend {name}: no module of {path}", REINSTALL)
        else:
            yield ok(CHECK, f"attention backend {name} is {path} (not imported on this machine)")


def check_model_runner(config: DictConfig | None) -> Iterator[Finding]:
    """With visual attention on a GPU: whether this vLLM uses its V2 runner for the model."""
    if config is None or not config.vapo.attention.enabled or config.trainer.device == "cpu":
        return
    if os.environ.get(V2_RUNNER):  # refused or turned off: the finding "visual attention"
        return
    folder = model_folder(config)
    names = read_config(folder).get("architectures") or [] if folder is not None else []
    module = importlib.import_module("vllm.config.vllm")
    # a vLLM without this list uses the V2 runner for every model
    taken = set(names) & set(getattr(module, "DEFAULT_V2_MODEL_RUNNER_ARCHITECTURES", names))
    if taken:
        found = f"vLLM takes its V2 model runner for {', '.join(sorted(taken))}"
        yield error(CHECK, f"{found}: no visual attention under it", f"export {V2_RUNNER}=0")
    else:
        yield ok(CHECK, "vLLM takes its V1 model runner, which visual attention needs")


def _resolved(what: str, path: str, fix: str) -> Finding:
    """Import a class by its path."""
    module, _, name = path.rpartition(".")
    try:
        getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as problem:
        return error(CHECK, f"{what}: {path} cannot be imported: {problem}", fix)
    return ok(CHECK, f"{what} is {path}")


def _same(what: str, found: Any, wanted: Any) -> Finding:
    if found is wanted:
        return ok(CHECK, f"{what} is {wanted.__module__}.{wanted.__qualname__}")
    shown = getattr(found, "__qualname__", found)
    return error(
        CHECK, f"{what} is {shown}, not {wanted.__module__}.{wanted.__qualname__}", REINSTALL
    )
