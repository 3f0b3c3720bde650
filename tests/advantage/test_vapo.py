"""Hand-computed advantages, and the edge cases that must stay finite."""

import inspect
import math
from dataclasses import asdict

import numpy as np
import pytest
import torch

from vapo_verl.advantage.vapo import vapo_advantage
from vapo_verl.config import AdvantageConfig

NAN = math.nan
SETTINGS = {"attention_mode": "focus", "normalize_by_std": False, "num_bins": 1}

# Two responses to one prompt, A = +1 and -1 (rewards 3 and 1 against their mean 2).
REWARDS = torch.tensor([3.0, 1.0])
GROUP = ["p", "p"]
MASK = torch.tensor([[1, 1], [1, 1]])
# One bin: m_g = (0.4 + 0.2 + 0.3 + 0.1) / 4 = 0.25, residuals 0.15, -0.05, 0.05, -0.15,
# s_g = sqrt((0.0225 + 0.0025 + 0.0025 + 0.0225) / 4) = sqrt(0.0125) = 0.111803,
# relative 1.341641, -0.447214, 0.447214, -1.341641; tanh 0.872063, -0.419600, 0.419600, -0.872063.
ATTENTION = torch.tensor([[0.4, 0.2], [0.3, 0.1]])
# c = 0.5: raw 1.436032, 0.790200 (mean 1.113116) and 1.209800, 0.563968 (mean 0.886884).
FOCUS = torch.tensor([[1.290101, 0.709899], [-1.364102, -0.635898]])
# Grounded: the second response's A is negative, so raw 0.790200, 1.436032, as the first's mirrored.
GROUNDED = torch.tensor([[1.290101, 0.709899], [-0.709899, -1.290101]])


def _advantage(rewards=REWARDS, groups=GROUP, mask=MASK, attention=ATTENTION, **settings):
    settings = SETTINGS | {"attention_coef": 0.5} | settings
    stats = []
    advantages = vapo_advantage(rewards, groups, mask, attention, **settings, on_stats=stats.append)
    return advantages, *stats


@pytest.mark.parametrize(("mode", "expected"), [("focus", FOCUS), ("grounded", GROUNDED)])
def test_credit_of_two_responses(mode, expected):
    advantages, _ = _advantage(attention_mode=mode)
    torch.testing.assert_close(advantages, expected, atol=1e-5, rtol=0)


def test_normalised_by_the_sample_std():
    # rewards 3, 1: std = sqrt((1 + 1) / (2 - 1)) = 1.414214, A = +-0.707106 (epsilon 1e-6)
    advantages = vapo_advantage(REWARDS, GROUP, MASK)
    torch.testing.assert_close(advantages[:, 0], torch.tensor([0.707106, -0.707106]))


