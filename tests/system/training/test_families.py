"""Models of other families than the packaged one: trained, probed, captured and exported."""

import math

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoTokenizer

from tests.system.reference import eager_forward, images_of
from tests.system.smoke import Smoke, metrics, rollouts
from vapo_verl.data.dataset import VapoDataset
from vapo_verl.digits.model.random_models import make_random_model
from vapo_verl.export.model_folder import write_model_folder
from vapo_verl.hydra_config import compose_recipe
from vapo_verl.rollout.model_families import softmax_layers

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

STEPS = 2
INSTRUCTION = " Think between <think> and </think>."
SHORT = (
    f"trainer.total_training_steps={STEPS}",
    f"trainer.save_freq={STEPS}",
    "trainer.test_freq=-1",
    "trainer.val_before_train=false",
    "data.train_batch_size=8",
    "data.max_prompt_length=128",
    "data.max_response_length=24",
    "actor_rollout_ref.rollout.n=2",
    *(
        f"actor_rollout_ref.{key}=8"
        for key in (
            "actor.ppo_mini_batch_size",
            "actor.ppo_micro_batch_size_per_gpu",
            "ref.log_prob_micro_batch_size_per_gpu",
            "rollout.log_prob_micro_batch_size_per_gpu",
        )
    ),
    "vapo.anchors.num_anchors=4",
    "vapo.anchors.gate=relaxed",  # random weights answer nothing correctly
    "vapo.reward.perception_weight=1.0",
    "vapo.attention.enabled=true",
    "vapo.attention.layers=all",
    "vapo.attention.per_layer=true",
)


class Trained:
    """A random model of a family, trained on digits that ask for the think tags."""

    def __init__(self, root, family, data):
        self.folder = root / family
        self.config = make_random_model(
            self.folder, "tiny", family=family, dtype=torch.float32, think_tokens=True
        )
        asked = {}
        for name, path in data.items():
            rows = pq.read_table(path).to_pylist()
            for row in rows:
                row["prompt"][-1]["content"] += INSTRUCTION
            asked[name] = root / "data" / "digits" / f"{name}.parquet"
            asked[name].parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(pa.Table.from_pylist(rows), asked[name])
        self.data = asked["train"]
        self.smoke = Smoke(root, asked)
        self.run = self.smoke.run("run", *SHORT, f"actor_rollout_ref.model.path={self.folder}")
        self.tokenizer = AutoTokenizer.from_pretrained(self.folder)

    def model(self, folder=None):
        return AutoModelForImageTextToText.from_pretrained(
            folder or self.folder, dtype=torch.float32, attn_implementation="eager"
        ).eval()

    def dataset(self):
        from transformers import AutoProcessor

        processor = AutoProcessor.from_pretrained(self.folder)
        config = compose_recipe("smoke", SHORT).data
        return VapoDataset(str(self.data), processor.tokenizer, config, processor)


@pytest.fixture(scope="module", params=["qwen3_vl", "qwen2_vl"])
def trained(request, tmp_path_factory, digits_data):
    root = tmp_path_factory.mktemp(request.param)
    return Trained(root, request.param, digits_data(train=16, val=2))


def test_rewards_vary_and_weights_move(trained):
    for step in range(1, STEPS + 1):
        values = metrics(trained.run)[step]
        assert math.isfinite(values["actor/pg_loss"])
        assert values["actor/grad_norm"] > 0
        assert values["vapo/attention/missing_fraction"] == 0
        assert values["vapo/rollout/logprob_diff_max"] < 1e-3
    answers = [a["p_yes"] for row in rollouts(trained.run, 1) for a in row["anchors"]]
    assert len(answers) == 16 * 4
    assert np.std(answers) > 0


def test_think_tags_are_plain_text(trained):
    tags = trained.tokenizer.convert_tokens_to_ids(["<think>", "</think>"])
    for row in rollouts(trained.run, 1):
        assert "<think> and </think>" in row["prompt"]
        assert not {*tags} & {*row["prompt_ids"], *row["response_ids"]}


def test_attention_is_what_transformers_computes(trained):
    """Positions, deepstack features and image spans are those of the actor's forward."""
    model, dataset = trained.model(), trained.dataset()
    num_layers = len(softmax_layers(trained.config.to_dict()))
    for row in rollouts(trained.run, 1)[:6]:
        layers = np.array(row["visual_attention_layers"])
        assert layers.shape == (len(row["response_ids"]), num_layers)
        resized, *_ = dataset._process_multi_modal_info(
            dataset[row["index"]]["raw_prompt"], dataset.image_patch_size, dataset.config
        )
        assert len(images_of(dataset, row)) == len(resized) == 1
        _, attention = eager_forward(model, dataset, row, resized)
        expected = attention.numpy()[len(row["prompt_ids"]) - 1 : -1]
        assert np.abs(layers - expected).max() <= 5e-5


def test_its_export_holds_the_trained_weights(trained):
    out = write_model_folder(trained.run)
    before, after = trained.model().state_dict(), trained.model(out).state_dict()
    assert before.keys() == after.keys()
    moved = [name for name in before if not torch.equal(before[name].bfloat16(), after[name])]
    assert moved
    for name, tensor in after.items():
        assert torch.allclose(tensor, before[name], atol=2e-2), name
