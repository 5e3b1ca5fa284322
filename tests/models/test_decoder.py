import inspect
from pathlib import Path

import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel as Theirs
from models.configs import BY_NAME, DECODER_KARLO, loss, refuses, text_mask

from unclip_hub.models.decoder import UNet2DConditionModel


KARLO, CROSS = BY_NAME["decoder-karlo"], BY_NAME["decoder-cross"]
PATCHED = DECODER_KARLO | dict(patch_size=2, coordinates=True)


def test_has_diffusers_keys_with_diffusers_defaults():
    ours = {k: v.default for k, v in inspect.signature(UNet2DConditionModel.__init__).parameters.items()}
    theirs = {k: v.default for k, v in inspect.signature(Theirs.__init__).parameters.items()}
    assert ours.pop("patch_size") == 1 and ours.pop("coordinates") is False
    for key in ("down_block_types", "mid_block_type", "up_block_types"):  # diffusers' defaults are Stable Diffusion's
        del ours[key], theirs[key]
    assert ours == theirs


@pytest.mark.parametrize(
    "key, value",
    [
        ("center_input_sample", True),
        ("down_block_types", ["CrossAttnDownBlock2D"] * 4),
        ("up_block_types", ["SimpleCrossAttnUpBlock2D"] * 4),
        ("mid_block_type", "UNetMidBlock2DCrossAttn"),
        ("block_out_channels", [8, 16, 24]),
        ("layers_per_block", [1, 2]),
        ("only_cross_attention", [True, False]),
        ("attention_head_dim", [8, 8, 8, 4]),
        ("attention_head_dim", 5),
        ("act_fn", "gelu"),
        ("norm_num_groups", None),
        ("cross_attention_dim", [20, 20, 20, 20]),
        ("encoder_hid_dim_type", "text_proj"),
        ("num_attention_heads", 2),
        ("class_embed_type", "projection"),
        ("addition_embed_type", "text"),
        ("resnet_time_scale_shift", "spatial"),
        ("resnet_out_scale_factor", 1.5),
        ("time_embedding_type", "fourier"),
        ("conv_in_kernel", 1),
        ("class_embeddings_concat", True),
        ("cross_attention_norm", "layer_norm"),
    ],
)
def test_refuses_configurations_of_other_families(key: str, value):
    with pytest.raises(ValueError, match=rf"^{key} .*must .*got "):
        UNet2DConditionModel.from_config(DECODER_KARLO | {key: value})


@pytest.mark.parametrize(
    "change, message",
    [
        ({"sample": torch.randn(2, 4, 8, 16)}, "sample must be (b, 3, h, w), got (2, 4, 8, 16)"),
        ({"sample": torch.randn(2, 3, 8, 12)}, "divisible by patch_size * 2**(levels - 1) = 8, got 8 x 12"),
        ({"encoder_hidden_states": torch.randn(2, 7, 19)}, "encoder_hidden_states must be (2, 7, 20), got (2, 7, 19)"),
        ({"encoder_hidden_states": torch.randn(1, 7, 20)}, "encoder_hidden_states must be (2, 7, 20), got (1, 7, 20)"),
        ({"class_labels": None}, "class_labels must be (2, 32), got None"),
        ({"class_labels": torch.randn(2, 31)}, "class_labels must be (2, 32), got (2, 31)"),
        ({"attention_mask": text_mask(6)}, "the text mask must be (2, 7), one per text token, got (2, 6)"),
        ({"attention_mask": torch.zeros(2, 7)}, "the text mask must be bool or integer"),
        ({"encoder_attention_mask": text_mask()}, "expected one, got both"),
    ],
)
def test_refuses_inputs_that_do_not_fit(change, message: str):
    with refuses(message):
        KARLO.model()(**(KARLO.inputs() | change))


def test_refuses_an_embedding_it_has_no_use_for():
    with refuses("class_labels must be None, got (2, 64)"):
        CROSS.model()(**CROSS.inputs(), class_labels=torch.randn(2, 64))


@pytest.mark.parametrize("case", [KARLO, CROSS], ids=str)
def test_a_masked_token_does_not_matter_and_the_others_do(case):
    model, inputs = case.model(), case.inputs()
    expected = model(**inputs).sample
    states, masked = inputs["encoder_hidden_states"], ~inputs["attention_mask"][..., None]
    other = torch.where(masked, torch.randn_like(states), states)
    torch.testing.assert_close(model(**(inputs | {"encoder_hidden_states": other})).sample, expected)
    other = torch.where(masked, states, torch.randn_like(states))
    assert (model(**(inputs | {"encoder_hidden_states": other})).sample - expected).abs().max() > 1e-3


