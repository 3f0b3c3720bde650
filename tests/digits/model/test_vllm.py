import os
import random

import pytest
import torch

from vapo_verl.digits.model import model_dir
from vapo_verl.digits.scene import render, sample_scene, scan_pool

QUESTIONS = ("What is the sum of the top row?", "How many digits are odd?", "Read all digits.")


@pytest.mark.slow
def test_vllm_generates_what_transformers_generates(packaged, monkeypatch):
    monkeypatch.setitem(os.environ, "VLLM_CPU_KVCACHE_SPACE", "1")
    monkeypatch.setitem(os.environ, "TORCHDYNAMO_DISABLE", "1")
    vllm = pytest.importorskip("vllm")
    model, processor = packaged
    prompts = [make_prompt(processor, question, seed) for seed, question in enumerate(QUESTIONS)]
    engine = vllm.LLM(
        model=str(model_dir()),
        dtype="float32",
        enforce_eager=True,
        max_model_len=512,
        kv_cache_memory_bytes=2**27,
    )
    greedy = vllm.SamplingParams(temperature=0, max_tokens=80)
    outputs = engine.generate(prompts, greedy)
    for prompt, output in zip(prompts, outputs, strict=True):
        assert list(output.outputs[0].token_ids) == _transformers(model, processor, prompt)


def make_prompt(processor, question, seed):
    scene = sample_scene(random.Random(seed), scan_pool("test"), 2, 2 + seed % 2)
    content = [{"type": "image"}, {"type": "text", "text": question}]
    text = processor.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    return {"prompt": text, "multi_modal_data": {"image": render(scene, seed)}}


@torch.no_grad()
def _transformers(model, processor, prompt):
    image = prompt["multi_modal_data"]["image"]
    inputs = processor(text=[prompt["prompt"]], images=[image], return_tensors="pt")
    output = model.generate(**inputs, max_new_tokens=80, do_sample=False)
    return output[0, inputs["input_ids"].shape[1] :].tolist()
