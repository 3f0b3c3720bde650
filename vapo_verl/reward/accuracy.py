r"""Outcome accuracy: is the boxed answer of a response the ground truth?

Cheap comparisons settle most answers: as text, as integers, as a choice. Only what may be equal in
value and differs in writing (`\frac{1}{2}` and `0.5`) goes to the math verifier.
"""

import re

from vapo_verl.reward import THINK_END

_BRACE = re.compile(r"(?P<box>\\boxed\s*\{)|\\[{}]|(?P<open>\{)|(?P<close>\})")
_INTEGER = re.compile(r"([+-]?)0*(\d+)", re.ASCII)
_CHOICE_TRUTH = re.compile(r"\(?([A-Z])\)?\.?")
_CHOICE_ANSWER = re.compile(r"(?:option|choice)?\s*\(?([a-z])\)?(?:[.:)].*)?", re.I | re.S)
_TEXT_COMMAND = re.compile(r"\\(?:text|mathrm|mbox|mathbf)[a-z]*\s*\{([^{}]*)\}")
_LATEX_SPACE = re.compile(r"\\[,;:! ]|~|\\quad|\s+")
_WORDS = re.compile(r"(?=.*[^\W\d_]{2})[^\d\\=+*/^<>|]+")


def accuracy(response_text: str, ground_truth: str, style: str) -> float:
    r"""1.0 when the answer of the response equals the ground truth, else 0.0.

    Args:
        response_text: the full decoded response, reasoning included.
        ground_truth: the correct answer, bare or inside `\boxed{}`.
        style: "exact" (text, integers as integers; for synthetic worlds) or "math" (choice
            letters, words, numbers and LaTeX expressions, compared symbolically if need be).

    Edge cases: no answer, an unreadable one, or one whose comparison takes too long is 0.0:
    nothing in the model's text raises. The "math" style may wait for a child process (see
    `math_verifier.py`), so call it from a thread (`asyncio.to_thread`) where an event loop runs.

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
    is a draft. A response that never closes its reasoning is read in full, so that models
    which do not think in tags are graded too (`format.py` is what rewards the tags). A box cut
    off by the length limit has no closing brace and is ignored; a blank one is no answer.
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


def exact_match(answer: str, truth: str) -> bool:
    """Equal as text (case, spacing and `$` aside); whole numbers as integers: 007 is 7."""
    answer, truth = plain(answer), plain(truth)
    return _canonical_integer(answer) == _canonical_integer(truth)


def math_match(answer: str, truth: str) -> bool:
    r"""Equal in value, for answers of maths and multiple-choice sets.

    In this order: the same text; a choice letter, when the truth is one (`B` accepts `(b)`,
    `B. 12`, `\text{B}`); a word, when the truth is letters only, which must then match as
    text (as products of variables `on` would equal `no`); two integers; else symbolically.
    """
    if exact_match(answer, truth):
        return True
    plain_answer, plain_truth = plain(answer), plain(truth)
    if choice := _CHOICE_TRUTH.fullmatch(_unwrap(truth)):
        chosen = _CHOICE_ANSWER.fullmatch(plain_answer)
        return chosen is not None and chosen[1].upper() == choice[1]
    if _WORDS.fullmatch(plain_truth) or not plain_answer:
        return False
    if _INTEGER.fullmatch(plain_answer) and _INTEGER.fullmatch(plain_truth):
        return False
    from vapo_verl.reward.math_verifier import math_equal

    return math_equal(answer.replace("$", ""), truth.replace("$", ""))


_MATCHERS = {"exact": exact_match, "math": math_match}


def plain(text: str) -> str:
    r"""Text without LaTeX spaces, `$`, `\text{}` around words, case, or a closing full stop."""
    return _unwrap(text).casefold().removesuffix(".").strip()


def _unwrap(text: str) -> str:
    text = _LATEX_SPACE.sub(" ", text.replace(r"\$", "").replace("$", ""))
    return _LATEX_SPACE.sub(" ", _TEXT_COMMAND.sub(r"\1", text)).strip()


def _canonical_integer(text: str) -> str:
    """Sign and digits of an integer, any other text unchanged; no int(), which has a size limit."""
    match = _INTEGER.fullmatch(text)
    if match is None:
        return text
    sign = "-" if match[1] == "-" and match[2] != "0" else ""
    return sign + match[2]
