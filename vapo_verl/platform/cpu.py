"""CPU as a veRL platform, through its registry and the ``verl.plugins`` entry point.

Chosen only by ``VERL_PLATFORM=cpu``: installing this package changes nothing on a GPU machine.
"""

from __future__ import annotations

import resource
import types
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import psutil
import torch
from verl.plugin.platform import PlatformBase, PlatformRegistry


class CPUDeviceModule(types.ModuleType):
    """Reports the memory of this process; accelerator-only calls are no-ops."""

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


@PlatformRegistry.register(platform="cpu")
class CPUPlatform(PlatformBase):
    """Tensors stay on the CPU, collectives run over gloo, Ray's GPU slots are logical."""

    _module = CPUDeviceModule("vapo_verl_cpu_device")

    @property
    def device_name(self) -> str:
        return "cpu"

    @property
    def vendor_name(self) -> str:
        return "cpu"

    @property
    def device_module(self) -> ModuleType:
        return self._module

    def is_available(self) -> bool:
        return True

    def is_platform_available(self, use_smi_check: bool = False) -> bool:
        return False  # never detected, only requested

    def current_device(self) -> torch.device:
        # veRL passes this to tensor.to(); an index would mean a CUDA device
        return torch.device("cpu")

    def device_count(self) -> int:
        return 1

    def set_device(self, device_index: Any) -> None: ...

    def synchronize(self, device_index: Any = None) -> None: ...

    def manual_seed(self, seed: int) -> None:
        torch.manual_seed(seed)

    def manual_seed_all(self, seed: int) -> None:
        torch.manual_seed(seed)

    def set_allocator_settings(self, settings: str) -> None: ...

    def empty_cache(self) -> None: ...

    def get_device_capability(self, device_index: int = 0) -> tuple[None, None]:
        return None, None

    def communication_backend_name(self) -> str:
        return "gloo"

    def visible_devices_envvar(self) -> str:
        return "VERL_CPU_VISIBLE_DEVICES"

    @contextmanager
    def nvtx_range(self, msg: str) -> Iterator[None]:
        yield

    def profiler_start(self) -> None: ...

    def profiler_stop(self) -> None: ...

    def ray_resource_name(self) -> str:
        return "GPU"  # veRL's pools know no other name; ray.init(num_gpus=N) makes the slots

    def ray_noset_envvars(self) -> list[str]:
        return ["RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES"]

    def is_ipc_supported(self) -> bool:
        return False  # weights go to the engine through shared memory

    def cudart(self) -> None:
        return None
