"""Check C compiler and Python headers: Triton and Inductor compile kernel launchers at run time.

Triton 3.6 compiles with ``$CC``, else gcc, else clang, and includes `Python.h`
(`triton/runtime/build.py`). Compute nodes often have neither.
"""

import os
import shlex
import shutil
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from omegaconf import DictConfig

from vapo_verl.doctor.findings import Finding, error, ok

CHECK = "compiler"
COMPILERS = ("gcc", "clang")
FIX = "{}, on every node, or the image of docker/Dockerfile, which has both"


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
            CHECK,
            f"{found}: Triton and Inductor compile at run time",
            FIX.format(f"{wanted}apt-get install gcc libc6-dev"),
        )
    headers = header_folder()
    if not (headers / "Python.h").is_file():
        yield error(
            CHECK,
            f"no {headers / 'Python.h'}: Triton includes it in what it compiles at run time",
            FIX.format("apt-get install python3-dev (of this Python's version)"),
        )
    elif compiler is not None:
        yield ok(CHECK, f"{compiler}, {headers / 'Python.h'}")


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
