"""Our pipelines against diffusers' retired ones: same weights, same scheduler, same seed, same picture."""

import diffusers
import pytest
import torch
from pipelines import tiny
from torch.testing import assert_close

from unclip_hub import UnCLIPImageVariationPipeline, UnCLIPPipeline


STEPS = {"decoder_num_inference_steps": 5, "super_res_num_inference_steps": 3}
LEFT_OUT = ("patch_size", "coordinates", "residual", "_use_default_values")  # keys of ours; other defaults
CAPTIONS = ["two green cats at night", "a house!! and a red circle"]


def quiet(pipe):
    pipe.set_progress_bar_config(disable=True)
    return pipe


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def parts():
    """Karlo's layout with an image encoder, and diffusers' own scheduler at every stage.

    In float64: what the first step divides by the square root of alpha bar amplifies rounding some 10,000 times.
    """
    parts = tiny.components(karlo=True) | {
        name: tiny.components(karlo=False)[name] for name in ("image_encoder", "feature_extractor")
    }
    for stage in ("prior", "decoder", "super_res"):
        ours = parts[f"{stage}_scheduler"]
        parts[f"{stage}_scheduler"] = diffusers.UnCLIPScheduler.from_config(ours.config)
    return {name: part.double() if isinstance(part, torch.nn.Module) else part for name, part in parts.items()}


@pytest.fixture(scope="module")
def text_to_image(parts):
    ours = quiet(UnCLIPPipeline(**parts))
    return ours, quiet(diffusers.UnCLIPPipeline.from_pipe(ours, dtype=torch.float64))


@pytest.fixture(scope="module")
def variation(parts):
    ours = quiet(UnCLIPImageVariationPipeline(**parts))
    return ours, quiet(diffusers.UnCLIPImageVariationPipeline.from_pipe(ours, dtype=torch.float64))


def text_pictures(pipe, **options):
    options = {"generator": seeded(3), "num_images_per_prompt": 2} | STEPS | options
    return torch.from_numpy(pipe(CAPTIONS, prior_num_inference_steps=4, output_type="np", **options).images)


def close(got, wanted):
    assert_close(got, wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize("scales", [(4.0, 8.0), (1.0, 3.0), (1.0, 1.0)], ids=str)
def test_text_to_image(text_to_image, scales):
    ours, theirs = text_to_image
    options = {"prior_guidance_scale": scales[0], "decoder_guidance_scale": scales[1]}
    close(text_pictures(ours, **options), text_pictures(theirs, **options))


def test_text_to_image_with_a_generator_per_picture(text_to_image):
    ours, theirs = text_to_image
    close(*(text_pictures(pipe, generator=[seeded(i) for i in range(4)]) for pipe in (ours, theirs)))


def test_image_variation(variation):
    from PIL import Image

    pictures = [Image.radial_gradient("L").convert("RGB"), Image.linear_gradient("L").convert("RGB")]
    made = [pipe(pictures, 2, generator=seeded(4), output_type="np", **STEPS).images for pipe in variation]
    close(*map(torch.from_numpy, made))


def test_image_variation_from_embeddings(variation):
    embeddings = torch.randn(2, tiny.WIDTH, generator=seeded(5), dtype=torch.float64)
    made = [
        pipe(image_embeddings=embeddings, decoder_guidance_scale=1.0, generator=seeded(4), output_type="np", **STEPS)
        for pipe in variation
    ]
    close(*(torch.from_numpy(one.images) for one in made))


def as_diffusers(pipe):
    """The same weights in diffusers' own classes."""
    classes = {
        "prior": diffusers.PriorTransformer,
        "decoder": diffusers.UNet2DConditionModel,
        "super_res_first": diffusers.UNet2DModel,
        "super_res_last": diffusers.UNet2DModel,
        "text_proj": diffusers.pipelines.deprecated.unclip.text_proj.UnCLIPTextProjModel,
    }
    parts = {name: part for name, part in pipe.components.items() if part is not None}
    for name, cls in classes.items():
        own = parts[name]
        parts[name] = cls.from_config({k: v for k, v in own.config.items() if k not in LEFT_OUT})
        parts[name].load_state_dict(own.state_dict())
        parts[name].double().eval()
    return {name: part for name, part in parts.items() if name not in ("image_encoder", "feature_extractor")}


def test_diffusers_own_networks_run_in_our_pipeline_and_are_taken_over_by_from_pipe(text_to_image):
    ours, _ = text_to_image
    theirs = quiet(diffusers.UnCLIPPipeline(**as_diffusers(ours)))
    taken = quiet(UnCLIPPipeline.from_pipe(theirs, dtype=torch.float64))
    assert all(taken.components[name] is part for name, part in theirs.components.items())
    expected = text_pictures(theirs)
    close(text_pictures(taken), expected)
    close(text_pictures(ours), expected)


def test_from_pipe_between_our_pipelines_shares_everything(parts):
    own = {"decoder_num_inference_steps": 2}
    text = UnCLIPPipeline(**parts, sampling_defaults=own)
    variation = UnCLIPImageVariationPipeline.from_pipe(text, dtype=torch.float64)
    back = UnCLIPPipeline.from_pipe(variation, dtype=torch.float64)
    for other in (variation, back, UnCLIPImageVariationPipeline(**text.components)):
        assert all(other.components[name] is part for name, part in text.components.items())
    assert dict(variation.config["sampling_defaults"]) == dict(back.config["sampling_defaults"]) == own
