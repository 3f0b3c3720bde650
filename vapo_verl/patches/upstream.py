"""Small changes of ray 2.60, verl 0.9.1, vllm 0.24 and transformers 5.9: a function each, with its
imports inside."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

WRAPPERS = ("_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""Parts of the names of modules that FSDP 1 or activation checkpointing wraps."""
LENGTH_DIM = 2
"""Dimension of a nested [batch, 4, L_i] tensor that differs between rows."""
FREEZE = "actor_rollout_ref.actor.freeze_vision_tower"
TOWER = "visual"
"""Name of the vision tower in Qwen2-VL, Qwen2.5-VL and Qwen3-VL; its mergers are part of it."""


def keep_sigterm_handler() -> None:
    """Leave SIGTERM to this process: `ray.init` sets no handler of its own.

    Ray's handler raises SystemExit, which is lost if it interrupts a finalizer, and shuts the
    cluster down at once.
    """
    import ray

    ray._private.utils.set_sigterm_handler = lambda _handler: None


def silence_config_print() -> None:
    """Do not print the config at the start: its thousand lines are in the run's config.yaml."""
    from verl.trainer import main_ppo

    main_ppo.pprint = lambda *_: None


def session_folder() -> Path:
    """Folder of this Ray session on this node; Ray has no public function for it."""
    import ray._private.worker as worker

    return Path(worker.global_worker.node.get_session_dir_path())


def job_actors() -> list[dict[str, Any]]:
    """Ray's table of this job's living or starting actors: class name, pid, node, address.

    An actor that waits for a node has pid 0. The public state API asks the dashboard, which a run
    does not start.
    """
    import ray
    import ray._private.state as state

    job = ray.get_runtime_context().get_job_id()
    table = state.actors().values()
    return [
        actor
        for actor in table
        if actor["JobID"] == job and actor["State"] in ("ALIVE", "PENDING_CREATION")
    ]


def driver_of(actor: Any) -> str:
    """The driver of the job that an actor of any job belongs to, for a message."""
    import ray._private.state as state

    job = state.actors(actor._actor_id.hex()).get("JobID")
    for entry in state.jobs():
        if entry["JobID"] == job:
            return f"pid {entry['DriverPid']} on {entry['DriverIPAddress']}"
    return "unknown"


def free_resources() -> dict[str, dict[str, float]]:
    """Id of each node of the Ray cluster -> resources that no job holds."""
    import ray._private.state as state

    return dict(state.available_resources_per_node())


def use_frozen_tower(engine: Any) -> None:
    """Let an FSDP engine freeze the vision tower when it has loaded its model.

    This must happen before FSDP shards the model, and before the optimizer is made. veRL's registry
    has one class of engines per device, which is taken, so a method of the engine is wrapped.
    """
    build = engine._build_fsdp_module

    def build_frozen(module: Any) -> Any:
        freeze_tower(module)
        return build(module)

    engine._build_fsdp_module = build_frozen


def freeze_tower(model: Any) -> None:
    """Freeze all parameters of a model's vision tower, those of adapters in it, too.

    Raises:
        ValueError: the model has none.
    """
    towers = [module for name, module in model.named_modules() if name.rpartition(".")[2] == TOWER]
    if not towers:
        raise ValueError(
            f"{FREEZE}=True: {type(model).__name__} has no vision tower (no module {TOWER!r}); set "
            "it to false"
        )
    for tower in towers:
        tower.requires_grad_(False)


def restore_buffers(model: Any, config: Any) -> int:
    """Restore a model's computed buffers, the rotary frequencies, in float32.

    transformers and vLLM keep them in float32 in a model of any type. veRL casts the whole model by
    ``Module.to(torch.bfloat16)``: at token 1000 some rotations of Qwen2.5-VL are then off by a
    radian. A model in float32 is left alone.

    Args:
        model: as veRL has wrapped it for FSDP or LoRA.
        config: the model's transformers config.

    Returns:
        Number of restored buffers.
    """
    import torch
    from accelerate import init_empty_weights
    from verl.utils.model import get_hf_auto_model_class

    modules = {}
    for name, module in model.named_modules():
        parts = (part for part in name.split(".") if part not in WRAPPERS)
        modules[".".join(parts).removeprefix("base_model.model.")] = module
    rounded = {
        (path, name): buffer
        for path, module in modules.items()
        for name, buffer in module.named_buffers(recurse=False)
        if name in module._non_persistent_buffers_set
        and buffer.is_floating_point()
        and buffer.dtype != torch.float32
    }
    if not rounded:
        return 0
    with init_empty_weights(include_buffers=False):
        exact = get_hf_auto_model_class(hf_config=config).from_config(config)
    for (path, name), buffer in rounded.items():
        value = exact.get_submodule(path).get_buffer(name)
        modules[path].register_buffer(name, value.to(buffer.device), persistent=False)
    return len(rounded)


