"""From the replay buffer through veRL's `_compute_advantage` to advantages, in memory."""

from dataclasses import asdict

import pytest
import torch
import transfer_queue
from omegaconf import OmegaConf
from tensordict import NonTensorData, NonTensorStack, TensorDict
from transfer_queue import KVBatchMeta
from verl.trainer.ppo.core_algos import ADV_ESTIMATOR_REGISTRY, get_adv_estimator_fn

from tests.composing import compose_once
from tests.sample_records import anchor_result, sample_record
from vapo_verl.advantage.estimator import compute_vapo_advantage, current_inputs
from vapo_verl.advantage.vapo import vapo_advantage
from vapo_verl.config import AnchorConfig, RewardConfig, VapoConfig, vapo_config
from vapo_verl.rollout.sample import SampleRecord
from vapo_verl.trainer.metrics import origin_metrics, reward_parts
from vapo_verl.trainer.trainer import VapoTrainer

nan = float("nan")
ATTENTION = [[0.6, 0.4, 0.2], [0.1, 0.5]]
MASK = ([1, 1, 1], [1, 1], [0])
WITH_ATTENTION = ("vapo.attention.enabled=true", "vapo.advantage.attention_coef=0.3")


def ragged(*rows):
    return torch.nested.as_nested_tensor([torch.tensor(row) for row in rows], layout=torch.jagged)


class Trainer(VapoTrainer):
    """Configured and nothing else: no workers, no run folder."""

    def __init__(self, *overrides):
        self.config = compose_once("smoke", overrides)
        self.vapo = vapo_config(OmegaConf.to_container(self.config.vapo, resolve=True))


@pytest.fixture
def estimate(monkeypatch):
    """Advantages [rows][tokens] and metrics of two responses to one prompt and a padding row.

    The responses have 3 and 2 tokens, the first one is correct.
    """
    calls = []
    upstream = get_adv_estimator_fn("vapo")

    def counted(**inputs):
        calls.append(inputs)
        return upstream(**inputs)

    monkeypatch.setitem(ADV_ESTIMATOR_REGISTRY, "vapo", counted)

    def run(
        *overrides,
        attention=(*ATTENTION, [0.1, 0.2, 0.3]),
        rewards=(1.0, 0.0),
        records=(),
        mask=MASK,
    ):
        uids = NonTensorStack.from_list([NonTensorData(uid) for uid in ("a", "a", "pad")])
        columns = {
            "uid": uids,
            "response_mask": ragged(*mask),
            "rm_scores": ragged([0.0, 0.0, rewards[0]], [0.0, rewards[1]], [0.0]),
            "visual_attention": ragged(*attention),
            "extra_fields": NonTensorStack.from_list(
                [
                    NonTensorData({"vapo": each.to_plain()})
                    for each in records or [record(0, 0, 0)] * 3
                ]
            ),
        }
        batch = KVBatchMeta(
            keys=["a_0_0", "a_1_0", "pad_0_0"],
            tags=[{}, {}, {"is_padding": True}],
            partition_id="p",
        )

        def get(keys, partition_id, select_fields):
            assert (keys, partition_id) == (batch.keys, batch.partition_id)
            return TensorDict(
                {name: columns[name] for name in select_fields if name in columns}, batch_size=3
            )

        def put(keys, partition_id, fields):
            assert (keys, partition_id) == (batch.keys, batch.partition_id)
            columns.update(fields.items())
            return batch

        monkeypatch.setattr(transfer_queue, "kv_batch_get", get)
        monkeypatch.setattr(transfer_queue, "kv_batch_put", put)
        metrics = {}
        assert Trainer(*overrides)._compute_advantage(batch, metrics) is batch
        assert [r.tolist() for r in columns["returns"]] == [
            r.tolist() for r in columns["advantages"]
        ]
        return list(columns["advantages"].unbind()), metrics

    run.calls = calls
    return run


@pytest.mark.parametrize("overrides", [(), WITH_ATTENTION], ids=["plain", "attention"])
def test_the_estimator_runs_once_a_step(estimate, overrides):
    _, metrics = estimate(*overrides)
    assert len(estimate.calls) == 1
    assert metrics["vapo/advantage/num_groups_of_one"] == 0  # the padding row is none


def test_another_estimator_is_verls_alone(estimate):
    advantages, metrics = estimate("algorithm.adv_estimator=grpo", *WITH_ATTENTION)
    assert estimate.calls == [] and metrics == {}
    assert advantages[0].tolist() == pytest.approx([0.70711] * 3, abs=1e-4)


@pytest.fixture
def of_a_user(monkeypatch):
    """`of_a_user(function)` registers it as the estimator `mine` for a test."""
    return lambda function: monkeypatch.setitem(ADV_ESTIMATOR_REGISTRY, "mine", function)


