"""What a user of the image-variation pipeline relies on."""

import numpy as np
import pytest
import torch
from PIL import Image
from pipelines import tiny
from torch.testing import assert_close

from unclip_hub import UnCLIPImageVariationPipeline, UnCLIPPipeline
from unclip_hub.images import to_tensor
from unclip_hub.pipelines.inversion import invert, reconstruct


STEPS = {"decoder_num_inference_steps": 3, "super_res_num_inference_steps": 2}
TEXT_ONLY = ("prior", "prior_scheduler")


@pytest.fixture(scope="module")
def text_pipe():
    made = UnCLIPPipeline(**tiny.components(karlo=False))
    made.set_progress_bar_config(disable=True)
    return made


@pytest.fixture(scope="module")
def pipe(text_pipe):
    made = UnCLIPImageVariationPipeline(**text_pipe.components)
    made.set_progress_bar_config(disable=True)
    return made


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def picture(seed=0, size=(40, 28)):
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def run(pipe, image=None, *, seed=0, **options):
    return pipe(image, **(STEPS | {"generator": seeded(seed), "output_type": "pt"} | options))


def test_shapes_of_everything_returned(pipe):
    made = run(pipe, [picture(0), picture(1)], num_images_per_prompt=3)
    assert made.images.shape == (6, 3, 32, 32)
    assert made.small_images.shape == (6, 3, 16, 16)
    assert made.image_embeds.shape == (6, tiny.WIDTH)
    assert torch.equal(made.image_embeds[0], made.image_embeds[2])


def test_the_picture_and_the_seed_both_matter(pipe):
    first = run(pipe, picture()).images
    assert torch.equal(first, run(pipe, picture()).images)
    assert (first - run(pipe, picture(1)).images).abs().max() > 1e-4
    assert (first - run(pipe, picture(), seed=1).images).abs().max() > 1e-2


def test_a_picture_is_the_same_in_every_form(pipe, tmp_path):
    image = picture()
    image.save(tmp_path / "picture.png")
    array = np.asarray(image)
    expected = pipe.encode_image(image)
    tensor = torch.from_numpy(array.copy()).permute(2, 0, 1)
    path = tmp_path / "picture.png"
    for form in (
        [image],
        path,
        str(path),
        [path],
        array,
        array[None],
        array / 255.0,
        tensor,
        tensor[None] / 255,
        [tensor],
    ):
        assert_close(pipe.encode_image(form), expected)
    for form in (image.convert("RGBA"), path, str(path), [path]):
        assert_close(pipe.encode_image(form), expected)
    assert_close(to_tensor(image), to_tensor(array))


def test_pictures_of_a_list_may_differ_in_size(pipe):
    both = pipe.encode_image([picture(0), picture(1, size=(17, 50))])
    assert_close(both[1:], pipe.encode_image(picture(1, size=(17, 50))), atol=1e-5, rtol=0)


def test_embeddings_replace_the_picture(pipe):
    embeds = pipe.encode_image(picture())
    assert torch.equal(run(pipe, image_embeddings=embeds).images, run(pipe, picture()).images)


def test_the_call_is_decoding_with_the_empty_caption(pipe):
    nothing = pipe.encode_text("")
    cond = nothing.with_image(pipe.encode_image(picture()))
    with torch.no_grad():
        small = pipe.decode(cond, nothing, num_inference_steps=3, guidance_scale=8.0, generator=seeded())
    assert_close(run(pipe, picture()).small_images, (small + 1) / 2)


def test_callbacks_see_the_decoder_and_the_upsampler(pipe):
    seen = []
    run(pipe, picture(), callback_on_step_end=lambda self, i, t, tensors: seen.append((self.stage, i)))
    assert seen == [("decoder", 0), ("decoder", 1), ("decoder", 2), ("super_res", 0), ("super_res", 1)]


def test_tuple_and_pil(pipe):
    images, embeds, small = run(pipe, picture(), return_dict=False, output_type="pil")
    assert images[0].size == (32, 32) and small[0].size == (16, 16) and embeds.shape == (1, tiny.WIDTH)


def test_a_repository_without_a_prior_opens_and_saves_as_karlos(pipe, tmp_path):
    parts = {name: part for name, part in pipe.components.items() if name not in TEXT_ONLY}
    UnCLIPImageVariationPipeline(**parts).save_pretrained(tmp_path)
    index = UnCLIPImageVariationPipeline.load_config(tmp_path)
    assert not set(TEXT_ONLY) & set(index)
    reloaded = tiny.in_float64(UnCLIPImageVariationPipeline.from_pretrained(tmp_path))
    assert_close(run(reloaded, picture()).images, run(tiny.in_float64(pipe), picture()).images, atol=1e-8, rtol=0)
    text = UnCLIPPipeline.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="text to image needs prior and prior_scheduler, which UnCLIPPipeline was"):
        text("a house")
    embeds = text.encode_image(picture())
    assert text("a house", image_embeds=embeds, output_type="pt", **STEPS).images.isfinite().all()


