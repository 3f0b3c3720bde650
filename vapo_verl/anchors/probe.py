"""Asking the policy about its anchors, through any engine that continues token ids."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from vapo_verl.anchors.question import AnchorQuestion
from vapo_verl.anchors.types import Anchor, AnchorResult


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeReply:
    """One of the two answer tokens, whichever the engine drew, and how likely it was."""

    token_id: int
    logprob: float
    """Log probability of that token, normalised over the two answers; at most 0. It tells that of
    the other one, too, so the greedy answer follows whatever was drawn."""
    num_cached_tokens: int = 0


Ask = Callable[[list[int]], Awaitable[ProbeReply]]
"""Continues prompt ids by one token among the two answers, with the row's images attached."""


async def probe_anchors(
    ask: Ask,
    question: AnchorQuestion,
    anchors: Sequence[Anchor],
    prompt_ids: Sequence[int],
    response_ids: Sequence[int],
) -> list[AnchorResult]:
    """Ask every anchor of one response at once; results in the order of ``anchors``.

    Each probe reads prompt ids + response ids before the cut + ids of the question: the rollout's
    own tokens, so the engine can reuse the keys and values it computed while generating.
    """
    requests = [_probe(ask, question, anchor, prompt_ids, response_ids) for anchor in anchors]
    return list(await asyncio.gather(*requests))


async def _probe(
    ask: Ask,
    question: AnchorQuestion,
    anchor: Anchor,
    prompt_ids: Sequence[int],
    response_ids: Sequence[int],
) -> AnchorResult:
    ids = [*prompt_ids, *response_ids[: anchor.position], *question.token_ids(anchor.claim)]
    reply = await ask(ids)
    if reply.token_id not in (question.yes_id, question.no_id):
        raise RuntimeError(
            f"the engine answered an anchor with token {reply.token_id}, neither yes "
            f"({question.yes_id}) nor no ({question.no_id}): it ignored the bias on their logits"
        )
    drawn = math.exp(min(reply.logprob, 0.0))
    p_yes = drawn if reply.token_id == question.yes_id else 1.0 - drawn
    return AnchorResult(
        anchor=anchor,
        answer=p_yes >= 0.5,
        p_yes=p_yes,
        num_prompt_tokens=len(ids),
        num_cached_tokens=reply.num_cached_tokens,
    )