def test_a_users_estimator_gets_attention_and_reward_parts(estimate, of_a_user):
    seen = []

    def mine(token_level_rewards, response_mask, index, config):
        seen.append(current_inputs())
        weighed = seen[0].visual_attention.nan_to_num(0.0) * token_level_rewards.sum(-1)[:, None]
        return weighed, weighed

    of_a_user(mine)
    records = [record(1.0, 0.5, 0.1), record(0.0, 0.0, 0.1), record(0.0, 0.0, 0.1)]
    (first, second, padding), metrics = estimate("algorithm.adv_estimator=mine", records=records)
    assert first.tolist() == pytest.approx([0.6, 0.4, 0.2])  # reward 1
    assert second.tolist() == [0.0, 0.0]
    assert padding.tolist() == [0.0]
    [inputs] = seen
    attention = torch.tensor([[0.6, 0.4, 0.2], [0.1, 0.5, nan], [0.1, 0.2, 0.3]])
    torch.testing.assert_close(inputs.visual_attention, attention, equal_nan=True)
    # accuracy + format 1; perception counts behind the gate alone; the padding row has neither
    torch.testing.assert_close(inputs.parts.base, torch.tensor([2.0, 1.0, nan]), equal_nan=True)
    expected = torch.tensor([0.5, nan, nan])
    torch.testing.assert_close(inputs.parts.perception, expected, equal_nan=True)
    assert metrics == {}, "it has none of the statistics of `vapo`"


def test_a_token_that_the_mask_leaves_out_has_no_advantage(estimate, of_a_user):
    """veRL's `opo` divides by the tokens of a group, and the mask makes no number of nan."""
    rejected = ([0, 0, 0], [0, 0], [0])
    advantages, _ = estimate("algorithm.adv_estimator=opo", mask=rejected)
    assert [row.tolist() for row in advantages] == [[0.0] * 3, [0.0] * 2, [0.0]]
    first, second, _ = estimate("algorithm.adv_estimator=opo")[0]
    assert first.tolist() == pytest.approx([0.4] * 3)  # the baseline is 3 tokens of 5
    assert second.tolist() == pytest.approx([-0.6] * 2)

    of_a_user(lambda response_mask, **_: [torch.where(response_mask.bool(), 0.5, nan)] * 2)
    advantages, _ = estimate("algorithm.adv_estimator=mine")
    assert [row.tolist() for row in advantages] == [[0.5] * 3, [0.5] * 2, [0.0]]


def test_a_users_estimator_may_call_ours(estimate, of_a_user):
    of_a_user(lambda **inputs: compute_vapo_advantage(**inputs))
    theirs, metrics = estimate("algorithm.adv_estimator=mine")
    ours, expected = estimate()
    assert all(torch.equal(a, b) for a, b in zip(theirs, ours, strict=True))
    assert metrics == expected


@pytest.mark.parametrize("padding", [[0.9], [0.1, 0.2, 0.3], [0.9] * 5])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("coef", [0.0, 0.3])
@pytest.mark.parametrize("mode", ["focus", "grounded"])
def test_it_is_the_pure_function_to_the_bit(estimate, coef, normalize, mode, padding):
    """A padding row carries the attention of the row it copies, shorter or longer than any."""
    overrides = (
        "vapo.attention.enabled=true",
        f"vapo.advantage.attention_coef={coef}",
        f"vapo.advantage.normalize_by_std={normalize}",
        f"vapo.advantage.attention_mode={mode}",
    )
    advantages, _ = estimate(*overrides, attention=(*ATTENTION, padding))
    expected = vapo_advantage(
        torch.tensor([1.0, 0.0, 0.0]),
        ["a", "a", "pad"],
        torch.tensor([[1, 1, 1], [1, 1, 0], [0, 0, 0]]),
        torch.tensor([[0.6, 0.4, 0.2], [0.1, 0.5, nan], [nan] * 3]),
        **asdict(Trainer(*overrides).vapo.advantage),
    )
    assert torch.equal(advantages[0], expected[0])
    assert torch.equal(advantages[1], expected[1, :2])
    assert advantages[2].tolist() == [0.0]


@pytest.mark.parametrize("estimator", ["vapo", "grpo"])
def test_the_deviation_is_left_out_when_asked(estimate, estimator):
    advantages, _ = estimate(
        "vapo.advantage.normalize_by_std=false", f"algorithm.adv_estimator={estimator}"
    )
    assert advantages[0].tolist() == [0.5, 0.5, 0.5]


def test_without_a_coefficient_every_token_has_its_responses_advantage(estimate):
    (right, wrong, padding), metrics = estimate()
    # rewards 1 and 0: mean 0.5, sample std sqrt(0.5) = 0.7071; (1 - 0.5) / 0.7071 = 0.7071
    assert right.tolist() == pytest.approx([0.70711] * 3, abs=1e-4)
    assert wrong.tolist() == pytest.approx([-0.70711] * 2, abs=1e-4)
    assert padding.tolist() == [0.0]
    assert metrics["vapo/advantage/num_responses_without_attention"] == 0


