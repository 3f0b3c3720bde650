"""Everything of vLLM 0.24 that the plug leans on, each with what to do when vLLM moves."""

import dataclasses
import inspect
from typing import get_args

import numpy as np
import pytest
import vllm
from vllm.config import (
    CacheConfig,
    ModelConfig,
    MultiModalConfig,
    ParallelConfig,
    SchedulerConfig,
    VllmConfig,
)
from vllm.inputs.engine import MultiModalInput
from vllm.multimodal.cache import BaseMultiModalProcessorCache
from vllm.multimodal.inputs import MultiModalFeatureSpec, PlaceholderRange
from vllm.outputs import CompletionOutput, RequestOutput
from vllm.renderers.base import BaseRenderer
from vllm.v1.attention.backend import (
    AttentionImpl,
    AttentionMetadataBuilder,
    CommonAttentionMetadata,
)
from vllm.v1.attention.backends import cpu_attn, flash_attn
from vllm.v1.attention.backends.registry import AttentionBackendEnum
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.output import NewRequestData, SchedulerOutput
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine import EngineCoreOutput
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.core_client import BackgroundResources
from vllm.v1.engine.input_processor import InputProcessor
from vllm.v1.engine.utils import CoreEngineProcManager
from vllm.v1.outputs import AsyncModelRunnerOutput, ModelRunnerOutput
from vllm.v1.worker.gpu_model_runner import GPUModelRunner
from vllm.v1.worker.gpu_worker import Worker

from vapo_verl.attention import engine_args
from vapo_verl.attention.worker import BACKENDS, VisualAttentionWorker


def moved(what, where):
    return f"vLLM {vllm.__version__} moved {what}: adapt vapo_verl/attention/{where}"


def parameters(function):
    return list(inspect.signature(function).parameters)


def names(cls):
    fields = [f.name for f in dataclasses.fields(cls)] if dataclasses.is_dataclass(cls) else []
    return {*fields, *getattr(cls, "__struct_fields__", ()), *getattr(cls, "__annotations__", ())}


def test_the_load_formats_that_settings_allow_are_vllms():
    from vllm.model_executor.model_loader import LoadFormats

    from vapo_verl.settings import REGISTERED

    assert {*REGISTERED["actor_rollout_ref.rollout.load_format"]} == {*get_args(LoadFormats)}


def test_a_processed_prompt_can_be_sent_again():
    def moved(what):
        return f"vLLM {vllm.__version__} moved {what}: adapt vapo_verl/rollout/engine_inputs.py"

    expected = ["self", "request_id", "prompt", "params"]
    assert parameters(AsyncLLM.add_request)[:4] == expected, moved("add_request()")
    assert "prompts" in parameters(BaseRenderer.render_cmpl_async), moved("the renderer")
    assert hasattr(BaseRenderer, "clear_mm_cache"), moved("the renderer")
    threads = inspect.getsource(BaseRenderer.__init__)
    for used in ("_mm_executor: Executor = self._executor", "executor=self._mm_executor"):
        assert used in threads, moved("the thread that changes the processor cache")
    assert ModelConfig.renderer_num_workers == 1, moved("the number of these threads")
    assert parameters(BaseMultiModalProcessorCache.get_and_update_item) == [
        *("self", "mm_item", "mm_hash")
    ], moved("the processor cache")
    keys = {"type", "prompt_token_ids", "mm_kwargs", "mm_hashes", "mm_placeholders"}
    assert keys <= names(MultiModalInput), moved("MultiModalInput")
    assert '"type" in prompt' in inspect.getsource(InputProcessor.process_inputs), moved(
        "the way a processed prompt is told from another"
    )


@pytest.mark.parametrize("cls", [AttentionImpl, cpu_attn.CPUAttentionBackendImpl])
def test_the_signature_of_forward(cls):
    expected = ["self", "layer", "query", "key", "value", "kv_cache", "attn_metadata", "output"]
    assert parameters(cls.forward)[:8] == expected, moved("forward()", "backends/recording.py")


def test_flash_attention_has_the_same_forward():
    found = parameters(flash_attn.FlashAttentionImpl.forward)[:8]
    expected = ["self", "layer", "query", "key", "value", "kv_cache", "attn_metadata", "output"]
    assert found == expected, moved("FlashAttentionImpl.forward()", "backends/flash_attn.py")


def test_the_builder_is_told_the_batch():
    found = parameters(AttentionMetadataBuilder.build)[:3]
    assert found == ["self", "common_prefix_len", "common_attn_metadata"], moved(
        "AttentionMetadataBuilder.build()", "backends/recording.py"
    )
    assert {"query_start_loc", "seq_lens", "block_table_tensor"} <= names(
        CommonAttentionMetadata
    ), moved("CommonAttentionMetadata's fields", "backends/recording.py")
    assert parameters(AttentionMetadataBuilder.update_block_table)[1:] == [
        "metadata",
        "blk_table",
        "slot_mapping",
    ], moved("update_block_table()", "backends/recording.py")


@pytest.mark.parametrize(("name", "path"), BACKENDS.items())
def test_the_backends_are_registered_under_their_own_names(name, path):
    if name == "FLASHINFER":
        pytest.importorskip("flashinfer")
    backend = AttentionBackendEnum[name].get_class()
    assert f"{backend.__module__}.{backend.__qualname__}" == path, (
        f"register_backend no longer overrides {name}: see BACKENDS in attention/worker.py"
    )
    assert backend.get_name() == name


