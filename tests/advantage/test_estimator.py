"""The registration, driven by veRL's own `compute_advantage`."""

import importlib

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
    ours, grpo = (
        compute_advantage(
            _verl_batch(), name, norm_adv_by_std_in_grpo=normalize_by_std, config=config
        )
        for name in ("vapo", "grpo")
    )
    for field in ("advantages", "returns"):
        torch.testing.assert_close(ours.batch[field], grpo.batch[field], atol=1e-6, rtol=0)


def test_attention_and_settings_reach_the_estimator():
    settings = {"attention_coef": 0.5, "attention_mode": "grounded", "num_bins": 2}
    advantages, returns = get_adv_estimator_fn("vapo")(
        token_level_rewards=TOKEN_REWARDS,
        response_mask=MASK,
        index=UIDS,
        config=AlgoConfig(norm_adv_by_std_in_grpo=True),
        visual_attention=ATTENTION,
        normalize_by_std=False,
        **settings,
    )
    expected = vapo_advantage(REWARDS, UIDS, MASK, ATTENTION, normalize_by_std=False, **settings)
    assert torch.equal(advantages, expected)
    assert torch.equal(returns, expected)
    assert not torch.equal(expected, vapo_advantage(REWARDS, UIDS, MASK, normalize_by_std=False))


def test_a_mistyped_setting_is_not_dropped():
    with pytest.raises(TypeError, match="attention_coeff"):
        estimator.compute_vapo_advantage(TOKEN_REWARDS, MASK, UIDS, attention_coeff=0.5)


def test_loading_it_again_keeps_one_entry_and_leaves_others_alone(monkeypatch):
    importlib.reload(estimator)
    assert get_adv_estimator_fn("vapo") is estimator.compute_vapo_advantage
    monkeypatch.setitem(ADV_ESTIMATOR_REGISTRY, "vapo", print)
    with pytest.raises(ValueError, match="already been registered"):
        estimator.register()
