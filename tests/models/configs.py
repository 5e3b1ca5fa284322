"""Tiny networks of every kind with inputs that fit; sizes differ on every axis, so no transposed one can pass."""

import inspect
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from jaxtyping import TypeCheckError
from torch import Tensor, nn

from unclip_hub.models.ar_prior import AutoregressivePrior
from unclip_hub.models.dalle2_pytorch_prior import DALLE2PytorchPrior
from unclip_hub.models.dalle2_pytorch_projection import DALLE2PytorchProjection
from unclip_hub.models.dalle2_pytorch_unet import DALLE2PytorchUNet
from unclip_hub.models.decoder import UNet2DConditionModel
from unclip_hub.models.dvae import DVAE
from unclip_hub.models.glide_text import GlideTextEncoder
from unclip_hub.models.one_step_prior import OneStepPrior
from unclip_hub.models.prior_transformer import PriorTransformer
from unclip_hub.models.text_proj import UnCLIPTextProjModel
from unclip_hub.models.upsampler import UNet2DModel


B, L, D = 2, 7, 32  # batch, text tokens, CLIP width

DECODER_KARLO = dict(
    sample_size=16,
    in_channels=3,
    out_channels=6,
    down_block_types=["ResnetDownsampleBlock2D", *["SimpleCrossAttnDownBlock2D"] * 3],
    mid_block_type="UNetMidBlock2DSimpleCrossAttn",
    up_block_types=[*["SimpleCrossAttnUpBlock2D"] * 3, "ResnetUpsampleBlock2D"],
    block_out_channels=[8, 16, 16, 24],
    layers_per_block=3,
    norm_num_groups=4,
    cross_attention_dim=20,
    attention_head_dim=8,
    class_embed_type="identity",
    resnet_time_scale_shift="scale_shift",
)
DECODER_CROSS = dict(
    in_channels=3,
    out_channels=3,
    down_block_types=["SimpleCrossAttnDownBlock2D"] * 2,
    mid_block_type="UNetMidBlock2DSimpleCrossAttn",
    up_block_types=["SimpleCrossAttnUpBlock2D"] * 2,
    block_out_channels=[16, 24],
    layers_per_block=[1, 2],
    only_cross_attention=[True, False],
    norm_num_groups=4,
    cross_attention_dim=20,
    attention_head_dim=[8, 8],
    time_embedding_dim=36,
)
UPSAMPLER_KARLO = dict(
    sample_size=16,
    in_channels=6,
    out_channels=3,
    down_block_types=["ResnetDownsampleBlock2D"] * 4,
    up_block_types=["ResnetUpsampleBlock2D"] * 4,
    block_out_channels=[8, 16, 16, 24],
    layers_per_block=3,
    norm_num_groups=4,
    add_attention=False,
)
UPSAMPLER_SCALE_SHIFT = dict(
    in_channels=6,
    out_channels=3,
    down_block_types=["ResnetDownsampleBlock2D"] * 2,
    up_block_types=["ResnetUpsampleBlock2D"] * 2,
    block_out_channels=[16, 24],
    layers_per_block=1,
    norm_num_groups=4,
    add_attention=False,
    resnet_time_scale_shift="scale_shift",
    time_embedding_dim=36,
)
PRIOR_KARLO = dict(num_attention_heads=3, attention_head_dim=8, num_layers=3, embedding_dim=D, num_embeddings=L)
PRIOR_NORMS = dict(
    num_attention_heads=2,
    attention_head_dim=8,
    num_layers=2,
    embedding_dim=D,
    num_embeddings=L,
    norm_in_type="layer",
    embedding_proj_norm_type="layer",
    time_embed_dim=20,
    embedding_proj_dim=28,
    clip_embed_dim=12,
)
PRIOR_SELF_CONDITIONED = dict(PRIOR_NORMS, self_conditioning=True)
PRIOR_ECLIPSE = dict(num_attention_heads=3, attention_head_dim=8, num_layers=3, embedding_dim=D, num_embeddings=L)
PRIOR_ONE_STEP_NORMS = dict(
    num_attention_heads=2,
    attention_head_dim=8,
    num_layers=2,
    embedding_dim=D,
    num_embeddings=L,
    norm_in_type="layer",
    embedding_proj_norm_type="layer",
    embedding_proj_dim=28,
    clip_embed_dim=12,
)
PRIOR_AUTOREGRESSIVE = dict(
    num_attention_heads=3,
    attention_head_dim=8,
    num_layers=3,
    embedding_dim=D,
    num_embeddings=L,
    num_components=5,
    num_buckets=11,
    num_similarity_buckets=13,
)
GLIDE_TEXT = dict(
    vocab_size=19, num_embeddings=L, num_attention_heads=3, attention_head_dim=8, num_layers=2, time_embed_dim=20
)
DVAE_TINY = dict(vocab_size=20, channels=16, decoder_in_channels=12, layers_per_group=2)
PRIOR_0_15 = dict(
    embedding_dim=D,
    num_layers=2,
    num_attention_heads=3,
    attention_head_dim=8,
    max_text_len=None,
    unconditional="masked",
    cosine_attention=False,
    stable_norms="none",
    normalize_feed_forward=True,
)
PRIOR_1_15 = dict(
    embedding_dim=D,
    num_layers=2,
    num_attention_heads=2,
    attention_head_dim=40,
    ff_mult=3,
    num_timesteps=None,
    num_time_tokens=3,
    num_image_tokens=2,
    num_text_tokens=2,
    max_text_len=L + 2,
    self_condition=True,
    normalize_input=True,
)
UNET_0_15 = dict(
    base_channels=8,
    out_channels=6,
    channel_mult=[1, 2],
    layers_per_block=[1, 2],
    norm_num_groups=4,
    self_attention=[False, True],
    linear_attention=True,
    num_attention_heads=3,
    attention_head_dim=4,
    cross_attention_dim=20,
    num_image_tokens=3,
    max_text_len=L + 2,
    conv_in_kernel=[3, 7, 15],
    resample_first=True,
    downsample="conv",
    downsample_kernels=[2, 4],
    upsample="conv_transpose",
    squared_attention_scale=False,
    normalize_linear_attention=False,
)
UNET_1_15_UPSAMPLER = dict(
    in_channels=6,
    base_channels=16,
    channel_mult=[1, 2, 3],
    layers_per_block=1,
    num_attention_heads=2,
    attention_head_dim=8,
    cross_attention_dim=20,
    num_image_tokens=0,
    num_time_tokens=3,
    max_text_len=None,
    low_res=True,
    low_res_noise=True,
    low_res_to_output=True,
    self_condition=True,
    conv_in_kernel=7,
    conv_out_kernel=3,
    downsample="cross_embed",
    downsample_kernels=[2, 4],
    upsample="nearest",
    skip_scale=0.5,
    weight_standardization=True,
    cosine_self_attention=True,
    cosine_cross_attention=True,
)
PROJECTION = dict(
    clip_extra_context_tokens=3, clip_embeddings_dim=D, text_embed_dim=28, time_embed_dim=36, cross_attention_dim=20
)
TEXT_PROJ = dict(clip_extra_context_tokens=4, clip_embeddings_dim=D, time_embed_dim=36, cross_attention_dim=20)


