"""veRL's V1 trainers with VAPO's credit, metrics and run folder; and the synchronous trainer."""

import asyncio
import copy
import itertools
import math
import os
import signal
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import ray
from omegaconf import DictConfig, OmegaConf, open_dict
from tensordict import NonTensorData, NonTensorStack, TensorDict
from verl.experimental.agent_loop.agent_loop import DictConfigWrap
from verl.trainer.ppo.utils import Role
from verl.trainer.ppo.v1 import PPOTrainer, PPOTrainerSync, register_trainer
from verl.utils.config import omega_conf_to_dataclass
from verl.utils.tracking import Tracking
from verl.workers.config import HFModelConfig

from vapo_verl.advantage import estimator
from vapo_verl.anchors.question import FormatCheck, format_check_lines
from vapo_verl.config import vapo_config
from vapo_verl.console import phases, say
from vapo_verl.evaluation.benchmarks.validation_rows import validation_files
from vapo_verl.heartbeat import lag_metrics
from vapo_verl.methods import Method, method_of
from vapo_verl.patches.upstream import use_replay_buffers
from vapo_verl.report.live import KeyPictures, write_final_report
from vapo_verl.rollout import server as rollout_server
from vapo_verl.rollout.agent_loop import VapoAgentLoop, run_format_check
from vapo_verl.rollout.agent_loop_worker import reason_of
from vapo_verl.rollout.correction import BYPASS_LOSS, bypasses
from vapo_verl.rollout.model_families import captured_layers
from vapo_verl.rollout.prompts import (
    clear_prompts_except,
    prepare_seconds,
    prompt_uid,
    uid_of,
)
from vapo_verl.rollout.reward_function import info_means
from vapo_verl.rollout.transfer import KVBatchMeta, for_models, keys_in
from vapo_verl.run_folder import RunFolderError, checkpoints
from vapo_verl.run_folder.layout import METRICS_FILE, VALIDATION_FILE, write_config
from vapo_verl.run_folder.metrics import (
    MetricsFile,
    ValidationFile,
    is_validated,
    read_metrics,
)
from vapo_verl.run_folder.resume import (
    inputs_of,
    nothing_to_train,
    start_of,
    write_inputs,
    write_num_rows,
)
from vapo_verl.run_folder.rollouts import remove_rollouts_after, write_rollouts
from vapo_verl.settings import VERL_ESTIMATORS
from vapo_verl.trainer import liveness
from vapo_verl.trainer.checkpoint_extras import (
    CallbackWhenComplete,
    read_kl_coef,
    write_kl_coef,
)
from vapo_verl.trainer.metrics import (
    anchor_metrics,
    attention_metrics,
    has_metric,
    mean,
    origin_metrics,
    reward_metrics,
    reward_parts,
    sample_rows,
    signal_metrics,
    stats_metrics,
    used_metrics,
    validation_metrics,
)
from vapo_verl.trainer.replay_buffer import (
    FAILED,
    CountedReplayBuffer,
    CountedReplayBufferAsync,
    ResponsesFailed,
    forget_trained,
    logprob_mismatch,
    method_metrics,
    read_records,
    read_responses,
    read_visual_attention,
    request_lost,
    spread_padding,
    take_masked_log_probs,
    weigh_advantages,
    zero_masked_advantages,
)
from vapo_verl.trainer.stopping import RunStopped, SafeStop
from vapo_verl.trainer.trackers import StepEnd, StepLine, tell_resumed
from vapo_verl.trainer.train_loader import TrainLoader
from vapo_verl.trainer.worker import PhaseMemory, VapoWorker, masked_view

EXPLAIN_S = 10.0
"""Time for the monitor to see a death that may have caused an error."""
NOTICE_S = 2.0
"""Time for the trainer to meet the error that follows from a death and says more."""
FAILED_IN_VALIDATION = f"{FAILED}_in_validation"
WORKER_ROLES = (Role.ActorRolloutRef, Role.ActorRollout, Role.Actor, Role.RefPolicy)


