"""Changes of verl 0.9.1. Imports inside: some of them are vLLM's too."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any


def silence_config_print() -> None:
    """Do not print the config at the start: its thousand lines are in the run's config.yaml."""
    from verl.trainer import main_ppo

    main_ppo.pprint = lambda *_: None


def look_while_polling(buffer: Any, interval_s: float, look: Callable[[], None]) -> None:
    """Ask the replay buffer every `interval_s`, and call `look` between two questions.

    `ReplayBuffer` polls every 2 s, without a key for it, and waits for ever for responses whose
    writer is gone; `look` may raise.
    """
    buffer.poll_interval = interval_s
    wait = buffer._wait_for_next_poll

    def look_and_wait(*args: Any, **kwargs: Any) -> Any:
        look()
        return wait(*args, **kwargs)

    buffer._wait_for_next_poll = look_and_wait


def use_weight_sender(path: str) -> None:
    """Let workers send weights to vLLM through the class at `path`, imported when needed."""
    from verl.workers.rollout import base

    base._ROLLOUT_REGISTRY["vllm", "async"] = path


def use_bucket_sender(sender: type) -> None:
    """Let the weight transfer, which makes a sender each time, make one of this class."""
    from verl.workers.rollout.vllm_rollout import vllm_rollout

    vllm_rollout.BucketedWeightSender = sender


@asynccontextmanager
async def server_of(client: Any, session: str, **request: Any) -> AsyncIterator[Any]:
    """The Ray actor of a session's server, counted as busy within.

    Args:
        client: an `LLMServerClient`, whose public `generate` sends one prompt only.
        request: what its router may look at.
    """
    server_id, server = await client._acquire_server(session, **request)
    try:
        yield server
    finally:
        client._release_server(server_id, request_id=session)
