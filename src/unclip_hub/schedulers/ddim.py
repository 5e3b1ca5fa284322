"""DDIM between a picture and its noise, in both directions over the same noise levels (Song et al. 2021)."""

from dataclasses import dataclass

import torch
from diffusers.utils.outputs import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from jaxtyping import Float
from torch import Tensor

from unclip_hub.diffusion import predicted_x0


SPACING = "trailing"


@dataclass
class StepOutput(BaseOutput):
    """One step: ``prev_sample`` is x at the next noise level of the walk, whichever way it goes."""

    prev_sample: Tensor


class NoiseLevels:
    """The levels of a walk: 0 is the picture, ``steps`` the last timestep, evenly between ("trailing").

    No level is at timestep 0. Its noise is 0.006, and a network's error there, small as it is, would be inverted as if
    it were noise: with the bundled decoder x_T then has a standard deviation of 11.

    Args:
        alphas_cumprod: abar of every training timestep.
        steps: the number of levels above the picture.
        prediction_type: what the network predicts, one of ``diffusion.PREDICTION_TYPES``.
        limit: x_0 is clamped to ± this; None leaves it as predicted.

    Raises:
        ValueError: ``steps`` is not within 1 … the number of training timesteps.
    """

    def __init__(
        self,
        alphas_cumprod: Float[Tensor, "t"],
        *,
        steps: int,
        prediction_type: str,
        limit: float | int | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        count = len(alphas_cumprod)
        if not 1 <= steps <= count:
            raise ValueError(f"the steps of an inversion must be within 1 … {count}, got {steps}")
        numbers = [round(level * count / steps) - 1 for level in range(1, steps + 1)]
        abar = [1.0, *alphas_cumprod.double()[numbers].tolist()]
        self.timesteps = torch.tensor(numbers, device=device)  # of level 1 and up
        self.signal = [a**0.5 for a in abar]
        self.noise = [(1 - a) ** 0.5 for a in abar]
        self.prediction_type = prediction_type
        self.limit = limit
        self._level = {t: level for level, t in enumerate(numbers, start=1)}

    def __len__(self) -> int:
        return len(self.timesteps)

    def at(self, timestep: int | Tensor) -> int:
        """The level of a timestep."""
        return self._level[int(timestep)]

    def split(self, output: Tensor, x: Tensor, *, level: int) -> tuple[Tensor, Tensor]:
        """x_0, clamped, and the noise that x at this level then consists of."""
        a, s = self.signal[level], self.noise[level]
        x0 = predicted_x0(output, x, abar=a * a, kind=self.prediction_type)
        if self.limit is not None:
            x0 = x0.clamp(-self.limit, self.limit)
        return x0, (x - a * x0) / s


class DDIM:
    """From noise to the picture (Song et al. 2021, eq. 12), with ``eta`` times the noise of ancestral sampling.

    Unlike diffusers' class it steps over ``NoiseLevels``: to the very levels that an inversion came from, also where
    the number of steps does not divide that of the timesteps.
    """

    def __init__(self, levels: NoiseLevels, *, eta: float | int = 0.0) -> None:
        self.levels = levels
        self.eta = eta
        self.timesteps = levels.timesteps.flip(0)

    def scale_model_input(self, sample: Tensor, timestep: int | Tensor | None = None) -> Tensor:
        """x_t as the network takes it: unchanged."""
        return sample

    def step(
        self,
        model_output: Tensor,
        timestep: int | Tensor,
        sample: Tensor,
        generator: torch.Generator | list[torch.Generator] | None = None,
    ) -> StepOutput:
        """One level down; noise is drawn if ``eta`` is above 0, except in the step to the picture."""
        level = self.levels.at(timestep)
        x0, eps = self.levels.split(model_output, sample, level=level)
        a, s = self.levels.signal, self.levels.noise
        std = self.eta * s[level - 1] / s[level] * (1 - (a[level] / a[level - 1]) ** 2) ** 0.5
        below = a[level - 1] * x0 + (s[level - 1] ** 2 - std**2) ** 0.5 * eps
        if std > 0:
            below = below + std * randn_tensor(
                sample.shape, generator=generator, device=sample.device, dtype=sample.dtype
            )
        return StepOutput(prev_sample=below)


class DDIMInverse:
    """From the picture to noise: every step solves DDIM's own step for the x that it comes from.

    That x occurs inside the network, so it is iterated, from x one level below: one iteration is the usual DDIM
    inversion, whose error falls with the size of the steps; more converge, where the network allows it, to the true
    inverse. Held from one iteration to the next is what depends least on x: the noise at levels that are mostly
    picture, x_0 at levels that are mostly noise. Holding the noise everywhere, as is usual, stays at an error of .003
    where this reaches 1e-16 (25 steps, exact predictions of a Gaussian).

    No number of iterations finds an x where the network makes this picture of none, or of many as x_0 is clamped.
    """

    def __init__(self, levels: NoiseLevels, *, iterations: int = 1) -> None:
        if iterations < 1:
            raise ValueError(f"iterations must be at least 1, got {iterations}")
        self.levels = levels
        self.iterations = iterations
        self.timesteps = levels.timesteps.repeat_interleave(iterations)
        self.before_last: Tensor | None = None  # one state is enough here; two are kept by ``BDIAInverse``
        self._calls = 0
        self._below: Tensor | None = None

    def scale_model_input(self, sample: Tensor, timestep: int | Tensor | None = None) -> Tensor:
        """x_t as the network takes it: unchanged."""
        return sample

    def step(self, model_output: Tensor, timestep: int | Tensor, sample: Tensor) -> StepOutput:
        """A better guess at x at the level of ``timestep`` than ``sample``, at first x one level below."""
        level = self.levels.at(timestep)
        if self._calls % self.iterations == 0:
            self._below = sample
        self._calls += 1
        assert self._below is not None
        x0, eps = self.levels.split(model_output, sample, level=level)
        a, s = self.levels.signal, self.levels.noise
        if s[level - 1] > a[level - 1]:
            eps = (self._below - a[level - 1] * x0) / s[level - 1]
        else:
            x0 = (self._below - s[level - 1] * eps) / a[level - 1]
        return StepOutput(prev_sample=a[level] * x0 + s[level] * eps)
