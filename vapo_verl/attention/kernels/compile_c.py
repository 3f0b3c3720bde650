"""Compile one C file of this package for this machine, once, into the user's cache."""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

# Not -ffast-math: linking with it makes the process flush denormals, which would change
# the model's arithmetic.
FLAGS = (
    *("-std=gnu11", "-O3", "-march=native", "-shared", "-fPIC"),
    *("-fno-math-errno", "-fno-trapping-math", "-fno-signed-zeros", "-fassociative-math"),
)
TIMEOUT_S = 120.0


class CannotCompileError(RuntimeError):
    """No usable C compiler; the message lists the attempts."""


def load_library(source: Path) -> ctypes.CDLL:
    """The shared library of `source`, compiled if the cache has none for this CPU and compiler.

    OpenMP comes from the runtime that the process has loaded (torch's): one thread pool.

    Raises:
        CannotCompileError: there is no compiler, or it fails.
    """
    compiler = _compiler()
    recipe = "\0".join([source.read_text(), compiler, *FLAGS, _cpu()])
    name = f"{source.stem}-{hashlib.sha256(recipe.encode()).hexdigest()[:16]}.so"
    for folder in (_cache_folder(), _temporary_folder()):
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if folder.stat().st_uid != os.getuid():
                continue
            library = folder / name
            if not library.exists():
                _compile(compiler, source, library)
            return ctypes.CDLL(str(library))
        except OSError as e:
            problem = e
    raise CannotCompileError(f"no folder to keep {name} in: {problem}") from problem


def _compile(compiler: str, source: Path, library: Path) -> None:
    handle, draft = tempfile.mkstemp(dir=library.parent, suffix=".so")
    os.close(handle)
    try:
        for openmp in (["-fopenmp"], []):
            command = [compiler, *FLAGS, *openmp, str(source), "-o", draft, "-lm"]
            done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S)
            if done.returncode == 0:
                os.replace(draft, library)  # atomic: another process may be compiling the same
                return
        raise CannotCompileError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    except subprocess.TimeoutExpired as e:
        raise CannotCompileError(f"{compiler} ran for more than {TIMEOUT_S:.0f} s") from e
    finally:
        Path(draft).unlink(missing_ok=True)


def _compiler() -> str:
    for name in (os.environ.get("CC"), "cc", "gcc", "clang"):
        path = shutil.which(name) if name else None
        if path:
            return path
    raise CannotCompileError("no C compiler found: install gcc or clang, or set CC")


def _cache_folder() -> Path:
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vapo_verl"
    except RuntimeError:  # a user without a home, as in some containers
        return _temporary_folder()


def _temporary_folder() -> Path:
    return Path(tempfile.gettempdir()) / f"vapo_verl-{os.getuid()}"


def _cpu() -> str:
    """The CPU features behind -march=native: different machines may share a home folder."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.platform()
    return "\n".join(
        sorted({x for x in lines if x.startswith(("flags", "model name", "Features"))})
    )
