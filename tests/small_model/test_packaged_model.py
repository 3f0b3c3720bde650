import pytest
import torch

from vapo_verl.data.digits.build import DigitsConfig, build_split
from vapo_verl.small_model.evaluate import evaluate, swap_images


@pytest.fixture(scope="module")
def rows():
    return build_split(DigitsConfig(test=64, seed=11), "test")


def test_it_answers_in_format_sometimes_right_and_judges_claims(packaged, rows):
    figures = evaluate(*packaged, rows)
    assert figures.format_rate > 0.9
    assert 0.2 < figures.accuracy < 0.8
    assert figures.claims_at_start > 0.6
    assert figures.claims_at_end > 0.6
    assert 0.2 < figures.yes_rate < 0.8


def test_it_keeps_the_format_when_sampled(packaged, rows):
    torch.manual_seed(0)
    figures = evaluate(*packaged, rows, temperature=1.0, num_claims=2)
    assert figures.format_rate > 0.85
    assert figures.accuracy > 0.15


def test_text_alone_is_near_chance(packaged, rows):
    seeing = evaluate(*packaged, rows)
    blind = evaluate(*packaged, swap_images(rows))
    assert blind.accuracy < seeing.accuracy - 0.1
    assert blind.claims_at_start == pytest.approx(0.5, abs=0.12)
