"""The ancestral sampler against Karlo's own trajectory, against diffusers', and where diffusers fails."""

from pathlib import Path

import diffusers
import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

from unclip_hub.diffusion import cosine_alphas_cumprod
from unclip_hub.schedulers.unclip import UnCLIPScheduler


GOLDEN = Path(__file__).parents[1] / "golden" / "karlo_prior_trajectory.safetensors"


def original_spacing(count: int) -> list[int]:
    """space_timesteps of improved diffusion, restated: strides summed up, each rounded."""
    stride = 999 / (count - 1)
    taken, at = [], 0.0
    for _ in range(count):
        taken.append(round(at))
        at += stride
    return taken[::-1]


def test_steps_of_karlos_own_prior_are_reproduced():
    """Each recorded step from the recorded x_0 and the recorded noise (the original's run, clipped at 10)."""
    golden = load_file(GOLDEN)
    scheduler = UnCLIPScheduler(prediction_type="sample", clip_sample_range=10.0)
    scheduler.set_timesteps(25)
    assert scheduler.timesteps.tolist() == golden["timesteps"].tolist()
    x = golden["init_noise"]
    for i, t in enumerate(scheduler.timesteps):
        drawn = FixedNoise(golden["step_noise"][i])
        x = drawn.step(scheduler, golden["pred_x0"][i], t, x)
        assert_close(x, golden["x"][i], atol=2e-5, rtol=1e-5)


class FixedNoise:
    """Makes a step use recorded noise: the step is linear in it, so two drawn steps tell the coefficient."""

    def __init__(self, noise):
        self.noise = noise

    def step(self, scheduler, x0, t, x):
        def drawn(seed):
            return scheduler.step(x0, t, x, generator=torch.Generator().manual_seed(seed)).prev_sample

        one, two = drawn(1), drawn(2)
        if torch.equal(one, two):  # no noise at the last step
            return one
        first, second = (torch.randn(x.shape, generator=torch.Generator().manual_seed(s)) for s in (1, 2))
        scale = ((one - two).double() / (first - second).double()).median()
        return (one.double() + scale * (self.noise - first).double()).float()


@pytest.mark.parametrize("count", [2, 7, 25, 50, 250, 1000])
def test_timesteps_are_the_originals(count):
    scheduler = UnCLIPScheduler()
    scheduler.set_timesteps(count)
    assert scheduler.timesteps.tolist() == original_spacing(count)


def test_diffusers_rounds_other_timesteps_for_some_counts():
    """The reason for spacing of our own; if this fails, diffusers was mended."""
    theirs = diffusers.UnCLIPScheduler()
    differing = 0
    for count in range(2, 1001):
        theirs.set_timesteps(count)
        differing += theirs.timesteps.tolist() != original_spacing(count)
    assert differing > 200


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample"])
@pytest.mark.parametrize("variance_type", ["fixed_small_log", "learned_range"])
def test_steps_equal_diffusers_but_for_its_float32_tables(prediction_type, variance_type):
    config = {"prediction_type": prediction_type, "variance_type": variance_type, "clip_sample_range": 2.0}
    ours, theirs = UnCLIPScheduler(**config), diffusers.UnCLIPScheduler(**config)
    ours.set_timesteps(25), theirs.set_timesteps(25)
    x = torch.randn(2, 3, 8, 12, generator=torch.Generator().manual_seed(0))
    channels = 6 if variance_type == "learned_range" else 3
    output = torch.randn(2, channels, 8, 12, generator=torch.Generator().manual_seed(1)).clamp(-1, 1)
    steps = [*ours.timesteps.tolist()]
    for t, s in zip(steps[:-1], steps[1:], strict=True):
        mine = ours.step(output, t, x, generator=torch.Generator().manual_seed(t))
        other = theirs.step(output, t, x, prev_timestep=s, generator=torch.Generator().manual_seed(t))
        assert_close(mine.prev_sample, other.prev_sample, atol=2e-4, rtol=2e-4)
        assert_close(mine.pred_original_sample, other.pred_original_sample, atol=2e-4, rtol=2e-4)


def test_the_last_step_returns_x0_exactly():
    scheduler = UnCLIPScheduler(prediction_type="sample", clip_sample=False)
    scheduler.set_timesteps(25)
    x, x0 = torch.randn(2, 5), torch.randn(2, 5)
    assert_close(scheduler.step(x0, 0, x).prev_sample, x0, atol=1e-6, rtol=0)


def test_one_step_is_allowed_and_starts_from_noise():
    scheduler = UnCLIPScheduler(prediction_type="sample", clip_sample=False)
    scheduler.set_timesteps(1)
    assert scheduler.timesteps.tolist() == [999]
    x0 = torch.randn(2, 5)
    assert_close(scheduler.step(x0, 999, torch.randn(2, 5)).prev_sample, x0, atol=1e-6, rtol=0)


def test_prediction_types_agree_on_the_same_x0():
    x0, noise = torch.rand(2, 5) * 2 - 1, torch.randn(2, 5)
    abar = cosine_alphas_cumprod()[500].item()
    x_t = abar**0.5 * x0 + (1 - abar) ** 0.5 * noise
    outputs = {"sample": x0, "epsilon": noise, "v_prediction": abar**0.5 * noise - (1 - abar) ** 0.5 * x0}
    for kind, output in outputs.items():
        scheduler = UnCLIPScheduler(prediction_type=kind)
        scheduler.set_timesteps(1000)
        assert_close(scheduler.step(output, 500, x_t).pred_original_sample, x0, atol=1e-5, rtol=1e-5)


def test_config_travels_to_and_from_diffusers():
    ours = UnCLIPScheduler(prediction_type="sample", clip_sample_range=5.0)
    theirs = diffusers.UnCLIPScheduler.from_config(ours.config)
    assert UnCLIPScheduler.from_config(theirs.config).config["clip_sample_range"] == 5.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"beta_schedule": "linear"}, "beta_schedule must be one of"),
        ({"variance_type": "learned"}, "variance_type must be one of"),
        ({"prediction_type": "flow"}, "prediction_type must be one of"),
    ],
)
def test_foreign_configurations_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        UnCLIPScheduler(**arguments)


@pytest.mark.parametrize("count", [0, -3, 1001])
def test_step_counts_out_of_range_are_refused(count):
    with pytest.raises(ValueError, match="within 1 … 1000"):
        UnCLIPScheduler().set_timesteps(count)


def test_learned_range_says_when_the_network_has_none():
    scheduler = UnCLIPScheduler(variance_type="learned_range")
    scheduler.set_timesteps(5)
    with pytest.raises(ValueError, match="needs 6 output channels, got 3"):
        scheduler.step(torch.randn(1, 3, 4, 4), 999, torch.randn(1, 3, 4, 4))
