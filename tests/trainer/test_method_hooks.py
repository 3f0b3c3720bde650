"""From the replay buffer through a method to advantages and the loss, in memory."""

from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transfer_queue
from omegaconf import OmegaConf
from tensordict import NonTensorData, NonTensorStack, TensorDict
from transfer_queue import KVBatchMeta
from verl.trainer.ppo.v1.trainer_base import PPOTrainer
from verl.utils.model import extract_multi_modal_inputs
from verl.workers.config import FSDPActorConfig, PolicyLossConfig
from verl.workers.utils.losses import ppo_loss

from tests.sample_records import sample_record
from vapo_verl.config import MethodConfig
from vapo_verl.data.compact_pixels import CompactPixels
from vapo_verl.methods import method_of
from vapo_verl.rollout.correction import BYPASS_LOSS
from vapo_verl.rollout.prompts import PIXELS_OF, PromptPixels
from vapo_verl.trainer.async_trainers import VapoSeparateAsync
from vapo_verl.trainer.replay_buffer import (
    StepResponses,
    method_metrics,
    take_masked_log_probs,
    weigh_advantages,
)
from vapo_verl.trainer.worker import MASKING, loss_with_method, masked_view

MASKED = {"fraction": 0.5, "seed": 0, "step": 3}


def ragged(*rows):
    return torch.nested.as_nested_tensor([torch.tensor(row) for row in rows], layout=torch.jagged)


def method(name, **options):
    return method_of(MethodConfig(name=name, options=options))


@pytest.fixture
def buffer(monkeypatch):
    """Columns of two responses of 3 and 2 tokens and of a padding row with a third one's fields."""
    uids = NonTensorStack.from_list([NonTensorData(uid) for uid in ("a", "a", "a")])
    columns = {
        "uid": uids,
        "response_mask": ragged([1, 1, 1], [1, 1], [0]),
        "visual_attention": ragged([0.1, 0.5, 0.3], [0.2, 0.4], [0.9, 0.9, 0.9, 0.9]),
        "old_log_probs": ragged([-1.0, -1.0, -1.0], [-1.0, -1.0], [-9.0]),
        "masked_log_probs": ragged([-1.0, -4.0, -1.0], [-3.0, -1.0], [-1.0]),
        "advantages": ragged([2.0, 2.0, 2.0], [-2.0, -2.0], [0.0]),
    }

    def get(keys, partition_id, select_fields):
        return TensorDict({name: columns[name] for name in select_fields}, batch_size=3)

    monkeypatch.setattr(transfer_queue, "kv_batch_get", get)
    monkeypatch.setattr(
        transfer_queue, "kv_batch_put", lambda keys, partition_id, fields: columns.update(fields)
    )
    return columns


@pytest.fixture
def batch():
    keys = ["a_0_0", "a_1_0", "pad_0_0"]
    return KVBatchMeta(keys=keys, tags=[{}, {}, {"is_padding": True}], partition_id="train")


def rows(column):
    return [row.tolist() for row in column.unbind()]


def test_weights_are_those_of_the_method_on_the_steps_columns(buffer, batch):
    """The first response trains 2 of 3 tokens, the second 1 of 2."""
    metrics = weigh_advantages(batch, method("vppo", response_min=1.0, top_fraction=0.5))
    first, second, padding = rows(buffer["advantages"])
    assert first == [2, 2, 0]
    assert second == [-2, 0]
    assert padding == [0]
    assert metrics["vapo/vppo/trained_fraction"] == pytest.approx(3 / 5)


def test_attention_of_a_padding_row_is_that_of_another_and_counts_for_nothing(buffer, batch):
    weigh_advantages(batch, method("vgpo", strength=0.0, response_level=False))
    first, second, _ = rows(buffer["advantages"])
    assert first == pytest.approx([2 * 0.5, 2 * 1.5, 2 * 1.0])  # a = 0, 1, 1/2
    assert second == pytest.approx([-2 * 0.5, -2 * 1.5])


