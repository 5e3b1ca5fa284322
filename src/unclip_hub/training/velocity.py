"""What the decoder's and the upsampler's losses share: noising pictures, and the velocity error of a prediction."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from unclip_hub.diffusion import predicted_x0, q_sample


def noised(
    pixels: Float[Tensor, "b c h w"], alphas_cumprod: Float[Tensor, "t"], *, generator: torch.Generator
) -> tuple[Float[Tensor, "b c h w"], Int[Tensor, "b"], Float[Tensor, "b"]]:
    """Pictures at uniformly drawn timesteps: x_t, the timesteps, and abar at each."""
    device = pixels.device
    t = torch.randint(len(alphas_cumprod), (len(pixels),), generator=generator, device=device)
    abar = alphas_cumprod.to(device)[t].float()
    return q_sample(pixels, torch.randn(pixels.shape, generator=generator, device=device), abar=abar), t, abar


def x0_error(
    output: Float[Tensor, "b c h w"],
    x_t: Float[Tensor, "b c h w"],
    pixels: Float[Tensor, "b c h w"],
    *,
    abar: Float[Tensor, "b"],
    prediction_type: str,
    min_noise: float,
) -> tuple[Float[Tensor, "b"], Float[Tensor, "b"]]:
    """Squared error of the x_0 that ``output`` implies, and the weight that makes it that of the velocity.

    The weight is 1 / sigma² (Salimans & Ho 2022, section 4), with sigma bounded below by ``min_noise``.
    """
    x0 = predicted_x0(output, x_t, abar=abar.view(-1, 1, 1, 1), kind=prediction_type)
    return (x0 - pixels).square().mean(dim=(1, 2, 3)), 1 / (1 - abar).clamp(min=min_noise**2)
