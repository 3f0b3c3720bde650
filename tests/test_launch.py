"""What is settled before a run starts: kernels, paths, environment, and whether it is needed."""

import contextlib
import importlib.util
import json
import os
import shutil
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import SimpleNamespace

import pytest
from omegaconf import DictConfig, OmegaConf

from tests.checkpoints import mark_complete
from tests.composing import compose_once
from vapo_verl import launch, preflight
from vapo_verl.hydra_config import recipe_names
from vapo_verl.launch import address_file
from vapo_verl.platform import CPU_ENVIRONMENT
from vapo_verl.preflight import InputError
from vapo_verl.run_folder.checkpoints import CheckpointError, checkpoint_folder, set_aside
from vapo_verl.run_folder.metrics import MetricsFile


@pytest.fixture
def flash_attention(monkeypatch):
    """Make flash-attn look installed, or not."""
    find_spec = importlib.util.find_spec

    def look(installed: bool) -> None:
        def find(name, *rest):
            if name == "flash_attn":
                return ModuleSpec(name, None) if installed else None
            return find_spec(name, *rest)

        monkeypatch.setattr(importlib.util, "find_spec", find)

    return look


def actor_kernel(config):
    model = config.actor_rollout_ref.model
    packed = (model.use_remove_padding, config.actor_rollout_ref.actor.use_remove_padding)
    return OmegaConf.select(model, "override_config.attn_implementation"), packed


def micro_batches(config):
    """(by tokens, sequences) of the update, the reference pass and the old policy's pass."""
    policy = config.actor_rollout_ref
    return [
        (OmegaConf.select(policy, dynamic), OmegaConf.select(policy, size))
        for size, (dynamic, _) in preflight.PASSES.items()
    ]


def test_without_flash_attention_settling_changes_nothing_and_the_check_refuses(
    flash_attention, capsys
):
    config = compose_once("vapo")
    flash_attention(False)
    launch.settle(config)
    assert actor_kernel(config) == (None, (True, True))
    assert capsys.readouterr().out == ""
    with pytest.raises(ValueError, match=r"make setup EXTRA=gpu FLASH_ATTN=1.*vapo-verl:gpu") as no:
        preflight.check_attention_kernel(config)
    assert "vapo.allow_sdpa=true" in str(no.value)


GPU_RECIPES = [name for name in recipe_names() if compose_once(name).trainer.device != "cpu"]


@pytest.mark.parametrize("recipe", GPU_RECIPES)
def test_sdpa_where_it_is_allowed_pads_two_sequences_and_says_so(recipe, flash_attention, capsys):
    config = compose_once(recipe, ["vapo.allow_sdpa=true"])
    given = [size for _, size in micro_batches(config)]
    flash_attention(False)
    launch.settle(config)
    assert actor_kernel(config) == ("sdpa", (False, False))
    assert micro_batches(config) == [(False, size or 2) for size in given]
    assert "vapo.allow_sdpa=true: training with sdpa" in capsys.readouterr().out
    preflight.check_attention_kernel(config)
    preflight.check_micro_batches(config)
    preflight.check_padding(config)
    launch.validate_as_verl_does(config)


def test_sdpa_keeps_the_micro_batches_that_a_config_gives(flash_attention):
    overrides = [
        "vapo.allow_sdpa=true",
        "actor_rollout_ref.actor.use_dynamic_bsz=false",
        "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=1",
        "actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu=4",
    ]
    config = compose_once("vapo", overrides)
    flash_attention(False)
    launch.settle(config)
    assert micro_batches(config) == [(False, 1), (False, 4), (False, 2)]


@pytest.mark.parametrize("allowed", [False, True])
def test_with_flash_attention_sequences_are_packed_and_verls_default_kernel_stands(
    flash_attention, capsys, allowed
):
    config = compose_once("vapo", [f"vapo.allow_sdpa={allowed}"])
    flash_attention(True)
    launch.settle(config)
    assert actor_kernel(config) == (None, (True, True))  # veRL's default is flash_attention_2
    assert micro_batches(config) == [(True, None)] * 3
    assert capsys.readouterr().out == ""
    preflight.check_attention_kernel(config)


