from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.system.smoke import Smoke


@pytest.fixture(scope="module")
def smoke(tmp_path_factory, digits_data) -> Smoke:
    return Smoke(tmp_path_factory.mktemp("smoke"), digits_data(train=128, val=16))


@dataclass(frozen=True)
class Recorded:
    """The first steps of the smoke recipe, with their rollouts saved."""

    smoke: Smoke
    run: Path
    saved: Path

    def train_again(self, name: str, *overrides: str) -> Path:
        """Training on the saved rollouts, without an engine; the run's folder."""
        from tests.system.training.regression import OVERRIDES

        return self.smoke.run(name, *OVERRIDES, f"vapo.debug.train_only={self.saved}", *overrides)


@pytest.fixture(scope="session")
def recorded(tmp_path_factory: pytest.TempPathFactory, digits_data: Callable) -> Recorded:
    """Made once a session. Not to be changed."""
    from tests.system.training.regression import NUM_ROWS, OVERRIDES

    smoke = Smoke(tmp_path_factory.mktemp("recorded"), digits_data(**NUM_ROWS))
    saved = smoke.root / "saved"
    run = smoke.run("recorded", *OVERRIDES, f"vapo.debug.save_rollouts={saved}")
    return Recorded(smoke=smoke, run=run, saved=saved)
