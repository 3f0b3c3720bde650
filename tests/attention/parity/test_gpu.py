"""Whole engines on a GPU: FlashAttention's LSE, CUDA graphs, asynchronous scheduling, full walk."""

import numpy as np
import pytest
import torch

from vapo_verl.digits.model.random_models import make_random_model
from vapo_verl.gpu_check.parity import Batch, Eager, Engines, make_prompts

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(1200)]

MIXED = make_prompts(1, 0, 2, 1, 3, 0, 2, 1)
GRAPHS = {"TORCHDYNAMO_DISABLE": "0"}
BESIDE_OTHERS = {"dtype": "bfloat16", "gpu_memory_utilization": 0.08}
"""Several engines share one GPU: vLLM starts none where less than this fraction is free."""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A random model with heads of 64: FlashInfer does not take the packaged model's 32."""
    from vllm.platforms import current_platform

    if not current_platform.is_cuda():
        pytest.skip("needs vLLM for CUDA")
    folder = tmp_path_factory.mktemp("random_model")
    make_random_model(folder, "100m")
    return folder


@pytest.fixture(scope="module")
def gpu_engines(tmp_path_factory, model):
    return Engines(tmp_path_factory.mktemp("gpu_engines"), model)


@pytest.fixture(scope="module")
def assert_as_close_as_rounding(model):
    """At most twice as far from float32 as transformers' own bfloat16 is, on the same tokens."""
    exact, rounded = (Eager(dtype, model, "cuda") for dtype in (torch.float32, torch.bfloat16))

    def check(samples):
        own = [abs(rounded.visual_attention(x) - exact.visual_attention(x)) for x in samples]
        own = np.concatenate([x.ravel() for x in own])
        errors = exact.errors(samples)
        print(f"vLLM: mean error {errors.mean():.1e}, largest {errors.max():.1e}")
        assert errors.mean() <= 2 * own.mean()
        assert errors.max() <= 2 * own.max()

    return check


@pytest.mark.parametrize("backend", ["FLASH_ATTN", "TRITON_ATTN", "FLASHINFER"])
@pytest.mark.parametrize("enforce_eager", [True, False], ids=["eager", "graphs"])
def test_backends_with_and_without_cuda_graphs(
    gpu_engines, assert_as_close_as_rounding, backend, enforce_eager
):
    if backend == "FLASHINFER":
        pytest.importorskip("flashinfer")
    run = gpu_engines.run(
        Batch(prompts=MIXED, sampling={"n": 2}),
        env={} if enforce_eager else GRAPHS,
        **BESIDE_OTHERS,
        attention_backend=backend,
        enforce_eager=enforce_eager,
    )
    assert_as_close_as_rounding(run.batches[0])


@pytest.mark.parametrize("async_scheduling", [True, False], ids=["async", "sync"])
def test_scheduling(gpu_engines, assert_as_close_as_rounding, async_scheduling):
    run = gpu_engines.run(
        Batch(prompts=MIXED * 4, sampling={"max_tokens": 64}),
        env=GRAPHS,
        **BESIDE_OTHERS,
        enforce_eager=False,
        async_scheduling=async_scheduling,
        max_num_batched_tokens=256,
        enable_prefix_caching=False,
    )
    assert_as_close_as_rounding(run.batches[0])


@pytest.mark.parametrize("enforce_eager", [True, False], ids=["eager", "graphs"])
def test_capture_changes_no_token(gpu_engines, enforce_eager):
    greedy = Batch(prompts=MIXED, sampling={"temperature": 0.0, "max_tokens": 64})
    setup = {
        "env": {} if enforce_eager else GRAPHS,
        **BESIDE_OTHERS,
        "enforce_eager": enforce_eager,
    }
    on, off = (gpu_engines.run(greedy, **setup, **c).batches[0] for c in ({}, {"capture": {}}))
    for one, other in zip(on, off, strict=True):
        assert one.completion.token_ids == other.completion.token_ids
