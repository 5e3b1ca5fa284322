"""Every scheduler on every stage, made from the stage's own configuration alone: it samples, or says why not."""

import re

import diffusers
import pytest
import torch
from pipelines import tiny
from torch.testing import assert_close

import unclip_hub
from unclip_hub import UnCLIPPipeline, denoise
from unclip_hub.diffusion import cosine_alphas_cumprod
from unclip_hub.pipelines.schedulers import fitted, supported


def multistep_sde(config):
    return diffusers.DPMSolverMultistepScheduler.from_config(config, algorithm_type="sde-dpmsolver++")


def singlestep_sde(config):
    return diffusers.DPMSolverSinglestepScheduler.from_config(config, algorithm_type="sde-dpmsolver++")


def distilled_lcm(config):
    return diffusers.LCMScheduler.from_config(config, original_inference_steps=50)


MAKE = {
    "unclip": unclip_hub.UnCLIPScheduler.from_config,
    "diffusers-unclip": diffusers.UnCLIPScheduler.from_config,
    "ddpm": diffusers.DDPMScheduler.from_config,
    "ddim": diffusers.DDIMScheduler.from_config,
    "dpm++multistep": diffusers.DPMSolverMultistepScheduler.from_config,
    "dpm++multistep-sde": multistep_sde,
    "dpm++singlestep": diffusers.DPMSolverSinglestepScheduler.from_config,
    "dpm++singlestep-sde": singlestep_sde,
    "unipc": diffusers.UniPCMultistepScheduler.from_config,
    "deis": diffusers.DEISMultistepScheduler.from_config,
    "sa": diffusers.SASolverScheduler.from_config,
    "euler": diffusers.EulerDiscreteScheduler.from_config,
    "euler-ancestral": diffusers.EulerAncestralDiscreteScheduler.from_config,
    "heun": diffusers.HeunDiscreteScheduler.from_config,
    "kdpm2": diffusers.KDPM2DiscreteScheduler.from_config,
    "kdpm2-ancestral": diffusers.KDPM2AncestralDiscreteScheduler.from_config,
    "pndm": diffusers.PNDMScheduler.from_config,
    "lcm": diffusers.LCMScheduler.from_config,
    "lcm-distilled": distilled_lcm,
    "tcd": diffusers.TCDScheduler.from_config,
}
# numbers of steps that a scheduler refuses, of the 1 and 4 that are tried, and a part of the reason
DISTILLED = "weights distilled for it"
REFUSED = {
    "diffusers-unclip": {1: "ZeroDivisionError"},
    "heun": {4: "it is wrong in 4 steps"},
    "kdpm2-ancestral": {4: "NaN"},
    "pndm": {1: "fails in 1 step", 4: "it is wrong in 4 steps"},
    "lcm": {1: DISTILLED, 4: DISTILLED},
    "tcd": {1: DISTILLED, 4: DISTILLED},
}
STAGES = ("prior", "decoder", "super_res")


@pytest.fixture(scope="module", params=["karlo", "bundled"])
def parts(request):
    """Learned variance and noise prediction with two upsampling networks; or x_0 prediction with one."""
    return tiny.components(karlo=request.param == "karlo")


def swapped(parts, **makers):
    pipe = UnCLIPPipeline(**parts)
    pipe.set_progress_bar_config(disable=True)
    for stage, make in makers.items():
        name = f"{stage}_scheduler"
        setattr(pipe, name, make(getattr(pipe, name).config))
    return pipe


def steps(count):
    return {f"{stage}_num_inference_steps": count for stage in STAGES}


def run(pipe, *, count, seed=0):
    return pipe("a house", **steps(count), generator=torch.Generator().manual_seed(seed), output_type="pt")


@pytest.mark.parametrize("name", MAKE)
def test_on_all_stages_it_makes_a_picture_or_says_why_not(parts, name, monkeypatch):
    pipe = swapped(parts, **dict.fromkeys(STAGES, MAKE[name]))
    for count in (1, 4):
        reason = REFUSED.get(name, {}).get(count)
        if reason is None:
            made = run(pipe, count=count)
            assert all(x.isfinite().all() for x in made.values())
            assert made.image_embeds.abs().max() < 7  # clipped at 5, by the library where not by the scheduler
            assert torch.equal(made.images, run(pipe, count=count).images)
        else:
            with monkeypatch.context() as patch, pytest.raises(ValueError, match=reason) as refused:
                patch.setattr(type(pipe), "encode_text", lambda *_: pytest.fail("computed before checking"))
                run(pipe, count=count)
            assert "the stage 'prior'" in str(refused.value) or "the stage 'decoder'" in str(refused.value)
            assert type(pipe.decoder_scheduler).__name__ in str(refused.value)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("name", ["dpm++multistep", "euler-ancestral"])
def test_on_one_stage_alone_the_others_keep_theirs(parts, name, stage):
    assert run(swapped(parts, **{stage: MAKE[name]}), count=2).images.isfinite().all()


