"""Paged batches for the kernels, and Triton's interpreter."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from vapo_verl.gpu_check.paged_batch import PagedBatch


@pytest.fixture
def paged_batch():
    """The class of the batches; a fixture, since test files cannot import one another."""
    return PagedBatch


@pytest.fixture
def run_interpreted():
    """Runs a file of cases in Triton's interpreter.

    Triton chooses between compiler and interpreter when it is imported, hence another process.
    """

    def run(cases):
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-W", "ignore::RuntimeWarning", cases],
            env={**os.environ, "TRITON_INTERPRET": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr

    return run
