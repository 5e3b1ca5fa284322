"""Pictures in and out: every accepted form gives the same batch, everything else says what was expected."""

import numpy as np
import pytest
import torch
from PIL import Image

from unclip_hub.images import (
    blend,
    centre_square,
    grid,
    outpainting_canvas,
    paste,
    places,
    read_picture,
    resize,
    shrink_known,
    to_mask,
    to_numpy,
    to_pil,
    to_tensor,
    window,
)


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


@pytest.mark.parametrize(
    "form",
    [
        pytest.param(lambda m: Image.fromarray(m), id="L"),
        pytest.param(lambda m: [Image.fromarray(m).convert("RGB")], id="list of RGB"),
        pytest.param(lambda m: m, id="uint8 array"),
        pytest.param(lambda m: m[None] > 0, id="bool batch"),
        pytest.param(lambda m: m / 255, id="float64 array"),
        pytest.param(lambda m: torch.tensor(m), id="uint8 tensor"),
        pytest.param(lambda m: torch.tensor(m > 0)[None, None], id="bool (b, 1, h, w)"),
        pytest.param(lambda m: torch.tensor(m)[None].double() / 255, id="float (b, h, w)"),
    ],
)
def test_white_is_one_in_every_form_of_a_mask(form):
    mask = np.zeros((H, W), dtype=np.uint8)
    mask[2:5, 3:9] = 255
    torch.testing.assert_close(to_mask(form(mask)), torch.tensor(mask)[None, None] / 255)


def test_greys_of_a_mask_stay_and_what_is_transparent_is_white():
    grey = Image.new("L", (W, H), 51)
    torch.testing.assert_close(to_mask(grey), torch.full((1, 1, H, W), 0.2))
    cut_out = Image.new("RGBA", (W, H), (0, 0, 0, 255))
    cut_out.putpixel((3, 2), (0, 0, 0, 0))
    assert to_mask(cut_out).nonzero().tolist() == [[0, 0, 2, 3]]


def test_a_masks_exif_rotation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    mask = np.zeros((H, W), dtype=np.uint8)
    mask[0] = 255
    Image.fromarray(mask).save(tmp_path / "turned.png", exif=exif)
    torch.testing.assert_close(to_mask(read_picture(tmp_path / "turned.png"))[0, 0, :, -1], torch.ones(W))


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.zeros((H, W), dtype=np.uint8), "black everywhere"),
        (np.ones((H, W), dtype=np.uint8), "give it as bool"),
        (np.ones((H, W), dtype=np.int64), "int64"),
        (np.ones((1, 1, H, W)), "a mask must be"),
        (torch.ones(1, 3, H, W), "a mask must be"),
        (torch.full((H, W), 2.0), "from 2 to 2"),
        (torch.full((H, W), float("nan")), "nan"),
        (torch.ones(0, H, W), "a mask must be"),
    ],
)
def test_what_is_no_mask(mask, message):
    with pytest.raises(ValueError, match=message):
        to_mask(mask)


def test_a_canvas_has_room_where_asked_and_the_mask_shows_it():
    images = torch.rand(2, 3, H, W)
    canvas, mask = outpainting_canvas(images, left=3, top=1, bottom=2)
    assert canvas.shape == (2, 3, H + 3, W + 3) and mask.shape == (1, 1, H + 3, W + 3)
    assert torch.equal(canvas[..., 1:-2, 3:], images)
    assert mask[..., 1:-2, 3:].sum() == 0 and mask.sum() == mask.numel() - H * W
    torch.testing.assert_close(canvas[..., 1:-2, 0], images[..., 0])
    for margins in ({}, {"left": -1, "right": 3}):
        with pytest.raises(ValueError, match="expected margins of at least 0 and one above it"):
            outpainting_canvas(images, **margins)


def test_paste_keeps_black_to_the_bit_takes_white_and_blends_grey():
    made, original = torch.rand(2, 3, H, W), torch.rand(2, 3, H, W)
    mask = torch.zeros(1, 1, H, W)
    mask[..., 4:6, :], mask[..., 6:, :] = 0.25, 1
    pasted = paste(made, original, mask=mask)
    assert torch.equal(pasted[..., :4, :], original[..., :4, :])
    assert torch.equal(pasted[..., 6:, :], made[..., 6:, :])
    torch.testing.assert_close(pasted[..., 4:6, :], (0.75 * original + 0.25 * made)[..., 4:6, :])


def test_a_pasted_picture_is_exact_in_uint8(pixels):
    original = to_tensor(Image.fromarray(pixels))
    (back,) = to_pil(paste(torch.rand_like(original), original, mask=torch.zeros(1, 1, H, W)))
    np.testing.assert_array_equal(np.asarray(back), pixels)


@pytest.mark.parametrize("size", [(4, 5), (3, 7), (16, 30)])
def test_no_small_pixel_that_is_known_holds_anything_masked(size):
    mask = torch.zeros(1, 1, H, W)
    mask[..., 3:7, 2:9] = 1
    first, small_mask = shrink_known(torch.zeros(1, 3, H, W) + mask, mask, size)
    second, _ = shrink_known(torch.zeros(1, 3, H, W) - mask, mask, size)
    known = (small_mask == 0).expand_as(first)
    assert 0 < known.sum() < known.numel()
    assert torch.equal(first[known], second[known])


def test_places_cover_the_canvas_evenly_and_overlap():
    assert places(8, 8, size=8, overlap=2) == [(0, 0)]
    assert places(8, 20, size=8, overlap=2) == [(0, 0), (0, 6), (0, 12)]
    for height, width in ((9, 31), (17, 8), (14, 15)):
        covered = torch.zeros(height, width)
        for top, left in places(height, width, size=8, overlap=3):
            assert 0 <= top <= height - 8 and 0 <= left <= width - 8
            covered[top : top + 8, left : left + 8] += 1
        assert covered.min() >= 1
    assert len(places(17, 17, size=8, overlap=3)) == 9


def test_blend_puts_windows_back_together_and_hides_seams():
    canvas = torch.rand(2, 3, 9, 20)
    at = places(9, 20, size=8, overlap=4)
    windows = [window(canvas, place, size=8) for place in at]
    torch.testing.assert_close(blend(windows, at, height=9, width=20), canvas)
    steps = [torch.full((1, 1, 8, 8), float(i)) for i in range(2)]
    line = blend(steps, [(0, 0), (0, 4)], height=8, width=12)[0, 0, 0]
    assert line[0] == 0 and line[-1] == 1 and (line.diff() >= 0).all() and line.diff().max() <= 0.34


def test_the_square_in_the_middle():
    images = torch.arange(H * W).view(1, 1, H, W).float()
    assert torch.equal(centre_square(images), images[..., 2:10])
    assert torch.equal(centre_square(images.mT), images.mT[..., 2:10, :])


def test_broken_files_say_which_and_why(tmp_path, pixels):
    whole, cut = tmp_path / "whole.jpg", tmp_path / "cut.jpg"
    Image.fromarray(pixels.repeat(9, 0).repeat(9, 1)).save(whole)
    cut.write_bytes(whole.read_bytes()[:700])
    (tmp_path / "text.png").write_text("hello")
    assert read_picture(str(whole)).size == (9 * W, 9 * H)
    for path, reason in (
        (cut, "truncated"),
        (tmp_path / "text.png", "identify"),
        (tmp_path / "no.png", "no such file"),
    ):
        with pytest.raises(ValueError, match=f"cannot read .*{path.name} as a picture: .*{reason}"):
            read_picture(path)
