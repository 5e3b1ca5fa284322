"""The Gaussian prior: its density is torch's, its samples have its moments, and it goes through files and types."""

from pathlib import Path

import pytest
import torch
from models.configs import refuses
from torch.distributions import MultivariateNormal
from torch.testing import assert_close

from unclip_hub.conditioning import Conditioning
from unclip_hub.models.gaussian_prior import GaussianPrior


D, P, E, L, B = 6, 5, 4, 7, 3  # image and text embeddings, text states, tokens, captions


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def captions(count=B, *, seed=0):
    g = seeded(seed)
    return Conditioning(
        text_embed=torch.randn(count, P, generator=g),
        text_states=torch.randn(count, L, E, generator=g),
        text_mask=torch.arange(L) < torch.randint(1, L, (count, 1), generator=g),
    )


def prior(*, states=True):
    """With a covariance of its own, and what must not matter above the factor's diagonal."""
    torch.manual_seed(0)
    made = GaussianPrior(embedding_dim=D, text_embed_dim=P, text_states_dim=E if states else None)
    with torch.no_grad():
        made.factor.copy_(torch.randn(D, D) + 3 * torch.eye(D))
    return made.eval().requires_grad_(False)


def distribution(made, cond):
    lower = made.factor.double().tril()
    mean = torch.nn.functional.linear(made.features(cond), made.mean.weight, made.mean.bias).double()
    return MultivariateNormal(mean, lower @ lower.T)


@pytest.mark.parametrize("states", [True, False])
def test_its_log_density_is_that_of_the_distribution(states):
    made, cond = prior(states=states), captions()
    embeds = torch.randn(B, D, generator=seeded(1))
    assert_close(made.log_prob(embeds, cond), distribution(made, cond).log_prob(embeds.double()), rtol=1e-5, atol=1e-5)


def test_samples_have_its_mean_and_covariance():
    made, cond = prior(), captions(1)
    drawn = made.sample(cond.repeat(40_000), generator=seeded()).double()
    expected = distribution(made, cond)
    assert_close(drawn.mean(0), expected.mean[0], rtol=0, atol=0.1)
    assert_close(torch.cov(drawn.T), expected.covariance_matrix[0], rtol=0.05, atol=0.5)


def test_temperature_scales_what_is_beside_the_mean():
    made, cond = prior(), captions()
    mean, one, two = (made.sample(cond, generator=seeded(), temperature=t) for t in (0, 1.0, 2.0))
    assert_close(mean, distribution(made, cond).mean.float())
    assert_close(two - mean, 2 * (one - mean), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="temperature must be at least 0, got -1"):
        made.sample(cond, temperature=-1)


def test_a_row_of_a_batch_with_its_own_generator_is_the_same_alone():
    made, cond = prior(), captions()
    together = made.sample(cond, generator=[seeded(i) for i in range(B)])
    alone = made.sample(captions().roll(-1).take(1), generator=[seeded(1)])
    assert_close(alone, together[1:2], rtol=1e-5, atol=1e-6)


def test_what_it_cannot_be_told_is_pythons_own_error():
    with pytest.raises(TypeError, match="guidance_scale"):
        prior().sample(captions(), guidance_scale=2.0)  # pyright: ignore[reportCallIssue]


def test_the_mean_of_the_states_leaves_padding_out():
    made, cond = prior(), captions()
    noise = torch.where(cond.text_mask[..., None], 0.0, torch.randn(B, L, E, generator=seeded(2)))
    other = Conditioning(cond.text_embed, cond.text_states + noise, cond.text_mask)
    assert_close(made.features(other), made.features(cond))
    pooled = torch.stack([states[mask].mean(0) for states, mask in zip(cond.text_states, cond.text_mask, strict=True)])
    assert_close(made.features(cond), torch.cat([cond.text_embed, pooled], dim=1))
    nothing = Conditioning(cond.text_embed, cond.text_states, torch.zeros(B, L, dtype=torch.bool))
    assert_close(made.features(nothing)[:, P:], torch.zeros(B, E))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_saves_loads_and_samples_in_another_type(tmp_path: Path, dtype):
    made, cond = prior(), captions()
    made.save_pretrained(tmp_path)
    loaded, info = GaussianPrior.from_pretrained(tmp_path, torch_dtype=dtype, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    drawn = loaded.sample(cond, generator=seeded())
    assert drawn.dtype == torch.float32
    expected = made.sample(cond, generator=seeded())
    assert_close(drawn, expected, rtol=0, atol=1e-5 if dtype == torch.float32 else 0.05 * expected.abs().max().item())


def test_gradients_reach_every_parameter():
    made, cond = prior().requires_grad_(True), captions()
    made.log_prob(torch.randn(B, D, generator=seeded(1)), cond).sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in made.parameters())


def test_refuses_what_does_not_fit():
    wide = Conditioning(torch.randn(B, P + 1), torch.randn(B, L, E), torch.ones(B, L, dtype=torch.bool))
    with refuses("text_embed must be (3, 5), got (3, 6)"):
        prior().sample(wide)
    with refuses("text_states must be (3, 7, 4), got (3, 7, 3)"):
        prior().features(Conditioning(torch.randn(B, P), torch.randn(B, L, 3), torch.ones(B, L, dtype=torch.bool)))
    with refuses("image_embed must be (3, 6), got (3, 7)"):
        prior().log_prob(torch.randn(B, D + 1), captions())
