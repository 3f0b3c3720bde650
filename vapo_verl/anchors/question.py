"""The question of a probe as token ids, its two answer tokens, and a check of its format."""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from vapo_verl.data.control_tokens import ControlTokens, read_escapes
from vapo_verl.reward.perception import CHANCE

ANSWER_BIAS = 100.0
"""Added to the logits of yes and no in a probe, the largest bias of vLLM: no other token keeps any
probability. Not ``allowed_token_ids``: vLLM 0.24 leaks its mask to other requests of the batch
(``InputBatch.swap_states`` swaps tensor rows in place, ``condense`` leaves the moved row behind),
and responses that still decode then say yes and no in mid-sentence.
"""
_TIE = 1e-6
"""Distance from 0.5 that rounding may cause in float32."""
MIN_FREE_FRACTION = 0.5
ONE_WAY = 0.9
LEAST_SPREAD = 0.02


class Tokenizer(Protocol):
    """The part of a Hugging Face tokenizer used here."""

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]: ...

    def __hash__(self) -> int: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class AnchorQuestion:
    """A question template bound to a tokenizer."""

    template: str
    tokenizer: Tokenizer
    yes_id: int
    no_id: int
    controls: ControlTokens | None = None
    """Control tokens that a claim may hold: they are encoded as plain text."""

    def token_ids(self, claim: str) -> list[int]:
        """The question about ``claim``, tokenised apart so that the prefix keeps its tokens."""
        if self.controls is not None:
            claim = self.controls.hide(claim)
        return _encode(self.tokenizer, self.template.replace("{claim}", claim))

    @property
    def answer_ids(self) -> tuple[int, int]:
        """Yes, no."""
        return self.yes_id, self.no_id

    def p_yes(self, token_id: int, logprob: float) -> float:
        """Probability of yes from either answer's log probability, normalised over the two.

        A tie, frequent with bfloat16 logits, is 0.5 whichever answer was drawn: rounding would put
        the drawn one just below it.

        Raises:
            RuntimeError: the token is neither answer.
        """
        if token_id not in self.answer_ids:
            raise RuntimeError(
                f"the engine answered an anchor with token {token_id}, neither yes ({self.yes_id}) "
                f"nor no ({self.no_id}): it ignored the bias on their logits"
            )
        drawn = math.exp(min(logprob, 0.0))
        if abs(drawn - 0.5) < _TIE:
            return 0.5
        return drawn if token_id == self.yes_id else 1.0 - drawn


def bind_question(
    tokenizer: Tokenizer,
    template: str,
    yes_words: Sequence[str],
    no_words: Sequence[str],
    *,
    controls: ControlTokens | None = None,
) -> AnchorQuestion:
    """Find the answer tokens of this tokenizer and check that they can follow the question.

    Args:
        controls: these are encoded as plain text where a claim holds them
            (`vapo.data.control_tokens=text`).

    Raises:
        ValueError: no word of a list is one token that follows the question's own tokens, or both
            answers are the same token.
    """
    if controls is not None:
        read_escapes(tokenizer)
    yes_id = _answer_id(tokenizer, template, yes_words, "vapo.anchors.yes_words")
    no_id = _answer_id(tokenizer, template, no_words, "vapo.anchors.no_words")
    if yes_id == no_id:
        raise ValueError(
            f"vapo.anchors.yes_words={list(yes_words)} and no_words={list(no_words)} name the same "
            f"token {yes_id}; give two words with distinct tokens"
        )
    return AnchorQuestion(
        template=template, tokenizer=tokenizer, yes_id=yes_id, no_id=no_id, controls=controls
    )


def _answer_id(tokenizer: Tokenizer, template: str, words: Sequence[str], key: str) -> int:
    question = template.replace("{claim}", "The sky is blue.")
    before = _encode(tokenizer, question)
    for word in words:
        after = _encode(tokenizer, question + word)
        if len(after) == len(before) + 1 and after[:-1] == before:
            return after[-1]
    raise ValueError(
        f"{key}={list(words)}: none is a single token right after the question for this tokenizer; "
        "add the tokenizer's spelling of the answer (often with a leading space)"
    )


