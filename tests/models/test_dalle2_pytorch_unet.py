"""What DALLE2-pytorch's U-Net and its projection do beside what every network does."""

import pytest
import torch
from models.configs import BY_NAME, outputs, refuses
from torch import nn
from torch.testing import assert_close

from unclip_hub.models.dalle2_pytorch_unet import DALLE2PytorchUNet
from unclip_hub.models.dalle2_pytorch_unet_blocks import CrossEmbed, LinearAttention, StandardizedConv2d


OLD, UPSAMPLER = BY_NAME["dalle2-unet-0.15"], BY_NAME["dalle2-unet-1.15"]
PROJECTION = BY_NAME["dalle2-projection"]
IMAGES = OLD.config["num_image_tokens"]


def moved(model, inputs, **changes):
    return (outputs(model, {**inputs, **changes})[0] - outputs(model, inputs)[0]).abs().amax(dim=(1, 2, 3))


@torch.no_grad()
def test_every_condition_has_an_effect():
    model, inputs = OLD.model(), OLD.inputs()
    states = inputs["encoder_hidden_states"]
    image, text = torch.zeros_like(states), torch.zeros_like(states)
    image[:, 0], text[:, IMAGES] = torch.randn(20), torch.randn(20)
    for change in ({"encoder_hidden_states": states + image}, {"encoder_hidden_states": states + text}):
        assert (moved(model, inputs, **change) > 1e-4).all()
    assert (moved(model, inputs, class_labels=inputs["class_labels"] + 1) > 1e-4).all()
    model, inputs = UPSAMPLER.model(), UPSAMPLER.inputs()
    assert (moved(model, inputs, low_res_noise_level=torch.tensor([700, 100])) > 1e-4).all()
    assert (moved(model, inputs, last_estimate=None) > 1e-4).all()
    assert_close(
        moved(model, {**inputs, "last_estimate": None}, last_estimate=torch.zeros(2, 3, 8, 12)), torch.zeros(2)
    )


@torch.no_grad()
def test_discarded_text_is_learned_padding():
    model, inputs = OLD.model(), OLD.inputs()
    mask, states = inputs["attention_mask"], inputs["encoder_hidden_states"]
    assert_close(moved(model, inputs, encoder_hidden_states=torch.where(mask[..., None], states, 9.0)), torch.zeros(2))
    longer = torch.nn.functional.pad(states, (0, 0, 0, 5))
    padded = moved(model, inputs, encoder_hidden_states=longer, attention_mask=torch.nn.functional.pad(mask, (0, 5)))
    assert_close(padded, torch.zeros(2))
    kept = mask.clone()
    kept[:, :IMAGES] = False  # of image tokens the mask says nothing
    assert_close(moved(model, inputs, attention_mask=kept), torch.zeros(2))


@torch.no_grad()
def test_a_network_without_text_does_not_look_at_it():
    model = OLD.model(max_text_len=None)
    inputs = OLD.inputs()
    states = inputs["encoder_hidden_states"]
    assert_close(moved(model, inputs, encoder_hidden_states=states[:, :IMAGES], attention_mask=None), torch.zeros(2))


