"""Roll out prompts on two real vLLM replicas and tell which images each of them processed.

    python tests/rollout/two_servers.py DATA.parquet

Prints one JSON line: ``servers``, per server its images' digests and how often each was processed;
``requests``, per server the number of its requests; ``prompts``, per prompt the digest of its
image; ``responses``, token ids and claims' predictions by prompt and sample. With ``--alone`` every
response and every probe sends its images.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import random
import sys
from collections import Counter
from contextlib import ExitStack
from typing import Any

import ray
from omegaconf import DictConfig, OmegaConf
from transformers import AutoProcessor
from verl.experimental.agent_loop.agent_loop import DictConfigWrap
from verl.workers.rollout.llm_server import LLMServerManager

from vapo_verl.data.dataset import VapoDataset
from vapo_verl.digits.model import model_dir
from vapo_verl.hydra_config import compose_recipe
from vapo_verl.platform import CPU_ENVIRONMENT
from vapo_verl.rollout.agent_loop import VapoAgentLoop
from vapo_verl.rollout.prompts import open_prompt, prompt_uid
from vapo_verl.rollout.server import VapoHttpServer, VapoReplica

NUM_PROMPTS, NUM_RESPONSES = 8, 4


def digest(image: Any) -> str:
    return hashlib.sha256(image.tobytes()).hexdigest()[:12]


class CountingServer(VapoHttpServer):
    """Remembers the images that vLLM's processor is run on, and counts requests."""

    async def run_server(self, *args: Any, **kwargs: Any) -> None:
        await super().run_server(*args, **kwargs)
        self.images: list[str] = []
        self.num_generated = 0
        renderer = self.engine.renderer
        # the thread that processes images, whoever asks for it
        for name in ("_process_multimodal", "_process_multimodal_async"):
            setattr(renderer, name, self._counted(getattr(renderer, name)))

    def _counted(self, process: Any) -> Any:
        def counted(prompt: Any, data: Any, *args: Any, **kwargs: Any) -> Any:
            self.images += [digest(image) for image in data["image"]]
            return process(prompt, data, *args, **kwargs)

        return counted

    async def generate(self, *args: Any, **kwargs: Any) -> Any:
        self.num_generated += 1
        return await super().generate(*args, **kwargs)

    async def seen(self) -> tuple[list[str], int]:
        return self.images, self.num_generated


class CountingReplica(VapoReplica):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.server_class = ray.remote(CountingServer)


class CountingManager(LLMServerManager):
    rollout_replica_class = CountingReplica


async def roll_out(config: DictConfig, path: str, *, shares: bool) -> dict[str, Any]:
    responses: dict[str, Any] = {}
    manager = await CountingManager.create(config)
    processor = AutoProcessor.from_pretrained(model_dir())
    dataset = VapoDataset(path, processor.tokenizer, config.data, processor)

    async def respond(prompt: int, sample: int) -> str:
        loop = VapoAgentLoop(
            trainer_config=DictConfigWrap(config),
            server_manager=manager.get_client(),
            tokenizer=processor.tokenizer,
            processor=processor,
            dataset_cls=VapoDataset,
            data_config=DictConfigWrap(config.data),
            hf_model_type="qwen2_5_vl",
        )
        row = {**dataset[prompt], "uid": prompt_uid(1, prompt), "global_steps": 1}
        sampling = {"temperature": 1.0, "top_p": 1.0, "logprobs": True}
        output = await loop.run(sampling, **row, session_id=sample)
        anchors = output.extra_fields["vapo"]["anchors"]
        assert len(anchors) == 8
        responses[f"{prompt}/{sample}"] = [output.response_ids, [a["answer"] for a in anchors]]
        return digest(output.multi_modal_data["images"][0])

    # as it comes: responses of a prompt are not asked for one after the other
    order = [(p, s) for p in range(NUM_PROMPTS) for s in range(NUM_RESPONSES)]
    random.Random(0).shuffle(order)
    with ExitStack() as stack:
        if shares:
            for prompt in range(NUM_PROMPTS):
                stack.enter_context(open_prompt(prompt_uid(1, prompt)))
        sent = await asyncio.gather(*(respond(*key) for key in order))
    seen = await asyncio.gather(*(server.seen.remote() for server in manager.server_handles))
    prompts = {prompt: image for (prompt, _), image in zip(order, sent, strict=True)}
    return {
        "servers": [Counter(images) for images, _ in seen],
        "requests": [num_requests for _, num_requests in seen],
        "prompts": list(prompts.values()),
        "responses": dict(sorted(responses.items())),
    }


def main() -> None:
    config = compose_recipe(
        "smoke",
        [
            "vapo.anchors.gate=always",
            "actor_rollout_ref.rollout.nnodes=1",
            "actor_rollout_ref.rollout.n_gpus_per_node=2",
            "actor_rollout_ref.rollout.load_format=auto",
        ],
    )
    OmegaConf.resolve(config)
    ray.init(
        num_cpus=16,
        num_gpus=2,
        include_dashboard=False,
        runtime_env={"env_vars": CPU_ENVIRONMENT},
    )
    result = asyncio.run(roll_out(config, sys.argv[1], shares="--alone" not in sys.argv))
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    os.environ.update(CPU_ENVIRONMENT)
    main()
