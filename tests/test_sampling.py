"""The one guidance closure and the one loop, under every scheduler that users plug in."""

import diffusers
import pytest
import torch
from torch.testing import assert_close

from unclip_hub.diffusion import cosine_alphas_cumprod
from unclip_hub.sampling import denoise, guide
from unclip_hub.schedulers.unclip import UnCLIPScheduler


def network(x, t, *, shift):
    return x * 0.5 + shift


COND, NULL = {"shift": torch.tensor([[1.0], [2.0]])}, {"shift": torch.tensor([[0.5], [0.25]])}


def test_scale_one_is_the_conditional_pass_and_calls_the_network_once():
    calls = []

    def counting(x, t, **condition):
        calls.append(len(x))
        return network(x, t, **condition)

    x = torch.randn(2, 3)
    assert_close(guide(counting, COND, null=NULL, scale=1.0)(x, torch.tensor(5)), network(x, 5, **COND))
    assert calls == [2]


def test_scale_zero_is_the_null_pass_and_others_extrapolate():
    x, t = torch.randn(2, 3), torch.tensor(5)
    away, towards = network(x, t, **NULL), network(x, t, **COND)
    assert_close(guide(network, COND, null=NULL, scale=0.0)(x, t), away)
    assert_close(guide(network, COND, null=NULL, scale=3.0)(x, t), away + 3 * (towards - away))


def test_a_learned_variance_is_the_conditional_passs():
    def with_variance(x, t, *, shift):
        return torch.cat([x + shift, x - shift], dim=1)

    x = torch.randn(2, 3)
    guided = guide(with_variance, COND, null=NULL, scale=2.0)(x, torch.tensor(1))
    assert_close(guided[:, 3:], x - COND["shift"])
    assert_close(guided[:, :3], x + NULL["shift"] + 2 * (COND["shift"] - NULL["shift"]))


def test_guidance_without_a_null_condition_is_refused():
    with pytest.raises(ValueError, match="scale 2.0 needs the condition to guide away from"):
        guide(network, COND, scale=2.0)


def with_noise(x, t, *, shift):
    return x * shift + torch.sin(7 * x)


def test_rescale_gives_the_conditional_standard_deviation_back():
    x, t = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0)), torch.tensor(5)
    cond, null = ({"shift": c["shift"].view(2, 1, 1, 1)} for c in (COND, NULL))

    def std(scale, rescale):
        return guide(with_noise, cond, null=null, scale=scale, rescale=rescale)(x, t).std((1, 2, 3))

    plain, guided = std(1.0, 0.0), std(6.0, 0.0)
    assert (guided > 1.5 * plain).all()
    assert_close(std(6.0, 1.0), plain)
    assert_close(std(6.0, 0.7), 0.3 * guided + 0.7 * plain)
    assert_close(std(1.0, 0.7), plain)


def test_rescale_is_by_row_and_leaves_a_learned_variance_alone():
    def with_variance(x, t, *, shift):
        return torch.cat([with_noise(x, t, shift=shift), x - shift], dim=1)

    x, t = torch.randn(2, 3, generator=torch.Generator().manual_seed(0)), torch.tensor(5)
    both = guide(with_variance, COND, null=NULL, scale=4.0, rescale=0.5)(x, t)
    assert_close(both[:, 3:], x - COND["shift"])
    for i in range(2):
        cond, null = ({"shift": c["shift"][i : i + 1]} for c in (COND, NULL))
        alone = guide(with_variance, cond, null=null, scale=4.0, rescale=0.5)(x[i : i + 1], t)
        assert_close(both[i : i + 1], alone)


def test_only_active_timesteps_are_guided_and_the_others_cost_one_pass():
    calls = []

    def counting(x, t, **condition):
        calls.append((int(t), len(x)))
        return network(x, t, **condition)

    predict = guide(counting, COND, null=NULL, scale=3.0, active=lambda t: int(t) > 4)
    x = torch.randn(2, 3)
    away, towards = network(x, 0, **NULL), network(x, 0, **COND)
    assert_close(predict(x, torch.tensor(5)), away + 3 * (towards - away))
    assert_close(predict(x, torch.tensor(4)), towards)
    assert calls == [(5, 4), (4, 2)]


MEAN, STD = 0.4, 0.25
SCHEDULERS = {
    "unclip": (UnCLIPScheduler, {}),
    "diffusers unclip": (diffusers.UnCLIPScheduler, {}),
    "ddpm": (diffusers.DDPMScheduler, {"timestep_spacing": "linspace"}),
    "ddim": (diffusers.DDIMScheduler, {"timestep_spacing": "trailing"}),
    "dpm++": (diffusers.DPMSolverMultistepScheduler, {"timestep_spacing": "trailing"}),
    "unipc": (diffusers.UniPCMultistepScheduler, {"timestep_spacing": "trailing"}),
    "euler": (diffusers.EulerDiscreteScheduler, {"timestep_spacing": "trailing"}),
    "euler a": (diffusers.EulerAncestralDiscreteScheduler, {"timestep_spacing": "trailing"}),
    "heun": (diffusers.HeunDiscreteScheduler, {"timestep_spacing": "trailing"}),
}


