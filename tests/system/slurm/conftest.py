from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.system.slurm.lab import SlurmLab, slurm_lab, why_not


@pytest.fixture(scope="session")
def lab(digits_data) -> Iterator[SlurmLab]:
    """Two nodes, and the data of the smoke recipe."""
    if why_not():
        pytest.skip(why_not())
    with slurm_lab(num_nodes=2) as lab:
        (lab.folder / "data").symlink_to(digits_data(train=128, val=16)["train"].parents[1])
        yield lab
