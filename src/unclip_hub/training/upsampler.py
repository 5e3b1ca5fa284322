"""The loss of an upsampler (Ramesh et al. 2022, section 2.1; Ho et al. 2021, arXiv:2106.15282, section 4.2)."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from unclip_hub.diffusion import cosine_alphas_cumprod
from unclip_hub.images import resize
from unclip_hub.models.upsampler import UNet2DModel
from unclip_hub.training.velocity import noised, x0_error


@dataclass
class UpsamplerBatch:
    """Crops of pictures in [-1, 1] at the size that the upsampler works at, and the same crops small."""

    pixels: Float[Tensor, "b 3 h w"]
    low: Float[Tensor, "b 3 small_h small_w"]


class UpsamplerTask:
    """Velocity loss on crops; the small picture is blurred (3×3 Gaussian, sigma 0.6) or noised, as a decoder's is
    never as clean as a downsized photograph."""

    def __init__(
        self,
        upsampler: UNet2DModel,
        *,
        prediction_type: str = "sample",
        max_noise: float = 0.08,
        min_noise: float = 0.2,
    ) -> None:
        self.modules = nn.ModuleDict({"upsampler": upsampler})
        self.prediction_type, self.max_noise, self.min_noise = prediction_type, max_noise, min_noise
        self.alphas_cumprod = cosine_alphas_cumprod()

    def loss(self, batch: UpsamplerBatch, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        """Velocity loss; ``x0`` is the plain error of the predicted picture."""
        x_t, t, abar = noised(batch.pixels, self.alphas_cumprod, generator=generator)
        low = resize(self._corrupt(batch.low, generator), batch.pixels.shape[-2:])
        output = self.modules["upsampler"](torch.cat([x_t, low], dim=1), t).sample.float()
        error, weight = x0_error(
            output,
            x_t,
            batch.pixels,
            abar=abar,
            prediction_type=self.prediction_type,
            min_noise=self.min_noise,
        )
        return (error * weight).mean(), {"x0": error.mean().item()}

    def _corrupt(self, low: Tensor, generator: torch.Generator) -> Tensor:
        b, device = len(low), low.device
        blurred = torch.rand(b, 1, 1, 1, generator=generator, device=device) < 0.5
        low = torch.where(blurred, _blur(low), low)
        level = self.max_noise * torch.rand(b, 1, 1, 1, generator=generator, device=device)
        return low + level * torch.randn(low.shape, generator=generator, device=device)


def _blur(images: Float[Tensor, "b c h w"], *, sigma: float = 0.6) -> Float[Tensor, "b c h w"]:
    line = torch.exp(-0.5 * (torch.arange(-1.0, 2.0, device=images.device) / sigma) ** 2)
    kernel = torch.outer(line, line) / line.sum() ** 2
    kernel = kernel.expand(images.shape[1], 1, 3, 3).to(images)
    return F.conv2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), kernel, groups=images.shape[1])
