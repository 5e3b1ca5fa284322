"""The loss of an upsampler (Ramesh et al. 2022, section 2.1; Ho et al. 2021, arXiv:2106.15282, section 4.2)."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from unclip_hub.images import resize
from unclip_hub.models.upsampler import UNet2DModel
from unclip_hub.training.degradations import blur_and_noise
from unclip_hub.training.objective import Objective


@dataclass
class UpsamplerBatch:
    """Crops of pictures in [-1, 1] at the size that the upsampler works at, and the same crops small."""

    pixels: Float[Tensor, "b 3 h w"]
    low: Float[Tensor, "b 3 small_h small_w"]


class UpsamplerTask:
    """The diffusion loss on crops, from the small picture that ``corrupt(low, generator)`` made worse.

    A decoder's picture is never as clean as a downsized photograph. ``corrupt=None`` takes the small pictures as they
    are: for batches of ``random_crops`` whose ``shrink`` has corrupted them.
    """

    def __init__(
        self,
        upsampler: UNet2DModel,
        *,
        corrupt: Callable[[Tensor, torch.Generator], Tensor] | None = blur_and_noise,
        objective: Objective = Objective(),  # noqa: B008  frozen
    ) -> None:
        self.modules = nn.ModuleDict({"upsampler": upsampler})
        self.corrupt, self.objective = corrupt, objective

    def loss(self, batch: UpsamplerBatch, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        """The mean loss; ``x0`` is the plain error of the predicted picture."""
        noised = self.objective.noised(batch.pixels, generator)
        low = batch.low if self.corrupt is None else self.corrupt(batch.low, generator)
        low = resize(low, batch.pixels.shape[-2:])
        output = self.modules["upsampler"](torch.cat([noised.x_t, low], dim=1), noised.t).sample.float()
        losses, x0_error = self.objective.losses(output, batch.pixels, noised)
        return losses.mean(), {"x0": x0_error.mean().item()}


def random_crops(
    pixels: Float[Tensor, "b 3 h w"],
    generator: torch.Generator,
    *,
    size: int,
    scale: int = 4,
    shrink: Callable[[Tensor, torch.Generator], Tensor] | None = None,
) -> UpsamplerBatch:
    """A square crop of each picture and what ``shrink(crops, generator)`` makes of it, by default means of its pixels.

    The paper's ``size`` is a quarter of the pictures'; corners lie at multiples of ``scale``.

    Raises:
        ValueError: a size that is no multiple of ``scale`` or larger than the pictures.
    """
    b, _, height, width = pixels.shape
    if size % scale or not 0 < size <= min(height, width):
        raise ValueError(f"size must be a multiple of {scale} and at most {min(height, width)}, got {size}")
    rows, columns = (
        (scale * torch.randint((side - size) // scale + 1, (b,), generator=generator, device=pixels.device)).tolist()
        for side in (height, width)
    )
    crops = [
        image[:, top : top + size, left : left + size] for image, top, left in zip(pixels, rows, columns, strict=True)
    ]
    high = torch.stack(crops)
    low = F.avg_pool2d(high, scale) if shrink is None else shrink(high, generator)
    return UpsamplerBatch(pixels=high, low=low)