def test_a_text_to_image_checkpoint_without_an_image_encoder_says_so(text_pipe):
    parts = dict(text_pipe.components) | {"image_encoder": None, "feature_extractor": None}
    pipe = UnCLIPImageVariationPipeline(**parts)
    pipe.set_progress_bar_config(disable=True)
    message = "image variation needs image_encoder and feature_extractor, .* or give image_embeddings"
    with pytest.raises(ValueError, match=message):
        run(pipe, picture())
    with pytest.raises(ValueError, match="encode_image needs image_encoder"):
        pipe.encode_image(picture())
    assert run(pipe, image_embeddings=torch.zeros(1, tiny.WIDTH)).images.isfinite().all()


def test_no_eta_is_the_reconstruction_and_the_latent_can_be_kept(pipe):
    shown = [picture(0), picture(1)]
    latent = invert(pipe, shown, num_inference_steps=3)
    made = run(pipe, shown, eta=0)
    assert_close(made.small_images, (reconstruct(pipe, latent) + 1) / 2, atol=1e-6, rtol=0)
    again = run(pipe, latent=latent, decoder_num_inference_steps=None)
    assert_close(again.small_images, made.small_images, atol=1e-6, rtol=0)
    assert_close(made.image_embeds, pipe.encode_image(shown))


def test_variations_of_one_picture_differ_more_with_eta(pipe):
    latent = invert(pipe, picture(), num_inference_steps=3)
    far = []
    for eta in (0, 0.3, 1):
        made = run(pipe, latent=latent, eta=eta, decoder_num_inference_steps=None, num_images_per_prompt=2)
        far.append((made.small_images[0] - made.small_images[1]).abs().mean().item())
    assert far[0] == 0 and 1e-4 < far[1] < far[2]


def test_a_generator_per_variation(pipe):
    generators = [seeded(1), seeded(1), seeded(2)]
    made = run(pipe, picture(), eta=0.5, num_images_per_prompt=3, generator=generators).small_images
    assert_close(made[0], made[1], atol=1e-6, rtol=0)
    assert (made[0] - made[2]).abs().max() > 1e-3


def test_an_exact_latent_gives_the_picture_back_and_takes_no_noise(pipe):
    latent = invert(pipe, picture(), exact=True, num_inference_steps=3)
    assert_close(
        run(pipe, latent=latent, decoder_num_inference_steps=None).small_images,
        (reconstruct(pipe, latent) + 1) / 2,
        atol=1e-6,
        rtol=0,
    )
    with pytest.raises(ValueError, match="exact latent can only be reconstructed"):
        run(pipe, latent=latent, eta=0.2, decoder_num_inference_steps=None)


def test_a_negative_prompt_leads_away(pipe):
    plain, away = run(pipe, picture()), run(pipe, picture(), negative_prompt="two green cats at night")
    assert (plain.images - away.images).abs().max() > 1e-5


WRONG = [
    ({"eta": 1.5}, "eta must be a number from 0 to 1, got 1.5"),
    ({"image": None, "image_embeddings": torch.zeros(1, 32), "eta": 0.5}, "eta varies a picture's own noise"),
    ({"eta": 0.5, "decoder_latents": torch.zeros(1, 3, 16, 16)}, "eta varies a picture's own noise"),
    ({"image": None}, "give either image or image_embeddings, got neither"),
    ({"image_embeddings": torch.zeros(1, 32)}, "got both"),
    ({"image": None, "image_embeddings": torch.zeros(1, 31)}, r"image_embeddings must be \(1, 32\), got \(1, 31\)"),
    ({"image": torch.zeros(3, 8, 8) - 1}, r"must lie in \[0, 1\]"),
    ({"num_images_per_prompt": 0}, "num_images_per_prompt must be a whole number of at least 1, got 0"),
    ({"decoder_num_inference_steps": 0}, "decoder_num_inference_steps must be a whole number of at least 1, got 0"),
    ({"decoder_guidance_scale": -1.0}, "decoder_guidance_scale must be a finite number of at least 0"),
    ({"decoder_latents": torch.zeros(1, 3, 8, 16)}, r"decoder_latents must be \(1, 3, 16, 16\), got \(1, 3, 8, 16\)"),
    ({"generator": [torch.Generator()] * 2}, "a list of 1, one per picture, got 2"),
    ({"output_type": "latent"}, "output_type must be one of .* got 'latent'"),
]


@pytest.mark.parametrize(("options", "message"), WRONG)
def test_nonsense_is_refused_before_anything_is_computed(pipe, options, message, monkeypatch):
    monkeypatch.setattr(type(pipe), "encode_text", lambda *_: pytest.fail("computed before checking"))
    arguments = {"image": picture()} | options
    with pytest.raises(ValueError, match=message):
        run(pipe, arguments.pop("image"), **arguments)