def test_spans_come_with_new_requests():
    assert {"req_id", "mm_features"} <= names(NewRequestData), moved(
        "NewRequestData", "capture.py (begin_step)"
    )
    wanted = {
        "scheduled_new_reqs",
        "finished_req_ids",
        "num_scheduled_tokens",
        "total_num_scheduled_tokens",
    }
    assert wanted <= names(SchedulerOutput), moved("SchedulerOutput", "capture.py (begin_step)")
    assert {"modality", "mm_position"} <= names(MultiModalFeatureSpec), moved(
        "MultiModalFeatureSpec", "spans.py"
    )
    assert PlaceholderRange(offset=2, length=3).extract_embeds_range() == [(2, 4)], moved(
        "the inclusive ends of extract_embeds_range()", "spans.py"
    )


def test_the_runner_holds_the_rows_of_the_batch():
    source = inspect.getsource(GPUModelRunner)
    used_here = ("self.input_batch.req_ids", "self.attn_groups", "metadata_builders")
    for used in (*used_here, "self.synchronize_input_prep()"):
        assert used in source, moved(f"the runner's {used}", "worker.py")


@pytest.mark.parametrize(
    "name",
    ["init_device", "load_model", "initialize_from_config", "execute_model", "sample_tokens"],
)
def test_the_worker_overrides_what_exists(name):
    assert callable(getattr(Worker, name, None)), moved(f"Worker.{name}()", "worker.py")
    assert getattr(VisualAttentionWorker, name) is not getattr(Worker, name)


def test_the_worker_adds_no_name_that_an_extension_may_use():
    """vLLM refuses a worker_extension_cls that shares a public name with the worker."""
    public = {name for name in vars(VisualAttentionWorker) if not name.startswith("_")}
    assert public <= set(dir(Worker)), "give the worker's own names an underscore"


def test_outputs_can_carry_the_values():
    output = ModelRunnerOutput(req_ids=["a"], req_id_to_index={"a": 0})
    output.visual_attention = 1  # no slots
    assert callable(AsyncModelRunnerOutput.get_output), moved("get_output()", "worker.py")
    carrier = moved("routed_experts, the carrier of the values", "scheduler.py and api.py")
    assert "routed_experts" in names(EngineCoreOutput), carrier
    assert "routed_experts" in names(CompletionOutput), carrier


def test_merging_outputs_in_delta_mode_drops_the_values():
    def request_output(token_id, values=None):
        completion = CompletionOutput(0, "", [token_id], None, None, routed_experts=values)
        return RequestOutput("a", None, [1], None, [completion], finished=values is not None)

    merged = request_output(5)
    merged.add(request_output(6, np.zeros(2, dtype=np.float32)), aggregate=True)
    (completion,) = merged.outputs
    assert (merged.finished, completion.token_ids) == (True, [5, 6])
    assert completion.routed_experts is None, moved(
        "routed_experts in RequestOutput.add()", "__init__.py: DELTA may work"
    )


@pytest.mark.parametrize("cls", [Scheduler, AsyncScheduler])
def test_the_scheduler_sees_what_the_worker_returns(cls):
    found = parameters(cls.update_from_output)
    assert found == ["self", "scheduler_output", "model_runner_output"], moved(
        "Scheduler.update_from_output()", "scheduler.py"
    )


def test_a_scheduler_may_be_made_by_a_function():
    config = SchedulerConfig(
        max_model_len=64,
        is_encoder_decoder=False,
        scheduler_cls=engine_args()["scheduler_cls"],
    )
    assert config.get_scheduler_cls().__name__ == "make_scheduler", moved(
        "scheduler_cls by name", "scheduler.py (make_scheduler)"
    )


def test_the_settings_that_are_refused_still_have_their_names():
    wanted = {
        ParallelConfig: (
            "pipeline_parallel_size",
            "decode_context_parallel_size",
            "prefill_context_parallel_size",
            "use_ubatching",
            "tensor_parallel_size",
            "distributed_executor_backend",
        ),
        ModelConfig: (
            *("enable_return_routed_experts", "is_encoder_decoder", "dtype"),
            "multimodal_config",
        ),
        MultiModalConfig: ("video_pruning_rate",),
        VllmConfig: ("speculative_config", "use_v2_model_runner", "additional_config"),
        CacheConfig: ("cache_dtype", "kv_sharing_fast_prefill"),
    }
    for cls, keys in wanted.items():
        for key in keys:
            assert key in names(cls) or hasattr(cls, key), moved(
                f"{cls.__name__}.{key}", "support.py or worker.py"
            )


def test_the_cpu_cache_is_laid_out_as_the_kernel_reads_it():
    shape = cpu_attn.CPUAttentionBackend.get_kv_cache_shape(7, 32, 2, 64)
    assert shape == (7, 2, 32, 128), moved("the CPU KV cache", "kernels/cpu.py (KeyLayout)")
    assert cpu_attn.CPUAttentionBackend.get_required_kv_cache_layout() == "HND", moved(
        "the CPU KV cache layout", "kernels/cpu.py (KeyLayout)"
    )


def test_the_exit_codes_of_engine_processes_are_kept():
    """`engine_exits` in vapo_verl/patches/upstream.py reads them."""
    assert callable(CoreEngineProcManager.finished_procs)
    assert "engine_manager" in names(BackgroundResources)
