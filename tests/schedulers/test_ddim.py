"""DDIM over its own levels: diffusers' steps downwards, their inverse upwards."""

import pytest
import torch
from diffusers import DDIMScheduler
from torch.testing import assert_close

from unclip_hub.diffusion import as_prediction, cosine_alphas_cumprod, predicted_x0
from unclip_hub.sampling import denoise
from unclip_hub.schedulers.bdia import BDIA, BDIAInverse
from unclip_hub.schedulers.ddim import DDIM, DDIMInverse, NoiseLevels


ABAR = cosine_alphas_cumprod(1000)
MEAN, STD = 0.3, 0.2
SHAPE = (2, 3, 4, 5)


def levels(steps=25, **options):
    return NoiseLevels(ABAR, steps=steps, **{"prediction_type": "epsilon"} | options)


def randn(seed=0, shape=SHAPE):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def exact(kind="epsilon"):
    """What a perfect network predicts of pictures whose pixels are N(MEAN, STD)."""

    def predict(x, t):
        abar = ABAR[t].item()
        x0 = MEAN + abar**0.5 * STD**2 * (x - abar**0.5 * MEAN) / (abar * STD**2 + 1 - abar)
        return as_prediction(x0, x, abar=abar, kind=kind)

    return predict


def untrained(x, t):
    """Not near any denoiser."""
    return torch.sin(3 * x.roll(1, -1) + t / 500) + 0.2 * x


def test_levels_are_evenly_spaced_and_end_at_the_last_timestep():
    assert levels(4).timesteps.tolist() == [249, 499, 749, 999]
    assert levels(3).timesteps.tolist() == [332, 666, 999]
    assert levels(1).timesteps.tolist() == [999]
    assert len(levels(1000)) == 1000
    for steps in (0, 1001):
        with pytest.raises(ValueError, match=f"within 1 … 1000, got {steps}"):
            levels(steps)


@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction"])
def test_a_split_adds_up_again_and_clamps_x0_alone(kind):
    found, x = levels(prediction_type=kind, limit=0.5), 2 * randn()
    output = randn(1)
    x0, eps = found.split(output, x, level=9)
    assert x0.abs().max() == 0.5
    assert_close(found.signal[9] * x0 + found.noise[9] * eps, x)
    free, _ = levels(prediction_type=kind).split(output, x, level=9)
    assert_close(free, predicted_x0(output, x, abar=found.signal[9] ** 2, kind=kind))


@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
def test_steps_down_are_those_of_diffusers(eta):
    theirs = DDIMScheduler(beta_schedule="squaredcos_cap_v2", timestep_spacing="trailing")
    theirs.set_timesteps(25)
    ours = DDIM(levels(limit=1.0), eta=eta)
    assert ours.timesteps.tolist() == theirs.timesteps.tolist()
    for t in ours.timesteps:
        x, output = randn(int(t)), randn(int(t) + 1)
        generator = torch.Generator().manual_seed(3)
        expected = theirs.step(
            output, t, x, eta=eta, use_clipped_model_output=True, generator=torch.Generator().manual_seed(3)
        )
        if t > ours.timesteps[-1]:  # their last step draws noise of a variance of 0
            assert_close(ours.step(output, t, x, generator=generator).prev_sample, expected.prev_sample.double(),
                         atol=2e-4, rtol=2e-4)  # fmt: skip


def test_sampling_gives_the_distribution():
    for eta in (0.0, 1.0):
        noise, generator = randn(shape=(4000, 1)), torch.Generator().manual_seed(1)
        made = denoise(exact(), noise, DDIM(levels(100), eta=eta), generator=generator)
        assert abs(made.mean().item() - MEAN) < 0.01 and abs(made.std().item() - STD) < 0.02


def round_trip(predict, up, down):
    x = (MEAN + STD * randn()).clamp(-1, 1)
    noise = denoise(predict, x, up)
    return (denoise(predict, noise, down) - x).pow(2).mean().sqrt().item(), noise


@pytest.mark.parametrize("kind", ["epsilon", "sample"])
def test_ddim_inversion_errs_less_with_more_steps_and_iterations(kind):
    def error(steps, iterations):
        found = levels(steps, prediction_type=kind)
        return round_trip(exact(kind), DDIMInverse(found, iterations=iterations), DDIM(found))

    few, noise = error(10, 1)
    assert 0.5 < noise.std() < 1.3
    assert error(100, 1)[0] < 0.3 * few
    assert error(10, 6)[0] < 0.1 * few
    assert error(10, 40)[0] < 1e-12  # the true inverse of the very same steps
    assert few > 1e-3


@pytest.mark.parametrize("limit", [None, 0.4])
@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction"])
def test_exact_inversion_is_exact_whatever_the_network(kind, limit):
    for predict in (exact(kind), untrained):
        found = levels(12, prediction_type=kind, limit=limit)
        x, up = randn(), BDIAInverse(found)
        last = denoise(predict, x, up)
        again = denoise(predict, up.before_last, BDIA(found, last=last))
        scale = max(1, last.abs().max().item())
        assert_close(again, x, atol=1e-11 * scale, rtol=0)


def test_exact_inversion_finds_noise_and_two_states_are_needed():
    found = levels(25)
    x = MEAN + STD * randn(shape=(2000, 1))
    up = BDIAInverse(found)
    last = denoise(exact(), x, up)
    assert 0.8 < last.std() < 1.25 and abs(last.mean()) < 0.1
    from_one = denoise(exact(), last, DDIM(found))
    assert (from_one - x).abs().mean() > 1e-4


def test_what_cannot_be_inverted():
    with pytest.raises(ValueError, match="at least 2 steps, got 1"):
        BDIAInverse(levels(1))
    with pytest.raises(ValueError, match="at least 2 steps, got 1"):
        BDIA(levels(1), last=randn())
    with pytest.raises(ValueError, match="iterations must be at least 1, got 0"):
        DDIMInverse(levels(), iterations=0)
