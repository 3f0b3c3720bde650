"""The command line answers fast, and from any directory."""

import os
import shutil
import subprocess
import sys

import pytest
import yaml


def run(*arguments, cwd, **environment):
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_help_lists_the_recipes_without_importing_heavy_libraries(tmp_path):
    code = (
        "import sys; sys.argv = ['vapo_verl.main', '--help']\n"
        "import runpy\n"
        "try:\n    runpy.run_module('vapo_verl.main', run_name='__main__')\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'verl', 'vllm', 'ray', 'transformers'}\n"
        "print('HEAVY', sorted(heavy & set(sys.modules)))"
    )
    result = run("-c", code, cwd=tmp_path)
    assert "HEAVY []" in result.stdout, result.stdout + result.stderr
    assert "+recipe=NAME" in result.stdout
    assert "vapo_paper" in result.stdout


def test_a_config_is_printed_from_any_directory_and_nothing_is_written(tmp_path):
    arguments = ("-m", "vapo_verl.main", "+recipe=vapo", "vapo.anchors.num_anchors=5")
    result = run(*arguments, "--cfg", "job", "-p", "vapo", cwd=tmp_path)
    assert "num_anchors: 5" in result.stdout, result.stderr
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_recipe_is_named_with_those_there_are(tmp_path):
    result = run("-m", "vapo_verl.main", "+recipe=vapoo", cwd=tmp_path)
    assert result.returncode == 2
    assert "vapoo" in result.stderr
    assert "vapo_paper" in result.stderr


def test_no_recipe_at_all_says_what_to_add(tmp_path):
    result = run("-m", "vapo_verl.main", cwd=tmp_path)
    assert result.returncode == 2
    assert "+recipe=NAME" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_recipe_of_the_users_own_builds_on_a_packaged_one(tmp_path):
    (tmp_path / "recipe").mkdir()
    (tmp_path / "recipe" / "mine.yaml").write_text(
        "# @package _global_\ndefaults: [vapo, _self_]\nvapo: {anchors: {num_anchors: 7}}\n"
    )
    arguments = ("-m", "vapo_verl.main", "+recipe=mine", "--config-dir", str(tmp_path))
    result = run(*arguments, "vapo.seed=3", "--cfg", "job", "-p", "vapo", cwd=tmp_path)
    assert "num_anchors: 7" in result.stdout, result.stderr
    assert "\nseed: 3\n" in result.stdout  # on the other side of an option


