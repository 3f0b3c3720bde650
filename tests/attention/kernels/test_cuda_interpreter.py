"""The Triton kernels against the reference, in Triton's interpreter."""

from pathlib import Path


def test_cases_cuda(run_interpreted):
    run_interpreted(Path(__file__).with_name("cases_cuda.py"))
