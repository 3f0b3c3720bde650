"""Run folders as the trainer writes them."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.report import run_folders


@pytest.fixture
def rollout_row() -> Callable[..., dict]:
    """`rollout_row(step, index, sample, **cells)` -> a row of a rollout file."""
    return run_folders.rollout_row


@pytest.fixture
def anchor() -> Callable[..., dict]:
    """`anchor(position, label=.., p_yes=.., claim=..)` -> one of a row's anchors."""
    return run_folders.anchor


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """`make_run(name, steps, metrics)` -> run folder."""
    return lambda name, steps, metrics=None: run_folders.write_run(tmp_path / name, steps, metrics)


@pytest.fixture
def early_decision() -> Callable[[Path, Sequence[str]], Path]:
    """`early_decision(run_dir, ["-+-", ..])` writes what the command of that name does."""
    return run_folders.write_early_decision


@pytest.fixture
def png() -> Callable[[int, int, str], bytes]:
    """`png(width, height, colour)` -> an encoded image of one colour."""
    return run_folders.png
