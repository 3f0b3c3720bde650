"""CPU support for veRL and vLLM, through their registries."""

CPU_ENVIRONMENT = {
    "VERL_PLATFORM": "cpu",  # chosen when verl is first imported
    "TORCHDYNAMO_DISABLE": "1",  # compiling a small model costs more than it saves
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "TQ_NUM_THREADS": "1",  # TransferQueue asks for 8 and warns on every call otherwise
    "RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES": "1",
}
"""Set in every process of a run with ``trainer.device=cpu``, before it imports verl."""
