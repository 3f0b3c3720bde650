"""Most device memory in use in each phase of a step, over all ranks."""

from typing import Any

from verl.utils.device import get_torch_device

GIB = 2**30


def peak_device_memory() -> float:
    """GiB of this process's device in use at most since the last call, by all processes on it.

    peak = (device in use - reserved by this process) + most reserved by this process

    The first term is that of now: an engine beside this process does not grow while the process
    works, and the other way round. On CPU it is the machine's memory, and this process's peak is
    since its start.
    """
    device = get_torch_device()
    free, total = device.mem_get_info()
    peak = total - free - device.memory_reserved() + device.max_memory_reserved()
    device.reset_peak_memory_stats()
    return peak / GIB


class PhaseMemory:
    """Collects ``vapo/memory/PHASE_gib`` over a step.

    Args:
        workers: veRL's worker group, whose workers have `peak_device_memory`.
    """

    def __init__(self, workers: Any) -> None:
        self._workers = workers
        self._peaks: dict[str, float] = {}

    def end_phase(self, phase: str) -> None:
        """To be called when a phase has ended on all ranks, before the next begins."""
        self._peaks[phase] = max(self._workers.peak_device_memory())

    def metrics(self) -> dict[str, float]:
        """Of the phases of the last step that have ended."""
        return {f"vapo/memory/{phase}_gib": peak for phase, peak in self._peaks.items()}
