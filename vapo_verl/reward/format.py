r"""Format reward: reasoning inside <think> </think>, then the answer inside \boxed{}."""

import re

from vapo_verl.reward import THINK_END, THINK_START
from vapo_verl.reward.accuracy import answer_of

_THINK_TAG = re.compile(f"{THINK_START}|{THINK_END}")


def format_score(text: str) -> float:
    r"""1.0 when the response is one `<think>...</think>` and then a text with `\boxed{...}`.

    White space may precede the opening tag, and any text may surround the box. The text inside
    the tags is not scored: Eq. 5 of arXiv 2509.25848 leaves that to accuracy and perception. 0.0
    for a second pair of tags, a missing or an unclosed one, a box only inside the reasoning,
    and a box that is blank or cut off. A chat template that puts `<think>` into the prompt
    leaves the response without it: prepend it before scoring.
    """
    tags_in_order = _THINK_TAG.findall(text) == [THINK_START, THINK_END]
    starts_with_tag = text.lstrip().startswith(THINK_START)
    return float(tags_in_order and starts_with_tag and answer_of(text) is not None)