def test_siblings_are_compared_at_the_same_progress():
    # Two bins: both responses fall from 0.4 to 0.2, the second has 2 tokens, the first 4 (of which
    # one was not captured, and counts for the progress of the others). Against one mean the early
    # tokens would gain; at the same progress nobody looked more than another.
    attention = torch.tensor([[NAN, 0.4, 0.2, 0.2], [0.4, 0.2, NAN, NAN]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    same, stats = _advantage(mask=mask, attention=attention, num_bins=2)
    torch.testing.assert_close(same, torch.tensor([[1.0], [-1.0]]) * mask)
    assert stats.weight_std == 0.0
    by_one_mean, _ = _advantage(mask=mask, attention=attention, num_bins=1)
    assert by_one_mean[0, 1] > 1 > by_one_mean[0, 2]


def test_padding_inside_a_response_counts_for_nothing():
    holes = torch.tensor([[0, 1, 0, 1, 0], [1, 0, 0, 0, 1]])
    attention = torch.full((2, 5), 0.9)
    attention[holes.bool()] = ATTENTION.flatten()
    advantages, _ = _advantage(mask=holes, attention=attention)
    assert (advantages[holes == 0] == 0).all()
    torch.testing.assert_close(advantages[holes == 1], FOCUS.flatten(), atol=1e-5, rtol=0)


def test_a_missing_token_has_weight_one_before_the_rescale():
    # The first response has a third token without attention: raw 1.436032, 0.790200, 1,
    # mean 1.075411; the curve and spread are those of the four seen tokens.
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
    attention = torch.tensor([[0.4, 0.2, NAN], [0.3, 0.1, NAN]])
    advantages, stats = _advantage(mask=mask, attention=attention)
    torch.testing.assert_close(
        advantages[0], torch.tensor([1.335333, 0.734789, 0.929877]), atol=1e-5, rtol=0
    )
    assert (stats.num_nan_attention_tokens, stats.num_responses_without_attention) == (1, 0)


def test_a_response_without_attention_is_plain_among_siblings_that_have_it():
    rewards = torch.tensor([3.0, 1.0, 2.0])
    attention = torch.cat([ATTENTION, torch.full((1, 2), NAN)])
    advantages, stats = _advantage(
        rewards - torch.tensor([0.0, 0.0, 1.5]), ["p"] * 3, torch.ones(3, 2), attention
    )
    # mean (3 + 1 + 0.5) / 3 = 1.5: A = 1.5, -0.5, -1
    torch.testing.assert_close(advantages[2], torch.tensor([-1.0, -1.0]))
    torch.testing.assert_close(advantages[0], 1.5 * FOCUS[0], atol=1e-5, rtol=0)
    assert (stats.num_nan_attention_tokens, stats.num_responses_without_attention) == (2, 1)


@pytest.mark.parametrize("mode", ["focus", "grounded"])
@pytest.mark.parametrize("normalize_by_std", [True, False])
@pytest.mark.parametrize("num_bins", [1, 8])
def test_a_batch_of_edge_cases_is_finite_and_counted(mode, normalize_by_std, num_bins):
    rewards = torch.tensor([1.1, 0.1, 0.1, 0.1, 1.0, 0.0, 1.0, 0.0])
    groups = np.array(["alone", "same", "same", "same", "flat", "flat", "x", "x"], dtype=object)
    mask = torch.tensor([[1, 1, 1]] * 4 + [[1, 1, 1], [1, 0, 0], [0, 0, 0], [1, 1, 1]])
    attention = torch.tensor([[0.3, 0.2, 0.1]] * 4 + [[0.2] * 3] * 2 + [[0.5] * 3, [NAN] * 3])
    attention[1, 1] = math.inf
    advantages, stats = _advantage(
        rewards, groups, mask, attention,
        attention_mode=mode, normalize_by_std=normalize_by_std, num_bins=num_bins,
    )  # fmt: skip
    assert advantages.isfinite().all()
    assert (advantages[mask == 0] == 0).all()
    assert (advantages[1:4] == 0).all()  # equal rewards: exactly, not rounding over epsilon
    total = advantages.sum(dim=1)
    assert total[0] == pytest.approx(3 * 1.1, abs=1e-5)  # alone: its reward, three tokens
    assert advantages[4, 0] == advantages[4, 2] > 0 > advantages[5, 0]
    assert advantages[7, 0] == advantages[7, 2] < 0  # judged against its empty sibling
    assert stats.num_groups_of_one == 1
    assert stats.num_groups_without_spread == 1
    assert stats.num_responses_without_attention == 1
    assert stats.num_nan_attention_tokens == 4


def test_equal_rewards_teach_nothing_even_when_their_mean_rounds():
    # right, well formed and all seen: 1 + 1 + 0.1; in float32 the mean of eight is 2.4e-7 off,
    # which over std + 1e-6 is -0.19
    advantages = vapo_advantage(torch.full((8,), 2.1), ["p"] * 8, torch.ones(8, 2))
    assert (advantages == 0).all()


def test_no_token_at_all():
    advantages, stats = _advantage(mask=torch.zeros(2, 2))
    assert (advantages == 0).all()
    assert (stats.weight_min, stats.weight_max, stats.weight_std) == (1.0, 1.0, 0.0)


def test_no_attention_is_plain_and_counted():
    advantages, stats = _advantage(attention=None)
    torch.testing.assert_close(advantages, torch.tensor([[1.0, 1.0], [-1.0, -1.0]]))
    assert (stats.num_responses_without_attention, stats.num_nan_attention_tokens) == (2, 4)


def test_equal_attention_with_rounding_moves_no_credit():
    noisy = torch.full((2, 2), 0.3) * (1 + 1e-7 * torch.tensor([[1.0, -1.0], [0.0, 2.0]]))
    advantages, _ = _advantage(attention=noisy)
    torch.testing.assert_close(advantages, torch.tensor([[1.0, 1.0], [-1.0, -1.0]]))


def test_weight_stats_are_those_of_the_weights():
    _, stats = _advantage()
    weights = FOCUS.abs().flatten()
    assert stats.weight_min == pytest.approx(0.635898, abs=1e-5)
    assert stats.weight_max == pytest.approx(1.364102, abs=1e-5)
    assert stats.weight_std == pytest.approx(float(weights.std(correction=0)), abs=1e-5)


def test_defaults_are_those_of_the_configuration():
    parameters = inspect.signature(vapo_advantage).parameters
    assert {key: parameters[key].default for key in asdict(AdvantageConfig())} == asdict(
        AdvantageConfig()
    )


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"attention_coef": 1.0}, "attention_coef=1.0"),
        ({"attention_coef": -0.1}, "attention_coef=-0.1"),
        ({"attention_coef": NAN}, "attention_coef=nan"),
        ({"attention_mode": "look"}, "attention_mode='look'"),
        ({"num_bins": 0}, "num_bins=0"),
        ({"groups": ["p"]}, r"group_ids \[1\]"),
        ({"rewards": torch.tensor([1.0, NAN])}, "rewards holds nan"),
    ],
)
def test_what_the_caller_got_wrong_is_refused(changes, named):
    with pytest.raises(ValueError, match=named):
        _advantage(**changes)


def test_attention_of_another_shape_is_refused():
    # a TypeError where annotations are checked at run time
    with pytest.raises((ValueError, TypeError), match="visual_attention"):
        _advantage(attention=torch.ones(2, 3))
