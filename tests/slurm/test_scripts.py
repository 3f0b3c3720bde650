"""What can be known of the scripts without a cluster."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.composing import compose_once
from tests.paths import ROOT
from vapo_verl import preflight
from vapo_verl.hydra_config import recipe_names

SLURM = ROOT / "slurm"
SCRIPTS = sorted(path.name for path in SLURM.glob("*.sh") if "#SBATCH" in path.read_text())
SHELLCHECK = Path(sys.prefix) / "bin" / "shellcheck"


def sbatch_lines(script):
    """Options by name; None for one without a value."""
    options = re.findall(r"^#SBATCH --([\w-]+)(?:=(\S+))?$", (SLURM / script).read_text(), re.M)
    return {name: value or None for name, value in options}


def recipe_of(script):
    (recipe,) = re.findall(r'ray_cluster\.sh" (\w+) "\$@"$', (SLURM / script).read_text(), re.M)
    return recipe


def test_there_is_a_script_for_each_size_of_machine():
    assert SCRIPTS == ["smoke.sh", "vapo_3b.sh", "vapo_7b.sh"]


@pytest.mark.skipif(not SHELLCHECK.exists(), reason="shellcheck is not installed")
def test_shellcheck_finds_nothing():
    files = [*SLURM.glob("*.sh"), *ROOT.glob("tests/system/slurm/*.sh")]
    found = subprocess.run(
        [SHELLCHECK, "-x", *files], cwd=SLURM.parent, capture_output=True, text=True
    )
    assert found.returncode == 0, found.stdout


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_asks_for_what_its_recipe_trains_on(script):
    lines, recipe = sbatch_lines(script), recipe_of(script)
    assert recipe in recipe_names()
    config = compose_once(recipe, [f"trainer.nnodes={lines['nodes']}"])
    preflight.check_batches(config)
    preflight.check_micro_batches(config)
    if config.trainer.device == "cpu":
        assert "gpus-per-node" not in lines
    else:
        assert int(lines["gpus-per-node"]) == config.trainer.n_gpus_per_node
        assert int(lines["nodes"]) == compose_once(recipe).trainer.nnodes
    assert lines["ntasks-per-node"] == "1"


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_can_be_stopped_requeued_and_resumed(script):
    lines = sbatch_lines(script)
    assert re.fullmatch(r"B:USR1@\d{3}", lines["signal"])
    assert {"requeue", "open-mode", "dependency"} <= set(lines)
    assert lines["open-mode"] == "append"
    assert lines["dependency"] == "singleton"
    assert lines["job-name"] == Path(script).stem  # and so a run folder of its own
    assert "/" not in lines["output"], "Slurm makes no folder, and the job fails without a word"


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_started_by_hand_says_how_to_submit_it(script):
    started = subprocess.run(["bash", SLURM / script], capture_output=True, text=True, env={})
    assert started.returncode != 0
    assert f"sbatch slurm/{script}" in started.stderr


def test_the_scripts_differ_in_their_options_and_recipe_only():
    bodies = set()
    for script in SCRIPTS:
        _, _, body = (SLURM / script).read_text().partition("set -euo pipefail")
        bodies.add(body.replace(script, "NAME.sh").replace(f'" {recipe_of(script)} "', '" R "'))
    assert len(bodies) == 1


def test_every_setting_is_used_and_every_one_used_can_be_set():
    offered = set(re.findall(r"^(VAPO_\w+)=", (SLURM / "site.env").read_text(), re.M))
    scripts = (SLURM / "ray_cluster.sh").read_text() + (SLURM / "ray_node.sh").read_text()
    used = set(re.findall(r"\bVAPO_\w+", scripts))
    own = {"VAPO_SITE_ENV", "VAPO_ATTEMPT_LOGS", "VAPO_PYTHON", "VAPO_RAY_NODE"}
    assert used - own == offered


@pytest.mark.parametrize(("given", "rest"), [(None, ""), ("", ""), ("/mine:/more", ":/mine:/more")])
def test_packages_of_the_user_come_behind_the_projects_code(given, rest):
    (line,) = re.findall(
        r"^ *export PYTHONPATH=.*$", (SLURM / "ray_cluster.sh").read_text(), re.MULTILINE
    )
    printed = subprocess.run(
        [shutil.which("bash"), "-euc", f"{line}; echo $PYTHONPATH"],
        cwd=ROOT,
        env={} if given is None else {"PYTHONPATH": given},
        capture_output=True,
        text=True,
        check=True,
    )
    assert printed.stdout.strip() == f"{ROOT}{rest}"


def test_settings_of_the_environment_win():
    bash = shutil.which("bash")
    printed = subprocess.run(
        [bash, "-euc", ". slurm/site.env; echo $VAPO_RUNS_DIR $VAPO_MAX_REQUEUES"],
        cwd=SLURM.parent,
        env={"HOME": "/home/me", "VAPO_MAX_REQUEUES": "3"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert printed.stdout.split() == [str(SLURM.parent / "runs"), "3"]
