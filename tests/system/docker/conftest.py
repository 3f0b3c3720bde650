from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.paths import ROOT
from tests.system.docker.engine import Compose, Engine, import_base_image, running_engine, why_not

BASE_IMAGE, IMAGE = "localhost/vapo-base:test", "localhost/vapo-verl:test"
IN_CONTEXT = ("docker", "recipes", "requirements", "vapo_verl")
FILES_IN_CONTEXT = (".dockerignore", "pyproject.toml", "setup.py")
SECRET = "hf_not-to-be-found-in-any-layer"
"""Lies wherever a careless build would pick it up: environment, docker/.env, .git, a run."""


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """VAPO_TEST_DOCKER_ROOT=FOLDER keeps images and caches there for the next time."""
    reason = why_not()
    if reason:
        pytest.skip(reason)
    kept = os.environ.get("VAPO_TEST_DOCKER_ROOT")
    root = Path(kept) if kept else tmp_path_factory.mktemp("docker")
    with running_engine(root) as engine:
        yield engine
    if not kept:
        shutil.rmtree(root)


@pytest.fixture(scope="session")
def image(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The CPU image of this checkout, built among secrets."""
    folder = tmp_path_factory.mktemp("build")
    if engine.run("image", "inspect", BASE_IMAGE, check=False).returncode:
        import_base_image(engine, BASE_IMAGE, folder)
    context = folder / "context"
    for name in IN_CONTEXT:
        shutil.copytree(ROOT / name, context / name, symlinks=True)
    for name in FILES_IN_CONTEXT:
        shutil.copy(ROOT / name, context / name)
    for name in ("docker/.env", ".git/config", ".netrc", "vapo_verl/.env", "runs/vapo/key.py"):
        (context / name).parent.mkdir(parents=True, exist_ok=True)
        (context / name).write_text(f"HF_TOKEN={SECRET}\n")
    engine.run(
        *("build", "--network=host", "--quiet", "--tag", IMAGE),
        *("--build-arg", "VARIANT=cpu", "--build-arg", f"BASE_IMAGE={BASE_IMAGE}"),
        *("--file", str(context / "docker/Dockerfile"), str(context)),
        environment={"HF_TOKEN": SECRET, "WANDB_API_KEY": SECRET},
        timeout_s=1500,
    )
    return IMAGE


@pytest.fixture
def compose(engine: Engine, image: str, request: pytest.FixtureRequest) -> Iterator[Compose]:
    """A project of its own for each test, without what it left behind afterwards."""
    files = [ROOT / "docker" / name for name in ("compose.yaml", "compose.cpu.yaml")]
    name = request.node.name.replace("_", "-")[:40]
    settings = {"VAPO_IMAGE": image, "VAPO_DASHBOARD_PORT": "0"}
    project = Compose(engine, name, files, settings)
    yield project
    project.run("down", "--volumes", "--timeout", "1")
