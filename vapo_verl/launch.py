"""Start a run: check it, prepare the environment, hand it to veRL."""

import contextlib
import os
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import Any

from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from vapo_verl.config import value_at, vapo_config
from vapo_verl.console import Console, phases, say
from vapo_verl.files import FolderLock, FolderLocked, obstacle
from vapo_verl.patches.upstream import keep_sigterm_handler
from vapo_verl.platform import CPU_ENVIRONMENT
from vapo_verl.preflight import PASSES, InputError, check_run, lacks_flash_attention, ranks_of
from vapo_verl.process_tree import LEAST_SHARED_BYTES, SHARED_MEMORY, guarded_run
from vapo_verl.rollout.correction import BYPASS_LOSS, needs_bypass_loss
from vapo_verl.rollout.engine_args import add_attention, settle_image_limit
from vapo_verl.run_folder import resume
from vapo_verl.run_folder.checkpoints import (
    MARKER,
    checkpoint_folder,
    damage_message,
    latest_complete,
    require_intact,
    resume_point,
    verify_checkpoint,
)
from vapo_verl.run_folder.layout import CONFIG_FILE, METRICS_FILE, REPORT_FILE
from vapo_verl.run_folder.metrics import is_validated
from vapo_verl.settings import MAX_COUNT, check_settings
from vapo_verl.trainer.stopping import AnnouncedActor, RunStopped, StopSignals
from vapo_verl.trainer.trackers import check_trackers, unused

OF_A_NEW_CLUSTER = ("num_cpus", "num_gpus", "resources", "labels", "object_store_memory")
"""Arguments that ``ray.init`` refuses when it joins a cluster."""

DEBUG_TRAINERS = {"save_rollouts": "vapo_saving", "train_only": "vapo_replay"}
"""Keys of ``vapo.debug`` -> the trainer that implements it, see :mod:`vapo_verl.trainer.replay`."""

LOCK_WAIT_S, REQUEUE_WAIT_S = 20.0, 120.0
"""Seconds that a start waits for a run in its folder to end; the second after a Slurm requeue. A
killed run keeps the folder until its guard has ended all its processes, up to 12 s."""
SDPA_MICRO_BATCH = 2
"""Sequences in a micro-batch without flash-attn. Two of 4096 + 2048 tokens, padded, are 12288,
within the 16384 that the recipes allow a 7B model on a GPU of 80 GB."""


class ProcessDied(RuntimeError):
    """A process of the run died or hangs, or responses failed; the message is for the user."""


class RunInterrupted(RuntimeError):
    """Ctrl-C ended the run; the message says what is saved."""


def launch(config: DictConfig) -> None:
    """Run the composed config to its last step; returns at once if that step is already saved.

    Raises:
        InputError: the config or the data cannot work; nothing was started.
        RunStopped: the run was asked to stop by SIGTERM or SIGUSR1.
        ProcessDied: a process of the run died or hangs.
        RunInterrupted: Ctrl-C.
    """
    with StopSignals() as signals:
        _launch(config, signals)


def after_a_stop(config: DictConfig, step: int | None) -> str:
    """Where a run stopped on request, and what the same command does now.

    Args:
        step: of :class:`RunStopped`.
    """
    if step is None:
        return "Stopped on request before the first step; the same command resumes."
    start = resume.start_of(config.trainer)
    if start.mode == "auto":
        return f"Stopped on request at step {step}; the same command resumes."
    from vapo_verl.trainer.liveness import outlook

    return f"Stopped on request at step {step}. {outlook(start)}"


