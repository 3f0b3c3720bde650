"""Fixtures that tests of several folders use.

Imports are inside: the kernel tests run where only torch, triton, numpy and pytest are installed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.report.report_browser import ReportBrowser


@pytest.fixture(scope="session")
def digits_data(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., dict[str, Path]]:
    """`digits_data(train=8, val=2)` -> Parquet file by split, written once a session. Not to be
    changed. They are in a folder `digits`, as a recipe looks for them in VAPO_DATA_DIR."""
    from vapo_verl.digits.build import DigitsConfig, write_dataset

    @cache
    def write(*, train: int = 0, val: int = 0, test: int = 0) -> dict[str, Path]:
        folder = tmp_path_factory.mktemp("data") / "digits"
        return write_dataset(folder, DigitsConfig(train=train, val=val, test=test))

    return write


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[ReportBrowser]:
    """A fresh browser, which must have had nothing to complain of at the end."""
    from tests.report.report_browser import quiet_browser

    with quiet_browser(tmp_path / "profile") as browser:
        yield browser


@pytest.fixture
def new_wandb_session():
    """Weights & Biases reads its environment once a process; here, once a test."""
    import wandb

    wandb.teardown()
    yield
    wandb.teardown()
