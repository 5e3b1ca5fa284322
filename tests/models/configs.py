"""Tiny networks of every kind with inputs that fit; sizes differ on every axis, so no transposed one can pass."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from jaxtyping import TypeCheckError
from torch import Tensor, nn

from unclip_hub.models.decoder import UNet2DConditionModel
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
    if type(model).__name__ == "UnCLIPTextProjModel":
        return model(**inputs)
    return model(**inputs, return_dict=False)


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
