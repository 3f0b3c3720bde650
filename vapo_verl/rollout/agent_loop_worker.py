"""veRL's agent loop workers, with every response accounted for.

veRL logs the error of a response and goes on without it: the trainer sees a smaller batch and
fills it with padding. Here a failed response is an entry of the replay buffer like any other, with
the key of the response, and a tag that gives the reason.

A response fails for a reason of its row (an image that cannot be read, a prompt that is too long,
an error of its reward) or of the system (a dead or hung process, an error of the engine). The
first is data, the second ends the step: see :mod:`vapo_verl.trainer.replay_buffer`.
"""

import asyncio
import concurrent.futures
import errno
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import ray
import torch
import zmq
from tensordict import NonTensorData, NonTensorStack, TensorDict
from verl.trainer.ppo.v1 import agent_loop_tq

from vapo_verl import heartbeat
from vapo_verl.heartbeat import LoopLag
from vapo_verl.patches.upstream import session_folder
from vapo_verl.rollout.engine_args import refuse_lifted_limit
from vapo_verl.rollout.prober import ServerFailed
from vapo_verl.rollout.prompts import (
    PIXELS_OF,
    PREPARED,
    SERVER,
    STORED,
    open_prompt,
    store_prompt,
    without_images,
)
from vapo_verl.rollout.transfer import put_tag, register_prompts

FAILURE_TAG = "failed"
"""Tag of a failed response: ``row`` or ``system``. Absent on the others."""
REASON_TAG = "reason"
DONE_FIELD = "done_sessions"
"""Field of a prompt that is requested again: numbers of its finished responses."""
_MAX_REASON = 200
_SYSTEM_ERRORS = (
    *(ray.exceptions.RayError, ServerFailed, MemoryError, TimeoutError, ConnectionError),
    *(asyncio.CancelledError, concurrent.futures.BrokenExecutor, zmq.ZMQError),
)
_SYSTEM_ERRNOS = {
    *(errno.ENOSPC, errno.EDQUOT, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.EIO),
    *(errno.ESTALE, errno.EAGAIN),
}


class ResponseFailed(Exception):
    """A response failed and has been reported; tells veRL to mark its prompt."""


def cause_of(error: BaseException) -> BaseException:
    """The first error, in whichever process it was raised."""
    while isinstance(error, ray.exceptions.RayTaskError):
        error = error.cause
    return error


def failure_kind(error: BaseException) -> str:
    """``system`` or ``row``: whether another row could have met the error as well.

    A server's error is one of the row only if the server refuses the prompt; all its other errors
    are :class:`vapo_verl.rollout.prober.ServerFailed`. Another error (images, tokens, reward) is
    one of the row unless it names a process or a resource of the machine.
    """
    cause = cause_of(error)
    if isinstance(cause, _SYSTEM_ERRORS):
        return "system"
    if isinstance(cause, OSError) and cause.errno in _SYSTEM_ERRNOS:
        return "system"
    return "system" if str(cause).startswith("can't start new thread") else "row"


def reason_of(error: BaseException) -> str:
    """Type and first line of the first error, in Unicode that a message can carry."""
    cause = cause_of(error)
    lines = str(cause).strip().splitlines() or [""]
    text = f"{type(cause).__name__}: {lines[0]}"[:_MAX_REASON]
    return text.encode("utf-8", "backslashreplace").decode()


