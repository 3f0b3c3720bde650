"""vLLM worker extension for CPU: ``engine_kwargs.vllm.worker_extension_cls``."""

from __future__ import annotations

from typing import Any

from verl.workers.rollout.vllm_rollout.utils import vLLMColocateWorkerExtension
from vllm.platforms import current_platform


class CPUWorkerExtension(vLLMColocateWorkerExtension):
    """veRL's extension with weights that can be updated more than once on CPU.

    vLLM 0.24 packs linear weights for oneDNN and then drops ``layer.weight``
    (model_executor/layers/utils.py), after which veRL's weight sync finds nothing to write to.
    """

    def __new__(cls, **kwargs: Any) -> CPUWorkerExtension:
        if current_platform.is_cpu():
            import vllm._custom_ops as ops

            ops._supports_onednn = False
        return super().__new__(cls, **kwargs)
