"""The ancestral sampler of unCLIP, GLIDE and Karlo, with float64 tables and the original's respacing."""

from dataclasses import dataclass

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import KarrasDiffusionSchedulers, SchedulerMixin
from diffusers.utils.outputs import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from unclip_hub.diffusion import (
    PREDICTION_TYPES,
    cosine_alphas_cumprod,
    learned_range_std,
    posterior,
    predicted_x0,
    q_sample,
)


VARIANCE_TYPES = ("fixed_small_log", "learned_range")


@dataclass
class UnCLIPSchedulerOutput(BaseOutput):
    """One step: ``prev_sample`` is x_s, ``pred_original_sample`` the (clipped) x_0 that the network implied."""

    prev_sample: Tensor
    pred_original_sample: Tensor


class UnCLIPScheduler(SchedulerMixin, ConfigMixin):
    """Strided ancestral sampling (Nichol & Dhariwal 2021, section 4), drop-in for diffusers' class of that name.

    It differs from diffusers' in three ways: the tables are float64, so that the last step returns x_0 exactly; the
    timesteps are those of the original ``space_timesteps`` for every step count; one step is allowed (it starts at the
    last timestep).

    Args:
        variance_type: ``"fixed_small_log"`` (beta tilde) or ``"learned_range"`` (the network's second half of the
        channels).
        clip_sample_range: x_0 is clamped to ± this when ``clip_sample``.
    """

    order = 1
    _compatibles = [scheduler.name for scheduler in KarrasDiffusionSchedulers]

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        variance_type: str = "fixed_small_log",
        clip_sample: bool = True,
        clip_sample_range: float = 1.0,
        prediction_type: str = "epsilon",
        beta_schedule: str = "squaredcos_cap_v2",
    ) -> None:
        _require("beta_schedule", beta_schedule, ("squaredcos_cap_v2",))
        _require("variance_type", variance_type, VARIANCE_TYPES)
        _require("prediction_type", prediction_type, PREDICTION_TYPES)
        # for X.from_config(this.config): it drops what stands on defaults, and X's own default of the spacing starts
        # below the last timestep, or steps to the wrong one
        self.register_to_config(timestep_spacing="trailing", _use_default_values=[])
        self.alphas_cumprod = cosine_alphas_cumprod(num_train_timesteps)
        self.init_noise_sigma = 1.0
        self.num_inference_steps: int | None = None
        self.timesteps = torch.arange(num_train_timesteps - 1, -1, -1)

    def scale_model_input(self, sample: Tensor, timestep: int | Tensor | None = None) -> Tensor:
        """x_t as the network takes it: unchanged."""
        return sample

    def set_timesteps(self, num_inference_steps: int, device: str | torch.device | None = None) -> None:
        """Choose ``num_inference_steps`` of the training timesteps, evenly from the last to 0.

        Raises:
            ValueError: the number is not within 1 … num_train_timesteps.
        """
        last = self.config["num_train_timesteps"] - 1
        if not 1 <= num_inference_steps <= last + 1:
            raise ValueError(f"num_inference_steps must be within 1 … {last + 1}, got {num_inference_steps}")
        self.num_inference_steps = num_inference_steps
        self.timesteps = torch.tensor(_spaced(last, num_inference_steps), dtype=torch.int64, device=device)

    def step(
        self,
        model_output: Tensor,
        timestep: int | Tensor,
        sample: Tensor,
        prev_timestep: int | Tensor | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        return_dict: bool = True,
    ) -> UnCLIPSchedulerOutput | tuple[Tensor, Tensor]:
        """One step from x_t at ``timestep`` to ``prev_timestep``, by default the next of this scheduler's timesteps.

        Noise is drawn at every step but the one at timestep 0 and, with it, the last.
        """
        t = int(timestep)
        s = self._next_timestep(t) if prev_timestep is None else int(prev_timestep)
        step = posterior(self._abar(t), self._abar(s))
        variance_output = None
        if self.config["variance_type"] == "learned_range":
            model_output, variance_output = self._split(model_output, sample)
        x0 = predicted_x0(model_output, sample, abar=self._abar(t), kind=self.config["prediction_type"])
        if self.config["clip_sample"]:
            x0 = x0.clamp(-self.config["clip_sample_range"], self.config["clip_sample_range"])
        x = step.x0_coefficient * x0 + step.sample_coefficient * sample
        if s >= 0:
            noise = randn_tensor(sample.shape, generator=generator, device=sample.device, dtype=sample.dtype)
            std = step.variance**0.5 if variance_output is None else learned_range_std(variance_output, step)
            x = x + std * noise
        return UnCLIPSchedulerOutput(prev_sample=x, pred_original_sample=x0) if return_dict else (x, x0)

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """x_t from x_0, one timestep per row."""
        return q_sample(original_samples, noise, abar=self.alphas_cumprod[timesteps.cpu()].to(original_samples.device))

    def _next_timestep(self, t: int) -> int:
        later = self.timesteps[self.timesteps < t]
        return int(later.max()) if len(later) else -1

    def _abar(self, t: int) -> float:
        return 1.0 if t < 0 else self.alphas_cumprod[t].item()

    def _split(self, model_output: Tensor, sample: Tensor) -> tuple[Tensor, Tensor]:
        c = sample.shape[1]
        if model_output.shape[1] != 2 * c:
            raise ValueError(
                f"variance_type 'learned_range' needs {2 * c} output channels, got {model_output.shape[1]}; use "
                "variance_type='fixed_small_log' for a network without a learned variance"
            )
        return model_output[:, :c], model_output[:, c:]

    def __len__(self) -> int:
        return self.config["num_train_timesteps"]


def _spaced(last: int, count: int) -> list[int]:
    if count == 1:
        return [last]
    stride, position, steps = last / (count - 1), 0.0, []
    for _ in range(count):  # summed up, not multiplied: the original's rounding depends on it
        steps.append(round(position))
        position += stride
    return steps[::-1]


def _require(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"UnCLIPScheduler: {name} must be one of {allowed}, got {value!r}")
