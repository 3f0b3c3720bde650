"""vLLM scheduler that forwards visual attention: ``scheduler_cls``.

The worker's values reach the client in `routed_experts`, the one per-token array that vLLM carries
from the engine to `CompletionOutput` for every kind of caller, n > 1 and aborted requests included.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler

from vapo_verl.attention.settings import KEY, Settings

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.engine import EngineCoreOutputs
    from vllm.v1.outputs import ModelRunnerOutput
    from vllm.v1.request import Request


class PassesVisualAttention:
    """Mixin of a vLLM `Scheduler`: copies a row of the worker's values to its request's output."""

    vllm_config: VllmConfig
    requests: dict[str, Request]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._settings = Settings.from_additional_config(self.vllm_config.additional_config)

    def update_from_output(
        self, scheduler_output: SchedulerOutput, model_runner_output: ModelRunnerOutput
    ) -> dict[int, EngineCoreOutputs]:
        values = getattr(model_runner_output, KEY, None)
        # Read before the update, which drops finished requests.
        row = {} if values is None else self._wanted_rows(model_runner_output.req_ids)
        outputs = super().update_from_output(scheduler_output, model_runner_output)  # type: ignore[misc]
        if values is None:
            return outputs
        for of_client in outputs.values():
            for output in of_client.outputs:
                i = row.get(output.request_id)
                if i is not None and output.new_token_ids:
                    output.routed_experts = values[i : i + 1]
        return outputs

    def _wanted_rows(self, request_ids: list[str]) -> dict[str, int]:
        """Row of the batch of each request whose values are to be exported."""
        return {x: i for i, x in enumerate(request_ids) if self._is_wanted(self.requests.get(x))}

    def _is_wanted(self, request: Request | None) -> bool:
        if request is None or not self._settings.on_request:
            return request is not None
        params = request.sampling_params
        return bool(params is not None and (params.extra_args or {}).get(KEY))


class VisualAttentionScheduler(PassesVisualAttention, Scheduler):
    pass


class AsyncVisualAttentionScheduler(PassesVisualAttention, AsyncScheduler):
    pass


def make_scheduler(*, vllm_config: VllmConfig, **kwargs: Any) -> Scheduler:
    """The factory that vLLM calls as its scheduler class; sync or async, as vLLM is configured."""
    is_async = vllm_config.scheduler_config.async_scheduling
    cls = AsyncVisualAttentionScheduler if is_async else VisualAttentionScheduler
    return cls(vllm_config=vllm_config, **kwargs)
