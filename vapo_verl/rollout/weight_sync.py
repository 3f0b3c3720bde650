"""Actor-to-engine weight transfer: a per-run socket and a timeout.

veRL names the socket by the Ray job's id, which is 01000000 in every Ray cluster that a run starts
for itself. Two runs on one host then share a socket: each removes the other's, and an engine waits
for ever or takes the other run's weights. Here the cluster's session is part of the name.

veRL's sender also waits for ever when the engine fails or dies during a transfer. Here the wait
ends with the engine's own error as soon as there is one, and after a time limit otherwise.
"""

import hashlib
import os
import time
from collections.abc import Callable
from typing import Any

import ray
import zmq
from verl.workers.rollout.vllm_rollout import ServerAdapter
from verl.workers.rollout.vllm_rollout.bucketed_weight_transfer import BucketedWeightSender

from vapo_verl import heartbeat
from vapo_verl.patches.upstream import use_bucket_sender

_RECEIVER_VARIABLE = "VERL_RAY_JOB_ID"
"""veRL's worker in the engine puts its value into the socket's name."""
_SESSION_DIGITS = 12
"""Digits of the session's digest: the path of a socket holds 107 bytes at most."""

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


class BucketSender(BucketedWeightSender):
    """veRL's transfer, failing with the engine, or if it does not answer in :data:`TIMEOUT_S`."""

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