class ReportedFilter(logging.Filter):
    """Drops veRL's traceback of a failed response: the trainer gets the failure as a tag."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not (record.exc_info and isinstance(record.exc_info[1], ResponseFailed))


class VapoAgentLoopWorker(agent_loop_tq.AgentLoopWorkerTQ.__ray_metadata__.modified_class):
    """Prepares a prompt once for all its responses; reports failures and progress.

    A response's row holds what differs between responses. The pixels of its prompt are in a
    separate row, which :class:`vapo_verl.rollout.prompts.PromptPixels` reads.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        heartbeat.start(session_folder() / heartbeat.FOLDER)
        super().__init__(*args, **kwargs)
        images = getattr(self.processor, "image_processor", None)
        refuse_lifted_limit(self.config, images and images.size.get("longest_edge"))
        agent_loop_tq.logger.addFilter(ReportedFilter())
        self._in_flight: dict[str, float] = {}
        self._logged: set[str] = set()
        self._lag = LoopLag()

    async def take_loop_lag(self) -> list[float]:
        """See :meth:`LoopLag.take`."""
        return self._lag.take()

    async def _run_agent_loop(
        self, sampling_params: dict[str, Any], trajectory: dict[str, Any], **row: Any
    ) -> None:
        if row["session_id"] in row.pop(DONE_FIELD, ()):
            return
        key = f"{row['uid']}_{row['session_id']}_0"
        self._in_flight[key] = time.time()
        self._beat()
        try:
            await super()._run_agent_loop(sampling_params, trajectory, **row)
        except Exception as error:
            await self._report(key, "val" if trajectory["validate"] else "train", error)
            raise ResponseFailed(key) from None
        finally:
            del self._in_flight[key]
            self._beat()

    async def _run_prompt(self, prompt: dict[str, Any], *args: Any, **kwargs: Any) -> None:
        self._lag.start()
        is_training = not kwargs["trajectory"]["validate"]
        with open_prompt(str(prompt["uid"]), is_training=is_training) as shared:
            try:
                await super()._run_prompt(prompt, *args, **kwargs)
            finally:
                for form in shared.forms():
                    if (server := form.result(SERVER)) is not None:
                        server.close_prompt.remote(form.uid)

    def _compute_multi_modal_inputs(self, output: Any, input_ids: torch.Tensor) -> dict[str, Any]:
        """The prompt's inputs, with its uid in place of its pixels.

        Without prepared inputs (video), veRL computes them, here without the tokens, which images
        do not need. veRL gives the processor prompt and response as text: a `<|image_pad|>` spelled
        out in it would be taken for one more image.
        """
        prepared = output.prompt.result(PREPARED)
        if prepared is None or prepared.model_inputs is None:
            return super()._compute_multi_modal_inputs(output, input_ids.new_empty((1, 0)))
        inputs = prepared.model_inputs
        if inputs.pixels is None:
            return dict(inputs.plain)
        return {**inputs.plain, PIXELS_OF: output.prompt.uid}

    async def _agent_loop_postprocess(self, output: Any, validate: bool, **row: Any) -> None:
        if not validate:  # a validation reads texts and scores
            await output.prompt.once(
                STORED, partial(store_prompt, output.prompt, row["raw_prompt"])
            )
        if validate or not self.config.vapo.logging.num_rollout_samples:
            output.visual_attention_layers = None  # only stored samples show layers
        if not self.config.reward.reward_model.enable:
            row["raw_prompt"] = without_images(row["raw_prompt"])
        await super()._agent_loop_postprocess(output, validate, **row)

    def _beat(self) -> None:
        doing = "no responses in flight"
        if self._in_flight:
            key, since = next(iter(self._in_flight.items()))
            at = time.strftime("%H:%M:%S", time.localtime(since))
            doing = f"{len(self._in_flight)} responses in flight, the oldest {key} since {at}"
        heartbeat.beat(doing, len(self._in_flight))

    async def _report(self, key: str, partition_id: str, error: Exception) -> None:
        kind, reason = failure_kind(error), reason_of(error)
        if reason not in self._logged:  # the trainer counts the others
            self._logged.add(reason)
            agent_loop_tq.logger.error("response %s failed (%s)", key, kind, exc_info=error)
        tag = {"status": "failure", FAILURE_TAG: kind, REASON_TAG: reason}
        await put_tag(key, partition_id, tag)


class VapoAgentLoopManager(agent_loop_tq.AgentLoopManagerTQ):
    """veRL's manager over :class:`VapoAgentLoopWorker`; counts the responses it requested."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.agent_loop_workers_class = ray.remote(VapoAgentLoopWorker)
        self.expected: dict[str, int] = {}
        """Prompt uid -> number of its responses, for the prompts in flight."""
        self.after_dispatch: Callable[[], None] = lambda: None
        """Called when the workers have received a batch."""
        self._asked: list[TensorDict] = []

    def generate_sequences(self, prompts: Any) -> None:
        """Dispatch a batch, see the base class."""
        rollout = self.rollout_config
        validate = "validate" in prompts and bool(prompts["validate"])
        n = rollout.val_kwargs.n if validate else rollout.n
        uids = list(prompts["uid"])
        counts = prompts["__rollout_n__"] if "__rollout_n__" in prompts else [n] * len(uids)
        self._asked = [
            batch for batch in self._asked if any(str(uid) in self.expected for uid in batch["uid"])
        ]
        self._asked.append(prompts)
        self.expected.update(zip(map(str, uids), map(int, counts), strict=True))
        self._dispatch(prompts)

    def ask_again(self, partition_id: str, done: Mapping[str, Sequence[int]]) -> None:
        """Dispatch prompts in flight again, for their missing responses.

        Args:
            done: uid -> numbers of its finished responses.
        """
        for batch in self._asked:
            uids = [str(uid) for uid in batch["uid"]]
            rows = [row for row, uid in enumerate(uids) if uid in done]
            if not rows:
                continue
            again = batch[rows]
            again[DONE_FIELD] = NonTensorStack.from_list(
                [NonTensorData(tuple(done[uids[row]])) for row in rows]
            )
            register_prompts([uids[row] for row in rows], partition_id, batch["global_steps"])
            self._dispatch(again)

    def _dispatch(self, prompts: TensorDict) -> None:
        super().generate_sequences(prompts)
        self.after_dispatch()
