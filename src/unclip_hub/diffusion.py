"""Noise tables and the algebra of one diffusion step.

Notation of Ho et al. 2020 (arXiv:2006.11239): x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps. Tables are float64: with
float32 ones the last coefficient of the posterior mean comes out as 0.9995 instead of 1.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor


PREDICTION_TYPES = ("epsilon", "sample", "v_prediction")


@dataclass(frozen=True)
class Posterior:
    """q(x_s | x_t, x_0) for s < t: mean ``x0_coefficient * x_0 + sample_coefficient * x_t`` (Ho et al., eq. 7)."""

    x0_coefficient: float
    sample_coefficient: float
    variance: float  # beta tilde
    beta: float  # 1 - abar_t / abar_s


def cosine_alphas_cumprod(num_train_timesteps: int = 1000, *, max_beta: float = 0.999) -> Float[Tensor, "t"]:
    """The cosine schedule (Nichol & Dhariwal 2021, eq. 17) as float64 abar_1 … abar_T, in (0, 1)."""
    edge = torch.arange(num_train_timesteps + 1, dtype=torch.float64) / num_train_timesteps
    abar = torch.cos((edge + 0.008) / 1.008 * torch.pi / 2) ** 2
    betas = (1 - abar[1:] / abar[:-1]).clamp(max=max_beta)
    return torch.cumprod(1 - betas, dim=0)


def linear_alphas_cumprod(num_train_timesteps: int = 1000) -> Float[Tensor, "t"]:
    """The linear schedule (Ho et al., section 4: beta from 1e-4 to 0.02 in 1,000 steps) as float64 abar_1 … abar_T."""
    betas = torch.linspace(1e-4, 0.02, num_train_timesteps, dtype=torch.float64) * 1000 / num_train_timesteps
    return torch.cumprod(1 - betas.clamp(max=0.999), dim=0)


def flow_alphas_cumprod(num_train_timesteps: int = 1000, *, max_beta: float = 0.999) -> Float[Tensor, "t"]:
    """The straight path x_s = (1 - s) x_0 + s eps at s = 1/T … 1 (Lipman et al. 2023), as float64 abar_1 … abar_T.

    Divided by sqrt((1 - s)² + s²) that path is x_t of abar = (1 - s)² / ((1 - s)² + s²), so Euler's step along it is
    DDIM's. At s = 1 abar would be 0, and a prediction of the noise would imply no x_0: as in the cosine schedule beta
    stays below ``max_beta``, so that the path ends at abar = 1e-9, which is s = 0.99997.
    """
    s = torch.arange(1, num_train_timesteps + 1, dtype=torch.float64) / num_train_timesteps
    abar = (1 - s) ** 2 / ((1 - s) ** 2 + s**2)
    betas = (1 - abar / torch.nn.functional.pad(abar[:-1], (1, 0), value=1.0)).clamp(max=max_beta)
    return torch.cumprod(1 - betas, dim=0)


def q_sample(x0: Float[Tensor, "b *shape"], noise: Float[Tensor, "b *shape"], *, abar: Float[Tensor, "b"]) -> Tensor:
    """x_t for one abar_t per row (Ho et al., eq. 4)."""
    abar = _per_row(abar, x0)
    return abar.sqrt() * x0 + (1 - abar).sqrt() * noise


def training_target(
    x0: Float[Tensor, "b *shape"], noise: Float[Tensor, "b *shape"], *, abar: Float[Tensor, "b"], kind: str
) -> Tensor:
    """What a network is asked for; v = sqrt(abar) eps - sqrt(1 - abar) x_0 (Salimans & Ho 2022)."""
    if kind == "epsilon":
        return noise
    if kind == "sample":
        return x0
    if kind == "v_prediction":
        abar = _per_row(abar, x0)
        return abar.sqrt() * noise - (1 - abar).sqrt() * x0
    raise ValueError(f"prediction type must be one of {PREDICTION_TYPES}, got {kind!r}")


def predicted_x0(output: Tensor, x_t: Tensor, *, abar: float | Tensor, kind: str) -> Tensor:
    """x_0 as the network's output implies it; abar is that of one timestep, or broadcasts against x_t."""
    if kind == "sample":
        return output
    if kind == "epsilon":
        return (x_t - (1 - abar) ** 0.5 * output) / abar**0.5
    if kind == "v_prediction":
        return abar**0.5 * x_t - (1 - abar) ** 0.5 * output
    raise ValueError(f"prediction type must be one of {PREDICTION_TYPES}, got {kind!r}")


