"""Any diffusers scheduler on any stage: what it lacks is added to it, what would go wrong silently is refused."""

import copy
import inspect
import itertools
import json
from functools import lru_cache
from typing import Any

import torch
from diffusers.schedulers.scheduling_unclip import UnCLIPScheduler as DiffusersScheduler
from diffusers.utils import logging
from torch import Tensor

from unclip_hub.diffusion import PREDICTION_TYPES, as_prediction, predicted_x0
from unclip_hub.sampling import Predict, denoise, uses_learned_variance
from unclip_hub.schedulers.unclip import UnCLIPScheduler


logger = logging.get_logger(__name__)

# their steps know no prediction of x_0 (diffusers 0.42)
_WITHOUT_SAMPLE_PREDICTION = (
    "DPMSolverSDEScheduler",
    "EulerAncestralDiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "PNDMScheduler",
)
_SPACINGS = ("trailing", "linspace", "leading")
_MORE_STEPS = (2, 5, 10, 20, 50)
_MEAN, _STD = 0.4, 0.2  # of the rehearsal's Gaussian


def check_scheduler(pipe: Any, stage: str, *, num_inference_steps: int) -> None:
    """Refuse a scheduler that cannot sample from a stage's network in so many steps.

    Beyond its configuration this is asked of the scheduler itself, in a rehearsal of a few milliseconds: it samples a
    Gaussian from that Gaussian's exact predictions and must not miss its mean, nor make it wider.

    Raises:
        ValueError: the stage, the scheduler, why, and what to write instead.
    """
    scheduler = getattr(pipe, f"{stage}_scheduler")
    if scheduler is None:
        raise ValueError(f"the stage {stage!r} needs a scheduler, got {stage}_scheduler=None")
    reason = _misfit(stage, scheduler, *_channels(pipe, stage))
    if reason is None and not _is_known(scheduler, num_inference_steps):
        reason = _failure(scheduler, num_inference_steps, stage)
    if reason is not None:
        raise ValueError(f"{type(scheduler).__name__} cannot be used for the stage {stage!r}: {reason}")


def supported(scheduler: Any) -> Any:
    """The scheduler itself; of one that knows no prediction of x_0, a copy that takes one of the noise."""
    if scheduler.config["prediction_type"] != "sample" or type(scheduler).__name__ not in _WITHOUT_SAMPLE_PREDICTION:
        return scheduler
    scheduler = copy.deepcopy(scheduler)
    scheduler.register_to_config(prediction_type="epsilon")
    return scheduler


def fitted(predict: Predict, scheduler: Any, *, kind: str) -> Predict:
    """A network that predicts ``kind`` as the scheduler takes it.

    The network's x_0 is clamped as ``clip_sample`` asks, where the scheduler has no clipping of its own: at the last
    timestep of the cosine schedule an error of the predicted noise is 20,000 times as large in x_0.
    """
    config = scheduler.config
    wanted = config["prediction_type"]
    own_clipping = "clip_sample" in inspect.signature(type(scheduler).__init__).parameters
    limit = config.get("clip_sample_range", 1.0) if config.get("clip_sample") and not own_clipping else None
    if limit is None and wanted == kind:
        return predict

    def fit(x: Tensor, t: Tensor) -> Tensor:
        abar = _abar_at(scheduler, t)
        x0 = predicted_x0(predict(x, t)[:, : x.shape[1]], x, abar=abar, kind=kind)
        return as_prediction(x0 if limit is None else x0.clamp(-limit, limit), x, abar=abar, kind=wanted)

    return fit


def noise_level(scheduler: Any, t: Tensor) -> float:
    """sigma = sqrt(1 / abar - 1) at a timestep: 0 on a clean picture, 1 where noise and signal are equal."""
    return (1 / _abar_at(scheduler, t) - 1) ** 0.5


def with_final(predict: Predict, final: Predict, scheduler: Any, *, stage: str, begin: int = 0) -> Predict:
    """``final`` in place of ``predict`` at the last call, if that is at timestep 0, the only one it is trained for."""
    last = float(scheduler.timesteps[-1])
    if round(last) != 0:
        logger.warning(
            f"{stage}_last is trained for timestep 0 and is not used: the last of {type(scheduler).__name__} is "
            f"{last:.0f}. With timestep_spacing='linspace' DDPM and the Euler, Heun and KDPM2 schedulers end at 0"
        )
        return predict
    left = itertools.count(len(scheduler.timesteps) - 1 - begin, -1)
    return lambda x, t: final(x, t) if next(left) == 0 else predict(x, t)


def _is_known(scheduler: Any, num_inference_steps: int) -> bool:
    """unCLIP's own samplers need no rehearsal; and one that draws recorded noise has none to spare for it."""
    theirs = isinstance(scheduler, DiffusersScheduler) and num_inference_steps > 1
    return isinstance(scheduler, UnCLIPScheduler) or theirs


