"""Anchor questions as requests to the rollout server that has the response's KV cache."""

from __future__ import annotations

import asyncio
import functools
from collections import deque
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import Any
from uuid import uuid4

import ray
from verl.workers.rollout.llm_server import LLMServerClient
from verl.workers.rollout.replica import TokenOutput

from vapo_verl.anchors import AnchorQuestion, ProbeReply, Probes
from vapo_verl.anchors.probe import Ask
from vapo_verl.anchors.question import ANSWER_BIAS
from vapo_verl.patches.upstream import server_of
from vapo_verl.rollout.engine_inputs import PromptImages
from vapo_verl.rollout.partial_rollout import PartialRolloutClient
from vapo_verl.rollout.prompts import SERVER, OpenPrompt

PROBE_PRIORITY = -1
"""If the engine schedules by priority (vLLM serves low numbers first), probes come before responses
that have not begun: these would evict the prefix of a waiting probe from the KV cache. A decoding
response goes on either way: vLLM gives a step's tokens to running requests first."""

CUT_SHORT = ("aborted", "abort", "error")
"""Stop reasons of an output that is no answer: the engine gave up the request."""
_ONE_TOKEN = {
    "max_tokens": 1,
    "logprobs": True,
    "repetition_penalty": 1.0,  # the server would take the config's, which vLLM applies to the bias
}


class Prober:
    """Requests one token after each of several prompts over the same images.

    Args:
        max_tokens_in_flight: ``vapo.anchors.max_tokens_in_flight``.
        by_priority: whether the engine's scheduling policy is ``priority``.
        processor_options: ``data.mm_processor_kwargs``, with which the prompt's images were made
            into tokens.
    """

    def __init__(
        self,
        server: OneServerClient,
        question: AnchorQuestion,
        *,
        max_tokens_in_flight: int,
        by_priority: bool,
        processor_options: Mapping[str, Any] | None = None,
    ) -> None:
        self._server = server
        self._question = question
        self._budget = shared_budget(max_tokens_in_flight)
        self._priority = PROBE_PRIORITY if by_priority else 0
        self._options = (
            {"mm_processor_kwargs": dict(processor_options)} if processor_options else {}
        )

    def asker(self, media: Mapping[str, Any], seed: int | None = None) -> Ask:
        """The function by which :func:`probe_anchors` asks about a row's images, for yes or no.

        Raises:
            ValueError: the row has more than images.
        """
        if other := sorted(media.keys() - {"images"}):
            raise ValueError(
                f"this row has {', '.join(other)}: anchors are asked about images only; leave the "
                "row out, or set vapo.anchors.num_anchors=0"
            )
        sampling: dict[str, Any] = {
            "temperature": 1.0,  # the answer is the likelier token, whichever is drawn
            "logit_bias": dict.fromkeys(self._question.answer_ids, ANSWER_BIAS),
        }
        if seed is not None:
            # vLLM 0.24 on CPU ignores the seeds of a batch in which one request has none, and
            # a greedy request never has one (TopKTopPSampler.forward_cpu)
            sampling["seed"] = seed

        async def ask(probes: Probes) -> list[ProbeReply]:
            return [_reply(output) for output in await self._tokens(probes, media, sampling)]

        return ask

    async def free_answers(self, probes: Probes, media: Mapping[str, Any]) -> list[int]:
        """The most likely next tokens, not restricted to yes and no."""
        outputs = await self._tokens(probes, media, {"temperature": 0.0})
        return [output.token_ids[0] for output in outputs]

    async def _tokens(
        self, probes: Probes, media: Mapping[str, Any], sampling: Mapping[str, Any]
    ) -> list[TokenOutput]:
        async with self._budget.hold(probes.num_tokens):
            return await self._server.probe(
                probes,
                sampling_params={**sampling, **_ONE_TOKEN},
                image_data=media.get("images"),
                priority=self._priority,
                **self._options,
            )


def _reply(output: TokenOutput) -> ProbeReply:
    assert output.log_probs is not None
    return ProbeReply(
        token_id=output.token_ids[0],
        logprob=output.log_probs[0],
        num_cached_tokens=output.extra_fields.get("num_cached_tokens") or 0,
    )


def prompt_session(row: Mapping[str, Any]) -> str:
    """The session of a row: one for each prompt of a step, in training and in validation.

    veRL draws ``uid`` when it takes the prompt from the data set, once for all its responses. A row
    without one (the anchor format check) has a session of its own.
    """
    return str(row.get("uid") or uuid4().hex)


class ServerFailed(RuntimeError):
    """A rollout server failed to answer, for a reason that is not the prompt's."""


@contextmanager
def server_errors() -> Iterator[None]:
    """Distinguish what a server refuses (ValueError, due to the prompt) from its own failures."""
    try:
        yield
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, ValueError | ray.exceptions.RayError):
            raise
        raise ServerFailed(f"{type(error.cause).__name__}: {error.cause}") from error


