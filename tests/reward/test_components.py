import math

import pytest

from vapo_verl.reward.components import compose_reward

PAPER = {"accuracy_weight": 1.0, "format_weight": 1.0, "perception_weight": 0.1}
RELEASED = {"accuracy_weight": 0.8, "format_weight": 0.1, "perception_weight": 0.1}


@pytest.mark.parametrize(
    ("weights", "parts", "total"),
    [
        (PAPER, (1.0, 1.0, 0.6), 1 + 1 + 0.1 * 0.6),
        (PAPER, (1.0, 0.0, 1.0), 1 + 0.1),
        (PAPER, (0.0, 1.0, 1.0), 1.0),
        (RELEASED, (1.0, 1.0, 0.5), 0.8 + 0.1 + 0.1 * 0.5),
        (RELEASED, (0.0, 1.0, 1.0), 0.1),
        (PAPER, (0.5, 0.0, 1.0), 0.5),
    ],
)
@pytest.mark.parametrize("gate", ["correct", "always"])
def test_perception_pays_for_right_answers_only(weights, parts, total, gate):
    reward = compose_reward(*parts, **weights, gate=gate)
    assert reward.total == pytest.approx(total)
    assert (reward.accuracy, reward.format, reward.perception) == parts


def test_the_relaxed_gate_pays_for_wrong_answers_too():
    assert compose_reward(0.0, 1.0, 0.6, **PAPER, gate="relaxed").total == 1 + 0.1 * 0.6
    assert compose_reward(1.0, 1.0, 0.6, **PAPER, gate="relaxed").total == 2 + 0.1 * 0.6


def test_what_is_correct_may_be_said_apart_from_the_score():
    """A user's function may give part of R_acc to a correct answer, and all of it to none."""
    half = compose_reward(0.5, 0.0, 1.0, **PAPER, correct=True)
    assert (half.total, half.correct) == (0.5 + 0.1, True)
    none = compose_reward(1.0, 0.0, 1.0, **PAPER, correct=False)
    assert (none.total, none.correct) == (1.0, False)
    assert compose_reward(1.0, 0.0, 1.0, **PAPER).correct
    assert not compose_reward(0.9, 0.0, 1.0, **PAPER).correct


def test_bad_parts_and_gates_are_refused():
    with pytest.raises(ValueError, match="gate='loose'"):
        compose_reward(1.0, 1.0, 1.0, **PAPER, gate="loose")
    with pytest.raises(ValueError, match="perception=nan"):
        compose_reward(1.0, 1.0, math.nan, **PAPER)
    with pytest.raises(ValueError, match="format=2"):
        compose_reward(1.0, 2.0, 0.0, **PAPER)