def _launch(config: DictConfig, signals: StopSignals) -> None:
    derived = resume.references(plain(config, resolve=False))
    with input_errors():
        check_settings(config)
        settle(config)
        check_run_folder(config)
        compare_with_folder(config, derived)
    if nothing_is_left(config):
        return
    with input_errors():
        check_shared_memory()
    for note in check_run(config):
        print(note)
    check_loggers(config)
    export_attention(config)
    set_environment(config)
    separate_trackers(config)
    join_cluster(config)
    with run_folder_lock(config) as lock:
        with input_errors():  # another start may have come first
            compare_with_folder(config, derived, tell=False)
        if nothing_is_left(config):
            return
        with (
            open_console(config) as console,
            guarded_run(held=[lock.fileno()]) as temporary,
        ):
            look_for_damage(config)
            use_temporary_folder(config, temporary)
            validate_as_verl_does(config)
            train(config, signals)
    print(f"Done. Results in {config.trainer.default_local_dir}, the full log in {console.log}")


@contextlib.contextmanager
def input_errors() -> Iterator[None]:
    """Turn errors of checks and of references in the config into :class:`InputError`."""
    try:
        yield
    except (ValueError, OmegaConfBaseException) as error:
        raise InputError(str(error)) from error


def plain(config: DictConfig, *, resolve: bool = True) -> dict[str, Any]:
    """The config as dicts and lists."""
    return OmegaConf.to_container(config, resolve=resolve)  # type: ignore[return-value]


def open_console(config: DictConfig) -> Console:
    """The run's console and log.

    Raises:
        InputError: the run folder cannot be written.
    """
    folder = Path(config.trainer.default_local_dir)
    try:
        return Console(folder, config.vapo.logging.console)
    except OSError as error:
        raise unusable_folder(folder, error) from error


def unusable_folder(folder: Path, reason: object) -> InputError:
    return InputError(
        f"trainer.default_local_dir={folder} cannot be written: {reason}; name a folder that "
        "you may write"
    )


def check_run_folder(config: DictConfig) -> None:
    """Refuse a run folder that cannot be made or written, before the slow checks.

    Raises:
        InputError: with the reason.
    """
    folder = Path(config.trainer.default_local_dir)
    if reason := obstacle(folder):
        raise unusable_folder(folder, reason)


def check_shared_memory(folder: Path = SHARED_MEMORY) -> None:
    """Refuse a machine whose shared memory is full: later errors would not name the cause.

    Raises:
        ValueError: there is less than :data:`LEAST_SHARED_BYTES`.
    """
    free = shutil.disk_usage(folder).free
    if free < LEAST_SHARED_BYTES:
        raise ValueError(
            f"{folder} has {free / 2**20:.0f} MiB free, and an engine and its weights need "
            f"{LEAST_SHARED_BYTES / 2**20:.0f} MiB or more: delete what earlier programs left "
            "there, or enlarge it (docker run --ipc=host, or --shm-size=8g)"
        )


def run_folder_lock(config: DictConfig) -> contextlib.AbstractContextManager[FolderLock]:
    """Lock the run folder while this process runs; a second run in it is refused.

    After a requeue the previous run may still be ending, so the lock waits longer.

    Raises:
        InputError: on entry, another run has the folder, or it cannot be written.
    """
    folder = Path(config.trainer.default_local_dir)
    lock = FolderLock(
        folder,
        wait_s=wait_for_a_run_s(),
        fix="wait for it, or set trainer.default_local_dir to another folder",
    )

    @contextlib.contextmanager
    def held() -> Iterator[FolderLock]:
        try:
            lock.__enter__()
        except FolderLocked as error:
            raise InputError(f"trainer.default_local_dir={error}") from error
        except OSError as error:
            raise unusable_folder(folder, error) from error
        try:
            yield lock
        finally:
            lock.__exit__()

    return held()


def wait_for_a_run_s() -> float:
    """Seconds in which a run that is ending gives back its folder and its Ray cluster."""
    queued_again = os.environ.get("SLURM_RESTART_COUNT", "0") not in ("", "0")
    return REQUEUE_WAIT_S if queued_again else LOCK_WAIT_S