@pytest.mark.parametrize(
    ("name", "off"),
    [
        ("vgpo", {"token_level": False, "response_level": False}),
        ("vppo", {"top_fraction": 1.0, "response_min": 1.0}),
    ],
)
def test_a_method_that_is_off_leaves_advantages_to_the_bit(buffer, batch, name, off):
    buffer["advantages"] = ragged([0.1, 0.2, 0.3], [-0.7, 1e-30], [0.0])
    before = buffer["advantages"].values().clone()
    weigh_advantages(batch, method(name, **off))
    assert torch.equal(buffer["advantages"].values(), before)


def test_masked_log_probs_are_those_of_the_responses(buffer, batch):
    """The pass gives a value for each token of prompt and response, one place to the left."""
    buffer["log_probs"] = ragged([7.0, 1.0, 2.0, 3.0, 7.0], [4.0, 5.0, 7.0], [6.0, 7.0])
    take_masked_log_probs(batch)
    assert rows(buffer["masked_log_probs"]) == [[1.0, 2.0, 3.0], [4.0, 5.0], [6.0]]


def test_the_masked_view_is_a_batch_of_its_own(batch, monkeypatch):
    meta = SimpleNamespace(field_names=["input_ids", "claims"])
    monkeypatch.setattr("vapo_verl.rollout.transfer.kv_batch_meta2batch_meta", lambda _: meta)
    view = masked_view(batch, 0.7, MASKED)
    assert view.extra_info[MASKING] == MASKED and view.extra_info["temperature"] == 0.7
    assert view.extra_info["compute_loss"] is False
    assert view.fields == ["input_ids"] and MASKING not in batch.extra_info


class Ranks:
    """Actor ranks whose weights are a number, and whose log probs tell which weights gave them."""

    def __init__(self, columns):
        self.columns, self.weights, self.saved = columns, 1.0, {}

    def compute_log_prob(self, batch):
        self.columns["log_probs"] = ragged(*([self.weights] * n for n in (5, 3, 2)))
        return batch

    def save_model_to_cpu(self, number):
        self.saved[number] = self.weights

    def restore_model_from_cpu(self, number):
        self.weights = self.saved[number]

    def clear_cpu_model(self, number):
        del self.saved[number]

    def peak_device_memory(self):
        return [0.0]


class SecondMiniBatch(VapoSeparateAsync):
    """In the second mini-batch of a step, whose first one has changed the weights from 1 to 2."""

    method = method("vppo")
    vapo = SimpleNamespace(seed=0)
    global_steps, local_trigger_step = 3, 1

    def __init__(self, ranks, **correction):
        ranks.save_model_to_cpu(0)
        ranks.weights = 2.0
        self.actor_rollout_wg = ranks
        self.config = OmegaConf.create(
            {
                "algorithm": {"rollout_correction": correction},
                "actor_rollout_ref": {
                    "rollout": {"temperature": 1.0, "calculate_log_probs": False},
                    "actor": {"loss_agg_mode": "token-mean", "loss_scale_factor": None},
                },
            }
        )


@pytest.mark.parametrize("bypass", [False, True])
def test_both_views_are_of_the_weights_that_a_step_of_several_updates_began_with(
    buffer, batch, monkeypatch, bypass
):
    """With `bypass_mode` veRL saves no weights: the second view is of the present ones."""
    meta = SimpleNamespace(field_names=["input_ids"])
    monkeypatch.setattr("vapo_verl.rollout.transfer.kv_batch_meta2batch_meta", lambda _: meta)
    monkeypatch.setattr("vapo_verl.trainer.trainer.bypasses", lambda _: True)

    def old_log_probs(self, batch, metrics):
        self.actor_rollout_wg.compute_log_prob(batch)
        buffer["old_log_probs"] = buffer["log_probs"]
        return batch

    monkeypatch.setattr(PPOTrainer, "_compute_old_log_prob", old_log_probs)
    ranks = Ranks(buffer)
    trainer = SecondMiniBatch(ranks, bypass_mode=bypass)
    if bypass:
        ranks.saved.clear()
    trainer._compute_old_log_prob(batch, {})
    expected = 2.0 if bypass else 1.0
    assert rows(buffer["old_log_probs"])[0] == [expected] * 5
    assert rows(buffer["masked_log_probs"]) == [[expected] * 3, [expected] * 2, [expected]]
    assert ranks.weights == 2.0 and ranks.saved == ({} if bypass else {0: 1.0})


