"""Every kind of picture becomes (3, s, s) in [-1, 1]; every broken one is named."""

import numpy as np
import pytest
import torch
from data import made
from PIL import Image

from unclip_hub.data.captioned import BrokenSample, Sample
from unclip_hub.data.pictures import Preparation, fitted


def sample(image) -> Sample:
    return Sample("the key", image, ("a caption",))


def gradient(width: int, height: int) -> Image.Image:
    """Red grows to the right, green downwards."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([x, y, 0 * x], axis=-1).round().astype(np.uint8))


def over_white(mode: str) -> Image.Image:
    """Transparent left of the middle, blue right of it."""
    image = Image.new("RGBA", (32, 24), (0, 255, 0, 0))
    image.paste((0, 0, 255, 255), (16, 0, 32, 24))
    return image if mode == "RGBA" else image.quantize(4) if mode == "P" else image.convert(mode)


@pytest.mark.parametrize("mode", ["RGBA", "P"])
def test_transparent_parts_are_white(mode):
    pixels = fitted(sample(made.encoded(over_white(mode))), size=16)
    assert_colour(pixels[:, 8, 2], (1, 1, 1))
    assert_colour(pixels[:, 8, 13], (-1, -1, 1))


@pytest.mark.parametrize(
    ("image", "kind", "colour"),
    [
        (Image.new("L", (30, 20), 51), "png", (51, 51, 51)),
        (Image.new("1", (30, 20), 1), "png", (255, 255, 255)),
        (Image.new("LA", (30, 20), (51, 255)), "png", (51, 51, 51)),
        (Image.new("P", (30, 20), 3), "gif", None),
        (Image.new("CMYK", (30, 20), (0, 255, 255, 0)), "jpeg", (255, 0, 0)),
        (Image.fromarray(np.full((20, 30), 257 * 51, dtype=np.uint16)), "png", (51, 51, 51)),
        (Image.new("RGB", (30, 20), (204, 51, 0)), "webp", (204, 51, 0)),
        (Image.new("RGB", (30, 20), (204, 51, 0)), "bmp", (204, 51, 0)),
        (Image.new("RGB", (30, 20), (204, 51, 0)), "tiff", (204, 51, 0)),
    ],
    ids=["grey", "black and white", "grey with alpha", "palette", "cmyk", "16-bit", "webp", "bmp", "tiff"],
)
def test_every_mode_and_format(image, kind, colour):
    pixels = fitted(sample(made.encoded(image, kind)), size=16)
    assert pixels.shape == (3, 16, 16) and pixels.dtype == torch.float32
    expected = colour or image.convert("RGB").getpixel((0, 0))
    assert_colour(pixels[:, 7, 7], [channel / 127.5 - 1 for channel in expected], atol=0.03)


def test_exif_orientation_is_applied():
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise
    stored = made.encoded(gradient(48, 32), "jpeg", quality=95, exif=exif)
    upright = made.encoded(gradient(48, 32).transpose(Image.Transpose.ROTATE_270), "jpeg", quality=95)
    torch.testing.assert_close(fitted(sample(stored), size=16), fitted(sample(upright), size=16), atol=0.04, rtol=0)
    assert (fitted(sample(stored), size=16) - fitted(sample(made.encoded(gradient(48, 32))), size=16)).abs().max() > 1


def test_the_shorter_edge_is_resized_and_the_middle_cut_out():
    pixels = fitted(sample(gradient(64, 32)), size=16)  # columns 16 to 48 of 64: a quarter to three quarters
    assert_colour(pixels[0, 8, [0, 15]], (-0.47, 0.47), atol=0.03)
    assert_colour(pixels[1, [0, 15], 8], (-0.95, 0.95), atol=0.03)
    tall = fitted(sample(gradient(32, 64)), size=16)
    assert_colour(tall[1, [0, 15], 8], (-0.47, 0.47), atol=0.03)


def test_random_crops_differ_and_stay_inside():
    rng = np.random.default_rng(0)
    lefts = torch.stack(
        [fitted(sample(gradient(96, 32)), size=16, crop="random", rng=rng)[0, 8, 0] for _ in range(40)]
    )
    assert lefts.min() < -0.85 and 0.1 < lefts.max() < 1 / 3 + 0.05
    with pytest.raises(ValueError, match="rng="):
        fitted(sample(gradient(96, 32)), size=16, crop="random")


def test_a_path_is_read_as_its_bytes_are(tmp_path):
    stored = made.encoded(gradient(40, 32))
    (tmp_path / "a.png").write_bytes(stored)
    torch.testing.assert_close(fitted(sample(tmp_path / "a.png"), size=16), fitted(sample(stored), size=16))


@pytest.mark.parametrize(
    ("content", "kind", "says"),
    [
        (made.truncated(), "broken image", "truncated"),
        (b"", "broken image", "no format that can be read"),
        (b"<html>not found</html>", "broken image", "no format that can be read"),
        (made.encoded(made.picture(5))[:60], "broken image", "the picture is broken"),
        (made.encoded(Image.new("F", (20, 20)), "tiff"), "broken image", "mode 'F'"),
        (made.encoded(made.picture(0, width=40, height=15)), "too small", "40x15, expected edges of at least 16"),
    ],
    ids=["truncated jpeg", "empty", "web page", "truncated png", "float", "too small"],
)
def test_broken_pictures_are_named(content, kind, says):
    with pytest.raises(BrokenSample, match=says) as caught:
        fitted(sample(content), size=16)
    assert caught.value.kind == kind and str(caught.value).startswith("the key: ")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(BrokenSample, match=r"the key: there is no file .*gone\.png"):
        fitted(sample(tmp_path / "gone.png"), size=16)


def test_decompression_bombs_are_refused(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(BrokenSample, match="decompression bomb"):
        fitted(sample(made.encoded(made.picture(0))), size=16)


def test_captions_are_drawn_by_seed_epoch_and_key():
    several = Sample("k", made.picture(1), tuple("abcdefgh"))

    def drawn(*, seed: int, epochs: range) -> list[str]:
        return Preparation(16, seed=seed).batch([(epoch, several) for epoch in epochs]).captions

    assert drawn(seed=0, epochs=range(30)) == drawn(seed=0, epochs=range(30))
    assert set(drawn(seed=0, epochs=range(60))) == set("abcdefgh")
    assert drawn(seed=0, epochs=range(30)) != drawn(seed=1, epochs=range(30))


def assert_colour(found, expected, *, atol=0.02):
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float32), atol=atol, rtol=0)
