"""The algebra of one diffusion step."""

import pytest
import torch
from torch.testing import assert_close

from unclip_hub.diffusion import (
    cosine_alphas_cumprod,
    learned_range_std,
    posterior,
    predicted_x0,
    q_sample,
    training_target,
)


def test_cosine_table_is_diffusers_in_float64():
    from diffusers.schedulers.scheduling_unclip import betas_for_alpha_bar

    theirs = torch.cumprod(1 - betas_for_alpha_bar(1000).double(), dim=0)
    ours = cosine_alphas_cumprod()
    assert ours.dtype == torch.float64
    assert_close(ours, theirs, atol=1e-6, rtol=1e-4)
    assert (ours.diff() < 0).all()


@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction"])
def test_the_target_implies_the_picture_it_was_made_of(kind):
    generator = torch.Generator().manual_seed(0)
    x0, noise = (torch.randn(4, 3, 5, dtype=torch.float64, generator=generator) for _ in range(2))
    abar = cosine_alphas_cumprod()[torch.tensor([0, 200, 500, 900])]
    x_t = q_sample(x0, noise, abar=abar)
    target = training_target(x0, noise, abar=abar, kind=kind)
    implied = predicted_x0(target, x_t, abar=abar.view(-1, 1, 1), kind=kind)
    assert_close(implied, x0, atol=1e-9, rtol=1e-9)


def test_posterior_mean_and_variance_match_bayes_on_a_gaussian():
    """For x_0 known, q(x_s | x_t, x_0) follows from two independent Gaussians: restated by precision weighting."""
    table = cosine_alphas_cumprod()
    at, as_ = table[700].item(), table[450].item()
    step = posterior(at, as_)
    alpha = at / as_
    precision = alpha / (1 - alpha) + 1 / (1 - as_)
    x0, x_t = 0.3, -1.1
    mean = (alpha**0.5 / (1 - alpha) * x_t + as_**0.5 / (1 - as_) * x0) / precision
    assert step.variance == pytest.approx(1 / precision, rel=1e-9)
    assert step.x0_coefficient * x0 + step.sample_coefficient * x_t == pytest.approx(mean, rel=1e-9)


def test_learned_range_spans_from_beta_tilde_to_beta():
    table = cosine_alphas_cumprod()
    step = posterior(table[700].item(), table[450].item())
    ends = learned_range_std(torch.tensor([-1.0, 1.0], dtype=torch.float64), step)
    assert_close(ends**2, torch.tensor([step.variance, step.beta], dtype=torch.float64))


def test_unknown_prediction_types_are_refused():
    with pytest.raises(ValueError, match="prediction type must be one of .* got 'flow'"):
        predicted_x0(torch.zeros(1), torch.zeros(1), abar=0.5, kind="flow")
