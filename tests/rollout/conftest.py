"""The agent loop over the packaged model, with transformers in the place of the rollout server."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoProcessor, AutoTokenizer, Qwen2_5_VLForConditionalGeneration
from verl.workers.rollout.replica import RolloutMode
from verl.workers.rollout.vllm_rollout import vllm_async_server

from tests.composing import compose_once
from vapo_verl import heartbeat, launch
from vapo_verl.anchors import Probes
from vapo_verl.data.dataset import VapoDataset
from vapo_verl.digits.model import model_dir
from vapo_verl.rollout import server as rollout_server
from vapo_verl.rollout.engine_inputs import PromptImages


class TransformersServer:
    """Continues token ids with the packaged model as veRL's server client does."""

    def __init__(self, processor: Any, max_tokens: int) -> None:
        self.model = Qwen2_5_VLForConditionalGeneration.from_pretrained(
            model_dir(), dtype=torch.float32
        ).eval()
        self.processor = processor
        self.max_tokens = max_tokens
        self.requests: list[dict[str, Any]] = []
        self.opened: dict[str, list[Any]] = {}
        """Images by key, of prompts that are shared."""
        self.acquired = Counter[str]()
        """Requests that are under way, by session."""
        self.closed: list[str] = []
        """Keys of those that are done."""
        self.continued: dict[Any, tuple[list[int], list[float]]] = {}
        """Ids and logprobs by all that they depend on."""

    async def generate(self, request_id: str, **request: Any) -> Any:
        from verl.workers.rollout.replica import TokenOutput

        await asyncio.sleep(0)
        self.requests.append({"request_id": request_id, **request})
        ids, logprobs = self._continue(**request)
        steps = {"global_steps": 1, "min_global_steps": 1, "max_global_steps": 1}
        return TokenOutput(
            token_ids=ids, log_probs=logprobs, stop_reason="completed", extra_fields=steps
        )

    async def _acquire_server(self, request_id: str, **_: Any) -> Any:
        self.acquired[request_id] += 1
        remote = {
            "probe": partial(self._probe, request_id),
            "open_prompt": self._open_prompt,
            "close_prompt": self.closed.append,
        }
        return "only", SimpleNamespace(
            **{name: SimpleNamespace(remote=method) for name, method in remote.items()}
        )

    def _release_server(self, server_id: str, request_id: str) -> None:
        assert server_id == "only" and self.acquired[request_id] > 0
        self.acquired[request_id] -= 1

    async def _open_prompt(self, key: str, images: list[Any], **_: Any) -> bool:
        self.opened[key] = images
        return True

    async def _probe(self, session: str, probes: Probes, **request: Any) -> list[Any]:
        return [await self.generate(session, prompt_ids=ids, **request) for ids in probes.prompts()]

    def _continue(self, prompt_ids, sampling_params, image_data=None, **_):
        if isinstance(image_data, PromptImages):
            image_data = self.opened[image_data.key]
        key = (
            tuple(prompt_ids),
            json.dumps(sampling_params, sort_keys=True),
            tuple((image.mode, image.size, image.tobytes()) for image in image_data or ()),
        )
        if key not in self.continued:
            self.continued[key] = self._generate(prompt_ids, sampling_params, image_data)
        ids, logprobs = self.continued[key]
        return ids.copy(), logprobs.copy()

    @torch.no_grad()
    def _generate(self, prompt_ids, sampling_params, image_data):
        input_ids = torch.tensor([list(prompt_ids)])
        config = self.model.config
        bias = sampling_params.get("logit_bias")
        pixels = {}
        if image_data:
            pixels = self.processor.image_processor(images=image_data, return_tensors="pt")
        torch.manual_seed(sampling_params.get("seed", 0))
        output = self.model.generate(
            input_ids=input_ids,
            attention_mask=torch.ones_like(input_ids),
            mm_token_type_ids=(input_ids == config.image_token_id).long(),
            **pixels,
            max_new_tokens=sampling_params.get("max_tokens", self.max_tokens),
            do_sample=sampling_params["temperature"] > 0,
            top_k=0,
            suppress_tokens=[config.image_token_id, config.video_token_id],  # as veRL's server does
            sequence_bias={(token,): value for token, value in bias.items()} if bias else None,
            output_scores=True,
            return_dict_in_generate=True,
        )
        new = output.sequences[0, input_ids.size(1) :].tolist()
        logprobs = [
            float(scores[0].log_softmax(-1)[token])
            for scores, token in zip(output.scores, new, strict=True)
        ]
        return new, logprobs


@pytest.fixture(scope="session")
def processor():
    return AutoProcessor.from_pretrained(model_dir())


@pytest.fixture(scope="session")
def server(processor):
    return TransformersServer(processor, max_tokens=160)


@pytest.fixture(scope="session")
def dataset(digits_data, processor):
    paths = digits_data(train=8, val=4)
    config = compose_once("smoke").data
    return VapoDataset(str(paths["train"]), processor.tokenizer, config, processor)


@pytest.fixture
def run_loop(processor, server):
    """Run the agent loop on a row of the data set under config overrides."""
    from omegaconf import OmegaConf
    from verl.experimental.agent_loop.agent_loop import DictConfigWrap

    from vapo_verl.rollout.agent_loop import VapoAgentLoop

    async def run(row, *overrides, session_id=0, step=1, temperature=1.0, model=None):
        config = compose_once("smoke", overrides)
        OmegaConf.resolve(config)
        loop = VapoAgentLoop(
            trainer_config=DictConfigWrap(config),
            server_manager=server,
            tokenizer=AutoTokenizer.from_pretrained(model or model_dir()),
            processor=AutoProcessor.from_pretrained(model) if model else processor,
            dataset_cls=VapoDataset,
            data_config=DictConfigWrap(config.data),
            hf_model_type="qwen2_5_vl",
        )
        server.requests.clear()
        sampling = {"temperature": temperature, "top_p": 1.0, "logprobs": True}
        return await loop.run(sampling, **{**row, "session_id": session_id, "global_steps": step})

    return run


class ServerWithoutEngine(rollout_server.VapoHttpServer):
    """Stops where the engine would be started."""

    async def run_server(self, args):
        self.args = args


@pytest.fixture
def server_of(monkeypatch):
    """The rollout server of a config, without its engine."""
    monkeypatch.setattr(heartbeat, "start", lambda folder: None)
    monkeypatch.setattr(rollout_server, "session_folder", Path)
    context = SimpleNamespace(get_job_id=lambda: "01000000", get_session_name=lambda: "session")
    monkeypatch.setattr(vllm_async_server.ray, "get_runtime_context", lambda: context)
    for name in ("VERL_REPLICA_RANK", "VERL_RAY_JOB_ID", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.setenv(name, "")

    def build(recipe, *overrides):
        path = f"actor_rollout_ref.model.path={model_dir()}"
        config = compose_once(recipe, [path, "vapo.allow_sdpa=true", *overrides])
        launch.settle(config)
        launch.export_attention(config)
        policy = config.actor_rollout_ref
        policy.rollout.max_model_len = 336
        server = ServerWithoutEngine(
            config=policy.rollout,
            model_config=policy.model,
            rollout_mode=RolloutMode.HYBRID,
            workers=[],
            replica_rank=0,
            node_rank=0,
            gpus_per_node=8,
            nnodes=1,
            cuda_visible_devices="",
        )
        asyncio.run(server.launch_server())
        return server

    return build
