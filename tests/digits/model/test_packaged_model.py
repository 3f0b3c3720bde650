"""Each packaged model is a start to learn from: in form, right in part, seeing."""

import pytest
import torch

from vapo_verl.digits.build import DigitsConfig, build_split
from vapo_verl.digits.model import model_dir
from vapo_verl.digits.model.architecture import load_model
from vapo_verl.digits.model.evaluate import evaluate, swap_images
from vapo_verl.digits.model.recipe import PRESETS


@pytest.fixture(scope="module", params=PRESETS)
def model_and_rows(request):
    warmup = PRESETS[request.param].warmup
    data = DigitsConfig(test=64, seed=11, grids=warmup.grids, questions=warmup.questions)
    return (*load_model(model_dir(request.param)), build_split(data, "test"))


@pytest.fixture(scope="module")
def seeing(model_and_rows):
    """Figures of the rows as they are."""
    return evaluate(*model_and_rows)


def test_it_answers_in_format_sometimes_right_and_judges_claims(seeing):
    assert seeing.format_rate > 0.9
    assert 0.2 < seeing.accuracy < 0.8
    assert seeing.claims_at_start > 0.6
    assert seeing.claims_at_end > 0.6
    assert 0.2 < seeing.yes_rate < 0.8


def test_it_keeps_the_format_when_sampled(model_and_rows):
    torch.manual_seed(0)
    figures = evaluate(*model_and_rows, temperature=1.0, num_claims=2)
    assert figures.format_rate > 0.85
    assert figures.accuracy > 0.15


def test_text_alone_is_near_chance(model_and_rows, seeing):
    model, processor, rows = model_and_rows
    blind = evaluate(model, processor, swap_images(rows))
    assert blind.accuracy < seeing.accuracy - 0.1
    assert blind.claims_at_start == pytest.approx(0.5, abs=0.12)