class VapoTraining(PPOTrainer):
    """GRPO on the VAPO reward; each token's credit may follow its visual attention.

    A base class to name before one of veRL's trainers, whose order of phases it keeps.

    The agent loop has scored the responses when they arrive here. This class adds to veRL's
    trainer: credit weights from data that veRL's estimators do not get, the ``vapo/*`` metrics, a
    run folder that survives restarts, and an order of data that does not depend on timing.
    """

    mode: str
    """veRL's name of its trainer."""
    checkpoint_callback: CallbackWhenComplete
    """In the place of the one that veRL makes and calls."""
    worker_class: type[VapoWorker] = VapoWorker

    def __init__(self, config: DictConfig) -> None:
        with open_dict(config):
            config.trainer.v1.trainer_mode = self.mode  # veRL compares the name in many places
        rollout_server.register()
        use_replay_buffers(CountedReplayBuffer, CountedReplayBufferAsync)
        super().__init__(config)
        self.checkpoint_callback = CallbackWhenComplete(self.checkpoint_callback)
        self.vapo = vapo_config(OmegaConf.to_container(config.vapo, resolve=True))  # type: ignore[arg-type]
        self.run_dir = Path(config.trainer.default_local_dir)
        self.val_only: bool = config.trainer.val_only
        """Whether this process only validates: it changes nothing that the run has recorded."""
        self._monitor = liveness.Monitor(
            self.vapo.rollout.timeout_s,
            end=self._end,
            where=self._where,
            spare_servers=self.vapo.rollout.restart_servers,
        )
        self._actors: list[Any] = []  # that the trainer may be waiting for
        self._agent_loop_workers: list[Any] = []
        self.failure: str | None = None  # why the run cannot go on, in full
        self._noticed = threading.Event()  # this process has met an error by itself
        self._places: defaultdict[int, Iterator[int]] = defaultdict(itertools.count)
        self.stopped_at: int | None = None  # the last finished step of a run that was asked to stop
        self._begun_with = copy.deepcopy(config)  # veRL and this class change it from here on
        if config.trainer.resume_mode == "auto":  # reads files while the workers start
            self._resume_point = ThreadPoolExecutor(1).submit(
                checkpoints.prepare_resume, self.run_dir, say
            )
        self._safe_stop = SafeStop(
            self.run_dir, config.trainer.max_actor_ckpt_to_keep, self.vapo.keep_best or None
        )
        config.trainer.max_actor_ckpt_to_keep = None  # veRL forgets, on resume, what it saved
        config.trainer.max_critic_ckpt_to_keep = None  # before, and leaves parts of a checkpoint

    def _setup(self) -> None:
        self._monitor.begin(liveness.START)
        self._monitor.start()
        with self.explained():
            super()._setup()

    def _init_dataloader(self) -> None:
        phases.begin("data")
        given = self.config.data.val_files
        self.config.data.val_files = validation_files(self.config)
        super()._init_dataloader()
        self.config.data.val_files = given  # what the run folder's config says
        trainer = self.config.trainer  # veRL would end with the epochs, without a last checkpoint
        needed = math.ceil(self.total_training_steps / max(self.steps_per_epoch, 1))
        trainer.total_epochs = max(trainer.total_epochs, needed)
        self.train_dataloader: TrainLoader = TrainLoader.like(self.train_dataloader)
        if not self.val_only:
            write_num_rows(self.run_dir, self._settings, len(self.train_dataset))
            self._refuse_trained_run()

    @property
    def _settings(self) -> Mapping[str, Any]:
        """The config as this process got it, as dicts and lists."""
        return OmegaConf.to_container(self._begun_with, resolve=True)  # type: ignore[return-value]

    def _refuse_trained_run(self) -> None:
        """Refuse to begin with the last step or a later one, before the workers start.

        The next start of the same command is told so by the driver, which knows the number of rows
        by then.

        Raises:
            RunFolderError: no step is left, and no validation either.
        """
        last, start = self.total_training_steps, start_of(self.config.trainer)
        checkpoint = start.checkpoint
        if checkpoint is None or start.step < last:
            return
        if start.mode == "auto":
            with self._monitor.phase(liveness.VERIFICATION):
                step = self._resume_point.result().step or 0
            checkpoint = checkpoints.checkpoint_folder(self.run_dir, step)
            if step < last or self._lacks_validation_of(step):
                return
        raise RunFolderError(nothing_to_train(checkpoint, last))

    def _get_required_batch_multiple(self, dp_size: int) -> int:
        """Mini-batches count even without an update: log probs are cut into micro-batches."""
        policy = self.config.actor_rollout_ref
        mini_batch = policy.actor.ppo_mini_batch_size * policy.rollout.n
        return math.lcm(super()._get_required_batch_multiple(dp_size), mini_batch)

    def _init_resource_pool_mgr(self) -> None:
        ranks = self.config.trainer.n_gpus_per_node * self.config.trainer.nnodes
        phases.begin(f"actor and reference on {ranks} rank{'s' if ranks > 1 else ''}")
        super()._init_resource_pool_mgr()
        for role in WORKER_ROLES:
            if role in self.role_worker_mapping:
                self.role_worker_mapping[role] = ray.remote(self.worker_class)

    @property
    def _servers(self) -> list[Any]:
        """Ray actors of all vLLM servers."""
        managers = self._rollout_server_managers()
        return [server for manager in managers for server in manager.server_handles]

    @property
    def routers(self) -> list[Any]:
        """Ray actors that choose a server for each prompt."""
        return [manager.global_load_balancer for manager in self._rollout_server_managers()]

    @property
    def logger(self) -> Tracking:
        """veRL's tracking backends; veRL sets them at the start of :meth:`fit`."""
        return self._tracking

    @logger.setter
    def logger(self, tracking: Tracking) -> None:
        self._tracking = tracking
        self._step_line = StepLine(
            self.total_training_steps, self.global_steps, paired=self.vapo.anchors.is_paired
        )
        if self.val_only:
            tracking.logger = {
                "run_folder": ValidationFile(self.run_dir / VALIDATION_FILE, self._loaded),
                **tracking.logger,
                "step_line": self._step_line,
                "step_end": StepEnd(tracking.logger, lambda: None),
            }
            return
        metrics_file = MetricsFile(self.run_dir / METRICS_FILE, self.global_steps)
        if metrics_file.missing_steps:
            say(f"WARNING: {METRICS_FILE} lacks steps {metrics_file.missing_steps}")
        remove_rollouts_after(self.run_dir, self.global_steps)
        tell_resumed(tracking.logger, self.global_steps)
        tracking.logger = {  # in this order
            "run_folder": metrics_file,
            **tracking.logger,
            "step_line": self._step_line,
            "key_pictures": KeyPictures(
                self.run_dir,
                tracking.logger,
                freq=self.vapo.logging.report_freq,
                last_step=self.total_training_steps,
            ),
            "step_end": StepEnd(tracking.logger, self._declare_saved),
        }

    def on_init_end(self) -> None:
        phases.begin("weights to the engine")
        loss = self.config.actor_rollout_ref.actor.policy_loss.loss_mode
        if self.method.adds_losses or loss == BYPASS_LOSS:
            self.actor_rollout_wg.use_method(self.vapo.method)
        self._actors = self._workers()
        with self.explained(), self._monitor.phase(liveness.TRANSFER):
            super().on_init_end()
        self._synced_step = self.global_steps
        phases.end()

    def _workers(self) -> list[Any]:
        return [*self._servers, *self.actor_rollout_wg.workers, *self._agent_loop_workers]

    def _validate(self) -> dict[str, float]:
        phases.begin(f"validation on {len(self.val_dataset)} rows")
        failed_before = self.replay_buffer.num_failed["val"]
        with self._monitor.phase(liveness.VALIDATION):
            values = super()._validate()
        phases.end()
        self._check_score(values)
        failed = self.replay_buffer.num_failed["val"] - failed_before
        return {**values, FAILED_IN_VALIDATION: failed}

    def _check_score(self, values: Mapping[str, float]) -> None:
        """Check ``vapo.keep_best``, and tell where a validation has no value of it."""
        name = self.vapo.keep_best
        if not name:
            return
        recorded = read_metrics(self.run_dir / METRICS_FILE).series(name)
        if not has_metric(
            values, name, is_recorded=bool(recorded), probes_claims=self.vapo.probes_claims
        ):
            say(
                f"WARNING: the validation of step {self.global_steps} has no {name} "
                "(vapo.keep_best): its checkpoint is not compared"
            )

    def _val_metrics_update(
        self,
        data_sources: Any,
        sample_uids: Any,
        reward_extra_infos_dict: Any,
        sample_turns: Any,
        expected_acc_counts: Any = None,
    ) -> dict[str, float]:
        """veRL's metrics of the responses that came: it would count a failed one, whose answer is
        unknown, as incorrect."""
        del expected_acc_counts
        values = super()._val_metrics_update(
            data_sources, sample_uids, reward_extra_infos_dict, sample_turns
        )
        return {**values, **validation_metrics(data_sources, reward_extra_infos_dict)}

    def fit(self, agent_loop_manager: Any) -> None:
        """Train to the last step. A resumed run was validated when its checkpoint was made, except
        one that was killed before its last validation."""
        trainer, catches_up = self.config.trainer, self.lacks_validation
        if catches_up:
            say("The last step is trained and saved, but its validation is missing: validating.")
            trainer.val_only = trainer.val_before_train = True
        elif self.global_steps > 0 and not self.val_only:
            trainer.val_before_train = False
        filtering = self.config.algorithm.get("filter_groups") or {}
        self.replay_buffer.watch(
            interval_s=self.vapo.replay_poll_s,
            max_failed_fraction=self.vapo.rollout.max_failed_fraction,
            expected=agent_loop_manager.expected,
            ask_again=self._ask_again if self.vapo.rollout.restart_servers else None,
            max_num_gen_batches=filtering.get("max_num_gen_batches", 0),
            num_prompts=self.config.data.train_batch_size,
        )
        self._agent_loop_workers = agent_loop_manager.agent_loop_workers
        self._actors = self._workers()
        self._monitor.begin(None)
        agent_loop_manager.after_dispatch = self._monitor.renew  # the loops are there by then
        try:
            with self.explained():
                super().fit(agent_loop_manager)
                if catches_up:
                    self._safe_stop.update_best()
            self._monitor.stop()
            if not self.val_only:
                write_final_report(self.run_dir)
        except RunStopped as stopped:
            self._monitor.stop()
            self._shutdown_dump_executor()
            self.checkpoint_callback.checkpoint_complete()
            self.stopped_at = stopped.step

    @property
    def lacks_validation(self) -> bool:
        """Whether the last step is saved and only its validation is left.

        A run that has nothing left does not come here: it is refused at the start.
        """
        return self._lacks_validation_of(self.global_steps)

    def _lacks_validation_of(self, step: int) -> bool:
        trainer = self.config.trainer
        if self.val_only or trainer.resume_mode != "auto" or trainer.test_freq <= 0:
            return False
        return step == self.total_training_steps and not is_validated(self.run_dir, step)

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Raise the cause of an error that may be the consequence of a death.

        Raises:
            RunFailed: a process died or hangs, or responses failed.
        """
        try:
            yield
        except RunStopped:
            raise
        except Exception as error:
            self._noticed.set()
            self._monitor.spare_servers = False
            follows = isinstance(error, ray.exceptions.RayError | ResponsesFailed)
            wait_s = EXPLAIN_S if follows else liveness.INTERVAL_S
            finding = self._monitor.wait(wait_s) or self._monitor.suspect()
            self._monitor.stop()
            if finding is not None:
                self._monitor.kill(finding)
            if finding is not None or isinstance(error, ResponsesFailed):
                text = str(error) if isinstance(error, ResponsesFailed) else ""
                self.failure = self._message(finding, text)
                raise liveness.RunFailed(self.failure) from error
            raise

    def _end(self, finding: liveness.Finding) -> None:
        """Make this process's wait end; called by the monitor, in its thread."""
        self.failure = self._message(finding)
        exit_in_time = threading.Timer(liveness.GRACE_S, os._exit, (1,))
        exit_in_time.daemon = True
        exit_in_time.start()
        if self._noticed.wait(NOTICE_S):
            return
        if self._monitor.phase_name == liveness.START:  # the trainer may wait for any of them
            self._monitor.kill_all()
            return
        self._monitor.kill(finding)
        for actor in self._actors:
            ray.kill(actor)

    def _ask_again(self, partition_id: str, done: Mapping[str, Sequence[int]]) -> bool:
        """Restart dead servers and request the lost responses again; false if no server is dead.

        Args:
            done: prompts -> numbers of the responses that came.
        """
        end = time.monotonic() + EXPLAIN_S
        while not (dead := self._monitor.remove_dead_servers()):
            if time.monotonic() > end:
                return False
            time.sleep(liveness.INTERVAL_S / 10)
        self._restart_servers(dead)
        say(f"asking again for the missing responses to {len(done)} prompts")
        self.agent_loop_manager.ask_again(partition_id, done)
        return True

    def _restart_servers(self, dead: Sequence[liveness.Member]) -> None:
        """Restart servers, with the weights that the others have.

        Args:
            dead: the processes that died, for the message.

        Raises:
            ResponsesFailed: one did not start, or did not take the weights.
        """
        died = f"{self._where()}: {', '.join(map(str, dead))} died"
        say(f"WARNING: {died}; the server is started again")
        try:
            with self._monitor.phase(liveness.START):
                asyncio.run(rollout_server.restart_servers(self.llm_server_manager))
                self._actors = self._workers()
                self.actor_rollout_wg.forget_server()
                self.checkpoint_manager.sleep_replicas()
                self.checkpoint_manager.update_weights(self._synced_step)
        except (ray.exceptions.RayError, TimeoutError) as error:
            raise ResponsesFailed(f"{died} and did not start again: {reason_of(error)}") from error

    def _where(self) -> str:
        phase = self._monitor.phase_name or "between two phases"
        return f"step {self.global_steps}, {phase}" if self.global_steps else phase

    def _message(self, finding: liveness.Finding | None, error: str = "") -> str:
        """What happened, the last log lines, what is saved and what the same command does."""
        lines = [error] if error else []
        if finding is not None:
            at = time.strftime("%H:%M:%S", time.localtime(finding.at))
            lines = [f"{finding.what}, seen at {at}", *lines, *self._exits(), *finding.evidence]
        lines.append(liveness.outlook(start_of(self.config.trainer)))
        return "\n".join(lines)

    def _exits(self) -> list[str]:
        """How engine processes ended, as told by servers that are still alive."""
        asked = [server.engine_exits.remote() for server in self._servers]
        answered, _ = ray.wait(asked, num_returns=len(asked), timeout=2)
        lines = []
        for answer in answered:
            with suppress(ray.exceptions.RayError):  # a server that is dead itself
                for name, code in ray.get(answer).items():
                    how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
                    lines.append(f"{name} ended with {how}.")
        return lines

    def request_stop(self) -> bool:
        """See :meth:`SafeStop.request`."""
        return self._safe_stop.request()

    def on_step_begin(self) -> None:
        super().on_step_begin()
        self._safe_stop.begin_step(
            self.global_steps,
            sleep=self._free_devices,
            save_step=self._save_step,
        )
        self._at(liveness.ROLLOUT)

    def _free_devices(self) -> None:
        """Let the engine release the actor's GPUs, as during an update."""
        self.checkpoint_manager.sleep_replicas()

    def on_sample_begin(self) -> None:
        super().on_sample_begin()
        if self._monitor.phase_name != liveness.ROLLOUT:  # a step may sample several times
            self._at(liveness.ROLLOUT)

    def _save_step(self, step: int) -> None:
        """Save a step that has been logged, although veRL already counts the next one."""
        self.global_steps = step
        self._save_checkpoint()

    def _fetch_one_gen_batch(self) -> TensorDict:
        """veRL's batch with ids made of step and place instead of random ones."""
        batch = super()._fetch_one_gen_batch()
        places = itertools.islice(self._places[self.global_steps], len(batch))
        uids = [NonTensorData(prompt_uid(self.global_steps, place)) for place in places]
        batch["uid"] = NonTensorStack.from_list(uids)
        return batch

    def on_train_begin(self) -> None:
        """Ask the anchor question on a few rows first: with a bad format, training fits noise."""
        num_rows = min(self.vapo.anchors.self_test_rows, len(self.train_dataset))
        if self.vapo.probes_claims and num_rows:
            with self._monitor.phase(liveness.ROLLOUT):
                result = asyncio.run(self._format_check(num_rows))
            for line in format_check_lines(result, num_rows, self.vapo.anchors.max_claim_tokens):
                say(line)
        super().on_train_begin()

    async def _format_check(self, num_rows: int) -> FormatCheck | None:
        model: HFModelConfig = omega_conf_to_dataclass(self.config.actor_rollout_ref.model)
        loop = VapoAgentLoop(
            trainer_config=DictConfigWrap(self.config),
            server_manager=self.get_llm_client(),
            tokenizer=self.tokenizer,
            processor=self.processor,
            dataset_cls=type(self.train_dataset),
            data_config=DictConfigWrap(self.config.data),
            hf_model_type=model.hf_config.model_type,
        )
        return await run_format_check(loop, (self.train_dataset[i] for i in range(num_rows)))

    def _balance_batch(self, batch: KVBatchMeta, *args: Any, **kwargs: Any) -> KVBatchMeta:
        """Sort the responses, which arrive as they finish: mini-batches then repeat in each run.

        veRL puts its padding rows last on each rank: they are spread over its mini-batches.
        """
        batch.reorder(sorted(range(len(batch.keys)), key=lambda i: batch.keys[i]))
        batch = super()._balance_batch(batch, *args, **kwargs)
        num_ranks = max(self.actor_rollout_wg._dispatch_info["actor"]) + 1
        batch.reorder(
            spread_padding([bool(tag.get("is_padding")) for tag in batch.tags], num_ranks)
        )
        return batch

    def _at(self, phase: str) -> None:
        """Tell the console and the monitor that the step has reached `phase`."""
        self._step_line.at(phase)
        self._monitor.begin(phase)

    @cached_property
    def method(self) -> Method:
        """The method that ``vapo.method`` names."""
        return method_of(self.vapo.method)

    @cached_property
    def _memory(self) -> PhaseMemory:
        return PhaseMemory(self.actor_rollout_wg)

    def on_sample_end(self) -> None:
        if self.vapo.rollout.restart_servers and (dead := self._monitor.remove_dead_servers()):
            self._restart_servers(dead)  # it died after its last answer
        self._memory.end_phase("rollout")  # before the engine sleeps
        super().on_sample_end()
        self._at(liveness.LOG_PROBS)

    def _compute_old_log_prob(self, batch: KVBatchMeta, metrics: dict[str, Any]) -> KVBatchMeta:
        batch = super()._compute_old_log_prob(for_models(batch), metrics)
        if self.method.mask_fraction:
            self._compute_masked_log_prob(batch)
        self._memory.end_phase("old_log_prob")
        if not bypasses(self.config):
            metrics.update(logprob_mismatch(batch))
        return batch

    def _compute_masked_log_prob(self, batch: KVBatchMeta) -> None:
        """Compute the actor's log probs again, on images with black patches."""
        view = masked_view(
            batch,
            self.config.actor_rollout_ref.rollout.temperature,
            {
                "fraction": self.method.mask_fraction,
                "seed": self.vapo.seed,
                "step": self.global_steps,
            },
        )
        self.actor_rollout_wg.compute_log_prob(view)
        take_masked_log_probs(view)

    def _compute_ref_log_prob(self, batch: KVBatchMeta, metrics: dict[str, Any]) -> KVBatchMeta:
        batch = super()._compute_ref_log_prob(for_models(batch), metrics)
        self._memory.end_phase("ref")
        return batch

    def _update_actor(self, batch: KVBatchMeta, metrics: dict[str, Any]) -> KVBatchMeta:
        self._at(liveness.UPDATE)
        if self.method.weighs_tokens:
            metrics.update(weigh_advantages(batch, self.method))
        batch = super()._update_actor(for_models(batch), metrics)
        for name in [name for name in metrics if name.startswith("actor/vapo/")]:
            metrics[name.removeprefix("actor/")] = metrics.pop(name)  # veRL has prefixed them
        if not math.isfinite(metrics.get("actor/grad_norm", 0.0)):  # veRL prints it in the worker
            say(
                f"WARNING: step {self.global_steps}: an update was skipped, since its gradient is "
                "not finite (docs/troubleshooting.md)"
            )
        self._monitor.begin(None)
        self._memory.end_phase("update_actor")
        return batch

    def on_step_end(self) -> None:
        with self._monitor.phase(liveness.TRANSFER):
            super().on_step_end()
        self._synced_step = self.global_steps
        self._memory.end_phase("update_weights")

    def _compute_advantage(self, batch: KVBatchMeta, metrics: dict[str, Any]) -> KVBatchMeta:
        """veRL's call of the registered estimator.

        Ours, and one that a user's package registers, get inputs that veRL does not pass.
        """
        name = self.config.algorithm.adv_estimator
        if name in VERL_ESTIMATORS:
            batch = super()._compute_advantage(batch, metrics)
            zero_masked_advantages(batch)
            return batch
        is_ours = name == estimator.NAME
        attention = read_visual_attention(batch)
        parts = (
            reward_parts(read_records(batch), self.vapo)
            if self.vapo.advantage.normalization == "decoupled" or not is_ours
            else None
        )
        with estimator.batch_inputs(self.vapo.advantage, attention, parts) as inputs:
            batch = super()._compute_advantage(batch, metrics)
        assert inputs.stats is not None or not is_ours, "veRL did not call the estimator"
        if inputs.stats is not None:
            metrics.update(stats_metrics(inputs.stats))
        if not is_ours:
            zero_masked_advantages(batch)
        return batch

    def _compute_metrics(
        self, batch: KVBatchMeta, metrics: dict[str, Any], *args: Any, **kwargs: Any
    ) -> None:
        super()._compute_metrics(batch, metrics, *args, **kwargs)
        step = read_responses(batch)
        metrics.update(reward_metrics(step.records))
        estimator_name = self.config.algorithm.adv_estimator
        metrics.update(origin_metrics(step.records, step.group_ids, self.vapo, estimator_name))
        metrics.update(anchor_metrics(step.records))
        size = self.config.actor_rollout_ref.rollout.n
        metrics.update(method_metrics(step, self.method, size, self.total_training_steps))
        metrics.update(signal_metrics(step.records, step.group_ids, self.vapo))
        metrics["vapo/anchors/step_share"] = (
            metrics["vapo/anchors/tail_s"] / metrics["timing_s/step"]
        )
        metrics.update(attention_metrics(step.visual_attention, step.response_mask))
        metrics.update(info_means(step.infos))
        metrics |= {name: metrics.get(name, 0) for name in used_metrics(self.config)}
        metrics.update(self._memory.metrics())
        metrics.update(self._rollout_metrics(list(dict.fromkeys(map(uid_of, step.keys)))))
        self._write_rollouts(step.keys, batch.partition_id)
        clear_prompts_except(
            set(map(uid_of, keys_in(batch.partition_id))) - set(map(uid_of, batch.keys))
        )

    def _rollout_metrics(self, uids: Sequence[str]) -> dict[str, float]:
        """Time to prepare these prompts, and delays of the event loops since the last step."""
        loops = ray.get([worker.take_loop_lag.remote() for worker in self._agent_loop_workers])
        on_servers = ray.get([server.take_loop_lag.remote() for server in self._servers])
        return {
            "vapo/rollout/prepare_s": mean(prepare_seconds(uids)),
            **lag_metrics("loop", list(itertools.chain(*loops))),
            **lag_metrics("server_loop", list(itertools.chain(*on_servers))),
        }

    def _write_rollouts(self, keys: list[str], partition_id: str) -> None:
        settings = self.vapo.logging
        if settings.num_rollout_samples == 0 or self.global_steps % settings.rollout_freq:
            return
        chosen = sorted(keys)[: settings.num_rollout_samples]
        rows = sample_rows(chosen, partition_id, self.tokenizer, self.global_steps)
        write_rollouts(self.run_dir, self.global_steps, rows, self._captured_layers)

    @cached_property
    def _captured_layers(self) -> list[int] | None:
        """The layers whose visual attention the samples record separately; None if they do not."""
        attention = self.vapo.attention
        if not (attention.enabled and attention.per_layer):
            return None
        model: HFModelConfig = omega_conf_to_dataclass(self.config.actor_rollout_ref.model)
        text = model.hf_config.get_text_config(decoder=True)
        return captured_layers(text.to_dict(), attention.layers)

    def _save_checkpoint(self) -> None:
        """veRL's checkpoint; it is complete once the step is logged (:class:`StepEnd`)."""
        with (
            self._monitor.phase(liveness.SAVE),
            self._safe_stop.saving(self.global_steps) as records,
        ):
            super()._save_checkpoint()
            folder = checkpoints.checkpoint_folder(self.run_dir, self.global_steps)
            write_kl_coef(folder, self._kl_controller)
            for of_rank in self.actor_rollout_wg.record_files(str(folder)):
                records.update(of_rank)

    def _declare_saved(self) -> None:
        """The step is logged: its checkpoint is complete, if it has one."""
        self._safe_stop.declare_saved()
        self.checkpoint_callback.checkpoint_complete()

    @property
    def _loaded(self) -> Path | None:
        """The checkpoint that this process began with: the newest one may have been damaged."""
        checkpoint = start_of(self.config.trainer).checkpoint
        if not self.global_steps or checkpoint is None:
            return None
        return checkpoints.checkpoint_folder(checkpoint.parent, self.global_steps)

    @property
    def _kl_controller(self) -> Any:
        """Of the KL term in the reward; None without one."""
        return self.kl_ctrl_in_reward if self.config.algorithm.use_kl_in_reward else None

    def _load_checkpoint(self) -> None:
        """Resume from the newest intact checkpoint: this process alone chooses, for all ranks."""
        if self.config.trainer.resume_mode == "auto":
            phases.begin("verifying checkpoints")
            with self._monitor.phase(liveness.VERIFICATION):
                point = self._resume_point.result()
            phases.end()
            if point.step is not None:
                phases.begin(f"checkpoint of step {point.step}")
        elif self.config.trainer.resume_mode == "resume_path":
            with self._monitor.phase(liveness.VERIFICATION):
                checkpoints.require_intact(Path(self.config.trainer.resume_from_path))
        super()._load_checkpoint()
        if self.global_steps and self.mode != VapoTrainer.mode:  # with it, the replay buffer
            forget_trained("train")
            request_lost("train", self.global_steps + 1)
        self._safe_stop.resumed(self.global_steps)
        if (checkpoint := self._loaded) is not None:
            read_kl_coef(checkpoint, self._kl_controller)
        if not self.val_only and self.global_steps < self.total_training_steps:
            write_inputs(self.run_dir, inputs_of(self._settings))
            write_config(self.run_dir, self._begun_with, self.global_steps)
        if self.global_steps:
            say(f"resuming from step {self.global_steps}")


@register_trainer("vapo")
class VapoTrainer(VapoTraining, PPOTrainerSync):
    """Steps of one policy: no response decodes while the weights change."""

    mode = "sync"
