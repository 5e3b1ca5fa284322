"""The pipelines whose speed is measured: the bundled model, and Karlo's real sizes with random weights.

Of Karlo's sizes one stage at a time is real, as all together would take 14 GB; the others are narrow, and only carry
its inputs and results. Steps are diffusers' `UnCLIPScheduler`'s everywhere, so that every contender takes the same.
"""

from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers.schedulers.scheduling_unclip import UnCLIPScheduler
from torch import Tensor, nn
from transformers import CLIPTokenizer

from unclip_hub import BUNDLED_MODEL, UnCLIPPipeline
from unclip_hub.models.prior_transformer import PriorTransformer
from unclip_hub.models.upsampler import UNet2DModel
from unclip_hub.training.presets import context_length, new_decoder, new_prior, new_text_encoder, new_upsampler


STAGES = ("text_encoder", "prior", "decoder", "super_res")
STEPS = {  # of a call by default
    "bundled": {"prior": 12, "decoder": 12, "super_res": 6},
    "karlo": {"prior": 25, "decoder": 25, "super_res": 7},
}
SCALES = {"bundled": {"prior": 1.5, "decoder": 3.0}, "karlo": {"prior": 4.0, "decoder": 8.0}}
CAPTIONS = [
    "a koala above a pumpkin at sunset",
    "three small blue triangles in the snow",
    "a large red heart",
    "a green square left of an orange circle, on a beach at night",
]

_KARLO_SCHEDULERS: dict[str, dict[str, Any]] = {
    "prior": {"prediction_type": "sample", "clip_sample_range": 5.0},
    "decoder": {"prediction_type": "epsilon", "variance_type": "learned_range", "clip_sample_range": 1.0},
    "super_res": {"prediction_type": "epsilon", "clip_sample_range": 1.0},
}


def pipeline(size: str, *, stage: str | None = None, seed: int = 0) -> UnCLIPPipeline:
    """Our pipeline at a size, ``"bundled"`` or ``"karlo"``; of the latter, the stage that has its real size."""
    pipe = UnCLIPPipeline.from_pretrained(BUNDLED_MODEL) if size == "bundled" else _karlo(stage, seed)
    if size == "bundled":
        for name in ("prior", "decoder", "super_res"):
            own = getattr(pipe, f"{name}_scheduler").config
            kept = {k: own[k] for k in ("prediction_type", "variance_type", "clip_sample_range", "clip_sample")}
            setattr(pipe, f"{name}_scheduler", UnCLIPScheduler(**kept))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def parameters(pipe: UnCLIPPipeline) -> dict[str, int]:
    """How many parameters each network has."""
    parts = {name: part for name, part in pipe.components.items() if isinstance(part, nn.Module)}
    return {name: sum(weight.numel() for weight in part.parameters()) for name, part in parts.items()}


def _karlo(stage: str | None, seed: int) -> UnCLIPPipeline:
    tokenizer = CLIPTokenizer.from_pretrained(
        BUNDLED_MODEL, subfolder="tokenizer", model_max_length=context_length("karlo")
    )
    with init_empty_weights():
        # the tokenizer is the bundled model's: its end token is where CLIP's text embedding is read
        text_encoder = new_text_encoder("karlo", vocab_size=len(tokenizer))
        prior = new_prior("karlo") if stage == "prior" else _narrow_prior()
        decoder, text_proj = new_decoder("karlo", **({} if stage == "decoder" else _NARROW_DECODER))
        upsampler = new_upsampler("karlo") if stage == "super_res" else _narrow_upsampler()
    networks: dict[str, Any] = dict(
        text_encoder=text_encoder, prior=prior, decoder=decoder, text_proj=text_proj, super_res_first=upsampler
    )
    for network in networks.values():
        network.load_state_dict(_random(network, seed), assign=True)
        network.eval().requires_grad_(False)
    schedulers: dict[str, Any] = {
        f"{name}_scheduler": UnCLIPScheduler(**options) for name, options in _KARLO_SCHEDULERS.items()
    }
    # Karlo has another network of these sizes for the upsampler's last step
    return UnCLIPPipeline(**networks, super_res_last=upsampler, tokenizer=tokenizer, **schedulers)


_NARROW_DECODER: dict[str, Any] = dict(
    block_out_channels=(32,) * 4, layers_per_block=1, attention_head_dim=32, cross_attention_dim=32
)


def _narrow_prior() -> PriorTransformer:
    return PriorTransformer(
        num_attention_heads=1, attention_head_dim=64, num_layers=1, embedding_dim=768, num_embeddings=77
    )


def _narrow_upsampler() -> UNet2DModel:
    levels: dict[str, Any] = {
        "down_block_types": ("ResnetDownsampleBlock2D",) * 2,
        "up_block_types": ("ResnetUpsampleBlock2D",) * 2,
    }
    return UNet2DModel(sample_size=64, in_channels=6, out_channels=3, block_out_channels=(32, 32), **levels)


def _random(network: nn.Module, seed: int) -> dict[str, Tensor]:
    """Weights that keep activations about as large as they are; gains 1, shifts 0, statistics as they stand.

    A million numbers are repeated: to draw a billion takes a minute, and speed does not depend on them.
    """
    drawn, made = torch.randn(1_000_003, generator=torch.Generator().manual_seed(seed)), {}
    for name, tensor in network.state_dict().items():
        if name in ("clip_mean", "clip_std"):
            made[name] = tensor
        elif tensor.ndim > 1:
            values = drawn.repeat(tensor.numel() // len(drawn) + 1)[: tensor.numel()].view(tensor.shape)
            made[name] = values.mul_(tensor[0].numel() ** -0.5)
        else:
            made[name] = torch.full(tensor.shape, float(name.endswith("weight")))
    return made
