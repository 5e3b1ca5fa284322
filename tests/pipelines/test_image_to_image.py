"""Image to image: strength from keeping the picture to ignoring it, with every argument of its siblings."""

import re

import pytest
import torch
from jaxtyping import TypeCheckError
from pipelines import tiny
from torch.testing import assert_close

from unclip_hub import UnCLIPPipeline
from unclip_hub.images import centre_square, resize
from unclip_hub.pipelines.image_to_image import UnCLIPImageToImagePipeline


STEPS = {"prior_num_inference_steps": 1, "decoder_num_inference_steps": 4, "super_res_num_inference_steps": 1}


@pytest.fixture(scope="module", params=["karlo", "bundled"])
def pipe(request):
    return tiny.in_float64(UnCLIPImageToImagePipeline(**tiny.components(karlo=request.param == "karlo")))


@pytest.fixture(scope="module")
def picture():
    return torch.rand(3, 20, 26, generator=seeded(9), dtype=torch.float64)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def run(pipe, image, prompt="a red circle", *, seed=0, **options):
    return pipe(image, prompt, **STEPS | {"generator": seeded(seed), "output_type": "pt"} | options)


def test_same_seed_same_picture_other_seed_another(pipe, picture):
    first, again, other = (run(pipe, picture, seed=seed) for seed in (0, 0, 1))
    assert first.images.shape == (1, 3, 32, 32) and first.small_images.shape == (1, 3, 16, 16)
    assert torch.equal(first.images, again.images)
    assert (first.images - other.images).abs().max() > 1e-2


def test_strength_one_is_text_to_image_from_the_same_seed(pipe, picture):
    plain = UnCLIPPipeline(**pipe.components)
    plain.set_progress_bar_config(disable=True)
    expected = plain("a red circle", generator=seeded(), output_type="pt", **STEPS)
    assert torch.equal(run(pipe, picture, strength=1.0).images, expected.images)


def test_less_strength_runs_fewer_steps_and_keeps_more_of_the_middle_square():
    pipe = tiny.in_float64(
        UnCLIPImageToImagePipeline(**tiny.components())
    )  # noise prediction: few steps change little
    picture = torch.rand(3, 20, 26, generator=seeded(9), dtype=torch.float64)
    target = resize(centre_square(picture[None]), (16, 16))
    errors, steps = [], []
    for strength in (0.2, 0.6, 1.0):
        seen = []
        made = run(
            pipe, picture, strength=strength, decoder_num_inference_steps=10,
            callback_on_step_end=lambda self, i, t, x, seen=seen: seen.append(self.stage),
        )  # fmt: skip
        errors.append((made.small_images - target).square().mean().item())
        steps.append(seen.count("decoder"))
    assert steps == [2, 6, 10]
    assert errors == sorted(errors)


def test_pictures_and_prompts_are_matched_and_lie_side_by_side(pipe, picture):
    pictures, prompts = [picture, picture.flip(-1)], ["a house", "two green cats at night"]
    both = run(pipe, pictures, prompts, num_images_per_prompt=2, generator=[seeded(i) for i in range(4)]).images
    second = run(pipe, pictures[1], prompts[1], num_images_per_prompt=2, generator=[seeded(2), seeded(3)]).images
    assert_close(both[2:], second, atol=1e-8, rtol=0)
    one_picture = run(pipe, picture, prompts, generator=[seeded(0), seeded(2)]).images
    assert_close(one_picture[0], both[0], atol=1e-8, rtol=0)


def test_the_pictures_own_embedding_needs_no_prior(picture):
    parts = tiny.components(karlo=False) | {"prior": None, "prior_scheduler": None}
    pipe = tiny.in_float64(UnCLIPImageToImagePipeline(**parts))
    made = run(pipe, picture, image_weight=1)
    assert_close(made.image_embeds, pipe.encode_image(centre_square(picture[None])), atol=1e-6, rtol=1e-6)
    assert torch.equal(run(pipe, picture, image_embeds=made.image_embeds).images, made.images)
    with pytest.raises(ValueError, match="needs prior and prior_scheduler.* or give image_embeds or image_weight=1"):
        run(pipe, picture)


def test_tuple_and_negative_prompt(pipe, picture):
    made, (images, embeds, small) = run(pipe, picture), run(pipe, picture, return_dict=False)
    assert torch.equal(made.images, images) and torch.equal(made.image_embeds, embeds)
    assert torch.equal(made.small_images, small)
    assert (run(pipe, picture, negative_prompt="two cats").images - images).abs().max() > 1e-6


WRONG = [
    ({"image": None}, "image must be a picture or several, got None"),
    ({"prompt": None}, "exactly one of prompt, prompt_embeds"),
    ({"strength": 0}, "strength must be above 0 and at most 1, got 0"),
    ({"strength": 1.5}, "strength must be above 0 and at most 1, got 1.5"),
    ({"image_weight": 0.5, "image_embeds": torch.zeros(1, tiny.WIDTH)}, "give image_weight or image_embeds, got both"),
    ({"image_weight": -1}, "image_weight must be a number from 0 to 1"),
    ({"image": torch.full((3, 4, 4), 7.0)}, "must lie in \\[0, 1\\]"),
]


@pytest.mark.parametrize(("options", "message"), WRONG)
def test_nonsense_is_refused_before_anything_is_computed(pipe, picture, options, message, monkeypatch):
    monkeypatch.setattr(type(pipe), "encode_text", lambda *_: pytest.fail("computed before checking"))
    with pytest.raises((ValueError, TypeCheckError)) as caught:
        pipe(**{"image": picture, "prompt": "a house"} | options)
    assert isinstance(caught.value, TypeCheckError) or re.search(message, str(caught.value))
