import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vapo_verl.reward.perception import attention_perception_score, perception_score

NUM_ANCHORS, LENGTH, BETA = 20, 400, 1.5


def test_late_anchors_weigh_more():
    # beta = 1.5, T = 10: weights at 2, 6, 10 are e^0.3, e^0.9, e^1.5
    #   = 1.349859, 2.459603, 4.481689, together 8.291151
    positions = [2, 6, 10]
    late = perception_score([False, False, True], positions, 10, 1.5)
    early = perception_score([True, False, False], positions, 10, 1.5)
    assert late == pytest.approx(4.481689 / 8.291151, abs=1e-6)  # 0.540539
    assert early == pytest.approx(1.349859 / 8.291151, abs=1e-6)  # 0.162807
    assert perception_score([True, False, True], positions, 10, 1.5) == pytest.approx(late + early)


def test_without_emphasis_it_is_the_mean():
    assert perception_score([1, 0, 0, 1, 1], [1, 3, 3, 7, 9], 9, 0.0) == pytest.approx(3 / 5)


def test_soft_scores_are_weighted_alike():
    # equal positions, so equal weights: (0.9 + 0.4) / 2
    assert perception_score([0.9, 0.4], [5, 5], 8, 1.5) == pytest.approx(0.65)


@pytest.mark.parametrize("late_emphasis", [0.0, 1.5, 1e6, -1e6])
def test_all_right_and_all_wrong_are_the_ends(late_emphasis):
    assert perception_score([True] * 3, [1, 5, 9], 9, late_emphasis) == 1.0
    assert perception_score([False] * 3, [1, 5, 9], 9, late_emphasis) == 0.0


def test_a_huge_emphasis_leaves_the_last_anchor():
    assert perception_score([False, False, True], [1, 5, 9], 9, 1e9) == 1.0


@pytest.mark.parametrize(("share", "expected"), [(0, 0), (1, 0), (2, 0), (3, 0.5), (4, 1)])
def test_chance_maps_to_zero(share, expected):
    # share of 4 right: max((share / 4 - 0.5) / 0.5, 0)
    correct = [k < share for k in range(4)]
    assert perception_score(correct, [1, 1, 1, 1], 4, 1.5, chance_corrected=True) == expected


def test_no_anchors_is_zero():
    assert perception_score([], [], 0, 1.5) == 0.0
    assert perception_score([], [], 7, 1.5, chance_corrected=True) == 0.0


def test_arrays_and_tensors_are_read_as_lists_are():
    positions = [2, 6, 10]
    listed = perception_score([1, 0, 1], positions, 10, 1.5)
    assert perception_score(np.array([True, False, True]), np.array(positions), 10, 1.5) == listed
    assert perception_score(torch.tensor([1, 0, 1]), torch.tensor(positions), 10, 1.5) == listed


@given(
    anchors=st.lists(st.tuples(st.floats(0, 1), st.integers(1, 50)), min_size=1, max_size=30),
    late_emphasis=st.floats(-1e3, 1e3),
)
def test_score_is_a_mean_and_ignores_the_order(anchors, late_emphasis):
    correct, positions = zip(*anchors, strict=True)
    score = perception_score(correct, positions, 50, late_emphasis)
    assert min(correct) <= score <= max(correct)
    reversed_score = perception_score(correct[::-1], positions[::-1], 50, late_emphasis)
    assert reversed_score == pytest.approx(score, abs=1e-9)
    corrected = perception_score(correct, positions, 50, late_emphasis, chance_corrected=True)
    assert corrected == pytest.approx(max(2 * score - 1, 0))


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (([True], [1, 2], 5, 1.5), "positions 2"),
        (([True], [0], 5, 1.5), "positions holds 0"),
        (([True], [6], 5, 1.5), "positions holds 6"),
        (([1.5], [1], 5, 1.5), "correct holds 1.5"),
        (([math.nan], [1], 5, 1.5), "correct holds nan"),
        (([True], [1], 5, math.inf), "late_emphasis=inf"),
    ],
)
def test_bad_anchors_are_refused_by_name(arguments, named):
    with pytest.raises(ValueError, match=named):
        perception_score(*arguments)


def _simulate(skill: float, aligned: bool, num_responses: int = 3000) -> float:
    """Mean chance-corrected score of answers right with probability `skill`, claims shuffled.

    Not aligned is the released code's defect: the answer to claim order[k] is judged by the
    label at k of the file.
    """
    rng = np.random.default_rng(0)
    labels = np.arange(NUM_ANCHORS) % 2 == 0
    scores = []
    for _ in range(num_responses):
        order = rng.permutation(NUM_ANCHORS)
        answered_right = rng.random(NUM_ANCHORS) < skill
        says_yes = labels[order] == answered_right
        correct = says_yes == (labels[order] if aligned else labels)
        positions = np.sort(rng.integers(1, LENGTH + 1, NUM_ANCHORS))
        scores.append(perception_score(correct, positions, LENGTH, BETA, chance_corrected=True))
    return float(np.mean(scores))


@pytest.mark.parametrize(("skill", "expected"), [(1.0, 1.0), (0.9, 0.8), (0.7, 0.4), (0.5, 0.1)])
def test_score_tells_skill_apart_when_labels_follow_their_claims(skill, expected):
    assert _simulate(skill, aligned=True) == pytest.approx(expected, abs=0.02)


@pytest.mark.parametrize("skill", [1.0, 0.7, 0.5])
def test_permuted_labels_would_make_it_noise(skill):
    assert _simulate(skill, aligned=False) == pytest.approx(0.10, abs=0.02)


def test_attention_score_is_the_late_emphasis_mean():
    # T = 2, beta = 2 ln 3: weights e^(ln 3) = 3 and e^(2 ln 3) = 9; (3 * 0.4 + 9 * 0.2) / 12
    assert attention_perception_score([0.4, 0.2], 2 * math.log(3)) == pytest.approx(0.25)
    assert attention_perception_score([0.4, 0.2], 0.0) == pytest.approx(0.3)


def test_missing_attention_is_left_out_and_keeps_its_position():
    # the two seen tokens stand at 1 and 3 of 4: weights e^(beta/4) and e^(3 beta/4), beta = ln 16
    #   = 2 and 8; (2 * 0.5 + 8 * 0.1) / 10
    attention = np.array([0.5, np.nan, 0.1, np.nan], dtype=np.float32)
    assert attention_perception_score(attention, math.log(16)) == pytest.approx(0.18)
    assert attention_perception_score([math.nan, math.nan], 1.5) == 0.0
    assert attention_perception_score([], 1.5) == 0.0


def test_bad_attention_is_refused():
    with pytest.raises(ValueError, match="average it"):
        attention_perception_score(np.ones((3, 2)), 1.5)
    with pytest.raises(ValueError, match="infinite"):
        attention_perception_score([0.1, math.inf], 1.5)
