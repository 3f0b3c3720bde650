"""Questions about a scene, each with its answer and a solution that reads several cells."""

import random
from dataclasses import dataclass

from vapo_verl.digits.question_kinds import LONG_KINDS, PARTS_KINDS, STANDARD_KINDS, Maker
from vapo_verl.digits.scene import Scene
from vapo_verl.reward import BOX, THINK_END, THINK_START

QUESTION_SETS: dict[str, dict[str, Maker]] = {
    "standard": STANDARD_KINDS,
    "long": LONG_KINDS,
    "parts": PARTS_KINDS,
}
"""Makers by kind of every question set."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A question with one verifiable answer."""

    kind: str
    """A key of its set in `QUESTION_SETS`."""
    text: str
    answer: str
    """An integer, a row of digits, or a colour word for `largest_color_name`."""
    steps: tuple[str, ...]
    """The solution in sentences, each ending in a full stop; for supervised warm-up only."""
    hasty_steps: tuple[str, ...] = ()
    """The same without re-reading cells; empty if there is no read to skip."""

    @property
    def response(self) -> str:
        """The solution in the format the reward checks: `<think>...</think>\\boxed{...}`."""
        return self._answered(self.steps)

    @property
    def hasty_response(self) -> str:
        """The hasty solution in that format; `response` if there is none."""
        return self._answered(self.hasty_steps or self.steps)

    def _answered(self, steps: tuple[str, ...]) -> str:
        return f"{THINK_START}{' '.join(steps)}{THINK_END}{BOX}{{{self.answer}}}"


def sample_question(rng: random.Random, scene: Scene, question_set: str = "standard") -> Question:
    """Draw a question of a uniformly chosen kind of the set that has a single answer in this scene.

    Raises:
        ValueError: the set is not one of `QUESTION_SETS`.
    """
    kinds = question_kinds(question_set)
    while True:
        kind = rng.choice(tuple(kinds))
        drawn = kinds[kind](rng, scene)
        if drawn is not None:
            return Question(
                kind=kind,
                text=drawn.text,
                answer=str(drawn.answer),
                steps=tuple(drawn.steps),
                hasty_steps=tuple(drawn.hasty_steps),
            )


def question_kinds(question_set: str) -> dict[str, Maker]:
    """Return a question set's makers by kind.

    Raises:
        ValueError: the set is not one of `QUESTION_SETS`.
    """
    if question_set not in QUESTION_SETS:
        known = ", ".join(QUESTION_SETS)
        raise ValueError(f"questions={question_set!r} is unknown; use one of {known}")
    return QUESTION_SETS[question_set]