def compare_with_folder(
    config: DictConfig, derived: Mapping[str, str], *, tell: bool = True
) -> None:
    """Refuse a start that would mix two runs in a folder; print the other changed settings.

    A start that only validates changes nothing in the folder: it only has to load the checkpoint.

    Args:
        derived: keys that refer to other keys, by :func:`vapo_verl.run_folder.resume.references`.

    Raises:
        OtherRun: the folder's checkpoint is of another model, data, seed, reward or method; or the
            run is finished, and this command asks for another one; or the folder holds later steps
            than the one that this command begins with; or the checkpoint would undo a setting.
    """
    start = resume.start_of(config.trainer)
    resume.refuse_later_steps(start)
    if start.checkpoint is None:
        return
    settings, ranks = plain(config), ranks_of(config)
    last = None if start.val_only else resume.last_step(start.run_dir, settings)
    reached = last if last is not None and start.step >= last else None
    changes: list[resume.Change] = []
    if start.mode == "auto":
        inputs = resume.inputs_of(settings)
        changes = resume.changes_since(start.run_dir, settings, inputs, derived)
        if reached is not None:
            resume.refuse_finished_run(start, changes, reached)
            return
        if not start.val_only:
            accepted = config.vapo.accept_changes
            resume.refuse_other_run(start.run_dir, changes, accepted, start.step)
    elif reached is not None:
        raise resume.OtherRun(resume.nothing_to_train(start.checkpoint, reached))
    if not start.val_only:
        resume.refuse_other_optimizer(start.checkpoint, settings)
    resume.refuse_other_ranks(start.checkpoint, ranks)
    resume.refuse_other_shards(start.checkpoint, settings, ranks)
    mode, num_units = config.trainer.v1.trainer_mode, value_at(settings, resume.STORAGE_UNITS)
    resume.refuse_other_storage(start.checkpoint, mode, num_units)
    resume.refuse_other_adapters(start.checkpoint, config.actor_rollout_ref.model.lora_rank)
    if tell and changes:
        lines = "\n".join(f"  {change}" for change in changes)
        print(
            f"{start.run_dir} holds step {start.step}; since its start these settings have "
            f"changed:\n{lines}"
        )


def settle(config: DictConfig) -> None:
    """Resolve here, once, every value that another process could read differently.

    It does not check the config: :func:`vapo_verl.preflight.check_run` does.
    """
    use_sdpa_if_allowed(config)
    OmegaConf.resolve(config)  # the workers lack this package's resolvers
    make_paths_absolute(config)
    settle_image_limit(config)
    use_bypass_loss_where_needed(config)
    settle_debug(config)


def use_bypass_loss_where_needed(config: DictConfig) -> None:
    """Choose veRL's loss for a correction in bypass mode, as veRL's older trainer does.

    Its V1 trainers keep the configured loss, which ignores rejection and ``reinforce``.
    """
    correction = config.algorithm.get("rollout_correction")
    loss = config.actor_rollout_ref.actor.policy_loss
    if needs_bypass_loss(correction) and loss.loss_mode == "vanilla":
        with open_dict(config):
            loss.loss_mode, loss.rollout_correction = BYPASS_LOSS, correction


def settle_debug(config: DictConfig) -> None:
    """Translate ``vapo.debug`` into settings of veRL.

    Raises:
        ValueError: this trainer cannot separate rollouts from training, or the saved rollouts
            cannot be trained on.
    """
    debug, trainer = config.vapo.debug, config.trainer
    asked = [name for name in ("save_rollouts", "train_only", "rollout_only") if debug[name]]
    if asked and trainer.v1.trainer_mode not in ("vapo", *DEBUG_TRAINERS.values()):
        raise ValueError(
            f"vapo.debug.{asked[0]}={debug[asked[0]]!r} with trainer.v1.trainer_mode="
            f"{trainer.v1.trainer_mode}: there a step is no batch by itself; set "
            "trainer.v1.trainer_mode=vapo"
        )
    for name, mode in DEBUG_TRAINERS.items():
        if debug[name]:
            debug[name], trainer.v1.trainer_mode = _absolute(debug[name]), mode
    if debug.save_rollouts and (reason := obstacle(Path(debug.save_rollouts))):
        raise ValueError(
            f"vapo.debug.save_rollouts={debug.save_rollouts} cannot be written: {reason}; name a "
            "folder that you may write"
        )
    if trainer.val_only and debug.train_only:
        raise ValueError(
            f"trainer.val_only=true with vapo.debug.train_only={debug.train_only}: nothing is "
            "validated there; leave one of them out"
        )
    if trainer.val_only:
        trainer.val_before_train = True  # veRL reads val_only only if this is set
    if debug.rollout_only:  # veRL does not update the actor during the critic's warm-up
        trainer.critic_warmup, trainer.save_freq = MAX_COUNT, -1
    if debug.train_only:
        from vapo_verl.trainer.replay import check_saved, without_engine

        check_saved(config)
        without_engine(config)