def as_prediction(x0: Tensor, x_t: Tensor, *, abar: float, kind: str) -> Tensor:
    """The network's output that would imply ``x0``: the inverse of ``predicted_x0``."""
    if kind == "sample":
        return x0
    eps = (x_t - abar**0.5 * x0) / (1 - abar) ** 0.5
    if kind == "epsilon":
        return eps
    if kind == "v_prediction":
        return abar**0.5 * eps - (1 - abar) ** 0.5 * x0
    raise ValueError(f"prediction type must be one of {PREDICTION_TYPES}, got {kind!r}")


def min_snr_weight(abar: Float[Tensor, "b"], *, kind: str, gamma: float | int = 5.0) -> Float[Tensor, "b"]:
    """What the squared error of the network's output counts: the error of x_0 counts min(SNR, gamma).

    Source: Hang et al. 2023, arXiv:2303.09556, section 3.4.
    """
    snr = abar / (1 - abar)
    if kind == "sample":
        return snr.clamp(max=gamma)
    if kind == "epsilon":
        return (gamma / snr).clamp(max=1)
    if kind == "v_prediction":
        return snr.clamp(max=gamma) / (snr + 1)
    raise ValueError(f"prediction type must be one of {PREDICTION_TYPES}, got {kind!r}")


def posterior(abar_t: float, abar_s: float) -> Posterior:
    """The posterior of the step t → s, however far below t; abar_s = 1 is x_0 itself."""
    alpha = abar_t / abar_s
    beta = 1 - alpha
    return Posterior(
        x0_coefficient=abar_s**0.5 * beta / (1 - abar_t),
        sample_coefficient=alpha**0.5 * (1 - abar_s) / (1 - abar_t),
        variance=(1 - abar_s) / (1 - abar_t) * beta,
        beta=beta,
    )


def learned_range_std(variance_output: Tensor, step: Posterior) -> Tensor:
    """Standard deviation between beta tilde (output -1) and beta (1), in logs (Nichol & Dhariwal 2021, eq. 15)."""
    low, high = torch.tensor([step.variance, step.beta], dtype=torch.float64).clamp(min=1e-20).log().tolist()
    fraction = (variance_output + 1) / 2
    return (0.5 * (fraction * high + (1 - fraction) * low)).exp()


def bound_terms(
    variance_output: Float[Tensor, "b *shape"],
    predicted: Float[Tensor, "b *shape"],
    *,
    x0: Float[Tensor, "b *shape"],
    t: Int[Tensor, "b"],
    alphas_cumprod: Float[Tensor, "t"],
) -> Float[Tensor, "b"]:
    """One term of the variational bound per row, in bits per dimension (Nichol & Dhariwal 2021, eq. 4 to 7).

    The divergence of p(x_{t-1} | x_t), whose mean follows from the ``predicted`` x_0 and whose variance is that of
    ``learned_range_std``, from the posterior given ``x0``. For the first timestep, ``t == 0``, instead the negative
    log likelihood of ``x0`` as pixels of 256 levels in [-1, 1]; as beta tilde is 0 there, the range then starts at
    that of the second timestep.
    """
    table = torch.nn.functional.pad(alphas_cumprod.to(t.device), (1, 0), value=1.0)
    before, after, later = table[t], table[t + 1], t.clamp(min=1)
    beta = 1 - after / before
    variance = (1 - table[later]) / (1 - table[later + 1]) * (1 - table[later + 1] / table[later])
    low, high = _per_row(variance.log(), x0), _per_row(beta.log(), x0)
    fraction = (variance_output + 1) / 2
    log_variance = fraction * high + (1 - fraction) * low
    # x_t enters both means alike, so that they differ by their x_0 alone
    apart = _per_row(before.sqrt() * beta / (1 - after), x0) * (x0 - predicted)
    divergence = 0.5 * (log_variance - low + (low - log_variance).exp() + apart**2 * (-log_variance).exp() - 1)
    likelihood = _pixel_log_likelihood(x0, mean=predicted, std=(0.5 * log_variance).exp())
    nats = torch.where(_per_row(t, x0) == 0, -likelihood, divergence)
    return nats.flatten(1).mean(dim=1) / math.log(2)


def _pixel_log_likelihood(x: Tensor, *, mean: Tensor, std: Tensor) -> Tensor:
    """Log of the normal distribution's mass in the cell, 2 / 255 wide, of each pixel; the outer cells are open."""
    above = torch.where(x > 0.999, 1.0, torch.special.ndtr((x - mean + 1 / 255) / std))
    below = torch.where(x < -0.999, 0.0, torch.special.ndtr((x - mean - 1 / 255) / std))
    return (above - below).clamp(min=1e-12).log()


def _per_row(values: Tensor, x: Tensor) -> Tensor:
    return values.to(x).view(-1, *(1,) * (x.ndim - 1))