def exact_epsilon(x, t):
    """The noise prediction that is optimal for data ~ N(MEAN, STD²)."""
    abar = cosine_alphas_cumprod()[int(t)].item()
    return (1 - abar) ** 0.5 * (x - abar**0.5 * MEAN) / (abar * STD**2 + 1 - abar)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_scheduler_samples_a_gaussian_from_its_exact_score(name):
    """20,000 scalars in 100 steps: mean and standard deviation within 3 % (of 0.4 and 0.25)."""
    cls, config = SCHEDULERS[name]
    scheduler = cls(beta_schedule="squaredcos_cap_v2", prediction_type="epsilon", **config)
    scheduler.set_timesteps(100)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(20_000, 1, generator=generator) * scheduler.init_noise_sigma

    def predict(x, t):
        return exact_epsilon(x, round(float(t)))

    made = denoise(predict, x, scheduler, generator=generator)
    assert made.mean().item() == pytest.approx(MEAN, abs=0.015)
    assert made.std().item() == pytest.approx(STD, abs=0.015)


def test_the_variance_half_is_dropped_where_a_scheduler_cannot_use_it():
    def predict(x, t):
        return torch.cat([exact_epsilon(x, t), torch.full_like(x, 7.0)], dim=1)

    plain = diffusers.DDIMScheduler(beta_schedule="squaredcos_cap_v2", timestep_spacing="trailing")
    plain.set_timesteps(10)
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    assert_close(denoise(predict, x, plain), denoise(lambda x, t: exact_epsilon(x, t), x, plain))


def test_diffusers_own_loop_is_reproduced_bit_for_bit():
    """The body of diffusers' UnCLIPPipeline, written out: same scheduler, same noise, same result."""
    scheduler = diffusers.UnCLIPScheduler(variance_type="learned_range")

    def predict(x, t):
        return torch.cat([exact_epsilon(x, t), torch.tanh(x)], dim=1)

    x = start = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(3))
    scheduler.set_timesteps(6)
    generator = torch.Generator().manual_seed(4)
    for i, t in enumerate(scheduler.timesteps):
        s = None if i + 1 == len(scheduler.timesteps) else scheduler.timesteps[i + 1]
        x = scheduler.step(predict(x, t), t, x, prev_timestep=s, generator=generator).prev_sample
    made = denoise(predict, start, scheduler, generator=torch.Generator().manual_seed(4))
    assert torch.equal(made, x)


def test_on_step_sees_every_step_and_may_replace_x():
    scheduler = UnCLIPScheduler(prediction_type="sample")
    scheduler.set_timesteps(3)
    seen = []

    def on_step(i, t, x):
        seen.append((i, int(t)))
        return torch.full_like(x, 0.125) if i == 2 else None

    made = denoise(lambda x, t: torch.zeros_like(x), torch.randn(2, 3), scheduler, on_step=on_step)
    assert seen == [(0, 999), (1, 500), (2, 0)]
    assert_close(made, torch.full((2, 3), 0.125))


def test_the_argument_is_not_modified():
    scheduler = UnCLIPScheduler(prediction_type="sample")
    scheduler.set_timesteps(3)
    x = torch.randn(2, 3)
    before = x.clone()
    denoise(lambda x, t: torch.zeros_like(x), x, scheduler)
    assert torch.equal(x, before)


def test_a_run_may_begin_and_end_in_the_middle():
    scheduler = UnCLIPScheduler(prediction_type="epsilon")
    scheduler.set_timesteps(5)
    x = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    seen = []

    def part(x, generator, **span):
        return denoise(
            lambda x, t: exact_epsilon(x, t),
            x,
            scheduler,
            generator=generator,
            on_step=lambda i, t, x: seen.append((i, int(t))),
            **span,
        )

    whole = part(x, torch.Generator().manual_seed(1))
    seen.clear()
    generator = torch.Generator().manual_seed(1)
    assert torch.equal(part(part(x, generator, end=2), generator, begin=2), whole)
    times = scheduler.timesteps.tolist()
    assert seen == [(0, times[0]), (1, times[1]), (0, times[2]), (1, times[3]), (2, times[4])]
    assert torch.equal(part(x, generator, begin=5), x)


@pytest.mark.parametrize("end", [2, 4])
def test_diffusers_own_scheduler_knows_its_next_step_where_a_run_ends(end):
    ours, theirs = UnCLIPScheduler(), diffusers.UnCLIPScheduler()
    x = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    made = []
    for scheduler in (ours, theirs):
        scheduler.set_timesteps(4)
        generator = torch.Generator().manual_seed(1)
        made.append(denoise(lambda x, t: exact_epsilon(x, t), x, scheduler, generator=generator, begin=1, end=end))
    assert_close(*made, atol=2e-3, rtol=1e-3)  # theirs has float32 tables
