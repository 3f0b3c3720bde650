from __future__ import annotations

import pytest

from tests.system.smoke import Smoke


@pytest.fixture(scope="module")
def smoke(tmp_path_factory) -> Smoke:
    return Smoke(tmp_path_factory.mktemp("smoke"))
