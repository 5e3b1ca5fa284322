"""Untrained networks in three sizes: the bundled model's, Karlo's, and those of the unCLIP paper.

Under ``torch.device("meta")`` they take no memory, so that a training can be tried for size before it is paid for.
"""

from typing import Any

from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from unclip_hub.models.ar_prior import AutoregressivePrior
from unclip_hub.models.decoder import UNet2DConditionModel
from unclip_hub.models.dvae import DVAE
from unclip_hub.models.one_step_prior import OneStepPrior
from unclip_hub.models.prior_transformer import PriorTransformer
from unclip_hub.models.text_proj import UnCLIPTextProjModel
from unclip_hub.models.upsampler import UNet2DModel


PRESETS = ("tiny", "karlo", "paper")
OPENAI_VOCABULARY = 49_408  # of CLIP's tokenizer

# "karlo": CLIP ViT-L/14, and what Karlo's repository holds. "paper": Ramesh et al. 2022 (arXiv:2204.06125), table 3
# and appendix C, where CLIP is a ViT-H/16. The paper's decoder has a text encoder of its own (2048 wide, 24 layers,
# 256 tokens), and its prior reads 256 tokens; here, as in Karlo, both read CLIP's text states, so CLIP's are 256. How
# time enters the upsamplers is not in the paper: as in ADM.
_TEXT: dict[str, dict[str, Any]] = {
    "tiny": dict(hidden_size=192, layers=3, heads=6, projection_dim=192, context=32, mlp=576, activation="gelu"),
    "karlo": dict(
        hidden_size=768, layers=12, heads=12, projection_dim=768, context=77, mlp=3072, activation="quick_gelu"
    ),
    "paper": dict(
        hidden_size=1024, layers=24, heads=16, projection_dim=1024, context=256, mlp=4096, activation="gelu"
    ),
}
_VISION: dict[str, dict[str, Any]] = {
    "tiny": dict(
        hidden_size=192,
        intermediate_size=576,
        projection_dim=192,
        num_hidden_layers=4,
        num_attention_heads=6,
        image_size=64,
        patch_size=8,
        hidden_act="gelu",
    ),
    "karlo": dict(
        hidden_size=1024,
        intermediate_size=4096,
        projection_dim=768,
        num_hidden_layers=24,
        num_attention_heads=16,
        image_size=224,
        patch_size=14,
        hidden_act="quick_gelu",
    ),
    "paper": dict(
        hidden_size=1280,
        intermediate_size=5120,
        projection_dim=1024,
        num_hidden_layers=32,
        num_attention_heads=16,
        image_size=256,
        patch_size=16,
        hidden_act="gelu",
    ),
}
_PRIOR: dict[str, dict[str, Any]] = {
    "tiny": dict(num_attention_heads=6, attention_head_dim=32, num_layers=3, embedding_dim=192, num_embeddings=32),
    "karlo": dict(num_attention_heads=32, attention_head_dim=64, num_layers=20, embedding_dim=768, num_embeddings=77),
    "paper": dict(
        num_attention_heads=32, attention_head_dim=64, num_layers=24, embedding_dim=1024, num_embeddings=256
    ),
}
# components: what holds 99 % of the variance of the bundled CLIP's embeddings, and the paper's 319; "karlo" is the
# paper's transformer beside Karlo's CLIP
_AR_PRIOR: dict[str, dict[str, Any]] = {
    "tiny": dict(
        num_attention_heads=6,
        attention_head_dim=32,
        num_layers=3,
        embedding_dim=192,
        num_embeddings=32,
        num_components=29,
        num_buckets=256,
    ),
    "karlo": dict(num_attention_heads=26, attention_head_dim=64, num_layers=24, embedding_dim=768, num_embeddings=77),
    "paper": dict(
        num_attention_heads=26, attention_head_dim=64, num_layers=24, embedding_dim=1024, num_embeddings=256
    ),
}
# "karlo" is ECLIPSE's for Karlo (arXiv:2312.04655), "paper" the same beside the paper's CLIP
_ONE_STEP_PRIOR: dict[str, dict[str, Any]] = {
    "tiny": dict(num_attention_heads=6, attention_head_dim=32, num_layers=3, embedding_dim=192, num_embeddings=32),
    "karlo": dict(num_attention_heads=16, attention_head_dim=32, num_layers=10, embedding_dim=768, num_embeddings=77),
    "paper": dict(
        num_attention_heads=16, attention_head_dim=32, num_layers=10, embedding_dim=1024, num_embeddings=256
    ),
}
_ATTENTION_BELOW_THE_TOP = dict(
    down_block_types=("ResnetDownsampleBlock2D", *("SimpleCrossAttnDownBlock2D",) * 3),
    up_block_types=(*("SimpleCrossAttnUpBlock2D",) * 3, "ResnetUpsampleBlock2D"),
)
_DECODER: dict[str, dict[str, Any]] = {
    # patches of 4 × 4 px, so 16 × 16 and 8 × 8 positions; self-attention at the latter alone
    "tiny": dict(
        out_channels=3,
        patch_size=4,
        coordinates=True,
        block_out_channels=(96, 160),
        layers_per_block=1,
        down_block_types=("SimpleCrossAttnDownBlock2D",) * 2,
        up_block_types=("SimpleCrossAttnUpBlock2D",) * 2,
        only_cross_attention=(True, False),
        attention_head_dim=32,
        cross_attention_dim=192,
    ),
    "karlo": dict(
        out_channels=6,
        block_out_channels=(320, 640, 960, 1280),
        layers_per_block=3,
        attention_head_dim=64,
        cross_attention_dim=1536,
        **_ATTENTION_BELOW_THE_TOP,
    ),
    "paper": dict(
        out_channels=6,
        block_out_channels=(512, 1024, 1536, 2048),
        layers_per_block=3,
        attention_head_dim=64,
        cross_attention_dim=2048,
        dropout=0.1,
        **_ATTENTION_BELOW_THE_TOP,
    ),
}
_IMAGE_TOKENS = {"tiny": 16, "karlo": 4, "paper": 4}  # that text_proj makes of an image embedding
_TINY_UPSAMPLER: dict[str, Any] = dict(  # of both sizes, so that the second can go on from the first
    patch_size=2,
    residual=True,
    block_out_channels=(32, 48, 64),
    layers_per_block=1,
    norm_num_groups=16,
    resnet_time_scale_shift="scale_shift",
)
_UPSAMPLER: dict[tuple[str, int], dict[str, Any]] = {
    ("tiny", 256): _TINY_UPSAMPLER,
    ("tiny", 1024): _TINY_UPSAMPLER,
    ("karlo", 256): dict(block_out_channels=(320, 640, 960, 1280), layers_per_block=3),
    ("paper", 256): dict(
        block_out_channels=(320, 640, 960, 1280),
        layers_per_block=3,
        resnet_time_scale_shift="scale_shift",
        dropout=0.1,
    ),
    ("paper", 1024): dict(
        block_out_channels=(192, 192, 384, 384, 768, 768), layers_per_block=2, resnet_time_scale_shift="scale_shift"
    ),
}
# "paper": what OpenAI released of DALL-E's discrete VAE, for 256 px
_DVAE: dict[str, dict[str, Any]] = {
    "tiny": dict(vocab_size=512, channels=32, decoder_in_channels=64, layers_per_group=2),
    "paper": dict(vocab_size=8192, channels=256, decoder_in_channels=128, layers_per_group=2),
}


