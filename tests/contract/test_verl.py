"""What the trainer overrides in veRL 0.9.1 is still there, and is what it was when written."""

import ast
import dataclasses
import inspect
import re
import sys
import textwrap
from pathlib import Path
from types import FunctionType

import pytest
import transfer_queue.interface
import verl
from transfer_queue import controller
from transfer_queue.storage import simple_storage
from transfer_queue.storage.managers import simple_storage_manager
from verl.checkpoint_engine.base import CheckpointEngine
from verl.experimental.agent_loop.agent_loop import AgentLoopManager, AgentLoopOutput
from verl.experimental.agent_loop.single_turn_agent_loop import SingleTurnAgentLoop
from verl.experimental.separation.engine_workers import DetachActorWorker
from verl.single_controller.ray.base import RayResourcePool, ResourcePoolManager
from verl.trainer.main_ppo import TaskRunnerV1
from verl.trainer.ppo.checkpoint_callback import CheckpointCallback
from verl.trainer.ppo.core_algos import get_adv_estimator_fn
from verl.trainer.ppo.v1 import (
    PPOTrainer,
    PPOTrainerColocateAsync,
    PPOTrainerSeparateAsync,
    PPOTrainerSync,
    get_trainer_cls,
)
from verl.trainer.ppo.v1.agent_loop_tq import AgentLoopManagerTQ, AgentLoopWorkerTQ
from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer, ReplayBufferAsync
from verl.utils.dataset.rl_dataset import RLHFDataset
from verl.utils.fsdp_utils import fsdp2_sharded_save_to_cpu
from verl.workers.engine_workers import ActorRolloutRefWorker, TrainingWorker
from verl.workers.rollout.llm_server import FullyAsyncLLMServerClient, LLMServerManager
from verl.workers.rollout.replica import RolloutReplica
from verl.workers.rollout.router import GlobalRequestLoadBalancer
from verl.workers.rollout.vllm_rollout import ServerAdapter
from verl.workers.rollout.vllm_rollout.bucketed_weight_transfer import BucketedWeightSender
from verl.workers.rollout.vllm_rollout.vllm_async_server import vLLMHttpServer, vLLMReplica

from vapo_verl.data.dataset import VapoDataset
from vapo_verl.rollout.agent_loop import VapoAgentLoop, VapoAgentLoopOutput
from vapo_verl.rollout.agent_loop_worker import VapoAgentLoopManager, VapoAgentLoopWorker
from vapo_verl.rollout.engine_args import FILLED_BY_VERL
from vapo_verl.rollout.partial_rollout import PartialRolloutClient
from vapo_verl.rollout.router import PromptRouter
from vapo_verl.rollout.server import VapoHttpServer, VapoReplica
from vapo_verl.rollout.weight_sync import BucketSender, SocketWeights, VapoServerAdapter
from vapo_verl.run_folder.resume import STORAGE_FILES
from vapo_verl.trainer.async_trainers import VapoColocateAsync, VapoSeparateAsync
from vapo_verl.trainer.checkpoint_extras import CallbackWhenComplete
from vapo_verl.trainer.replay import ReplayTrainer, SavingTrainer
from vapo_verl.trainer.replay_buffer import CountedReplayBuffer, CountedReplayBufferAsync
from vapo_verl.trainer.task_runner import ENGINE_CPUS, QUEUE, RANK_CPUS, VapoTaskRunner
from vapo_verl.trainer.trainer import VapoTrainer, VapoTraining
from vapo_verl.trainer.worker import VapoDetachedWorker, VapoTrainingWorker, VapoWorker

MADE_BY_METACLASSES = {"_abc_impl", "model_config", "model_post_init"}
"""Attributes that ABC and pydantic add to every class."""


def plain_class(cls):
    """The class behind a Ray actor's."""
    actor = getattr(cls, "__ray_metadata__", None)
    return actor.modified_class if actor else cls