def test_settled_configs_hold_no_reference_and_no_relative_path(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("VAPO_DATA_DIR", raising=False)
    config = compose_once("smoke", ["data.val_files=[a.parquet,b.parquet]"])
    launch.settle(config)
    assert "${" not in OmegaConf.to_yaml(config)
    assert config.trainer.default_local_dir == str(tmp_path / "runs" / "smoke")
    assert config.data.train_files == str(tmp_path / "runs/data/digits/train.parquet")
    assert config.data.val_files == [str(tmp_path / "a.parquet"), str(tmp_path / "b.parquet")]
    assert Path(config.actor_rollout_ref.model.path).is_absolute()


@pytest.mark.parametrize(("given", "home"), [("adapters/one", "."), ("~/adapters/one", "home")])
def test_workers_find_an_adapter_that_is_named_from_here(monkeypatch, tmp_path, given, home):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    config = compose_once("smoke_lora", [f"actor_rollout_ref.model.lora_adapter_path='{given}'"])
    launch.settle(config)
    expected = tmp_path / home / "adapters" / "one"
    assert config.actor_rollout_ref.model.lora_adapter_path == str(expected)


def test_a_hub_name_is_no_path(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    config = compose_once("vapo")
    launch.settle(config)
    assert config.actor_rollout_ref.model.path == "Qwen/Qwen2.5-VL-7B-Instruct"


@pytest.mark.parametrize(("saved", "finished"), [(None, False), (5, False), (6, True), (8, True)])
def test_a_run_is_finished_once_its_last_step_is_saved_whole(tmp_path, saved, finished):
    config = compose_once("smoke", [f"trainer.default_local_dir={tmp_path}"])
    if saved:
        checkpoint_folder(tmp_path, saved).mkdir()
        mark_complete(tmp_path, saved)
    assert launch.is_finished(config) is finished


def finished_run(folder: Path, *overrides: str) -> DictConfig:
    """The config of a run whose last step, 6, is saved, logged, and not validated."""
    MetricsFile(folder / "metrics.jsonl", 0).log({"vapo/reward/total": 1.0}, 6)
    checkpoint_folder(folder, 6).mkdir()
    (checkpoint_folder(folder, 6) / "data.pt").write_bytes(b"data")
    mark_complete(folder, 6)
    return compose_once("smoke", [f"trainer.default_local_dir={folder}", *overrides])


def test_a_damaged_last_checkpoint_is_no_finished_run(tmp_path):
    config = finished_run(tmp_path)
    assert launch.is_finished(config)
    (checkpoint_folder(tmp_path, 6) / "data.pt").write_bytes(b"dat")
    assert not launch.is_finished(config)


def test_cut_files_are_named_before_anything_starts(tmp_path, capsys):
    config = finished_run(tmp_path)
    checkpoint_folder(tmp_path, 4).mkdir()
    (checkpoint_folder(tmp_path, 4) / "data.pt").write_bytes(b"data")
    mark_complete(tmp_path, 4)
    launch.look_for_damage(config)
    assert capsys.readouterr().out == ""
    (checkpoint_folder(tmp_path, 6) / "data.pt").write_bytes(b"dat")
    launch.look_for_damage(config)
    said = capsys.readouterr().out
    assert "data.pt: expected 4 bytes, found 3 bytes; the run falls back to step 4" in said
    (checkpoint_folder(tmp_path, 4) / "data.pt").unlink()
    with pytest.raises(CheckpointError, match="No intact checkpoint is left"):
        launch.look_for_damage(config)


def test_a_given_checkpoint_is_looked_at_before_anything_starts(tmp_path, capsys):
    """`resume_path` may name one that is cut, was set aside, or was never complete."""
    finished_run(tmp_path)
    chosen = checkpoint_folder(tmp_path, 6)
    config = compose_once(
        "smoke",
        [
            f"trainer.default_local_dir={tmp_path / 'branch'}",
            "trainer.resume_mode=resume_path",
            f"trainer.resume_from_path={chosen}",
        ],
    )
    launch.look_for_damage(config)
    (chosen / "data.pt").write_bytes(b"dat")
    with pytest.raises(CheckpointError, match=r"data\.pt: expected 4 bytes, found 3 bytes"):
        launch.look_for_damage(config)
    set_aside(tmp_path, 6)
    with pytest.raises(CheckpointError, match=r"rename damaged\.json to complete\.json"):
        launch.look_for_damage(config)
    assert capsys.readouterr().out == ""
    (chosen / "damaged.json").unlink()
    launch.look_for_damage(config)  # of another program
    assert capsys.readouterr().out == ""
    (tmp_path / "config.yaml").write_text("{}")
    launch.look_for_damage(config)
    assert "global_step_6 holds no complete.json" in capsys.readouterr().out


def test_a_finished_run_without_its_last_validation_is_validated(tmp_path):
    config = finished_run(tmp_path)
    assert launch.lacks_validation(config)
    assert not launch.nothing_is_left(config)
    assert not launch.lacks_validation(compose_once("smoke", ["trainer.test_freq=-1"]))
    MetricsFile(tmp_path / "metrics.jsonl", 6).log({"val-core/digits/acc/mean@1": 0.5}, 6)
    assert not launch.lacks_validation(config)
    [line] = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert json.loads(line)["data"].keys() == {"vapo/reward/total", "val-core/digits/acc/mean@1"}


def test_a_finished_run_without_its_report_gets_one(tmp_path, capsys):
    config = finished_run(tmp_path, "trainer.test_freq=-1")
    launch.launch(config)
    assert "was missing or older than the metrics: written" in capsys.readouterr().out
    written = (tmp_path / "report.html").stat().st_mtime_ns
    launch.launch(config)
    said = capsys.readouterr().out
    assert "nothing to do" in said
    assert "report" not in said
    assert (tmp_path / "report.html").stat().st_mtime_ns == written


def test_a_start_that_waited_for_the_end_of_the_run_has_nothing_to_do(
    monkeypatch, tmp_path, capsys
):
    """Another start holds the folder, and trains its last step meanwhile."""
    config = compose_once(
        "smoke", [f"trainer.default_local_dir={tmp_path}", "trainer.test_freq=-1"]
    )

    @contextlib.contextmanager
    def lock_after_the_end(config):
        finished_run(tmp_path, "trainer.test_freq=-1")
        with (tmp_path / "lock").open("w") as file:
            yield file

    monkeypatch.setattr(launch, "run_folder_lock", lock_after_the_end)
    monkeypatch.setattr(launch, "open_console", contextlib.nullcontext)
    monkeypatch.setattr(launch, "guarded_run", lambda held: contextlib.nullcontext())
    for check in ("check_loggers", "export_attention", "set_environment", "join_cluster"):
        monkeypatch.setattr(launch, check, lambda config: None)
    monkeypatch.setattr(launch, "check_run", lambda config: [])
    monkeypatch.setattr(launch, "train", lambda *_: pytest.fail("it trains again"))
    launch.launch(config)
    assert "already holds step 6: nothing to do" in capsys.readouterr().out


def test_validation_alone_runs_on_a_finished_run(tmp_path):
    overrides = [f"trainer.default_local_dir={tmp_path}", "trainer.val_only=true"]
    checkpoint_folder(tmp_path, 6).mkdir()
    mark_complete(tmp_path, 6)
    assert not launch.is_finished(compose_once("smoke", overrides))


def test_a_run_folder_that_cannot_be_made_is_an_input_error(tmp_path):
    (tmp_path / "file").touch()
    config = compose_once("smoke", [f"trainer.default_local_dir={tmp_path}/file/run"])
    with pytest.raises(InputError, match=r"default_local_dir=\S+ cannot be written: .*; name a"):
        launch.open_console(config)


def test_a_full_shared_memory_is_named_before_anything_starts(monkeypatch, tmp_path):
    launch.check_shared_memory(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=12 << 20))
    with pytest.raises(ValueError, match=rf"^{tmp_path} has 12 MiB free, .* need 16 MiB .*--shm"):
        launch.check_shared_memory(tmp_path)
    with pytest.raises(InputError, match=r"^/dev/shm has 12 MiB free"):
        launch.launch(compose_once("smoke", [f"trainer.default_local_dir={tmp_path}"]))


@pytest.mark.parametrize("logger", ["wandb", "[tensorboard,wandb]"])
def test_a_tracker_that_is_not_installed_is_an_input_error(monkeypatch, logger):
    config = compose_once("smoke", [f"trainer.logger={logger}"])
    launch.check_loggers(config)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match="wandb"):
        launch.check_loggers(config)


