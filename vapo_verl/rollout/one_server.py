"""Keeps a response and its probes on one rollout server, where their keys and values are cached."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

from verl.workers.rollout.llm_server import LLMServerClient
from verl.workers.rollout.replica import TokenOutput


class OneServerClient:
    """A view of veRL's client that sends every request under one sticky-session id.

    veRL routes by request id: requests that share it go to the same replica. The engine still
    sees a fresh id for each of them.
    """

    def __init__(self, client: LLMServerClient) -> None:
        self._client = client
        self._session = uuid4().hex

    async def generate(self, request_id: str, **request: Any) -> TokenOutput:
        """``LLMServerClient.generate``; ``request_id`` is replaced by the session's."""
        del request_id
        return await self._client.generate(self._session, **request)
