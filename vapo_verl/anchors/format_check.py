"""Check that the policy answers the anchor question, and not always the same way."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from vapo_verl.reward.perception import CHANCE

MIN_FREE_FRACTION = 0.5
ONE_WAY = 0.9
LEAST_SPREAD = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckReply:
    """The policy's answer to one claim directly after a prompt."""

    label: bool
    p_yes: float
    """Probability of yes, normalised over the two answer tokens."""
    free_token: str
    """Its greedy token when it is not restricted to the two answers."""
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
        """One line; chance with its standard error over that many probes."""
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
