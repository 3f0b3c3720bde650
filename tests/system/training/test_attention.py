"""Visual attention through the whole system: engine, veRL's server, replay buffer, estimator."""

import numpy as np
import pytest
import torch
from transformers import Qwen2_5_VLForConditionalGeneration

from tests.system.reference import eager_forward, train_set
from tests.system.smoke import metrics, rollouts
from vapo_verl.digits.model import model_dir

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

STEPS = 2
SHORT = (
    f"trainer.total_training_steps={STEPS}",
    "trainer.save_freq=-1",
    "trainer.test_freq=-1",
    "trainer.val_before_train=false",
)
CAPTURE = ("vapo.attention.enabled=true", "vapo.attention.layers=all")
NUM_LAYERS = 6


@pytest.fixture(scope="module")
def off(smoke):
    return smoke.run("off", *SHORT)


@pytest.fixture(scope="module")
def on(smoke):
    return smoke.run("on", *SHORT, *CAPTURE, "vapo.attention.per_layer=true")


@pytest.fixture(scope="module")
def credited(smoke):
    return smoke.run("credited", *SHORT, *CAPTURE, "vapo.advantage.attention_coef=0.3")


def test_metrics_tell_how_attention_falls(on):
    for step in range(1, STEPS + 1):
        values = metrics(on)[step]
        assert 0 < values["vapo/attention/late"] < values["vapo/attention/early"] < 1
        assert values["vapo/attention/missing_fraction"] == 0
        assert values["vapo/advantage/num_responses_without_attention"] == 0


def test_without_capture_all_tokens_are_missing(off):
    assert metrics(off)[1]["vapo/attention/missing_fraction"] == 1


def test_its_price_is_printed_once(smoke, on):
    assert smoke.log("on").count("% of decode time") == 1


def test_capture_alone_changes_nothing(on, off):
    """Token for token. Numbers to rounding: which requests share a batch depends on timing."""
    for step in range(1, STEPS + 1):
        for one, other in zip(rollouts(on, step), rollouts(off, step), strict=True):
            assert one["response_ids"] == other["response_ids"]
            for column in ("rollout_log_probs", "advantages"):
                assert one[column] == pytest.approx(other[column], abs=1e-4), column
            answers = [[anchor["answer"] for anchor in row["anchors"]] for row in (one, other)]
            assert answers[0] == answers[1]
        for name in ("actor/pg_loss", "actor/grad_norm", "vapo/reward/total"):
            plain = pytest.approx(metrics(off)[step][name], rel=1e-3, abs=1e-4)
            assert metrics(on)[step][name] == plain, name


def test_samples_hold_what_transformers_computes(smoke, on):
    """Each layer of each token: the query that produced it, not the token's own."""
    dataset = train_set(smoke)
    rows = rollouts(on, 1)  # before the first update: the packaged weights
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(
        model_dir(), dtype=torch.float32, attn_implementation="eager"
    ).eval()
    worst, worst_of_neighbour = 0.0, 0.0
    for row in rows:
        layers = np.array(row["visual_attention_layers"])
        assert layers.shape == (len(row["response_ids"]), NUM_LAYERS)
        assert row["visual_attention"] == pytest.approx(layers.mean(1), abs=1e-6)
        shares = eager_forward(model, dataset, row)[1].numpy()
        first = len(row["prompt_ids"]) - 1
        worst = max(worst, np.abs(layers - shares[first:-1]).max())
        worst_of_neighbour = max(worst_of_neighbour, np.abs(layers - shares[first + 1 :]).max())
    assert worst <= 1e-5
    assert worst_of_neighbour > 0.1


def test_credit_moves_within_a_response_and_keeps_its_total(credited, off):
    moved = 0
    for one, plain in zip(rollouts(credited, 1), rollouts(off, 1), strict=True):
        assert one["response_ids"] == plain["response_ids"]
        weighted, flat = np.array(one["advantages"]), np.array(plain["advantages"])
        assert weighted.sum() == pytest.approx(flat.sum(), abs=1e-3)
        if flat.any():
            moved += 1
            assert np.unique(flat).size == 1
            assert weighted.std() > 0.01 * abs(flat[0])
    assert moved > 0
