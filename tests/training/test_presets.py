"""The three sizes: whose they are, counted without memory."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from unclip_hub import BUNDLED_MODEL
from unclip_hub.models.glide_text import GlideTextEncoder
from unclip_hub.training.presets import (
    PRESETS,
    context_length,
    new_ar_prior,
    new_decoder,
    new_dvae,
    new_image_encoder,
    new_one_step_prior,
    new_prior,
    new_text_encoder,
    new_upsampler,
)


def size(*modules: nn.Module) -> int:
    return sum(p.numel() for module in modules for p in module.parameters())


@pytest.fixture(autouse=True)
def on_meta():
    with torch.device("meta"):
        yield


def test_tiny_is_the_bundled_model():
    decoder, text_proj = new_decoder("tiny")
    built = {
        "prior": new_prior("tiny"),
        "decoder": decoder,
        "text_proj": text_proj,
        "super_res_first": new_upsampler("tiny"),
        "text_encoder": new_text_encoder("tiny", vocab_size=1024),
        "image_encoder": new_image_encoder("tiny"),
    }
    for name, module in built.items():
        stored = json.loads((Path(BUNDLED_MODEL) / name / "config.json").read_text())
        config = json.loads(json.dumps(dict(module.config) if name[-7:] != "encoder" else module.config.to_dict()))
        chosen = set(stored) & set(config) - {"dtype", "transformers_version", "architectures", "vocab_size"}
        differing = {key: (stored[key], config[key]) for key in chosen if stored[key] != config[key]}
        ids = {"bos_token_id", "eos_token_id", "pad_token_id"}  # the vocabulary's
        assert {key for key in differing if key[0] != "_"} <= ids, differing
        assert len(chosen) > 3


def test_karlo_is_karlo_to_the_last_parameter():
    clip = size(new_text_encoder("karlo"), new_image_encoder("karlo"))
    assert clip + 1 == 427_616_513  # OpenAI's ViT-L/14, whose temperature is not among the encoders
    prior = new_prior("karlo")
    assert size(prior) + prior.clip_mean.numel() + prior.clip_std.numel() == 1_022_030_080
    decoder, text_proj = new_decoder("karlo")
    assert (size(decoder), size(text_proj)) == (885_439_686, 7_878_400)
    assert size(new_upsampler("karlo")) == 691_579_523
    assert 33e6 < size(new_one_step_prior("karlo")) < 34e6  # as its paper says (arXiv:2312.04655, section 4.1)


def test_the_papers_dvae_is_openais_to_the_last_parameter():
    dvae = new_dvae("paper")
    assert (size(dvae.encoder), size(dvae.decoder)) == (53_786_240, 43_829_766)
    assert 1e6 < size(new_dvae("tiny")) < 2e6


def test_the_papers_networks_have_the_sizes_in_its_table():
    """Ramesh et al. 2022, table 3 counts the decoder's own text encoder in; here it is CLIP's."""
    text = GlideTextEncoder(
        vocab_size=49_408,
        num_embeddings=256,
        num_attention_heads=32,
        attention_head_dim=64,
        num_layers=24,
        time_embed_dim=2048,
    )
    decoder, text_proj = new_decoder("paper")
    counts = {
        "prior": (size(new_prior("paper")), 1e9),
        "decoder": (size(decoder, text_proj, text), 3.5e9),
        "64 to 256": (size(new_upsampler("paper")), 700e6),
        "256 to 1024": (size(new_upsampler("paper", size=1024)), 300e6),
        "ViT-H": (size(new_image_encoder("paper")), 632e6),
    }
    for name, (count, stated) in counts.items():
        assert stated * 0.9 < count < stated * 1.25, (name, count)


@pytest.mark.parametrize("preset", PRESETS)
def test_the_networks_of_a_preset_fit_together(preset):
    text, image, prior = new_text_encoder(preset), new_image_encoder(preset), new_prior(preset)
    decoder, text_proj = new_decoder(preset)
    width = text.config.projection_dim
    for other in (new_ar_prior(preset), new_one_step_prior(preset)):
        assert (other.embedding_dim, other.num_embeddings) == (width, context_length(preset))
    assert width == text.config.hidden_size == image.config.projection_dim == prior.embedding_dim
    assert width == text_proj.clip_embeddings_dim
    assert prior.num_embeddings == text.config.max_position_embeddings == context_length(preset)
    assert text_proj.config["time_embed_dim"] == decoder.class_embed_dim
    assert text_proj.config["cross_attention_dim"] == decoder.cross_attention_dim


def test_changes_to_a_decoder_reach_its_text_proj():
    decoder, text_proj = new_decoder("tiny", block_out_channels=(32, 64), in_channels=7)
    assert decoder.in_channels == 7 and text_proj.config["time_embed_dim"] == 128


def test_the_tiny_priors_are_of_one_size():
    sizes = [size(new("tiny")) for new in (new_prior, new_ar_prior, new_one_step_prior)]
    assert max(sizes) < 1.4 * min(sizes)
    assert new_ar_prior("tiny", num_components=11).num_components == 11


def test_what_does_not_exist_is_refused():
    with pytest.raises(ValueError, match="preset must be one of tiny, karlo, paper, got 'huge'"):
        new_prior("huge")
    with pytest.raises(ValueError, match="expected one of the dVAEs tiny, paper, got 'karlo'"):
        new_dvae("karlo")
    with pytest.raises(ValueError, match="expected one of the upsamplers .* got karlo to 1024"):
        new_upsampler("karlo", size=1024)
