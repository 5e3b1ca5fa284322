import inspect
from pathlib import Path

import pytest
import torch
from diffusers.models.unets.unet_2d import UNet2DModel as Theirs
from models.configs import BY_NAME, UPSAMPLER_KARLO, refuses

from unclip_hub.models.upsampler import UNet2DModel
from unclip_hub.training.presets import new_upsampler


KARLO = BY_NAME["upsampler-karlo"]


def test_has_diffusers_keys_with_diffusers_defaults():
    ours = {k: v.default for k, v in inspect.signature(UNet2DModel.__init__).parameters.items()}
    theirs = {k: v.default for k, v in inspect.signature(Theirs.__init__).parameters.items()}
    assert ours.pop("patch_size") == 1 and ours.pop("coordinates") is False and ours.pop("residual") is False
    for key in ("down_block_types", "up_block_types", "add_attention"):  # diffusers' defaults have attention
        del ours[key], theirs[key]
    assert ours == theirs


@pytest.mark.parametrize(
    "key, value",
    [
        ("center_input_sample", True),
        ("down_block_types", ["AttnDownBlock2D"] * 4),
        ("up_block_types", ["ResnetUpsampleBlock2D"] * 3),
        ("mid_block_type", None),
        ("block_out_channels", [8, 16, 24]),
        ("act_fn", "gelu"),
        ("add_attention", True),
        ("class_embed_type", "identity"),
        ("num_class_embeds", 10),
        ("resnet_time_scale_shift", "spatial"),
        ("time_embedding_type", "learned"),
        ("upsample_type", "resnet"),
    ],
)
def test_refuses_configurations_of_other_families(key: str, value):
    with pytest.raises(ValueError, match=rf"^{key} must .*got "):
        UNet2DModel.from_config(UPSAMPLER_KARLO | {key: value})


@pytest.mark.parametrize(
    "shape, message",
    [
        ((2, 3, 8, 16), "sample must be (b, 6, h, w), got (2, 3, 8, 16)"),
        ((2, 6, 8, 12), "divisible by patch_size * 2**(levels - 1) = 8, got 8 x 12"),
    ],
)
def test_refuses_samples_that_do_not_fit(shape, message: str):
    with refuses(message):
        KARLO.model()(torch.randn(shape), 3)


@pytest.mark.parametrize("half", [slice(0, 3), slice(3, 6)], ids=["noisy", "low resolution"])
def test_both_images_change_the_output(half: slice):
    model, inputs = KARLO.model(), KARLO.inputs()
    other = inputs["sample"].clone()
    other[:, half] = 0
    difference = model(**inputs).sample - model(**(inputs | {"sample": other})).sample
    assert difference.abs().amax(dim=(1, 2, 3)).min() > 1e-3


def test_patches_and_coordinates(tmp_path: Path):
    torch.manual_seed(0)
    model = UNet2DModel(**(UPSAMPLER_KARLO | dict(patch_size=2, coordinates=True)))
    assert model.conv_in.in_channels == 6 * 4 + 2
    sample = torch.randn(2, 6, 16, 32)
    expected = model(sample, 3).sample
    assert expected.shape == (2, 3, 16, 32)
    model.save_pretrained(tmp_path)
    torch.testing.assert_close(UNet2DModel.from_pretrained(tmp_path)(sample, 3).sample, expected)


def test_a_residual_one_adds_to_the_upscaled_picture(tmp_path: Path):
    plain, residual = (UNet2DModel(**(UPSAMPLER_KARLO | dict(residual=value))) for value in (False, True))
    residual.load_state_dict(plain.state_dict())
    sample = torch.randn(2, 6, 16, 32)
    torch.testing.assert_close(residual(sample, 3).sample, plain(sample, 3).sample + sample[:, 3:])
    residual.save_pretrained(tmp_path)
    torch.testing.assert_close(UNet2DModel.from_pretrained(tmp_path)(sample, 3).sample, residual(sample, 3).sample)


def test_a_new_residual_one_begins_as_the_upscaled_picture():
    sample = torch.randn(1, 6, 32, 32)
    torch.testing.assert_close(new_upsampler("tiny")(sample, 3).sample, sample[:, 3:])
