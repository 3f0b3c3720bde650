"""The registration, driven by veRL's own `compute_advantage`."""

import importlib
from dataclasses import asdict

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from verl import DataProto
from verl.trainer.config import AlgoConfig
from verl.trainer.ppo.core_algos import ADV_ESTIMATOR_REGISTRY, get_adv_estimator_fn
from verl.trainer.ppo.ray_trainer import compute_advantage

from vapo_verl.advantage import estimator
from vapo_verl.advantage.vapo import vapo_advantage
from vapo_verl.config import AdvantageConfig

MASK = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0]])
REWARDS = torch.tensor([2.0, 0.5, 1.0, 0.0])
UIDS = np.array(["a", "a", "b", "b"], dtype=object)
# the reward sits on the last valid token, as veRL's rollout writes it
TOKEN_REWARDS = torch.tensor(
    [[0.0, 0.0, 2.0, 0.0], [0.0, 0.5, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0], [0.0, 0.0, 0.0, 0.0]]
)
ATTENTION = torch.tensor(
    [[0.3, 0.2, 0.1, 0.0], [0.1, 0.3, 0.0, 0.0], [0.4, 0.3, 0.3, 0.1], [0.2, 0.0, 0.0, 0.0]]
)


def _verl_batch() -> DataProto:
    return DataProto.from_dict(
        tensors={"token_level_rewards": TOKEN_REWARDS.clone(), "response_mask": MASK},
        non_tensors={"uid": UIDS},
    )


@pytest.mark.parametrize("normalize_by_std", [True, False])
@pytest.mark.parametrize("as_config", [lambda d: AlgoConfig(**d), OmegaConf.create])
def test_verl_finds_it_by_name_and_gets_its_own_grpo(normalize_by_std, as_config):
    config = as_config({"norm_adv_by_std_in_grpo": normalize_by_std})
    with estimator.batch_inputs(AdvantageConfig(normalize_by_std=normalize_by_std), None):
        ours = compute_advantage(_verl_batch(), "vapo", config=config)
    grpo = compute_advantage(
        _verl_batch(), "grpo", norm_adv_by_std_in_grpo=normalize_by_std, config=config
    )
    for field in ("advantages", "returns"):
        torch.testing.assert_close(ours.batch[field], grpo.batch[field], atol=1e-6, rtol=0)


def test_attention_and_settings_reach_the_estimator_and_its_statistics_come_back():
    settings = AdvantageConfig(
        attention_coef=0.5, attention_mode="grounded", num_bins=2, normalize_by_std=False
    )
    with estimator.batch_inputs(settings, ATTENTION) as inputs:
        advantages, returns = get_adv_estimator_fn("vapo")(
            token_level_rewards=TOKEN_REWARDS,
            response_mask=MASK,
            index=UIDS,
            config=AlgoConfig(norm_adv_by_std_in_grpo=True),
        )
    stats = []
    expected = vapo_advantage(
        REWARDS, UIDS, MASK, ATTENTION, **asdict(settings), on_stats=stats.append
    )
    assert torch.equal(advantages, expected)
    assert torch.equal(returns, expected)
    assert [inputs.stats] == stats
    assert not torch.equal(expected, vapo_advantage(REWARDS, UIDS, MASK, normalize_by_std=False))


@pytest.mark.parametrize("normalize_by_std", [True, False])
@pytest.mark.parametrize("as_config", [lambda d: AlgoConfig(**d), OmegaConf.create])
def test_in_another_trainer_it_is_verls_own_grpo(normalize_by_std, as_config):
    config = as_config({"norm_adv_by_std_in_grpo": normalize_by_std})
    ours, grpo = (
        compute_advantage(
            _verl_batch(), name, norm_adv_by_std_in_grpo=normalize_by_std, config=config
        )
        for name in ("vapo", "grpo")
    )
    for field in ("advantages", "returns"):
        torch.testing.assert_close(ours.batch[field], grpo.batch[field], atol=1e-6, rtol=0)


def test_a_batch_is_estimated_once():
    with estimator.batch_inputs(AdvantageConfig(), None):
        estimator.compute_vapo_advantage(TOKEN_REWARDS, MASK, UIDS)
        with pytest.raises(AssertionError, match="estimated once"):
            estimator.compute_vapo_advantage(TOKEN_REWARDS, MASK, UIDS)


def test_another_packages_estimator_reads_what_verl_has_no_argument_for():
    settings = AdvantageConfig(num_bins=2)
    with estimator.batch_inputs(settings, ATTENTION) as inputs:
        assert estimator.current_inputs() is inputs
        assert inputs.settings is settings and inputs.visual_attention is ATTENTION
    with pytest.raises(LookupError, match="while the trainer of vapo_verl calls an estimator"):
        estimator.current_inputs()


def test_a_mistyped_setting_is_not_dropped():
    with pytest.raises(TypeError, match="attention_coeff"):
        estimator.compute_vapo_advantage(TOKEN_REWARDS, MASK, UIDS, attention_coeff=0.5)


def test_loading_it_again_keeps_one_entry_and_leaves_others_alone(monkeypatch):
    importlib.reload(estimator)
    assert get_adv_estimator_fn("vapo") is estimator.compute_vapo_advantage
    monkeypatch.setitem(ADV_ESTIMATOR_REGISTRY, "vapo", print)
    with pytest.raises(ValueError, match="already been registered"):
        estimator.register()