def _channels(pipe: Any, stage: str) -> tuple[int, int]:
    """The channels of a stage's x_t and of its network's output: twice as many with a learned variance."""
    if stage == "prior":
        config = pipe.prior.config
        return config["embedding_dim"], config["clip_embed_dim"] or config["embedding_dim"]
    if stage == "decoder":
        return 3, pipe.decoder.config["out_channels"]  # its input may hold more: a masked picture
    config = (pipe.super_res_first if stage == "super_res" else pipe.super_res_1024).config
    return config["in_channels"] // 2, config["out_channels"]


def _misfit(stage: str, scheduler: Any, channels: int, output_channels: int) -> str | None:
    """What in its configuration does not fit the network, if anything."""
    config, name = scheduler.config, type(scheduler).__name__
    unsaid = config.get("_use_default_values", ())
    make = f"{name}.from_config(pipe.{stage}_scheduler.config, "
    if not isinstance(getattr(scheduler, "alphas_cumprod", None), Tensor):
        return "it has no alphas_cumprod, the noise levels at whole timesteps that unCLIP's networks are trained with"
    if config.get("prediction_type") not in PREDICTION_TYPES:
        return f"its prediction_type must be one of {PREDICTION_TYPES}, got {config.get('prediction_type')!r}"
    if "beta_schedule" in unsaid and config["beta_schedule"] != "squaredcos_cap_v2":
        return (
            f"nothing says that its noise schedule is {config['beta_schedule']!r}, the class's default; unCLIP's is "
            f"{make}beta_schedule='squaredcos_cap_v2')"
        )
    if "original_inference_steps" in unsaid:
        return (
            "it needs weights distilled for it, with others its pictures have too little variety; for distilled ones "
            f"say with how many steps: {make}original_inference_steps=50)"
        )
    if uses_learned_variance(scheduler) and output_channels != 2 * channels:
        return (
            f"its variance_type {config['variance_type']!r} needs {2 * channels} output channels, the network has "
            f"{output_channels}: {make}variance_type='fixed_small_log')"
        )
    if name.startswith("DPMSolver") and config.get("variance_type") in ("learned", "learned_range") and channels != 3:
        return f"with its learned variance it keeps 3 channels of {channels}: {make}variance_type=None)"
    return None


def _failure(scheduler: Any, num_inference_steps: int, stage: str) -> str | None:
    """What went wrong in the rehearsal, and what would go right."""
    cls, config = type(scheduler), scheduler.to_json_string()
    failure = _rehearse(cls, config, num_inference_steps)
    if failure is None:
        return None
    for steps in (num_inference_steps, *(more for more in _MORE_STEPS if more > num_inference_steps)):
        if _rehearse(cls, config, steps) is None:
            return f"{failure}; right would be {steps} steps"
        for spacing in _SPACINGS:
            if _rehearse(cls, config, steps, timestep_spacing=spacing) is None:
                make = f"{cls.__name__}.from_config(pipe.{stage}_scheduler.config, timestep_spacing={spacing!r})"
                return f"{failure}; right would be {make}" + f" and {steps} steps" * (steps > num_inference_steps)
    return failure


@lru_cache(maxsize=256)
def _rehearse(cls: type, config: str, num_inference_steps: int, **changes: Any) -> str | None:
    """Sample 1,024 numbers from their exact predictions; what went wrong, or None."""
    steps = f"{num_inference_steps} step" + "s" * (num_inference_steps > 1)
    try:
        mean, std = _sampled_gaussian(cls, config, num_inference_steps, changes)
    except Exception as error:  # a scheduler may fail in any way: its own words are the reason
        return f"it fails in {steps} ({type(error).__name__}: {error})"
    if abs(mean - _MEAN) <= 0.1 * _MEAN and std <= 1.2 * _STD:  # not too narrow: few steps always are
        return None
    got = f"a mean of {mean:.3g} and a standard deviation of {std:.3g}"
    return f"it is wrong in {steps} (of exact predictions of {_MEAN} and {_STD} it made {got})"


def _sampled_gaussian(cls: Any, config: str, num_inference_steps: int, changes: dict[str, Any]) -> tuple[float, float]:
    settings = json.loads(config) | {"clip_sample": False}
    if settings.get("variance_type") in ("learned", "learned_range"):
        settings["variance_type"] = "fixed_small_log"
    scheduler = cls.from_config(settings, **changes)
    kind = scheduler.config["prediction_type"]

    def exact(x: Tensor, t: Tensor) -> Tensor:
        abar = _abar_at(scheduler, t)
        x0 = _MEAN + abar**0.5 * _STD**2 * (x - abar**0.5 * _MEAN) / (abar * _STD**2 + 1 - abar)
        return as_prediction(x0, x, abar=abar, kind=kind)

    scheduler = supported(scheduler)
    scheduler.set_timesteps(num_inference_steps)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1024, 1, generator=generator) * scheduler.init_noise_sigma
    made = denoise(fitted(exact, scheduler, kind=kind), x, scheduler, generator=generator)
    return made.mean().item(), made.std().item()


def _abar_at(scheduler: Any, t: Tensor) -> float:
    """abar at a timestep, between two whole ones by its log-odds: some schedulers stop there."""
    low, table = int(t), scheduler.alphas_cumprod
    abar = table[[low, min(low + 1, len(table) - 1)]].double()
    return torch.lerp(*abar.logit(), weight=float(t) - low).sigmoid().item()
