"""Guidance in an interval and rescaled, and beginning from a picture: what every stage can do, with any scheduler."""

import diffusers
import pytest
import torch
from pipelines import tiny
from torch.testing import assert_close

import unclip_hub
from unclip_hub import UnCLIPPipeline


MAKE = {
    "unclip": unclip_hub.UnCLIPScheduler,
    "diffusers-unclip": diffusers.UnCLIPScheduler,
    "ddim": diffusers.DDIMScheduler,
    "dpm++multistep": diffusers.DPMSolverMultistepScheduler,
    "euler": diffusers.EulerDiscreteScheduler,
    "heun": diffusers.HeunDiscreteScheduler,
}
STEPS = 6
ENOUGH = {"heun": 20}  # steps that it needs


@pytest.fixture(scope="module", params=["karlo", "bundled"])
def pipe(request):
    made = UnCLIPPipeline(**tiny.components(karlo=request.param == "karlo"))
    return tiny.in_float64(made)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def with_scheduler(pipe, name, stage="decoder"):
    swapped = UnCLIPPipeline(**pipe.components)
    swapped.set_progress_bar_config(disable=True)
    own = getattr(pipe, f"{stage}_scheduler").config
    setattr(swapped, f"{stage}_scheduler", MAKE[name].from_config(own))
    return swapped


def conditions(pipe):
    cond = pipe.encode_text(["a red circle", "two green cats"])
    return cond.with_image(torch.randn(2, tiny.WIDTH, generator=seeded(5)).double()), pipe.encode_text("")


def decode(pipe, *, steps=STEPS, seed=0, **options):
    return pipe.decode(*conditions(pipe), num_inference_steps=steps, generator=seeded(seed), **options)


def sample_prior(pipe, **options):
    return pipe.sample_prior(*conditions(pipe), num_inference_steps=4, generator=seeded(), **options)


@pytest.mark.parametrize("name", ["unclip", "euler"])
def test_an_interval_of_all_noise_levels_is_none_and_an_empty_one_is_no_guidance(pipe, name):
    pipe = with_scheduler(pipe, name)
    options = {"guidance_scale": 5.0, "steps": 4}
    guided, plain = decode(pipe, **options), decode(pipe, guidance_scale=1.0, steps=4)
    assert_close(decode(pipe, guidance_interval=(0, float("inf")), **options), guided)
    assert_close(decode(pipe, guidance_interval=(1e6, 2e6), **options), plain)
    some = decode(pipe, guidance_interval=(0.2, 5.0), **options)
    assert (some - guided).abs().max() > 1e-6 and (some - plain).abs().max() > 1e-6


def test_the_priors_interval_and_rescale_do_the_same(pipe):
    guided, plain = sample_prior(pipe, guidance_scale=5.0), sample_prior(pipe)
    assert_close(sample_prior(pipe, guidance_scale=5.0, guidance_interval=(0, float("inf"))), guided)
    assert_close(sample_prior(pipe, guidance_scale=5.0, guidance_interval=(1e6, 2e6)), plain)
    assert (sample_prior(pipe, guidance_scale=5.0, guidance_rescale=0.7) - guided).abs().max() > 1e-6
    assert_close(sample_prior(pipe, guidance_rescale=0.7), plain)


def test_an_interval_counts_in_noise_levels_not_in_a_schedulers_own_timesteps(pipe):
    """Guided calls have twice the rows; of 10 steps those with 0.3 < sigma <= 3 must be guided, in Euler's too."""
    for name in ("unclip", "euler"):
        made = with_scheduler(pipe, name)
        rows, levels = [], []
        handle = made.decoder.register_forward_pre_hook(lambda _, args, rows=rows: rows.append(len(args[0])))
        abar = unclip_hub.diffusion.cosine_alphas_cumprod()

        def note(self, i, t, tensors, levels=levels, abar=abar):
            if self.stage == "decoder":
                levels.append((1 / abar[round(float(t))].item() - 1) ** 0.5)

        made(
            "a house",
            callback_on_step_end=note,
            prior_num_inference_steps=1,
            decoder_num_inference_steps=10,
            super_res_num_inference_steps=1,
            decoder_guidance_interval=(0.3, 3),
        )
        handle.remove()
        assert rows == [2 if 0.3 < level <= 3 else 1 for level in levels]
        assert {1, 2} <= set(rows)


