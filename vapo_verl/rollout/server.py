"""veRL's vLLM server, passing on the visual attention of each response."""

import argparse
import asyncio
import time
from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any
from uuid import uuid4

import ray
from verl.checkpoint_engine.base import CheckpointEngineWorker
from verl.single_controller.ray import RayClassWithInitArgs
from verl.workers.rollout.llm_server import LLMServerManager
from verl.workers.rollout.replica import RolloutReplicaRegistry, TokenOutput
from verl.workers.rollout.utils import qwen2_5_vl_dedup_image_tokens
from verl.workers.rollout.vllm_rollout.vllm_async_server import vLLMHttpServer, vLLMReplica

from vapo_verl import heartbeat
from vapo_verl.anchors import Probes
from vapo_verl.attention import visual_attention
from vapo_verl.console import phases
from vapo_verl.heartbeat import LoopLag
from vapo_verl.patches.upstream import (
    engine_exits,
    join_chunks,
    keep_outputs,
    send_requests_through,
    session_folder,
)
from vapo_verl.rollout import weight_sync
from vapo_verl.rollout.engine_inputs import EngineInputs, can_share
from vapo_verl.rollout.partial_rollout import ATTENTION, ResponseGate
from vapo_verl.rollout.prober import CUT_SHORT

MAX_CALLS = 100_000
"""More than a step has responses and probes: Ray delays calls above this limit."""
RESTART_S = 60.0
"""Seconds within which Ray frees the names of dead servers."""

NUM_CHUNKS = 64
"""Arrays of single tokens that a request may hold before they are joined."""

_finished: ContextVar[list[Any]] = ContextVar("finished")
"""vLLM's finished outputs of the running `generate` call."""


class VapoHttpServer(vLLMHttpServer):
    """`TokenOutput.extra_fields[ATTENTION]`: float32 [T] or [T, layers], one per token.

    Absent when the engine runs without `vapo_verl.attention.engine_args`. veRL converts vLLM's
    output to a `TokenOutput` inside `generate` and drops the attention; a hook keeps the original.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        heartbeat.start(session_folder() / heartbeat.FOLDER)
        self._num_requests = 0
        self._num_tokens = 0  # since arrays were joined
        self._exports = False
        self._gate = ResponseGate()
        self._lag = LoopLag()
        super().__init__(*args, **kwargs)
        weight_sync.name_receiver()  # veRL has just set a name that runs on this host share

    async def run_server(self, args: argparse.Namespace) -> None:
        await super().run_server(args)
        self._exports = "visual_attention" in (args.additional_config or {})
        keep_outputs(self.engine, self._take)
        self._inputs: EngineInputs | None = None
        if can_share(self.engine):
            self._inputs = EngineInputs(self.engine.renderer)
            send_requests_through(self.engine, self._inputs.send)
        self._lag.start()

    def _take(self, output: Any) -> None:
        """Count a token, and keep the finished output."""
        heartbeat.beat()
        self._num_tokens += 1
        if self._exports and self._num_tokens > NUM_CHUNKS * self._num_requests:
            join_chunks(self.engine, NUM_CHUNKS)
            self._num_tokens = 0
        if output.finished:
            _finished.get([]).append(output)

    async def engine_exits(self) -> dict[str, int]:
        """Exit code by name of the engine processes that have ended."""
        return engine_exits(self.engine)

    async def open_prompt(
        self,
        key: str,
        prompt_ids: list[int],
        images: list[Any],
        mm_processor_kwargs: Mapping[str, Any] | None = None,
    ) -> bool:
        """Process a prompt's images once; `PromptImages(key)` replaces them in its requests.

        False if this vLLM, or its cache, cannot share them: requests then carry their images.
        """
        if self._inputs is None:
            return False
        await self.engine.get_supported_tasks()  # cached: no await before a request is sent
        collapsed = qwen2_5_vl_dedup_image_tokens(list(prompt_ids), self.model_config.processor)
        await self._inputs.open(key, collapsed, images, mm_processor_kwargs or {})
        return True

    async def close_prompt(self, key: str) -> None:
        """Forget the prompt."""
        if self._inputs is not None:
            self._inputs.close(key)

    async def take_loop_lag(self) -> list[float]:
        """See :meth:`LoopLag.take`."""
        return self._lag.take()

    async def generate(
        self,
        prompt_ids: list[int],
        sampling_params: dict[str, Any],
        request_id: str,
        response: str | None = None,
        **rest: Any,
    ) -> TokenOutput:
        """Decode; with the id `response`, the weights stay until :meth:`scored` has this id."""
        if response is None:
            return await self._generate(prompt_ids, sampling_params, request_id, **rest)
        most = sampling_params.get("max_tokens")
        async with self._gate.decoding(request_id):
            output = await self._generate(prompt_ids, sampling_params, request_id, **rest)
            if output.stop_reason not in CUT_SHORT or len(output.token_ids) == most:
                self._gate.ended(response)
        return output

    async def scored(self, response: str) -> None:
        """Record that the probes of a response have been answered, or that there are none."""
        self._gate.scored(response)

    async def abort_all_requests(
        self, reset_prefix_cache: bool = True, reject_request: bool = False
    ) -> dict[str, Any]:
        """Before new weights: abort decoding responses and wait until ended ones are scored."""
        try:
            if self.node_rank == 0 and not self._submission_paused:
                await self._gate.settle(self.engine.abort)
            return await super().abort_all_requests(reset_prefix_cache, reject_request)
        finally:
            self._gate.open()  # veRL's own gate is closed by now

    async def _generate(
        self,
        prompt_ids: list[int],
        sampling_params: Mapping[str, Any],
        request_id: str,
        **rest: Any,
    ) -> TokenOutput:
        finished: list[Any] = []
        token = _finished.set(finished)
        self._count_request(+1)
        try:
            own = without_text(sampling_params)  # veRL changes it
            output = await super().generate(prompt_ids, own, request_id, **rest)
        finally:
            _finished.reset(token)
            self._count_request(-1)
        if self._exports and finished and finished[-1].outputs:
            try:
                output.extra_fields[ATTENTION] = visual_attention(finished[-1].outputs[0])
            except ValueError as error:  # of the engine; a ValueError would be one of the prompt
                raise RuntimeError(f"visual attention: {error}") from error
        return output

    def _count_request(self, change: int) -> None:
        self._num_requests += change
        heartbeat.beat(f"{self._num_requests} requests in its engine", self._num_requests)

    async def probe(
        self,
        probes: Probes,
        sampling_params: Mapping[str, Any],
        image_data: list[Any] | None = None,
        priority: int = 0,
        mm_processor_kwargs: Mapping[str, Any] | None = None,
    ) -> list[TokenOutput]:
        """`generate` for each of the probes, over the same images; outputs in their order."""
        shared = {
            "image_data": image_data,
            "priority": priority,
            "mm_processor_kwargs": mm_processor_kwargs,
        }
        return await asyncio.gather(
            *(
                self._generate(ids, sampling_params, uuid4().hex, **shared)
                for ids in probes.prompts()
            )
        )


def without_text(sampling_params: Mapping[str, Any]) -> dict[str, Any]:
    """The same request for token ids and log probabilities alone, which is all that veRL reads.

    By default, vLLM makes text of every token twice, for the output and for its log probability,
    and a dict of log probabilities. Stop strings need the text of the output.
    """
    stops = bool(sampling_params.get("stop"))
    return {"detokenize": stops, "flat_logprobs": True, **sampling_params}


class VapoReceiver(CheckpointEngineWorker):
    """Receives weights for an engine that has GPUs of its own."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        heartbeat.start(session_folder() / heartbeat.FOLDER)
        super().__init__(*args, **kwargs)


