import random

import pytest
from safetensors import safe_open

from vapo_verl.digits.model import model_dir
from vapo_verl.digits.model.architecture import model_config
from vapo_verl.digits.model.samples import prompt_ids
from vapo_verl.digits.scene import render, sample_scene, scan_pool


def test_vocabulary_is_exactly_the_tokenizers(packaged):
    model, processor = packaged
    assert model.config.text_config.vocab_size == len(processor.tokenizer)
    assert model.lm_head.weight.shape[0] == len(processor.tokenizer)


def test_packaged_model_has_the_shape_that_the_code_describes(packaged):
    model, processor = packaged
    described = model_config(processor.tokenizer)
    for part in ("text_config", "vision_config"):
        ours, theirs = (getattr(c, part).to_dict() for c in (described, model.config))
        assert {**ours, "dtype": None} == {**theirs, "dtype": None}


def test_weights_are_small_and_stored_in_bfloat16():
    path = model_dir() / "model.safetensors"
    assert path.stat().st_size < 8e6
    with safe_open(path, framework="pt") as weights:
        assert {weights.get_slice(name).get_dtype() for name in list(weights.keys())} == {"BF16"}


def test_head_size_suits_vllm_and_rotary_sections_fill_it(packaged):
    text = packaged[0].config.text_config
    head_dim = text.hidden_size // text.num_attention_heads
    assert head_dim >= 32
    assert sum(text.rope_parameters["mrope_section"]) == head_dim // 2


@pytest.mark.parametrize("grid", [(2, 2), (2, 3), (3, 3)])
def test_processor_keeps_the_image_size_and_makes_the_prompt_of_the_warm_up(packaged, grid):
    _, processor = packaged
    image = render(sample_scene(random.Random(0), scan_pool("test"), *grid), seed=0)
    question = "What is the sum of the top row?"
    content = [{"type": "image"}, {"type": "text", "text": question}]
    text = processor.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    inputs = processor(text=[text], images=[image], return_tensors="pt")
    assert inputs["image_grid_thw"].tolist() == [[1, 2 * grid[0], 2 * grid[1]]]
    cells = grid[0] * grid[1]
    assert tuple(inputs["input_ids"][0].tolist()) == prompt_ids(
        processor.tokenizer, question, cells
    )
