r"""Outcome accuracy: is the boxed answer of a response the ground truth?

The one function that grades, in training, validation and evaluation. Both sides go through one
normalisation (`answers.py`), and the style says what counts as equal. Cheap comparisons settle
most answers; only what may be equal in value and differs in writing (`2\sqrt{3}` and `\sqrt{12}`)
goes to the math verifier.
"""

import math
import re
from collections.abc import Iterable
from decimal import Decimal

from vapo_verl.reward import BOX, THINK_END
from vapo_verl.reward.answers import choice, normalised, text_key
from vapo_verl.reward.mathematics import math_match
from vapo_verl.reward.quantities import decimal_key

_BRACE = re.compile(r"(?P<box>\\boxed\s*\{)|\\[{}]|(?P<open>\{)|(?P<close>\})")


def accuracy(response_text: str, ground_truth: object, style: str) -> float:
    r"""1.0 when the answer of the response equals the ground truth, else 0.0.

    Args:
        response_text: the full decoded response, reasoning included.
        ground_truth: the correct answer, bare or inside `\boxed{}`: a string or a number. A list
            means any of its members.
        style: what counts as equal: `exact` (`exact_match`), `text` (`text_match`), `choice`
            (`choice_match`) or `math` (`math_match`).

    Edge cases: no answer, an unreadable one, or one whose comparison takes too long is 0.0:
    nothing in the model's text raises. The "math" style may wait for a process of its own (see
    `math_verifier.py`), so call it from a thread (`asyncio.to_thread`) where an event loop runs.

    Raises:
        ValueError: an unknown style, or a ground truth that no answer can match (`truths_of`).
    """
    if style not in MATCHERS:
        raise ValueError(f"style={style!r}: pick one of {sorted(MATCHERS)}")
    truths = truths_of(ground_truth)
    answer = answer_of(response_text)
    return float(answer is not None and any(MATCHERS[style](answer, truth) for truth in truths))


def truths_of(ground_truth: object) -> tuple[str, ...]:
    r"""The correct answers, as strings without their boxes: any of them is enough.

    Raises:
        ValueError: a value that no answer can match, with the reason: blank (also `\boxed{}` and
            `$`), not a number (nan, inf), bytes, a bool, a struct, a list that is empty or nested.
    """
    as_list = getattr(ground_truth, "tolist", None)  # numpy arrays and scalars
    value = as_list() if as_list else ground_truth
    if isinstance(value, list | tuple):
        if not value or any(isinstance(member, list | tuple) for member in value):
            raise ValueError(f"ground_truth={value!r} is an empty or nested list: list the answers")
        return tuple(_truth(member) for member in value)
    return (_truth(value),)


def _truth(value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int | float | Decimal):
        kind = "null" if value is None else type(value).__name__
        raise ValueError(f"ground_truth is {kind}: give the answer as a string or a number")
    if not isinstance(value, str) and not math.isfinite(value):
        raise ValueError(f"ground_truth={value!r} is no number: give the row an answer")
    text = number_text(value)
    boxed = last_boxed(text) if text.count(BOX) == 1 else None
    truth = boxed or text.strip()  # with several boxes, an answer with several parts
    if not normalised(truth):
        raise ValueError(f"ground_truth={value!r} is blank: give the row an answer")
    return truth


def number_text(value: str | int | float | Decimal) -> str:
    """A value as text; a float that is a whole number is written as one: 3.0 as 3."""
    is_whole = isinstance(value, float) and value.is_integer() and abs(value) < 2**53
    return str(int(value)) if is_whole else str(value)


def answer_of(text: str) -> str | None:
    r"""The content of the last balanced `\boxed{...}`, or None.

    Only what follows the last `</think>` counts, when there is one: a box inside the reasoning
    is a draft. A response that never closes its reasoning is read in full, so that models
    which do not think in tags are graded too (`format_score` is what rewards the tags). A box
    cut off by the length limit has no closing brace and is ignored; a blank one is no answer.
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
    """Equal text in normal form, ignoring case and spaces at signs; for synthetic worlds.

    Decimals are equal by value, so that a float column's `3.0` is `3`: `007` is `7`, `1,000` is
    `1e3`. Nothing else is computed: `1/2` is not `0.5`, and a unit must be there on both sides.
    """
    numbers = decimal_key(answer), decimal_key(truth)
    if all(numbers):
        return numbers[0] == numbers[1]
    return text_key(answer, drop_article=False) == text_key(truth, drop_article=False)


def text_match(answer: str, truth: str) -> bool:
    """Equal words: normal form without case, a leading article and spaces at signs.

    Digits are text as well: `007` is not `7`, `3-2` is not `1`. For labels, names and codes.
    """
    return text_key(answer) == text_key(truth)


def choice_match(answer: str, truth: str) -> bool:
    """The same set of option letters: `B` is `(b)`, `B. cat` and `Answer: B`; `A, C` is `CA`.

    The letter decides, whatever text follows it. Where one side has no letter, the option's
    text (`cat` of `B. cat`) must be the other side. `A) or B)` picks nothing.
    """
    picked, correct = choice(answer), choice(truth)
    if picked and correct:
        return picked.letters == correct.letters
    texts: Iterable[str] = (side.text for side in (picked, correct) if side and side.text)
    other = truth if picked else answer
    return text_match(answer, truth) or any(text_match(text, other) for text in texts)


MATCHERS = {
    "choice": choice_match,
    "exact": exact_match,
    "math": math_match,
    "text": text_match,
}
"""By style: (answer, truth) -> whether they count as equal."""