def new_text_encoder(preset: str, *, vocab_size: int = OPENAI_VOCABULARY) -> CLIPTextModelWithProjection:
    """CLIP's text encoder; as in CLIP the end token comes last in the vocabulary, and pads."""
    sizes = _of(_TEXT, preset)
    config = CLIPTextConfig(
        vocab_size=vocab_size,
        hidden_size=sizes["hidden_size"],
        intermediate_size=sizes["mlp"],
        projection_dim=sizes["projection_dim"],
        num_hidden_layers=sizes["layers"],
        num_attention_heads=sizes["heads"],
        max_position_embeddings=sizes["context"],
        bos_token_id=vocab_size - 2,
        eos_token_id=vocab_size - 1,
        pad_token_id=vocab_size - 1,
        hidden_act=sizes["activation"],
    )
    return CLIPTextModelWithProjection(config)


def context_length(preset: str) -> int:
    """How many tokens the text encoder reads, and the prior with it."""
    return _of(_TEXT, preset)["context"]


def new_image_encoder(preset: str) -> CLIPVisionModelWithProjection:
    """CLIP's image encoder, for square pictures of 64, 224 or 256 px."""
    return CLIPVisionModelWithProjection(CLIPVisionConfig(**_of(_VISION, preset)))


def new_prior(preset: str, **changes: Any) -> PriorTransformer:
    """The diffusion prior, with changes to its configuration."""
    return PriorTransformer(**{**_of(_PRIOR, preset), **changes})


