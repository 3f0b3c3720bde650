"""vLLM worker that captures visual attention: ``worker_cls``, for CPU and CUDA.

Importing this module registers the recording backends. They replace vLLM's own under their own
names, so that the platform's selection and every check by name stay as they are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from vllm import envs
from vllm.distributed import tensor_model_parallel_all_reduce
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.models.utils import extract_layer_index
from vllm.platforms import current_platform
from vllm.v1.attention.backends.registry import AttentionBackendEnum, register_backend
from vllm.v1.outputs import AsyncModelRunnerOutput, ModelRunnerOutput

from vapo_verl.attention.capture import Capture
from vapo_verl.attention.settings import Settings

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.core.sched.output import GrammarOutput, SchedulerOutput
    from vllm.v1.kv_cache_interface import KVCacheConfig


DTYPES = (torch.float32, torch.bfloat16, torch.float16)
PLAIN_CACHE_DTYPES = ("auto", "float32", "bfloat16", "float16", "half", "float")

if current_platform.is_cpu():
    from vllm.v1.worker.cpu_worker import CPUWorker as PlatformWorker
else:
    from vllm.v1.worker.gpu_worker import Worker as PlatformWorker

BACKENDS = {
    "CPU_ATTN": "vapo_verl.attention.backends.cpu_attn.RecordingCPUBackend",
    "FLASH_ATTN": "vapo_verl.attention.backends.flash_attn.RecordingFlashAttentionBackend",
    "FLASHINFER": "vapo_verl.attention.backends.flashinfer.RecordingFlashInferBackend",
    "TRITON_ATTN": "vapo_verl.attention.backends.triton_attn.RecordingTritonAttentionBackend",
}
for _name, _path in BACKENDS.items():
    register_backend(AttentionBackendEnum[_name], _path)

Output: TypeAlias = ModelRunnerOutput | AsyncModelRunnerOutput | None


class VisualAttentionWorker(PlatformWorker):
    """The platform's worker; its outputs carry `visual_attention` [rows] or [rows, layers].

    Row i belongs to the i-th request of the output's `req_ids` and to the query that produced the
    token sampled for it in this step.
    """

    _capture: Capture | None = None
    _pending: _OnTheWay | None = None

    def init_device(self) -> None:
        check_supported(self.vllm_config)
        super().init_device()

    def load_model(self, **kwargs: Any) -> None:
        super().load_model(**kwargs)
        config = self.vllm_config
        context = config.compilation_config.static_forward_context
        # Its subclasses (chunked, cross, encoder attention) do not see a request's full context.
        layers = {
            extract_layer_index(name): layer.impl
            for name, layer in context.items()
            if type(layer) is Attention
        }
        runner = self.model_runner
        self._capture = Capture(
            Settings.from_additional_config(config.additional_config),
            layers,
            max_rows=max(
                config.scheduler_config.max_num_seqs,
                config.compilation_config.max_cudagraph_capture_size or 0,
            ),
            dtype=config.model_config.dtype,
            device=self.device,
            row_ids=lambda: runner.input_batch.req_ids,
        )

    def initialize_from_config(self, kv_cache_config: KVCacheConfig) -> None:
        super().initialize_from_config(kv_cache_config)
        assert self._capture is not None
        self._capture.bind(
            builder
            for groups in self.model_runner.attn_groups
            for group in groups
            for builder in group.metadata_builders
        )

    @torch.inference_mode()
    def execute_model(self, scheduler_output: SchedulerOutput) -> Output:
        capture = self._capture
        assert capture is not None
        scheduled = scheduler_output.num_scheduled_tokens
        capture.begin_step(scheduler_output)
        timed = self.device.type == "cpu" and all(n == 1 for n in scheduled.values())
        with capture.clock.step(timed):
            output = super().execute_model(scheduler_output)
        if scheduler_output.total_num_scheduled_tokens == 0:
            return output
        values = _OnTheWay(self._over_ranks(capture.end_forward()))
        if output is None:  # sampling is a separate call
            self._pending = values
            return None
        return _attach(output, values)

    @torch.inference_mode()
    def sample_tokens(self, grammar_output: GrammarOutput | None) -> Output:
        output = super().sample_tokens(grammar_output)
        values, self._pending = self._pending, None
        return output if values is None or output is None else _attach(output, values)

    def _over_ranks(self, ratio: torch.Tensor) -> torch.Tensor:
        """Mean over the heads of all tensor parallel ranks; each has the same number of them."""
        size = self.vllm_config.parallel_config.tensor_parallel_size
        if size == 1:
            return ratio
        # flat: vLLM may hand two dimensions to a kernel that takes the second for the model's width
        total = tensor_model_parallel_all_reduce(ratio.flatten())
        return total.view(ratio.shape) / size


class _OnTheWay:
    """Values of one step being copied to the host; the next forward may overwrite their source."""

    def __init__(self, ratio: torch.Tensor) -> None:
        self._event = None
        if ratio.device.type == "cuda":
            self._host = torch.empty(ratio.shape, dtype=ratio.dtype, pin_memory=True)
            self._host.copy_(ratio, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record()
        else:
            self._host = ratio.clone()

    def wait(self) -> NDArray[np.float32]:
        if self._event is None:
            return self._host.numpy()
        self._event.synchronize()
        return self._host.numpy().copy()  # a client in the same process keeps it


class _AsyncOutput(AsyncModelRunnerOutput):
    """Waits for the values together with the sampled tokens."""

    def __init__(self, output: AsyncModelRunnerOutput, values: _OnTheWay) -> None:
        self._output, self._values = output, values

    def get_output(self) -> ModelRunnerOutput:
        output = self._output.get_output()
        output.visual_attention = self._values.wait()
        return output


def _attach(
    output: ModelRunnerOutput | AsyncModelRunnerOutput, values: _OnTheWay
) -> ModelRunnerOutput | AsyncModelRunnerOutput:
    if isinstance(output, AsyncModelRunnerOutput):
        return _AsyncOutput(output, values)
    if output.req_ids:  # without requests it is one object shared by all empty steps
        output.visual_attention = values.wait()  # a plain dataclass: the attribute is pickled too
    return output


def check_supported(config: VllmConfig) -> None:
    """Refuse settings that would give incorrect values or none.

    Raises:
        ValueError: the first unsupported setting, its value and the fix.
    """
    parallel, model = config.parallel_config, config.model_config
    one_stage = "a worker must see all layers of a token's forward"
    one_row = "a request must be one row of the forward, with all of its keys"
    for key, value, why in (
        ("pipeline_parallel_size", parallel.pipeline_parallel_size, one_stage),
        ("decode_context_parallel_size", parallel.decode_context_parallel_size, one_row),
        ("prefill_context_parallel_size", parallel.prefill_context_parallel_size, one_row),
    ):
        if value > 1:
            raise ValueError(_message(key, value, why, "1"))
    by_ray = parallel.distributed_executor_backend == "ray"
    by_old_ray = by_ray and not envs.VLLM_USE_RAY_V2_EXECUTOR_BACKEND
    for key, value, why, fix in (
        ("enable_dbo", parallel.use_ubatching, "the batch runs in two halves", "false"),
        ("speculative_config", config.speculative_config, one_row, "none"),
        (
            "enable_return_routed_experts",
            model.enable_return_routed_experts,
            "routed experts and visual attention share one field of the output",
            "false",
        ),
        (
            "VLLM_USE_V2_MODEL_RUNNER",
            config.use_v2_model_runner,
            "that runner settles the order of the rows elsewhere",
            "0 in the environment",
        ),
        (
            "VLLM_USE_RAY_V2_EXECUTOR_BACKEND",
            "0" if by_old_ray else "",
            "that executor goes past the worker to its model runner",
            "1 in the environment",
        ),
        (
            "kv_sharing_fast_prefill",
            config.cache_config.kv_sharing_fast_prefill,
            "layers that share keys get metadata without the rows of the batch",
            "false",
        ),
        (
            "video_pruning_rate",
            model.multimodal_config and model.multimodal_config.video_pruning_rate,
            "text between the frames would count as image",
            "0",
        ),
        ("is_encoder_decoder", model.is_encoder_decoder, "images are not in the decoder", ""),
    ):
        if value:
            raise ValueError(_message(key, value, why, fix))
    if model.dtype not in DTYPES:
        raise ValueError(_message("dtype", model.dtype, "no kernel reads it", "bfloat16"))
    cache_dtype = config.cache_config.cache_dtype
    if cache_dtype not in PLAIN_CACHE_DTYPES:
        raise ValueError(
            _message("kv_cache_dtype", cache_dtype, "quantized keys are not read", "auto")
        )


def _message(key: str, value: object, why: str, fix: str) -> str:
    fix_text = f"use {key}={fix}, or leave capture off" if fix else "leave capture off"
    return f"visual attention does not work with {key}={value}: {why}; {fix_text}"
