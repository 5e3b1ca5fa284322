"""Exact inversion: bidirectional integration approximation (Zhang et al. 2023, arXiv:2307.10829) with gamma = 1.

A step goes from two neighbouring levels to the next one: with x_0 and eps as predicted at level k,

    x_{k-1} = x_{k+1} + (a_{k-1} - a_{k+1}) x_0 + (s_{k-1} - s_{k+1}) eps

(a, s: signal and noise of a level). Solved for x_{k+1} it asks the network for the same prediction, so both
directions agree to rounding, whatever the network is: clamped, guided or untrained.
"""

from torch import Tensor

from unclip_hub.schedulers.ddim import NoiseLevels, StepOutput


class BDIA:
    """From two states to the picture.

    Args:
        levels: at least two.
        last: x at the last level; the walk starts from x at the one below.
    """

    def __init__(self, levels: NoiseLevels, *, last: Tensor) -> None:
        _check(levels)
        self.levels = levels
        self.timesteps = levels.timesteps[:-1].flip(0)
        self._above = last

    def scale_model_input(self, sample: Tensor, timestep: int | Tensor | None = None) -> Tensor:
        """x_t as the network takes it: unchanged."""
        return sample

    def step(self, model_output: Tensor, timestep: int | Tensor, sample: Tensor) -> StepOutput:
        """One level down."""
        below = self._above + _difference(self.levels, model_output, timestep, sample)
        self._above = sample
        return StepOutput(prev_sample=below)


class BDIAInverse:
    """From the picture to two states: x at the last level, which the walk returns, and ``before_last``.

    The first step has one state only: it is DDIM's. Any would do, as nothing is lost by a bad one.
    """

    def __init__(self, levels: NoiseLevels) -> None:
        _check(levels)
        self.levels = levels
        self.timesteps = levels.timesteps[[0, *range(len(levels) - 1)]]
        self.before_last: Tensor | None = None

    def scale_model_input(self, sample: Tensor, timestep: int | Tensor | None = None) -> Tensor:
        """x_t as the network takes it: unchanged."""
        return sample

    def step(self, model_output: Tensor, timestep: int | Tensor, sample: Tensor) -> StepOutput:
        """One level up."""
        if self.before_last is None:
            _, eps = self.levels.split(model_output, sample, level=1)
            above = self.levels.signal[1] * sample + self.levels.noise[1] * eps
        else:
            above = self.before_last - _difference(self.levels, model_output, timestep, sample)
        self.before_last = sample
        return StepOutput(prev_sample=above)


def _difference(levels: NoiseLevels, output: Tensor, timestep: int | Tensor, x: Tensor) -> Tensor:
    level = levels.at(timestep)
    x0, eps = levels.split(output, x, level=level)
    a, s = levels.signal, levels.noise
    return (a[level - 1] - a[level + 1]) * x0 + (s[level - 1] - s[level + 1]) * eps


def _check(levels: NoiseLevels) -> None:
    if len(levels) < 2:
        raise ValueError(f"exact inversion needs at least 2 steps, got {len(levels)}")
