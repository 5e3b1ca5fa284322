"""Fitting the Gaussian prior: it finds what data were drawn from, in any batches, and survives poor data."""

import re

import pytest
import torch
from torch.testing import assert_close

from unclip_hub.conditioning import Conditioning
from unclip_hub.models.gaussian_prior import GaussianPrior
from unclip_hub.training.gaussian_prior import Moments, fit_gaussian_prior, fit_to_batches, shrunk_covariance
from unclip_hub.training.prior import PriorBatch


D, P = 4, 3  # image and text embeddings


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def truth():
    g = seeded(7)
    weight, bias = torch.randn(D, P, generator=g), torch.randn(D, generator=g)
    return weight, bias, 0.3 * torch.randn(D, D, generator=g).tril() + 0.5 * torch.eye(D)


def drawn(count, *, seed=0):
    """Captions, and image embeddings with the true mean and covariance."""
    g, (weight, bias, factor) = seeded(seed), truth()
    text = 2 + torch.randn(count, P, generator=g)
    embeds = text @ weight.T + bias + torch.randn(count, D, generator=g) @ factor.T
    states = torch.zeros(count, 2, P)
    return PriorBatch(embeds, Conditioning(text, states, torch.ones(count, 2, dtype=torch.bool)))


def batches(*sizes):
    whole, at = drawn(sum(sizes)), 0
    for size in sizes:
        rows, at = slice(at, at + size), at + size
        caption = whole.caption
        part = Conditioning(caption.text_embed[rows], caption.text_states[rows], caption.text_mask[rows])
        yield PriorBatch(whole.image_embed[rows], part)


def fitted(*sizes, held_out=0):
    prior = GaussianPrior(D, P)
    return prior, fit_to_batches(prior, batches(*sizes), held_out=held_out)


def moments_of(features, embeds):
    moments = Moments(features.shape[1] + embeds.shape[1])
    moments.add(torch.cat([features, embeds], dim=1))
    return moments


def test_a_known_linear_map_and_covariance_are_found():
    prior, facts = fitted(15_000, 15_000, 2_000, held_out=1)
    weight, bias, factor = truth()
    assert_close(prior.mean.weight.detach(), weight, rtol=0, atol=0.02)
    assert_close(prior.mean.bias.detach(), bias, rtol=0, atol=0.06)
    assert_close((prior.factor @ prior.factor.T).detach(), factor @ factor.T, rtol=0, atol=0.02)
    assert facts["fitted to"] == "30,000 embeddings"
    own, without = map(float, re.findall(r"-?[\d.]+(?= nats| without)", facts["log-density of held-out embeddings"]))
    assert own > without + 1


def test_batches_make_no_difference():
    one, many = fitted(600)[0], fitted(1, 250, 7, 342)[0]
    assert_close(many.state_dict(), one.state_dict(), rtol=1e-4, atol=1e-5)


def test_held_out_batches_are_not_fitted_to():
    first = GaussianPrior(D, P)
    fit_to_batches(first, list(batches(300, 40, 60))[:1])
    assert_close(fitted(300, 40, 60, held_out=2)[0].state_dict(), first.state_dict(), rtol=1e-4, atol=1e-5)


def test_it_tells_new_embeddings_better_than_a_gaussian_without_captions():
    prior, new = fitted(2_000)[0], drawn(500, seed=1)
    true = GaussianPrior(D, P)
    weight, bias, factor = truth()
    true.load_state_dict({"mean.weight": weight, "mean.bias": bias, "factor": factor})
    alone = torch.distributions.MultivariateNormal(new.image_embed.mean(0), torch.cov(new.image_embed.T))
    best = true.log_prob(new.image_embed, new.caption).mean()
    got = prior.log_prob(new.image_embed, new.caption).mean()
    assert best - 0.02 < got < best + 0.02
    assert got > alone.log_prob(new.image_embed).mean() + 1


def test_captions_that_say_nothing_are_regressed_on_less():
    g = seeded()
    text, noise = torch.randn(40, 12, generator=g), torch.randn(40, 5, generator=g)
    strengths = {}
    for name, embeds in {"nothing": noise, "much": text[:, :5] + 0.05 * noise}.items():
        prior = GaussianPrior(5, 12)
        strengths[name] = fit_gaussian_prior(prior, moments_of(text, embeds))
    assert strengths["nothing"].ridge > 30 * strengths["much"].ridge
    assert strengths["nothing"].explained < 0.3 and strengths["much"].explained > 0.95


@pytest.mark.parametrize("poor", ["few rows", "constant", "copies", "exact", "one caption"])
def test_poor_data_still_make_a_density(poor):
    g = seeded()
    count = 3 if poor == "few rows" else 50
    text, embeds = torch.randn(count, 6, generator=g), torch.randn(count, 8, generator=g)
    if poor == "constant":
        embeds[:, 2] = 5.0
    if poor == "copies":
        embeds[:, 4:] = embeds[:, :4]
    if poor == "exact":
        embeds = text @ torch.randn(6, 8, generator=g)
    if poor == "one caption":
        text = text[:1].expand(count, -1) + 3
    prior = GaussianPrior(8, 6)
    fit_gaussian_prior(prior, moments_of(text, embeds))
    cond = Conditioning(text, torch.zeros(count, 1, 6), torch.ones(count, 1, dtype=torch.bool))
    assert prior.log_prob(embeds, cond).isfinite().all()
    sampled = prior.sample(cond, generator=seeded(1))
    assert sampled.isfinite().all() and sampled.abs().max() < 30
    if poor == "constant":
        assert_close(sampled[:, 2], torch.full((count,), 5.0), rtol=0, atol=0.01)
    if poor == "exact":
        assert_close(sampled, embeds, rtol=0, atol=0.05)


def test_shrinkage_is_for_few_rows():
    g = seeded()
    factor = torch.diag(torch.tensor([3.0, 1.0, 0.5, 0.1, 0.1, 0.1], dtype=torch.float64))
    new = torch.randn(2_000, 6, dtype=torch.float64, generator=g) @ factor
    chosen = {}
    for rows in (8, 4_000):
        x = torch.randn(rows, 6, dtype=torch.float64, generator=g) @ factor
        covariance, chosen[rows] = shrunk_covariance(x.T @ x / rows, rows=rows)
        shrunk, plain = (
            torch.distributions.MultivariateNormal(torch.zeros(6, dtype=torch.float64), c).log_prob(new).mean()
            for c in (covariance, x.T @ x / rows)
        )
        assert shrunk > plain - 0.01
        if rows == 8:
            assert shrunk > plain + 1
    assert chosen[8] > 30 * chosen[4_000]


def test_what_cannot_be_fitted_is_said():
    with pytest.raises(ValueError, match="at least 2 embeddings, got 1"):
        fitted(1)
    prior = GaussianPrior(D, P)
    with pytest.raises(ValueError, match="must be finite and differ"):
        fit_gaussian_prior(prior, moments_of(torch.randn(5, P), torch.ones(5, D)))
    with pytest.raises(ValueError, match="must be finite and differ"):
        fit_gaussian_prior(prior, moments_of(torch.randn(5, P), torch.full((5, D), torch.nan)))
