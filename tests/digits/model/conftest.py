import pytest
import torch

from vapo_verl.digits.model import model_dir
from vapo_verl.digits.model.architecture import load_model


@pytest.fixture(scope="package")
def packaged():
    """The packaged model in float32, and its processor."""
    torch.set_num_threads(2)
    return load_model(model_dir())


@pytest.fixture(scope="package")
def tokenizer(packaged):
    return packaged[1].tokenizer
