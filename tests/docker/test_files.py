"""Dockerfile and compose files: pinned, without root or secrets, and of one mind."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.docker.train import train
from tests.paths import ROOT
from tests.system.docker.engine import why_not

DOCKER = ROOT / "docker"
DOCKERFILE = (DOCKER / "Dockerfile").read_text()
COMPOSE_FILES = ("compose.yaml", "compose.cpu.yaml", "compose.hosts.yaml")
SERVICES = {"ray-head", "ray-worker", "trainer"}
SECRETS = ("HF_TOKEN", "OPENAI_API_KEY", "RAY_AUTH_TOKEN", "WANDB_API_KEY")
HOST = "10.0.0.1"
ACROSS_HOSTS = {
    "RAY_AUTH_TOKEN": "secret",
    "VAPO_HEAD": HOST,
    "VAPO_NODE_IP": HOST,
    "VAPO_NODES": "2",
}


class Loader(yaml.SafeLoader):
    """YAML with compose's ``!reset``."""


Loader.add_constructor("!reset", lambda loader, node: None)


def compose_file(name: str) -> dict[str, Any]:
    return yaml.load((DOCKER / name).read_text(), Loader)


def variables(text: str) -> set[str]:
    """Names that compose takes from the environment or from docker/.env."""
    return set(re.findall(r"(?<!\$)\$\{([A-Z_]+)", text))


def locked(name: str) -> str:
    match = re.search(rf"^{name}==([^ ;\n]+)", (ROOT / "requirements/gpu.txt").read_text(), re.M)
    assert match, f"{name} is not locked"
    return match[1]


def test_base_images_are_pinned_by_digest():
    bases = re.findall(r"^FROM \$\{BASE_IMAGE:-(\S+)\}", DOCKERFILE, re.M)
    assert len(bases) == 2
    assert all(re.fullmatch(r"[\w./-]+:[\w.-]+@sha256:[0-9a-f]{64}", base) for base in bases)


def test_the_gpu_base_is_made_for_the_locked_vllm():
    """veRL's tags: vllm024 holds vLLM 0.24."""
    major, minor, _ = locked("vllm").split(".")
    assert f"verlai/verl:vllm{major}{int(minor):02}." in DOCKERFILE
    for package in ("torch", "vllm"):
        assert f"{package} {locked(package)}" in DOCKERFILE


def test_the_image_ends_as_a_user_that_is_not_root():
    users = re.findall(r"^USER (\S+)", DOCKERFILE, re.M)
    assert users, "no USER"
    assert re.fullmatch(r"[1-9]\d+:[1-9]\d+", users[-1]), "kubelet proves a number only"


def test_nothing_is_piped_from_the_network_into_a_shell():
    assert not re.search(r"(curl|wget)[^\n]*\|", DOCKERFILE)


def test_the_build_sees_neither_secrets_nor_runs():
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    assert next(line for line in lines if not line.startswith("#")) == "*"
    assert lines[-1] == "**/.env*", "nothing may let .env files in again"


def test_hadolint_has_nothing_to_say():
    hadolint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([hadolint, DOCKER / "Dockerfile"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", COMPOSE_FILES)
def test_all_files_speak_of_the_same_services(name):
    assert set(compose_file(name)["services"]) == SERVICES


@pytest.mark.parametrize("name", COMPOSE_FILES)
def test_every_setting_is_in_the_example(name):
    known = re.findall(r"^#([A-Z_]+)=", (DOCKER / "env.example").read_text(), re.M)
    assert variables((DOCKER / name).read_text()) <= set(known)


def test_every_setting_is_in_the_manual():
    manual = (ROOT / "docs/docker.md").read_text()
    for name in re.findall(r"^#([A-Z_]+)=", (DOCKER / "env.example").read_text(), re.M):
        assert f"`{name}`" in manual, name


def test_the_trainer_gets_what_its_script_reads():
    given = compose_file("compose.yaml")["services"]["trainer"]["environment"]
    read = set(re.findall(r'"(VAPO_[A-Z_]+)"', Path(train.__file__).read_text()))
    assert read <= set(given)


def test_only_the_dashboard_is_reachable_and_only_from_this_host():
    for name, service in compose_file("compose.yaml")["services"].items():
        ports = service.get("ports", [])
        assert all(port.startswith("127.0.0.1:") for port in ports)
        assert len(ports) == (name == "ray-head")


def test_no_secret_is_written_in_a_compose_file():
    for name in COMPOSE_FILES:
        for service in compose_file(name)["services"].values():
            given = service.get("environment") or {}
            values = [given[secret] for secret in SECRETS if secret in given]
            assert all(value is None or value.startswith("${") for value in values)


def test_every_service_takes_a_secret_of_the_shell_before_that_of_the_file():
    """A name without a value is the shell's, else that of docker/.env, else unset; a name that only
    `env_file` gives is never the shell's."""
    listed = re.findall(r"^#(\w+_(?:TOKEN|KEY))=", (DOCKER / "env.example").read_text(), re.M)
    assert set(listed) == set(SECRETS)
    for service in compose_file("compose.yaml")["services"].values():
        given = service["environment"]
        assert {name: given[name] for name in SECRETS} == dict.fromkeys(SECRETS)


@pytest.mark.skipif(bool(why_not()), reason=why_not())
@pytest.mark.parametrize(
    ("files", "gpus"),
    [
        (["compose.yaml"], 8),
        (["compose.yaml", "compose.cpu.yaml"], None),
        (["compose.yaml", "compose.hosts.yaml"], 8),
    ],
)
def test_compose_reads_them(files, gpus, monkeypatch):
    for name in variables("".join((DOCKER / file).read_text() for file in files)):
        monkeypatch.delenv(name, raising=False)
    for name, value in ACROSS_HOSTS.items() if "compose.hosts.yaml" in files else ():
        monkeypatch.setenv(name, value)
    options = [option for file in files for option in ("--file", str(DOCKER / file))]
    done = subprocess.run(["docker", "compose", *options, "config"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for name, service in yaml.safe_load(done.stdout)["services"].items():
        resources = (service.get("deploy") or {}).get("resources") or {}
        devices = resources.get("reservations", {}).get("devices", [])
        assert [int(device["count"]) for device in devices] == (
            [gpus] if gpus and name != "trainer" else []
        )
        if "compose.hosts.yaml" in files:
            assert service["network_mode"] == "host"
            assert "ports" not in service
            assert "ray-worker" not in service.get("depends_on", {})
