"""Which layers the samples keep apart, named as the model counts them."""

import pytest
from transformers import AutoConfig, Qwen2_5_VLConfig

from vapo_verl.digits.model import model_dir
from vapo_verl.trainer.rollout_samples import captured_layers


def test_layers_are_counted_as_the_model_counts_them():
    model = AutoConfig.from_pretrained(model_dir())
    assert captured_layers("all", model) == [0, 1, 2, 3, 4, 5]
    assert captured_layers(None, model) == [1, 4]
    assert captured_layers((4, 0), model) == [0, 4]


@pytest.mark.parametrize(
    ("kinds", "found"),
    [
        (["linear_attention", "linear_attention", "linear_attention", "full_attention"], [3]),
        (["sliding_attention", "full_attention"] * 2, [0, 1, 2, 3]),
    ],
)
def test_layers_of_another_kind_are_not_captured(kinds, found):
    model = Qwen2_5_VLConfig()
    model.text_config.num_hidden_layers = 4
    model.text_config.layer_types = kinds
    assert captured_layers("all", model) == found
