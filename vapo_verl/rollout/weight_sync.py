"""Actor-to-engine weight transfer: a per-run socket and a timeout.

veRL names the socket by the Ray job's id, which is 01000000 in every Ray cluster that a run starts
for itself. Two runs on one host then share a socket: each removes the other's, and an engine waits
for ever or takes the other run's weights. Here the cluster's session is part of the name.

veRL's sender also waits for ever when the engine fails or dies during a transfer. Here the wait
ends with the engine's own error as soon as there is one, and after a time limit otherwise.
"""

import fcntl
import hashlib
import os
import shutil
import time
import uuid
from collections.abc import Callable
from multiprocessing.shared_memory import SharedMemory
from typing import Any

import ray
import torch
import zmq
from verl.workers.rollout.vllm_rollout import ServerAdapter
from verl.workers.rollout.vllm_rollout.bucketed_weight_transfer import BucketedWeightSender

from vapo_verl import heartbeat
from vapo_verl.console import say
from vapo_verl.patches.upstream import use_bucket_sender
from vapo_verl.process_tree import BUCKET_PREFIX, SHARED_MEMORY, remove_remains

_RECEIVER_VARIABLE = "VERL_RAY_JOB_ID"
"""veRL's worker in the engine puts its value into the socket's name."""
_SESSION_DIGITS = 12
"""Digits of the session's digest: the path of a socket holds 107 bytes at most."""

LEAST_BUCKET_BYTES = 16 << 20
"""With less room in /dev/shm a run ends at its first weight transfer."""
AMPLE_BUCKETS = 4
"""With room for so many, the pages of a bucket are not reserved: that takes time for each page."""
TIMEOUT_S = 600.0
"""Time limit of the engine for one bucket of weights."""
POLL_MS = 500
"""Time between two looks at the engine while it does not take a bucket."""


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

    async def _execute_method(self, method: str, *args: Any, **kwargs: Any) -> Any:
        result = await super()._execute_method(method, *args, **kwargs)
        if kwargs.get("non_block"):
            BucketSender.receiver = result  # the call that takes the weights which follow
        return result


class ReplySocket:
    """A ZMQ socket whose waits end when the other side has failed.

    Args:
        socket: what is wrapped; has all other methods.
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
    """Shared memory whose name may be removed early and again."""

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
    advice = f"{SHARED_MEMORY} has {free / 2**20:.0f} MiB free; free some or enlarge it (Docker: "
    advice += "--shm-size=8g)"
    if free < LEAST_BUCKET_BYTES:
        raise RuntimeError(f"no room for weights on their way to the engine: {advice}")
    say(f"WARNING: weights go to the engine in buckets of the room there is: {advice}")
    return free // 2


class BucketSender(BucketedWeightSender):
    """veRL's transfer, failing with the engine, or if it does not answer in :data:`TIMEOUT_S`."""

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
        """Make the bucket and hand it to the engine, as veRL; a kill leaves nothing of it for good.

        Until the engine has opened it, its file is locked: `remove_remains` finds it without an
        owner after a kill. Afterwards it has no name.
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
            ray.exceptions.RayError: the engine failed, or its server is dead.
        """
        heartbeat.beat("sending weights")
        try:
            await super().async_send_weights(weights)
        except zmq.Again as error:
            raise TimeoutError(
                f"the vLLM engine has not taken weights within {TIMEOUT_S:g} s "
                f"({self.zmq_handle}): look above for its error; if it ran out of memory, lower "
                "actor_rollout_ref.rollout.gpu_memory_utilization"
            ) from error
