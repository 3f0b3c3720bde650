"""Fixtures that tests of several folders use."""

import pytest


@pytest.fixture
def new_wandb_session():
    """Weights & Biases reads its environment once a process; here, once a test."""
    import wandb

    wandb.teardown()
    yield
    wandb.teardown()
