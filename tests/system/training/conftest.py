from __future__ import annotations

import pytest

from tests.system.smoke import Smoke


@pytest.fixture(scope="module")
def smoke(tmp_path_factory, digits_data) -> Smoke:
    return Smoke(tmp_path_factory.mktemp("smoke"), digits_data(train=128, val=16))
