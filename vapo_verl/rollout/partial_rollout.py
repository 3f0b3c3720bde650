"""Join the parts of responses that new weights interrupt; hold the weights back for probes.

veRL's asynchronous trainers abort the responses that decode when the weights of a server change.
Their client asks for the rest under the new weights, so that a response may span several versions
of the policy. The version of weights is the number of the step that made them.

A response that has ended is never interrupted: the weights that wrote its last token stay until its
probes have been answered. So its last token and its probes are of one version.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import Any

import numpy as np
from verl.workers.rollout.llm_server import FullyAsyncLLMServerClient, LLMServerClient
from verl.workers.rollout.replica import TokenOutput

from vapo_verl.patches.upstream import server_of

ATTENTION = "visual_attention"
"""In ``TokenOutput.extra_fields``: float32 [T] or [T, layers]."""
POLL_S = 0.01
_parts: ContextVar[list[TokenOutput]] = ContextVar("parts")
"""Server outputs for the response that the running task requests."""


class _PartClient(LLMServerClient):
    """One request to a server: a part of a response."""

    async def generate(
        self, request_id: str, *, sampling_params: dict[str, Any], **request: Any
    ) -> TokenOutput:
        parts = _parts.get()
        num_tokens = sum(len(part.token_ids) for part in parts)
        if num_tokens and sampling_params.get("seed") is not None:
            # the same seed again would draw what the first tokens were drawn with
            seed = sampling_params["seed"] + num_tokens
            sampling_params = {**sampling_params, "seed": seed}
        part = await super().generate(request_id, sampling_params=sampling_params, **request)
        parts.append(part)
        return part


class PartialRolloutClient(FullyAsyncLLMServerClient, _PartClient):
    """veRL's client that resumes responses; it keeps the visual attention, which veRL's drops.

    ``extra_fields`` of an output has ``visual_attention`` of all its tokens, and the smallest and
    largest version of the policy that wrote one as ``min_global_steps`` and ``max_global_steps``.
    """

    async def generate(self, request_id: str, **request: Any) -> TokenOutput:
        parts: list[TokenOutput] = []
        token = _parts.set(parts)
        try:
            output = await super().generate(request_id, **request)
        finally:
            _parts.reset(token)
        output.extra_fields.update(joined_fields(parts))
        return output

    async def scored(self, session: str, response: str) -> None:
        """Tell the session's server that it need not keep its weights for this response."""
        async with server_of(self, session) as server:
            server.scored.remote(response)


def joined_fields(parts: Sequence[TokenOutput]) -> dict[str, Any]:
    """Versions and visual attention of a response from those of its parts.

    A part without tokens was aborted before its first one and is ignored. Tokens without a value
    are nan.
    """
    written = [part for part in parts if part.token_ids] or list(parts[-1:])
    versions = [part.extra_fields["global_steps"] for part in written]
    fields = {"min_global_steps": min(versions), "max_global_steps": max(versions)}
    given = [p.extra_fields[ATTENTION] for p in written if ATTENTION in p.extra_fields]
    if given:
        layers = given[0].shape[1:]
        fields[ATTENTION] = np.concatenate([_attention(part, layers) for part in written])
    return fields


def _attention(part: TokenOutput, layers: tuple[int, ...]) -> np.ndarray:
    values = np.full((len(part.token_ids), *layers), np.nan, dtype=np.float32)
    known = part.extra_fields.get(ATTENTION, values)[: len(values)]
    values[: len(known)] = known
    return values


class ResponseGate:
    """A server's decoding responses, and its ended responses that are not scored yet.

    :meth:`settle` empties both: it aborts decoding responses and waits until ended ones are scored.
    Probes pass the gate at any time.
    """

    def __init__(self) -> None:
        self._open = asyncio.Event()
        self._open.set()
        self._decoding: set[str] = set()
        self._unscored: set[str] = set()

    @asynccontextmanager
    async def decoding(self, request_id: str) -> AsyncIterator[None]:
        """Context of a request for a response; entered once the gate is open."""
        await self._open.wait()
        self._decoding.add(request_id)
        try:
            yield
        finally:
            self._decoding.discard(request_id)

    def ended(self, response: str) -> None:
        """Record that a response is complete; its probes may follow."""
        self._unscored.add(response)

    def scored(self, response: str) -> None:
        """Record that no request follows for this response; unknown ones are ignored."""
        self._unscored.discard(response)

    async def settle(self, abort: Callable[[Collection[str]], Awaitable[None]]) -> None:
        """Close the gate and wait until no response decodes and all that ended are scored.

        Args:
            abort: aborts requests by id. It is called repeatedly: a request whose images are still
                being processed has not reached the engine.
        """
        self._open.clear()
        while self._decoding or self._unscored:
            if self._decoding:
                await abort(sorted(self._decoding))
            await asyncio.sleep(POLL_S)

    def open(self) -> None:
        """Open the gate for responses."""
        self._open.set()
