"""The way between pictures and captions: its ends, its noise, its frames in a file."""

import numpy as np
import pytest
import torch
from PIL import Image
from pipelines import tiny
from torch.testing import assert_close

from unclip_hub import UnCLIPPipeline
from unclip_hub.embeddings import normalize, slerp
from unclip_hub.pipelines.frames import same_noise, save_frames
from unclip_hub.pipelines.interpolation import UnCLIPInterpolationPipeline
from unclip_hub.pipelines.inversion import invert, reconstruct


STEPS = {"prior_num_inference_steps": 1, "decoder_num_inference_steps": 2, "super_res_num_inference_steps": 1}


def opened(karlo):
    parts = tiny.components(karlo=karlo)
    parts |= {name: tiny.components(karlo=False)[name] for name in ("image_encoder", "feature_extractor")}
    return tiny.in_float64(UnCLIPInterpolationPipeline(**parts))


@pytest.fixture(scope="module")
def pipe():
    return opened(karlo=False)


@pytest.fixture(scope="module", params=["karlo", "bundled"])
def either(request, pipe):
    """Karlo's layout: a decoder of noise with a learned variance, and an upsampler for the last step."""
    return opened(karlo=True) if request.param == "karlo" else pipe


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def picture(seed=0, size=(40, 28)):
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def run(pipe, sources=None, frames=None, *, seed=0, **options):
    return pipe(sources, frames, **(STEPS | {"generator": seeded(seed), "output_type": "pt"} | options))


def test_shapes_of_everything_returned(either):
    made = run(either, [picture(0), picture(1, size=(9, 30))], 5, num_images_per_prompt=2)
    assert made.images.shape == (10, 3, 32, 32)
    assert made.small_images.shape == (10, 3, 16, 16)
    assert made.image_embeds.shape == (10, tiny.WIDTH)
    assert len(run(either, [picture(0), picture(1)]).images) == 8


@pytest.mark.parametrize("exact", [False, True])
def test_the_ends_and_stops_on_the_way_are_the_reconstructions(either, exact):
    shown = [picture(0), picture(1), picture(2)]
    latent = invert(either, shown, exact=exact, num_inference_steps=2)
    made = run(either, shown, 5, exact=exact)
    assert_close(made.small_images[[0, 2, 4]] * 2 - 1, reconstruct(either, latent), atol=1e-6, rtol=0)
    assert_close(made.image_embeds[[0, 2, 4]], latent.image_embeds)
    assert (made.small_images[1] - made.small_images[0]).abs().max() > 1e-3
    assert_close(run(either, latent=latent, frames=5, decoder_num_inference_steps=None).images, made.images,
                 atol=1e-7, rtol=0)  # fmt: skip


def test_embeddings_are_on_the_arc(pipe):
    embeds = torch.randn(2, tiny.WIDTH, generator=seeded(), dtype=torch.float64)
    made = run(pipe, image_embeds=embeds, frames=4).image_embeds
    for i in range(4):
        assert_close(made[i : i + 1], slerp(embeds[:1], embeds[1:], theta=i / 3))


def test_weights_make_one_picture_of_all(pipe):
    embeds = torch.randn(3, tiny.WIDTH, generator=seeded(), dtype=torch.float64)
    made = run(pipe, image_embeds=embeds, weights=[1, 0, 3])
    assert made.images.shape[0] == 1
    assert_close(made.image_embeds, slerp(embeds[:1], embeds[2:], theta=0.75))
    inverted = run(pipe, [picture(0), picture(1)], weights=[0, 2.0])
    assert_close(inverted.image_embeds, pipe.encode_image(picture(1)))


def test_captions_go_through_the_prior(pipe):
    made = run(pipe, ["a house", picture(), "two green cats at night"], 3)
    expected = UnCLIPPipeline(**pipe.components)
    expected.set_progress_bar_config(disable=True)
    for i, caption in ((0, "a house"), (2, "two green cats at night")):
        (generator,) = same_noise(seeded(), groups=1, each=1)
        from_text = expected(caption, generator=generator, output_type="pt", **STEPS).image_embeds
        assert_close(made.image_embeds[i : i + 1], from_text)
    assert_close(made.image_embeds[1:2], pipe.encode_image(picture()))
    other = run(pipe, ["a house", picture()], 2, negative_prompt="a red circle", prior_guidance_scale=3.0)
    assert (other.image_embeds[0] - made.image_embeds[0]).abs().max() > 1e-4


def test_frames_share_their_noise_and_ways_do_not(pipe):
    embeds = torch.randn(1, tiny.WIDTH, generator=seeded(), dtype=torch.float64).repeat(2, 1)
    made = run(pipe, image_embeds=embeds, frames=3, num_images_per_prompt=2).images
    assert_close(made[0], made[2], atol=1e-7, rtol=0)
    assert (made[0] - made[3]).abs().max() > 1e-3
    assert torch.equal(run(pipe, image_embeds=embeds, frames=3, num_images_per_prompt=2).images, made)
    own = run(pipe, image_embeds=embeds, frames=2, generator=[seeded(1), seeded(2)]).images
    assert (own[0] - own[1]).abs().max() > 1e-3


def test_a_generator_moves_on(pipe):
    generator, embeds = seeded(), torch.ones(2, tiny.WIDTH, dtype=torch.float64)
    first = run(pipe, image_embeds=embeds, frames=1, generator=generator).images
    assert (run(pipe, image_embeds=embeds, frames=1, generator=generator).images - first).abs().max() > 1e-3