OVERRIDDEN = [
    (
        VapoTraining,
        PPOTrainer,
        "_setup _init_dataloader _get_required_batch_multiple _init_resource_pool_mgr on_init_end "
        "_validate _val_metrics_update fit on_step_begin on_sample_begin _fetch_one_gen_batch "
        "on_sample_end on_train_begin _balance_batch _compute_old_log_prob _compute_ref_log_prob "
        "_update_actor on_step_end _compute_advantage _compute_metrics _save_checkpoint "
        "_load_checkpoint",
    ),
    (VapoTrainer, PPOTrainerSync, ""),
    (VapoColocateAsync, PPOTrainerColocateAsync, "get_llm_client"),
    (
        VapoSeparateAsync,
        PPOTrainerSeparateAsync,
        "_setup step _step_once on_step_end get_llm_client",
    ),
    (ReplayTrainer, PPOTrainerSync, "_init_resource_pool_mgr _setup prepare_step"),
    (SavingTrainer, PPOTrainerSync, "_balance_batch"),
    (VapoTaskRunner, TaskRunnerV1, "run init_agent_loop_manager"),
    (
        CountedReplayBuffer,
        ReplayBuffer,
        "_evict_terminal_groups _wait_for_next_poll sample _dapo_filtered_keys _select_prompt_uids",
    ),
    (
        CountedReplayBufferAsync,
        ReplayBufferAsync,
        "_terminal_eviction_reasons _stale_terminal_keys",
    ),
    (CallbackWhenComplete, CheckpointCallback, "on_save"),
    (VapoTrainingWorker, TrainingWorker, "reset train_mini_batch infer_batch"),
    (VapoWorker, ActorRolloutRefWorker, "actor_worker_cls ref_worker_cls init_model"),
    (VapoDetachedWorker, DetachActorWorker, "save_model_to_cpu"),
    (BucketSender, BucketedWeightSender, "_init_socket _init_buffer async_send_weights"),
    (
        SocketWeights,
        CheckpointEngine,
        "prepare build_topology init_process_group send_weights receive_weights finalize",
    ),
    (VapoServerAdapter, ServerAdapter, "_execute_method"),
    (VapoHttpServer, vLLMHttpServer, "run_server generate abort_all_requests"),
    (VapoReplica, vLLMReplica, "max_concurrency get_ray_class_with_init_args"),
    (PartialRolloutClient, FullyAsyncLLMServerClient, "generate"),
    (PromptRouter, GlobalRequestLoadBalancer, "acquire_server"),
    (
        VapoDataset,
        RLHFDataset,
        "_build_messages maybe_filter_out_long_prompts _read_files_and_tokenize",
    ),
    (
        VapoAgentLoop,
        SingleTurnAgentLoop,
        "run process_multi_modal_info ct_build_initial_tokens",
    ),
    (VapoAgentLoopOutput, AgentLoopOutput, "as_dict"),
    (VapoAgentLoopManager, AgentLoopManagerTQ, "generate_sequences"),
    (
        VapoAgentLoopWorker,
        AgentLoopWorkerTQ,
        "_run_agent_loop _run_prompt _compute_multi_modal_inputs _agent_loop_postprocess",
    ),
]
"""Class of ours, class of veRL that it extends, and the attributes that it overrides."""


def test_the_registries_hold_our_classes():
    assert get_trainer_cls("vapo") is VapoTrainer
    assert get_trainer_cls("vapo_colocate_async") is VapoColocateAsync
    assert get_trainer_cls("vapo_separate_async") is VapoSeparateAsync
    assert get_adv_estimator_fn("vapo").__module__ == "vapo_verl.advantage.estimator"


@pytest.mark.parametrize(
    ("ours", "upstream", "names"), OVERRIDDEN, ids=[ours.__name__ for ours, *_ in OVERRIDDEN]
)
def test_overridden_names_exist_upstream(ours, upstream, names):
    """The list is complete: a name that veRL drops, and one that ours adds, both fail here."""
    upstream = plain_class(upstream)
    assert issubclass(ours, upstream) or ours is VapoTraining  # mixed into veRL's trainers
    own = {name for name in vars(ours) if not name.startswith("__")} - MADE_BY_METACLASSES
    overriding, listed = {name for name in own if hasattr(upstream, name)}, {*names.split()}
    assert listed <= overriding, (
        f"verl {verl.__version__} has no {upstream.__name__}.{listed - overriding}: those of "
        f"{ours.__name__} override nothing; find their new names in {upstream.__module__}"
    )
    assert overriding == listed, f"add {overriding - listed} of {ours.__name__} to OVERRIDDEN"


def test_a_step_begins_only_after_the_one_before_was_logged():
    """A stop on request relies on it: what is saved between two steps is in metrics.jsonl."""
    loop = inspect.getsource(PPOTrainerSync.fit).partition("while current_epoch")[2]
    places = [
        loop.index(call)
        for call in ("self.on_step_begin()", "self._save_checkpoint()", "self.logger.log(")
    ]
    assert places == sorted(places)
    fetches = inspect.getsource(PPOTrainerSync.step).partition("_step_once")[0]
    assert "self.prepare_step()" in fetches  # data of a step are drawn after it began


