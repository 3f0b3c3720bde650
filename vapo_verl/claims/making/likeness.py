"""Whether two claims say the same, or plainly the opposite: then one gives the other away."""

import math
import re
from collections import Counter
from functools import lru_cache
from itertools import zip_longest

MAX_SIMILARITY = 0.95
"""Cosine above which two claims count as the same, as A.6 has it for embeddings."""

_NUM_REMEMBERED = 256
"""Texts whose parts are kept: a candidate is compared with each of some twenty claims."""
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
    """Whether the texts are more alike than `max_similarity`; opposites are not the same."""
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
    """The words that stay when a sentence is negated: "is no cat", "isn't a cat" -> is, cat."""
    plain = (word.removesuffix("n't") for word in words)
    return [word for word in plain if word not in _NEGATIONS | _FILLERS]


@lru_cache(_NUM_REMEMBERED)
def _trigrams(text: str) -> Counter[str]:
    line = f"  {' '.join(_words(text))} "
    return Counter(line[i : i + 3] for i in range(len(line) - 2))
