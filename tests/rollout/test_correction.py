"""The mismatch of engine and trainer, and which corrections of it a run may ask for."""

import inspect
import math

import pytest
import torch
from omegaconf import OmegaConf
from verl.trainer.ppo.core_algos import get_policy_loss_fn
from verl.trainer.ppo.rollout_corr_helper import (
    SUPPORTED_ROLLOUT_RS_OPTIONS,
    compute_rollout_correction_and_rejection_mask,
)
from verl.utils.config import omega_conf_to_dataclass

from tests.composing import compose_once
from vapo_verl.launch import use_bypass_loss_where_needed
from vapo_verl.rollout.correction import (
    DIFF_MAX,
    DIFF_MEAN,
    KEY,
    RATIO_MEAN,
    REJECTIONS,
    bypasses,
    check_rollout_correction,
    mismatch,
)
from vapo_verl.settings import check_settings

ONE_UPDATE = ("actor_rollout_ref.actor.ppo_mini_batch_size=16",)
"""Of the smoke recipe: one mini-batch a step."""


def composed(*overrides):
    """The smoke recipe with keys that are set as YAML reads them."""
    return OmegaConf.merge(compose_once("smoke"), OmegaConf.from_dotlist(list(overrides)))


def corrected(**values):
    """Overrides of the correction's keys."""
    return [f"{KEY}.{name}={value}" for name, value in values.items()]


def log_probs(ratios, mask):
    """(old, rollout, mask) whose importance ratios are `ratios` [B, T]."""
    ratios = torch.tensor(ratios)
    rollout = torch.full_like(ratios, -1.5)
    return rollout + ratios.log(), rollout, torch.tensor(mask)


def test_the_mismatch_is_of_valid_tokens_only():
    old, rollout, mask = log_probs([[2.0, 0.5, 100.0], [1.0, 100.0, 100.0]], [[1, 1, 0], [1, 0, 0]])
    found = mismatch(old, rollout, mask)
    assert found[DIFF_MEAN] == pytest.approx(2 * math.log(2) / 3, rel=1e-6)
    assert found[DIFF_MAX] == pytest.approx(math.log(2), rel=1e-6)
    assert found[RATIO_MEAN] == pytest.approx((2 + 0.5 + 1) / 3, rel=1e-6)


def test_without_tokens_the_mismatch_is_nan():
    old, rollout, mask = log_probs([[2.0]], [[0]])
    assert all(math.isnan(value) for value in mismatch(old, rollout, mask).values())


def test_equal_policies_have_no_mismatch():
    old, rollout, mask = log_probs([[1.0, 1.0]], [[1, 1]])
    assert mismatch(old, rollout, mask) == {DIFF_MEAN: 0.0, DIFF_MAX: 0.0, RATIO_MEAN: 1.0}


def test_the_mean_ratio_is_1_for_any_two_policies():
    """E over pi of pi'/pi = sum of pi' = 1, here over all tokens of a vocabulary of 3."""
    rollout, old = torch.tensor([0.5, 0.25, 0.25]), torch.tensor([0.2, 0.7, 0.1])
    tokens = torch.tensor([[0, 0, 1, 2]])  # as often as the engine's policy has them
    found = mismatch(old[tokens].log(), rollout[tokens].log(), torch.ones_like(tokens))
    assert found[RATIO_MEAN] == pytest.approx(1.0, rel=1e-6)


def weights(ratios, mask, **settings):
    proto, kept, _ = compute_rollout_correction_and_rejection_mask(
        *log_probs(ratios, mask), **settings
    )
    return (None if proto is None else proto.batch["rollout_is_weights"]), kept


RATIOS, MASK = [[0.5, 3.0, 1.0], [1.5, 1.5, 9.0]], [[1, 1, 1], [1, 1, 0]]


def test_token_weights_are_the_ratio_up_to_the_threshold():
    found, kept = weights(RATIOS, MASK, rollout_is="token", rollout_is_threshold=2.0)
    torch.testing.assert_close(found, torch.tensor([[0.5, 2.0, 1.0], [1.5, 1.5, 0.0]]))
    assert kept.tolist() == MASK


