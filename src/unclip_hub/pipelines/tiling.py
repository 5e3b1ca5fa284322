"""Pictures larger than the networks' own: in overlapping windows of that size, their seams blended."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from diffusers.utils.torch_utils import randn_tensor
from jaxtyping import Float
from torch import Tensor

from unclip_hub.images import Place, blend, places, window
from unclip_hub.pipelines.base import UnCLIPPipelineBase
from unclip_hub.pipelines.stage import Generator, OnStep
from unclip_hub.sampling import Predict


MAX_WINDOWS = 64


def windows_over(height: int, width: int, *, size: int) -> list[Place]:
    """Windows that overlap by a quarter.

    Raises:
        ValueError: more than MAX_WINDOWS of them, as for a picture that is very long and thin.
    """
    found = places(height, width, size=size, overlap=size // 4)
    if len(found) > MAX_WINDOWS:
        raise ValueError(
            f"a picture of {width} x {height} px takes {len(found)} windows of {size} px, more than {MAX_WINDOWS}: "
            "make it smaller, or nearer to a square"
        )
    return found


def tiled(predicts: Sequence[Predict], at: Sequence[Place], *, size: int) -> Predict:
    """One prediction of a whole canvas from one for each of its windows (Bar-Tal et al. 2023, MultiDiffusion)."""
    if len(predicts) == 1:
        return predicts[0]

    def over(x: Tensor, t: Tensor) -> Tensor:
        made = [predict(window(x, place, size=size), t) for predict, place in zip(predicts, at, strict=True)]
        return blend(made, at, height=x.shape[-2], width=x.shape[-1])

    return over


def upsample_tiled(
    pipe: UnCLIPPipelineBase,
    images: Float[Tensor, "b 3 h w"],
    *,
    num_inference_steps: int,
    stage: str = "super_res",
    generator: Generator = None,
    on_step: OnStep | None = None,
) -> Float[Tensor, "b 3 H W"]:
    """Pictures of any size, larger by the stage's factor: ``pipe.upsample`` on each window, from the same noise."""
    small, large = upsampler_sizes(pipe, stage)
    factor, (height, width) = large // small, images.shape[-2:]
    padded = F.pad(images, (0, max(0, small - width), 0, max(0, small - height)), mode="replicate")
    at = windows_over(*padded.shape[-2:], size=small)
    big_at = [(top * factor, left * factor) for top, left in at]
    shape = (*images.shape[:2], *(factor * side for side in padded.shape[-2:]))
    dtype = torch.promote_types(images.dtype, torch.float32)
    noise = randn_tensor(shape, generator=generator, device=pipe._execution_device, dtype=dtype)
    made = [
        pipe.upsample(
            window(padded, place, size=small),
            num_inference_steps=num_inference_steps,
            stage=stage,
            generator=generator,
            latents=window(noise, big_place, size=large),
            on_step=on_step,
        )
        for place, big_place in zip(at, big_at, strict=True)
    ]
    canvas = made[0] if len(made) == 1 else blend(made, big_at, height=shape[-2], width=shape[-1])
    return canvas[..., : height * factor, : width * factor]


def enlarge_tiled(
    pipe: UnCLIPPipelineBase,
    images: Float[Tensor, "b 3 h w"],
    *,
    num_inference_steps: int,
    stages: tuple[str, ...],
    generator: Generator = None,
    on_step: OnStep | None = None,
) -> Float[Tensor, "b 3 H W"]:
    """A canvas of any size through these upsamplers."""
    for stage in stages:
        images = upsample_tiled(
            pipe, images, num_inference_steps=num_inference_steps, stage=stage, generator=generator, on_step=on_step
        )
    return images


def upsampler_sizes(pipe: UnCLIPPipelineBase, stage: str) -> tuple[int, int]:
    """The side of the pictures that a stage takes, and of those that it makes.

    Raises:
        ValueError: the checkpoint has no such stage.
    """
    if stage not in ("super_res", "super_res_1024"):
        raise ValueError(f"stage must be 'super_res' or 'super_res_1024', got {stage!r}")
    network = pipe.super_res_first if stage == "super_res" else pipe.super_res_1024
    before = pipe.decoder if stage == "super_res" or pipe.super_res_first is None else pipe.super_res_first
    if network is None:
        raise ValueError(f"this checkpoint has no upsampler for stage {stage!r}")
    return before.config["sample_size"], network.config["sample_size"]
