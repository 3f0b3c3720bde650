"""What a run trained is what transformers and vLLM load from its export."""

import itertools
import json
import os
import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from tests.system.smoke import Smoke, metrics
from vapo_verl.data.dataset import VapoDataset
from vapo_verl.hydra_config import compose_recipe

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

ONE_STEP = (
    "trainer.total_training_steps=1",
    "trainer.save_freq=1",
    "trainer.test_freq=-1",
    "trainer.val_before_train=false",
    "actor_rollout_ref.actor.optim.lr=1e-3",  # one step is seen in bfloat16
)
NUM_TOKENS = 24
VLLM = """
import json, sys
from PIL import Image
from vllm import LLM, SamplingParams
model, image, prompt, num_tokens = sys.argv[1:]
llm = LLM(model, dtype="float32", enforce_eager=True, max_model_len=336, block_size=16,
          max_num_seqs=4, kv_cache_memory_bytes=2**26, limit_mm_per_prompt={"image": 1, "video": 0})
request = {"prompt": prompt, "multi_modal_data": {"image": Image.open(image)}}
params = SamplingParams(temperature=0, max_tokens=int(num_tokens), ignore_eos=True)
print("TOKENS", json.dumps(llm.generate(request, params)[0].outputs[0].token_ids))
"""


@pytest.fixture(scope="module", params=[1, 2], ids=["one_rank", "two_ranks"])
def exported(request, smoke: Smoke, run_module):
    """A trained run and its export, by the command line."""
    run_dir = smoke.run(
        f"ranks_{request.param}", *ONE_STEP, f"trainer.n_gpus_per_node={request.param}"
    )
    printed = run_module("vapo_verl.export", run_dir, check=True).stdout
    out = run_dir / "model_step_1"
    assert printed == f"{out}\n"
    return run_dir, out


def test_transformers_computes_what_the_trained_weights_do(smoke, exported):
    run_dir, out = exported
    loaded = AutoModelForImageTextToText.from_pretrained(out, dtype=torch.float32).eval()
    trained = AutoModelForImageTextToText.from_config(loaded.config, dtype=torch.float32).eval()
    shards = _shards(run_dir)
    trained.load_state_dict({name: tensor.bfloat16() for name, tensor in shards.items()})
    _, inputs = _question(smoke, out)
    with torch.no_grad():
        assert torch.equal(loaded(**inputs).logits, trained(**inputs).logits)


def test_training_has_moved_the_exported_weights(exported):
    _, out = exported
    base = AutoModelForImageTextToText.from_pretrained(
        compose_recipe("smoke").actor_rollout_ref.model.path
    )
    after = AutoModelForImageTextToText.from_pretrained(out).state_dict()
    assert any(not torch.equal(tensor, after[name]) for name, tensor in base.state_dict().items())


def test_vllm_writes_what_transformers_does(smoke, exported, tmp_path):
    _, out = exported
    prompt, inputs = _question(smoke, out)
    model = AutoModelForImageTextToText.from_pretrained(out, dtype=torch.float32).eval()
    written = model.generate(
        **inputs, max_new_tokens=NUM_TOKENS, min_new_tokens=NUM_TOKENS, do_sample=False
    )
    image = tmp_path / "image.png"
    _row(smoke, out)[1].save(image)
    result = subprocess.run(
        [sys.executable, "-c", VLLM, str(out), str(image), prompt, str(NUM_TOKENS)],
        env={**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "TORCHDYNAMO_DISABLE": "1"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    tokens = json.loads(result.stdout.partition("TOKENS ")[2].splitlines()[0])
    assert tokens == written[0, inputs["input_ids"].shape[1] :].tolist()


def test_the_card_tells_of_this_run_and_not_of_this_machine(smoke, exported):
    run_dir, out = exported
    text = (out / "README.md").read_text()
    total = metrics(run_dir)[1]["vapo/reward/total"]
    assert f"| `vapo/reward/total` | 1 | {total:.4g} |" in text
    assert "| learning rate | 0.001 |" in text
    data_dir = smoke.data["train"].parents[1]
    for file, folder in itertools.product(out.iterdir(), (smoke.root, data_dir)):
        assert str(folder).encode() not in file.read_bytes(), file.name


def _shards(run_dir) -> dict[str, torch.Tensor]:
    """The weights as FSDP saved them: dimension 0 over the ranks."""
    files = sorted((run_dir / "global_step_1" / "actor").glob("model_world_size_*.pt"))
    states = [torch.load(file, weights_only=False) for file in files]
    return {name: torch.cat([state[name].to_local() for state in states]) for name in states[0]}


def _row(smoke, out):
    """Messages and image of a training row."""
    processor = AutoProcessor.from_pretrained(out)
    path = smoke.data["train"]
    dataset = VapoDataset(str(path), processor.tokenizer, compose_recipe("smoke").data, processor)
    messages = dataset[0]["raw_prompt"]
    (image,) = (part["image"] for m in messages for part in m["content"] if part["type"] == "image")
    return messages, image


def _question(smoke, out):
    """A prompt's text, and its model inputs."""
    messages, image = _row(smoke, out)
    processor = AutoProcessor.from_pretrained(out)
    prompt = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    return prompt, processor(text=[prompt], images=[image], return_tensors="pt")