class VapoReplica(vLLMReplica):
    """Starts `VapoHttpServer`s."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        phases.begin("vLLM")
        super().__init__(*args, **kwargs)
        self.server_class = ray.remote(VapoHttpServer)

    @property
    def max_concurrency(self) -> int:
        """Calls that a server runs at once: all, so that waiting calls do not block others.

        Responses wait while weights change, and the change waits for probes and aborts.
        """
        return MAX_CALLS

    def get_ray_class_with_init_args(self) -> RayClassWithInitArgs:
        """The class of the worker that veRL starts beside an engine of its own."""
        made = super().get_ray_class_with_init_args()
        made.cls = ray.remote(VapoReceiver)
        return made

    def is_dead(self) -> bool:
        """Whether one of its servers is dead."""
        try:
            ray.get([server.get_server_address.remote() for server in self.servers])
        except ray.exceptions.RayActorError:
            return True
        return False

    async def restart(self) -> None:
        """End its servers and start them again, under their names and with the weights on disk.

        Raises:
            TimeoutError: Ray still holds the name of a dead server.
        """
        for server in self.servers:
            ray.kill(server)
        prefix = f"{self._get_server_name_prefix()}server_{self.replica_rank}_"
        end = time.monotonic() + RESTART_S
        while taken := [n for n in range(self.nnodes) if _is_actor(f"{prefix}{n}")]:
            if time.monotonic() > end:
                raise TimeoutError(f"Ray has not ended {prefix}{taken[0]} within {RESTART_S:g} s")
            await asyncio.sleep(0.1)
        self.servers.clear()
        phases.begin("vLLM, again")
        await self.launch_servers()
        phases.end()


def _is_actor(name: str) -> bool:
    try:
        ray.get_actor(name)
    except ValueError:
        return False
    return True


async def restart_servers(manager: LLMServerManager) -> None:
    """Restart dead replicas. They then have the weights on disk, not those of the run.

    The router must have no request in flight.
    """
    dead = [replica for replica in manager.rollout_replicas if replica.is_dead()]
    await asyncio.gather(*(replica.restart() for replica in dead))
    router, old = manager.global_load_balancer, list(manager.server_addresses)
    manager.server_handles[:] = [replica.server_handle for replica in manager.rollout_replicas]
    manager.server_addresses[:] = [replica.server_address for replica in manager.rollout_replicas]
    servers = dict(zip(manager.server_addresses, manager.server_handles, strict=True))
    await router.remove_servers.remote(old)
    await router.add_servers.remote(servers)  # all of them, in the order of the run's start


def register() -> None:
    """Make `rollout.name=vllm` start these servers in this process's trainer."""
    RolloutReplicaRegistry.register("vllm", lambda: VapoReplica)
