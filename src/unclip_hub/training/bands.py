"""What a diffusion loss must fall below at each noise level: that of the best linear filter."""

from collections import defaultdict
from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from unclip_hub.diffusion import training_target
from unclip_hub.training.decoder import by_noise
from unclip_hub.training.objective import Objective


DRAWS = 40  # of noise and timesteps for every picture


def filter_losses(objective: Objective, pixels: Float[Tensor, "b c h w"]) -> dict[str, float]:
    """The loss of Wiener's filter for the mean and the power spectrum of ``pixels``, by bins of the noise level.

    It is the best that can be had from a noised picture without knowing more than these two, as if pictures were a
    stationary Gaussian process: frequency by frequency S sqrt(abar) / (abar S + 1 - abar). A network that is no better
    has not learned what pictures look like, let alone what their conditions say. The share of a learned variance in
    the loss is not in it.

    Returns:
        The bins' names as `DecoderTask` logs them, with the loss.

    Raises:
        ValueError: fewer than two pictures.
    """
    if len(pixels) < 2:
        raise ValueError(f"a spectrum needs at least 2 pictures, got {len(pixels)}")
    pixels = pixels.float()
    mean = pixels.mean(dim=0)
    spectrum = torch.fft.fft2(pixels - mean, norm="ortho").abs().square().sum(dim=0) / (len(pixels) - 1)
    generator = torch.Generator(pixels.device).manual_seed(0)
    found: dict[str, list[float]] = defaultdict(list)
    for _ in range(DRAWS):
        noised = objective.noised(pixels, generator)
        abar = objective.alphas_cumprod.to(noised.t.device)[noised.t].float()
        signal = abar.sqrt()[:, None, None, None]
        gain = spectrum * signal / (signal**2 * spectrum + 1 - signal**2)
        x0 = mean + torch.fft.ifft2(gain * torch.fft.fft2(noised.x_t - signal * mean)).real
        noise = (noised.x_t - signal * x0) / (1 - signal**2).sqrt()
        output = training_target(x0, noise, abar=abar, kind=objective.prediction_type)
        losses, _ = objective.losses(output, pixels, noised)
        for name, value in by_noise(losses, noised.t, len(objective.alphas_cumprod)).items():
            found[name].append(value)
    return {name: sum(values) / len(values) for name, values in sorted(found.items())}


def outside(numbers: Mapping[str, float], bands: Mapping[str, float]) -> str:
    """In one line, which of ``numbers`` are not below their bands."""
    present = {name: band for name, band in bands.items() if name in numbers}
    above = {name: band for name, band in present.items() if not numbers[name] < band}
    if not above:
        return "at every noise level the loss is below that of the best linear filter"
    found = ", ".join(f"{name} {numbers[name]:.3g} (filter {band:.3g})" for name, band in above.items())
    return f"no better than the best linear filter, which knows neither things nor captions, is {found}"