def _encode(tokenizer: Tokenizer, text: str) -> list[int]:
    return list(_encoded(tokenizer, text))


@functools.lru_cache(maxsize=65_536)
def _encoded(tokenizer: Tokenizer, text: str) -> tuple[int, ...]:
    """Cached: all responses to a prompt use the same claims, once to count tokens and once to
    probe. veRL makes an agent loop, and so a question, for each response."""
    return tuple(tokenizer.encode(text, add_special_tokens=False))


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckReply:
    """The policy's answer to one claim directly after a prompt."""

    label: bool
    p_yes: float
    """Probability of yes, normalised over the two answer tokens."""
    free_token: str
    """The greedy token, not restricted to the two answers."""
    free_is_answer: bool
    """Whether `free_token` is one of the two answers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FormatCheck:
    """Statistics of the probes of a few rows, before training."""

    num_probes: int
    accuracy: float
    yes_rate: float
    p_yes_std: float
    free_fraction: float
    """Fraction of probes whose free answer is one of the two."""
    other_tokens: tuple[str, ...]
    """The most common free answers that are neither, at most 3."""

    @classmethod
    def of(cls, replies: Sequence[CheckReply]) -> FormatCheck:
        """Statistics of at least one reply."""
        others = [reply.free_token for reply in replies if not reply.free_is_answer]
        common = sorted(set(others), key=lambda token: (-others.count(token), token))
        return cls(
            num_probes=len(replies),
            accuracy=statistics.fmean((r.p_yes >= 0.5) == r.label for r in replies),
            yes_rate=statistics.fmean(r.p_yes >= 0.5 for r in replies),
            p_yes_std=statistics.pstdev(r.p_yes for r in replies),
            free_fraction=statistics.fmean(r.free_is_answer for r in replies),
            other_tokens=tuple(common[:3]),
        )

    def summary(self) -> str:
        """One line, with the standard error of chance for this number of probes."""
        error = math.sqrt(CHANCE * (1 - CHANCE) / self.num_probes)
        return (
            f"anchor format check: {self.num_probes} probes, accuracy {self.accuracy:.2f} "
            f"(chance {CHANCE:.2f} +- {error:.2f}), yes-rate {self.yes_rate:.2f}, "
            f"p(yes) spread {self.p_yes_std:.3f}, free answers yes or no {self.free_fraction:.2f}"
        )

    def warnings(self) -> list[str]:
        """Problems that make the perception reward uninformative, each with what to check."""
        found = []
        if self.free_fraction < MIN_FREE_FRACTION:
            found.append(
                f"left free, the policy answers {1 - self.free_fraction:.0%} of the probes with "
                f"something else, mostly {', '.join(map(repr, self.other_tokens))}: the format of "
                "vapo.anchors.question (a trailing space, a missing colon?) does not lead to yes "
                "or no, and its choice between the two is noise"
            )
        if not 1 - ONE_WAY <= self.yes_rate <= ONE_WAY:
            way = "yes" if self.yes_rate > ONE_WAY else "no"
            found.append(
                f"the policy answers {way} to nearly every claim, true or false "
                f"(yes-rate {self.yes_rate:.2f}): look at vapo.anchors.question, yes_words, "
                "no_words, and at the labels of the claims"
            )
        elif self.p_yes_std < LEAST_SPREAD:
            found.append(
                f"p(yes) hardly differs between claims (spread {self.p_yes_std:.3f}): the policy "
                "does not read them; look at vapo.anchors.question and the images"
            )
        return found


def format_check_lines(
    result: FormatCheck | None, num_rows: int, max_claim_tokens: int
) -> list[str]:
    """What a run prints of its format check.

    Args:
        result: None where no claim was asked.
        num_rows: training rows whose claims were looked at.
        max_claim_tokens: ``vapo.anchors.max_claim_tokens``.
    """
    if result is None:
        return [
            f"WARNING: anchor format check: no claim was asked: the first {num_rows} training rows "
            f"have none of at most vapo.anchors.max_claim_tokens={max_claim_tokens} tokens with "
            "its question. Rows without probes train without a perception reward: raise the limit, "
            "or shorten the claims"
        ]
    return [result.summary(), *(f"WARNING: {warning}" for warning in result.warnings())]
