"""Pictures in and out: every accepted form gives the same batch, everything else says what was expected."""

import numpy as np
import pytest
import torch
from PIL import Image

from unclip_hub.images import grid, resize, to_numpy, to_pil, to_tensor


H, W = 8, 12


@pytest.fixture
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (H, W, 3), dtype=np.uint8)


def expected(pixels: np.ndarray) -> torch.Tensor:
    return torch.tensor(pixels).permute(2, 0, 1)[None].float() / 127.5 - 1


@pytest.mark.parametrize(
    "form",
    [
        pytest.param(lambda x: Image.fromarray(x), id="PIL"),
        pytest.param(lambda x: [Image.fromarray(x)], id="list"),
        pytest.param(lambda x: x, id="uint8 array"),
        pytest.param(lambda x: x[None], id="uint8 batch"),
        pytest.param(lambda x: x / 255, id="float64 array"),
        pytest.param(lambda x: (x / 255).astype(np.float32)[None], id="float32 batch"),
        pytest.param(lambda x: np.ascontiguousarray(x[::-1])[::-1], id="array with negative strides"),
        pytest.param(lambda x: torch.tensor(x).permute(2, 0, 1), id="uint8 tensor"),
        pytest.param(lambda x: torch.tensor(x).permute(2, 0, 1)[None] / 255, id="float tensor"),
    ],
)
def test_every_accepted_form_is_the_same_batch(form, pixels):
    torch.testing.assert_close(to_tensor(form(pixels)), expected(pixels))


def test_arguments_are_left_as_they_were(pixels):
    array, tensor = pixels / 255, torch.rand(2, 3, H, W)
    before = array.copy(), tensor.clone()
    to_tensor(array)
    to_tensor(tensor)
    to_numpy(tensor)
    np.testing.assert_array_equal(array, before[0])
    torch.testing.assert_close(tensor, before[1])


def test_all_256_levels_survive_the_round_trip():
    levels = np.arange(256, dtype=np.uint8).reshape(8, 32, 1).repeat(3, axis=2)
    (picture,) = to_pil(to_tensor(Image.fromarray(levels)))
    np.testing.assert_array_equal(np.asarray(picture), levels)


def test_a_list_is_a_batch_in_order(pixels):
    batch = to_tensor([Image.fromarray(pixels), Image.fromarray(255 - pixels)])
    torch.testing.assert_close(batch, torch.cat([expected(pixels), expected(255 - pixels)]))


def test_gradient_dtype_and_range_of_a_tensor():
    tensor = torch.rand(2, 3, H, W, dtype=torch.float64, requires_grad=True)
    batch = to_tensor(tensor)
    batch.sum().backward()
    assert batch.dtype == torch.float64
    torch.testing.assert_close(tensor.grad, torch.full_like(tensor, 2))


def test_transparency_is_laid_over_white():
    image = Image.new("RGBA", (W, H), (255, 0, 0, 0))
    image.putpixel((0, 0), (255, 0, 0, 255))
    image.putpixel((1, 0), (0, 0, 0, 51))
    batch = to_tensor(image)
    torch.testing.assert_close(batch[0, :, 0, :3].T, torch.tensor([[1.0, -1, -1], [0.6, 0.6, 0.6], [1, 1, 1]]))


def test_transparent_palette_and_grey():
    palette = Image.new("P", (W, H), 1)
    palette.putpalette([255, 0, 0, 0, 255, 0])
    torch.testing.assert_close(to_tensor(palette)[0, :, 0, 0], torch.tensor([-1.0, 1, -1]))
    palette.info["transparency"] = 1
    torch.testing.assert_close(to_tensor(palette), torch.ones(1, 3, H, W))
    torch.testing.assert_close(to_tensor(Image.new("L", (W, H), 0)), -torch.ones(1, 3, H, W))


def test_sixteen_bit_grey_is_scaled_not_clipped():
    image = Image.fromarray(np.full((H, W), 51 * 257, dtype=np.uint16))
    torch.testing.assert_close(to_tensor(image), torch.full((1, 3, H, W), -0.6))


def test_exif_rotation_is_applied(pixels, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # "turn by 90 degrees clockwise to see it upright"
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    batch = to_tensor(Image.open(tmp_path / "turned.png"))
    torch.testing.assert_close(batch, expected(np.rot90(pixels, -1).copy()))


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((H, W), dtype=np.uint8), r"got \(8, 12\)"),
        (np.zeros((3, H, W), dtype=np.uint8), r"got \(3, 8, 12\)"),
        (np.zeros((H, W, 3), dtype=np.int64), "int64"),
        (np.full((H, W, 3), 255.0), "from 255 to 255"),
        (np.full((H, W, 3), np.nan), "nan"),
        (torch.zeros(H, W, 3), r"got \(8, 12, 3\)"),
        (torch.full((3, H, W), -1.0), "from -1 to -1"),
        (torch.zeros(3, H, W, dtype=torch.int64), "int64"),
        (torch.zeros(0, 3, H, W), "at least one pixel"),
        ([], "no pictures"),
        ([Image.new("RGB", (W, H)), Image.new("RGB", (H, W))], r"\(8, 12\), \(12, 8\)"),
        (Image.new("F", (W, H)), "no fixed range"),
    ],
)
def test_what_is_not_accepted(image, message):
    with pytest.raises(ValueError, match=message):
        to_tensor(image)


def test_output_is_clamped_and_channels_last():
    array = to_numpy(torch.stack([torch.full((H, W), value) for value in (-3.0, 0.0, 3.0)])[None])
    assert array.shape == (1, H, W, 3) and array.dtype == np.float32
    np.testing.assert_allclose(array[0, 0, 0], [0, 0.5, 1])


def test_to_pil_takes_any_dtype_and_a_gradient():
    images = to_pil(torch.ones(2, 3, H, W, dtype=torch.bfloat16, requires_grad=True))
    assert [(image.mode, image.size, image.getpixel((0, 0))) for image in images] == [("RGB", (W, H), (255,) * 3)] * 2


def test_resize_keeps_dtype_and_a_constant_picture():
    resized = resize(torch.full((2, 3, H, W), 0.25, dtype=torch.bfloat16), (5, 7))
    torch.testing.assert_close(resized, torch.full((2, 3, 5, 7), 0.25, dtype=torch.bfloat16))


def test_grid_goes_row_by_row():
    colours = [(250, 0, 0), (0, 250, 0), (0, 0, 250)]
    sheet = grid([Image.new("RGB", (W, H), colour) for colour in colours], columns=2)
    assert sheet.size == (2 * W, 2 * H)
    corners = [(0, 0), (W, 0), (0, H), (W, H)]
    assert [sheet.getpixel(xy) for xy in corners] == [*colours, (255, 255, 255)]


@pytest.mark.parametrize(("images", "columns"), [([], 1), ([Image.new("RGB", (W, H))], 0)])
def test_grid_refuses_nothing(images, columns):
    with pytest.raises(ValueError, match="pictures|columns"):
        grid(images, columns=columns)