def test_ray_sets_its_sigterm_handler_through_the_function_that_launch_replaces():
    import ray._private.worker

    source = inspect.getsource(ray._private.worker.init)
    assert "ray._private.utils.set_sigterm_handler(" in source
    assert "signal.signal(" not in source


def test_a_model_is_still_cast_with_its_buffers():
    from verl.workers.engine.fsdp.transformer_impl import FSDPEngine

    assert "module.to(torch_dtype)" in inspect.getsource(FSDPEngine._build_module), (
        "verl casts models in another way: restore_buffers in vapo_verl/patches/upstream.py may go"
    )


def test_verl_still_declares_the_frozen_tower_without_reading_it():
    folder = Path(verl.__file__).parent
    naming = {
        str(path.relative_to(folder))
        for path in folder.rglob("*.py")
        if "freeze_vision_tower" in path.read_text()
    }
    assert naming == {"workers/config/actor.py"}, (
        "verl reads actor.freeze_vision_tower: use_frozen_tower in vapo_verl/patches/upstream.py "
        "and FrozenTowerWorker in vapo_verl/trainer/worker.py may go"
    )


def test_an_engine_loads_its_model_then_shards_it_then_makes_the_optimizer():
    """The vision tower is frozen between the first two."""
    from verl.workers.engine.fsdp.transformer_impl import FSDPEngine

    source = inspect.getsource(FSDPEngine._build_model_optimizer)
    calls = ("module", "lora_module", "fsdp_module", "optimizer")
    places = [source.index(f"self._build_{call}(") for call in calls]
    assert places == sorted(places)
    sharding = inspect.getsource(FSDPEngine._build_fsdp_module)
    assert "use_orig_params=self.engine_config.use_orig_params" in sharding


def test_the_group_filter_still_refills_without_a_limit():
    """Once `max_num_gen_batches` has an effect, the limit of trainer/replay_buffer.py can go."""
    resolve = inspect.getsource(PPOTrainer._resolve_filter_groups_metric)
    assert "max_num_gen_batches=%s is ignored" in resolve
    for method in (ReplayBuffer.sample, ReplayBufferAsync.wait_for_sampleable):
        source = inspect.getsource(inspect.unwrap(method))
        places = [source.index(f"self.{name}(") for name in ("_evict_terminal_groups", "refill_fn")]
        assert places == sorted(places)


def test_the_group_filter_still_asks_for_a_standard_deviation_of_0():
    """Once it compares the values, `CountedReplayBuffer._classify_groups` can go."""
    source = inspect.getsource(ReplayBuffer)
    assert "float(np.std(values)) == 0.0" in source
    assert "new_finished_uids = finished_uids - classification_cache.keys()" in source


def test_the_callback_of_a_checkpoint_is_called_by_the_name_that_is_replaced():
    assert inspect.getsource(PPOTrainer._save_checkpoint).count("checkpoint_callback.on_save(") == 2
    source = inspect.getsource(PPOTrainer.__init__)
    assert "self.checkpoint_callback = build_checkpoint_callback(config)" in source


def test_an_adaptive_kl_coefficient_is_still_made_at_every_start():
    """Once veRL saves it, `write_kl_coef` and `read_kl_coef` can go."""
    assert "self.kl_ctrl_in_reward = core_algos.get_kl_controller(" in inspect.getsource(
        PPOTrainer.__init__
    )
    for method in (PPOTrainer._save_checkpoint, PPOTrainer._load_checkpoint):
        assert "kl_ctrl" not in inspect.getsource(method)


def test_the_trainer_still_makes_the_replay_buffer_by_its_name():
    assert isinstance(inspect.getattr_static(PPOTrainer, "_build_replay_buffer"), FunctionType)
    source = inspect.getsource(PPOTrainer._build_replay_buffer)
    assert "ReplayBuffer if self.trainer_mode" in source, (
        "verl's PPOTrainer chooses its replay buffer in another way: use_replay_buffers in "
        "vapo_verl/patches/upstream.py replaces that name"
    )
    for name in (
        "poll_interval",
        "partitions",
        "_wait_for_next_poll",
        "_dapo_classification_cache",
    ):
        assert f"self.{name}" in inspect.getsource(ReplayBuffer), (
            f"verl's ReplayBuffer lost {name}, which trainer/replay_buffer.py relies on"
        )


def test_agent_loops_report_through_the_methods_that_are_overridden():
    source = inspect.getsource(AgentLoopWorkerTQ.__ray_metadata__.modified_class._run_prompt)
    assert "self._run_agent_loop(" in source
    assert "logger.error(" in source  # whose lines of failures that are reported are dropped
    manager = inspect.getsource(AgentLoopManager._init_agent_loop_workers)
    assert "self.agent_loop_workers_class.options(" in manager
    assert "self.agent_loop_workers.append(" in manager


