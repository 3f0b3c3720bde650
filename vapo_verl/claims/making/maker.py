"""Makes the claims of one image: ask, read, choose, and ask again for what is missing."""

import asyncio
import base64
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from random import Random

from vapo_verl.claims.images import ImageItem
from vapo_verl.claims.making.rules import ClaimRules, add_candidates, balanced
from vapo_verl.claims.options import MakeOptions
from vapo_verl.claims.report import RunCounts
from vapo_verl.claims.requests.endpoint import Picture, prepare
from vapo_verl.claims.requests.reply import ImageFailed, Message
from vapo_verl.claims.requests.retry import PatientAsker
from vapo_verl.claims.shards import ClaimRecord, Usage
from vapo_verl.data.cells import check_claim_text
from vapo_verl.data.claims_column import Claim, control_character, normalized_text
from vapo_verl.data.errors import BadCell

SYSTEM = "You write short statements that test whether somebody really sees an image."
_TASK = """\
Write {total} claims about this image: {num_true} true and {num_false} false.

Every claim
- is one English sentence of at most {max_words} words;
- can be judged from the pixels alone, without outside knowledge;
- states one fact: no second clause, no list of facts;
- is definite: no "may", "seems", "probably" or other hedging;
- differs from all others in what it is about; none is the plain opposite of another.
A false claim is a perception error that a careless look could make: a misread text or number, a \
wrong relation, a swapped position, a similar object. It must be clearly false.
Prefer relations, written text, layout and scene to bare colours and counts.{low_level_full}{kept}

Answer with {total} lines and nothing else. Each line is one JSON object:
{{"claim": "<the sentence>", "label": <true or false>}}"""
_NO_LOW_LEVEL = "\nThere are enough claims about colours and counts: write no more of them."
_KEPT = "\n\nThese claims exist already; do not repeat, reword or negate them:\n{lines}"
_QUESTION = (
    "Claim: {text}\n"
    "Judge the claim from the image alone. Is it correct? Answer with one word: Yes or No."
)
MALFORMED = "malformed"
"""Not a JSON object with a text under `claim`."""
BAD_LABEL = "bad_label"
"""`label` is absent or not true/false; the string "true" is no label."""
CONTROL = "control_character"
"""The text holds a character that :func:`~vapo_verl.data.claims_column.control_character` names."""
CONTROL_TOKEN = "control_token"
"""The text holds `<image>`, or a control token of Qwen-VL: `data check` would refuse its row."""
CUT_OFF = "cut_off"
"""The unfinished last line of an answer that ran into its token limit."""
EMPTY = "empty"
"""The answer holds no text at all."""
_FENCE = re.compile(r"^\s*```\w*\s*$")
_BRACKETS = ("[", "]", "[]")


class ClaimMaker:
    """Turns images into records; rejected candidates are added to the counts."""

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
            ImageFailed: no valid true and false claim, or the endpoint failed for this image.
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
        rng.shuffle(claims)  # an answer lists its true claims before its false ones
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
    """The image as it is sent. Raises ImageFailed if it must be decoded and decoding fails."""
    try:
        # decoding would block the requests of other images
        return await asyncio.to_thread(prepare, item.data, item.media_type, max_pixels)
    except BadCell as bad:
        raise ImageFailed("unreadable image", bad.found) from bad


def claims_messages(
    picture: Picture, rules: ClaimRules, kept: Sequence[Claim] = ()
) -> list[Message]:
    """Ask for the true and the false claims that are missing from `kept`."""
    return [{"role": "system", "content": SYSTEM}, _user(picture, task_text(rules, kept))]


def task_text(rules: ClaimRules, kept: Sequence[Claim] = ()) -> str:
    """The instructions; nothing in them depends on the row the image is from."""
    num_true, num_false = rules.num_missing(kept, True), rules.num_missing(kept, False)
    return _TASK.format(
        total=num_true + num_false,
        num_true=num_true,
        num_false=num_false,
        max_words=rules.max_words,
        low_level_full=_NO_LOW_LEVEL if rules.low_level_is_full(kept) else "",
        kept=_KEPT.format(lines="\n".join(f"- {claim.text}" for claim in kept)) if kept else "",
    )


def vote_messages(picture: Picture, text: str) -> list[Message]:
    """Ask whether one claim is correct."""
    return [_user(picture, question_text(text))]


def question_text(text: str) -> str:
    """The question about one claim."""
    return _QUESTION.format(text=text)


def _user(picture: Picture, text: str) -> Message:
    data = base64.b64encode(picture.data).decode("ascii")
    url = f"data:{picture.media_type};base64,{data}"
    image = {"type": "image_url", "image_url": {"url": url}}
    return {"role": "user", "content": [image, {"type": "text", "text": text}]}


@dataclass(frozen=True, slots=True, kw_only=True)
class ParsedAnswer:
    """The content of one answer."""

    claims: tuple[Claim, ...]
    """In the answer's order, each text normalised."""
    rejected: Counter[str] = field(default_factory=Counter)
    """Rejected lines or entries, by reason."""


def without_thinking(text: str) -> str:
    """The answer after a <think> block; empty if the block was never closed.

    Where a chat template opens the block, the text has only its end.
    """
    _, end, answer = text.rpartition("</think>")
    return "" if not end and text.lstrip().startswith("<think>") else answer


def parse_answer(text: str, *, cut_off: bool = False) -> ParsedAnswer:
    """Read an answer: JSON objects {"claim": string, "label": true | false}, one a line.

    Also accepted, because models write them: a code fence around the lines, thinking in <think>
    tags before them, a comma at the end of a line, and one JSON list of such objects (alone, or as
    the only value of an object). A line that is not such an object is rejected, and the others
    count. Nothing is raised.

    Args:
        cut_off: the token limit ended the answer, so its last line may be half a claim.
    """
    lines = [line for line in without_thinking(text).splitlines() if line.strip()]
    lines = [line for line in lines if not _FENCE.match(line)]
    if not lines:
        return ParsedAnswer(claims=(), rejected=Counter([CUT_OFF if cut_off else EMPTY]))
    read = [_read_entry(entry) for entry in _entries(lines)]
    claims = tuple(item for item in read if isinstance(item, Claim))
    reasons = [item for item in read if isinstance(item, str)]
    if cut_off and reasons and reasons[-1] == read[-1] == MALFORMED:
        reasons[-1] = CUT_OFF
    return ParsedAnswer(claims=claims, rejected=Counter(reasons))


def _entries(lines: list[str]) -> Iterator[object]:
    """The decoded entries; a line that is not JSON is returned as text."""
    decoded = _decode("\n".join(lines))
    if isinstance(decoded, dict) and len(decoded) == 1:
        decoded = next(iter(decoded.values()))
    if isinstance(decoded, list):
        yield from decoded
        return
    for line in lines:
        line = line.strip().rstrip(",")
        if line not in _BRACKETS:
            yield _decode(line)


def _decode(text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _read_entry(entry: object) -> Claim | str:
    """The claim, or the reason for its rejection."""
    if not isinstance(entry, dict) or not isinstance(entry.get("claim"), str):
        return MALFORMED
    if control_character(entry["claim"]):
        return CONTROL
    text = normalized_text(entry["claim"])
    if not text:
        return MALFORMED
    try:
        check_claim_text(text)
    except BadCell:
        return CONTROL_TOKEN
    return Claim(text, entry["label"]) if isinstance(entry.get("label"), bool) else BAD_LABEL
