"""Check what kernels need that are compiled at run time: a C compiler, headers, node-local caches.

Triton 3.6 compiles with ``$CC``, else gcc, else clang, and includes `Python.h`
(`triton/runtime/build.py`). Compute nodes often have neither.
"""

import os
import shlex
import shutil
import sysconfig
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig

from vapo_verl.doctor.findings import Finding, error, ok, warning

CHECK = "compile caches"
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
        yield ok(CHECK, "all on file systems of this node")
        return
    listed = ", ".join(f"{variable}: {where}" for variable, where in remote.items())
    exports = " ".join(f"{variable}={SET_LOCALLY}/{variable.lower()}" for variable in remote)
    yield warning(
        CHECK,
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