def test_sequence_weights_are_the_product_of_the_ratios():
    found, _ = weights(RATIOS, MASK, rollout_is="sequence", rollout_is_threshold=2.0)
    expected = torch.tensor([[0.5 * 3.0 * 1.0] * 3, [2.0, 2.0, 0.0]])  # 1.5 * 1.5 is above 2
    torch.testing.assert_close(found, expected)


def test_a_pair_of_bounds_drops_the_weights_outside():
    found, _ = weights(RATIOS, MASK, rollout_is="token", rollout_is_threshold="0.6_2.0")
    torch.testing.assert_close(found, torch.tensor([[0.0, 0.0, 1.0], [1.5, 1.5, 0.0]]))


def test_normalised_weights_have_mean_1():
    found, _ = weights(
        RATIOS, MASK, rollout_is="token", rollout_is_threshold=2.0, rollout_is_batch_normalize=True
    )
    assert float(found.sum() / 5) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("name", "threshold", "kept"),
    [
        ("token_k1", "0.4_2.1", [[1, 0, 1], [1, 1, 0]]),  # keeps engine / trainer in [0.4, 2.1]
        ("token_k1", 2.5, [[1, 0, 1], [1, 1, 0]]),  # in [1 / 2.5, 2.5]
        ("token_k2", 0.25, [[1, 0, 1], [1, 1, 0]]),  # (log r)^2 / 2
        ("token_k3", 0.5, [[1, 0, 1], [1, 1, 0]]),  # r - 1 - log r
        ("seq_sum_k1", "0.5_2.0", [[1, 1, 1], [0, 0, 0]]),  # 1 / 1.5 and 1 / 2.25
        ("seq_mean_k1", 1.2, [[1, 1, 1], [0, 0, 0]]),  # 1.5^(1/3) and 1.5
        ("seq_max_k3", 0.5, [[0, 0, 0], [1, 1, 0]]),
    ],
)
def test_rejection_is_its_formula(name, threshold, kept):
    _, mask = weights(RATIOS, MASK, rollout_rs=name, rollout_rs_threshold=threshold)
    assert mask.tolist() == kept


def test_the_names_are_verls():
    assert set(REJECTIONS) == SUPPORTED_ROLLOUT_RS_OPTIONS


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"rollout_is": "token"},
        {"rollout_is": "sequence", "rollout_is_threshold": 1},
        {"rollout_is": "token", "rollout_is_threshold": "'0.5_5.0'"},
        {"rollout_is": "token", "rollout_is_batch_normalize": "true"},
        {"rollout_rs": "seq_mean_k1", "rollout_rs_threshold": "'0.99_1.01'"},
        {"rollout_rs": "seq_mean_k1", "rollout_rs_threshold": "1.001"},
        {"rollout_rs": "'token_k1, seq_sum_k3'", "rollout_rs_threshold": "'0.5_2.0, 0.01'"},
        {"rollout_rs": "'token_k2,seq_sum_k3'", "rollout_rs_threshold": "0.01"},
        {"bypass_mode": "true"},
        {"bypass_mode": "true", "loss_type": "reinforce", "rollout_is": "sequence"},
    ],
)
def test_a_sensible_correction_passes_here_and_in_verl(values):
    config = composed(*corrected(**values))
    check_settings(config)
    check_rollout_correction(config)
    chosen = config.algorithm.rollout_correction
    names = ("rollout_is", "rollout_is_threshold", "rollout_is_batch_normalize", "rollout_rs")
    names = (*names, "rollout_rs_threshold")
    weights(RATIOS, MASK, **{name: chosen[name] for name in names})


def refused(*overrides):
    with pytest.raises(ValueError) as caught:
        check_rollout_correction(composed(*overrides))
    return str(caught.value)


