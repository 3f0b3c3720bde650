"""Let a model vote on the claims of one image, and keep those that the majority confirms."""

import math
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from random import Random

from vapo_verl.analysis.statistics import kappa_of_counts
from vapo_verl.claims.images import ImageItem
from vapo_verl.claims.making.maker import prepared, vote_messages, without_thinking
from vapo_verl.claims.options import CheckOptions
from vapo_verl.claims.requests.endpoint import Picture
from vapo_verl.claims.requests.retry import PatientAsker
from vapo_verl.claims.shards import ClaimRecord, RecordIndex, Usage, VoteCount
from vapo_verl.data.claims_column import Claim

_FIRST_WORD = re.compile(r"[^\W_]+")


class ClaimJudge:
    """Turns the record of an image into a checked one."""

    def __init__(
        self,
        asker: PatientAsker,
        options: CheckOptions,
        records: RecordIndex,
        *,
        model: str,
        seed: int,
        max_pixels: int | None = None,
    ):
        self._asker, self._options, self._records = asker, options, records
        self._model, self._seed, self._max_pixels = model, seed, max_pixels

    async def make(self, item: ImageItem) -> ClaimRecord:
        """The image's record with the votes, without the claims whose label they do not confirm.

        Raises:
            ImageFailed: the request for a claim failed.
            FatalFault: the endpoint would refuse every image.
        """
        record = self._records[item.key]
        picture = await prepared(item, self._max_pixels)
        rng = Random(f"{self._seed}:{item.key}")
        vote_counts, usage = [], Usage()
        for claim in record.claims:
            vote_count, spent = await self._judge(claim, picture, rng)
            vote_counts.append(vote_count)
            usage += spent
        judged = zip(record.claims, vote_counts, strict=True)
        return replace(
            record,
            claims=tuple(claim for claim, vote_count in judged if vote_count.kept),
            vote_counts=tuple(vote_counts),
            check_model=self._model,
            check_usage=usage,
        )

    async def _judge(self, claim: Claim, picture: Picture, rng: Random) -> tuple[VoteCount, Usage]:
        votes, usage = list[bool | None](), Usage()
        messages = vote_messages(picture, claim.text)
        while (num_missing := self._options.votes - len(votes)) > 0:
            num_choices = 1 if self._options.separate_votes else num_missing
            reply = await self._asker.ask(messages, rng, num_choices)
            # a server that ignores `n` sends one answer; the others are requested again
            votes += [read_vote(choice.text) for choice in reply.choices[:num_missing]]
            usage += reply.usage
        counts = Counter(votes)
        vote_count = VoteCount(
            text=claim.text,
            label=claim.label,
            num_yes=counts[True],
            num_no=counts[False],
            num_unclear=counts[None],
        )
        return vote_count, usage


def read_vote(text: str) -> bool | None:
    """True for an answer that begins with "yes", False for "no" (any case, any decoration), else
    None; thinking before it is skipped."""
    word = _FIRST_WORD.search(without_thinking(text))
    return {"yes": True, "no": False}.get(word[0].casefold()) if word else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """Statistics of the votes on many claims; None where a denominator is 0."""

    num_claims: int
    num_undecided: int
    """Ties, and claims without any yes or no. Of the rates, only `fraction_unanimous` has them."""
    rate: float | None
    """Fraction of decided claims whose majority is the label."""
    rate_true: float | None
    """The same over claims labelled true: the rest are true claims that the judge denies."""
    rate_false: float | None
    kappa: float | None
    """Cohen's kappa of label and majority over decided claims: 1 is full agreement, 0 is chance.
    None also if both raters always give the same single answer."""
    fraction_unanimous: float | None
    """Fraction of claims whose votes are all yes or all no."""
    mean_vote_entropy: float | None
    """In bits (0..1) per claim, over its yes and no votes; claims without such a vote are left
    out."""

    @property
    def fraction_undecided(self) -> float | None:
        return _ratio(self.num_undecided, self.num_claims)


def measure_agreement(vote_counts: Iterable[VoteCount]) -> Agreement:
    """The figures of a stream of votes on claims.

    With the counts n[label, majority] of decided claims and N their sum,
    rate p_o = (n[T,T] + n[F,F]) / N, chance p_e = (n[T,.] n[.,T] + n[F,.] n[.,F]) / N^2, and
    kappa = (p_o - p_e) / (1 - p_e).
    """
    counts = {(label, majority): 0 for label in (True, False) for majority in (True, False)}
    num_claims = num_undecided = num_unanimous = num_voted = 0
    entropy = 0.0
    for vote_count in vote_counts:
        num_claims += 1
        num_unanimous += _is_unanimous(vote_count)
        if vote_count.num_yes + vote_count.num_no:
            num_voted += 1
            entropy += vote_entropy(vote_count)
        if vote_count.majority is None:
            num_undecided += 1
        else:
            counts[vote_count.label, vote_count.majority] += 1
    true, false = counts[True, True], counts[False, False]
    num_true, num_false = true + counts[True, False], false + counts[False, True]
    return Agreement(
        num_claims=num_claims,
        num_undecided=num_undecided,
        rate=_ratio(true + false, num_true + num_false),
        rate_true=_ratio(true, num_true),
        rate_false=_ratio(false, num_false),
        kappa=kappa_of_counts(counts),
        fraction_unanimous=_ratio(num_unanimous, num_claims),
        mean_vote_entropy=_ratio(entropy, num_voted),
    )


def vote_entropy(vote_count: VoteCount) -> float:
    """Entropy of the yes and no votes in bits: 0 if they agree or there are none, 1 for a tie."""
    total = vote_count.num_yes + vote_count.num_no
    fractions = [votes / total for votes in (vote_count.num_yes, vote_count.num_no) if votes]
    return sum(-fraction * math.log2(fraction) for fraction in fractions)


def _is_unanimous(vote_count: VoteCount) -> bool:
    return not vote_count.num_unclear and (vote_count.num_yes == 0) != (vote_count.num_no == 0)


def _ratio(part: float, total: int) -> float | None:
    return part / total if total else None
