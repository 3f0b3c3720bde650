"""vLLM worker extension for CPU: ``engine_kwargs.vllm.worker_extension_cls``."""

from __future__ import annotations

from typing import Any

from verl.workers.rollout.vllm_rollout.utils import vLLMColocateWorkerExtension
from vllm.platforms import current_platform

from vapo_verl.patches.upstream import keep_linear_weights


class CPUWorkerExtension(vLLMColocateWorkerExtension):
    """veRL's extension with weights that can be updated more than once on CPU."""

    def __new__(cls, **kwargs: Any) -> CPUWorkerExtension:
        if current_platform.is_cpu():
            keep_linear_weights()
        return super().__new__(cls, **kwargs)
