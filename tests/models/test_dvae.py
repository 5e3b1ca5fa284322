import pytest
import torch
from models.configs import BY_NAME, DVAE_TINY, refuses

from unclip_hub.models.dvae import DVAE, map_pixels, unmap_pixels


CASE = BY_NAME["dvae"]


def test_pixels_keep_a_margin_from_both_ends():
    images = torch.linspace(-1, 1, 2 * 3 * 4 * 5).view(2, 3, 4, 5)
    mapped = map_pixels(images)
    torch.testing.assert_close(mapped, 0.8 * ((images + 1) / 2) + 0.1)
    assert (mapped.min().item(), mapped.max().item()) == pytest.approx((0.1, 0.9))
    torch.testing.assert_close(unmap_pixels(mapped), images, rtol=1e-5, atol=1e-6)


def test_unmapped_pixels_stay_in_range():
    got = unmap_pixels(torch.tensor([0.0, 0.05, 0.5, 0.95, 1.0]).view(1, 1, 1, 5).expand(1, 3, 1, 5))
    torch.testing.assert_close(got[0, 0, 0], torch.tensor([-1.0, -1.0, 0.0, 1.0, 1.0]), rtol=0, atol=1e-6)


@torch.no_grad()
def test_codes_are_the_likeliest_ones_and_images_are_made_of_their_means():
    model, images = CASE.model(), CASE.inputs()["sample"]
    model.encoder.conv_out.bias -= model.encode_logits(images).mean(dim=(0, 2, 3))  # no code wins everywhere
    codes = model.encode(images)
    assert codes.shape == (2, 2, 3) and codes.dtype == torch.int64 and len(codes.unique()) > 1
    logits = model.encode_logits(images)
    torch.testing.assert_close(logits.gather(1, codes[:, None])[:, 0], logits.amax(dim=1), rtol=1e-5, atol=1e-5)
    one_hot = torch.zeros_like(logits).scatter(1, codes[:, None], 1.0)
    expected = unmap_pixels(model.decode_statistics(one_hot)[:, :3].sigmoid())
    got = model.decode(codes)
    assert got.shape == (2, 3, 16, 24)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_a_code_reaches_further_than_its_own_pixels_and_no_further_than_the_other_picture():
    model = CASE.model()
    codes = torch.randint(20, (2, 3, 4))
    other = codes.clone()
    other[0, 1, 1] = (other[0, 1, 1] + 1) % 20
    change = (model.decode(codes) - model.decode(other)).abs().amax(dim=1)
    assert change[0, 8:16, 8:16].max() > 1e-4 and change[0, :8].max() > 0
    assert not change[1].any()


@torch.no_grad()
def test_the_depth_sets_the_gain_of_a_block():
    for layers in (1, 3):
        model = DVAE(**DVAE_TINY | {"layers_per_group": layers})
        block = model.encoder.groups[1][0]
        assert block.gain == 1 / (4 * layers) ** 2
        hidden = torch.randn(2, 16, 4, 6)
        inner = block(hidden) - block.conv_shortcut(hidden)
        assert inner.abs().max() > 0
        block.gain *= 2
        torch.testing.assert_close(block(hidden) - block.conv_shortcut(hidden), 2 * inner, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda m: m.encode(torch.zeros(1, 3, 16, 20)), "must be divisible by"),
        (lambda m: m.encode(torch.zeros(1, 4, 16, 16)), "sample must be (b, 3, h, w), got (1, 4, 16, 16)"),
        (lambda m: m.decode_statistics(torch.zeros(1, 19, 2, 2)), "weights must be (b, 20, h, w), got (1, 19, 2, 2)"),
    ],
)
def test_refuses_inputs_that_do_not_fit(call, message: str):
    with refuses(message):
        call(CASE.model())