@pytest.mark.parametrize(
    ("values", "said", "fix"),
    [
        ({"rollout_is": "tokens"}, "rollout_is='tokens'", "token, sequence, or null"),
        ({"rollout_is": "geometric"}, "rollout_is='geometric'", "token, sequence, or null"),
        ({"rollout_is": "true"}, "rollout_is=True", "token, sequence, or null"),
        ({"rollout_is": "token", "rollout_is_threshold": 0}, "0 is no threshold", "above 0"),
        ({"rollout_is": "token", "rollout_is_threshold": -2}, "-2 is no threshold", "above 0"),
        ({"rollout_is": "token", "rollout_is_threshold": "inf"}, "inf is no thresh", "above 0"),
        ({"rollout_is": "token", "rollout_is_threshold": "nan"}, "nan is no thresh", "above 0"),
        ({"rollout_is": "token", "rollout_is_threshold": "true"}, "=True is no number", "2.0"),
        ({"rollout_is": "token", "rollout_is_threshold": "two"}, "='two' is no number", "2.0"),
        ({"rollout_is": "token", "rollout_is_threshold": "null"}, "=None is no number", "2.0"),
        ({"rollout_is": "token", "rollout_is_threshold": "''"}, "='' is no number", "2.0"),
        ({"rollout_is": "token", "rollout_is_threshold": "'1.0_2.0_3.0'"}, "no pair", "2.0"),
        ({"rollout_is": "token", "rollout_is_threshold": "'2.0_0.5'"}, "not below", "lower_upper"),
        ({"rollout_is": "token", "rollout_is_threshold": "'2.0_5.0'"}, "leaves out", "below 1"),
        ({"rollout_is": "token", "rollout_is_threshold": "0.5_2"}, "=0.52 lowers", "in quotes"),
        ({"rollout_is": "token", "rollout_is_threshold": 0.9}, "=0.9 lowers", "1 or more"),
        ({"rollout_is_threshold": 5.0}, "has no effect with", "set rollout_is to a level"),
        ({"rollout_is_batch_normalize": "true"}, "has no effect", "set rollout_is to a level"),
        ({"rollout_rs": "token", "rollout_rs_threshold": 2.0}, "'token' is not", "token_k"),
        ({"rollout_rs": "seq_max_k1", "rollout_rs_threshold": 2.0}, "not known", "seq_max_k"),
        ({"rollout_rs": "''", "rollout_rs_threshold": 2.0}, "'' is not known", "token_k1"),
        ({"rollout_rs": "[token_k1]", "rollout_rs_threshold": 2.0}, "ListConfig", "one text"),
        ({"rollout_rs": "'token_k1,token_k1'", "rollout_rs_threshold": 2.0}, "twice", "once"),
        ({"rollout_rs": "token_k1"}, "threshold=null", "for each name"),
        ({"rollout_rs_threshold": 2.0}, "has no effect with", "set rollout_rs to a level"),
        ({"rollout_rs": "token_k1", "rollout_rs_threshold": "[2.0]"}, "ListConfig", "one text"),
        ({"rollout_rs": "token_k1", "rollout_rs_threshold": "true"}, "is a bool", "one text"),
        ({"rollout_rs": "token_k1", "rollout_rs_threshold": "'2.0,3.0'"}, "2 thresh", "for each"),
        ({"rollout_rs": "token_k1", "rollout_rs_threshold": "'2.0_0.5'"}, "not below", "lower_up"),
        ({"rollout_rs": "token_k1", "rollout_rs_threshold": 0.5}, "keeps none", "above 1"),
        ({"rollout_rs": "token_k1", "rollout_rs_threshold": 1}, "keeps none", "above 1"),
        ({"rollout_rs": "token_k2", "rollout_rs_threshold": "'0.5_2.0'"}, "distance", "one number"),
        ({"rollout_rs": "token_k2", "rollout_rs_threshold": 0}, "0 is no threshold", "above 0"),
        ({"loss_type": "reinforce"}, "has no effect with", "set bypass_mode true"),
        ({"loss_type": "ppo"}, "loss_type='ppo'", "ppo_clip, reinforce"),
        (
            {"bypass_mode": "true", "rollout_is": "token"},
            "no weight would be applied",
            "rollout_is=null, loss_type=reinforce",
        ),
        (
            {
                "bypass_mode": "true",
                "loss_type": "reinforce",
                "rollout_is": "token",
                "rollout_is_batch_normalize": "true",
            },
            "one micro-batch at a time",
            "set it to false",
        ),
        (
            {"bypass_mode": "true", "rollout_rs": "token_k1", "rollout_rs_threshold": 2.0},
            "2 updates in a step",
            "ppo_mini_batch_size=16",
        ),
    ],
)
def test_a_senseless_correction_is_refused_with_its_fix(values, said, fix):
    message = refused(*corrected(**values))
    assert message.startswith(KEY)
    assert said in message
    assert fix in message


