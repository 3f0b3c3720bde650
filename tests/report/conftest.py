"""What commands leave in a run folder, and images."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.report import run_folders


@pytest.fixture
def early_decision() -> Callable[[Path, Sequence[str]], Path]:
    """`early_decision(run_dir, ["-+-", ..])` writes what the command of that name does."""
    return run_folders.write_early_decision


@pytest.fixture
def png() -> Callable[[int, int, str], bytes]:
    """`png(width, height, colour)` -> an encoded image of one colour."""
    return run_folders.png