def save_in_hub_layout(model: Any) -> None:
    """Let ``save_pretrained`` write the fused experts of a new model in the layout of the hub.

    Those of Qwen3-VL-MoE are [experts, hidden, 2 * intermediate] on the hub, which vLLM reads, and
    [experts, 2 * intermediate, hidden] in memory. transformers transposes what it reads where the
    shape is not that of the parameter (``Transpose`` with ``check_dims``). It applies the same rule
    to what it writes, and so writes the layout in memory.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import PrefixChange, Transpose

    conversions = get_model_conversion_mapping(model, add_legacy=False)  # copies
    operations = [each for c in conversions for each in getattr(c, "operations", ())]
    checked = [each for each in operations if isinstance(each, Transpose) and each.check_dims]
    for operation in checked:
        operation.check_dims = False
    if checked:  # without prefixes, as `revert_weight_conversion` does for a model not loaded
        kept = [each for each in conversions if not isinstance(each, PrefixChange)]
        model._weight_conversions = kept


def use_replay_buffers(synchronous: type, asynchronous: type) -> None:
    """Replace the classes of replay buffers that veRL's trainers hard-code.

    A custom sampler is the registered way, but veRL gives it no group filter.
    """
    from verl.trainer.ppo.v1 import trainer_base

    trainer_base.ReplayBuffer, trainer_base.ReplayBufferAsync = synchronous, asynchronous


def mute_separate_trainer() -> None:
    """Drop the INFO lines of veRL's separate_async trainer.

    One of them, with ``hybrid_engine=false``, is ``logger.info(text, flush=True)``: a TypeError.
    """
    import logging

    logging.getLogger("verl.trainer.ppo.v1.trainer_separate_async").setLevel(logging.WARNING)


def use_weight_sender(path: str) -> None:
    """Let workers send weights to vLLM through the class at `path`, imported when needed."""
    from verl.workers.rollout import base

    base._ROLLOUT_REGISTRY["vllm", "async"] = path


def use_bucket_sender(sender: type) -> None:
    """Let every weight transfer send through this class."""
    from verl.workers.rollout.vllm_rollout import vllm_rollout

    vllm_rollout.BucketedWeightSender = sender


@asynccontextmanager
async def server_of(client: Any, session: str, **request: Any) -> AsyncIterator[Any]:
    """Yield the Ray actor of a session's server, which counts as busy inside the context.

    Args:
        client: an `LLMServerClient`, whose public `generate` sends one prompt only.
        request: values that its router may read.
    """
    server_id, server = await client._acquire_server(session, **request)
    try:
        yield server
    finally:
        client._release_server(server_id, request_id=session)


def keep_linear_weights() -> None:
    """Leave `weight` on vLLM's CPU linear layers, so that weights can be updated more than once.

    vLLM packs them for oneDNN and then drops ``layer.weight`` (model_executor/layers/utils.py).
    """
    import vllm._custom_ops as ops

    ops._supports_onednn = False


def keep_outputs(engine: Any, keep: Callable[[Any], None]) -> None:
    """Hand every `RequestOutput` of an `AsyncLLM` to `keep`, in the task that requested it.

    veRL turns vLLM's output into a `TokenOutput` in the middle of its server's `generate`, without
    the per-token arrays.
    """
    generate = engine.generate

    async def generate_and_keep(*args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        async for output in generate(*args, **kwargs):
            keep(output)
            yield output

    engine.generate = generate_and_keep


def join_chunks(engine: Any, longest: int) -> None:
    """Join the per-token arrays of unfinished requests of an `AsyncLLM` with more than `longest`.

    vLLM decodes an array as a view of its message (`MsgpackDecoder`): keeping the array keeps the
    whole message of its step, for all requests.
    """
    import numpy as np

    for request in engine.output_processor.request_states.values():
        if len(request.routed_experts_chunks) > longest:
            request.routed_experts_chunks[:] = [np.concatenate(request.routed_experts_chunks)]


def send_requests_through(
    engine: Any, send: Callable[[Any, Callable[[Any], Awaitable[Any]]], Awaitable[Any]]
) -> None:
    """Let `send(prompt, add)` choose the prompt that an `AsyncLLM` adds; `add` is vLLM's method.

    vLLM accepts a prompt that its renderer has processed, but veRL's server never passes one.
    """
    add_request = engine.add_request

    async def send_request(request_id: str, prompt: Any, *args: Any, **kwargs: Any) -> Any:
        async def add(processed: Any) -> Any:
            return await add_request(request_id, processed, *args, **kwargs)

        return await send(prompt, add)

    engine.add_request = send_request


def in_image_thread(renderer: Any, call: Callable[..., object], *arguments: Any) -> None:
    """Call a function in the thread in which a vLLM renderer processes images, after what waits.

    No other thread may change the renderer's cache, and vLLM has a public method of that thread for
    clearing it alone.
    """
    renderer._mm_executor.submit(call, *arguments)


def engine_exits(engine: Any) -> dict[str, int]:
    """Exit code by name of the engine core processes of an `AsyncLLM` that have ended."""
    return dict(engine.engine_core.resources.engine_manager.finished_procs())


def with_ragged_positions(data: Any) -> Any:
    """Rebuild nested ``position_ids`` of a TensorDict along the length, if ragged elsewhere.

    veRL and TransferQueue rebuild the ``(4, L_i)`` mrope ids of a batch with ``as_nested_tensor``.
    When all ``L_i`` are equal torch takes dimension 1, the 4, for the ragged one, and
    ``maybe_fix_3d_position_ids`` then fails with "split_with_sizes expects". Can go when veRL
    passes ``ragged_idx=2`` itself.
    """
    from verl.utils.tensordict_utils import nested_tensor_from_tensor_list

    ids = data.get("position_ids", None)
    if ids is not None and ids.is_nested and ids.dim() == 3 and ids._ragged_idx != LENGTH_DIM:
        data["position_ids"] = nested_tensor_from_tensor_list(
            list(ids.unbind()), ragged_idx=LENGTH_DIM
        )
    return data
