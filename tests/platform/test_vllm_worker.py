"""The switch that keeps vLLM's CPU weights writable still exists."""


def test_vllm_still_reads_the_flag_we_clear():
    import inspect

    import vllm._custom_ops as ops
    from vllm.model_executor.layers import utils

    assert hasattr(ops, "_supports_onednn"), (
        "vllm._custom_ops._supports_onednn is gone: see whether CPU linear layers keep `weight` "
        "after loading, and drop vapo_verl.platform.vllm_worker if they do"
    )
    assert "_supports_onednn" in inspect.getsource(utils)


def test_the_extension_is_verls(monkeypatch):
    import vllm._custom_ops as ops
    from verl.workers.rollout.vllm_rollout.utils import vLLMColocateWorkerExtension

    from vapo_verl.platform.vllm_worker import CPUWorkerExtension

    assert issubclass(CPUWorkerExtension, vLLMColocateWorkerExtension)
    monkeypatch.setattr(ops, "_supports_onednn", True)
    CPUWorkerExtension.__new__(CPUWorkerExtension)
    assert ops._supports_onednn is False
