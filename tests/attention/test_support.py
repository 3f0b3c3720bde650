from types import SimpleNamespace

import pytest
import torch

from vapo_verl.attention.worker import check_supported


def engine(**changed):
    """A config that works, with what the check reads."""
    values = {
        "pipeline_parallel_size": 1,
        "decode_context_parallel_size": 1,
        "prefill_context_parallel_size": 1,
        "use_ubatching": False,
        "speculative_config": None,
        "enable_return_routed_experts": False,
        "use_v2_model_runner": False,
        "distributed_executor_backend": "mp",
        "kv_sharing_fast_prefill": False,
        "multimodal_config": None,
        "is_encoder_decoder": False,
        "dtype": torch.bfloat16,
        "cache_dtype": "auto",
        **changed,
    }
    part = SimpleNamespace(**values)
    return SimpleNamespace(parallel_config=part, model_config=part, cache_config=part, **values)


def test_what_works_passes():
    check_supported(engine())
    check_supported(engine(dtype=torch.float32, cache_dtype="bfloat16"))
    check_supported(engine(multimodal_config=SimpleNamespace(video_pruning_rate=0.0)))


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"pipeline_parallel_size": 2}, "pipeline_parallel_size=2: .*use pipeline_parallel_size=1"),
        ({"decode_context_parallel_size": 2}, "decode_context_parallel_size=2"),
        ({"prefill_context_parallel_size": 2}, "prefill_context_parallel_size=2"),
        ({"use_ubatching": True}, "enable_dbo=True"),
        ({"speculative_config": "ngram"}, "speculative_config=ngram"),
        ({"enable_return_routed_experts": True}, "enable_return_routed_experts=True"),
        ({"use_v2_model_runner": True}, "VLLM_USE_V2_MODEL_RUNNER=0 in the environment"),
        ({"kv_sharing_fast_prefill": True}, "kv_sharing_fast_prefill=True: .*=false"),
        (
            {"multimodal_config": SimpleNamespace(video_pruning_rate=0.5)},
            r"video_pruning_rate=0\.5: .*use video_pruning_rate=0",
        ),
        ({"is_encoder_decoder": True}, "is_encoder_decoder"),
        ({"dtype": torch.float64}, r"dtype=torch\.float64"),
        ({"cache_dtype": "fp8_e5m2"}, "kv_cache_dtype=fp8_e5m2"),
    ],
)
def test_what_does_not_names_the_key_the_value_and_the_fix(changed, words):
    with pytest.raises(ValueError, match=words):
        check_supported(engine(**changed))


def test_rays_executor_must_be_the_one_that_runs_workers(monkeypatch):
    on_ray = engine(distributed_executor_backend="ray")
    check_supported(on_ray)
    monkeypatch.setenv("VLLM_USE_RAY_V2_EXECUTOR_BACKEND", "0")
    check_supported(engine())
    with pytest.raises(ValueError, match=r"VLLM_USE_RAY_V2_EXECUTOR_BACKEND=0: .*=1 in the env"):
        check_supported(on_ray)