def use_sdpa_if_allowed(config: DictConfig) -> None:
    """With ``vapo.allow_sdpa`` and no flash-attn: sdpa, and micro-batches of few sequences.

    A micro-batch size that the config gives is kept. Without ``vapo.allow_sdpa`` nothing changes
    here; :func:`vapo_verl.preflight.check_attention_kernel` refuses the run.
    """
    if not (lacks_flash_attention(config) and config.vapo.allow_sdpa):
        return
    policy = config.actor_rollout_ref
    with open_dict(config):
        policy.model.use_remove_padding = False
        OmegaConf.update(policy, "model.override_config.attn_implementation", "sdpa")
        for size_key, (dynamic_key, _) in PASSES.items():
            OmegaConf.update(policy, dynamic_key, False)
            if OmegaConf.select(policy, size_key) is None:
                OmegaConf.update(policy, size_key, SDPA_MICRO_BATCH)
    sizes = ", ".join(f"{key}={OmegaConf.select(policy, key)}" for key in PASSES)
    print(
        "flash-attn is not installed and vapo.allow_sdpa=true: training with sdpa on padded "
        f"sequences, which is slower; {sizes}."
    )


def check_loggers(config: DictConfig) -> None:
    """Refuse a tracker whose package is missing, before any process of the run starts.

    Raises:
        InputError: with the fix.
    """
    loggers = config.trainer.logger
    try:
        check_trackers([loggers] if isinstance(loggers, str) else loggers)
    except ValueError as error:
        raise InputError(str(error)) from error


def export_attention(config: DictConfig) -> None:
    """Set the engine arguments for ``vapo.attention``."""
    try:
        settings = vapo_config(OmegaConf.to_container(config.vapo, resolve=True))  # type: ignore[arg-type]
        add_attention(config, settings.attention)
    except ValueError as error:
        raise InputError(str(error)) from error


def make_paths_absolute(config: DictConfig) -> None:
    """Make paths absolute: workers do not share the driver's working directory."""
    config.trainer.default_local_dir = str(
        Path(config.trainer.default_local_dir).expanduser().absolute()
    )
    function, judge = config.reward.get("custom_reward_function"), config.vapo.reward.judge
    if function and function.path and "://" not in function.path:
        function.path = _absolute(function.path)
    if judge.cache_dir:
        judge.cache_dir = _absolute(judge.cache_dir)
    for key in ("train_files", "val_files"):
        files = config.data[key]
        if isinstance(files, str):
            config.data[key] = _absolute(files)
        else:
            config.data[key] = [_absolute(file) for file in files]
    if config.trainer.resume_from_path:
        config.trainer.resume_from_path = _absolute(config.trainer.resume_from_path)
    if adapter := config.actor_rollout_ref.model.get("lora_adapter_path"):
        config.actor_rollout_ref.model.lora_adapter_path = _absolute(adapter)
    model = Path(config.actor_rollout_ref.model.path).expanduser()
    if model.exists():
        config.actor_rollout_ref.model.path = str(model.absolute())


def _absolute(file: str) -> str:
    return file if "://" in file else str(Path(file).expanduser().absolute())


