"""PAPO's terms of the loss, by hand."""

import math

import pytest
import torch

from vapo_verl.config import MethodConfig
from vapo_verl.methods import kl_estimate, method_of


def papo(**options):
    return method_of(MethodConfig(name="papo", options=options))


def logs(*values):
    return torch.tensor([values], dtype=torch.float64).log()


def test_the_terms_of_three_tokens():
    """pi = 1/2, 1/2, 1/4 and m = 1/2, 1/4, 1/2: r = 1, 1/2, 2 and
    r - log r - 1 = 0, log 2 - 1/2, 1 - log 2."""
    terms = papo(coef=0.1, entropy_coef=0.01).token_losses(
        logs(0.5, 0.5, 0.25), logs(0.5, 0.25, 0.5)
    )
    log2 = math.log(2)
    assert terms["perception"][0].tolist() == pytest.approx(
        [0.0, -0.1 * (log2 - 0.5), -0.1 * (1 - log2)]
    )
    assert terms["entropy"][0].tolist() == pytest.approx([0.01 * v * log2 for v in (1, 1, 2)])
    assert terms["masked_entropy"][0].tolist() == pytest.approx(
        [0.01 * v * log2 for v in (1, 2, 1)]
    )


def test_the_gradient_makes_likelier_what_the_image_makes_likelier():
    """d(-gamma KL) / d log pi = -gamma (1 - r): r = 1/2 in the first token, 2 in the second.

    The entropy adds -eta, and the masked view has no gradient.
    """
    log_probs, masked = logs(0.5, 0.25).requires_grad_(), logs(0.25, 0.5).requires_grad_()
    terms = papo(coef=0.1, entropy_coef=0.01).token_losses(log_probs, masked)
    sum(term.sum() for term in terms.values()).backward()
    assert log_probs.grad[0].tolist() == pytest.approx([-0.1 * 0.5 - 0.01, 0.1 * 1.0 - 0.01])
    assert masked.grad is None


def test_the_estimate_is_verls():
    from verl.trainer.ppo.core_algos import kl_penalty

    generator = torch.Generator().manual_seed(0)
    one, other = (-40 * torch.rand(50, generator=generator) for _ in range(2))
    assert torch.equal(kl_estimate(one, other), kl_penalty(one, other, "low_var_kl"))
    assert (kl_estimate(one, other) >= 0).all()


def test_without_coefficients_there_is_no_term_and_no_second_view():
    off = papo(coef=0.0, entropy_coef=0.0)
    assert not off.adds_losses and off.mask_fraction == 0
    assert papo().adds_losses and papo().mask_fraction == 0.6
    assert papo(coef=0.0).mask_fraction == 0.6


@pytest.mark.parametrize(
    ("options", "key"),
    [({"coef": -1.0}, "coef"), ({"masked": 0.0}, "masked"), ({"entropy_coef": -1}, "entropy_coef")],
)
def test_a_bad_option_is_named(options, key):
    with pytest.raises(ValueError, match=rf"vapo\.method\.options\.{key}"):
        papo(**options)
