"""Invariances of the estimator, on random groups, masks and attention."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from verl.trainer.ppo.core_algos import compute_grpo_outcome_advantage

from vapo_verl.advantage.vapo import vapo_advantage

MODES = ("focus", "grounded")


@st.composite
def batches(draw):
    """Rewards, group ids, a mask with holes, and attention that is missing here and there."""
    seed = draw(st.integers(0, 2**32 - 1))
    num_responses, num_tokens = draw(st.integers(1, 9)), draw(st.integers(1, 12))
    generator = torch.Generator().manual_seed(seed)
    groups = torch.randint(0, 3, (num_responses,), generator=generator)
    mask = (torch.rand(num_responses, num_tokens, generator=generator) < 0.8).long()
    attention = torch.rand(num_responses, num_tokens, generator=generator, dtype=torch.float64)
    attention[torch.rand(num_responses, num_tokens, generator=generator) < 0.1] = torch.nan
    rewards = torch.rand(num_responses, generator=generator, dtype=torch.float64) * 3 - 1
    if draw(st.booleans()):  # as in training: few values, so groups without spread
        rewards = rewards.round()
    return rewards, [f"uid-{g}" for g in groups.tolist()], mask, attention


coefs = st.floats(0.01, 0.99)
modes = st.sampled_from(MODES)
by_std = st.booleans()
few = settings(max_examples=60)


def _token_rewards(rewards, mask):
    token_level = torch.zeros(mask.shape, dtype=rewards.dtype)
    token_level[:, -1] = rewards
    return token_level


@few
@given(batches(), by_std, modes)
def test_without_coefficient_it_is_verls_grpo(batch, normalize_by_std, mode):
    rewards, groups, mask, attention = batch
    expected, _ = compute_grpo_outcome_advantage(
        _token_rewards(rewards, mask), mask, groups, norm_adv_by_std_in_grpo=normalize_by_std
    )
    options = {"normalize_by_std": normalize_by_std, "attention_mode": mode}
    for looked in (attention, None):
        ours = vapo_advantage(rewards, groups, mask, looked, **options)
        torch.testing.assert_close(ours, expected, atol=1e-6, rtol=0)


@few
@given(batches(), by_std, st.integers(-3, 1))
def test_without_coefficient_it_is_verls_to_the_bit(batch, normalize_by_std, exponent):
    # in float32 as in training, rewards that differ little included
    rewards, groups, mask, attention = batch
    rewards = 1 + rewards.float() * 10.0**exponent
    expected, _ = compute_grpo_outcome_advantage(
        _token_rewards(rewards, mask), mask, groups, norm_adv_by_std_in_grpo=normalize_by_std
    )
    ours = vapo_advantage(rewards, groups, mask, attention, normalize_by_std=normalize_by_std)
    values = {
        g: {r for r, h in zip(rewards.tolist(), groups, strict=True) if h == g} for g in groups
    }
    tells_apart = torch.tensor([len(values[g]) > 1 or groups.count(g) == 1 for g in groups])
    assert torch.equal(ours[tells_apart], expected[tells_apart])
    assert (ours[~tells_apart] == 0).all()


@few
@given(batches(), coefs, by_std)
def test_without_attention_it_is_plain_whatever_the_coefficient(batch, coef, normalize_by_std):
    rewards, groups, mask, attention = batch
    plain = vapo_advantage(rewards, groups, mask, normalize_by_std=normalize_by_std)
    for looked in (None, torch.full_like(attention, torch.nan)):
        ours = vapo_advantage(
            rewards, groups, mask, looked, attention_coef=coef, normalize_by_std=normalize_by_std
        )
        torch.testing.assert_close(ours, plain, atol=1e-12, rtol=0)


@few
@given(batches(), coefs, modes, by_std, st.integers(1, 9))
def test_a_response_keeps_its_total_credit(batch, coef, mode, normalize_by_std, num_bins):
    rewards, groups, mask, attention = batch
    plain = vapo_advantage(rewards, groups, mask, normalize_by_std=normalize_by_std)
    ours = vapo_advantage(
        rewards, groups, mask, attention,
        attention_coef=coef, attention_mode=mode,
        normalize_by_std=normalize_by_std, num_bins=num_bins,
    )  # fmt: skip
    torch.testing.assert_close(ours.sum(dim=1), plain.sum(dim=1), atol=1e-5, rtol=0)
    assert ours.isfinite().all()
    assert (ours[mask == 0] == 0).all()
    assert (ours.sign() == plain.sign()).all()  # credit moves, and never turns


@few
@given(batches(), coefs, modes, by_std, st.integers(-8, 8))
def test_rewards_of_a_group_may_shift(batch, coef, mode, normalize_by_std, shift):
    rewards, groups, mask, attention = batch
    options = {
        "attention_coef": coef, "attention_mode": mode, "normalize_by_std": normalize_by_std
    }  # fmt: skip
    moved = torch.tensor([shift * (g == "uid-0") * (groups.count(g) > 1) for g in groups])
    before = vapo_advantage(rewards, groups, mask, attention, **options)
    after = vapo_advantage(rewards + moved, groups, mask, attention, **options)
    torch.testing.assert_close(after, before, atol=1e-6, rtol=0)


@few
@given(batches(), coefs, modes, st.sampled_from([0.25, 2.0, 64.0]))
def test_rewards_of_a_group_may_scale_when_normalised(batch, coef, mode, scale):
    rewards, groups, mask, attention = batch
    options = {"attention_coef": coef, "attention_mode": mode, "epsilon": 1e-12}
    factor = torch.tensor([scale if groups.count(g) > 1 else 1.0 for g in groups])
    before = vapo_advantage(rewards, groups, mask, attention, **options)
    after = vapo_advantage(rewards * factor, groups, mask, attention, **options)
    torch.testing.assert_close(after, before, atol=1e-6, rtol=0)


@few
@given(batches(), coefs, modes, st.floats(-1, 1), st.floats(0.1, 10))
def test_attention_of_a_group_may_shift_and_scale(batch, coef, mode, shift, scale):
    rewards, groups, mask, attention = batch
    options = {"attention_coef": coef, "attention_mode": mode}
    first = torch.tensor([g == groups[0] for g in groups])[:, None]
    before = vapo_advantage(rewards, groups, mask, attention, **options)
    after = vapo_advantage(
        rewards, groups, mask, attention.where(~first, scale * attention + shift), **options
    )
    torch.testing.assert_close(after, before, atol=1e-6, rtol=0)


@few
@given(batches(), coefs, modes, st.randoms(use_true_random=False))
def test_order_of_the_batch_does_not_matter(batch, coef, mode, random):
    rewards, groups, mask, attention = batch
    options = {"attention_coef": coef, "attention_mode": mode}
    order = list(range(len(groups)))
    random.shuffle(order)
    straight = vapo_advantage(rewards, groups, mask, attention, **options)
    permuted = vapo_advantage(
        rewards[order], [groups[i] for i in order], mask[order], attention[order], **options
    )
    torch.testing.assert_close(permuted, straight[order], atol=1e-9, rtol=0)


@few
@given(batches(), coefs)
def test_grounded_is_focus_for_credit_and_its_mirror_for_blame(batch, coef):
    rewards, groups, mask, attention = batch
    focus, grounded, mirror = (
        vapo_advantage(
            rewards, groups, mask, looked, attention_coef=coef, attention_mode=mode
        )
        for mode, looked in (
            ("focus", attention), ("grounded", attention), ("focus", -attention)
        )
    )  # fmt: skip
    credited = (vapo_advantage(rewards, groups, mask) > 0).any(dim=1)
    torch.testing.assert_close(grounded[credited], focus[credited])
    # tanh is odd: with the attention negated, tokens that looked less carry more
    torch.testing.assert_close(grounded[~credited], mirror[~credited])


@pytest.mark.parametrize("mode", MODES)
def test_padding_may_hold_anything(mode):
    rewards, groups = torch.tensor([1.0, 0.0]), [7, 7]
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 0]])
    attention = torch.tensor([[0.3, 0.1, 0.0, 0.0], [0.2, 0.2, 0.1, 0.0]])
    options = {"attention_coef": 0.5, "attention_mode": mode}
    clean = vapo_advantage(rewards, groups, mask, attention, **options)
    for garbage in (torch.nan, torch.inf, 1e30):
        poisoned = attention.where(mask.bool(), garbage)
        assert torch.equal(vapo_advantage(rewards, groups, mask, poisoned, **options), clean)
