"""Roll out prompts on two real vLLM replicas and tell which images each of them saw.

    python tests/rollout/two_servers.py DATA.parquet

Prints one JSON line: ``servers``, per server its images' digests and how many requests had each;
``prompts``, per prompt the digest of its image.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import random
import sys
from collections import Counter
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
from vapo_verl.rollout.server import VapoHttpServer, VapoReplica

NUM_PROMPTS, NUM_RESPONSES = 8, 4


def digest(image: Any) -> str:
    return hashlib.sha256(image.tobytes()).hexdigest()[:12]


class CountingServer(VapoHttpServer):
    """Remembers the images of its requests."""

    async def generate(self, *args: Any, image_data: Any = None, **rest: Any) -> Any:
        self.__dict__.setdefault("images", []).extend(digest(i) for i in image_data or [])
        return await super().generate(*args, image_data=image_data, **rest)

    async def seen(self) -> list[str]:
        return self.__dict__.get("images", [])


class CountingReplica(VapoReplica):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.server_class = ray.remote(CountingServer)


class CountingManager(LLMServerManager):
    rollout_replica_class = CountingReplica


async def roll_out(config: DictConfig, path: str) -> dict[str, Any]:
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
        row = {**dataset[prompt], "uid": f"000001-{prompt:05d}", "global_steps": 1}
        sampling = {"temperature": 1.0, "top_p": 1.0, "logprobs": True}
        output = await loop.run(sampling, **row, session_id=sample)
        assert len(output.extra_fields["vapo"]["anchors"]) == 8
        return digest(output.multi_modal_data["images"][0])

    # as it comes: responses of a prompt are not asked for one after the other
    order = [(p, s) for p in range(NUM_PROMPTS) for s in range(NUM_RESPONSES)]
    random.Random(0).shuffle(order)
    sent = await asyncio.gather(*(respond(*key) for key in order))
    images = await asyncio.gather(*(server.seen.remote() for server in manager.server_handles))
    prompts = {prompt: image for (prompt, _), image in zip(order, sent, strict=True)}
    return {"servers": [Counter(seen) for seen in images], "prompts": list(prompts.values())}


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
    result = asyncio.run(roll_out(config, sys.argv[1]))
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    os.environ.update(CPU_ENVIRONMENT)
    main()
