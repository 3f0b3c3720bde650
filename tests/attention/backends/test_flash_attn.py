"""The recording FlashAttention backend, its kernels in Triton's interpreter."""

from pathlib import Path


def test_cases_flash_attn(run_interpreted):
    run_interpreted(Path(__file__).with_name("cases_flash_attn.py"))
