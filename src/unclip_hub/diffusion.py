"""Noise tables and the algebra of one diffusion step.

Notation of Ho et al. 2020 (arXiv:2006.11239): x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps. Tables are float64: with
float32 ones the last coefficient of the posterior mean comes out as 0.9995 instead of 1.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
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


def _per_row(abar: Tensor, x: Tensor) -> Tensor:
    return abar.to(x).view(-1, *(1,) * (x.ndim - 1))
