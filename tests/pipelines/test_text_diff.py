"""Pictures changed in words: where the embedding goes, and that nothing else moves."""

import numpy as np
import pytest
import torch
from PIL import Image
from pipelines import tiny
from torch.testing import assert_close

from unclip_hub.embeddings import normalize, slerp, text_diff
from unclip_hub.pipelines.inversion import invert, reconstruct
from unclip_hub.pipelines.text_diff import UnCLIPTextDiffPipeline


STEPS = {"decoder_num_inference_steps": 2, "super_res_num_inference_steps": 1}
TO, FROM = "a red circle on a blue square", "a house"


def opened(karlo):
    parts = tiny.components(karlo=karlo)
    parts |= {name: tiny.components(karlo=False)[name] for name in ("image_encoder", "feature_extractor")}
    return tiny.in_float64(UnCLIPTextDiffPipeline(**parts))


@pytest.fixture(scope="module")
def pipe():
    return opened(karlo=False)


@pytest.fixture(scope="module", params=["karlo", "bundled"])
def either(request, pipe):
    """Karlo's layout: a decoder of noise with a learned variance, and an upsampler for the last step."""
    return opened(karlo=True) if request.param == "karlo" else pipe


def picture(seed=0, size=(40, 28)):
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def run(pipe, image=None, target=None, *arguments, seed=0, **options):
    generator = torch.Generator().manual_seed(seed)
    return pipe(image, target, *arguments, **(STEPS | {"generator": generator, "output_type": "pt"} | options))


def test_shapes_of_everything_returned(either):
    made = run(either, [picture(0), picture(1)], TO, FROM, [0.0, 0.3, 0.6], num_images_per_prompt=2)
    assert made.images.shape == (12, 3, 32, 32)
    assert made.small_images.shape == (12, 3, 16, 16)
    assert made.image_embeds.shape == (12, tiny.WIDTH)
    assert_close(made.small_images[:3], made.small_images[3:6])  # the second of the first picture
    assert (made.images[1] - made.images[4]).abs().max() > 1e-4  # upsampled with another noise
    assert run(either, picture(), TO, FROM).images.shape[0] == 1


def test_the_embedding_goes_towards_the_difference_and_keeps_its_norm(pipe):
    thetas = [0.0, 0.25, 0.5, 1.0]
    made = run(pipe, picture(), TO, FROM, thetas).image_embeds
    z = pipe.encode_image(picture())
    direction = text_diff(pipe.encode_text(TO).text_embed, pipe.encode_text(FROM).text_embed)
    for i, theta in enumerate(thetas):
        expected = normalize(slerp(normalize(z), direction, theta=theta)) * z.norm()
        assert_close(made[i : i + 1], expected)


@pytest.mark.parametrize("exact", [False, True])
def test_no_change_is_the_reconstruction(either, exact):
    latent = invert(either, picture(), exact=exact, num_inference_steps=2)
    made = run(either, picture(), TO, FROM, [0, 0.5], exact=exact)
    assert_close(made.small_images[:1] * 2 - 1, reconstruct(either, latent), atol=1e-7, rtol=0)
    changed = reconstruct(either, latent, image_embeds=made.image_embeds[1:])
    assert_close(made.small_images[1:] * 2 - 1, changed, atol=1e-7, rtol=0)
    assert (made.small_images[1] - made.small_images[0]).abs().max() > 1e-4


def test_pictures_of_a_trajectory_share_the_upsamplers_noise(either):
    made = run(either, picture(), TO, FROM, [0.3, 0.3]).images
    assert_close(made[0], made[1], atol=1e-7, rtol=0)
    assert torch.equal(run(either, picture(), TO, FROM, [0.3, 0.3]).images, made)


def test_each_picture_may_have_its_own_captions(pipe):
    shown = [picture(0), picture(1)]
    both = run(pipe, shown, [TO, FROM], [FROM, "two green cats at night"], 0.4)
    for i, (target, source) in enumerate([(TO, FROM), (FROM, "two green cats at night")]):
        assert_close(both.small_images[i], run(pipe, shown[i], target, source, 0.4).small_images[0], atol=1e-6, rtol=0)
    mixed = run(pipe, shown, TO, [FROM, "two green cats at night"], 0.4)
    assert_close(mixed.small_images[0], both.small_images[0], atol=1e-6, rtol=0)
    assert (mixed.image_embeds[1] - both.image_embeds[1]).abs().max() > 1e-4


