"""Rules for claims: wording, likeness, and which candidates an image keeps. Pure.

Each text rule is a small function named after its reason. Quoted text comes from the image and is
not the claim's wording: the rules on wording skip it.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import zip_longest

from vapo_verl.cli_options import cli
from vapo_verl.data.claims_column import BALANCED_SHARE, CLAIMS_PER_IMAGE, Claim

MIN_WORDS = 3
MAX_CLAIMS = 1000
MAX_WORDS = 20
"""A.6 of arXiv 2509.25848."""

_QUOTED = re.compile(r"\"[^\"]*\"|“[^”]*”|‘[^’]*’|(?<!\w)'[^']*'(?!\w)|`[^`]*`")
_HEDGES = re.compile(
    r"\b(might|could|possibly|perhaps|maybe|probably|likely|presumably|apparently|seemingly"
    r"|seems?|suggests?|appears? (to|as)|looks? (like|as)|unclear|uncertain|roughly"
    r"|approximately|i (think|believe|guess)|cannot be (seen|determined)|not sure)\b",
    re.IGNORECASE,
)
_MAY = re.compile(r"\bmay\b")  # not the month, which has a capital
_TALK = re.compile(r"\b(the|this|that) (question|answer|claim|statement)\b|\?", re.IGNORECASE)
_VERB = (
    r"(is|are|was|were|has|have|had|shows?|contains?|reads?|says?|stands?|sits?|lies?|holds?"
    r"|wears?|faces?|equals?|does|do|can)"
)
# A participle counts directly after the conjunction only: "the building and the fence are high".
_TWO_CLAUSES = re.compile(
    rf"\b{_VERB}\b.*\b(and|but|while|whereas|although)( \w+ing\b|\b.*\b{_VERB}\b)|;|[.!] [A-Z]",
    re.IGNORECASE,
)
_COLORS = re.compile(
    r"\b(red|orange|yellow|green|blue|purple|violet|pink|brown|black|white|gr[ae]y|beige|cyan"
    r"|magenta|turquoise|teal|gold|silver|colou?r(s|ed)?)\b",
    re.IGNORECASE,
)
_UNIT = r"(degrees|units|inches|feet|\w*met(er|re)s|miles|\w*grams|dollars|\w*seconds)"
_COUNTS = re.compile(
    r"\b(two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|\d+)\s+"
    rf"(?!{_VERB}\b|{_UNIT}\b)(\w+\s+)?\w+s\b"  # "the 7 stands" is a written digit, no count
    r"|\b(number of|count of|exactly (one|\d+)|only one)\b",
    re.IGNORECASE,
)
_MIN_ASCII_SHARE = 0.9
MAX_SIMILARITY = 0.95
"""Cosine above which two claims count as the same; A.6 uses it for embeddings."""
_NUM_REMEMBERED = 256
"""Texts whose parts are cached: each candidate is compared with about twenty claims."""
_WORD = re.compile(r"[^\W_]+(?:'[a-z]+)?")
_NEGATIONS = {"not", "no", "never", "without", "isn't", "aren't", "doesn't", "don't", "hasn't"}
_FILLERS = {"a", "an", "any", "do", "does"}
_OPPOSITES = (
    *("left right", "above below", "over under", "top bottom", "upper lower", "inside outside"),
    *("larger smaller", "bigger smaller", "taller shorter", "longer shorter", "wider narrower"),
    *("more fewer", "more less", "higher lower", "open closed", "on off", "front behind"),
    *("first last", "present absent", "visible hidden", "increasing decreasing", "same different"),
    *(
        "indoors outdoors",
        "horizontal vertical",
        "full empty",
        "before after",
        "leftmost rightmost",
    ),
)
_OPPOSITE_PAIRS = {frozenset(pair.split()) for pair in _OPPOSITES}


def text_problem(text: str, max_words: int = MAX_WORDS) -> str | None:
    """The reason to reject the claim, or None."""
    if not has_good_length(text, max_words):
        return "length"
    plain = unquoted(text)
    return next((reason for reason, broken in WORDING.items() if broken(plain)), None)


def unquoted(text: str) -> str:
    """The claim with what it quotes blanked out."""
    return _QUOTED.sub('""', text)


def has_good_length(text: str, max_words: int = MAX_WORDS) -> bool:
    return MIN_WORDS <= len(text.split()) <= max_words


def is_hedged(text: str) -> bool:
    """ "seems to be", "probably": such a claim is neither true nor false."""
    return bool(_HEDGES.search(text) or _MAY.search(text))


def has_several_facts(text: str) -> bool:
    """Two clauses, each with a verb, or two sentences; "the cat and the dog sit" is one fact."""
    return bool(_TWO_CLAUSES.search(text))


def is_about_the_task(text: str) -> bool:
    """A question, or a statement about questions, answers or claims instead of the image."""
    return bool(_TALK.search(text))


def is_not_english(text: str) -> bool:
    """Mostly non-ASCII letters. Other languages in Latin script are not detected."""
    letters = [character for character in text if character.isalpha()]
    num_ascii = sum(character.isascii() for character in letters)
    return not letters or num_ascii < _MIN_ASCII_SHARE * len(letters)


def is_low_level(text: str) -> bool:
    """About a bare colour or count, which says little about understanding the image."""
    plain = unquoted(text)
    return bool(_COLORS.search(plain) or _COUNTS.search(plain))


WORDING: dict[str, Callable[[str], bool]] = {
    "hedge": is_hedged,
    "several_facts": has_several_facts,
    "about_the_task": is_about_the_task,
    "language": is_not_english,
}
"""Reason -> whether a claim, quotes blanked, breaks the rule."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimRules:
    """Requirements on the claims of one image together."""

    num_claims: int = CLAIMS_PER_IMAGE
    """Claims per image, half of them true; if odd, one more is false."""
    max_words: int = field(default=MAX_WORDS, metadata=cli(hidden=True))
    max_low_level_fraction: float = field(default=0.4, metadata=cli(flag="--max-low-level"))
    """Largest fraction of claims about bare colours and counts. The paper gives no number."""
    max_similarity: float = field(default=MAX_SIMILARITY, metadata=cli(hidden=True))

    def __post_init__(self) -> None:
        if not 2 <= self.num_claims <= MAX_CLAIMS:
            raise ValueError(
                f"--num-claims: {self.num_claims}; give at least 2, a true and a false, and at "
                f"most {MAX_CLAIMS}"
            )
        if not 0 <= self.max_low_level_fraction <= 1:
            raise ValueError(
                f"--max-low-level: {self.max_low_level_fraction}; give a fraction in [0, 1]"
            )

    def num_wanted(self, label: bool) -> int:
        num_true = self.num_claims // 2
        return num_true if label else self.num_claims - num_true

    def num_missing(self, kept: Sequence[Claim], label: bool) -> int:
        """Claims of this label that are still to be found."""
        return self.num_wanted(label) - sum(claim.label == label for claim in kept)

    def low_level_is_full(self, kept: Sequence[Claim]) -> bool:
        """Whether no more claims about colours and counts may come in."""
        num_low = sum(is_low_level(claim.text) for claim in kept)
        return num_low >= int(self.max_low_level_fraction * self.num_claims)


