"""What the actor computes for each family, from pixels and positions as a run carries them.

In a process of its own: veRL patches the classes of transformers.
"""

import subprocess
import sys

import pytest

FORWARD = """
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText
from verl.experimental.agent_loop.agent_loop import AgentLoopWorker
from verl.models.transformers.monkey_patch import apply_monkey_patch
from verl.utils import hf_processor

from vapo_verl.digits.model.random_models import make_random_model
from vapo_verl.patches import text_only_forward
from vapo_verl.rollout.prompts import model_inputs_of

loops = getattr(AgentLoopWorker, "__ray_metadata__", None)
loops = loops.modified_class if loops else AgentLoopWorker
made = {}
for family in sys.argv[2:]:
    folder = Path(sys.argv[1]) / family
    make_random_model(folder, "tiny", family=family, dtype=torch.float32)
    processor = hf_processor(str(folder))
    images = [
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (56 + 28 * i, 84, 3), np.uint8))
        for i in range(2)
    ]
    part = {"type": "text", "text": "What is the sum of the top row?"}
    content = [part, {"type": "image"}, part, {"type": "image"}, part]
    text = processor.apply_chat_template([{"role": "user", "content": content}], tokenize=False)
    inputs = processor(text=[text], images=images, return_tensors="pt")
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        made[family] = processor, inputs, model, model(**inputs).logits

text_only_forward.apply()  # and veRL's own patches, which change the classes of other families, too
for family, (processor, inputs, model, expected) in made.items():
    ids, mask = inputs.pop("input_ids"), inputs.pop("attention_mask")
    carried = model_inputs_of(inputs, processor)
    assert carried.pixels is not None, family
    pixels = dict(carried.items())
    holder = type("Holder", (), {"processor": processor})
    positions = loops._compute_position_ids(holder, ids, mask, dict(inputs))
    apply_monkey_patch(model, use_remove_padding=False)
    arguments = {"attention_mask": mask, "position_ids": positions.transpose(0, 1)}
    for name in ("pixel_values", "image_grid_thw"):
        arguments[name] = pixels[name]
    with torch.no_grad():
        found = model(input_ids=ids, use_cache=False, **arguments).logits
    assert torch.equal(found, expected), (family, (found - expected).abs().max())

    # a micro-batch without images: the vision tower has gradients, so that ranks stay in step
    words = processor.tokenizer("the sum of the row", return_tensors="pt")
    length = words["input_ids"].shape[1]
    positions = torch.arange(length).view(1, 1, length).expand(4, 1, length)
    logits = model(**words, position_ids=positions, use_cache=False).logits
    logits.sum().backward()
    assert logits.isfinite().all()
    assert all(weight.grad is not None for weight in model.model.visual.parameters()), family
    print("SAME", family)
"""
FAMILIES = ("qwen2_vl", "qwen3_vl", "qwen3_vl_moe", "qwen3_5")


@pytest.mark.slow  # half a minute of imports and models
def test_verls_forward_is_that_of_transformers(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", FORWARD, str(tmp_path), *FAMILIES], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for family in FAMILIES:
        assert f"SAME {family}" in done.stdout