@pytest.mark.parametrize("case", [KARLO, CROSS], ids=str)
def test_masking_tokens_is_leaving_them_out(case):
    model, inputs = case.model(), case.inputs()
    short = inputs | {"encoder_hidden_states": inputs["encoder_hidden_states"][:, :3], "attention_mask": None}
    mask = torch.arange(7).expand(2, 7) < 3
    for given in (mask, mask.long()):
        masked = model(**(inputs | {"attention_mask": given})).sample
        torch.testing.assert_close(masked, model(**short).sample, rtol=1e-4, atol=1e-5)
    masked = model(**(inputs | {"attention_mask": None, "encoder_attention_mask": mask})).sample
    torch.testing.assert_close(masked, model(**short).sample, rtol=1e-4, atol=1e-5)


def test_takes_as_many_text_tokens_as_image_tokens():
    """diffusers fails here: it takes a mask as long as the image for one that already covers the image."""
    inputs = KARLO.inputs() | {"encoder_hidden_states": torch.randn(2, 32, 20), "attention_mask": text_mask(32)}
    assert KARLO.model()(**inputs).sample.shape == (2, 6, 8, 16)


@pytest.mark.parametrize("name", ["encoder_hidden_states", "class_labels", "timestep", "sample"])
def test_every_input_changes_the_output(name: str):
    model, inputs = KARLO.model(), KARLO.inputs()
    dropped = inputs | {name: torch.zeros_like(inputs[name])}
    assert (model(**inputs).sample - model(**dropped).sample).abs().amax(dim=(1, 2, 3)).min() > 1e-3


def test_a_list_or_one_value_for_all_levels_is_the_same():
    one = UNet2DConditionModel(**(DECODER_KARLO | dict(only_cross_attention=False))).state_dict()
    many = dict(layers_per_block=[3] * 4, attention_head_dim=[8] * 4, only_cross_attention=[False] * 4)
    listed = UNet2DConditionModel(**(DECODER_KARLO | many)).state_dict()
    assert {k: v.shape for k, v in one.items()} == {k: v.shape for k, v in listed.items()}


@pytest.mark.parametrize("value, layers", [(True, 0), (False, 13), ([True, True, True, False], 4)])
def test_only_cross_attention_has_no_keys_of_the_image(value, layers: int):
    """Karlo's layout attends in 3 * 3 layers down, 3 * 4 up and one between, which a list leaves at self-attention."""
    model = UNet2DConditionModel(**(DECODER_KARLO | dict(only_cross_attention=value)))
    expected = {0: 0, 13: 9 + 12 + 1, 4: 3 + 4 + 1}[layers]
    assert sum(name.endswith("to_k.weight") for name, _ in model.named_parameters()) == expected


def test_patches_and_coordinates(tmp_path: Path):
    torch.manual_seed(0)
    model = UNet2DConditionModel(**PATCHED)
    assert model.conv_in.in_channels == 3 * 4 + 2 and model.conv_out.out_channels == 6 * 4
    inputs = KARLO.inputs() | {"sample": torch.randn(2, 3, 16, 32)}
    sample = model(**inputs).sample
    assert sample.shape == (2, 6, 16, 32)
    loss((sample,)).backward()
    assert all(p.grad is not None for p in model.parameters())
    model.save_pretrained(tmp_path)
    loaded = UNet2DConditionModel.from_pretrained(tmp_path)
    assert loaded.config.patch_size == 2 and loaded.config.coordinates is True
    torch.testing.assert_close(loaded(**inputs).sample, sample)
    with refuses("divisible by patch_size * 2**(levels - 1) = 16, got 16 x 24"):
        model(**(inputs | {"sample": torch.randn(2, 3, 16, 24)}))


def test_dropout_acts_in_training_only():
    model, inputs = KARLO.model(dropout=0.5), KARLO.inputs()
    torch.testing.assert_close(model(**inputs).sample, KARLO.model()(**inputs).sample)
    model.train()
    assert not torch.equal(model(**inputs).sample, model(**inputs).sample)
