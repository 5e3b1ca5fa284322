"""What is done to an upsampler's small pictures in training, so that it trusts a decoder's as little as it should."""

import io
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from unclip_hub.images import to_pil


KERNEL = 21  # pixels of the large picture
SHOT_NOISE = (1e-4, 0.012)  # variance per unit of light, range of Brooks et al. 2019, arXiv:1811.11127, section 3.1


def blur_and_noise(
    low: Float[Tensor, "b 3 h w"],
    generator: torch.Generator,
    *,
    blur_share: float = 0.5,
    max_noise: float = 0.08,
    sigma: float = 0.6,
) -> Float[Tensor, "b 3 h w"]:
    """A share of the pictures blurred by a 3 × 3 Gaussian; noise of a level of up to ``max_noise`` on each."""
    b, device = len(low), low.device
    blurred = torch.rand(b, 1, 1, 1, generator=generator, device=device) < blur_share
    low = torch.where(blurred, _filtered(low, _gaussian(3, (sigma, sigma))), low)
    level = max_noise * torch.rand(b, 1, 1, 1, generator=generator, device=device)
    return low + level * torch.randn(low.shape, generator=generator, device=device)


# of every small picture from 64 to 256 px in Ramesh et al. 2022, section 2.1
paper_blur = partial(blur_and_noise, blur_share=1.0, max_noise=0.0)


def bsr(
    pixels: Float[Tensor, "b 3 h w"], generator: torch.Generator, *, scale: int = 4
) -> Float[Tensor, "b 3 small_h small_w"]:
    """Pictures in [-1, 1] at 1 / ``scale`` of their size, worn as if they came from anywhere: BSRGAN's degradation.

    A round and an oblong blur, shrinking by one kernel or another, noise, JPEG and the noise of a sensor, in an order
    drawn for each picture; at last JPEG again (Zhang et al. 2021, arXiv:2103.14006, section 3). The sensor has no
    colour filter array, and blurs count pixels of the large picture wherever in the order they come.
    """
    return torch.cat([_degraded(picture[None], generator, scale=scale) for picture in pixels])


