"""How far two next-token distributions are apart, from their likeliest tokens."""

from __future__ import annotations

import math
from collections.abc import Mapping

_SMALLEST = 1e-9


def divergence(p: Mapping[int, float], q: Mapping[int, float]) -> float:
    """KL(p || q) in nats over the tokens that both lists hold, all others as one outcome.

    Joining outcomes never enlarges a KL divergence, so this is a lower bound of that over the whole
    vocabulary, and equal to it where the others have no probability.

    Args:
        p: token id -> log probability, of the likeliest tokens and perhaps others.
        q: the same under the other condition.
    """
    common = p.keys() & q.keys()
    total = sum(math.exp(p[token]) * (p[token] - q[token]) for token in common)
    rest_p, rest_q = (
        max(1.0 - sum(math.exp(values[token]) for token in common), _SMALLEST) for values in (p, q)
    )
    return max(total + rest_p * math.log(rest_p / rest_q), 0.0)
