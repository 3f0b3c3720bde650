"""The noise of NoisyRollout, who gets it, and how it fades."""

import math

import numpy as np
import pytest

from vapo_verl.config import MethodConfig
from vapo_verl.methods import Progress, method_of
from vapo_verl.methods.noisy_rollout import KEPT, noised

IMAGE = np.full((40, 50, 3), 128, dtype=np.uint8)


def noisy(**options):
    return method_of(MethodConfig(name="noisy_rollout", options=options))


def at(step, total_steps=60):
    return Progress(step=step, total_steps=total_steps)


def test_the_schedule_is_that_of_the_paper():
    """The first b is 1e-5 + 4.99e-3 sigmoid(-6), the last 1e-5 + 4.99e-3 sigmoid(6).

    The mean of sigmoid from -6 to 0 is log(2 / (1 + exp(-6))) / 6: it makes up the first 500.
    """
    low = 1 / (1 + math.exp(6))
    assert KEPT[0] == pytest.approx(1 - (1e-5 + 4.99e-3 * low), abs=1e-12)
    assert KEPT[-1] / KEPT[-2] == pytest.approx(1 - (1e-5 + 4.99e-3 * (1 - low)), abs=1e-12)
    mean = math.log(2 / (1 + math.exp(-6))) / 6
    assert KEPT[499] == pytest.approx(math.exp(-500 * (1e-5 + 4.99e-3 * mean)), abs=2e-3)


def test_the_noise_fades():
    """At s_0 half of it is left; 10 of 60 steps before, 1 / (1 + exp(-30 / 6)) = 0.99331 of it."""
    method = noisy()
    assert [method.noise_at(at(step)) for step in (1, 30, 40, 50, 60)] == [499, 496, 250, 3, 0]
    assert noisy(steepness=0.0).noise_at(at(60)) == 250
    assert noisy(steepness=1e9).noise_at(at(60)) == 0  # no overflow


def test_half_of_the_responses_get_it_and_only_while_there_is_any():
    method = noisy()
    assert [method.changes_image(i, 5, at(1)) for i in range(5)] == [
        False,
        False,
        False,
        True,
        True,
    ]
    assert not any(method.changes_image(i, 5, at(60)) for i in range(5))
    assert not any(noisy(noisy_fraction=0.0).changes_image(i, 5, at(1)) for i in range(5))
    assert not any(noisy(noise_step=0).changes_image(i, 5, at(1)) for i in range(5))
    assert not method.changes_image(0, 1, at(1))  # a group of one keeps its image


def test_an_image_is_moved_by_the_noise_of_its_step():
    """x = 128 / 255: mean sqrt(q) x, deviation sqrt(1 - q); k = 50 leaves q so high that nothing
    is held to [0, 1]."""
    found = noised(IMAGE, 50, np.random.default_rng(0)) / 255
    assert found.shape == IMAGE.shape
    assert found.mean() == pytest.approx(math.sqrt(KEPT[50]) * 128 / 255, abs=1e-3)
    assert found.std() == pytest.approx(math.sqrt(1 - KEPT[50]), abs=1e-3)


def test_strong_noise_is_held_to_the_range_of_pixels():
    found = noised(IMAGE, 999, np.random.default_rng(0))
    assert found.dtype == np.uint8 and found.min() == 0 and found.max() == 255


def test_an_image_is_a_function_of_the_generator():
    method = noisy()
    one, same, other = (
        method.changed_image(IMAGE, at(1), np.random.default_rng(seed)) for seed in (3, 3, 4)
    )
    assert np.array_equal(one, same) and not np.array_equal(one, other)
    assert (IMAGE == 128).all()


def test_accuracies_are_those_of_the_two_kinds():
    metrics = noisy().response_metrics([0, 1, 2, 3, 4, 3], [1, 1, 0, 1, 0, 0], 5, [at(1)] * 6)
    assert metrics == {
        "vapo/noisy_rollout/noise_step": 499.0,
        "vapo/noisy_rollout/accuracy_noisy": pytest.approx(1 / 3),
        "vapo/noisy_rollout/accuracy_clean": pytest.approx(2 / 3),
    }
    over = noisy().response_metrics([0, 4], [1, 0], 5, [at(60)] * 2)
    assert math.isnan(over["vapo/noisy_rollout/accuracy_noisy"])


def test_a_response_is_of_the_kind_that_it_was_when_it_was_asked_for():
    """Asynchronous: of two last responses, one was asked for while there was noise."""
    found = noisy().response_metrics([4, 4], [1, 0], 5, [at(1), at(60)])
    assert found["vapo/noisy_rollout/accuracy_noisy"] == 1.0
    assert found["vapo/noisy_rollout/accuracy_clean"] == 0.0
    assert found["vapo/noisy_rollout/noise_step"] == 499 / 2


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"noisy_fraction": 1.5}, "noisy_fraction"),
        ({"noise_step": 1000}, "noise_step"),
        ({"noise_step": 0.5}, "noise_step"),
        ({"steepness": -1.0}, "steepness"),
        ({"steepness": math.inf}, "steepness"),
        ({"mid_step": math.nan}, "mid_step"),
    ],
)
def test_a_bad_option_is_named(options, key):
    with pytest.raises(ValueError, match=rf"vapo\.method\.options\.{key}"):
        noisy(**options)