def text_mask(length: int = L) -> Tensor:
    """The first caption is padded, the second is not."""
    mask = torch.ones(B, length, dtype=torch.bool)
    mask[0, length // 2 :] = False
    return mask


def decoder_inputs(config: dict[str, Any]) -> dict[str, Any]:
    height, width = (8, 16) if len(config["block_out_channels"]) == 4 else (8, 12)
    inputs = {
        "sample": torch.randn(B, config["in_channels"], height, width),
        "timestep": torch.tensor([3, 700]),
        "encoder_hidden_states": torch.randn(B, L, config["cross_attention_dim"]),
        "attention_mask": text_mask(),
    }
    if config.get("class_embed_type"):
        inputs["class_labels"] = torch.randn(B, 4 * config["block_out_channels"][0])
    return inputs


def upsampler_inputs(config: dict[str, Any]) -> dict[str, Any]:
    height, width = (8, 16) if len(config["block_out_channels"]) == 4 else (8, 12)
    return {"sample": torch.randn(B, config["in_channels"], height, width), "timestep": torch.tensor([3, 700])}


def prior_inputs(config: dict[str, Any]) -> dict[str, Any]:
    return {
        "hidden_states": torch.randn(B, D),
        "timestep": torch.tensor([3, 700]),
        "proj_embedding": torch.randn(B, config.get("embedding_proj_dim", D)),
        "encoder_hidden_states": torch.randn(B, L, D),
        "attention_mask": text_mask(),
    }


def self_conditioned_inputs(config: dict[str, Any]) -> dict[str, Any]:
    return {**prior_inputs(config), "self_condition": torch.randn(B, config["clip_embed_dim"])}


def one_step_inputs(config: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in prior_inputs(config).items() if name != "timestep"}


def autoregressive_inputs(config: dict[str, Any]) -> dict[str, Any]:
    """The second row's similarity is unknown."""
    inputs = {name: value for name, value in one_step_inputs(config).items() if name != "hidden_states"}
    codes = torch.randint(config["num_buckets"], (B, config["num_components"] - 1))
    return inputs | {"similarity": torch.tensor([8, -1]), "codes": codes}


def glide_text_inputs(config: dict[str, Any]) -> dict[str, Any]:
    return {"input_ids": torch.randint(config["vocab_size"], (B, L)), "attention_mask": text_mask()}


def dvae_inputs(config: dict[str, Any]) -> dict[str, Any]:
    return {"sample": torch.rand(B, 3, 16, 24) * 2 - 1}


def dalle2_prior_inputs(config: dict[str, Any]) -> dict[str, Any]:
    """The second caption is dropped where the release learned what that means."""
    inputs = prior_inputs(config)
    if config.get("self_condition"):
        inputs["last_estimate"] = torch.randn(B, D)
        inputs["proj_embedding"][1] = 0
    return inputs


def dalle2_unet_inputs(config: dict[str, Any]) -> dict[str, Any]:
    inputs = {"sample": torch.randn(B, config.get("in_channels", 3), 8, 12), "timestep": torch.tensor([3, 700])}
    images = config["num_image_tokens"]
    if images:
        inputs["encoder_hidden_states"] = torch.randn(B, images + L, config["cross_attention_dim"])
        inputs["class_labels"] = torch.randn(B, 4 * config["base_channels"])
        inputs["attention_mask"] = torch.nn.functional.pad(text_mask(), (images, 0), value=True)
    if config.get("low_res_noise"):
        inputs["low_res_noise_level"] = torch.tensor([200, 0])
    if config.get("self_condition"):
        inputs["last_estimate"] = torch.randn(B, 3, 8, 12)
    return inputs


def projection_inputs(config: dict[str, Any]) -> dict[str, Any]:
    return {
        "image_embeddings": torch.randn(B // 2, config["clip_embeddings_dim"]),
        "prompt_embeds": torch.randn(B, 24),
        "text_encoder_hidden_states": torch.randn(B, L, config["text_embed_dim"]),
        "do_classifier_free_guidance": True,
    }


def text_proj_inputs(config: dict[str, Any]) -> dict[str, Any]:
    width = config["clip_embeddings_dim"]
    return {
        "image_embeddings": torch.randn(B // 2, width),
        "prompt_embeds": torch.randn(B, width),
        "text_encoder_hidden_states": torch.randn(B, L, width),
        "do_classifier_free_guidance": True,
    }


@dataclass(frozen=True)
class Case:
    """A network, a tiny configuration of it and what it takes; `lora` names layers for an adapter."""

    name: str
    model_class: type[nn.Module]
    config: dict[str, Any]
    make_inputs: Callable[[dict[str, Any]], dict[str, Any]] = field(repr=False)
    lora: tuple[str, ...] = ("to_q", "to_v")

    def model(self, **changes: Any) -> Any:
        torch.manual_seed(0)
        return randomise(self.model_class(**{**self.config, **changes})).eval()

    def inputs(self, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
        torch.manual_seed(1)
        return {k: _to(v, dtype) for k, v in self.make_inputs(self.config).items()}

    def __str__(self) -> str:
        return self.name


CASES = [
    Case("decoder-karlo", UNet2DConditionModel, DECODER_KARLO, decoder_inputs, ("to_q", "add_k_proj", "conv1")),
    Case("decoder-cross", UNet2DConditionModel, DECODER_CROSS, decoder_inputs, ("to_q", "add_v_proj")),
    Case("upsampler-karlo", UNet2DModel, UPSAMPLER_KARLO, upsampler_inputs, ("conv2", "time_emb_proj")),
    Case("upsampler-scale-shift", UNet2DModel, UPSAMPLER_SCALE_SHIFT, upsampler_inputs, ("conv2",)),
    Case("prior-karlo", PriorTransformer, PRIOR_KARLO, prior_inputs),
    Case("prior-norms", PriorTransformer, PRIOR_NORMS, prior_inputs),
    Case("prior-self-conditioned", PriorTransformer, PRIOR_SELF_CONDITIONED, self_conditioned_inputs),
    Case("one-step-prior", OneStepPrior, PRIOR_ECLIPSE, one_step_inputs),
    Case("one-step-prior-norms", OneStepPrior, PRIOR_ONE_STEP_NORMS, one_step_inputs),
    Case("autoregressive-prior", AutoregressivePrior, PRIOR_AUTOREGRESSIVE, autoregressive_inputs),
    Case("glide-text", GlideTextEncoder, GLIDE_TEXT, glide_text_inputs),
    Case("dvae", DVAE, DVAE_TINY, dvae_inputs, ("convs.1", "conv_out")),
    Case("dalle2-prior-0.15", DALLE2PytorchPrior, PRIOR_0_15, dalle2_prior_inputs, ("to_kv", "ff_in")),
    Case("dalle2-prior-1.15", DALLE2PytorchPrior, PRIOR_1_15, dalle2_prior_inputs, ("to_kv", "ff_out")),
    Case("dalle2-unet-0.15", DALLE2PytorchUNet, UNET_0_15, dalle2_unet_inputs, ("to_kv", "conv1")),
    Case("dalle2-unet-1.15", DALLE2PytorchUNet, UNET_1_15_UPSAMPLER, dalle2_unet_inputs, ("to_kv", "time_emb_proj")),
    Case("dalle2-projection", DALLE2PytorchProjection, PROJECTION, projection_inputs, ("text_to_tokens",)),
    Case("text-proj", UnCLIPTextProjModel, TEXT_PROJ, text_proj_inputs, ("encoder_hidden_states_proj",)),
]
BY_NAME = {case.name: case for case in CASES}


def randomise(model: Any) -> Any:
    """Give the tensors which start at 0 or 1 (biases, scales, the prior's query) random values too."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim < 2 or not parameter.any():
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def outputs(model: Any, inputs: dict[str, Any]) -> tuple[Tensor, ...]:
    """The tensors a network returns."""
    return model(**inputs, return_dict=False) if returns_a_dict(model) else model(**inputs)


def returns_a_dict(model: Any) -> bool:
    """Whether a network, or a class of networks, returns a dict of diffusers' unless told otherwise."""
    return "return_dict" in inspect.signature(model.forward).parameters


@contextmanager
def refuses(message: str) -> Iterator[None]:
    """A ValueError that says `message`, or, in a shape-checked test run, the signature's own refusal before it."""
    with pytest.raises((ValueError, TypeCheckError)) as error:
        yield
    if error.type is ValueError:
        assert re.search(re.escape(message), str(error.value)), error.value


def loss(tensors: tuple[Tensor, ...]) -> Tensor:
    """A scalar whose gradient differs from one output element to the next."""
    return sum((t * torch.cos(torch.arange(t.numel(), device=t.device)).view_as(t)).sum() for t in tensors)


def _to(value: Any, dtype: torch.dtype) -> Any:
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value
