"""Keeps a response and its probes on one rollout server, where their keys and values are cached."""

from __future__ import annotations

from collections.abc import Sequence
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

    async def generate_many(
        self, prompts: Sequence[list[int]], **request: Any
    ) -> list[TokenOutput]:
        """:meth:`VapoHttpServer.generate_many` of the session's server: one call, one image."""
        server_id, server = await self._client._acquire_server(
            self._session, prompt_ids=prompts[0], **request
        )
        try:
            return await server.generate_many.remote(prompts=list(prompts), **request)
        finally:
            self._client._release_server(server_id, request_id=self._session)