def nothing_is_left(config: DictConfig) -> bool:
    """Whether the run is finished, with its last validation; prints a note if so."""
    if not is_finished(config) or lacks_validation(config):
        return False
    write_missing_report(Path(config.trainer.default_local_dir))
    print(
        f"{config.trainer.default_local_dir} already holds step {last_step(config)}: nothing to "
        "do. To go on, raise trainer.total_training_steps, or trainer.total_epochs where that is "
        "null; to start again, name another trainer.default_local_dir."
    )
    return True


def last_step(config: DictConfig) -> int | None:
    """The last step of the run; None if it depends on data that no start has counted."""
    run_dir = Path(config.trainer.default_local_dir)
    return resume.last_step(run_dir, plain(config))


def is_finished(config: DictConfig) -> bool:
    """Whether the run folder holds a complete and intact checkpoint of the last step."""
    trainer = config.trainer
    if trainer.resume_mode != "auto" or trainer.val_only:
        return False
    run_dir = Path(trainer.default_local_dir)
    done, last = latest_complete(run_dir), last_step(config)
    if done is None or last is None or done < last:
        return False
    return not verify_checkpoint(checkpoint_folder(run_dir, done))


def look_for_damage(config: DictConfig) -> None:
    """Compare the sizes of checkpoint files before anything starts; the trainer compares contents.

    Raises:
        CheckpointError: no checkpoint of the run folder has all its files in full, or that of
            ``trainer.resume_from_path`` has not.
    """
    start = resume.start_of(config.trainer)
    if start.mode == "resume_path" and start.checkpoint is not None:
        require_intact(start.checkpoint, sizes_only=True)
        if is_unfinished(start.checkpoint):
            say(
                f"WARNING: trainer.resume_from_path={start.checkpoint} holds no {MARKER}: its run "
                "ended before the checkpoint was complete, or a copy left it out. It is used "
                "unverified; a file that was cut off ends the run while it is loaded"
            )
    if start.mode != "auto":
        return
    point = resume_point(start.run_dir, sizes_only=True)
    for step, problems in point.damaged.items():
        damage = damage_message(checkpoint_folder(start.run_dir, step), problems)
        say(f"WARNING: {damage}; the run falls back to step {point.step}")


def is_unfinished(checkpoint: Path) -> bool:
    """Whether a checkpoint in a run folder of this package was never declared complete."""
    return (checkpoint.parent / CONFIG_FILE).is_file() and not (checkpoint / MARKER).is_file()


def lacks_validation(config: DictConfig) -> bool:
    """Whether a finished run was killed before its last validation, and has no result of it."""
    run_dir, last = Path(config.trainer.default_local_dir), last_step(config)
    if last is None or config.trainer.test_freq <= 0 or latest_complete(run_dir) != last:
        return False
    return not is_validated(run_dir, last)


def write_missing_report(run_dir: Path) -> None:
    """Write the report of a finished run that was killed before writing it."""
    report, metrics = run_dir / REPORT_FILE, run_dir / METRICS_FILE
    if not metrics.exists():
        return
    if not report.exists() or report.stat().st_mtime < metrics.stat().st_mtime:
        from vapo_verl.report.live import write_final_report  # numpy and pyarrow

        write_final_report(run_dir)
        print(f"{report} was missing or older than the metrics: written.")


def separate_trackers(config: DictConfig) -> None:
    """With ``trainer.val_only``, let trackers leave the run's files as they are.

    veRL's file logger would overwrite its file, and TensorBoard would draw a line from the run's
    last step back to the validated one. Variables that are set are kept.
    """
    if not config.trainer.val_only:
        return
    run_dir = Path(config.trainer.default_local_dir)
    places = {
        "TENSORBOARD_DIR": run_dir / "tensorboard" / "validation",
        "VERL_FILE_LOGGER_PATH": unused(run_dir / "verl_validation.jsonl"),
    }
    for name, path in places.items():
        key = f"ray_kwargs.ray_init.runtime_env.env_vars.{name}"
        if name not in os.environ and OmegaConf.select(config, key) is None:
            OmegaConf.update(config, key, str(path), force_add=True)


