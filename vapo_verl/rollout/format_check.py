"""The anchor format check of a few training rows, on the rollout server, before the first step."""

from collections.abc import Iterable, Mapping
from typing import Any

from vapo_verl.anchors.format_check import CheckReply, FormatCheck
from vapo_verl.data.claims_column import read_claims
from vapo_verl.rollout.agent_loop import VapoAgentLoop

CLAIMS_PER_LABEL = 4


async def run_format_check(
    loop: VapoAgentLoop, rows: Iterable[Mapping[str, Any]]
) -> FormatCheck | None:
    """Probe up to 4 true and 4 false claims of each row directly after its prompt.

    None if no row has claims.
    """
    replies = [reply for row in rows for reply in await _of_row(loop, row)]
    return FormatCheck.of(replies) if replies else None


async def _of_row(loop: VapoAgentLoop, row: Mapping[str, Any]) -> list[CheckReply]:
    claims, _ = loop.askable(read_claims(row.get("claims")))
    chosen = [
        claim
        for label in (True, False)
        for claim in [c for c in claims if c.label is label][:CLAIMS_PER_LABEL]
    ]
    if not chosen:
        return []
    loop.open_session(row)
    question, prober = loop.question, loop.prober()
    prompt_ids, media = await loop.prompt(row)
    probes = [[*prompt_ids, *question.token_ids(claim.text)] for claim in chosen]
    replies = await prober.asker(media)(probes)
    free = await prober.free_answers(probes, media)
    return [
        CheckReply(
            label=claim.label,
            p_yes=question.p_yes(reply.token_id, reply.logprob),
            free_token=loop.tokenizer.decode([token_id]),
            free_is_answer=token_id in question.answer_ids,
        )
        for claim, reply, token_id in zip(chosen, replies, free, strict=True)
    ]
