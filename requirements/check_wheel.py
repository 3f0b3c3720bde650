"""Check a wheel: its size, and that it holds recipes, weights, scripts and pages of the package.

python requirements/check_wheel.py dist/vapo_verl-0.1.0-py3-none-any.whl

Prints the size and the number of files. Exit codes: 0 as it should be, 1 a fault, which is named.
Needs the standard library alone.
"""

import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
MAX_BYTES = 12_000_000
DATA = ("*.yaml", "*.js", "*.css", "*.html", "*.c", "*.safetensors")
"""Files that setuptools takes along only where setup.py names their suffix."""
LEFT_OUT = "vapo_verl/digits/model/long_digits/"
"""Weights that no recipe uses."""


def expected_files(root: Path) -> set[str]:
    """Names in a wheel of the data files of the package, and of the recipes."""
    package = [path for pattern in DATA for path in (root / "vapo_verl").rglob(pattern)]
    names = {path.relative_to(root).as_posix() for path in package}
    names |= {f"vapo_verl/conf/recipe/{path.name}" for path in (root / "recipes").glob("*.yaml")}
    return {name for name in names if not name.startswith(LEFT_OUT)}


def faults(wheel: Path, root: Path = ROOT) -> list[str]:
    """What is wrong with the wheel, a line each; none if it can be released."""
    found = []
    if (size := wheel.stat().st_size) >= MAX_BYTES:
        found.append(f"{wheel} has {size:,} bytes; the limit is {MAX_BYTES:,}")
    with zipfile.ZipFile(wheel) as archive:
        held = set(archive.namelist())
    missing = sorted(expected_files(root) - held)
    found += [f"{name} is missing; add its suffix to DATA_SUFFIXES in setup.py" for name in missing]
    found += [
        f"{name} does not belong into the wheel"
        for name in sorted(held)
        if name.startswith(LEFT_OUT) or not name.startswith(("vapo_verl/", "vapo_verl-"))
    ]
    return found


def main() -> int:
    """Check every wheel that is given; at least one."""
    wheels = [Path(name) for name in sys.argv[1:]]
    if not wheels:
        print("give the path of a wheel, as dist/*.whl", file=sys.stderr)
        return 1
    for wheel in wheels:
        if found := faults(wheel):
            print("\n".join(found), file=sys.stderr)
            return 1
        with zipfile.ZipFile(wheel) as archive:
            num_files = len(archive.namelist())
        megabytes = f"{wheel.stat().st_size / 1e6:.1f} MB of {MAX_BYTES / 1e6:.0f}"
        print(f"{wheel}: {megabytes}, {num_files} files")
    return 0


if __name__ == "__main__":
    sys.exit(main())
