"""The algebra of one diffusion step."""

import pytest
import torch
from torch.testing import assert_close

from unclip_hub.diffusion import (
    bound_terms,
    cosine_alphas_cumprod,
    learned_range_std,
    linear_alphas_cumprod,
    min_snr_weight,
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


def test_linear_table_is_diffusers_in_float64():
    from diffusers import DDPMScheduler

    assert_close(linear_alphas_cumprod().float(), DDPMScheduler().alphas_cumprod, atol=1e-6, rtol=1e-4)
    assert linear_alphas_cumprod(250)[-1].item() == pytest.approx(linear_alphas_cumprod()[-1].item(), rel=0.2)


@pytest.mark.parametrize(("kind", "factor"), [("sample", 1.0), ("epsilon", 0.3 / 0.7), ("v_prediction", 0.3)])
@pytest.mark.parametrize(("gamma", "expected"), [(1.0, 1.0), (5.0, 0.7 / 0.3)])
def test_min_snr_weights_an_error_of_x0_alike_in_every_form(kind, factor, gamma, expected):
    weight = min_snr_weight(torch.tensor([0.7], dtype=torch.float64), kind=kind, gamma=gamma)
    assert weight.item() == pytest.approx(expected * factor)


def bound_inputs(t):
    generator = torch.Generator().manual_seed(1)
    x0, off, variance = (torch.randn(2, 3, 5, dtype=torch.float64, generator=generator) for _ in range(3))
    x0 = x0.clamp(-1, 1)
    return x0, x0 + 0.01 * off, variance, torch.tensor(t)


def test_bound_terms_are_divergences_of_normal_distributions():
    table = cosine_alphas_cumprod()
    x0, predicted, variance, t = bound_inputs([700, 2])
    got = bound_terms(variance, predicted, x0=x0, t=t, alphas_cumprod=table)
    for i in range(2):
        step = posterior(table[t[i]].item(), table[t[i] - 1].item())
        x_t = torch.full_like(x0[i], 0.4)
        means = [step.x0_coefficient * x + step.sample_coefficient * x_t for x in (x0[i], predicted[i])]
        q = torch.distributions.Normal(means[0], torch.tensor(step.variance, dtype=torch.float64).sqrt())
        p = torch.distributions.Normal(means[1], learned_range_std(variance[i], step))
        expected = torch.distributions.kl_divergence(q, p).mean() / torch.tensor(2.0).double().log()
        assert_close(got[i], expected)


def test_the_last_bound_term_is_the_likelihood_of_a_pixel():
    table = cosine_alphas_cumprod()
    x0, predicted, variance, t = bound_inputs([0, 0])
    x0[0, 0] = torch.tensor([-1.0, 1.0, -1.0, 1.0, 0.0])
    low = posterior(table[1].item(), table[0].item()).variance
    fraction = (variance + 1) / 2
    std = (low ** (1 - fraction) * (1 - table[0]) ** fraction).sqrt()
    p = torch.distributions.Normal(predicted, std)
    above = torch.where(x0 == 1, 1.0, p.cdf(x0 + 1 / 255))
    below = torch.where(x0 == -1, 0.0, p.cdf(x0 - 1 / 255))
    expected = -(above - below).clamp(min=1e-12).log2().mean(dim=(1, 2))
    assert_close(bound_terms(variance, predicted, x0=x0, t=t, alphas_cumprod=table), expected)


def test_the_bound_is_least_where_the_variance_fits_the_error():
    """A perfect prediction wants beta tilde, one that is far off more."""
    table = cosine_alphas_cumprod()
    x0, t = torch.zeros(1, 1), torch.tensor([300])
    variances = torch.linspace(-1, 1, 21)
    for predicted, best in ((0.0, -1.0), (10.0, 1.0)):
        terms = [
            bound_terms(v.view(1, 1), torch.full((1, 1), predicted), x0=x0, t=t, alphas_cumprod=table).item()
            for v in variances
        ]
        assert variances[terms.index(min(terms))].item() == best
