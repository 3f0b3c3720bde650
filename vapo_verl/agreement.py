"""Statistics of yes/no answers: a share with its interval, and agreement beyond chance."""

import math
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping
from typing import TypeVar

Answer = TypeVar("Answer", bound=Hashable)
_Z_95 = 1.959963984540054


def wilson_interval(num_yes: int, num_all: int) -> tuple[float, float]:
    """95 % interval of a share (Wilson 1927); (0, 1) for none of none.

    (p + z²/2n ± z sqrt(p(1-p)/n + z²/4n²)) / (1 + z²/n). Unlike p ± 1.96 sqrt(p(1-p)/n) it stays
    within 0..1 and does not shrink to nothing at 100 %, where audits end up.
    """
    if num_all == 0:
        return 0.0, 1.0
    share, z2 = num_yes / num_all, _Z_95**2 / num_all
    middle = (share + z2 / 2) / (1 + z2)
    half = _Z_95 * math.sqrt(share * (1 - share) / num_all + z2 / (4 * num_all)) / (1 + z2)
    return max(middle - half, 0.0), min(middle + half, 1.0)


def cohens_kappa(pairs: Iterable[tuple[Answer, Answer]]) -> float | None:
    """Agreement of two raters beyond chance: (p_o - p_e) / (1 - p_e) (Cohen 1960).

    p_o is the share of equal answers, p_e what the raters' own frequencies give by chance. None
    where it means nothing: no pairs, or both gave the same one answer throughout.
    """
    return kappa_of_counts(Counter(pairs))


def kappa_of_counts(counts: Mapping[tuple[Answer, Answer], int]) -> float | None:
    """The same from how often each pair of answers was given."""
    total = sum(counts.values())
    if not total:
        return None
    first: Counter[Answer] = Counter()
    second: Counter[Answer] = Counter()
    for (a, b), count in counts.items():
        first[a] += count
        second[b] += count
    observed = sum(count for (a, b), count in counts.items() if a == b) / total
    by_chance = sum(count * second[answer] for answer, count in first.items()) / total**2
    return None if by_chance == 1 else (observed - by_chance) / (1 - by_chance)
