from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from vapo_verl.version import __version__

CACHES = shutil.ignore_patterns("__pycache__", "*.pyc", "*.egg-info")


def build(kind: str, source: Path, target: Path) -> Path:
    subprocess.run(
        [sys.executable, "-m", "build", kind, "--no-isolation", "--outdir", target, source],
        check=True,
        capture_output=True,
    )
    (result,) = target.iterdir()
    return result


@pytest.fixture(scope="module")
def source(root, tmp_path_factory) -> Path:
    """A copy of what the build reads: it writes build/ and egg-info beside it."""
    copy = tmp_path_factory.mktemp("source")
    for name in ("vapo_verl", "recipes"):
        shutil.copytree(root / name, copy / name, symlinks=True, ignore=CACHES)
    for name in ("setup.py", "pyproject.toml", "LICENSE"):
        shutil.copy(root / name, copy)
    return copy


@pytest.fixture(scope="module")
def wheel(source, tmp_path_factory) -> Path:
    return build("--wheel", source, tmp_path_factory.mktemp("wheel"))


def test_an_sdist_builds_the_same_wheel(wheel, source, tmp_path):
    sdist = build("--sdist", source, tmp_path / "sdist")
    with tarfile.open(sdist) as archive:
        safely = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}  # 3.11.4
        archive.extractall(tmp_path / "unpacked", **safely)
    (unpacked,) = (tmp_path / "unpacked").iterdir()
    other = build("--wheel", unpacked, tmp_path / "wheel")
    assert other.name == wheel.name
    assert contents(other) == contents(wheel)


def contents(wheel: Path) -> dict[str, int]:
    """File -> CRC."""
    with zipfile.ZipFile(wheel) as archive:
        return {entry.filename: entry.CRC for entry in archive.infolist()}


def test_wheel_carries_the_whole_package(root, wheel):
    package = root / "vapo_verl"
    files = [
        Path(folder, name)
        for folder, _, names in os.walk(package, followlinks=True)
        for name in names
        if not folder.endswith("__pycache__")
    ]
    with zipfile.ZipFile(wheel) as archive:
        held = set(archive.namelist())
        left_out = package / "digits" / "model" / "long_digits"
        expected = {p.relative_to(root).as_posix() for p in files if left_out not in p.parents}
        missing = expected - held
        assert missing == set(), "a suffix may be missing from DATA_SUFFIXES in setup.py"
        assert not any("long_digits/" in name for name in held)
    assert "vapo_verl/digits/model/digits/model.safetensors" in held
    assert all(name.startswith(("vapo_verl/", "vapo_verl-")) for name in held)


def test_the_wheel_stays_small(wheel):
    assert wheel.stat().st_size < 12e6


def test_make_wheel_accepts_it(root, wheel):
    done = check(root, wheel)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{wheel}: ")


@pytest.mark.parametrize(
    "lost",
    [
        "vapo_verl/conf/recipe/smoke.yaml",
        "vapo_verl/digits/model/digits/model.safetensors",
        "vapo_verl/plots/plots.js",
    ],
)
def test_make_wheel_names_a_file_that_is_missing(root, wheel, tmp_path, lost):
    broken = tmp_path / wheel.name
    with zipfile.ZipFile(wheel) as archive, zipfile.ZipFile(broken, "w") as copy:
        for name in archive.namelist():
            if name != lost:
                copy.writestr(name, archive.read(name))
    done = check(root, broken)
    assert done.returncode == 1
    assert f"{lost} is missing" in done.stderr


def test_make_wheel_refuses_what_is_large_or_does_not_belong(root, tmp_path, wheel):
    large = tmp_path / wheel.name
    shutil.copy(wheel, large)
    with zipfile.ZipFile(large, "a") as archive:
        archive.writestr("tests/large.bin", os.urandom(13_000_000))
    done = check(root, large)
    assert done.returncode == 1
    assert "the limit is 12,000,000" in done.stderr
    assert "tests/large.bin does not belong into the wheel" in done.stderr


def check(root: Path, wheel: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, root / "requirements/check_wheel.py", wheel]
    return subprocess.run(command, capture_output=True, text=True)


def test_recipes_in_the_wheel_are_real_files(root, wheel):
    recipes = sorted((root / "recipes").glob("*.yaml"))
    assert recipes
    with zipfile.ZipFile(wheel) as archive:
        for recipe in recipes:
            entry = archive.getinfo(f"vapo_verl/conf/recipe/{recipe.name}")
            assert not stat.S_ISLNK(entry.external_attr >> 16)
            assert archive.read(entry) == recipe.read_bytes()


def test_wheel_metadata(wheel):
    with zipfile.ZipFile(wheel) as archive:
        info = f"vapo_verl-{__version__}.dist-info"
        entry_points = archive.read(f"{info}/entry_points.txt").decode()
        metadata = archive.read(f"{info}/METADATA").decode()
    assert "[console_scripts]\nvapo = vapo_verl.cli:main" in entry_points
    assert "[verl.plugins]\nvapo_cpu = vapo_verl.platform.cpu" in entry_points
    assert f"\nVersion: {__version__}\n" in metadata
    assert "\nLicense-Expression: Apache-2.0\n" in metadata


def test_recipe_composes_from_an_installed_wheel(wheel, tmp_path):
    """From another working directory and with no source tree on the path."""
    site, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    elsewhere.mkdir()
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    done = subprocess.run(
        [sys.executable, "-m", "vapo_verl.main", "+recipe=smoke", "--cfg", "job", "--resolve"],
        cwd=elsewhere,
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "experiment_name: smoke" in done.stdout
    assert str(site / "vapo_verl/digits/model/digits") in done.stdout
