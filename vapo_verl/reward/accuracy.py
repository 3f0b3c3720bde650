r"""Outcome accuracy: is the boxed answer of a response the ground truth?"""

import re

from vapo_verl.reward.matching import exact_match, math_match

THINK_END = "</think>"

_MATCHERS = {"exact": exact_match, "math": math_match}
_BRACE = re.compile(r"(?P<box>\\boxed\s*\{)|\\[{}]|(?P<open>\{)|(?P<close>\})")


def accuracy(response_text: str, ground_truth: str, style: str) -> float:
    r"""1.0 when the answer of the response equals the ground truth, else 0.0.

    Args:
        response_text: the whole decoded response, reasoning included.
        ground_truth: the right answer, bare or inside `\boxed{}`.
        style: "exact" (text, integers as integers; for synthetic worlds) or "math" (choice
            letters, words, numbers and LaTeX expressions, compared symbolically if need be).

    Edge cases: no answer, an unreadable one, or one whose comparison takes too long is 0.0:
    nothing in the model's text raises. The "math" style may wait for a child process (see
    `judge.py`), so call it from a thread (`asyncio.to_thread`) where an event loop runs.

    Raises:
        ValueError: an unknown style, or a blank ground truth, which no answer can match.
    """
    if style not in _MATCHERS:
        raise ValueError(f"style={style!r}: pick one of {sorted(_MATCHERS)}")
    truth = last_boxed(ground_truth) or ground_truth.strip()
    if not truth:
        raise ValueError(f"ground_truth={ground_truth!r} is blank: give the row an answer")
    answer = answer_of(response_text)
    return float(answer is not None and _MATCHERS[style](answer, truth))


def answer_of(text: str) -> str | None:
    r"""The content of the last balanced `\boxed{...}`, or None.

    Only what follows the last `</think>` counts, when there is one: a box inside the reasoning
    is a draft. A response that never closes its reasoning is read as a whole, so that models
    which do not think in tags are graded too (`format.py` is what rewards the tags). A box cut
    off by the length limit has no closing brace and is passed over, a blank one is no answer.
    """
    return last_boxed(text.rpartition(THINK_END)[2])


def last_boxed(text: str) -> str | None:
    r"""Content of the `\boxed{` that starts last among those whose braces close; blank: None."""
    open_braces: list[int | None] = []  # where the content of a box starts; None for other braces
    last_start, content = -1, ""
    for match in _BRACE.finditer(text):
        if match["box"] or match["open"]:
            open_braces.append(match.end() if match["box"] else None)
        elif match["close"] and open_braces:
            start = open_braces.pop()
            if start is not None and start > last_start:
                last_start, content = start, text[start : match.start()]
    return content.strip() or None
