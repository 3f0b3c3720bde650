"""VPPO's weights, by hand."""

import math

import pytest
import torch

from vapo_verl.config import MethodConfig
from vapo_verl.methods import StepTokens, method_of
from vapo_verl.methods.vppo import response_factor, top_tokens


def vppo(**options):
    return method_of(MethodConfig(name="vppo", options=options))


def tokens(old, masked, mask=None):
    old, masked = torch.tensor(old), torch.tensor(masked)
    return StepTokens(
        group_ids=["a"] * len(old),
        response_mask=torch.ones_like(old) > 0 if mask is None else torch.tensor(mask).bool(),
        visual_attention=torch.full_like(old, math.nan),
        old_log_probs=old.log(),
        masked_log_probs=masked.log(),
    )


def test_the_tokens_that_depend_most_are_trained_in_both_directions():
    """r = 1, 1/2, 2, 1, 1 and s = 0, 0.193, 0.307, 0, 0: of 5 tokens ceil(0.4 * 5) = 2 are trained.

    Their weight is 1: the loss stays a mean over all 5, and not over the 2.
    """
    batch = tokens([[0.5, 0.5, 0.25, 0.5, 0.5]], [[0.5, 0.25, 0.5, 0.5, 0.5]])
    weights, metrics = vppo(top_fraction=0.4).token_weights(batch)
    assert weights[0].tolist() == [0.0, 1.0, 1.0, 0.0, 0.0]
    log2 = math.log(2)
    assert metrics["vapo/vppo/dependency_trained"] == pytest.approx((log2 - 0.5 + 1 - log2) / 2)
    assert metrics["vapo/vppo/dependency_left_out"] == 0
    assert metrics["vapo/vppo/trained_fraction"] == pytest.approx(0.4)


def test_a_response_weighs_by_its_mean_dependency():
    """S = 0, 1, 3: U = 0, 1/3, 1 with the mean 4/9, alpha = 0.9 + 0.1 U 9/4 = 0.9, 0.975, 1.125."""
    dependency = torch.tensor([[0.0, 0, 0], [2, 0, 7], [3, 3, 3]], dtype=torch.float64)
    valid = torch.tensor([[1, 1, 1], [1, 1, 0], [1, 1, 1]]).bool()
    alpha = response_factor(dependency, valid, 0.9)
    assert alpha.tolist() == pytest.approx([0.9, 0.975, 1.125])
    assert float(alpha.mean()) == pytest.approx(1)


@pytest.mark.parametrize(("fraction", "length", "count"), [(0.4, 5, 2), (0.2, 35, 7), (0.1, 3, 1)])
def test_the_number_of_trained_tokens_is_rounded_up(fraction, length, count):
    valid = torch.ones(1, length).bool()
    assert int(top_tokens(torch.rand(1, length), valid, fraction).sum()) == count


def test_of_equal_tokens_the_earlier_ones_are_trained():
    valid = torch.tensor([[0, 1, 1, 1, 1]]).bool()
    assert top_tokens(torch.zeros(1, 5), valid, 0.5)[0].tolist() == [
        False,
        True,
        True,
        False,
        False,
    ]


def test_with_all_tokens_and_responses_alike_the_step_is_grpo_to_the_bit():
    generator = torch.Generator().manual_seed(0)
    old, masked = (torch.rand(4, 7, generator=generator).tolist() for _ in range(2))
    off = vppo(top_fraction=1.0, response_min=1.0, entropy_coef=0.0)
    weights, _ = off.token_weights(tokens(old, masked))
    assert torch.equal(weights, torch.ones_like(weights))
    assert not off.adds_losses


def test_padding_and_empty_responses_weigh_nothing_and_leave_the_others_alone():
    old, masked = [[0.5, 0.5, 0.25], [0.5, 0.25, 0.5]], [[0.5, 0.25, 0.5], [0.5, 0.5, 0.5]]
    plain, _ = vppo().token_weights(tokens(old, masked))
    mask = [[1, 1, 1, 0], [1, 1, 1, 0], [0, 0, 0, 0]]
    rows = [[*row, 0.9] for row in [*old, [0.1] * 3]], [[*row, 0.1] for row in [*masked, [0.9] * 3]]
    found, metrics = vppo().token_weights(tokens(*rows, mask))
    assert torch.equal(found[:2, :3], plain)
    assert not found[:, 3].any() and not found[2].any()
    assert all(math.isfinite(value) for value in metrics.values())


def test_a_batch_of_empty_responses_has_no_weights():
    weights, metrics = vppo().token_weights(tokens([[0.5]], [[0.5]], [[0]]))
    assert weights.tolist() == [[0.0]] and all(map(math.isfinite, metrics.values()))


def test_the_entropy_penalty_is_of_all_tokens():
    log_probs = torch.tensor([[-1.0, -2.0]])
    terms = vppo().token_losses(log_probs, torch.zeros_like(log_probs))
    assert list(terms) == ["entropy"]
    assert terms["entropy"][0].tolist() == pytest.approx([0.06, 0.12])


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"top_fraction": 0.0}, "top_fraction"),
        ({"response_min": 1.1}, "response_min"),
        ({"masked": 2.0}, "masked"),
        ({"entropy_coef": -0.1}, "entropy_coef"),
    ],
)
def test_a_bad_option_is_named(options, key):
    with pytest.raises(ValueError, match=rf"vapo\.method\.options\.{key}"):
        vppo(**options)
