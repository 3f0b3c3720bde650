"""A smoke run that would work: its data, its run folder, its config."""

from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import DictConfig

from tests.composing import compose_once
from vapo_verl.launch import settle


@pytest.fixture(scope="session")
def digits(digits_data) -> dict[str, Path]:
    return digits_data(train=16, val=2)  # a batch of the smoke recipe


@pytest.fixture
def overrides(digits, tmp_path) -> list[str]:
    """What the smoke recipe needs to run here."""
    return [
        f"data.train_files={digits['train']}",
        f"data.val_files={digits['val']}",
        f"trainer.default_local_dir={tmp_path / 'run'}",
    ]


@pytest.fixture
def config(overrides) -> Callable[..., DictConfig]:
    """The settled config of a recipe under overrides: the smoke recipe unless another is named."""

    def compose(*more: str, recipe: str = "smoke") -> DictConfig:
        config = compose_once(recipe)
        config.merge_with_dotlist([*overrides, *more])
        settle(config)
        return config

    return compose


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch, tmp_path) -> None:
    """No Ray of this machine in the way."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