def test_the_cpu_environment_reaches_this_process_and_every_worker(monkeypatch):
    for name in CPU_ENVIRONMENT:
        monkeypatch.setenv(name, "before")
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    config = compose_once("smoke")
    launch.set_environment(config)
    assert {name: os.environ[name] for name in CPU_ENVIRONMENT} == CPU_ENVIRONMENT
    assert config.ray_kwargs.ray_init.runtime_env.env_vars == CPU_ENVIRONMENT
    assert "PYTHONDONTWRITEBYTECODE" not in os.environ


def test_a_gpu_run_changes_no_environment(monkeypatch):
    for name in CPU_ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)
    config = compose_once("vapo")
    launch.set_environment(config)
    assert not set(CPU_ENVIRONMENT) & set(os.environ)


@pytest.fixture
def no_cluster(monkeypatch, tmp_path):
    """No Ray of this machine in the way; the file where `ray start` leaves its address."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    file = address_file()
    file.parent.mkdir()
    return file


def test_processes_of_a_run_keep_sockets_and_locks_in_its_folder(no_cluster, monkeypatch, tmp_path):
    for name in ("RAY_TMPDIR", "TMPDIR", "TORCHINDUCTOR_CACHE_DIR"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    config = compose_once("smoke", ["+ray_kwargs.ray_init.address=local"])
    launch.use_temporary_folder(config, tmp_path)
    assert os.environ["TMPDIR"] == str(tmp_path)
    assert os.environ["RAY_TMPDIR"] == "/tmp"  # its sessions have the logs
    assert str(tmp_path) not in os.environ["TORCHINDUCTOR_CACHE_DIR"]


def test_processes_of_a_cluster_that_a_run_joins_keep_their_own_folders(no_cluster, monkeypatch):
    monkeypatch.setenv("TMPDIR", "/before")
    no_cluster.write_text("10.0.0.1:6379")
    launch.use_temporary_folder(compose_once("smoke"), Path("/run"))
    assert os.environ["TMPDIR"] == "/before"


@pytest.mark.parametrize("where", ["environment", "config", "file"])
def test_a_cluster_that_is_joined_keeps_its_own_resources(no_cluster, monkeypatch, capsys, where):
    config = compose_once("smoke", ["+ray_kwargs.ray_init.object_store_memory=100000000"])
    if where == "environment":
        monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    elif where == "config":
        OmegaConf.update(config, "ray_kwargs.ray_init.address", "10.0.0.1:6379", force_add=True)
    else:
        no_cluster.write_text("10.0.0.1:6379")
    launch.join_cluster(config)
    given = config.ray_kwargs.ray_init
    assert (given.num_cpus, given.num_gpus, given.object_store_memory) == (None, None, None)
    said = "Joining the Ray cluster at 10.0.0.1:6379; `ray start` decides num_cpus, num_gpus, obj"
    assert capsys.readouterr().out.startswith(said)


@pytest.mark.parametrize("address", [None, "local"])
def test_a_cluster_of_its_own_has_the_resources_of_the_recipe(no_cluster, monkeypatch, address):
    if address:
        no_cluster.write_text("10.0.0.1:6379")
        monkeypatch.setenv("RAY_ADDRESS", address)
    config = compose_once("smoke")
    launch.join_cluster(config)
    assert (config.ray_kwargs.ray_init.num_cpus, config.ray_kwargs.ray_init.num_gpus) == (16, 1)


def test_several_nodes_without_a_cluster_are_refused(no_cluster):
    with pytest.raises(InputError, match="nnodes=2, but there is no Ray cluster"):
        launch.join_cluster(compose_once("smoke", ["trainer.nnodes=2"]))


def test_a_dead_process_is_told_without_the_stack_of_those_who_waited():
    from ray.exceptions import RayActorError, RayTaskError

    died = RayActorError(error_msg="The actor died because its node has died. ip: 10.0.0.2")
    waited = RayTaskError("run", "a traceback\n", died)
    error = RayTaskError("fit", "another\n", waited).as_instanceof_cause()
    text = launch.death_message(launch.cause_of(error), ["12ab"])
    assert text.startswith("a process of the run died. The actor died because its node has died")
    assert "10.0.0.2" in text
    assert "traceback" not in text
    assert "the same command resumes" in text


def test_the_death_of_the_trainers_process_is_named():
    from ray.exceptions import RayActorError

    died = RayActorError(error_msg="The actor died unexpectedly. pid: 7")
    died.actor_id = "12ab"
    text = launch.death_message(died, ["12ab"])
    assert text.startswith("the trainer's process (VapoTaskRunner) died. The actor died unexp")


def test_ray_ends_where_its_last_lines_cannot_be_written(monkeypatch):
    import ray

    calls = []

    def shutdown():
        calls.append(sys.stderr)
        if len(calls) == 1:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(ray, "shutdown", shutdown)
    launch.shut_down_ray()
    shown, hidden = calls
    assert hidden is not shown and hidden.name == os.devnull