def add_candidates(
    kept: Sequence[Claim], candidates: Iterable[Claim], rules: ClaimRules
) -> tuple[tuple[Claim, ...], Counter[str]]:
    """`kept` and the accepted `candidates`, and the number of rejections by reason.

    Candidates about relations, text and scene come before those about colours and counts.
    """
    chosen, rejected = list(kept), Counter[str]()
    for claim in sorted(candidates, key=lambda claim: is_low_level(claim.text)):
        reason = rejection(chosen, claim, rules)
        if reason is None:
            chosen.append(claim)
        else:
            rejected[reason] += 1
    return tuple(chosen), rejected


def rejection(kept: Sequence[Claim], claim: Claim, rules: ClaimRules) -> str | None:
    """Why `claim` may not join `kept`, None when it may: a reason of `rules`, or `opposite`,
    `duplicate`, `surplus` (its label has enough claims), `low_level` (the cap is reached)."""
    if reason := text_problem(claim.text, rules.max_words):
        return reason
    if any(are_opposite(claim.text, other.text) for other in kept):
        return "opposite"
    if any(are_same(claim.text, other.text, rules.max_similarity) for other in kept):
        return "duplicate"
    if rules.num_missing(kept, claim.label) <= 0:
        return "surplus"
    if is_low_level(claim.text) and rules.low_level_is_full(kept):
        return "low_level"
    return None


def balanced(claims: Sequence[Claim]) -> tuple[Claim, ...]:
    """The first claims of each label, so that the fraction of true ones is in `BALANCED_SHARE`.

    If all claims are true, or all false, none are kept: always saying yes would be rewarded.
    """
    low, high = BALANCED_SHARE
    smaller = min(sum(claim.label is label for claim in claims) for label in (True, False))
    cap = int(smaller * high / low + 1e-9)  # 3 false ones allow 7 true ones
    seen = Counter[bool]()
    kept = []
    for claim in claims:
        seen[claim.label] += 1
        if seen[claim.label] <= cap:
            kept.append(claim)
    return tuple(kept)


def similarity(first: str, second: str) -> float:
    """Cosine, 0..1, of the counts of character trigrams of the two normalised texts.

    >>> similarity("The cat sleeps.", "the  cat sleeps")
    1.0
    """
    a, b = _trigrams(first), _trigrams(second)
    dot = sum(count * b[gram] for gram, count in a.items())
    if not dot:
        return 0.0
    # one root of the product, so that equal texts give exactly 1
    return dot / math.sqrt(sum(n * n for n in a.values()) * sum(n * n for n in b.values()))


def are_same(first: str, second: str, max_similarity: float = MAX_SIMILARITY) -> bool:
    """Whether the texts are more alike than `max_similarity`, as opposites can be, too."""
    return similarity(first, second) > max_similarity


def are_opposite(first: str, second: str) -> bool:
    """Whether only a negation, or one pair like left/right, tells the two claims apart."""
    a, b = _words(first), _words(second)
    if (_NEGATIONS & set(a)) != (_NEGATIONS & set(b)) and _affirmed(a) == _affirmed(b):
        return True
    changed = [frozenset(pair) for pair in zip_longest(a, b) if pair[0] != pair[1]]
    return len(changed) == 1 and changed[0] in _OPPOSITE_PAIRS


@lru_cache(_NUM_REMEMBERED)
def _words(text: str) -> tuple[str, ...]:
    return tuple(_WORD.findall(text.casefold().replace("’", "'")))


def _affirmed(words: tuple[str, ...]) -> list[str]:
    """The words without the negation: "is no cat", "isn't a cat" -> is, cat."""
    plain = (word.removesuffix("n't") for word in words)
    return [word for word in plain if word not in _NEGATIONS | _FILLERS]


@lru_cache(_NUM_REMEMBERED)
def _trigrams(text: str) -> Counter[str]:
    line = f"  {' '.join(_words(text))} "
    return Counter(line[i : i + 3] for i in range(len(line) - 2))
