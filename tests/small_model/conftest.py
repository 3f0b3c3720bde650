import pytest
import torch

from vapo_verl.small_model import model_dir
from vapo_verl.small_model.store import load_model


@pytest.fixture(scope="package")
def packaged():
    """The packaged model in float32, and its processor."""
    torch.set_num_threads(2)
    return load_model(model_dir())


@pytest.fixture(scope="package")
def tokenizer(packaged):
    return packaged[1].tokenizer
