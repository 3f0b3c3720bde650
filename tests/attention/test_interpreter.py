"""The Triton kernels, and the backends around them, in Triton's interpreter."""

import os
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parent
CASES = (
    "kernels/interpreter_cases_cuda.py",
    "backends/interpreter_cases_flash_attn.py",
    "backends/interpreter_cases_full_context.py",
)


def test_all_cases_pass():
    """In another process: Triton chooses between compiler and interpreter when it is imported."""
    files = [FOLDER / cases for cases in CASES]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-v", "-W", "ignore::RuntimeWarning", *files],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for cases in CASES:
        assert f"{cases}::test_" in done.stdout
