"""Probe anchors through any engine that continues token ids."""

from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass

from vapo_verl.anchors.question import AnchorQuestion


@dataclass(frozen=True, slots=True, kw_only=True)
class Probes:
    """Questions after cuts of one sequence: one request to an engine that shares prefixes."""

    token_ids: Sequence[int]
    """The sequence, as a prompt with its response."""
    cuts: Sequence[int]
    """Tokens of the sequence before each question."""
    questions: Sequence[Sequence[int]]
    """Token ids of each question."""

    def prompts(self) -> Iterator[list[int]]:
        """Token ids of each probe: those before its cut, then its question."""
        for cut, question in zip(self.cuts, self.questions, strict=True):
            yield [*self.token_ids[:cut], *question]

    @property
    def num_tokens(self) -> int:
        """Tokens that they need in a KV cache: the sequence once, and every question."""
        return max(self.cuts, default=0) + sum(map(len, self.questions))


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeReply:
    """The answer token that the engine sampled, and its log probability."""

    token_id: int
    logprob: float
    """Log probability of that token, normalised over the two answers; at most 0. It
    determines that of the other token, so the greedy answer follows from either sample."""
    num_cached_tokens: int = 0


Ask = Callable[[Probes], Awaitable[list[ProbeReply]]]
"""Continues each probe by one token among the two answers, with the row's images attached to all of
them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Anchor:
    """A cut of a response and the claim that is probed there."""

    position: int
    """a_k: response tokens before the cut, 1..T."""
    claim: str
    label: bool
    """Whether the claim is true; kept with its claim from the data row to the score."""
    own_boundary: bool
    """False if the response had no logical boundary left for this anchor."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AnchorResult:
    """An anchor with the policy's answer."""

    anchor: Anchor
    answer: bool
    """True for yes: the likelier of the two answer tokens, the greedy answer."""
    p_yes: float
    """Probability of yes, normalised over the two answer tokens."""
    num_prompt_tokens: int
    num_cached_tokens: int
    """Prompt tokens found in the engine's KV cache."""

    @property
    def correct(self) -> bool:
        """s_k of Eq. 3."""
        return self.answer == self.anchor.label

    @property
    def p_label(self) -> float:
        """Probability of the correct answer: the soft s_k."""
        return self.p_yes if self.anchor.label else 1.0 - self.p_yes


async def probe_anchors(
    ask: Ask,
    question: AnchorQuestion,
    anchors: Sequence[Anchor],
    prompt_ids: Sequence[int],
    response_ids: Sequence[int],
) -> list[AnchorResult]:
    """Probe all anchors of one response in one call; results in the order of ``anchors``.

    Each probe reads prompt ids + response ids before the cut + ids of the question: the rollout's
    own tokens, so the engine can reuse the keys and values it computed while generating.
    """
    if not anchors:
        return []
    probes = Probes(
        token_ids=[*prompt_ids, *response_ids],
        cuts=[len(prompt_ids) + anchor.position for anchor in anchors],
        questions=[question.token_ids(anchor.claim) for anchor in anchors],
    )
    replies = await ask(probes)
    asked = zip(anchors, probes.cuts, probes.questions, replies, strict=True)
    return [_result(question, anchor, cut + len(ids), reply) for anchor, cut, ids, reply in asked]


def _result(
    question: AnchorQuestion, anchor: Anchor, num_prompt_tokens: int, reply: ProbeReply
) -> AnchorResult:
    p_yes = question.p_yes(reply.token_id, reply.logprob)
    return AnchorResult(
        anchor=anchor,
        answer=p_yes >= 0.5,
        p_yes=p_yes,
        num_prompt_tokens=num_prompt_tokens,
        num_cached_tokens=reply.num_cached_tokens,
    )