def new_ar_prior(preset: str, **changes: Any) -> AutoregressivePrior:
    """The autoregressive prior, with changes to its configuration; its codes still have to be fitted."""
    return AutoregressivePrior(**{**_of(_AR_PRIOR, preset), **changes})


def new_one_step_prior(preset: str) -> OneStepPrior:
    """The one-step prior."""
    return OneStepPrior(**_of(_ONE_STEP_PRIOR, preset))


def new_decoder(preset: str, **changes: Any) -> tuple[UNet2DConditionModel, UnCLIPTextProjModel]:
    """The 64 px decoder, with changes to its configuration, and the text_proj that fits it."""
    common = dict(
        sample_size=64,
        in_channels=3,
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        class_embed_type="identity",
        resnet_time_scale_shift="scale_shift",
    )
    decoder = UNet2DConditionModel(**{**common, **_of(_DECODER, preset), **changes})
    text_proj = UnCLIPTextProjModel(
        clip_embeddings_dim=_of(_PRIOR, preset)["embedding_dim"],
        time_embed_dim=4 * decoder.config["block_out_channels"][0],
        cross_attention_dim=decoder.cross_attention_dim,
        clip_extra_context_tokens=_IMAGE_TOKENS[preset],
    )
    return decoder, text_proj


def new_upsampler(preset: str, *, size: int = 256) -> UNet2DModel:
    """The upsampler to ``size`` px, without attention, so that it trains on crops.

    Raises:
        ValueError: an unknown preset, or one without an upsampler to this size: Karlo ends at 256 px.
    """
    if (preset, size) not in _UPSAMPLER:
        known = ", ".join(f"{name} to {to}" for name, to in _UPSAMPLER)
        raise ValueError(f"expected one of the upsamplers {known}, got {preset} to {size}")
    config = _UPSAMPLER[preset, size]
    levels = len(config["block_out_channels"])
    blocks = dict(
        down_block_types=("ResnetDownsampleBlock2D",) * levels, up_block_types=("ResnetUpsampleBlock2D",) * levels
    )
    upsampler = UNet2DModel(sample_size=size, in_channels=6, out_channels=3, **blocks, **config)
    if upsampler.residual:  # it begins as the upscaled picture
        for parameter in upsampler.conv_out.parameters():
            nn.init.zeros_(parameter)
    return upsampler


def new_dvae(preset: str) -> DVAE:
    """The discrete VAE.

    Raises:
        ValueError: an unknown preset; Karlo has none.
    """
    if preset not in _DVAE:
        raise ValueError(f"expected one of the dVAEs {', '.join(_DVAE)}, got {preset!r}")
    return DVAE(**_DVAE[preset])


def _of(table: dict[str, dict[str, Any]], preset: str) -> dict[str, Any]:
    if preset not in table:
        raise ValueError(f"preset must be one of {', '.join(PRESETS)}, got {preset!r}")
    return table[preset]
