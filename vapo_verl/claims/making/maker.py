"""Makes the claims of one image: ask, read, choose, and ask again for what is missing."""

import asyncio
from collections import Counter
from random import Random

from vapo_verl.claims.images import ImageItem
from vapo_verl.claims.making.answer import parse_answer
from vapo_verl.claims.making.prompt import claims_messages
from vapo_verl.claims.making.rules import add_candidates, balanced
from vapo_verl.claims.options import MakeOptions
from vapo_verl.claims.report import RunCounts
from vapo_verl.claims.requests.picture import Picture, prepare
from vapo_verl.claims.requests.reply import ImageFailed
from vapo_verl.claims.requests.retry import PatientAsker
from vapo_verl.claims.shards import ClaimRecord, Usage
from vapo_verl.data.claims_column import Claim
from vapo_verl.data.errors import BadCell


class ClaimMaker:
    """Turns images into records; what is turned down on the way is counted in the counts."""

    def __init__(
        self,
        asker: PatientAsker,
        options: MakeOptions,
        counts: RunCounts,
        *,
        model: str,
        seed: int,
        max_pixels: int | None = None,
    ):
        self._asker, self._options, self._counts = asker, options, counts
        self._model, self._seed, self._max_pixels = model, seed, max_pixels

    async def make(self, item: ImageItem) -> ClaimRecord:
        """The record of one image, full or short.

        Raises:
            ImageFailed: no true and false claim could be had, or the endpoint let the image down.
            FatalFault: the endpoint would refuse every image.
        """
        picture = await prepared(item, self._max_pixels)
        rng = Random(f"{self._seed}:{item.key}")
        rules, kept = self._options.rules, tuple[Claim, ...]()
        usage, rejected, attempts = Usage(), Counter[str](), 0
        while attempts < self._options.max_attempts and len(kept) < rules.num_claims:
            reply = await self._asker.ask(claims_messages(picture, rules, kept), rng)
            choice = reply.choices[0]
            answer = parse_answer(choice.text, cut_off=choice.cut_off)
            kept, turned_down = add_candidates(kept, answer.claims, rules)
            self._counts.rejected.update(answer.rejected + turned_down)
            rejected += answer.rejected + turned_down
            usage += reply.usage
            attempts += 1
        claims = list(balanced(kept))
        self._require_enough(claims, attempts)
        rng.shuffle(claims)  # as kept, an answer's true claims stand before its false ones
        return ClaimRecord(
            image_key=item.key,
            claims=tuple(claims),
            model=self._model,
            num_wanted=rules.num_claims,
            attempts=attempts,
            usage=usage,
            rejected=dict(sorted(rejected.items())),
        )

    def _require_enough(self, claims: list[Claim], attempts: int) -> None:
        if not claims:
            raise ImageFailed("no valid true and false claim", f"{attempts} answers")
        num_wanted = self._options.rules.num_claims
        if self._options.require_full and len(claims) < num_wanted:
            raise ImageFailed("short", f"{len(claims)} of {num_wanted} after {attempts} answers")


async def prepared(item: ImageItem, max_pixels: int | None) -> Picture:
    """The image as it is sent. Raises ImageFailed when it has to be decoded and cannot be."""
    try:
        # decoding takes long enough to hold up the other images
        return await asyncio.to_thread(prepare, item.data, item.media_type, max_pixels)
    except BadCell as bad:
        raise ImageFailed("unreadable image", bad.found) from bad