def test_a_methods_metrics_are_of_the_responses_to_prompts_with_images():
    """Of two groups of two, the second has no image: nobody saw a noised one there."""
    records = [
        sample_record(reward={"accuracy": accuracy}, num_images=images)
        for accuracy, images in [(1.0, 1), (0.0, 2), (0.0, 0), (1.0, 0)]
    ]
    step = StepResponses(
        keys=["a_0_0", "a_1_0", "b_0_0", "b_1_0"],
        asked_at=[1, 1, 1, 1],
        group_ids=["a", "a", "b", "b"],
        records=records,
        infos=[{}] * 4,
        visual_attention=torch.zeros(4, 1),
        response_mask=torch.ones(4, 1),
    )
    metrics = method_metrics(step, method("noisy_rollout"), 2, total_steps=60)
    assert metrics["vapo/noisy_rollout/accuracy_clean"] == 1.0
    assert metrics["vapo/noisy_rollout/accuracy_noisy"] == 0.0


def compact(seed):
    rng = np.random.default_rng(seed)
    patches = torch.from_numpy(rng.integers(1, 256, (400, 3, 14, 14), dtype=np.uint8))
    return CompactPixels(
        patches=patches, mean=(0.0,) * 3, std=(1.0,) * 3, num_frames=2, merge_size=2
    )


def seen(monkeypatch, uids, masking):
    """Pixels that a model reads of each row, 400 patches."""
    stored = {uid: compact(len(uid)).to_plain() for uid in uids}
    monkeypatch.setattr(
        transfer_queue,
        "kv_batch_get",
        lambda keys, partition_id, select_fields: {"pixels": [stored[key] for key in keys]},
    )
    column = NonTensorStack.from_list([NonTensorData({PIXELS_OF: uid}) for uid in uids])
    data = TensorDict({"multi_modal_inputs": column}, batch_size=len(uids))
    PromptPixels().join(data, masking)
    return extract_multi_modal_inputs(data["multi_modal_inputs"])["pixel_values"].split(400)


def test_a_masked_image_is_the_same_for_all_responses_to_a_prompt(monkeypatch):
    plain = seen(monkeypatch, ["a", "a", "bb"], None)
    one, same, other = seen(monkeypatch, ["a", "a", "bb"], MASKED)
    black = (one == 0).all(dim=1)
    assert torch.equal(one, same) and 150 < int(black.sum()) < 250
    assert torch.equal(one[~black], plain[0][~black])
    assert not torch.equal(black, (other == 0).all(dim=1))
    assert torch.equal(seen(monkeypatch, ["a"], MASKED)[0], one)
    later = seen(monkeypatch, ["a"], {**MASKED, "step": 4})[0]
    assert not torch.equal(later, one)


@pytest.mark.parametrize("name", ["pixel_values", "pixel_values_videos"])
def test_pixels_that_cannot_be_masked_are_refused(name):
    column = NonTensorStack.from_list([NonTensorData({name: torch.zeros(4, 6)})])
    data = TensorDict({"multi_modal_inputs": column}, batch_size=1)
    with pytest.raises(ValueError, match=r"vapo\.method\.name=none"):
        PromptPixels().join(data, MASKED)
    assert PromptPixels().join(data) is data


def micro_batch(mode, **settings):
    """A micro-batch of two responses with 3 and 1 tokens, its model output, and veRL's loss."""
    config = FSDPActorConfig(
        strategy="fsdp",
        rollout_n=2,
        ppo_micro_batch_size_per_gpu=2,
        loss_agg_mode=mode,
        **settings,
    )
    lengths = {"prompts": [2, 1], "responses": [3, 1]}
    data = TensorDict(
        {
            **{name: ragged(*([5] * n for n in size)) for name, size in lengths.items()},
            "response_mask": ragged([1, 1, 1], [1]),
            "old_log_probs": ragged([-1.0, -1.0, -1.0], [-1.0]),
            "masked_log_probs": ragged([-1.0, -2.0, -3.0], [-2.0]),
            "advantages": ragged([1.0, 1.0, 1.0], [-1.0]),
        },
        batch_size=2,
    )
    for name, value in {"dp_size": 1, "batch_num_tokens": 4, "global_batch_size": 2}.items():
        data[name] = NonTensorData(value)
    flat = torch.tensor([0.0, -1.0, -1.1, -0.9, 0.0, -1.2, 0.0], requires_grad=True)
    output = {"log_probs": torch.nested.nested_tensor_from_jagged(flat, torch.tensor([0, 5, 7]))}
    return partial(ppo_loss, config=config), output, data, flat