def test_the_queue_in_a_checkpoint_has_a_file_for_each_storage_unit():
    folder, pattern = STORAGE_FILES.split("/")
    assert folder == simple_storage_manager._SU_SUBDIR
    manager = simple_storage_manager.AsyncSimpleStorageManager
    assert pattern == "su_*.pkl" and 'f"su_{pos}_{su_id}.pkl"' in inspect.getsource(
        manager.save_checkpoint
    )


def test_a_run_reserves_as_many_cpus_as_its_cluster_is_checked_for():
    pools = {field.name: field.default for field in dataclasses.fields(ResourcePoolManager)}
    assert pools["max_colocate_count"] == RANK_CPUS
    assert '{"CPU": self.max_colocate_count}' in inspect.getsource(RayResourcePool)
    standalone = inspect.getsource(RolloutReplica.init_standalone)
    assert f"max_colocate_count={ENGINE_CPUS}," in standalone
    for module in (controller, simple_storage):
        assert "@ray.remote(num_cpus=1)\nclass " in inspect.getsource(module)


def test_the_queue_of_a_cluster_still_has_the_name_that_a_second_run_looks_for():
    source = inspect.getsource(transfer_queue.interface.init)
    assert 'name="{name}", namespace="{namespace}"'.format(**QUEUE) in source
    assert "lifetime" not in source, "detached, it would outlive its run and block the next"


def test_a_failed_response_is_an_entry_like_any_other():
    """Its key and tag must reach the batch, and must not count as a finished group."""
    assert 'tag.get("is_prompt", False)' in inspect.getsource(
        ReplayBuffer._sync_metadata_from_transfer_queue
    )
    assert "session_errors" in inspect.getsource(
        AgentLoopWorkerTQ.__ray_metadata__.modified_class._run_prompt
    )


def test_verls_separate_trainer_still_logs_with_an_argument_that_logging_lacks():
    """Once it does not, `mute_separate_trainer` in vapo_verl/patches/upstream.py can go."""
    assert "flush=True" in inspect.getsource(PPOTrainerSeparateAsync)


def test_interrupted_responses_are_resumed_by_the_client_that_is_extended():
    source = inspect.getsource(FullyAsyncLLMServerClient.generate)
    assert "await super().generate(" in source  # once for each part
    assert "**kwargs" in source  # the response's name reaches the server
    assert "self._submission_paused" in inspect.getsource(vLLMHttpServer._park_until_admitted)


def test_the_copy_of_weights_that_are_on_the_cpu_is_still_none():
    """Once it is one, `VapoDetachedWorker.save_model_to_cpu` can go."""
    assert ".detach().cpu()" in inspect.getsource(fsdp2_sharded_save_to_cpu)


NOT_OF_A_KEY = {
    *("skip_tokenizer_init", "distributed_executor_backend", "worker_extension_cls"),
    *("master_addr", "master_port", "node_rank", "nnodes"),
    *("data_parallel_address", "data_parallel_rpc_port"),
}
"""Arguments that veRL fills with a constant, or with what it knows of the machines."""
MERGED = {"compilation_config", "hf_overrides", "speculative_config", "kv_transfer_config"}
"""Arguments that have no key of their own: veRL adds to them, or sets them for another setting."""


def test_the_arguments_that_verl_fills_are_those_that_engine_kwargs_may_not_give():
    """In `args` and in what it is updated with; each from the key that the message names."""
    launch = ast.parse(textwrap.dedent(inspect.getsource(vLLMHttpServer.launch_server)))
    filled = {}
    for node in ast.walk(launch):
        if isinstance(node, ast.Dict):
            filled |= {k.value: v for k, v in zip(node.keys, node.values, strict=True) if k}
        elif isinstance(node, ast.Assign):
            name = re.fullmatch(r"(?:lora_)?args\['(\w+)'\]", ast.unparse(node.targets[0]))
            filled |= {name[1]: node.value} if name else {}
    del filled["image"]  # of limit_mm_per_prompt
    assert {*filled} == {*FILLED_BY_VERL, *NOT_OF_A_KEY, *MERGED}
    for name, value in filled.items():
        group, _, key = ast.unparse(value).removeprefix("self.").partition(".")
        part = {"config": "rollout", "model_config": "model"}.get(group)
        if name in FILLED_BY_VERL and part and key.isidentifier():
            assert FILLED_BY_VERL[name] == f"{part}.{key}"


