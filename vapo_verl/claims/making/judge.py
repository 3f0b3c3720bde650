"""Has a model vote on the claims of one image, and keeps those that most votes agree with."""

import re
from collections import Counter
from dataclasses import replace
from random import Random

from vapo_verl.claims.images import ImageItem
from vapo_verl.claims.making.answer import without_thinking
from vapo_verl.claims.making.maker import prepared
from vapo_verl.claims.making.prompt import verdict_messages
from vapo_verl.claims.options import CheckOptions
from vapo_verl.claims.requests.picture import Picture
from vapo_verl.claims.requests.retry import PatientAsker
from vapo_verl.claims.shards.record import ClaimRecord, Usage, Verdict
from vapo_verl.claims.shards.store import RecordIndex
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
        """The image's record with verdicts, and without the claims they went against.

        Raises:
            ImageFailed: a claim could not be asked about.
            FatalFault: the endpoint would refuse every image.
        """
        record = self._records[item.key]
        picture = await prepared(item, self._max_pixels)
        rng = Random(f"{self._seed}:{item.key}")
        verdicts, usage = [], Usage()
        for claim in record.claims:
            verdict, spent = await self._judge(claim, picture, rng)
            verdicts.append(verdict)
            usage += spent
        judged = zip(record.claims, verdicts, strict=True)
        return replace(
            record,
            claims=tuple(claim for claim, verdict in judged if verdict.kept),
            verdicts=tuple(verdicts),
            check_model=self._model,
            check_usage=usage,
        )

    async def _judge(self, claim: Claim, picture: Picture, rng: Random) -> tuple[Verdict, Usage]:
        votes, usage = list[bool | None](), Usage()
        messages = verdict_messages(picture, claim.text)
        while (num_missing := self._options.votes - len(votes)) > 0:
            num_choices = 1 if self._options.separate_votes else num_missing
            reply = await self._asker.ask(messages, rng, num_choices)
            # a server that does not know `n` sends one answer, and is asked for the others
            votes += [read_vote(choice.text) for choice in reply.choices[:num_missing]]
            usage += reply.usage
        counts = Counter(votes)
        verdict = Verdict(
            text=claim.text,
            label=claim.label,
            num_yes=counts[True],
            num_no=counts[False],
            num_unclear=counts[None],
        )
        return verdict, usage


def read_vote(text: str) -> bool | None:
    """True for an answer that begins with "yes", False for "no" (any case, any decoration), else
    None; thinking in front is passed over."""
    word = _FIRST_WORD.search(without_thinking(text))
    return {"yes": True, "no": False}.get(word[0].casefold()) if word else None
