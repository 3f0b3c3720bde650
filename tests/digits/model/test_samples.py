"""Which solutions the warm-up teaches."""

import random
from dataclasses import replace

import pytest

from vapo_verl.digits.model.samples import SampleMaker
from vapo_verl.digits.scene import scan_pool

NUM_SAMPLES = 60


@pytest.fixture(scope="module")
def maker(tokenizer):
    return SampleMaker(tokenizer=tokenizer, pool=scan_pool("train"), questions="parts")


def mean_length(maker):
    rng = random.Random(0)
    samples = [maker.question(rng, 3, 3) for _ in range(NUM_SAMPLES)]
    return sum(len(sample.response_ids) for sample in samples) / NUM_SAMPLES


def test_a_fraction_of_the_solutions_is_hasty(maker):
    careful, half, hasty = (mean_length(replace(maker, hasty=h)) for h in (0.0, 0.5, 1.0))
    assert hasty < half < careful
    assert half == pytest.approx((careful + hasty) / 2, rel=0.2)