def test_servers_can_be_started_again_as_they_were_started():
    """What restart_servers in vapo_verl/rollout/server.py and its callers take for granted."""
    launch = inspect.getsource(vLLMReplica.launch_servers)
    assert 'f"{prefix}server_{self.replica_rank}_{node_rank}{self.name_suffix}"' in launch
    assert "self.servers.append(server)" in launch
    lookup = inspect.getsource(ServerAdapter._ensure_server_handle)
    assert "if self.server_handle is None" in lookup and "ray.get_actor(" in lookup
    manager = inspect.getsource(LLMServerManager)
    for name in ("rollout_replicas", "server_handles", "server_addresses", "global_load_balancer"):
        assert f"self.{name} = " in manager
    worker = inspect.getsource(ActorRolloutRefWorker)
    assert 'self.base_sync_done: bool = "dummy" not in self.config.rollout.load_format' in worker
    tag = '{"is_prompt": True, "status": "pending", "global_steps": self.global_steps}'
    assert tag in inspect.getsource(PPOTrainer._submit_batch_to_rollout)


def test_workers_are_made_from_the_class_attributes_we_set():
    source = inspect.getsource(VapoWorker.__mro__[1])
    for name in ("actor_worker_cls", "ref_worker_cls"):
        assert f"self.{name}(" in source, f"ActorRolloutRefWorker no longer makes self.{name}"


def test_the_pointer_verl_reads_is_the_one_we_write():
    from verl.utils.checkpoint.checkpoint_manager import get_checkpoint_tracker_filename

    from vapo_verl.run_folder.checkpoints import POINTER

    assert get_checkpoint_tracker_filename("run").endswith(f"run/{POINTER}")


def test_the_names_that_settings_allow_are_those_of_verls_registries():
    """A new estimator, loss, aggregation or penalty of veRL's would be refused."""
    from verl.trainer.ppo import core_algos

    from vapo_verl.settings import CHOICES, REGISTERED

    estimators = REGISTERED["algorithm.adv_estimator"]
    assert {*estimators} == {str(name) for name in core_algos.ADV_ESTIMATOR_REGISTRY}
    losses = REGISTERED["actor_rollout_ref.actor.policy_loss.loss_mode"]
    assert {*losses} == {*core_algos.POLICY_LOSS_REGISTRY}
    aggregation = inspect.getsource(core_algos.agg_loss)
    in_source = set(re.findall(r'"((?:token|seq)-[a-z-]+)"', aggregation))
    assert {*CHOICES["actor_rollout_ref.actor.loss_agg_mode"]} == in_source
    penalties = inspect.getsource(core_algos.kl_penalty_forward)
    assert {*CHOICES["actor_rollout_ref.actor.kl_loss_type"]} >= set(
        re.findall(r'"((?:low_var_)?kl|k\d|abs|mse)"', penalties)
    )


def test_libraries_of_a_user_are_modules_one_by_one(tmp_path, monkeypatch):
    """What settings.py checks: one module or a list of them, and no text with commas."""
    from omegaconf import OmegaConf
    from verl.utils.config import omega_conf_to_dataclass
    from verl.utils.import_utils import import_external_libs
    from verl.workers.config import HFModelConfig

    source = inspect.getsource(HFModelConfig.__post_init__)
    assert "import_external_libs(self.external_lib)" in source
    names = ["library_of_mine_a", "library_of_mine_b"]
    for name in names:
        (tmp_path / f"{name}.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    model = omega_conf_to_dataclass(OmegaConf.create({"_target_": "builtins.dict", "libs": names}))
    import_external_libs(model["libs"])
    assert all(sys.modules.pop(name) for name in names)
    with pytest.raises(ModuleNotFoundError):
        import_external_libs(",".join(names))


def test_the_trainer_knows_what_ranks_and_agent_loops_do():
    """By the name that Ray gives an actor's class: their progress counts by their role."""
    import ray
    from verl.single_controller.ray.base import RayClassWithInitArgs, create_colocated_worker_cls

    from vapo_verl.trainer.liveness import LOOP, RANK, role_of

    def role(actor_class):
        metadata = actor_class.__ray_metadata__
        return role_of(metadata.actor_creation_function_descriptor.class_name)

    worker = RayClassWithInitArgs(cls=ray.remote(VapoWorker), config=None, role="actor")
    assert role(create_colocated_worker_cls({"actor": worker}).cls) == RANK
    assert role(ray.remote(VapoAgentLoopWorker)) == LOOP
