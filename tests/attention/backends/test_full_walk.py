"""The backends that walk the whole context, their kernels in Triton's interpreter.

Triton chooses between compiler and interpreter when it is imported, hence another process.
"""

import os
import subprocess
import sys
from pathlib import Path


def test_cases_full_walk():
    cases = Path(__file__).with_name("cases_full_walk.py")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-W", "ignore::RuntimeWarning", cases],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
