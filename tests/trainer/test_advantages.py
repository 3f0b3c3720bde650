"""The path from replay-buffer fields to advantages, with made-up attention."""

import pytest
import torch
from omegaconf import OmegaConf

from vapo_verl.config import AdvantageConfig, RewardConfig, VapoConfig, vapo_config
from vapo_verl.hydra_config import compose_recipe
from vapo_verl.trainer.advantages import batch_advantages, goes_beyond_upstream, origin_metrics


def ragged(*rows):
    return torch.nested.as_nested_tensor([torch.tensor(row) for row in rows], layout=torch.jagged)


def batch(attention):
    """Two responses to one prompt, 3 and 2 tokens long, the first one right; and a padding row."""
    return {
        "uid": ["a", "a", "pad"],
        "response_mask": ragged([1, 1, 1], [1, 1], [0]),
        "rm_scores": ragged([0.0, 0.0, 1.0], [0.0, 0.0], [0.0]),
        "visual_attention": attention,
    }


ATTENTION = [[0.6, 0.4, 0.2], [0.1, 0.5]]


@pytest.mark.parametrize(
    ("overrides", "beyond"),
    [
        ((), False),
        (("algorithm.norm_adv_by_std_in_grpo=false",), False),  # which the other key follows
        (("vapo.advantage.normalize_by_std=false",), True),
        (("vapo.advantage.attention_coef=0.3", "vapo.attention.enabled=true"), True),
        (("vapo.advantage.normalize_by_std=false", "algorithm.adv_estimator=grpo"), False),
    ],
)
def test_the_estimator_is_called_again_for_what_verl_does_not_hand_it(overrides, beyond):
    config = compose_recipe("smoke", overrides)
    settings = vapo_config(OmegaConf.to_container(config.vapo, resolve=True)).advantage
    assert goes_beyond_upstream(settings, config.algorithm) == beyond


def test_the_deviation_is_left_out_when_asked():
    data = batch(ragged(*ATTENTION, [0.1, 0.2, 0.3]))
    advantages, _ = batch_advantages(data, "rm_scores", AdvantageConfig(normalize_by_std=False))
    assert advantages.unbind()[0].tolist() == [0.5, 0.5, 0.5]


def test_without_a_coefficient_every_token_has_its_responses_advantage():
    advantages, stats = batch_advantages(
        batch(ragged(*ATTENTION, [0.1, 0.2, 0.3])), "rm_scores", AdvantageConfig()
    )
    right, wrong, padding = advantages.unbind()
    # rewards 1 and 0: mean 0.5, sample std sqrt(0.5) = 0.7071; (1 - 0.5) / 0.7071 = 0.7071
    assert right.tolist() == pytest.approx([0.70711] * 3, abs=1e-4)
    assert wrong.tolist() == pytest.approx([-0.70711] * 2, abs=1e-4)
    assert padding.tolist() == [0.0]
    assert stats.num_responses_without_attention == 0


@pytest.mark.parametrize("mode", ["focus", "grounded"])
def test_attention_moves_credit_within_a_response_and_keeps_its_total(mode):
    settings = AdvantageConfig(attention_coef=0.3, attention_mode=mode, num_bins=1)
    advantages, stats = batch_advantages(
        batch(ragged(*ATTENTION, [0.1, 0.2, 0.3])), "rm_scores", settings
    )
    right, wrong, _ = advantages.unbind()
    assert right[0] > right[1] > right[2] > 0  # looked most: most credit
    assert right.sum().item() == pytest.approx(3 * 0.70711, abs=1e-4)
    assert wrong.sum().item() == pytest.approx(2 * -0.70711, abs=1e-4)
    looked, did_not = wrong[1], wrong[0]
    assert (looked < did_not) == (mode == "focus")  # grounded blames what did not look
    assert stats.weight_max > 1 > stats.weight_min


def test_missing_attention_changes_nothing_and_is_counted():
    nan = float("nan")
    data = batch(ragged([nan] * 3, [nan] * 2, [nan]))
    weighted, stats = batch_advantages(data, "rm_scores", AdvantageConfig(attention_coef=0.3))
    plain, _ = batch_advantages(data, "rm_scores", AdvantageConfig())
    assert torch.equal(weighted.values(), plain.values())
    assert stats.num_responses_without_attention == 2
    assert stats.num_nan_attention_tokens == 5


def record(accuracy: float, perception: float, gamma: float) -> dict:
    total = accuracy + 1.0 + gamma * (perception if accuracy == 1 else 0.0)
    return {
        "reward": {"accuracy": accuracy, "format": 1.0, "perception": perception, "total": total}
    }


def test_metrics_tell_which_groups_perception_alone_decides():
    settings = VapoConfig(reward=RewardConfig(perception_weight=0.2))
    # a: both right, perception differs; b: both wrong, perception does not count behind the gate
    records = [record(1.0, 0.5, 0.2), record(1.0, 0.9, 0.2), record(0.0, 0.5, 0.2)]
    metrics = origin_metrics([*records, record(0.0, 0.9, 0.2)], ["a", "a", "b", "b"], settings)
    assert metrics == {
        "vapo/advantage/groups_right": 0.5,
        "vapo/advantage/groups_mixed": 0.0,
        "vapo/advantage/groups_wrong": 0.5,
        "vapo/advantage/perception_only": 1.0,
    }
