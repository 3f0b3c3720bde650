from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.system.slurm.lab import SlurmLab, slurm_lab, why_not
from vapo_verl.digits.build import DigitsConfig, write_dataset


@pytest.fixture(scope="session")
def lab() -> Iterator[SlurmLab]:
    """Two nodes, and the data of the smoke recipe."""
    if why_not():
        pytest.skip(why_not())
    with slurm_lab(num_nodes=2) as lab:
        write_dataset(lab.folder / "data" / "digits", DigitsConfig(train=128, val=16, test=0))
        yield lab
