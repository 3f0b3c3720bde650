"""Fixtures that tests of several folders use.

Imports are inside: the kernel tests run where only torch, triton, numpy and pytest are installed.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from tests.report.report_browser import ReportBrowser


def pytest_configure() -> None:
    """Tests assert no times, because a busy machine is slow, and ask no hub for a model."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    with suppress(ImportError):
        from hypothesis import settings

        settings.register_profile("no times", deadline=None)
        settings.load_profile("no times")


@pytest.fixture(scope="session")
def run_module() -> Callable[..., subprocess.CompletedProcess[str]]:
    """`run_module("vapo_verl.data", "check", path)` -> the ended process of `python -m`.

    Its output is captured as text. `env` adds variables, or takes one away where its value is None;
    `check=True`, `cwd` and `timeout` (600 s) are those of `subprocess.run`.
    """

    def run(
        module: str, *arguments: object, env: Mapping[str, str | None] | None = None, **options: Any
    ) -> subprocess.CompletedProcess[str]:
        given = {**os.environ, **(env or {})}
        return subprocess.run(
            [sys.executable, "-m", module, *map(str, arguments)],
            env={name: value for name, value in given.items() if value is not None},
            capture_output=True,
            text=True,
            **{"timeout": 600, "check": False, **options},
        )

    return run


@pytest.fixture(scope="session")
def packaged_model() -> Path:
    """Folder of the small Qwen2.5-VL that is part of the package."""
    from vapo_verl.digits.model import model_dir

    return model_dir()


@pytest.fixture(scope="session")
def packaged_tokenizer(packaged_model: Path) -> PreTrainedTokenizerBase:
    """The packaged model's. Not to be changed."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(packaged_model)


@pytest.fixture
def tokenizer_template(packaged_model, tmp_path) -> Path:
    """The packaged model with its chat template in tokenizer_config.json only, without weights."""
    folder = tmp_path / "tokenizer_template"
    shutil.copytree(packaged_model, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    template = folder / "chat_template.jinja"
    file = folder / "tokenizer_config.json"
    stated = json.loads(file.read_text()) | {"chat_template": template.read_text()}
    file.write_text(json.dumps(stated))
    template.unlink()
    return folder


@pytest.fixture
def rollout_row() -> Callable[..., dict]:
    """`rollout_row(step, index, sample, **cells)` -> a row of a rollout file."""
    from tests.report import run_folders

    return run_folders.rollout_row


@pytest.fixture
def anchor() -> Callable[..., dict]:
    """`anchor(position, label=.., p_yes=.., claim=..)` -> one of a row's anchors."""
    from tests.report import run_folders

    return run_folders.anchor


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """`make_run(name, steps, metrics)` -> a small run folder, as the trainer writes it."""
    from tests.report import run_folders

    return lambda name, steps, metrics=None: run_folders.write_run(tmp_path / name, steps, metrics)


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
def video_rows(digits_data: Callable[..., dict[str, Path]], tmp_path: Path) -> Path:
    """16 rows of the digits world, of which row 2 has a video."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = pq.read_table(digits_data(train=16, val=2)["train"]).to_pylist()
    for row in rows:
        row["videos"] = None
    rows[2]["prompt"][-1]["content"] += " <video>"
    rows[2]["videos"] = ["clip.mp4"]
    path = tmp_path / "video.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


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