@pytest.mark.parametrize("mode", ["token-mean", "seq-mean-token-mean"])
def test_the_terms_are_aggregated_like_the_policy_loss(mode):
    """The entropy of 3 and 1 tokens: -log pi = 1, 1.1, 0.9 and 1.2."""
    loss, output, data, flat = micro_batch(mode)
    plain, _ = loss(model_output=output, data=data)
    papo = method("papo", coef=0.0, entropy_coef=0.1)
    both, metrics = loss_with_method(loss, papo, "vapo/papo", model_output=output, data=data)
    mean = 4.2 / 4 if mode == "token-mean" else (1.0 + 1.2) / 2
    masked = 8.0 / 4 if mode == "token-mean" else (2.0 + 2.0) / 2
    assert metrics["vapo/papo/entropy_loss"].aggregate() == pytest.approx(0.1 * mean)
    assert metrics["vapo/papo/masked_entropy_loss"].aggregate() == pytest.approx(0.1 * masked)
    assert float((both - plain).detach()) == pytest.approx(0.1 * (mean + masked), abs=1e-6)
    (both - plain).backward()
    one, other = (0.25, 0.25) if mode == "token-mean" else (1 / 6, 1 / 2)
    expected = [0, *[-0.1 * one] * 3, 0, -0.1 * other, 0]  # a value belongs to the next token
    assert flat.grad.tolist() == pytest.approx(expected, abs=1e-7)


def test_a_loss_without_its_masked_view_is_no_loss():
    loss, output, data, _ = micro_batch("token-mean")
    del data["masked_log_probs"]
    with pytest.raises(KeyError, match="masked_log_probs"):
        loss_with_method(loss, method("papo"), "vapo/papo", model_output=output, data=data)


def bypass_micro_batch(mask):
    """Of `micro_batch`, for veRL's loss that corrects for the engine."""
    correction = {"bypass_mode": True, "loss_type": "reinforce", "rollout_is": "token"}
    policy_loss = PolicyLossConfig(loss_mode=BYPASS_LOSS, rollout_correction=correction)
    loss, output, data, flat = micro_batch("token-mean", policy_loss=policy_loss)
    data["response_mask"] = ragged(*mask)
    return loss, output, data, flat


def test_padding_alone_has_no_loss_and_the_metrics_of_other_micro_batches():
    """Failed responses leave it to a rank, and the others wait for that rank."""
    loss, output, data, _ = bypass_micro_batch(([1, 1, 1], [1]))
    _, expected = loss_with_method(
        loss, method("none"), "vapo/none", model_output=output, data=data
    )
    loss, output, data, flat = bypass_micro_batch(([0, 0, 0], [0]))
    with pytest.raises(ValueError, match="at least one valid token"):
        loss(model_output=output, data=data)
    none, metrics = loss_with_method(
        loss, method("none"), "vapo/none", model_output=output, data=data
    )
    none.backward()
    assert none == 0 and not flat.grad.any()
    assert metrics.keys() == expected.keys()
    assert not data["response_mask"].any()  # the batch stays as it was


def test_a_method_without_terms_leaves_the_loss_to_the_bit():
    loss, output, data, _ = micro_batch("token-mean")
    plain, plain_metrics = loss(model_output=output, data=data)
    same, metrics = loss_with_method(
        loss, method("none"), "vapo/none", model_output=output, data=data
    )
    assert torch.equal(plain, same) and metrics.keys() == plain_metrics.keys()