def test_a_stage_that_does_not_run_may_hold_any_scheduler(parts):
    pipe = swapped(parts, prior=MAKE["lcm"])
    embeds = torch.randn(1, tiny.WIDTH)
    assert pipe("a house", image_embeds=embeds, **steps(2), output_type="pt").images.isfinite().all()
    with pytest.raises(ValueError, match="LCMScheduler cannot be used for the stage 'prior'"):
        run(pipe, count=2)


@pytest.mark.parametrize(
    "name", sorted(MAKE.keys() - {"lcm", "lcm-distilled", "tcd", "diffusers-unclip", "dpm++multistep-sde"})
)
@pytest.mark.parametrize("kind", ["epsilon", "sample"])
def test_it_converges_to_the_distribution_of_an_exact_score(name, kind):
    """A Gaussian of mean 0.4 and standard deviation 0.25, from 10,000 samples in 100 steps."""
    config = unclip_hub.UnCLIPScheduler(prediction_type=kind, clip_sample_range=3.0).config
    options = {"timestep_spacing": "leading"} if name == "pndm" else {}
    own = MAKE[name](dict(config) | options)
    mean, std, abar = 0.4, 0.25, cosine_alphas_cumprod().logit()

    def exact(x, t):
        low = int(t)
        a = torch.lerp(abar[low], abar[min(low + 1, 999)], float(t) - low).sigmoid().item()
        x0 = mean + a**0.5 * std**2 * (x - a**0.5 * mean) / (a * std**2 + 1 - a)
        return x0 if kind == "sample" else (x - a**0.5 * x0) / (1 - a) ** 0.5

    generator = torch.Generator().manual_seed(0)
    scheduler = supported(own)
    scheduler.set_timesteps(100)
    x = torch.randn(10_000, 1, generator=generator) * scheduler.init_noise_sigma
    made = denoise(fitted(exact, scheduler, kind=kind), x, scheduler, generator=generator)
    assert made.mean().item() == pytest.approx(mean, rel=0.03)
    ancestral = name in ("unclip", "ddpm", "euler-ancestral", "dpm++singlestep-sde")
    assert made.std().item() == pytest.approx(std, rel=0.1 if ancestral else 0.04)  # too narrow, as 1 / steps


@pytest.mark.parametrize("source", ["diffusers' UnCLIPScheduler", "a file without the noise schedule"])
@pytest.mark.parametrize("name", ["ddim", "heun", "pndm", "unipc"])
def test_the_line_that_a_refusal_proposes_works(parts, name, source):
    """From configurations that do not say the spacing, or not even the noise schedule."""
    saved = {
        "_class_name": "UnCLIPScheduler",
        "clip_sample": True,
        "clip_sample_range": 5.0,
        "num_train_timesteps": 1000,
        "prediction_type": "sample",
        "variance_type": "fixed_small_log",
    }
    if source.startswith("diffusers"):
        saved["beta_schedule"] = "squaredcos_cap_v2"
    pipe = swapped(parts, prior=lambda _: MAKE[name](diffusers.UnCLIPScheduler.from_config(saved).config))
    count = 1
    for _ in range(3):
        try:
            prior = pipe.sample_prior(pipe.encode_text("a house"), num_inference_steps=count)
        except ValueError as error:
            line = re.search(rf"{type(pipe.prior_scheduler).__name__}\.from_config\(.*?\)", str(error))
            if line:
                pipe.prior_scheduler = eval(line[0], vars(diffusers), {"pipe": pipe})
            steps = re.search(r"(\d+) steps$", str(error))
            count = int(steps[1]) if steps else count
        else:
            assert prior.isfinite().all() and prior.abs().max() < 7
            return
    pytest.fail("what the refusals proposed did not lead to samples")


def test_learned_variance_reaches_the_ancestral_samplers_and_no_other(parts):
    """Another second half of the decoder's output changes what DDPM makes, but not what DDIM makes."""
    if parts["super_res_last"] is None:
        pytest.skip("this decoder has no learned variance")
    for name, changes in {"unclip": True, "diffusers-unclip": True, "ddpm": True, "ddim": False}.items():
        pipe = swapped(parts, decoder=MAKE[name])
        before = run(pipe, count=3).small_images
        bias = pipe.decoder.conv_out.bias
        bias[3:] += 2.0
        after = run(pipe, count=3).small_images
        bias[3:] -= 2.0
        assert torch.equal(before, after) is not changes


