"""The sampler of DALLE2-pytorch: ancestral over all timesteps, DDIM on a grid of its own over fewer."""

import torch
from diffusers.configuration_utils import register_to_config
from diffusers.utils.torch_utils import randn_tensor
from jaxtyping import Float
from torch import Tensor

from unclip_hub.diffusion import PREDICTION_TYPES, cosine_alphas_cumprod, learned_range_std, posterior, predicted_x0
from unclip_hub.embeddings import normalize
from unclip_hub.schedulers.unclip import VARIANCE_TYPES, UnCLIPScheduler, UnCLIPSchedulerOutput


SCHEDULES = ("squaredcos_cap_v2", "linear", "quadratic", "sigmoid")


class DALLE2PytorchScheduler(UnCLIPScheduler):
    """LAION's networks sample as they were published with this: as many steps as timesteps are the ancestral sampler
    (Ho et al. 2020), fewer are DDIM (Song et al. 2020, arXiv:2010.02502, eq. 12).

    What the releases changed in DDIM is an option; none changes the ancestral sampler. The noise schedules but the
    cosine one are those of 1,000 timesteps stretched to `num_train_timesteps`. Tables are float64.

    Args:
        eta: DDIM's share of fresh noise; 0 is deterministic.
        ddim_grid: "from_zero": n steps from T n/(n+1) to 0, which ends at the noise level of timestep 0. "from_minus":
            n - 1 steps from T - (T+1)/n to x_0 itself.
        ddim_alphas: "own", or "previous": those of one timestep earlier, as the prior always had.
        ddim_noise: "implied" by the clamped x_0, or "predicted" (before 1.12.3).
        clip_norm: predictions of x_0 get this l2 norm, instead of being clamped.
        dynamic_threshold: this quantile of |x_0|, if above 1, is what x_0 is clamped at and divided by (Imagen).

    Raises:
        ValueError: a value that is none of these, or a schedule that has no signal left at its last timestep.
    """

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        variance_type: str = "fixed_small_log",
        clip_sample: bool = True,
        clip_sample_range: float | int = 1.0,
        prediction_type: str = "epsilon",
        beta_schedule: str = "squaredcos_cap_v2",
        eta: float | int = 0.0,
        ddim_grid: str = "from_zero",
        ddim_alphas: str = "own",
        ddim_noise: str = "implied",
        clip_norm: float | int | None = None,
        dynamic_threshold: float | None = None,
    ) -> None:
        allowed = {
            "variance_type": VARIANCE_TYPES,
            "prediction_type": PREDICTION_TYPES,
            "beta_schedule": SCHEDULES,
            "ddim_grid": ("from_zero", "from_minus"),
            "ddim_alphas": ("own", "previous"),
            "ddim_noise": ("implied", "predicted"),
        }
        for key, values in allowed.items():
            if self.config[key] not in values:
                raise ValueError(f"DALLE2PytorchScheduler: {key} must be one of {values}, got {self.config[key]!r}")
        self.alphas_cumprod = _alphas_cumprod(beta_schedule, num_train_timesteps)
        self.init_noise_sigma = 1.0
        self.num_inference_steps: int | None = None
        self.timesteps = torch.arange(num_train_timesteps - 1, -1, -1)
        self._last = -1

    def set_timesteps(self, num_inference_steps: int, device: str | torch.device | None = None) -> None:
        """Choose the timesteps: all for the ancestral sampler, else DDIM's.

        Raises:
            ValueError: the number is not within 1 (2 for "from_minus") … num_train_timesteps.
        """
        total = self.config["num_train_timesteps"]
        from_zero = self.config["ddim_grid"] == "from_zero"
        least = 1 if from_zero else 2
        if not least <= num_inference_steps <= total:
            raise ValueError(f"num_inference_steps must be within {least} … {total}, got {num_inference_steps}")
        if num_inference_steps == total:
            steps = [*range(total - 1, -2, -1)]
        else:
            first, points = (0.0, num_inference_steps + 2) if from_zero else (-1.0, num_inference_steps + 1)
            steps = torch.linspace(first, total, steps=points)[:-1].int().tolist()[::-1]  # in float32, as there
        self.num_inference_steps = num_inference_steps
        self.timesteps = torch.tensor(steps[:-1], dtype=torch.int64, device=device)
        self._last = steps[-1]

    def step(
        self,
        model_output: Tensor,
        timestep: int | Tensor,
        sample: Tensor,
        generator: torch.Generator | list[torch.Generator] | None = None,
        return_dict: bool = True,
    ) -> UnCLIPSchedulerOutput | tuple[Tensor, Tensor]:
        """One step from x_t at ``timestep`` to the next of this scheduler's timesteps."""
        t = int(timestep)
        s = self._next_timestep(t)
        variance_output = None
        if self.config["variance_type"] == "learned_range":
            model_output, variance_output = self._split(model_output, sample)
        raw = predicted_x0(model_output, sample, abar=self._abar(t), kind=self.config["prediction_type"])
        x0 = self._clamped(raw)
        if self.num_inference_steps not in (None, self.config["num_train_timesteps"]):
            implied = self.config["ddim_noise"] == "implied"
            x = self._ddim(x0, sample, t=t, s=s, noise_of=x0 if implied else raw, generator=generator)
        else:
            step = posterior(self._abar(t), self._abar(s))
            x = step.x0_coefficient * x0 + step.sample_coefficient * sample
            if s >= 0:
                std = step.variance**0.5 if variance_output is None else learned_range_std(variance_output, step)
                x = x + std * _noise(sample, generator)
        return UnCLIPSchedulerOutput(prev_sample=x, pred_original_sample=x0) if return_dict else (x, x0)

    def _ddim(
        self,
        x0: Tensor,
        sample: Tensor,
        *,
        t: int,
        s: int,
        noise_of: Tensor,
        generator: torch.Generator | list[torch.Generator] | None,
    ) -> Tensor:
        if s < 0:
            return x0
        eps = (sample - self._abar(t) ** 0.5 * noise_of) / (1 - self._abar(t)) ** 0.5
        shift = 0 if self.config["ddim_alphas"] == "own" else 1
        abar_t, abar_s = self._abar(t - shift), self._abar(s - shift)
        fresh = self.config["eta"] * ((1 - abar_t / abar_s) * (1 - abar_s) / (1 - abar_t)) ** 0.5
        x = abar_s**0.5 * x0 + (1 - abar_s - fresh**2) ** 0.5 * eps
        return x + fresh * _noise(sample, generator) if s > 0 and fresh > 0 else x

    def _clamped(self, x0: Tensor) -> Tensor:
        if self.config["clip_norm"] is not None:
            return normalize(x0) * self.config["clip_norm"]
        if not self.config["clip_sample"]:
            return x0
        ratio, limit = self.config["dynamic_threshold"], self.config["clip_sample_range"]
        if ratio is None:
            return x0.clamp(-limit, limit)
        threshold = torch.quantile(x0.flatten(1).abs().float(), ratio, dim=1).clamp(min=1.0).to(x0.dtype)
        threshold = threshold.view(-1, *(1,) * (x0.ndim - 1))
        return x0.clamp(-threshold, threshold) / threshold

    def _next_timestep(self, t: int) -> int:
        later = self.timesteps[self.timesteps < t]
        return int(later.max()) if len(later) else self._last


def _alphas_cumprod(schedule: str, timesteps: int) -> Float[Tensor, "{timesteps}"]:
    if schedule == "squaredcos_cap_v2":
        return cosine_alphas_cumprod(timesteps)
    low, high = (1000 / timesteps * beta for beta in (0.0001, 0.02))
    if high >= 1:
        raise ValueError(
            f"the {schedule} schedule needs more than 20 timesteps (at 20 no signal is left), {timesteps=}"
        )
    if schedule == "linear":
        betas = torch.linspace(low, high, timesteps, dtype=torch.float64)
    elif schedule == "quadratic":
        betas = torch.linspace(low**0.5, high**0.5, timesteps, dtype=torch.float64) ** 2
    else:
        betas = torch.linspace(-6, 6, timesteps, dtype=torch.float64).sigmoid() * (high - low) + low
    return torch.cumprod(1 - betas, dim=0)


def _noise(sample: Tensor, generator: torch.Generator | list[torch.Generator] | None) -> Tensor:
    return randn_tensor(sample.shape, generator=generator, device=sample.device, dtype=sample.dtype)