@pytest.mark.parametrize(
    ("case", "changes", "message"),
    [
        (OLD, {"sample": torch.randn(2, 3, 8, 10)}, "h and w divisible by 4, got (2, 3, 8, 10)"),
        (OLD, {"sample": torch.randn(2, 4, 8, 12)}, "sample must be (b, 3, h, w)"),
        (OLD, {"class_labels": None}, "needs encoder_hidden_states with 3 image tokens and class_labels"),
        (OLD, {"class_labels": torch.randn(2, 31)}, "class_labels must be (2, 32), got (2, 31)"),
        (OLD, {"low_res_noise_level": 200}, "low_res_noise_level needs a network with low_res_noise=True"),
        (OLD, {"last_estimate": torch.randn(2, 3, 8, 12)}, "last_estimate needs a network with self_condition=True"),
        (UPSAMPLER, {"class_labels": torch.randn(2, 64)}, "class_labels must be None"),
    ],
)
def test_refuses_inputs_that_do_not_fit(case, changes, message):
    with refuses(message):
        outputs(case.model(), {**case.inputs(), **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"downsample": "pool"}, "downsample must be one of 'conv', 'space_to_depth', 'cross_embed', got 'pool'"),
        ({"upsample": "bicubic"}, "upsample must be one of"),
        ({"resample_first": False, "channel_mult": [2, 3]}, "channel_mult must begin with 1"),
        ({"self_attention": [True]}, "self_attention must be one value or 2"),
    ],
)
def test_refuses_other_configurations(changes, message):
    with refuses(message):
        DALLE2PytorchUNet(**{**OLD.config, **changes})


@pytest.mark.parametrize("downsample", ["conv", "space_to_depth", "cross_embed"])
@pytest.mark.parametrize("upsample", ["conv_transpose", "pixel_shuffle", "nearest"])
@torch.no_grad()
def test_every_resampling_fits(downsample, upsample):
    for first in (True, False):
        model = OLD.model(downsample=downsample, upsample=upsample, resample_first=first)
        assert outputs(model, OLD.inputs())[0].shape == (2, 6, 8, 12)


def test_linear_attention_is_attention_by_two_softmaxes():
    torch.manual_seed(0)
    layer = LinearAttention(6, heads=2, head_dim=4, normalized=False, stable=False)
    x = torch.randn(1, 6, 3, 5)
    query, key, value = layer.to_qkv(layer.norm(x)).flatten(2).view(3, 2, 4, 15)
    weights = torch.einsum("hdn,hdm->hnm", query.softmax(1) / 2, key.softmax(2))
    seen = torch.einsum("hnm,hdm->hdn", weights, value).reshape(1, 8, 3, 5)
    expected = x + layer.norm_out(layer.to_out(nn.functional.gelu(seen)))
    assert_close(layer(x), expected)
    layer.normalized = True
    assert (layer(x) - expected).abs().max() > 1e-3


def test_the_widths_of_a_cross_embedding():
    convs = CrossEmbed(3, 20, kernels=(15, 3, 7)).convs
    assert [(conv.kernel_size[0], conv.out_channels) for conv in convs] == [(3, 10), (7, 5), (15, 5)]


def test_a_standardized_convolution_ignores_scale_and_offset_of_its_weights():
    torch.manual_seed(0)
    conv, x = StandardizedConv2d(3, 5, 3, padding=1), torch.randn(2, 3, 6, 7)
    expected = conv(x)
    with torch.no_grad():
        conv.weight.mul_(4).add_(2)
    assert_close(conv(x), expected, rtol=1e-2, atol=1e-2)


@torch.no_grad()
def test_no_image_is_learned():
    model, inputs = PROJECTION.model(), PROJECTION.inputs()
    states, time = outputs(model, inputs)
    assert_close(states[:1, :3], model.null_image_tokens)
    assert_close(time[:1], model.null_image_time)
    images = inputs["image_embeddings"].repeat(2, 1)
    given = outputs(model, {**inputs, "image_embeddings": images, "do_classifier_free_guidance": False})
    assert_close(given[0][1], states[1])
    assert_close(given[0][0, 3:], states[0, 3:])
    assert_close(given[1][1], time[1])


@torch.no_grad()
def test_projections_without_text_or_image():
    states, _ = outputs(PROJECTION.model(text_embed_dim=None), PROJECTION.inputs())
    assert states.shape == (2, 3 + 7, 20) and not states[:, 3:].any()
    inputs = {**PROJECTION.inputs(), "image_embeddings": torch.randn(2, 32), "do_classifier_free_guidance": False}
    states, time = outputs(PROJECTION.model(clip_extra_context_tokens=0), inputs)
    assert states.shape == (2, 7, 20) and time is None
