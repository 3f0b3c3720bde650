"""Numbers for an audit: shares with their intervals, and agreement beyond chance."""

import math
from collections import Counter
from collections.abc import Sequence

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


def cohens_kappa(pairs: Sequence[tuple[str, str]]) -> float | None:
    """Agreement of two people beyond chance: (p_o - p_e) / (1 - p_e) (Cohen 1960).

    p_o is the share of equal answers, p_e what their own frequencies give by chance. None where it
    means nothing: no pairs, or both gave the same one answer throughout.
    """
    if not pairs:
        return None
    first, second = Counter(a for a, _ in pairs), Counter(b for _, b in pairs)
    observed = sum(a == b for a, b in pairs) / len(pairs)
    by_chance = sum(first[answer] * second[answer] for answer in first) / len(pairs) ** 2
    return None if by_chance == 1 else (observed - by_chance) / (1 - by_chance)