def set_environment(config: DictConfig) -> None:
    """Environment of this process and of all Ray workers; needed before verl is imported."""
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # bytecode speeds up a dozen processes
    if config.trainer.device != "cpu":
        return
    os.environ.update(CPU_ENVIRONMENT)
    with open_dict(config):
        env_vars = OmegaConf.select(config, "ray_kwargs.ray_init.runtime_env.env_vars") or {}
        config.ray_kwargs.ray_init.runtime_env.env_vars = {**CPU_ENVIRONMENT, **env_vars}


def use_temporary_folder(config: DictConfig, folder: Path) -> None:
    """Let the processes of the run keep sockets and locks in `folder`, removed after the run.

    Ray's sessions and compiled kernels stay where they are, for the next run. A cluster that the
    run joins keeps its own folders: other nodes do not have this one.
    """
    if joined_cluster(config.ray_kwargs.ray_init.get("address")) is not None:
        return
    kernels = Path(tempfile.gettempdir()) / f"torchinductor_{os.getuid()}"
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(kernels))
    os.environ.setdefault("RAY_TMPDIR", os.environ.get("TMPDIR", "/tmp"))
    os.environ["TMPDIR"] = str(folder)


def join_cluster(config: DictConfig) -> None:
    """When joining a cluster, drop resource arguments: `ray start` has set them.

    Raises:
        InputError: several nodes are asked for, and there is no cluster to join.
    """
    ray_init, nodes = config.ray_kwargs.ray_init, config.trainer.nnodes
    cluster = joined_cluster(ray_init.get("address"))
    if cluster is None:
        if nodes > 1:
            raise InputError(
                f"trainer.nnodes={nodes}, but there is no Ray cluster to join; start Ray on every "
                "node and set RAY_ADDRESS=HEAD:PORT"
            )
        return
    given = [key for key in OF_A_NEW_CLUSTER if ray_init.get(key) is not None]
    for key in given:
        ray_init[key] = None
    left = f"; `ray start` decides {', '.join(given)}" if given else ""
    print(f"Joining the Ray cluster at {cluster}{left}.")


def validate_as_verl_does(config: DictConfig) -> None:
    """Run veRL's checks of the config; their assertions become input errors."""
    from verl.trainer.ppo.utils import need_critic, need_reference_policy
    from verl.utils.config import validate_config
    from verl.utils.device import auto_set_device

    auto_set_device(config)
    try:
        validate_config(
            config,
            use_reference_policy=need_reference_policy(config),
            use_critic=need_critic(config),
        )
    except (AssertionError, ValueError) as error:
        raise InputError(f"veRL refuses the config: {error}") from error
    except HydraException as error:  # from a group that veRL instantiates
        raise InputError(f"veRL refuses the config: {' '.join(str(error).split())}") from error