@pytest.mark.parametrize("asked", [{"rollout_is": "token"}, {"bypass_mode": "true"}])
@pytest.mark.parametrize(
    ("override", "fix"),
    [
        ("actor_rollout_ref.rollout.top_p=0.9", "set top_p=1.0"),
        ("actor_rollout_ref.rollout.top_k=50", "set top_k=-1"),
    ],
)
def test_what_the_correction_needs_of_the_engine(asked, override, fix):
    check_rollout_correction(composed(override))  # without a correction
    message = refused(*corrected(**asked), override)
    key, value = override.split("=")
    assert message.lower().startswith(f"{key}={value}")
    assert message.endswith(fix)


@pytest.mark.parametrize("value", ["token", "true", "[token]"])
def test_what_is_no_group_of_settings_is_refused(value):
    config = compose_once("smoke")
    config.algorithm.rollout_correction = OmegaConf.create({"value": value}).value
    with pytest.raises(ValueError, match=r"rollout_correction=.* set .*rollout_is"):
        check_rollout_correction(config)


LOSS = "actor_rollout_ref.actor.policy_loss.loss_mode"


def test_a_rejection_in_bypass_mode_gets_its_loss():
    asked = corrected(bypass_mode="true", rollout_rs="token_k1", rollout_rs_threshold=2.0)
    config = composed(*asked, *ONE_UPDATE)
    check_rollout_correction(config)
    use_bypass_loss_where_needed(config)
    loss = config.actor_rollout_ref.actor.policy_loss
    assert loss.loss_mode == "bypass_mode"
    assert loss.rollout_correction == config.algorithm.rollout_correction
    check_rollout_correction(config)  # a settled config passes again
    assert f"{LOSS}='gspo'" in refused(*asked, *ONE_UPDATE, f"{LOSS}=gspo")


def test_verls_v1_trainers_still_leave_the_loss_as_it_is():
    """Where they choose it, `use_bypass_loss_where_needed` can go."""
    from verl.trainer.ppo.v1 import trainer_base

    assert "apply_bypass_mode" not in inspect.getsource(trainer_base)


@pytest.mark.parametrize("values", [{}, {"rollout_is": "token"}, {"bypass_mode": "true"}])
def test_any_other_correction_keeps_the_loss(values):
    config = composed(*corrected(**values))
    before = OmegaConf.to_container(config)
    use_bypass_loss_where_needed(config)
    assert OmegaConf.to_container(config) == before


def test_the_bypass_loss_without_bypass_mode_is_refused():
    assert refused(f"{LOSS}=bypass_mode").startswith(f"{LOSS}='bypass_mode'")


def test_log_probs_are_compared_where_both_are_computed():
    assert not bypasses(composed())
    assert bypasses(composed(*corrected(bypass_mode="true")))


def test_the_loss_of_bypass_mode_weighs_and_rejects():
    """veRL's loss with the config of a settled run: L = -mean(w log pi A) over the kept tokens."""
    config = composed(
        *corrected(bypass_mode="true", loss_type="reinforce", rollout_is="token"),
        *corrected(rollout_rs="token_k1", rollout_rs_threshold=2.5),
        *ONE_UPDATE,
    )
    check_rollout_correction(config)
    use_bypass_loss_where_needed(config)
    OmegaConf.resolve(config)
    actor = omega_conf_to_dataclass(config.actor_rollout_ref.actor)
    current, rollout, mask = log_probs(RATIOS, MASK)
    loss, metrics = get_policy_loss_fn(actor.policy_loss.loss_mode)(
        old_log_prob=rollout,
        log_prob=current,
        advantages=torch.ones(2, 3),
        response_mask=mask,
        loss_agg_mode="token-mean",
        config=actor,
        rollout_is_weights=None,
    )
    kept = [(0.5, current[0, 0]), (1.0, current[0, 2]), (1.5, current[1, 0]), (1.5, current[1, 1])]
    assert float(loss) == pytest.approx(float(-sum(w * logp for w, logp in kept) / 4), rel=1e-5)
    assert metrics["rollout_corr/rollout_rs_masked_fraction"] == pytest.approx(1 / 5)