def test_rescale_brings_contrast_back(pipe):
    strong = {"guidance_scale": 12.0, "steps": 4}
    assert (decode(pipe, guidance_rescale=0.7, **strong) - decode(pipe, **strong)).abs().max() > 1e-6
    assert_close(decode(pipe, guidance_rescale=0.0, **strong), decode(pipe, **strong))


def test_defaults_of_a_checkpoint_may_hold_intervals_as_json_writes_them(pipe, tmp_path):
    own = {"decoder_guidance_interval": [0.2, 5], "decoder_guidance_rescale": 0.5, "decoder_num_inference_steps": 4}
    saved = UnCLIPPipeline(**pipe.components | {"sampling_defaults": own})
    saved.save_pretrained(tmp_path)
    loaded = UnCLIPPipeline.from_pretrained(tmp_path, dtype=torch.float64)
    loaded.set_progress_bar_config(disable=True)
    few = {"prior_num_inference_steps": 1, "super_res_num_inference_steps": 1, "output_type": "pt"}
    given = {name: tuple(value) if isinstance(value, list) else value for name, value in own.items()}
    expected = pipe("a house", generator=seeded(), **few, **given)
    assert_close(loaded("a house", generator=seeded(), **few).images, expected.images, atol=1e-8, rtol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"decoder_guidance_interval": (5, 2)}, "decoder_guidance_interval must be two noise levels"),
        ({"prior_guidance_interval": (-1, 2)}, "prior_guidance_interval must be two noise levels"),
        ({"decoder_guidance_rescale": 1.5}, "decoder_guidance_rescale must be a number from 0 to 1, got 1.5"),
    ],
)
def test_nonsense_is_refused(pipe, options, message):
    with pytest.raises(ValueError, match=message):
        pipe("a house", **options)


@pytest.mark.parametrize("name", MAKE)
def test_strength_one_is_a_plain_decode_and_a_small_one_keeps_the_picture(pipe, name):
    pipe = with_scheduler(pipe, name)
    image = torch.rand(2, 3, 16, 16, generator=seeded(3)).double() * 2 - 1
    steps = ENOUGH.get(name, STEPS)
    calls = []
    handle = pipe.decoder.register_forward_hook(lambda *_: calls.append(1))
    kept = decode(pipe, image=image, strength=0.01, steps=steps)
    assert len(calls) == 1  # the last of the steps, and at least one
    calls.clear()
    half = decode(pipe, image=image, strength=0.5, steps=steps)
    handle.remove()
    assert len(calls) == (steps - 1 if name == "heun" else steps // 2)  # Heun's second order: two a step but the last
    if name != "heun":
        assert torch.equal(decode(pipe, image=image, strength=1), decode(pipe))
    error = {key: (made - image).square().mean().item() for key, made in {"kept": kept, "half": half}.items()}
    if pipe.super_res_last is not None:  # a noise prediction: one step from sigma = 0.3 cannot leave the picture
        assert error["kept"] < 0.3 * error["half"]
    assert half.isfinite().all()


@pytest.mark.parametrize("strength", [0, -0.5, 1.1, float("nan")])
def test_strength_is_a_part(pipe, strength):
    with pytest.raises(ValueError, match="strength must be above 0 and at most 1"):
        decode(pipe, image=torch.zeros(2, 3, 16, 16).double(), strength=strength)


def test_what_cannot_begin_in_the_middle_says_so():
    scheduler = diffusers.PNDMScheduler(beta_schedule="squaredcos_cap_v2", timestep_spacing="linspace")
    scheduler.set_timesteps(24)
    with pytest.raises(ValueError, match="PNDMScheduler cannot begin in the middle"):
        unclip_hub.pipelines.stage.first_step(scheduler, 24, 0.5)
