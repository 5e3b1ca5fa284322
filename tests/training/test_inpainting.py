"""A decoder with a mask at its input, before it has learned what that is."""

import pytest
import torch
from pipelines import tiny
from torch.testing import assert_close

from unclip_hub.training.inpainting import widened_for_inpainting


@pytest.mark.parametrize("karlo", [True, False], ids=["karlo", "patches"])
def test_a_widened_decoder_draws_what_it_drew(karlo):
    decoder = tiny.components(karlo=karlo)["decoder"]
    wide = widened_for_inpainting(decoder)
    assert wide.config["in_channels"] == 7 and wide.config["out_channels"] == (6 if karlo else 3)
    generator = torch.Generator().manual_seed(0)
    sample, masked, mask = (torch.randn(2, c, 8, 12, generator=generator) for c in (3, 3, 1))
    inputs = {
        "timestep": torch.tensor([3, 700]),
        "encoder_hidden_states": torch.randn(2, 5, 20, generator=generator),
        "class_labels": torch.randn(2, 64, generator=generator),
    }
    with torch.no_grad():
        expected = decoder(sample, **inputs).sample
        assert_close(wide(torch.cat([sample, masked, mask], dim=1), **inputs).sample, expected)
        order = wide(torch.cat([masked, sample, mask], dim=1), **inputs).sample
    assert (order - expected).abs().max() > 1e-3


def test_the_original_keeps_its_own_weights(tmp_path):
    decoder = tiny.components()["decoder"].to(torch.float16).eval()
    wide = widened_for_inpainting(decoder)
    assert wide.dtype == torch.float16 and not wide.training
    with torch.no_grad():
        wide.conv_out.weight.zero_()
    assert decoder.conv_out.weight.any() and decoder.config["in_channels"] == 3
    wide.save_pretrained(tmp_path)
    assert type(wide).from_pretrained(tmp_path).config["in_channels"] == 7


def test_only_a_plain_decoder_is_widened():
    wide = widened_for_inpainting(tiny.components()["decoder"])
    with pytest.raises(ValueError, match="only a decoder with in_channels 3 .* got 7"):
        widened_for_inpainting(wide)
