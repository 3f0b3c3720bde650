"""``torch.cpu`` with the parts of the ``torch.cuda`` surface that veRL calls."""

from __future__ import annotations

import resource
import types
from typing import Any

import psutil
import torch


class CPUDeviceModule(types.ModuleType):
    """Memory figures are those of this process; calls that only an accelerator needs do nothing."""

    def __getattr__(self, name: str) -> Any:
        return getattr(torch.cpu, name)

    @staticmethod
    def memory_allocated(*_args: Any, **_kwargs: Any) -> int:
        return psutil.Process().memory_info().rss

    memory_reserved = memory_allocated

    @staticmethod
    def max_memory_allocated(*_args: Any, **_kwargs: Any) -> int:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    max_memory_reserved = max_memory_allocated

    @staticmethod
    def mem_get_info(*_args: Any, **_kwargs: Any) -> tuple[int, int]:
        memory = psutil.virtual_memory()
        return memory.available, memory.total

    @staticmethod
    def get_rng_state(*_args: Any, **_kwargs: Any) -> torch.Tensor:
        return torch.get_rng_state()

    @staticmethod
    def set_rng_state(state: torch.Tensor, *_args: Any, **_kwargs: Any) -> None:
        torch.set_rng_state(state)

    @staticmethod
    def get_device_name(*_args: Any, **_kwargs: Any) -> str:
        return "cpu"

    @staticmethod
    def _nothing(*_args: Any, **_kwargs: Any) -> None:
        return None

    empty_cache = ipc_collect = reset_peak_memory_stats = _nothing
    set_device = set_per_process_memory_fraction = _nothing
