r"""The reward of a response (Eq. 5 of arXiv 2509.25848) and its format."""

import re
from dataclasses import dataclass

from vapo_verl.config import GATES
from vapo_verl.reward import THINK_END, THINK_START
from vapo_verl.reward.accuracy import answer_of

NUM_LAST_TOKENS = 8
"""Last tokens of a prompt that hold the final `<think>` of a chat template, even spelled out."""
_THINK_TAG = re.compile(f"{THINK_START}|{THINK_END}")


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardComponents:
    """A response's reward and its parts before weights; logged separately."""

    accuracy: float
    """R_acc, 1.0 for a correct answer."""
    format: float
    """R_fmt, 1.0 for the required format."""
    perception: float
    """R_perc as measured, incorrect answers included; `total` applies the gate."""
    total: float
    """R, the input of the advantage."""
    correct: bool | None = None
    """Whether the answer counts as correct; None means R_acc = 1."""

    def __post_init__(self) -> None:
        if self.correct is None:
            object.__setattr__(self, "correct", self.accuracy == 1)


def compose_reward(
    accuracy: float,
    format: float,
    perception: float,
    *,
    accuracy_weight: float,
    format_weight: float,
    perception_weight: float,
    gate: str = "correct",
    correct: bool | None = None,
) -> RewardComponents:
    """R = w_acc * R_acc + w_fmt * R_fmt + gamma * 1[R_acc = 1] * R_perc  (Eq. 5).

    The paper's values are 1, 1 and gamma = 0.1. The released script is the same formula with
    0.8, 0.1 and 0.1, on the chance-corrected perception score (`perception_score`).

    Args:
        accuracy: R_acc in [0, 1].
        format: R_fmt in [0, 1].
        perception: R_perc in [0, 1]; 0.0 where nothing was probed.
        accuracy_weight: w_acc.
        format_weight: w_fmt.
        perception_weight: gamma.
        gate: which responses were probed: "correct" the correct ones, "always" all, for
            diagnostics. The reward is the same: only correct answers earn R_perc, or a
            trivially short reasoning would earn it. "relaxed" probes and rewards all, without
            the factor 1[R_acc = 1].
        correct: replaces R_acc = 1 in the formula: a user's function may give a part of R_acc, and
            decide separately whether the answer is correct.

    Raises:
        ValueError: an unknown gate, or a part outside [0, 1] (nan included).
    """
    if gate not in GATES:
        raise ValueError(f"gate={gate!r}: pick one of {GATES}")
    for name, part in (("accuracy", accuracy), ("format", format), ("perception", perception)):
        if not 0 <= part <= 1:
            raise ValueError(f"{name}={part}: a part of the reward is in [0, 1], before weights")
    earns = accuracy == 1 if correct is None else correct
    seen = perception if earns or gate == "relaxed" else 0.0
    total = accuracy_weight * accuracy + format_weight * format + perception_weight * seen
    return RewardComponents(
        accuracy=accuracy, format=format, perception=perception, total=total, correct=earns
    )


def with_opening_tag(text: str, prompt_end: str) -> str:
    """The response with the `<think>` that a chat template writes, as that of Qwen3-VL-Thinking.

    Args:
        text: the response.
        prompt_end: text of the prompt's last tokens.
    """
    return THINK_START + text if prompt_end.rstrip().endswith(THINK_START) else text


def format_score(text: str, prompt_end: str = "") -> float:
    r"""1.0 when the response is one `<think>...</think>` and then a text with `\boxed{...}`.

    White space may precede the opening tag, and any text may surround the box. The text inside
    the tags is not scored: Eq. 5 of arXiv 2509.25848 leaves that to accuracy and perception. 0.0
    for a second pair of tags, a missing or an unclosed one, a box only inside the reasoning,
    and a box that is blank or cut off.

    Args:
        text: the response.
        prompt_end: text of the prompt's last tokens: a `<think>` at its end is the response's.
    """
    text = with_opening_tag(text, prompt_end)
    tags_in_order = _THINK_TAG.findall(text) == [THINK_START, THINK_END]
    starts_with_tag = text.lstrip().startswith(THINK_START)
    return float(tags_in_order and starts_with_tag and answer_of(text) is not None)
