"""What a vision model is asked: an image and instructions, never the row's question."""

import base64
from collections.abc import Sequence

from vapo_verl.claims.making.rules import ClaimRules
from vapo_verl.claims.requests.picture import Picture
from vapo_verl.claims.requests.reply import Message
from vapo_verl.data.claims_column import Claim

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


def claims_messages(
    picture: Picture, rules: ClaimRules, kept: Sequence[Claim] = ()
) -> list[Message]:
    """Ask for the claims that `kept` lacks, how many true and how many false."""
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