def test_a_gpu_run_without_flash_attention_ends_before_ray_and_names_both_ways_out(tmp_path):
    """The data files are absent too; the kernel is checked first."""
    code = (
        "import importlib.util, runpy, sys\n"
        "find = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, *rest: "
        "None if name == 'flash_attn' else find(name, *rest)\n"
        "sys.argv = ['vapo_verl.main', '+recipe=vapo']\n"
        "try:\n    runpy.run_module('vapo_verl.main', run_name='__main__')\n"
        "finally: print('STARTED', sorted({'ray', 'vllm', 'verl'} & set(sys.modules)))"
    )
    result = run("-c", code, cwd=tmp_path, VAPO_DATA_DIR=str(tmp_path / "absent"))
    assert result.returncode == 2, result.stderr
    assert "make setup EXTRA=gpu FLASH_ATTN=1" in result.stderr
    assert "vapo.allow_sdpa=true" in result.stderr
    assert "Traceback" not in result.stderr
    assert "STARTED []" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["trainer.foo=1"], "trainer.foo"),
        (["data.train_files=/tmp/ä(1).parquet"], "\n  'data.train_files=\"/tmp/ä(1).parquet\"'\n"),
        (["vapo.seed=0,1"], "which need -m"),
        (["trainer.n_gpus_per_node=0"], "vapo_verl: trainer.n_gpus_per_node=0 is out of range"),
        (["trainer.total_training_steps=abc"], "'abc' is a str; give a whole number from 1"),
        (
            ["-m", "vapo.seed=0,1", "trainer.experiment_name='s_${vapo.seed}'", "trainer.nnodes=0"],
            "vapo_verl: trainer.nnodes=0 is out of range",
        ),
        (
            ["-m", "vapo.seed=0,1", "trainer.val_only=true", "trainer.nnodes=0"],
            "vapo_verl: trainer.nnodes=0 is out of range",
        ),
        (["trainer.default_local_dir=FILE/run"], "FILE is no folder; name a folder that you may"),
        (["--config-dir", "FOLDER", "+recipe=bare"], "begin with the line `# @package _global_`"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_bad_input_ends_with_2_before_ray_and_without_a_traceback(tmp_path, arguments, said):
    (tmp_path / "FILE").touch()
    (tmp_path / "FOLDER" / "recipe").mkdir(parents=True)
    (tmp_path / "FOLDER" / "recipe" / "bare.yaml").write_text("trainer: {nnodes: 2}\n")
    recipe = [] if "+recipe=bare" in arguments else ["+recipe=smoke"]
    result = run("-m", "vapo_verl.main", *arguments, *recipe, cwd=tmp_path)
    assert result.returncode == 2, result.stdout + result.stderr
    assert said in result.stderr
    assert "Traceback" not in result.stderr
    assert {path.name for path in tmp_path.iterdir()} <= {"FILE", "FOLDER", "runs"}


@pytest.mark.parametrize(
    ("named", "folder"),
    [((), "runs/smoke"), (("trainer.default_local_dir=runs/mine",), "runs/mine")],
)
def test_a_sweep_whose_runs_share_a_folder_ends_before_its_first_run(tmp_path, named, folder):
    swept = ("+recipe=smoke", "vapo.seed=0,1", *named)
    result = run("-m", "vapo_verl.main", "-m", *swept, cwd=tmp_path)
    assert result.returncode == 2
    assert f"trainer.default_local_dir={folder} is the folder of more than one" in result.stderr
    assert "#0" not in result.stdout and list(tmp_path.iterdir()) == []


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
def test_the_quoted_argument_that_an_error_shows_works_in_bash(tmp_path):
    value = '/tmp/ä (1), it\'s "$HOME".parquet'
    refused = run("-m", "vapo_verl.main", "+recipe=smoke", f"data.val_files={value}", cwd=tmp_path)
    shown = refused.stderr.strip().splitlines()[-1]
    command = f"{sys.executable} -m vapo_verl.main +recipe=smoke {shown} --cfg job -p data"
    done = subprocess.run(
        ["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert yaml.safe_load(done.stdout)["val_files"] == value


def test_a_log_that_takes_no_more_does_not_hide_why_the_run_failed(tmp_path):
    from vapo_verl.main import last_words

    text = last_words(OSError(28, "No space left on device"), str(tmp_path / "absent"))
    assert text.startswith("the run failed; the whole log is ")
    assert text.endswith("OSError: [Errno 28] No space left on device")


@pytest.mark.parametrize(
    ("raised", "exit_code", "said"),
    [
        ("stopping.RunStopped(7)", 75, "Stopped on request at step 7; the same command resumes."),
        ("stopping.RunStopped(None)", 75, "Stopped on request before the first step;"),
        ("checkpoints.CheckpointError('no room in DIR')", 1, "vapo_verl: no room in DIR"),
        ("preflight.InputError('data.x: bad')", 2, "vapo_verl: data.x: bad"),
        ("preflight.InputError(config.vapo.recipe)", 2, "vapo_verl: smoke"),
    ],
)
def test_each_end_of_a_run_has_its_exit_code_and_its_message(tmp_path, raised, exit_code, said):
    code = (
        "import runpy, sys; from vapo_verl import launch, preflight\n"
        "from vapo_verl.run_folder import checkpoints; from vapo_verl.trainer import stopping\n"
        f"def end(config): raise {raised}\n"
        "launch.launch = end; sys.argv = ['vapo_verl.main', '+recipe=smoke']\n"
        "runpy.run_module('vapo_verl.main', run_name='__main__')"
    )
    result = run("-c", code, cwd=tmp_path)
    assert result.returncode == exit_code, result.stderr
    assert said in result.stdout + result.stderr
    assert "Traceback" not in result.stderr
