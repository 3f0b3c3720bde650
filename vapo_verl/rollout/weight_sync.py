"""Actor-to-engine weight transfer: a per-run socket and a timeout.

veRL names the socket by the Ray job's id, which is 01000000 in every Ray cluster that a run starts
for itself. Two runs on one host then share a socket: each removes the other's, and an engine waits
for ever or takes the other run's weights. Here the cluster's session is part of the name.

veRL's sender also waits for ever when the engine dies during a transfer. Here it times out.
"""

import hashlib
import os
from typing import Any

import ray
import zmq
from verl.workers.rollout.vllm_rollout import ServerAdapter
from verl.workers.rollout.vllm_rollout.bucketed_weight_transfer import BucketedWeightSender

from vapo_verl.patches.upstream import use_bucket_sender

_RECEIVER_VARIABLE = "VERL_RAY_JOB_ID"
"""veRL's worker in the engine puts its value into the socket's name."""
_SESSION_DIGITS = 12
"""Digits of the session's digest: the path of a socket holds 107 bytes at most."""

TIMEOUT_S = 600.0
"""Time limit of the engine for one bucket of weights."""


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


class BucketSender(BucketedWeightSender):
    """veRL's transfer, failing if the engine does not answer within :data:`TIMEOUT_S`."""

    def _init_socket(self) -> None:
        super()._init_socket()
        for option in (zmq.SNDTIMEO, zmq.RCVTIMEO):
            self.socket.setsockopt(option, int(1000 * TIMEOUT_S))
        self.socket.setsockopt(zmq.LINGER, 0)  # unread messages must not keep the process alive

    async def async_send_weights(self, weights: Any) -> None:
        """Send all weights.

        Raises:
            TimeoutError: the engine has not answered in time.
        """
        try:
            await super().async_send_weights(weights)
        except zmq.Again as error:
            raise TimeoutError(
                f"the vLLM engine has not taken weights within {TIMEOUT_S:g} s "
                f"({self.zmq_handle}): look above for its error; if it ran out of memory, lower "
                "actor_rollout_ref.rollout.gpu_memory_utilization"
            ) from error