def test_fixed_noise_on_request(pipe):
    shown = [picture(0), picture(1)]
    fixed = run(pipe, shown, 2, noise="fixed")
    embeds = run(pipe, image_embeds=pipe.encode_image(shown), frames=2)
    assert_close(fixed.images, embeds.images)
    assert (run(pipe, shown, 2).images - fixed.images).abs().max() > 1e-3


def test_guidance_of_the_inverted_way(pipe):
    shown = [picture(0), picture(1)]
    plain, guided = run(pipe, shown, 2), run(pipe, shown, 2, decoder_guidance_scale=4.0)
    assert_close(guided.image_embeds, plain.image_embeds)
    assert (guided.images - plain.images).abs().max() > 1e-4


def test_callbacks_and_tuples(pipe):
    seen = []
    images, embeds, small = run(
        pipe, [picture(0), picture(1)], 2, return_dict=False, output_type="pil",
        callback_on_step_end=lambda self, i, t, tensors: seen.append(self.stage),
    )  # fmt: skip
    assert [len(part) for part in (images, embeds, small)] == [2, 2, 2] and images[0].size == (32, 32)
    assert list(dict.fromkeys(seen)) == ["inversion", "decoder", "super_res"]


ONE, TWO = [picture(0)], [picture(0), picture(1)]
WRONG = [
    ({}, "exactly one of sources, latent, image_embeds, got none"),
    ({"sources": TWO, "image_embeds": torch.zeros(2, 32)}, "got sources and image_embeds"),
    ({"sources": "a house"}, "sources must be a list"),
    ({"sources": ONE}, "at least 2 sources, got 1"),
    ({"image_embeds": torch.zeros(2, 31)}, r"image_embeds must be \(2, 32\), got \(2, 31\)"),
    ({"sources": TWO, "weights": [1]}, "expected 2 weights, one per source, got 1"),
    ({"sources": TWO, "weights": [1, -1]}, "weights must be at least 0"),
    ({"sources": TWO, "weights": [1, 1], "num_frames": 3}, "weights make a single picture"),
    ({"sources": TWO, "num_frames": 0}, "num_frames must be a whole number of at least 1, got 0"),
    ({"sources": TWO, "noise": "loud"}, "noise must be one of"),
    ({"sources": ["a house", ONE[0]], "noise": "inverted"}, "needs pictures or their latent"),
    ({"sources": ["a house", "a cat"], "exact": True}, "inverts nothing"),
    ({"sources": TWO, "generator": [torch.Generator()]}, "a list of 8, one per picture, got 1"),
    ({"sources": TWO, "decoder_guidance_scale": -1.0}, "decoder_guidance_scale must be"),
    ({"sources": TWO, "output_type": "latent"}, "output_type must be one of"),
    ({"sources": [torch.zeros(3, 8, 8) - 1, ONE[0]]}, r"must lie in \[0, 1\]"),
]


@pytest.mark.parametrize(("options", "message"), WRONG)
def test_nonsense_is_refused_before_anything_is_computed(pipe, options, message, monkeypatch):
    for verb in ("encode_text", "encode_image"):
        monkeypatch.setattr(type(pipe), verb, lambda *_: pytest.fail("computed before checking"))
    with pytest.raises(ValueError, match=message):
        pipe(**options)


def test_pictures_inverted_with_different_captions_do_not_mix(pipe):
    latent = invert(pipe, TWO, prompt=["a house", "a cat"], num_inference_steps=2)
    with pytest.raises(ValueError, match="inverted with one caption"):
        pipe(latent=latent)


def test_frames_in_a_file(tmp_path):
    frames = [Image.new("RGB", (6, 4), (40 * i, 0, 0)) for i in range(5)]
    save_frames(frames, tmp_path / "sheet.png")
    assert Image.open(tmp_path / "sheet.png").size == (30, 4)
    save_frames(frames, tmp_path / "sheet.jpg", columns=2)
    assert Image.open(tmp_path / "sheet.jpg").size == (12, 12)
    for name in ("moving.gif", "moving.webp"):
        save_frames(frames, tmp_path / name, seconds=1)
        with Image.open(tmp_path / name) as file:
            assert file.n_frames == 8  # there and back, neither end twice
            file.seek(4)
            assert abs(file.convert("RGB").getpixel((1, 1))[0] - 160) < 20
    save_frames(frames[:1], tmp_path / "still.gif")
    assert len(list(tmp_path.iterdir())) == 5


@pytest.mark.parametrize(("frames", "name", "options", "message"), [
    (2, "a.mp4", {}, "expected a name in"),
    (2, "noextension", {}, "expected a name in"),
    (0, "a.png", {}, "expected pictures of one size"),
    (2, "a.gif", {"seconds": 0}, "seconds must be above 0"),
])  # fmt: skip
def test_frames_that_cannot_be_written(frames, name, options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        save_frames([Image.new("RGB", (6, 4))] * frames, tmp_path / name, **options)
    assert not list(tmp_path.iterdir())


def test_unit_norms_are_not_assumed(pipe):
    embeds = torch.randn(2, tiny.WIDTH, generator=seeded(), dtype=torch.float64) * torch.tensor([[1.0], [5.0]])
    made = run(pipe, image_embeds=embeds, frames=3).image_embeds
    assert_close(made[1].norm(), embeds.norm(dim=-1).mean())
    assert_close(normalize(made[1]), normalize(normalize(embeds).sum(0)))
