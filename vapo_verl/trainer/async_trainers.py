"""VAPO on veRL's asynchronous trainers: responses decode while others are trained on.

``colocate_async``: actor and engine share GPUs. A step begins to train when enough prompts have all
their responses; the others are aborted, and continue with the new weights.

``separate_async``: the engine has GPUs of its own and decodes during the update. Weights go there
every ``parameter_sync_step`` mini-batches, which is one step.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

from verl.trainer.ppo.v1 import PPOTrainerColocateAsync, PPOTrainerSeparateAsync, register_trainer
from verl.workers.rollout.llm_server import LLMServerClient

from vapo_verl.patches.upstream import mute_separate_trainer
from vapo_verl.rollout.correction import bypasses
from vapo_verl.rollout.partial_rollout import PartialRolloutClient
from vapo_verl.rollout.transfer import KVBatchMeta
from vapo_verl.trainer import liveness
from vapo_verl.trainer.metrics import FAILURES
from vapo_verl.trainer.replay_buffer import FAILED
from vapo_verl.trainer.trainer import VapoTraining
from vapo_verl.trainer.worker import VapoDetachedWorker

REJECTIONS = ("rollout_corr/rollout_rs_seq_sum_", "rollout_corr/rollout_rs_seq_max_")
"""Begin the names of metrics of a rejection rule whose own name tells veRL how to combine them."""


@register_trainer("vapo_colocate_async")
class VapoColocateAsync(VapoTraining, PPOTrainerColocateAsync):
    """Steps train on the prompts that are ready, and abort the responses to the others."""

    mode = "colocate_async"

    def get_llm_client(self) -> LLMServerClient:
        return self.llm_server_manager.get_client(client_cls=PartialRolloutClient)

    def _free_devices(self) -> None:
        self.checkpoint_manager.abort_replicas()
        super()._free_devices()


@register_trainer("vapo_separate_async")
class VapoSeparateAsync(VapoTraining, PPOTrainerSeparateAsync):
    """Steps that train while the engine decodes on GPUs of its own."""

    mode = "separate_async"
    worker_class = VapoDetachedWorker

    def _setup(self) -> None:
        mute_separate_trainer()
        super()._setup()

    def step(self, metrics: dict[str, Any], timing_raw: dict[str, float]) -> KVBatchMeta:
        """veRL's step, which logs means over its mini-batches; counts are summed instead.

        Of `rollout_rs_seq_sum_k1_mean` it would log the sum, as the name contains one.
        """
        self._counts = Counter[str]()
        self._rejections: defaultdict[str, list[tuple[float, int]]] = defaultdict(list)
        batch = super().step(metrics, timing_raw)
        metrics.update(self._counts)
        metrics.update({name: _of_all(name, values) for name, values in self._rejections.items()})
        return batch

    def _step_once(self, metrics: dict[str, Any], *args: Any, **kwargs: Any) -> KVBatchMeta:
        batch = super()._step_once(metrics, *args, **kwargs)
        self._counts.update({name: metrics[name] for name in filter(_is_count, metrics)})
        num_responses = sum(not tag.get("is_padding") for tag in batch.tags)
        for name, value in metrics.items():
            if name.startswith(REJECTIONS):
                self._rejections[name].append((value, num_responses))
        return batch

    def on_step_end(self) -> None:
        with self._monitor.phase(liveness.ROLLOUT):  # what has ended is scored before the transfer
            self.standalone_checkpoint_manager.abort_replicas()
        super().on_step_end()

    def _compute_masked_log_prob(self, batch: KVBatchMeta) -> None:
        """With the weights of the old log probs; veRL has restored the current ones by now.

        The old weights are those of the step's first mini-batch, which veRL has saved as number 0.
        With `bypass_mode` the old log probs are the engine's, and nothing is saved.
        """
        if self.local_trigger_step == 0 or bypasses(self.config):
            super()._compute_masked_log_prob(batch)
            return
        self.actor_rollout_wg.save_model_to_cpu(self.local_trigger_step)
        self.actor_rollout_wg.restore_model_from_cpu(0)
        super()._compute_masked_log_prob(batch)
        self.actor_rollout_wg.restore_model_from_cpu(self.local_trigger_step)
        self.actor_rollout_wg.clear_cpu_model(self.local_trigger_step)

    def get_llm_client(self) -> LLMServerClient:
        return self.standalone_server_manager.get_client(client_cls=PartialRolloutClient)

    def _free_devices(self) -> None:
        """Nothing to do: the actor's GPUs are its own."""


def _of_all(name: str, values: Sequence[tuple[float, int]]) -> float:
    """A metric of several mini-batches, from their values and numbers of responses."""
    if name.endswith("_max"):
        return max(value for value, _ in values)
    if name.endswith("_min"):
        return min(value for value, _ in values)
    return sum(value * num for value, num in values) / sum(num for _, num in values)


def _is_count(name: str) -> bool:
    """Whether a metric counts responses, groups or tokens of a mini-batch."""
    counts = (FAILED, *FAILURES, "vapo/vgpo/responses_without_attention")
    return name in counts or name.startswith("vapo/advantage/num_")
