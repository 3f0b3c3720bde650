"""What `engine_args` asks for is what comes out."""

import numpy as np
import pytest

from vapo_verl.attention import engine_args, visual_attention
from vapo_verl.gpu_check.parity import Batch, make_prompts

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

PROMPTS = make_prompts(1, 2, 0, 1, 3, 1)
ASKED = (True, False, True, True, False, None)


@pytest.fixture(scope="module")
def of_two_layers(engines):
    """Samples of an engine that exports two layers, in any order, to those who ask."""
    of_each = [{} if x is None else {"extra_args": {"visual_attention": x}} for x in ASKED]
    capture = engine_args([3, 1], per_layer=True, on_request=True)
    return engines.run(Batch(prompts=PROMPTS, sampling_of_each=of_each), capture=capture).batches[0]


@pytest.fixture(scope="module")
def of_one_span(engines):
    """Samples of an engine that exports the mean, for prompts of at most one image."""
    capture = engine_args("all", max_spans=1)
    return engines.run(Batch(prompts=PROMPTS), Batch(prompts=PROMPTS), capture=capture).batches


def test_list_of_layers_on_request(of_two_layers, assert_parity):
    asked = [x for x, wanted in zip(of_two_layers, ASKED, strict=True) if wanted]
    assert_parity(asked, of_layers=lambda values: values[:, [1, 3]])


def test_nothing_without_a_request(of_two_layers):
    for sample, wanted in zip(of_two_layers, ASKED, strict=True):
        if not wanted:
            with pytest.raises(ValueError, match="carries no visual attention"):
                visual_attention(sample.completion)


def test_mean_over_layers(of_one_span, assert_parity):
    samples = [x for x in of_one_span[0] if len(x.prompt.images) == 1]
    assert_parity(samples, of_layers=lambda values: values.mean(1))


def test_text_only_prompt_is_zero(of_one_span):
    (sample,) = (x for x in of_one_span[0] if not x.prompt.images)
    assert sample.values.shape == (len(sample.completion.token_ids),)
    assert not sample.values.any()


def test_more_spans_than_the_buffer_holds_are_nan_for_that_request_alone(
    of_one_span, assert_parity
):
    for batch in of_one_span:  # the second one: the engine lives on
        too_many = [x for x in batch if len(x.prompt.images) > 1]
        assert len(too_many) == 2
        assert all(np.isnan(x.values).all() for x in too_many)
        others = [x for x in batch if len(x.prompt.images) <= 1]
        assert_parity(others, of_layers=lambda values: values.mean(1))