def test_the_last_network_makes_the_last_step_and_only_at_timestep_0(parts, caplog):
    """Heun asks twice at the last timestep: first to correct the step before it, which is the first network's."""
    if parts["super_res_last"] is None:
        pytest.skip("one network upsamples")
    called = []
    for name in ("super_res_first", "super_res_last"):
        parts[name].register_forward_hook(
            lambda module, inputs, output, name=name: called.append((name[10:], round(float(inputs[1])))),
        )

    def calls(make, count):
        called.clear()
        swapped(parts, super_res=make).upsample(torch.zeros(1, 3, 16, 16), num_inference_steps=count)
        return called

    def heun(config):
        return diffusers.HeunDiscreteScheduler.from_config(config, timestep_spacing="linspace")

    assert calls(MAKE["unclip"], 3) == [("first", 999), ("first", 500), ("last", 0)]
    assert [name for name, _ in calls(heun, 25)] == ["first"] * 48 + ["last"]
    assert called[-2:] == [("first", 0), ("last", 0)]
    diffusers.utils.logging.enable_propagation()
    assert [name for name, _ in calls(MAKE["dpm++multistep"], 4)] == ["first"] * 4
    assert [name for name, _ in calls(MAKE["unclip"], 1)] == ["first"]
    diffusers.utils.logging.disable_propagation()
    assert "super_res_last is trained for timestep 0 and is not used" in caplog.text


WRONG = [
    (diffusers.FlowMatchEulerDiscreteScheduler(), "it has no alphas_cumprod"),
    (diffusers.EDMEulerScheduler(), "it has no alphas_cumprod"),
    (diffusers.DDIMScheduler(), "its noise schedule is 'linear', the class's default; unCLIP's is DDIMScheduler"),
    (diffusers.DDIMInverseScheduler(beta_schedule="squaredcos_cap_v2"), "it is wrong in 4 steps"),
    (diffusers.RePaintScheduler(beta_schedule="squaredcos_cap_v2"), "its prediction_type must be one of .* got None"),
    (
        diffusers.DDIMScheduler(beta_schedule="squaredcos_cap_v2", timestep_spacing="linspace"),
        "right would be DDIMScheduler.from_config.*timestep_spacing='trailing'",
    ),
    (unclip_hub.UnCLIPScheduler(variance_type="learned_range"), "needs 64 output channels, the network has 32"),
    (
        diffusers.DPMSolverMultistepScheduler(beta_schedule="squaredcos_cap_v2", variance_type="learned_range"),
        "keeps 3 channels of 32",
    ),
    (
        diffusers.DDIMScheduler(
            beta_schedule="squaredcos_cap_v2", timestep_spacing="trailing", rescale_betas_zero_snr=True
        ),
        "it made a mean of nan",
    ),
]


@pytest.mark.parametrize(("scheduler", "reason"), WRONG, ids=lambda x: type(x).__name__)
def test_what_cannot_sample_is_refused(parts, scheduler, reason):
    pipe = swapped(parts, prior=lambda _: scheduler)
    with pytest.raises(
        ValueError, match=f"{type(scheduler).__name__} cannot be used for the stage 'prior': .*{reason}"
    ):
        run(pipe, count=2 if "right" in reason else 4)


def test_a_network_without_a_scheduler_is_refused(parts):
    pipe = UnCLIPPipeline(**parts | {"super_res_scheduler": None})
    with pytest.raises(ValueError, match="the stage 'super_res' needs a scheduler, got super_res_scheduler=None"):
        run(pipe, count=2)


def test_clipping_is_the_same_wherever_it_happens(parts):
    """DDIM without its own clipping, but clipped on the way, agrees with a network that was clipped itself."""
    config = dict(unclip_hub.UnCLIPScheduler(prediction_type="sample", clip_sample_range=0.5).config)
    scheduler = diffusers.DPMSolverMultistepScheduler.from_config(config)
    x, t = torch.randn(3, 5, generator=torch.Generator().manual_seed(0)), torch.tensor(500)
    assert_close(fitted(lambda x, t: x, scheduler, kind="sample")(x, t), x.clamp(-0.5, 0.5))
    abar = cosine_alphas_cumprod()[500].item()
    noisy = diffusers.DPMSolverMultistepScheduler.from_config(config | {"prediction_type": "epsilon"})
    eps = fitted(lambda x, t: torch.zeros_like(x), noisy, kind="epsilon")(x, t)
    x0 = (x - (1 - abar) ** 0.5 * eps) / abar**0.5
    assert_close(x0, (x / abar**0.5).clamp(-0.5, 0.5), atol=1e-5, rtol=1e-5)


def test_from_config_logs_no_warning_and_survives_the_disk(parts, tmp_path, caplog):
    diffusers.utils.logging.enable_propagation()
    for name in ("ddim", "dpm++multistep", "euler", "unclip", "unipc"):
        pipe = swapped(parts, decoder=MAKE[name])
        pipe.decoder_scheduler.save_pretrained(tmp_path / name)
        again = type(pipe.decoder_scheduler).from_pretrained(tmp_path / name)
        assert run(swapped(parts, decoder=lambda _, again=again: again), count=2).images.isfinite().all()
    diffusers.utils.logging.disable_propagation()
    assert "not expected and will be ignored" not in caplog.text
