"""The Triton kernels, and the backends around them, in Triton's interpreter."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent


@pytest.mark.parametrize(
    "cases",
    [
        "kernels/interpreter_cases_cuda.py",
        "backends/interpreter_cases_flash_attn.py",
        "backends/interpreter_cases_full_context.py",
    ],
)
def test_all_cases_pass(cases):
    """In another process: Triton chooses between compiler and interpreter when it is imported."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-W", "ignore::RuntimeWarning", FOLDER / cases],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