def train(config: DictConfig, signals: StopSignals) -> None:
    """Start Ray, or join the cluster that RAY_ADDRESS names, and train.

    Raises:
        InputError: the cluster has no place for the run, or another run uses it; or the trainer's
            process read the model's config.json, and cannot train it.
        RunStopped: one of ``signals`` was received.
        ProcessDied: a process of the run died or hangs.
        RunInterrupted: Ctrl-C.
    """
    import ray
    from verl.trainer.main_ppo import run_ppo

    from vapo_verl.trainer.liveness import RunFailed, RunnerWatch, outlook
    from vapo_verl.trainer.task_runner import (
        RUNNER,
        STOP_GROUP,
        VapoTaskRunner,
        check_room,
        create_alone,
    )

    keep_sigterm_handler()
    ended = threading.Event()
    runners: list[str] = []
    start = resume.start_of(config.trainer)
    watch = RunnerWatch(config.vapo.rollout.timeout_s, start)

    def stop(runner: Any) -> None:
        with suppress(ray.exceptions.RayError):  # the run has just ended by itself
            if not ray.get(runner.request_stop.remote()):
                ended.set()
                ray.kill(runner)

    def started(runner: Any) -> None:
        phases.end()
        runners.append(runner._actor_id.hex())
        signals.forward_to(lambda: stop(runner))
        watch.start(runner)

    def create(actor_class: Any) -> Any:
        check_room(config)
        return create_alone(actor_class, wait_for_a_run_s())

    runner_class = AnnouncedActor(
        ray.remote(concurrency_groups={STOP_GROUP: 1})(VapoTaskRunner), started, create, **RUNNER
    )
    phases.begin("Ray")
    try:
        run_ppo(config, task_runner_class=runner_class)
    except ray.exceptions.RayError as error:
        cause = cause_of(error)
        if isinstance(cause, InputError):
            raise InputError(str(cause)) from error
        failure = str(cause) if isinstance(cause, RunFailed) else watch.failure
        if failure is not None:
            raise ProcessDied(failure) from error
        if not isinstance(cause, ray.exceptions.RayActorError):
            raise
        if ended.is_set():
            raise RunStopped(None) from error
        raise ProcessDied(f"{death_message(cause, runners)}\n{outlook(start)}") from error
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second one would interrupt the clean-up
        if watch.failure is not None:
            raise ProcessDied(watch.failure) from None
        raise RunInterrupted(f"interrupted (Ctrl-C). {outlook(start)}") from None
    finally:
        watch.stop()
        shut_down_ray()


def shut_down_ray() -> None:
    """End Ray's processes, even if the disk is full.

    Ray first prints the last output of its workers, and raises if the log cannot be written.
    """
    import ray

    try:
        ray.shutdown()
    except OSError:
        with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
            ray.shutdown()


def cause_of(error: Exception) -> Exception:
    """The first error, in whichever process it occurred."""
    import ray

    while isinstance(error, ray.exceptions.RayTaskError):
        error = error.cause
    return error


def death_message(cause: Exception, runners: Collection[str]) -> str:
    """Ray's report on a dead process, without the stacks of the processes that waited for it.

    Args:
        cause: as :func:`cause_of` finds it.
        runners: ids of the actors that own a trainer.
    """
    is_runner = getattr(cause, "actor_id", None) in runners
    who = "the trainer's process (VapoTaskRunner)" if is_runner else "a process of the run"
    return (
        f"{who} died. {cause}\n"
        "Once the cause is fixed and all nodes are back (`ray status`), the same command resumes "
        "(with trainer.resume_mode=auto, the default)."
    )


def composed(recipe: str, overrides: Sequence[str]) -> DictConfig:
    """The recipe's config, settled as for a run. Its printed output goes to stderr.

    Raises:
        hydra.errors.HydraException, omegaconf.errors.OmegaConfBaseException: no such recipe or key.
        ValueError: a value that no run can have.
    """
    from vapo_verl.hydra_config import compose_recipe

    config = compose_recipe(recipe, overrides)
    check_settings(config)
    with contextlib.redirect_stdout(sys.stderr):
        settle(config)
    return config


def address_file(environment: Mapping[str, str] | None = None) -> Path:
    """The file in which `ray start` stores its address; None: this process's environment."""
    environment = os.environ if environment is None else environment
    temporary = environment.get("RAY_TMPDIR") or environment.get("TMPDIR") or "/tmp"
    return Path(temporary) / "ray" / "ray_current_cluster"


def joined_cluster(
    address: str | None = None, environment: Mapping[str, str] | None = None
) -> str | None:
    """Address of the cluster that ``ray.init(address=address)`` joins; None if it starts one.

    An explicit address comes first, then ``RAY_ADDRESS``, then a cluster that `ray start` left on
    this machine. ``local`` in the first two requests a new cluster.
    """
    environment = os.environ if environment is None else environment
    if address in (None, "", "auto"):
        address = environment.get("RAY_ADDRESS") or address
    if address == "local":
        return None
    if address in (None, "", "auto"):
        left_here = address_file(environment)
        return left_here.read_text().strip() if left_here.is_file() else address or None
    return address
