"""Flow matching as a diffusion: the straight path's noise schedule, its loss, and DDIM as Euler's step along it."""

import diffusers
import pytest
import torch
from torch import nn
from torch.testing import assert_close

import unclip_hub
from unclip_hub.diffusion import flow_alphas_cumprod, q_sample
from unclip_hub.training.export import new_scheduler
from unclip_hub.training.objective import Noised, Objective


FLOW = Objective(schedule="flow", weighting="flow", min_noise=0.15)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def scheduler(steps):
    made = new_scheduler(FLOW, nn.Linear(1, 1), clip_sample_range=5.0)
    made.set_timesteps(steps)
    return made


def along(s):
    """The length of (1 - s, s), by which x_s on the straight path is divided to have the variance that x_t has."""
    return ((1 - s) ** 2 + s**2) ** 0.5


def test_the_schedule_is_that_of_the_straight_path_and_ends_above_nothing():
    abar = flow_alphas_cumprod(500)
    s = torch.arange(1, 500, dtype=torch.float64) / 500
    assert_close((abar / (1 - abar)).sqrt()[:-1], (1 - s) / s)
    assert 0 < abar[-1] < 1e-8
    assert (abar[1:] < abar[:-1]).all() and abar[0] < 1


def test_the_loss_is_the_error_of_the_velocity_bounded_near_the_picture():
    x0, wrong = torch.randn(4, 5, generator=seeded()), torch.randn(4, 5, generator=seeded(1))
    t = torch.tensor([49, 299, 699, 998])  # s = 0.05, 0.3, 0.7, 0.999
    s = ((t + 1) / 1000)[:, None]
    noise = torch.randn(4, 5, generator=seeded(2))
    noised = Noised(q_sample(x0, noise, abar=FLOW.alphas_cumprod[t]), t, noise)
    x_s = (1 - s) * x0 + s * noise
    assert_close(noised.x_t * along(s), x_s, rtol=1e-4, atol=1e-5)
    losses, _ = FLOW.losses(wrong, x0, noised)
    velocity = ((x_s - wrong) / s - (noise - x0)).square().mean(dim=1)
    assert_close(losses[1:], velocity[1:], rtol=1e-3, atol=1e-4)
    assert_close(losses[:1], velocity[:1] * (0.05 / 0.15) ** 2, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_a_step_of_ddim_is_eulers_along_the_flow(steps):
    made = scheduler(steps)
    for i, t in enumerate(made.timesteps):
        s, after = 1 - i / steps, 1 - (i + 1) / steps
        assert t == round(1000 * s) - 1
        x, predicted = (torch.randn(3, 7, generator=seeded(10 * i + j)) for j in (0, 1))
        euler = x + (after - s) * (x - predicted) / s
        stepped = made.step(predicted, t, x / along(s)).prev_sample
        assert_close(stepped * along(after), euler, rtol=1e-4, atol=2e-4)


def test_one_step_of_a_perfect_network_is_exact():
    made, x0 = scheduler(1), torch.randn(3, 7, generator=seeded())
    assert_close(made.step(x0, made.timesteps[0], torch.randn(3, 7)).prev_sample, x0, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("steps", "noise_left"), [(2, 0.0), (5, 0.0), (7, 0.001), (12, 0.001)])
def test_any_number_of_steps_of_a_perfect_network_is_exact(steps, noise_left):
    """Where 1,000 is no multiple, diffusers ends one timestep early."""
    x0, noise = torch.randn(3, 7, generator=seeded()), torch.randn(3, 7, generator=seeded(1))
    made, x = scheduler(steps), noise
    for t in made.timesteps:
        x = made.step(x0, t, x).prev_sample
    assert_close(x, x0, rtol=0, atol=1e-5 + 1.05 * noise_left * (x0.abs().max() + noise.abs().max()).item())


@pytest.mark.parametrize("name", ["DDPMScheduler", "DPMSolverMultistepScheduler", "EulerDiscreteScheduler"])
def test_other_schedulers_take_the_schedule_over(name, tmp_path):
    scheduler(4).save_pretrained(tmp_path)
    read = diffusers.DDIMScheduler.from_pretrained(tmp_path)
    other = getattr(diffusers, name).from_config(read.config)
    assert_close(other.alphas_cumprod.double(), flow_alphas_cumprod(), rtol=1e-4, atol=1e-9)
    assert other.config["prediction_type"] == "sample"


def test_a_scheduler_of_another_schedule_refuses_it():
    with pytest.raises(ValueError, match="beta_schedule must be one of .* got 'flow'"):
        unclip_hub.UnCLIPScheduler.from_config(scheduler(4).config)
