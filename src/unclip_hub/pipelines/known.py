"""Sampling around what is known of the result: RePaint (Lugmayr et al. 2022, arXiv:2201.09865) with any scheduler.

RePaint draws the known part of every x_t anew from the picture. Here the known pixels replace the network's x_0
instead: the ancestral step then draws that part from q(x_s | x_t, x_0), which has the same distribution, and every
other solver takes it along its own path to exactly those pixels.
"""

from dataclasses import dataclass
from typing import Any

import torch
from diffusers.utils.torch_utils import randn_tensor
from jaxtyping import Float
from torch import Tensor

from unclip_hub.diffusion import as_prediction, predicted_x0
from unclip_hub.pipelines.schedulers import noise_level
from unclip_hub.sampling import Predict


Level = tuple[float, float]  # what a scheduler's x_t holds of x_0 and of unit noise


@dataclass(frozen=True)
class Known:
    """Pixels in [-1, 1], and from 0 (known) to 1 (to be made) how much of each is left to the network."""

    pixels: Float[Tensor, "b 3 h w"]
    mask: Float[Tensor, "b 1 h w"]


def holding(predict: Predict, known: Known, *, scheduler: Any, kind: str) -> Predict:
    """A network whose x_0 shows the known pixels, and that has nothing to add to their variance."""

    def hold(x: Tensor, t: Tensor) -> Tensor:
        c, pixels, mask = x.shape[1], known.pixels.to(x), known.mask.to(x)
        output, abar = predict(x, t), 1 / (1 + noise_level(scheduler, t) ** 2)
        x0 = torch.lerp(pixels, predicted_x0(output[:, :c], x, abar=abar, kind=kind), mask)
        smallest = -torch.ones_like(output[:, c:])  # of a learned variance: beta tilde, the exact posterior's
        return torch.cat(
            [as_prediction(x0, x, abar=abar, kind=kind), torch.lerp(smallest, output[:, c:], mask)], dim=1
        )

    return hold


def spans(begin: int, end: int, *, length: int, times: int) -> list[tuple[int, int]]:
    """The runs of timesteps, in order: every ``length`` of them ``times`` times, so that what is made can settle."""
    if times == 1:
        return [(begin, end)]
    return [(first, min(first + length, end)) for first in range(begin, end, length) for _ in range(times)]


def levels(scheduler: Any) -> list[Level]:
    """The level before each of the scheduler's timesteps and, last, after them all.

    Asked of its ``add_noise``, as some count in x_0 + sigma noise and others in the networks' own scale.
    """
    one, zero = torch.ones(1, 1), torch.zeros(1, 1)
    times = [t.reshape(1) for t in scheduler.timesteps.cpu()]
    return [
        *((scheduler.add_noise(one, zero, t).item(), scheduler.add_noise(zero, one, t).item()) for t in times),
        (1.0, 0.0),
    ]


def renoised(x: Tensor, now: Level, then: Level, *, generator: Any) -> Tensor:
    """x_t from x_s, one level from another with more noise."""
    scale = then[0] / now[0]
    std = max(then[1] ** 2 - (scale * now[1]) ** 2, 0.0) ** 0.5
    return scale * x + std * randn_tensor(x.shape, generator=generator, device=x.device, dtype=x.dtype)
