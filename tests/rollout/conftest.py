"""The agent loop over the packaged model, with transformers in the place of the rollout server."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import torch
from transformers import AutoProcessor, AutoTokenizer, Qwen2_5_VLForConditionalGeneration

from vapo_verl.composition import compose_recipe
from vapo_verl.data.dataset import VapoDataset
from vapo_verl.data.digits.build import DigitsConfig, write_dataset
from vapo_verl.small_model import model_dir


class TransformersServer:
    """Continues token ids with the packaged model as veRL's server client does."""

    def __init__(self, processor: Any, max_tokens: int) -> None:
        self.model = Qwen2_5_VLForConditionalGeneration.from_pretrained(
            model_dir(), dtype=torch.float32
        ).eval()
        self.processor = processor
        self.max_tokens = max_tokens
        self.requests: list[dict[str, Any]] = []

    async def generate(self, request_id: str, **request: Any) -> Any:
        from verl.workers.rollout.replica import TokenOutput

        await asyncio.sleep(0)
        self.requests.append({"request_id": request_id, **request})
        ids, logprobs = self._continue(**request)
        steps = {"global_steps": 1, "min_global_steps": 1, "max_global_steps": 1}
        return TokenOutput(
            token_ids=ids, log_probs=logprobs, stop_reason="completed", extra_fields=steps
        )

    @torch.no_grad()
    def _continue(self, prompt_ids, sampling_params, image_data=None, **_):
        ids = list(prompt_ids)
        pixels = self.processor.image_processor(images=image_data, return_tensors="pt")
        generator = torch.Generator().manual_seed(sampling_params.get("seed", 0))
        new, logprobs = [], []
        for _ in range(sampling_params.get("max_tokens", self.max_tokens)):
            logits = self._next_logits(ids + new, pixels)
            if allowed := sampling_params.get("allowed_token_ids"):
                masked = torch.full_like(logits, float("-inf"))
                masked[allowed] = logits[allowed]
                logits = masked
            if sampling_params["temperature"] == 0:
                token = int(logits.argmax())
            else:
                token = int(torch.multinomial(logits.softmax(-1), 1, generator=generator))
            new.append(token)
            logprobs.append(float(logits.log_softmax(-1)[token]))
            if token == self.processor.tokenizer.eos_token_id:
                break
        return new, logprobs

    def _next_logits(self, ids: list[int], pixels: Any) -> torch.Tensor:
        input_ids = torch.tensor([ids])
        image_token = self.model.config.image_token_id
        return self.model(
            input_ids=input_ids,
            mm_token_type_ids=(input_ids == image_token).long(),
            **pixels,
        ).logits[0, -1]


@pytest.fixture(scope="session")
def processor():
    return AutoProcessor.from_pretrained(model_dir())


@pytest.fixture(scope="session")
def server(processor):
    return TransformersServer(processor, max_tokens=160)


@pytest.fixture(scope="session")
def dataset(tmp_path_factory, processor):
    paths = write_dataset(tmp_path_factory.mktemp("digits"), DigitsConfig(train=8, val=4, test=0))
    config = compose_recipe("smoke").data
    return VapoDataset(str(paths["train"]), processor.tokenizer, config, processor)


@pytest.fixture
def run_loop(processor, server):
    """Run the agent loop on a row of the data set under config overrides."""
    from omegaconf import OmegaConf
    from verl.experimental.agent_loop.agent_loop import DictConfigWrap

    from vapo_verl.rollout.agent_loop import VapoAgentLoop

    async def run(row, *overrides, session_id=0, step=1, temperature=1.0):
        config = compose_recipe("smoke", overrides)
        OmegaConf.resolve(config)
        loop = VapoAgentLoop(
            trainer_config=DictConfigWrap(config),
            server_manager=server,
            tokenizer=AutoTokenizer.from_pretrained(model_dir()),
            processor=processor,
            dataset_cls=VapoDataset,
            data_config=DictConfigWrap(config.data),
            hf_model_type="qwen2_5_vl",
        )
        server.requests.clear()
        sampling = {"temperature": temperature, "top_p": 1.0, "logprobs": True}
        return await loop.run(sampling, **{**row, "session_id": session_id, "global_steps": step})

    return run
