"""VGPO's weights, by hand."""

import pytest
import torch

from vapo_verl.config import MethodConfig
from vapo_verl.methods import StepTokens, method_of
from vapo_verl.methods.vgpo import response_factor, token_factor

nan = float("nan")


def tokens(attention, mask, groups):
    return StepTokens(
        group_ids=groups,
        response_mask=torch.tensor(mask, dtype=torch.bool),
        visual_attention=torch.tensor(attention),
        old_log_probs=torch.zeros(len(mask), len(mask[0])),
        masked_log_probs=None,
    )


def vgpo(**options):
    return method_of(MethodConfig(name="vgpo", options=options))


def weights(batch, **options):
    return vgpo(**options).token_weights(batch)


def test_a_late_token_that_looks_is_raised_and_weighs_most():
    """T = 5, gamma = 0.4: the tail is tokens 2 to 4, and kappa = 0.4 of it is one token, number 3.

    beta = 0.5 raises its 0.4 by 0.5 * 3 / 4 to 0.55, so v = 0.15, 0.35, 0.25, 0.55, 0.15, and
    a = 0, 1/2, 1/4, 1, 0 with the mean 0.35.
    """
    batch = tokens([[0.15, 0.35, 0.25, 0.4, 0.15]], [[1] * 5], ["a"])
    found, metrics = weights(
        batch, strength=0.5, tail_start=0.4, tail_fraction=0.4, response_level=False
    )
    expected = [0.65, 1.15, 0.9, 1.65, 0.65]
    assert found[0].tolist() == pytest.approx(expected, abs=1e-6)
    assert metrics["vapo/vgpo/raised_fraction"] == pytest.approx(0.2)


def test_ties_at_the_threshold_are_all_raised():
    """The tail of 4 is tokens 2 and 3, which are equal: v = 0.2, 0.4, 0.4 * 4/3, 0.4 * 3/2."""
    batch = tokens([[0.2, 0.4, 0.4, 0.4]], [[1] * 4], ["a"])
    found, metrics = weights(batch, strength=0.5, response_level=False)
    unit = [0.0, 0.5, (0.4 * 4 / 3 - 0.2) / 0.4, 1.0]
    expected = [1 + u - sum(unit) / 4 for u in unit]
    assert found[0].tolist() == pytest.approx(expected, abs=1e-6)
    assert metrics["vapo/vgpo/raised_fraction"] == 0.5


def test_responses_are_compared_within_their_group():
    """phi = 1, 1.5 and 2 in group a: b = 0, 1/2, 1, alpha = 0.5 held to 0.9, 1, 1.5."""
    scaled = torch.tensor([[0.0, 1, 0], [0, 1, 0.5], [1, 1, 0], [1, 0, 0]], dtype=torch.float64)
    alpha = response_factor(scaled, torch.ones(4, 3, dtype=torch.bool), ["a", "a", "a", "b"])
    assert alpha.tolist() == pytest.approx([0.9, 1.0, 1.5, 1.0])


def test_psi_is_held_to_its_limits():
    """a = 0 once and 1 eleven times: 1 - 11/12 is below 0.1."""
    scaled = torch.ones(1, 12, dtype=torch.float64)
    scaled[0, 0] = 0
    psi = token_factor(scaled, torch.ones(1, 12, dtype=torch.bool))
    assert psi[0, 0] == 0.1 and psi[0, 1:].tolist() == pytest.approx([1 + 1 / 12] * 11)


def test_both_levels_are_multiplied():
    batch = tokens([[0.1, 0.2, 0.6], [0.3, 0.1, 0.1]], [[1] * 3] * 2, ["a", "a"])
    token, _ = weights(batch, response_level=False)
    response, _ = weights(batch, token_level=False)
    both, _ = weights(batch)
    assert torch.equal(both, token * response)
    assert response[0].unique().numel() == 1 and not torch.equal(response[0], response[1])


@pytest.mark.parametrize("value", [0.3, 0.0, nan])
def test_without_a_difference_in_attention_the_step_is_grpo(value):
    batch = tokens([[value] * 4] * 3, [[1, 1, 1, 0]] * 3, ["a", "a", "b"])
    found, metrics = weights(batch, strength=0.0)
    assert torch.equal(found, torch.ones_like(found))
    assert metrics["vapo/vgpo/responses_without_attention"] == (3 if value != value else 0)


def test_with_both_levels_off_the_step_is_grpo_to_the_bit():
    batch = tokens(torch.rand(6, 9).tolist(), [[1] * 9] * 6, list("aabbcc"))
    found, _ = weights(batch, token_level=False, response_level=False)
    assert torch.equal(found, torch.ones_like(found))


def test_unknown_attention_padding_and_empty_responses_leave_the_others_alone():
    attention = [[0.1, 0.5, 0.3], [0.2, 0.2, 0.7]]
    plain, _ = weights(tokens(attention, [[1] * 3] * 2, ["a", "a"]))
    rows = [[*attention[0], 9.0], [*attention[1], nan], [nan] * 4, [0.9] * 4]
    mask = [[1, 1, 1, 0], [1, 1, 1, 0], [1, 1, 0, 0], [0, 0, 0, 0]]
    found, metrics = weights(tokens(rows, mask, ["a"] * 4))
    assert torch.equal(found[:2, :3], plain)
    assert found[2].tolist() == found[3].tolist() == [1.0] * 4
    assert metrics["vapo/vgpo/responses_without_attention"] == 1


def test_the_order_of_the_batch_does_not_matter():
    generator = torch.Generator().manual_seed(0)
    attention = torch.rand(8, 12, generator=generator)
    mask = (torch.arange(12) < torch.randint(1, 13, (8, 1), generator=generator)).long()
    groups = list("aabbaabb")
    found, _ = weights(tokens(attention.tolist(), mask.tolist(), groups))
    order = torch.randperm(8, generator=generator)
    turned, _ = weights(
        tokens(attention[order].tolist(), mask[order].tolist(), [groups[i] for i in order])
    )
    assert torch.equal(turned, found[order])


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"strength": -0.1}, "strength"),
        ({"tail_start": 1.0}, "tail_start"),
        ({"tail_fraction": 0.0}, "tail_fraction"),
        ({"tail_fraction": "many"}, "tail_fraction"),
        ({"beta": 0.3}, "beta"),
    ],
)
def test_a_bad_option_is_named(options, key):
    with pytest.raises(ValueError, match=rf"vapo\.method\.options\.{key}"):
        vgpo(**options)