def test_a_latent_in_place_of_the_picture(pipe):
    latent = invert(pipe, picture(), num_inference_steps=2)
    expected = run(pipe, picture(), TO, FROM).images
    assert_close(run(pipe, None, TO, FROM, latent=latent, decoder_num_inference_steps=None).images, expected)


def test_sums_of_captions_and_pictures(pipe):
    as_captions = run(pipe, picture(), TO, FROM, 0.4)
    as_terms = run(pipe, picture(), theta=0.4, add=[TO], subtract=[FROM])
    assert_close(as_terms.images, as_captions.images, atol=1e-6, rtol=0)
    other = picture(5)
    made = run(pipe, picture(), theta=1, add=[other, TO], subtract=[FROM]).image_embeds
    terms = normalize(pipe.encode_image(other)) + normalize(pipe.encode_text(TO).text_embed)
    terms = terms - normalize(pipe.encode_text(FROM).text_embed)
    assert_close(normalize(made), normalize(terms))


def test_guidance_is_that_of_both_ways(pipe):
    plain, guided = (run(pipe, picture(), TO, FROM, 0.3, decoder_guidance_scale=s) for s in (1.0, 4.0))
    assert (guided.images - plain.images).abs().max() > 1e-4
    away = run(pipe, picture(), TO, FROM, 0.3, decoder_guidance_scale=4.0, negative_prompt=FROM)
    assert (guided.images - away.images).abs().max() > 1e-6


def test_callbacks_and_tuples(pipe):
    seen = []
    images, embeds, small = run(
        pipe, picture(), TO, FROM, [0.1, 0.2], return_dict=False, output_type="pil",
        callback_on_step_end=lambda self, i, t, tensors: seen.append(self.stage),
    )  # fmt: skip
    assert [len(part) for part in (images, embeds, small)] == [2, 2, 2] and images[0].size == (32, 32)
    assert list(dict.fromkeys(seen)) == ["inversion", "decoder", "super_res"]


WRONG = [
    ({"image": None}, "give either image or latent, got neither"),
    ({"target_caption": None}, "either target_caption or add and subtract, got neither"),
    ({"add": ["a cat"]}, "got both of them"),
    ({"target_caption": None, "add": "a cat"}, "must be lists"),
    ({"target_caption": ["a", "b"]}, "expected one target_caption or 1, one per picture, got 2"),
    ({"source_caption": ["a", "b"]}, "expected one source_caption or 1"),
    ({"theta": 1.5}, "theta must be a number from 0 to 1, got 1.5"),
    ({"theta": [0.1, -0.1]}, "theta must be a number from 0 to 1, got -0.1"),
    ({"theta": []}, "got an empty list"),
    ({"num_images_per_prompt": 0}, "num_images_per_prompt must be"),
    ({"decoder_num_inference_steps": 0}, "decoder_num_inference_steps must be"),
    ({"generator": [torch.Generator()] * 2}, "a list of 1, one per picture, got 2"),
    ({"output_type": "latent"}, "output_type must be one of"),
    ({"image": torch.zeros(3, 8, 8) - 1}, r"must lie in \[0, 1\]"),
]


@pytest.mark.parametrize(("options", "message"), WRONG)
def test_nonsense_is_refused_before_anything_is_computed(pipe, options, message, monkeypatch):
    for verb in ("encode_text", "encode_image"):
        monkeypatch.setattr(type(pipe), verb, lambda *_: pytest.fail("computed before checking"))
    with pytest.raises(ValueError, match=message):
        pipe(**({"image": picture(), "target_caption": TO, "source_caption": FROM} | options))


def test_what_only_the_captions_tell(pipe):
    with pytest.raises(ValueError, match="same embedding"):
        run(pipe, picture(), TO, TO)
    with pytest.raises(ValueError, match="cancels out"):
        run(pipe, picture(), add=[TO], subtract=[TO])
    latent = invert(pipe, picture(), num_inference_steps=2)
    with pytest.raises(ValueError, match="inverted in 2 steps, got 4"):
        run(pipe, None, TO, FROM, latent=latent, decoder_num_inference_steps=4)
    with pytest.raises(ValueError, match="exact=True needs a latent"):
        run(pipe, None, TO, FROM, latent=latent, exact=True)
