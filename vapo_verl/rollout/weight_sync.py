"""Actor-to-engine weight transfer: a per-run socket and a timeout.

veRL names the socket by the Ray job's id, which is 01000000 in every Ray cluster that a run starts
for itself. Two runs on one host then share a socket: each removes the other's, and an engine waits
forever or takes the other run's weights. Here the cluster's session is part of the name.

veRL's sender also waits forever when the engine fails or dies during a transfer. Here the wait
ends with the engine's own error as soon as there is one, and after a time limit otherwise.

An engine with devices of its own gets weights in two hops: veRL's checkpoint engine sends them to a
worker beside the engine, and that worker sends them on as above. The worker imports this module,
which ``rollout.checkpoint_engine.custom_backend_module`` names.
"""

import fcntl
import hashlib
import json
import os
import shutil
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from multiprocessing.shared_memory import SharedMemory
from typing import Any

import ray
import torch
import zmq
from verl.checkpoint_engine.base import CheckpointEngine, CheckpointEngineRegistry
from verl.utils.device import get_device_id, get_device_name, get_torch_device
from verl.workers.rollout.utils import ensure_async_iterator
from verl.workers.rollout.vllm_rollout import ServerAdapter
from verl.workers.rollout.vllm_rollout.bucketed_weight_transfer import BucketedWeightSender

from vapo_verl import heartbeat
from vapo_verl.console import say
from vapo_verl.patches.upstream import use_bucket_sender, use_weight_sender
from vapo_verl.process_tree import (
    BUCKET_PREFIX,
    LEAST_SHARED_BYTES,
    SHARED_MEMORY,
    remove_remains,
)

_RECEIVER_VARIABLE = "VERL_RAY_JOB_ID"
"""veRL's worker in the engine puts its value into the socket's name."""
_SESSION_DIGITS = 12
"""Digits of the session's digest: the path of a socket holds 107 bytes at most."""

AMPLE_BUCKETS = 4
"""If so many buckets fit, the pages of one are not reserved: that takes time for each page."""
ENLARGE = "free some or enlarge it (Docker: --shm-size=8g)"
"""What to do where /dev/shm has too little room."""
TIMEOUT_S = 600.0
"""Time limit of the engine for one bucket of weights."""
POLL_MS = 500
"""Milliseconds between two checks of an engine that does not take a bucket."""

use_weight_sender(f"{__name__}.VapoServerAdapter")


def run_id() -> str:
    """The Ray job's id and its cluster's session, the same in all processes of a run."""
    context = ray.get_runtime_context()
    session = hashlib.sha256(context.get_session_name().encode()).hexdigest()
    return f"{context.get_job_id()}-{session[:_SESSION_DIGITS]}"


def name_receiver() -> None:
    """Set the socket name of the engines that this process starts afterwards."""
    os.environ[_RECEIVER_VARIABLE] = run_id()


class VapoServerAdapter(ServerAdapter):
    """veRL's sender of weights, under the name of :func:`name_receiver`."""

    zmq_handle: str

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        job = f"-{ray.get_runtime_context().get_job_id()}-"
        if job not in self.zmq_handle:
            raise RuntimeError(
                f"{self.zmq_handle!r} does not hold the Ray job's id, as in verl 0.9.1: install "
                "the pinned verl, or two runs on a host may exchange weights"
            )
        self.zmq_handle = self.zmq_handle.replace(job, f"-{run_id()}-")
        use_bucket_sender(BucketSender)
        remove_remains()  # of earlier runs, on this rank's node

    def forget_server(self) -> None:
        """Look the server up by its name at the next call: it has been restarted."""
        self.server_handle = None

    async def _execute_method(self, method: str, *args: Any, **kwargs: Any) -> Any:
        result = await super()._execute_method(method, *args, **kwargs)
        if kwargs.get("non_block"):
            BucketSender.receiver = result  # the call that receives the next weights
        return result


class ReplySocket:
    """A ZMQ socket whose waits end when the other side has failed.

    Args:
        socket: the wrapped socket; other methods are forwarded to it.
        check: called while the other side does not answer; raises its error.
        timeout_s: time limit of one wait.
    """

    def __init__(self, socket: zmq.Socket[bytes], check: Callable[[], None], timeout_s: float):
        self._socket, self._check, self._timeout_s = socket, check, timeout_s

    def send_pyobj(self, value: Any) -> None:
        self._wait(zmq.POLLOUT)
        self._socket.send_pyobj(value)

    def recv(self) -> bytes:
        self._wait(zmq.POLLIN)
        heartbeat.beat("sending weights")
        return self._socket.recv()

    def _wait(self, event: int) -> None:
        end = time.monotonic() + self._timeout_s
        while not self._socket.poll(POLL_MS, event):
            self._check()
            if time.monotonic() > end:
                raise zmq.Again

    def __getattr__(self, name: str) -> Any:
        return getattr(self._socket, name)


