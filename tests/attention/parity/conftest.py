"""Engines of the packaged model on CPU, and transformers' eager attention to hold them against."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from vapo_verl.gpu_check.parity import TOLERANCE, Eager, Engines, OfLayers, Sample


@pytest.fixture(scope="session")
def eager() -> Eager:
    return Eager()


@pytest.fixture(scope="session")
def engines(tmp_path_factory) -> Engines:
    platforms = pytest.importorskip("vllm.platforms")
    if not platforms.current_platform.is_cpu():
        pytest.skip("needs vLLM for CPU, whose attention is exact in float32")
    return Engines(tmp_path_factory.mktemp("engines"))


@pytest.fixture
def assert_parity(eager) -> Callable[..., None]:
    """Fails unless the samples' values are those of transformers."""

    def check(samples: Sequence[Sample], of_layers: OfLayers = np.asarray) -> None:
        worst = eager.errors(samples, of_layers).max()  # nan where a value is
        print(f"largest error {worst:.1e}")
        assert worst <= TOLERANCE

    return check
