"""Choose where to cut a finished response: logical boundaries of its reasoning.

Positions count response tokens before the cut, so a cut is always between two tokens of the
rollout and ``response_ids[:position]`` is exactly the text that the policy had written at the cut.
"""

import itertools
from collections.abc import Sequence

import numpy as np

from vapo_verl.config import PLACEMENTS
from vapo_verl.reward import BOX, THINK_END

BOUNDARY_CHARACTERS = frozenset(",.!?;:\n，。！？；：")
"""Ends of clauses and sentences, in ASCII and full width."""


def reasoning_length(pieces: Sequence[str]) -> int:
    """Length of the reasoning: up to ``</think>``, else the last ``\\boxed``, else all.

    Args:
        pieces: text of each response token. A token inside a multi-byte character may decode to
            a replacement character; the two markers are ASCII and stay readable.
    """
    text = "".join(pieces)
    end = text.find(THINK_END)
    if end < 0:
        end = text.rfind(BOX)
    if end < 0:
        return len(pieces)
    starts = np.cumsum([0, *map(len, pieces)])
    return int(np.searchsorted(starts, end, side="right")) - 1


def logical_boundaries(pieces: Sequence[str]) -> list[int]:
    """Positions inside the reasoning right after a token that ends a clause or a line.

    A mark between two digits (``3.14``, ``1,000``) is no boundary. The end of the reasoning
    is one if its last token is such a mark.
    """
    end = reasoning_length(pieces)
    return [i + 1 for i in range(end) if _ends_clause(pieces[i], "".join(pieces[i + 1 : i + 2]))]


def _ends_clause(piece: str, following: str) -> bool:
    marked = piece.rstrip(" ")[-1:] in BOUNDARY_CHARACTERS and piece != ""
    return marked and not (following[:1].isdigit() and piece.rstrip(" ")[-1:] in ",.:")


def place(
    boundaries: Sequence[int],
    num_anchors: int,
    *,
    end: int,
    placement: str,
    min_gap: int,
    rng: np.random.Generator,
) -> list[tuple[int, bool]]:
    """K cuts in ascending order, each with a flag: true if it has its own boundary.

    Args:
        boundaries: ascending candidate positions.
        num_anchors: K.
        end: the position used when there is no boundary, 1..T.
        placement: ``random``; ``relative`` (K random fractions of the reasoning, each at the
            nearest free boundary); ``uniform`` (evenly spread over the reasoning); ``front`` or
            ``back`` (the first or the last K).
        min_gap: minimum distance between two cuts, in tokens.
        rng: draws of ``random`` and ``relative``; the number of draws of ``relative`` does not
            depend on the response, so that siblings with equal generators get equal fractions.

    With too few boundaries the last cut is repeated, with ``relative`` the nearest one: claims that
    siblings share stay at nearly the same fraction. Without any, every anchor is at ``end``.

    Raises:
        ValueError: a placement that is not one of :data:`vapo_verl.config.PLACEMENTS`.
    """
    if placement not in PLACEMENTS:
        raise ValueError(f"placement={placement!r} is unknown; use one of {', '.join(PLACEMENTS)}")
    if num_anchors == 0:
        return []
    if placement == "relative":
        return _at_fractions(boundaries, rng.random(num_anchors), end, min_gap)
    preferred = _preference(boundaries, num_anchors, placement, rng)
    chosen = sorted(_spaced(preferred, num_anchors, min_gap))
    last = chosen[-1] if chosen else end
    missing = num_anchors - len(chosen)
    return [(position, True) for position in chosen] + [(last, False)] * missing


def _preference(
    boundaries: Sequence[int], num_anchors: int, placement: str, rng: np.random.Generator
) -> list[int]:
    """The boundaries in the order in which they are tried."""
    if placement == "front":
        return list(boundaries)
    if placement == "back":
        return list(reversed(boundaries))
    if placement == "random":
        return [boundaries[i] for i in rng.permutation(len(boundaries))]
    assert placement == "uniform", placement
    return _evenly(boundaries, num_anchors)


def _at_fractions(
    boundaries: Sequence[int], fractions: np.ndarray, end: int, min_gap: int
) -> list[tuple[int, bool]]:
    """For each fraction of ``end`` the nearest boundary that is free.

    If that does not suffice for all, each takes the nearest of the chosen ones, free or not.
    """
    candidates = np.asarray(boundaries, dtype=np.int64)
    targets = np.sort(fractions) * end
    chosen: list[int] = []
    for target in targets:
        nearest = candidates[np.argsort(abs(candidates - target), kind="stable")].tolist()
        free = (b for b in nearest if all(abs(b - other) >= min_gap for other in chosen))
        chosen.extend(itertools.islice(free, 1))
    chosen.sort()
    if len(chosen) == len(targets) or not chosen:
        return [(b, True) for b in chosen] or [(end, False)] * len(targets)
    nearest = [min(chosen, key=lambda b: abs(b - target)) for target in targets]
    return [(b, b not in nearest[:i]) for i, b in enumerate(nearest)]


def _evenly(boundaries: Sequence[int], num_anchors: int) -> list[int]:
    """First the boundaries nearest to K evenly spaced targets, then the others."""
    if not boundaries:
        return []
    ends = boundaries[0], boundaries[-1]
    targets = [sum(ends) / 2] if num_anchors == 1 else np.linspace(*ends, num_anchors)
    nearest = [min(boundaries, key=lambda b: abs(b - target)) for target in targets]
    return list(dict.fromkeys([*nearest, *boundaries]))


def _spaced(preferred: Sequence[int], num_anchors: int, min_gap: int) -> list[int]:
    chosen: list[int] = []
    for position in preferred:
        if len(chosen) == num_anchors:
            break
        if all(abs(position - other) >= min_gap for other in chosen):
            chosen.append(position)
    return chosen
