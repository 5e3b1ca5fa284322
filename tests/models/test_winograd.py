"""Winograd's convolution is the convolution, as exact as float32 makes it."""

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from unclip_hub.models import winograd
from unclip_hub.models.winograd import Scratch, convolve


SIZES = [  # b, c, h, w, k
    (2, 7, 8, 12, 5),  # one strip a picture
    (1, 3, 4, 4, 2),  # one tile
    (2, 3, 20, 400, 5),  # strips of two rows of tiles, of which the last overlaps the one before
    (1, 2, 12, 1200, 3),  # a row of more tiles than are computed at once
]


def layer(b, c, h, w, k):
    torch.manual_seed(0)
    return torch.randn(b, c, h, w), torch.randn(k, c, 3, 3) / (9 * c) ** 0.5, torch.randn(k)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("biased", [True, False])
def test_it_is_the_convolution(size, biased):
    images, weight, bias = layer(*size)
    if not biased:
        bias = None
    made = convolve(images, weight, bias, scratch=Scratch())
    exact = F.conv2d(images.double(), weight.double(), None if bias is None else bias.double(), padding=1)
    assert_close(made.double(), exact, rtol=0, atol=1e-5)
    assert made.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("size", SIZES[:3:2], ids=str)
def test_filters_in_turns(size, monkeypatch):
    images, weight, bias = layer(*size)
    expected = convolve(images, weight, bias, scratch=Scratch())
    monkeypatch.setattr(winograd, "_FILTERS_AT_ONCE", 36 * 2 * images.shape[1])  # two at once, then the fifth
    assert_close(convolve(images, weight, bias, scratch=Scratch()), expected, rtol=0, atol=1e-5)


def test_layouts_of_the_input_and_what_is_left_of_it():
    images, weight, bias = layer(2, 7, 8, 12, 5)
    other = images.contiguous(memory_format=torch.channels_last)
    before = images.clone(), weight.clone(), bias.clone()
    made = [convolve(one, weight, bias, scratch=Scratch()) for one in (images, other)]
    assert_close(made[0], made[1], rtol=0, atol=0)
    assert all(map(torch.equal, (images, weight, bias), before))


def test_rounding_errors():
    images, weight, _ = layer(1, 320, 16, 24, 64)
    exact = F.conv2d(images.double(), weight.double(), padding=1)
    error = (convolve(images, weight, scratch=Scratch()).double() - exact).square().mean().sqrt()
    assert 0.9 < exact.std() < 1.1
    assert 0 < error < 3e-6


def test_what_another_layer_left_in_the_memory_does_not_matter():
    scratch = Scratch()
    for size in (SIZES[2], SIZES[0]):  # the second finds more memory than it needs
        images, weight, bias = layer(*size)
        expected = convolve(images, weight, bias, scratch=Scratch())
        convolve(torch.full_like(images, torch.nan), weight, bias, scratch=scratch)
        assert_close(convolve(images, weight, bias, scratch=scratch), expected, rtol=0, atol=0)
