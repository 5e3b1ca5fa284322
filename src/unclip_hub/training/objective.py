"""What the diffusion losses share: noising, what the network is asked for, and what an error counts at each noise."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from unclip_hub.diffusion import (
    PREDICTION_TYPES,
    bound_terms,
    cosine_alphas_cumprod,
    flow_alphas_cumprod,
    linear_alphas_cumprod,
    min_snr_weight,
    predicted_x0,
    q_sample,
    training_target,
)


SCHEDULES: dict[str, Callable[[], Tensor]] = {
    "cosine": cosine_alphas_cumprod,
    "linear": linear_alphas_cumprod,
    "flow": flow_alphas_cumprod,
}
WEIGHTINGS = ("simple", "velocity", "min_snr", "flow")


@dataclass(frozen=True)
class Noised:
    """A batch at randomly drawn timesteps: x_t, and the noise in it."""

    x_t: Float[Tensor, "b *shape"]
    t: Int[Tensor, "b"]
    noise: Float[Tensor, "b *shape"]


@dataclass(frozen=True)
class Objective:
    """A diffusion loss: squared errors, weighted by noise level, and a variational term where the variance is learned.

    Args:
        prediction_type: what the network predicts, ``"epsilon"``, ``"sample"`` or ``"v_prediction"``.
        weighting: ``"simple"`` counts the error of what the network predicts alike at every noise level (Ho et al.
            2020, eq. 14). ``"velocity"`` counts it as the error of v, 1 / sigma² times that of x_0 (Salimans & Ho
            2022, section 4), with sigma bounded below by ``min_noise``. ``"min_snr"`` is ``min_snr_weight`` with
            ``gamma``. ``"flow"`` counts it as the error of the velocity along the straight path from x_0 to the noise:
            1 / s² times that of x_0, s = sigma / (sqrt(abar) + sigma), bounded below by ``min_noise`` too.
        schedule: ``"cosine"`` or, as for 256 → 1024 px in Ramesh et al. 2022, table 3, ``"linear"``; or ``"flow"``,
            the straight path of flow matching (Lipman et al. 2023) as a noise schedule, see ``flow_alphas_cumprod``.
        bound_weight: lambda of the hybrid loss (Nichol & Dhariwal 2021, eq. 16), for networks with twice the channels.
        noisiest: share of the rows whose timestep is drawn from the noisiest fifth alone, where it is decided what the
            picture shows; the other rows' is drawn from all.

    Raises:
        ValueError: an unknown name, or a number that no loss can have.
    """

    prediction_type: str = "sample"
    weighting: str = "velocity"
    schedule: str = "cosine"
    min_noise: float = 0.2
    gamma: float = 5.0
    bound_weight: float = 0.001
    noisiest: float = 0.0

    def __post_init__(self) -> None:
        names = {"prediction_type": PREDICTION_TYPES, "weighting": WEIGHTINGS, "schedule": tuple(SCHEDULES)}
        for name, allowed in names.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}")
        for name in ("min_noise", "gamma"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")
        if not self.bound_weight >= 0:
            raise ValueError(f"bound_weight must be at least 0, got {self.bound_weight}")
        if not 0 <= self.noisiest <= 1:
            raise ValueError(f"noisiest must be a share from 0 to 1, got {self.noisiest}")

    @cached_property
    def alphas_cumprod(self) -> Float[Tensor, "t"]:
        """The noise schedule, in float64."""
        return SCHEDULES[self.schedule]()

    def noised(self, x0: Float[Tensor, "b *shape"], generator: torch.Generator) -> Noised:
        """``x0`` at randomly drawn timesteps."""
        steps, draw = len(self.alphas_cumprod), {"generator": generator, "device": x0.device}
        t = torch.randint(steps, (len(x0),), **draw)
        if self.noisiest:
            late = torch.randint(steps - steps // 5, steps, (len(x0),), **draw)
            t = torch.where(torch.rand(len(x0), **draw) < self.noisiest, late, t)
        noise = torch.randn(x0.shape, generator=generator, device=x0.device)
        return Noised(q_sample(x0, noise, abar=self._abar(t)), t, noise)

    def losses(
        self, output: Float[Tensor, "b ..."], x0: Float[Tensor, "b ..."], noised: Noised
    ) -> tuple[Float[Tensor, "b"], Float[Tensor, "b"]]:
        """Each row's loss, and its squared error of x_0 as such.

        An output with twice the channels of ``x0`` is a prediction and its learned variance. The variational term
        trains the variance alone: the prediction in it has no gradient.
        """
        predicted, variance = output, None
        if output.shape[1] == 2 * x0.shape[1]:
            predicted, variance = output.chunk(2, dim=1)
        abar, kind = self._abar(noised.t), self.prediction_type
        target = training_target(x0, noised.noise, abar=abar, kind=kind)
        error = (predicted - target).square().flatten(1).mean(dim=1)
        per_error = {"sample": torch.ones_like(abar), "epsilon": (1 - abar) / abar, "v_prediction": 1 - abar}
        x0_error = error * per_error[kind]
        if self.weighting == "simple":
            losses = error
        elif self.weighting == "velocity":
            losses = x0_error / (1 - abar).clamp(min=self.min_noise**2)
        elif self.weighting == "flow":
            sigma = (1 - abar).sqrt()
            losses = x0_error / (sigma / (abar.sqrt() + sigma)).clamp(min=self.min_noise) ** 2
        else:
            losses = error * min_snr_weight(abar, kind=kind, gamma=self.gamma)
        if variance is not None:
            bound = bound_terms(
                variance,
                self.clean(predicted.detach(), noised),
                x0=x0,
                t=noised.t,
                alphas_cumprod=self.alphas_cumprod,
            )
            # a bound over all timesteps, estimated from one
            losses = losses + self.bound_weight * len(self.alphas_cumprod) * bound
        return losses, x0_error.detach()

    def clean(self, predicted: Float[Tensor, "b *shape"], noised: Noised) -> Float[Tensor, "b *shape"]:
        """The x_0 that a prediction, without its variance, implies."""
        abar = self._abar(noised.t).view(-1, *(1,) * (predicted.ndim - 1))
        return predicted_x0(predicted, noised.x_t, abar=abar, kind=self.prediction_type)

    def _abar(self, t: Int[Tensor, "b"]) -> Float[Tensor, "b"]:
        return self.alphas_cumprod.to(t.device)[t].float()
