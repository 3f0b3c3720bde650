"""Keeps the responses of a prompt and their probes on one rollout server.

Its image is preprocessed and encoded there once, and its keys and values are cached.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from uuid import uuid4

from verl.workers.rollout.llm_server import LLMServerClient
from verl.workers.rollout.replica import TokenOutput


def prompt_session(row: Mapping[str, Any]) -> str:
    """The session of a row: one for each prompt of a step, in training and in validation.

    veRL draws ``uid`` when it takes the prompt from the data set, once for all its responses. A row
    without one (the anchor self-test) has a session of its own.
    """
    return str(row.get("uid") or uuid4().hex)


class OneServerClient:
    """A view of veRL's client that sends every request under one session id.

    veRL routes by request id: requests that share it go to the same replica, which
    :class:`vapo_verl.rollout.router.PromptRouter` chooses. The engine still sees a fresh id for
    each of them.

    Args:
        client: veRL's client, shared by the loops of a worker.
        session: see :func:`prompt_session`.
    """

    def __init__(self, client: LLMServerClient, session: str) -> None:
        self._client = client
        self._session = session

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
