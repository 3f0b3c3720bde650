"""Paged batches for the kernels."""

import pytest

from vapo_verl.gpu_check.kernels import PagedBatch


@pytest.fixture
def paged_batch():
    """The class of the batches; a fixture, since test files cannot import one another."""
    return PagedBatch