def redrawn(
    low: Float[Tensor, "b 3 h w"],
    captions: list[str],
    generator: torch.Generator,
    *,
    pipe: Callable[..., Any],
    steps: int = 6,
) -> Float[Tensor, "b 3 h w"]:
    """Small pictures in [-1, 1] as the decoder of an image-to-image ``pipe`` draws them: with its mistakes, in place.

    They are noised 1 to 4 sixths of the way and denoised from their own captions and image embeddings (SDEdit,
    arXiv:2108.01073), so that the upsampler learns to mend what this decoder does wrong; ``low`` is of its size.
    """
    strength = int(torch.randint(1, 2 * steps // 3 + 1, (), generator=generator, device=generator.device)) / steps
    drawn = pipe(
        (low.clamp(-1, 1) + 1) / 2,
        captions,
        strength,
        image_weight=1.0,
        decoder_num_inference_steps=steps,
        decoder_guidance_scale=1.0,
        generator=generator,
        output_type="pt",
        output_size=low.shape[-1],
    ).images
    return drawn.to(low) * 2 - 1


def _degraded(picture: Tensor, generator: torch.Generator, *, scale: int) -> Tensor:
    height, width = picture.shape[-2:]
    size = height // scale, width // scale
    steps: list[Callable[[Tensor], Tensor]] = [
        lambda x: _blurred(x, generator, large=width, oblong=False),
        lambda x: _blurred(x, generator, large=width, oblong=True),
        lambda x: _shrunk(x, generator, size=size, scale=scale),
        lambda x: _noised(x, generator),
        lambda x: _jpeg(x, generator) if _uniform(0, 1, generator) < 0.75 else x,
        lambda x: _sensed(x, generator) if _uniform(0, 1, generator) < 0.25 else x,
    ]
    for i in torch.randperm(len(steps), generator=generator, device=generator.device).tolist():
        picture = steps[i](picture)
    return _jpeg(picture, generator)


def _blurred(picture: Tensor, generator: torch.Generator, *, large: int, oblong: bool) -> Tensor:
    widths = [_uniform(0.1, 2.8, generator)] * 2
    if oblong:
        widths = [_uniform(0.5, 8, generator) ** 0.5 for _ in range(2)]  # variances along both axes
    ratio = picture.shape[-1] / large
    kernel = _gaussian(KERNEL, (ratio * widths[0], ratio * widths[1]), angle=_uniform(0, math.pi, generator))
    return _filtered(picture, kernel)


def _shrunk(picture: Tensor, generator: torch.Generator, *, size: tuple[int, int], scale: int) -> Tensor:
    """By nearest neighbour, linearly, cubically, or in two goes with a size of any kind in between."""
    kind = int(_uniform(0, 4, generator))
    if kind == 0:
        return F.interpolate(picture, size=size, mode="nearest-exact")
    if kind == 3:
        between = _uniform(0.5, scale, generator)
        picture = _resized(picture, [max(1, round(between * side)) for side in size], generator)
        return _resized(picture, size, generator)
    return F.interpolate(picture, size=size, mode=("bilinear", "bicubic")[kind - 1], antialias=True).clamp(-1, 1)


def _resized(picture: Tensor, size: list[int] | tuple[int, int], generator: torch.Generator) -> Tensor:
    mode = "bilinear" if _uniform(0, 1, generator) < 0.5 else "bicubic"
    return F.interpolate(picture, size=tuple(size), mode=mode, antialias=True).clamp(-1, 1)


def _noised(picture: Tensor, generator: torch.Generator) -> Tensor:
    """Normal noise of 1 to 25 levels of 255, of each colour its own or the same of all."""
    channels = 3 if _uniform(0, 1, generator) < 0.5 else 1
    noise = torch.randn(1, channels, *picture.shape[-2:], generator=generator, device=picture.device)
    return (picture + 2 / 255 * _uniform(1, 25, generator) * noise).clamp(-1, 1)


def _sensed(picture: Tensor, generator: torch.Generator) -> Tensor:
    """The noise of a sensor, which grows with the light, under a gamma of 2.2 (Brooks et al. 2019, section 3.1)."""
    light = ((picture.clamp(-1, 1) + 1) / 2) ** 2.2
    log_shot = _uniform(math.log(SHOT_NOISE[0]), math.log(SHOT_NOISE[1]), generator)
    read = math.exp(2.18 * log_shot + 1.2)
    noise = torch.randn(light.shape, generator=generator, device=light.device)
    seen = light + (math.exp(log_shot) * light + read).sqrt() * noise
    return seen.clamp(1e-8, 1) ** (1 / 2.2) * 2 - 1


def _jpeg(picture: Tensor, generator: torch.Generator) -> Tensor:
    """A quality between 30 and 95."""
    file = io.BytesIO()
    to_pil(picture)[0].save(file, "JPEG", quality=round(_uniform(30, 95, generator)))
    pixels = torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1)[None]
    return pixels.to(picture) / 127.5 - 1


def _gaussian(size: int, sigmas: tuple[float, float], *, angle: float = 0.0) -> Float[Tensor, "k k"]:
    """A normalised Gaussian kernel with standard deviations along its two axes, the first at ``angle``."""
    at = torch.arange(size, dtype=torch.float32) - size // 2
    y, x = torch.meshgrid(at, at, indexing="ij")
    along, across = x * math.cos(angle) + y * math.sin(angle), y * math.cos(angle) - x * math.sin(angle)
    kernel = torch.exp(-0.5 * ((along / sigmas[0]) ** 2 + (across / sigmas[1]) ** 2))
    return kernel / kernel.sum()


def _filtered(images: Float[Tensor, "b c h w"], kernel: Float[Tensor, "k k"]) -> Float[Tensor, "b c h w"]:
    channels, reach = images.shape[1], kernel.shape[-1] // 2
    weight = kernel.to(images).expand(channels, 1, -1, -1)
    return F.conv2d(F.pad(images, (reach,) * 4, mode="replicate"), weight, groups=channels)


def _uniform(low: float | int, high: float | int, generator: torch.Generator) -> float:
    return low + (high - low) * torch.rand((), generator=generator, device=generator.device).item()