def complete(output: TokenOutput) -> TokenOutput:
    """Return the output if the engine has finished it.

    Raises:
        ServerFailed: the engine gave the request up; its tokens are no response.
    """
    if output.stop_reason in CUT_SHORT:
        raise ServerFailed(f"the engine ended a request early (stop reason {output.stop_reason})")
    return output


class OneServerClient:
    """A view of veRL's client that sends every request under one session id.

    veRL routes by request id: requests that share it go to the same replica, which
    :class:`vapo_verl.rollout.router.PromptRouter` chooses. The engine still sees a fresh id for
    each of them.

    The images of a prompt that several responses share go to the server once.

    Args:
        client: veRL's client, shared by the loops of a worker.
        prompt: its uid is the session, see :func:`prompt_session`.
    """

    def __init__(self, client: LLMServerClient, prompt: OpenPrompt) -> None:
        self._client, self._prompt = client, prompt
        self._session, self._response = prompt.uid, uuid4().hex
        self.probe_version: int | None = None
        """Version of the policy that answered the last probes."""

    async def generate(self, request_id: str, **request: Any) -> TokenOutput:
        """``LLMServerClient.generate``; ``request_id`` is replaced by the session's."""
        del request_id
        with server_errors():
            request = await self._with_shared_images(request, request["prompt_ids"])
            if isinstance(self._client, PartialRolloutClient):
                request["response"] = self._response
            return complete(await self._client.generate(self._session, **request))

    async def scored(self) -> None:
        """Report that no request follows: the server may take new weights."""
        if isinstance(self._client, PartialRolloutClient):
            await self._client.scored(self._session, self._response)

    async def probe(self, probes: Probes, **request: Any) -> list[TokenOutput]:
        """:meth:`VapoHttpServer.probe` of the session's server: one call, one image."""
        with server_errors():
            first = next(probes.prompts())
            request = await self._with_shared_images(request, first)
            where = {"prompt_ids": first, **request}
            async with server_of(self._client, self._session, **where) as server:
                outputs = await server.probe.remote(probes, **request)
                self.probe_version = outputs[0].extra_fields.get("global_steps")
                return [complete(output) for output in outputs]

    async def _with_shared_images(
        self, request: dict[str, Any], prompt_ids: list[int]
    ) -> dict[str, Any]:
        """The request with a reference to its images, once the server has opened them.

        The first request of a prompt is for a response: its tokens are the prompt's.
        """
        other = request.get("video_data") or request.get("audio_data")  # images alone are opened
        if other or not (self._prompt.is_shared and request.get("image_data")):
            return request
        server = await self._prompt.once(SERVER, partial(self._open, request, prompt_ids))
        if server is None:
            return request
        return {**request, "image_data": PromptImages(key=self._session)}

    async def _open(self, request: dict[str, Any], prompt_ids: list[int]) -> Any:
        """Let the session's server process the prompt; returns its handle, or None if it cannot."""
        where = {"prompt_ids": prompt_ids, **request}
        async with server_of(self._client, self._session, **where) as server:
            is_open = await server.open_prompt.remote(
                key=self._session,
                prompt_ids=prompt_ids,
                images=request["image_data"],
                mm_processor_kwargs=request.get("mm_processor_kwargs"),
            )
            return server if is_open else None


class TokenBudget:
    """Admits requests in arrival order while their tokens fit under a limit.

    The probes of a response arrive together, and many responses may end at once. Without a cap
    their probes could take the KV cache of responses that still decode.

    Args:
        limit: most tokens in flight; a larger request runs alone. 0: no cap.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._in_flight = 0
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    @asynccontextmanager
    async def hold(self, num_tokens: int) -> AsyncIterator[None]:
        """Context of a request of `num_tokens` tokens."""
        await self._enter(num_tokens)
        try:
            yield
        finally:
            self._leave(num_tokens)

    async def _enter(self, num_tokens: int) -> None:
        if not self._waiting and self._fits(num_tokens):
            self._in_flight += num_tokens
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((num_tokens, turn))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():  # admitted and cancelled at the same time
                self._leave(num_tokens)
            raise

    def _leave(self, num_tokens: int) -> None:
        self._in_flight -= num_tokens
        while self._waiting:
            wanted, turn = self._waiting[0]
            if not turn.cancelled():
                if not self._fits(wanted):
                    return
                self._in_flight += wanted
                turn.set_result(None)
            self._waiting.popleft()

    def _fits(self, num_tokens: int) -> bool:
        free = self._limit - self._in_flight
        return self._limit == 0 or self._in_flight == 0 or num_tokens <= free


shared_budget = functools.cache(TokenBudget)
"""One budget per limit in a process: veRL makes an agent loop for every response."""