class Bucket(SharedMemory):
    """Shared memory whose name may be removed early, and more than once."""

    _has_name = True

    def unlink(self) -> None:
        if self._has_name:
            self._has_name = False
            super().unlink()


def fitting_bucket(num_bytes: int) -> int:
    """The size of a bucket of at most `num_bytes` that /dev/shm has room for.

    Raises:
        RuntimeError: there is no room for a useful one.
    """
    free = shutil.disk_usage(SHARED_MEMORY).free
    if free >= num_bytes:
        return num_bytes
    advice = f"{SHARED_MEMORY} has {free / 2**20:.0f} MiB free; {ENLARGE}"
    if free < LEAST_SHARED_BYTES:
        raise RuntimeError(f"no room for weights on their way to the engine: {advice}")
    say(f"WARNING: weights go to the engine in smaller buckets: {advice}")
    return free // 2


class BucketSender(BucketedWeightSender):
    """veRL's transfer; ends with the engine's error, or after :data:`TIMEOUT_S` of waiting."""

    bucket_size: int
    """Bytes."""
    receiver: Any = None
    """Ray's reference to the engine's call; None on ranks that started none."""
    socket: Any

    def _init_socket(self) -> None:
        super()._init_socket()
        self.socket.setsockopt(zmq.LINGER, 0)  # unread messages must not keep the process alive
        self.socket = ReplySocket(self.socket, self._check_receiver, TIMEOUT_S)

    def _check_receiver(self) -> None:
        if self.receiver is not None and ray.wait([self.receiver], timeout=0)[0]:
            ray.get(self.receiver)

    def _init_buffer(self) -> None:
        """Make the bucket and pass it to the engine, as veRL does; a kill leaves no remains.

        Until the engine has opened it, its file is locked: after a kill, `remove_remains` finds it
        without an owner. Afterwards it has no name.
        """
        if not self.use_shm:
            super()._init_buffer()
            return
        self.bucket_size = fitting_bucket(self.bucket_size)
        name = f"{BUCKET_PREFIX}{uuid.uuid4().hex}"
        self.shm = Bucket(name=name, create=True, size=self.bucket_size)
        self.buffer = torch.frombuffer(self.shm.buf, dtype=torch.uint8)
        with (SHARED_MEMORY / name).open("rb+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if shutil.disk_usage(SHARED_MEMORY).free < AMPLE_BUCKETS * self.bucket_size:
                os.posix_fallocate(file.fileno(), 0, self.bucket_size)  # an error, not a SIGBUS
            self.socket.send_pyobj({"name": name, "size": self.bucket_size})
            self.socket.recv()
            self.shm.unlink()

    async def async_send_weights(self, weights: Any) -> None:
        """Send all weights.

        Raises:
            TimeoutError: the engine has not answered in time.
            RuntimeError: /dev/shm has too little room for a weight.
            ray.exceptions.RayError: the engine failed, or its server is dead.
        """
        heartbeat.beat("sending weights")
        try:
            await super().async_send_weights(self._fitting(weights))
        except zmq.Again as error:
            raise TimeoutError(
                f"the vLLM engine has not taken weights within {TIMEOUT_S:g} s "
                f"({self.zmq_handle}): look above for its error; if it ran out of memory, lower "
                "actor_rollout_ref.rollout.gpu_memory_utilization"
            ) from error

    async def _fitting(self, weights: Any) -> AsyncIterator[tuple[str, torch.Tensor]]:
        """Refuse a weight that does not fit into a bucket that /dev/shm has no more room for.

        veRL would ask for a larger ``update_weights_bucket_megabytes``, which changes nothing.
        """
        async for name, weight in ensure_async_iterator(weights):
            is_smaller = self.bucket_size < int(self.bucket_size_mb) << 20
            if self.use_shm and is_smaller and weight.nbytes > self.bucket_size:
                free = shutil.disk_usage(SHARED_MEMORY).free
                raise RuntimeError(
                    f"{name} has {weight.nbytes} bytes, and {SHARED_MEMORY} has room for buckets "
                    f"of {self.bucket_size} bytes only ({free} bytes are free beside one); "
                    f"{ENLARGE}"
                )
            yield name, weight


@CheckpointEngineRegistry.register("zmq")
class SocketWeights(CheckpointEngine):
    """Weights from the actor's first rank to workers beside engines, over TCP and host memory.

    For machines without NCCL. A tensor is one message of its name, type and shape as JSON and its
    bytes; an empty name ends a transfer.

    Args:
        bucket_size: veRL's; not needed, as no buffer is kept.
        is_master: this is the actor's first rank.
    """

    def __init__(self, bucket_size: int, is_master: bool = False) -> None:
        del bucket_size
        self._is_master = is_master
        # The process's own: a context that is collected with open sockets waits for them forever.
        self._context: zmq.Context[Any] = zmq.Context.instance()
        self._sockets: list[Any] = []

    def prepare(self) -> str:
        """The address at which this worker receives weights."""
        if self._is_master:
            return ""
        socket = self._socket(zmq.PULL, zmq.RCVTIMEO)
        host = ray.util.get_node_ip_address().strip("[]")
        socket.setsockopt(zmq.IPV6, ":" in host)
        host = f"[{host}]" if ":" in host else host
        return f"tcp://{host}:{socket.bind_to_random_port(f'tcp://{host}')}"

    @classmethod
    def build_topology(
        cls, actor_wg_world_size: int, rollout_world_size: int, metadata: list[str]
    ) -> tuple[dict[str, list[Any]], dict[str, list[Any]]]:
        """The first rank sends to all workers of the rollout; see the base class."""
        receivers = metadata[actor_wg_world_size:]
        others: list[list[str]] = [[] for _ in range(actor_wg_world_size - 1)]
        no_one: list[list[str]] = [[] for _ in range(rollout_world_size)]
        return {"receivers": [receivers, *others]}, {"receivers": no_one}

    def init_process_group(self, receivers: Sequence[str]) -> None:
        """Connect to the workers at these addresses."""
        for address in receivers:
            socket = self._socket(zmq.PUSH, zmq.SNDTIMEO)
            socket.setsockopt(zmq.IPV6, "[" in address)
            socket.connect(address)

    def _socket(self, kind: int, timeout: int) -> Any:
        socket = self._context.socket(kind)
        for most in (zmq.SNDHWM, zmq.RCVHWM):
            socket.setsockopt(most, 2)  # tensors in transit: the rest of the model waits
        socket.setsockopt(timeout, int(TIMEOUT_S * 1000))
        socket.setsockopt(zmq.LINGER, 0)
        self._sockets.append(socket)
        return socket

    async def send_weights(
        self, weights: Iterator[tuple[str, torch.Tensor]], global_steps: int | None = None
    ) -> None:
        """Send all tensors; ranks other than the first gather them only.

        Raises:
            TimeoutError: a worker has not taken a tensor in time.
        """
        for name, weight in weights:
            heartbeat.beat("sending weights")
            if self._is_master:
                self._send(name, weight.detach().cpu().contiguous())
        if self._is_master:
            self._send("", torch.empty(0))

    def _send(self, name: str, weight: torch.Tensor) -> None:
        kind = str(weight.dtype).removeprefix("torch.")
        header = json.dumps({"name": name, "dtype": kind, "shape": list(weight.shape)}).encode()
        body = weight.reshape(-1).view(torch.uint8).numpy()
        for socket in self._sockets:
            try:
                socket.send_multipart([header, body])
            except zmq.Again as error:
                raise TimeoutError(
                    f"a worker beside an engine has not taken {name} within {TIMEOUT_S:g} s"
                ) from error

    async def receive_weights(
        self, global_steps: int | None = None
    ) -> AsyncIterator[tuple[str, torch.Tensor]]:
        """The tensors that the first rank sends.

        Raises:
            TimeoutError: none came in time.
        """
        [socket] = self._sockets
        while True:
            try:
                header, body = socket.recv_multipart()
            except zmq.Again as error:
                raise TimeoutError(
                    f"the actor has sent no weights within {TIMEOUT_S:g} s"
                ) from error
            about = json.loads(header)
            if not about["name"]:
                return
            kind = getattr(torch, about["dtype"])
            weight = torch.empty(0, dtype=kind)  # a buffer of no bytes is refused
            if body:
                weight = torch.frombuffer(bytearray(body), dtype=kind)
            # veRL hands a tensor above its bucket's size to the engine as memory of the device
            yield about["name"], weight.reshape(about["shape"]).to(_device())

    def finalize(self) -> None:
        """Close the sockets; a worker still reads what has reached it."""
        for socket in self._sockets:
            socket.close()
        self._sockets.clear()


def _device() -> torch.device:
    """This process's device; veRL names an NVIDIA device even where there is none."""
    name = get_device_name()
    if name == "cpu" or not get_torch_device().is_available():
        return torch.device("cpu")
    return torch.device(name, get_device_id())