@pytest.mark.parametrize("mode", ["focus", "grounded"])
def test_attention_moves_credit_within_a_response_and_keeps_its_total(estimate, mode):
    (right, wrong, _), metrics = estimate(
        *WITH_ATTENTION, f"vapo.advantage.attention_mode={mode}", "vapo.advantage.num_bins=1"
    )
    assert right[0] > right[1] > right[2] > 0  # looked most: most credit
    assert right.sum().item() == pytest.approx(3 * 0.70711, abs=1e-4)
    assert wrong.sum().item() == pytest.approx(2 * -0.70711, abs=1e-4)
    looked, did_not = wrong[1], wrong[0]
    assert (looked < did_not) == (mode == "focus")  # grounded blames what did not look
    assert metrics["vapo/advantage/weight_max"] > 1 > metrics["vapo/advantage/weight_min"]


def test_missing_attention_changes_nothing_and_is_counted(estimate):
    missing = ([nan] * 3, [nan] * 2, [nan])
    weighted, metrics = estimate(*WITH_ATTENTION, attention=missing)
    plain, _ = estimate(attention=missing)
    assert all(torch.equal(a, b) for a, b in zip(weighted, plain, strict=True))
    assert metrics["vapo/advantage/num_responses_without_attention"] == 2
    assert metrics["vapo/advantage/num_nan_attention_tokens"] == 5


def record(accuracy: float, perception: float, gamma: float, *, probed=True) -> SampleRecord:
    total = accuracy + 1.0 + gamma * (perception if accuracy == 1 else 0.0)
    reward = {"accuracy": accuracy, "perception": perception, "total": total}
    return sample_record(*[anchor_result()] * probed, reward=reward)


def test_metrics_tell_which_groups_perception_alone_decides():
    settings = VapoConfig(reward=RewardConfig(perception_weight=0.2))
    # a: both right, perception differs; b: both wrong, perception does not count behind the gate
    records = [record(1.0, 0.5, 0.2), record(1.0, 0.9, 0.2), record(0.0, 0.5, 0.2)]
    step = [*records, record(0.0, 0.9, 0.2)], ["a", "a", "b", "b"], settings
    groups = {
        "vapo/advantage/groups_right": 0.5,
        "vapo/advantage/groups_mixed": 0.0,
        "vapo/advantage/groups_wrong": 0.5,
    }
    assert origin_metrics(*step, "rloo") == groups  # its advantages are others
    assert origin_metrics(*step, "vapo") == {
        **groups,
        "vapo/advantage/perception_only": 1.0,
        "vapo/advantage/perception_fraction": pytest.approx(1.0, abs=1e-9),
    }


@pytest.mark.parametrize(
    ("gate", "source", "expected"),
    [
        ("correct", "claims", [0.5, nan, nan, nan]),
        ("always", "claims", [0.5, nan, nan, nan]),
        ("relaxed", "claims", [0.5, nan, 0.7, nan]),
        ("correct", "attention", [0.5, 0.6, nan, nan]),
        ("relaxed", "attention", [0.5, 0.6, 0.7, nan]),
        ("correct", "none", [nan, nan, nan, nan]),
    ],
)
def test_perception_counts_where_it_was_measured_and_passes_the_gate(gate, source, expected):
    settings = VapoConfig(
        reward=RewardConfig(perception_weight=0.2, accuracy_weight=0.8, perception_source=source),
        anchors=AnchorConfig(gate=gate),
    )
    records = [record(1.0, 0.5, 0.2), record(1.0, 0.6, 0.2, probed=False), record(0.0, 0.7, 0.2)]
    parts = reward_parts([*records, None], settings)
    torch.testing.assert_close(parts.perception, torch.tensor(expected), equal_nan=True)
    torch.testing.assert_close(parts.base, torch.tensor([1.8, 1.8, 1.0, nan]), equal_nan=True)
    assert parts.weight == 0.2


def test_decoupled_advantages_take_the_parts_from_the_records(estimate):
    """Both correct: accuracy says nothing, perception 0.9 against 0.4 is +-0.7071, times gamma."""
    gamma = 0.1
    records = [record(1.0, 0.9, gamma), record(1.0, 0.4, gamma), record(0.0, 0.0, gamma)]
    (first, second, padding), _ = estimate(
        "vapo.advantage.normalization=decoupled",
        rewards=[r.reward.total for r in records[:2]],
        records=records,
    )
    assert first.tolist() == pytest.approx([0.070711] * 3, abs=1e-4)
    assert second.tolist() == pytest.approx([-0.070711] * 2, abs=1e-4)
    assert padding.tolist() == [0.0]


def test_decoupled_parts_of_other_rewards_are_refused(estimate):
    records = [record(1.0, 0.9, 0.1), record(1.0, 0.4, 0.1), record(0.0, 0.0, 0.1)]
    with pytest.raises(ValueError, match="is not the sum of its parts"):
        estimate("vapo.advantage.normalization=decoupled", records=records)  # rewards 1 and 0
