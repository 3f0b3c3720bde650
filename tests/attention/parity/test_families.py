"""Families beyond the packaged model: the engine's values are transformers', in every layer."""

import pytest
import torch

from vapo_verl.digits.model.random_models import make_random_model
from vapo_verl.gpu_check.parity import PROCESSES, Batch, Eager, Engines, make_prompts

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

MIXED = Batch(prompts=make_prompts(0, 1, 2, 3, 1, 2))
TOLERANCE = 2e-5
"""Random weights: logits of a wider range than the packaged model's."""


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen3_vl"])
def test_visual_attention_is_that_of_transformers(family, tmp_path):
    folder = tmp_path / family
    config = make_random_model(folder, "tiny", family=family, dtype=torch.float32)
    engines = Engines(tmp_path / "engines", folder)
    samples = engines.run(MIXED, env=PROCESSES).batches[0]
    num_layers = config.text_config.num_hidden_layers
    assert {sample.values.shape[1] for sample in samples} == {num_layers}
    eager = Eager(model=folder)
    assert eager.errors(samples).max() <= TOLERANCE
    with_images = [sample for sample in samples if sample.prompt.images]
    assert eager.errors(with_images, query_shift=1).max() > 1e-3
    assert eager.errors(with_images, span_shift=1).max() > 1e-4
