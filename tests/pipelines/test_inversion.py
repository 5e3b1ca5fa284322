"""A picture becomes (z_i, x_T) and a picture again, on both layouts of a checkpoint."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from pipelines import tiny
from safetensors.torch import save_file
from torch.testing import assert_close

from unclip_hub import UnCLIPPipeline
from unclip_hub.images import resize, to_tensor
from unclip_hub.pipelines.inversion import BipartiteLatent, invert, reconstruct


FEW = {"num_inference_steps": 3}


@pytest.fixture(scope="module", params=["karlo", "bundled"])
def pipe(request):
    """Karlo's layout predicts noise, with a learned variance; the bundled model's x_0. Both clamp x_0."""
    parts = tiny.components(karlo=request.param == "karlo")
    parts |= {name: tiny.components(karlo=False)[name] for name in ("image_encoder", "feature_extractor")}
    made = UnCLIPPipeline(**parts)
    made.set_progress_bar_config(disable=True)
    return made


def picture(seed=0, size=(40, 28)):
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def small(image):
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return resize(to_tensor(image.crop((left, top, left + side, top + side))), (16, 16)).clamp(-1, 1)


def test_exact_inversion_is_exact_to_rounding(pipe):
    latent = invert(pipe, [picture(0), picture(1, size=(17, 50))], exact=True, **FEW)
    assert latent.method == "bdia" and latent.states.shape == (2, 2, 3, 16, 16)
    assert latent.states.dtype == torch.float64
    assert max(latent.errors) < 1e-9
    expected = torch.cat([small(picture(0)), small(picture(1, size=(17, 50)))])
    assert_close(reconstruct(pipe, latent), expected, atol=1e-6, rtol=0)


def test_exact_inversion_is_exact_under_guidance_too(pipe):
    options = {"guidance_scale": 3.0, "guidance_rescale": 0.5, "negative_prompt": "two green cats at night"}
    latent = invert(pipe, picture(), prompt="a house", exact=True, **options, **FEW)
    assert max(latent.errors) < 1e-9
    elsewhere = replace(latent, guidance=latent.guidance | {"guidance_scale": 1.0})
    assert (reconstruct(pipe, elsewhere) - reconstruct(pipe, latent)).abs().max() > 1e-6


def test_exact_in_float32(pipe):
    latent = invert(pipe, picture(), exact=True, dtype=torch.float32, **FEW)
    assert latent.states.dtype == torch.float32
    assert 0 < max(latent.errors) < 1e-3


def test_ddim_reports_the_error_of_its_own_round_trip(pipe):
    latent = invert(pipe, picture(), **FEW)
    assert latent.method == "ddim" and latent.states.shape == (1, 1, 3, 16, 16)
    error = (reconstruct(pipe, latent, clamp=False) - small(picture())).pow(2).mean().sqrt()
    assert_close(error.item(), latent.errors[0], atol=1e-7, rtol=0)
    assert latent.errors[0] > 1e-3  # an untrained network


def test_the_same_picture_gives_the_same_latent_and_another_one_another(pipe):
    first, again, other = (
        invert(pipe, picture(), **FEW),
        invert(pipe, picture(), **FEW),
        invert(pipe, picture(1), **FEW),
    )
    assert torch.equal(first.states, again.states)
    assert (first.states - other.states).abs().max() > 0.01
    assert (first.image_embeds - other.image_embeds).abs().max() > 1e-4
    more = invert(pipe, picture(), iterations=3, **FEW)
    assert (first.states - more.states).abs().max() > 1e-3


def test_a_batch_equals_one_by_one(pipe):
    precise = tiny.in_float64(pipe)
    both = invert(precise, [picture(0), picture(1)], prompt=["a house", "two green cats at night"], exact=True, **FEW)
    for i, prompt in enumerate(["a house", "two green cats at night"]):
        alone = invert(precise, picture(i), prompt=prompt, exact=True, **FEW)
        assert_close(both[i : i + 1].states, alone.states, atol=1e-7, rtol=1e-7)
        assert both[i : i + 1].prompts == alone.prompts == (prompt,)


def test_embeddings_replace_the_image_encoder(pipe):
    without = UnCLIPPipeline(**pipe.components | {"image_encoder": None, "feature_extractor": None})
    without.set_progress_bar_config(disable=True)
    with pytest.raises(ValueError, match="inversion needs image_encoder .* or give image_embeds"):
        invert(without, picture(), **FEW)
    embeds = invert(pipe, picture(), **FEW).image_embeds
    latent = invert(without, picture(), image_embeds=embeds, exact=True, **FEW)
    assert max(latent.errors) < 1e-9


def test_another_embedding_makes_another_picture(pipe):
    latent = invert(pipe, picture(), **FEW)
    changed = reconstruct(pipe, latent, image_embeds=-latent.image_embeds)
    assert (changed - reconstruct(pipe, latent)).abs().max() > 1e-4


def test_eta_draws_noise_from_the_generator(pipe):
    latent = invert(pipe, picture(), **FEW)
    made = [reconstruct(pipe, latent, eta=0.5, generator=torch.Generator().manual_seed(s)) for s in (0, 0, 1)]
    assert torch.equal(made[0], made[1])
    assert (made[0] - made[2]).abs().max() > 1e-3


@pytest.mark.parametrize("exact", [False, True])
def test_one_file_holds_everything(pipe, exact, tmp_path):
    options = {"guidance_scale": 2, "guidance_interval": (0.2, 5.0), "negative_prompt": "a house"}
    latent = invert(pipe, [picture(0), picture(1)], prompt="two cats", exact=exact, **options, **FEW)
    latent.save(tmp_path / "latent.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["latent.safetensors"]
    loaded = BipartiteLatent.load(tmp_path / "latent.safetensors")
    assert torch.equal(loaded.states, latent.states) and torch.equal(loaded.image_embeds, latent.image_embeds)
    facts = {"states": latent.states, "image_embeds": latent.image_embeds}
    assert replace(loaded, **facts) == latent
    assert loaded.prompts == ("two cats", "two cats") and loaded.guidance["guidance_interval"] == (0.2, 5.0)
    assert torch.equal(reconstruct(pipe, loaded), reconstruct(pipe, latent))


def test_rows_and_repeats(pipe):
    latent = invert(pipe, [picture(0), picture(1)], prompt=["a house", "a cat"], exact=True, **FEW)
    twice = latent.repeat(2)
    assert len(twice) == 4 and twice.prompts == ("a house", "a house", "a cat", "a cat")
    assert torch.equal(twice.states[:, 1], latent.states[:, 0]) and torch.equal(
        twice[2:].states[:, 0], latent.states[:, 1]
    )


def test_files_that_are_no_latents(tmp_path):
    with pytest.raises(ValueError, match="no such file"):
        BipartiteLatent.load(tmp_path / "nothing.safetensors")
    (tmp_path / "text.safetensors").write_text("hello, this is text")
    with pytest.raises(ValueError, match="cannot read .*text.safetensors as a latent"):
        BipartiteLatent.load(tmp_path / "text.safetensors")
    save_file({"states": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="expected unclip_hub.BipartiteLatent/1, got None"):
        BipartiteLatent.load(tmp_path / "other.safetensors")


WRONG = [
    ({"num_inference_steps": 0}, "num_inference_steps must be a whole number of at least 1, got 0"),
    ({"num_inference_steps": 1, "exact": True}, "exact inversion needs at least 2 steps, got 1"),
    ({"num_inference_steps": 1001}, "within 1 … 1000, got 1001"),
    ({"iterations": 0}, "iterations must be a whole number of at least 1, got 0"),
    ({"iterations": 2, "exact": True}, "nothing to iterate"),
    ({"guidance_scale": -1.0}, "guidance_scale must be a finite number"),
    ({"guidance_rescale": 2.0}, "guidance_rescale must be a number from 0 to 1"),
    ({"guidance_interval": (3.0, 1.0)}, "guidance_interval must be two noise levels"),
    ({"prompt": ["a", "b"]}, "expected one prompt or 1, one per picture, got 2"),
    ({"image_embeds": torch.zeros(2, 32)}, r"image_embeds must be \(1, 32\), got \(2, 32\)"),
]


@pytest.mark.parametrize(("options", "message"), WRONG)
def test_nonsense_is_refused_before_anything_is_computed(pipe, options, message, monkeypatch):
    monkeypatch.setattr(type(pipe), "encode_image", lambda *_: pytest.fail("computed before checking"))
    with pytest.raises(ValueError, match=message):
        invert(pipe, picture(), **options)


def test_noise_has_no_place_in_an_exact_latent(pipe):
    latent = invert(pipe, picture(), exact=True, **FEW)
    with pytest.raises(ValueError, match="an exact latent can only be reconstructed"):
        reconstruct(pipe, latent, eta=0.1)
    with pytest.raises(ValueError, match="eta must be a number from 0 to 1, got 2"):
        reconstruct(pipe, latent, eta=2)


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (3000, 2)])
def test_pictures_of_odd_sizes(pipe, size):
    for mode in ("L", "RGBA"):
        latent = invert(pipe, picture(size=size).convert(mode), exact=True, num_inference_steps=2)
        assert max(latent.errors) < 1e-9
